"""The config of a run: every key with its type and range, and what is refused before anything heavy is loaded.

configs/base.yaml holds the defaults and is what people read; a test holds that both name the same keys in the same
words.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from lexlip.errors import ConfigError
from lexlip.launch import environment
from lexlip.models.config import HEADS, TEXT_SIDES
from lexlip.models.positions import REL_POS
from lexlip.models.terms import KINDS
from lexlip.ops.max_logits import ACTIVATIONS, METHODS
from lexlip_data.loading.transforms import refusal_of
from lexlip_data.sources.images import TRANSPARENCY, TRUNCATED

FRESH_WIDTH = 768  # of a fresh BERT, where no key says it
LOGGERS = ("tensorboard", "csv", "wandb")
PENALTIES = ("flops", "l1")
FRACTIONS = (
    "warmup_steps", "flops_warmup", "flops_warmup_text", "flops_warmup_image", "target_steps", "top_k_steps",
    "val_check_interval",
)  # fmt: skip
CONTROLS = (None, "captions", "terms")
WORD_KEYS = ("own_weights", "start_terms_text", "start_terms_image", "joint_dim")  # of trained towers alone
MODES = ("bottle", "con", "both")
PER, UPDATES = ("batch", "micro_batch"), ("step", "micro_batch")
MASKING, STARTS, SELECTIONS = ("words", "positions"), ("empty", "noise"), ("rsum", "first_r1")
PRECISIONS = (16, 32, "16", "32", "bf16", "16-mixed", "bf16-mixed", "32-true")


def key(doc: str, *, least: float | None = None, most: float | None = None, above: float | None = None, choices=()):
    """A field of `Config`: its line of documentation, and which numbers or names it takes."""
    return dataclasses.field(metadata={"doc": doc, "least": least, "most": most, "above": above, "choices": choices})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every key of a run, checked; made by `Config.checked`. A key of None is derived from the towers or not used."""

    # --- run ---
    exp_name: str = key("results go to log_dir/exp_name_seed{seed}/version_{n}")
    seed: int = key("all randomness is a function of (seed, epoch, sample)", least=0, most=2**32 - 1)  # NumPy's
    log_dir: str = key("checkpoints, TensorBoard, CSV, sacred's record")
    version: str | int | None = key("a fixed version number or name; null: the next free number")
    load_path: str = key("start from these weights: a checkpoint of either phase, or a model folder")
    resume_from: str | None = key("go on with this checkpoint and all that it holds; auto: with the newest")
    fast_dev_run: bool | int = key("true or a number of batches: a smoke test that saves nothing")
    test_only: bool = key("evaluate on the test split and stop")
    metrics_file: str = key("test_only: also write the metrics to this JSON file")
    log_every: int = key("steps between two lines of the logs", least=1)
    loggers: list[str] = key("where the numbers go: tensorboard, csv, wandb", choices=LOGGERS)

    # --- machine ---
    num_gpus: int = key("per node; 0: run on the CPU", least=0)
    num_nodes: int = key("machines of the run", least=1)
    num_workers: int = key("loader processes per GPU", least=0)
    precision: int | str = key('16, "bf16", 32; 16 on the CPU means bf16', choices=PRECISIONS)
    cpu_threads: int | None = key("torch threads on the CPU; null: torch decides", least=1)
    collective_timeout: int = key("seconds that a process waits for the others before it gives up", least=1)
    lexicon_head: str = key("fused never holds (B, L, V), textbook does; auto: fused on CPU, NVIDIA", choices=METHODS)
    compile: bool = key("torch.compile for both towers; the first steps then take minutes")
    gradient_checkpointing: bool = key("encode twice in the backward pass and keep fewer activations")

    # --- data ---
    datasets: list[str] = key("any mixture of known names and of your own")
    data_root: str = key("folder of the Arrow files, or of the official TSV folders")
    data_sets: dict = key('own names: {"mine": {"train": ["mine_train"], "val": ["mine_val"], "test": ["mine_test"]}}')
    picture_roots: list[str] = key("folders besides data_root that the tables' paths and links may lead into")
    max_images: int | dict | None = key('cap on images per data set and split: a number, or {"gcc": 100000}')
    train_transform_keys: list[str] = key("vit, vit_randaug, torchvision_randaug")
    val_transform_keys: list[str] = key("vit")
    truncated_images: str = key(
        "refuse, or read: what is missing of a file that is cut short is grey", choices=TRUNCATED
    )
    turned_images: bool = key("turn images upright by their EXIF tag")
    reduced_images: bool = key("decode large JPEGs at a half, a quarter or an eighth, where nothing is augmented")
    transparency: str = key("white, or drop: show the colours that transparent pixels have", choices=TRANSPARENCY)
    image_size: int = key("side of the images in pixels", least=1)
    max_text_len: int = key("tokens, [CLS], corner tokens and [SEP] included", least=1)
    long_captions: int = key("long texts per pair: column long_caption, else an image's captions joined", least=0)
    sub_captions: bool = key("of a long text, take a random number of its sentences in each step")
    sentence_sep: bool = key('read every ". " of a caption as [SEP]')
    tokenizer: str = key("hub name or folder")
    vocab_size: int | None = key("entries of the vocabulary; null: the tokenizer's", least=1)
    whole_word_masking: bool = key("mask all word pieces of a word together")
    mlm_prob: float = key("probability that a word of the text tower's input is masked", least=0, most=1)
    decoder_mlm_prob: float = key("probability that a word of the weakened decoder's input is masked", least=0, most=1)
    masking: str = key(
        "words: of a caption's words; positions: of max_text_len, drawn among words and padding", choices=MASKING
    )

    # --- image tower ---
    vit: str = key('timm name, "hf-hub:owner/name" or "local-dir:PATH"')
    vit_pretrained: bool | str = key("true: the hub's weights; false: none; a path: that weights file")
    vit_kwargs: dict = key('shape for timm.create_model, e.g. {"depth": 4, "embed_dim": 192, "num_heads": 3}')
    patch_size: int | None = key("null: the tower's own; otherwise it must be that", least=1)
    input_image_embed_size: int | None = key("width of the image tower; null: the tower's own", least=1)
    image_norm_eps: float = key("of the image tower's LayerNorms", least=0)
    lock_image: bool = key("keep the image tower as it was loaded; its head is still trained")
    drop_path_rate: float = key("stochastic depth of the last block, 0 at the first; BEiT and ViT", least=0, most=1)
    rel_pos: str = key("BEiT's positions at other sizes: 2d, or official, as the official code does", choices=REL_POS)

    # --- text tower and weakened decoder ---
    text_model: str = key('hub name or folder; "": the same as tokenizer')
    text_pretrained: bool = key("false: a fresh BERT from the next keys")
    text_layers: int = key("depth of a fresh BERT", least=0)
    text_positions: int = key("positions of a fresh BERT", least=1)
    input_text_embed_size: int | None = key("width of the text tower; null: the tower's own, 768 if fresh", least=1)
    hidden_size: int | None = key("width of the weakened decoder; null: the text tower's, which it must equal", least=1)
    num_heads: int | None = key("of the text tower and the decoder; null: the tower's own, or width / 64", least=1)
    mlp_ratio: float = key("of a fresh BERT, and so of the decoder", above=0)
    corner_tokens: int = key("tokens of their own after [CLS] that read long texts", least=0)
    trained_positions: int | None = key("of the text tower; longer texts get stretched ones; null: all", least=1)
    drop_rate: float = key("of the text tower and the decoder", least=0, most=1)
    decoder_layers: int = key("depth of the weakened decoder", least=0)

    # --- head ---
    head: str = key("lexicon: weighted terms; dense: one vector of embed_dim numbers, the baseline", choices=HEADS)
    embed_dim: int = key("dense: width of the vectors", least=1)
    joint_dim: int = key("lexicon: width of a dense head beside it, see loss_names.dense; 0: none", least=0)
    joint_weights: list[float] = key("of dense and of lexicon scores in the sum that teaches both", least=0)
    eval_head: str = key("evaluation of a model with both heads", choices=HEADS)
    text_pooler: bool = key("dense: project BERT's pooler (dense layer, tanh) of [CLS] rather than [CLS] itself")
    image_projection: bool = key("dense: false where the image tower is embed_dim wide and gives the vectors as it is")

    # --- words ---
    inactive_terms: list[str] = key("kinds that no vector has: special, unused, non_latin, suffix, stop, sign")
    activation: str = key(
        "of logits: log1p of what is above 0, or that twice, as OpenSearch has it", choices=ACTIVATIONS
    )
    head_text: str = key(
        "contextual: the text tower's states; in_context: of a text's own terms alone; lookup: a table, no tower",
        choices=TEXT_SIDES,
    )
    own_weights: bool = key("a caption's own terms also weigh by a number per term, learned")
    expansion_control: str | None = key(
        "captions: a caption is expanded or not; terms: each term that is not its own counts or not; null: no control, "
        "but captions on frozen towers",
        choices=CONTROLS,
    )
    expansion_start: float = key("probability of the expansion at first; it grows to expansion_end", least=0, most=1)
    expansion_end: float = key("probability in the end", least=0, most=1)

    # --- heads on frozen towers ---
    features: str = key("folder of `lexlip cache`; trains heads on its features, and no tower is loaded")
    teacher: str = key("whose scores teach: a checkpoint or folder of a dense model; own: frozen towers themselves")
    teacher_temperature: float | None = key("divides the scores that teach; null: as temperature", above=0)
    head_width: int = key(
        "of the space of images, texts and terms; as wide as the text tower, it starts from it", least=1
    )
    term_min_count: int = key("captions that must have a word piece, for it to be a term", least=1)
    separate_tables: bool = key("images have term embeddings of their own; else both sides share them")
    row_terms: int = key("lookup: terms that a word piece adds to its own", least=0)
    image_dropout: float = key("of the image features", least=0, most=1)
    text_dropout: float = key("of the sentence vectors", least=0, most=1)

    # --- losses ---
    training_mode: str = key("bottle: masked-language parts; con: contrastive part; both: all", choices=MODES)
    loss_names: dict[str, float] = key("weights; 0 leaves a part out")
    temperature: float = key("divides the scores of the contrastive losses", above=0)
    flops_weight: float = key("of FLOPS(text) and of FLOPS(image)", least=0)
    flops_weight_text: float | None = key("of captions alone; null: flops_weight", least=0)
    flops_weight_image: float | None = key("of images alone; null: flops_weight", least=0)
    flops_warmup: int | float = key(
        "until then it grows with the square; a fraction of all steps if a float, steps if an int", least=0
    )
    flops_warmup_text: int | float | None = key("of captions alone; null: flops_warmup", least=0)
    flops_warmup_image: int | float | None = key("of images alone; null: flops_warmup", least=0)
    penalty_text: str = key("what flops_weight weighs: flops or l1", choices=PENALTIES)
    penalty_image: str = key("the same for images", choices=PENALTIES)
    flops_threshold: int = key("vectors with at most so many active terms are not penalised", least=0)
    target_terms_text: float | None = key("active terms of a caption: moves its weight of FLOPS until so many", least=1)
    target_terms_image: float | None = key("the same for images", least=1)
    target_steps: int | float = key("by this step the target is reached; a fraction of all steps if a float", least=0)
    start_terms_text: int | None = key("active terms of a caption at the first step, by a shift of biases", least=1)
    start_terms_image: int | None = key("the same for images", least=1)
    train_top_k: list[int] = key("contrast vectors cut to their k heaviest terms too, e.g. [8, 32]", least=1)
    top_k_start: int | None = key("train_top_k falls from it in equal steps; null: it is constant", least=1)
    top_k_steps: int | float = key("until then; as flops_warmup", least=0)
    bottleneck_temperature: float = key("Phase 1: divides the logits of the bottleneck's softmax", above=0)
    bottleneck_norm: bool = key("Phase 1: bring the bag of words to the length of the decoder's other inputs")
    mask_same_image: bool = key("captions of one image are not negatives of each other")
    contrastive_gradient: float = key(
        "multiplies the gradient of the contrastive loss within a batch, not its value", least=0
    )
    loss_rows: str = key("rows that FLOPS and the masked words of a mean are of: batch, micro_batch", choices=PER)
    queue_size: int = key("Phase 2: past keys kept per modality", least=0)
    queue_start: str = key("Phase 2: empty, or noise: random keys until the first ones are overwritten", choices=STARTS)
    queue_update: str = key(
        "Phase 2: after each step, or micro_batch: keys of its earlier ones are negatives too", choices=UPDATES
    )
    momentum: float = key("Phase 2: of the momentum encoder", least=0, most=1)
    momentum_update: str = key("Phase 2: after each step, or before it for each micro_batch", choices=UPDATES)
    momentum_dropout: bool = key("Phase 2: dropout and stochastic depth in the momentum encoder too")
    DR: bool = key("Phase 2, dynamic resolution: half of the training steps at half the image size")
    DR_coin: str = key("Phase 2: one for each step, or for each micro_batch", choices=UPDATES)
    push_floor: float = key("loss_names.push: weight of terms that an image has lost, so that they return", least=0)

    # --- optimiser ---
    optim_type: str = key("adamw, adam, sgd", choices=("adamw", "adam", "sgd"))
    learning_rate: float = key("at its peak, after the warm-up", least=0)
    weight_decay: float = key("none on biases and norms, but see block_decay", least=0)
    block_decay: bool = key("decay norms and layer scale inside the image tower's blocks too, as the authors do")
    adam_betas: list[float] = key("decay of Adam's two running means", least=0)
    adam_eps: float = key("added to the denominator of Adam's step", least=0)
    decay_power: int | float | str = key('of the polynomial decay; "cosine" for a cosine')
    end_lr: float = key("where the decay ends", least=0)
    warmup_steps: int | float = key("a fraction of all steps if a float, steps if an int", least=0)
    clip_grad: float = key("gradient norm; 0 for none", least=0)
    batch_size: int = key("global, per optimiser step", least=1)
    per_gpu_batchsize: int = key("rows of a micro-batch, per process; the step is exact however it is split", least=1)
    grad_cache_chunk: int | None = key("rows encoded at once; null: per_gpu_batchsize", least=1)
    max_epoch: int = key("length of the training in epochs", least=1)
    max_steps: int | None = key("wins over max_epoch", least=1)

    # --- checkpoints and faults ---
    checkpoint_minutes: float = key("at most so long between two, besides before each validation; 0: no clock", least=0)
    checkpoint_steps: int | None = key("also every so many steps", least=1)
    keep_checkpoints: int = key("the newest ones; the best on val is kept besides", least=1)
    max_nonfinite_steps: int = key("stop after so many steps in a row that are NaN or infinite", least=1)
    max_bad_share: float = key("stop once more than this fraction of an epoch's pairs is broken", least=0, most=1)

    # --- validation and evaluation ---
    val_check_interval: int | float = key("a fraction of an epoch if a float, batches if an int", above=0)
    val_check_unit: str = key("what an int counts: batch, a whole step, or micro_batch", choices=PER)
    get_recall_metric: bool = key("recall on val after each check picks the best checkpoint; false: the val loss does")
    select_by: str = key("rsum: mean of all data sets; first_r1: both R@1 of the first one", choices=SELECTIONS)
    eval_batch_size: int | None = key("null: per_gpu_batchsize", least=1)
    eval_top_k: list[int] = key("also report recall with every vector cut to its k heaviest terms, e.g. [32]", least=1)
    eccv: bool = key("test_only: also ECCV Caption and CxC of COCO's test split, by the package eccv-caption")
    eval_folds: int = key("5: also the five-fold 1K protocol of COCO", least=0)

    @classmethod
    def checked(cls, values: Mapping) -> Config:
        """The config with these values, one for every key; numbers in their key's type.

        Raises:
            ConfigError: an unknown key, a wrong type or a contradiction; names the key, its value and what is allowed.
        """
        defaults = base()
        if unknown := sorted(set(values) - set(_HINTS)):
            raise ConfigError(f"unknown key {unknown[0]!r}; configs/base.yaml lists all of them")
        typed: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            name = field.name
            if name not in values:
                raise ConfigError(f"{name} is missing")
            if name == "num_gpus" and isinstance(values[name], list):
                raise ConfigError(
                    f"num_gpus={values[name]}; give how many, num_gpus={len(values[name])}, and choose them with "
                    f"CUDA_VISIBLE_DEVICES={','.join(map(str, values[name]))} before the command"
                )
            typed[name] = _typed(name, values[name], defaults[name])
            _check_range(field, typed[name], defaults[name])
        config = cls(**typed)
        _check_values(config, defaults)
        if not config.test_only:
            _check_batch(config)
        return config

    def changed(self, **values) -> Config:
        """A copy with other values; they are not checked again."""
        return dataclasses.replace(self, **values)

    def as_dict(self) -> dict:
        """Plain values, as checkpoints hold them."""
        return dataclasses.asdict(self)

    @property
    def processes(self) -> int:
        """Processes of the run, on all nodes."""
        return environment.processes(self.num_gpus, self.num_nodes)

    @property
    def fresh_width(self) -> int:
        """Width of a fresh text tower."""
        return self.input_text_embed_size or self.hidden_size or FRESH_WIDTH

    @property
    def rows_at_once(self) -> int:
        """Rows of a micro-batch."""
        return self.grad_cache_chunk or self.per_gpu_batchsize

    @property
    def validated_every(self) -> int | float:
        """`val_check_interval` in global batches, or as a fraction of an epoch."""
        every = self.val_check_interval
        if isinstance(every, float) or self.val_check_unit == "batch":
            return every
        return max(1, every * self.per_gpu_batchsize * self.processes // self.batch_size)

    @property
    def trainer_precision(self) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
        """Lightning's name of `precision`; 16 bits on the CPU are bfloat16."""
        name = str(self.precision).removesuffix("-mixed").removesuffix("-true")
        if name == "32":
            return "32-true"
        return "bf16-mixed" if name == "bf16" or not self.num_gpus else "16-mixed"


_HINTS = get_type_hints(Config)


def folder() -> Path:
    """Where the YAML files are: configs/ of the checkout, or the copy inside an installed package."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "base.yaml").is_file():
            return candidate
    raise FileNotFoundError(f"base.yaml is neither in {package / 'configs'} nor in {package.parent / 'configs'}")


def base() -> dict:
    """Every key with its default."""
    return copy.deepcopy(_read(folder() / "base.yaml"))


def named() -> dict[str, dict]:
    """The named configs: each file beside base.yaml, by its name."""
    files = (path for path in sorted(folder().glob("*.yaml")) if path.stem != "base")
    return {path.stem: _read(path) for path in files}


@functools.cache
def _read(path: Path) -> dict:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # with libyaml, ten times as fast
    return yaml.load(path.read_text(), loader) or {}


def _typed(name: str, value: object, default: object) -> object:
    hint = _HINTS[name]
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    allowed = tuple(get_origin(kind) or kind for kind in kinds)
    if float in kinds and int not in kinds and type(value) is int:
        return float(value)
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, bool) and bool not in allowed or not isinstance(value, allowed):
        names = " or ".join("null" if kind is NoneType else kind.__name__ for kind in allowed)
        raise ConfigError(f"{name}={value!r} is {type(value).__name__}; it must be {names}, such as {default!r}")
    return value


def check_seed(value: object) -> None:
    """Refuse what no generator takes.

    Raises:
        ConfigError: it is no whole number from 0 to 2**32 - 1.
    """
    field = next(field for field in dataclasses.fields(Config) if field.name == "seed")
    _check_range(field, _typed("seed", value, 0), 0)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_range(field: dataclasses.Field, value: object, default: object) -> None:
    """Refuse numbers outside their key's range, also inside of lists, and names that are no choice."""
    rule, name = field.metadata, field.name
    given = value if isinstance(value, list) else [value]
    if rule["choices"] and any(item not in rule["choices"] for item in given):
        raise ConfigError(f"{name}={value!r}; it must be one of {', '.join(map(str, rule['choices']))}")
    if isinstance(value, list):
        kind = get_args(_HINTS[name])[0]
        right = _number if kind is float else lambda item: type(item) is kind
        if not all(right(item) and (rule["least"] is None or item >= rule["least"]) for item in value):
            least = f" of at least {rule['least']}" if rule["least"] is not None else ""
            meant = {int: "a whole number", float: "a number"}.get(kind, "a string")
            such = default or ([32] if kind is int else ["name"])
            raise ConfigError(f"{name}={value}; every entry must be {meant}{least}, such as {such}")
    if not _number(value):
        return
    least, most, above = rule["least"], rule["most"], rule["above"]
    if most is not None and not least <= value <= most:
        raise ConfigError(f"{name}={value}; it must lie between {least} and {most}")
    if least is not None and value < least:
        raise ConfigError(f"{name}={value}; it must {'not be negative' if least == 0 else f'be at least {least}'}")
    if above is not None and value <= above:
        raise ConfigError(f"{name}={value}; it must be {'positive' if above == 0 else f'above {above}'}")


def _check_values(config: Config, defaults: dict) -> None:
    """What a type and a range cannot say."""
    for name in ("train_transform_keys", "val_transform_keys"):
        if reason := refusal_of(getattr(config, name)):
            raise ConfigError(f"{name}={getattr(config, name)}; {reason}")
    name = str(config.version)
    if name in ("", ".", "..") or {"/", "\\", "\0"} & set(name):
        raise ConfigError(f"version={name!r}; it must be a number or a plain name, which a folder will have")
    power = config.decay_power
    if power != "cosine" and (isinstance(power, str) or power < 0):
        raise ConfigError(f"decay_power={power!r}; it must be a number that is not negative, or 'cosine'")
    if wrong := sorted(set(config.loss_names) - set(defaults["loss_names"])):
        raise ConfigError(f"loss_names has {wrong[0]!r}; known are {', '.join(defaults['loss_names'])}")
    if not all(_number(weight) and weight >= 0 for weight in config.loss_names.values()):
        raise ConfigError(f"loss_names={config.loss_names}; every weight must be a number that is not negative")
    if wrong := sorted(set(config.inactive_terms) - set(KINDS)):
        raise ConfigError(f"inactive_terms has {wrong[0]!r}; known are {', '.join(KINDS)}")
    for side in ("text", "image"):
        own = getattr(config, f"flops_weight_{side}")
        if getattr(config, f"target_terms_{side}") and not (config.flops_weight if own is None else own):
            raise ConfigError(f"target_terms_{side} moves a weight, but flops_weight=0; set it above 0, such as 0.1")
    if not config.datasets:
        raise ConfigError("datasets is empty; name at least one data set")
    for name in FRACTIONS:
        value = getattr(config, name)
        if isinstance(value, float) and value > 1:
            whole = "an epoch" if name == "val_check_interval" else "all steps"
            raise ConfigError(f"{name}={value}: as a float it is a fraction of {whole}, at most 1.0")
    if len(config.joint_weights) != 2:
        raise ConfigError(f"joint_weights={config.joint_weights}; it must be two numbers, of dense and of lexicon")
    if len(config.adam_betas) != 2 or not all(beta < 1 for beta in config.adam_betas):
        raise ConfigError(f"adam_betas={config.adam_betas}; it must be two numbers from 0 up to, but not including, 1")
    if config.max_text_len < 3 + config.corner_tokens:
        corners = f", with corner_tokens={config.corner_tokens}," if config.corner_tokens else ""
        raise ConfigError(
            f"max_text_len={config.max_text_len}{corners} leaves no room for a word between [CLS] and [SEP]"
        )
    check_patch(config.image_size, config.patch_size)
    width, text_width = config.hidden_size, config.input_text_embed_size
    if width is not None and text_width is not None and width != text_width:
        raise ConfigError(
            f"hidden_size={width} is the weakened decoder's width and must equal input_text_embed_size={text_width}"
        )
    if not config.text_pretrained and config.num_heads and config.fresh_width % config.num_heads:
        name = "hidden_size" if width is not None else "input_text_embed_size"
        raise ConfigError(f"{name}={config.fresh_width} is not a multiple of num_heads={config.num_heads}")


def check_patch(image_size: int, patch: int | None, dynamic: bool = False) -> None:
    """Refuse an image size that the patch does not divide; with `dynamic` (DR) its half must divide too.

    Raises:
        ConfigError: as above, with the nearest sizes that do.
    """
    if patch and image_size % patch:
        near = _multiples_near(image_size, patch)
        raise ConfigError(f"image_size={image_size} is not a multiple of patch_size={patch}; {near} would be")
    if dynamic and patch and (image_size % 2 or image_size // 2 % patch):
        raise ConfigError(
            f"DR=True also needs half of image_size={image_size} to be a multiple of patch_size={patch}; "
            f"{2 * patch * max(1, round(image_size / 2 / patch))} would do, or set DR=False"
        )


def _check_batch(config: Config) -> None:
    if (config.grad_cache_chunk or 0) > config.per_gpu_batchsize:
        raise ConfigError(
            f"grad_cache_chunk={config.grad_cache_chunk} is larger than per_gpu_batchsize={config.per_gpu_batchsize}, "
            "which it is to cut; raise per_gpu_batchsize instead"
        )
    at_once = config.per_gpu_batchsize * config.processes
    if config.batch_size % at_once:
        raise ConfigError(
            f"batch_size={config.batch_size} does not divide by per_gpu_batchsize={config.per_gpu_batchsize} x "
            f"{config.processes} processes = {at_once}; {_multiples_near(config.batch_size, at_once)} would"
        )


def _multiples_near(value: int, step: int) -> str:
    return " or ".join(str(step * n) for n in (value // step, value // step + 1) if n)
