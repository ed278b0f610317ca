"""The model without any trainer: two towers, two lexicon heads, pictures and captions to lexicon vectors.

B batch, L tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from PIL import Image
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from lexlip import checkpoint
from lexlip.checkpoint import CheckpointError
from lexlip.config import ConfigError
from lexlip.encoders import ImageEncoder, TextEncoder, pretrained_bert
from lexlip.files import give_usual_rights, write_json
from lexlip.lexicon import LexiconHead
from lexlip_data.pictures import to_rgb, upright
from lexlip_data.transforms import build_transform

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PREPROCESSING_FILE = "preprocessor_config.json"


MODEL_CARD = """---
{{ card_data }}
---

A LexLIP model: pictures and captions as weighted bags of words over one vocabulary.

    from lexlip import LexLIP
    model = LexLIP.from_pretrained("this folder or name")
    model.lexicon(model.encode_text(["a dog on the beach"]))
"""


@dataclass
class ModelConfig:
    """What is needed to build the same model again without its weights.

    Attributes:
        vit: timm name of the image tower.
        vit_kwargs: passed to `timm.create_model`.
        image_size: side in pixels of the pictures.
        image_norm_eps: of the image tower's LayerNorms.
        text: the text tower's `BertConfig` as a dict.
        max_text_len: tokens per caption, [CLS] and [SEP] included.
    """

    vit: str
    image_size: int
    text: dict
    vit_kwargs: dict = field(default_factory=dict)
    image_norm_eps: float = 1e-12
    max_text_len: int = 40

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.text["vocab_size"]


class LexLIP(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="lexlip",
    tags=["sparse-retrieval", "image-text-retrieval"],
    model_card_template=MODEL_CARD,
):
    """Image tower, text tower and their lexicon heads.

    Args:
        config: shapes of everything; weights start random.
        tokenizer: for `encode_text` with strings and `lexicon`; may be set later.
        vit_pretrained: True: the image tower's weights from the hub; a path: from that file.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: PreTrainedTokenizerBase | None = None,
        vit_pretrained: bool | str = False,
    ):
        super().__init__()
        text = BertConfig(**config.text)
        self.config = config
        self.tokenizer = tokenizer
        self.image_encoder = ImageEncoder(
            config.vit, config.image_size, config.vit_kwargs, vit_pretrained, config.image_norm_eps
        )
        self.text_encoder = TextEncoder(text)
        self.text_head = LexiconHead(text.hidden_size, text.hidden_size, text.vocab_size, text.layer_norm_eps)
        self.image_head = LexiconHead(
            self.image_encoder.width, text.hidden_size, text.vocab_size, text.layer_norm_eps
        )

    @classmethod
    def from_keys(
        cls, keys: dict, tokenizer: PreTrainedTokenizerBase | None = None, known: ModelConfig | None = None
    ) -> LexLIP:
        """Build from the command line's keys, with the towers' pretrained weights where asked for.

        Args:
            keys: every key of the command line.
            tokenizer: for strings.
            known: the config of weights that will replace all of these, so that nothing pretrained is fetched.

        Raises:
            ConfigError: a tower cannot be built or loaded, or its width, patch or vocabulary contradicts a key.
        """
        bert = None
        if known is not None:
            dropout = {name: keys["drop_rate"] for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")}
            text = BertConfig(**{**known.text, **dropout})
        elif keys["text_pretrained"]:
            bert = pretrained_bert(keys["text_model"] or keys["tokenizer"], keys["drop_rate"])
            text = bert.config
        else:
            text = BertConfig(
                vocab_size=keys["vocab_size"],
                hidden_size=keys["input_text_embed_size"],
                num_hidden_layers=keys["text_layers"],
                num_attention_heads=keys["num_heads"],
                intermediate_size=int(keys["input_text_embed_size"] * keys["mlp_ratio"]),
                max_position_embeddings=keys["text_positions"],
                hidden_dropout_prob=keys["drop_rate"],
                attention_probs_dropout_prob=keys["drop_rate"],
            )
        config = ModelConfig(
            vit=keys["vit"],
            vit_kwargs=dict(keys["vit_kwargs"]),
            image_size=keys["image_size"],
            image_norm_eps=keys["image_norm_eps"],
            text=_plain(text),
            max_text_len=keys["max_text_len"],
        )
        model = cls(config, tokenizer, keys["vit_pretrained"] if known is None else False)
        if bert is not None:
            model.text_encoder.bert.load_state_dict(bert.bert.state_dict())
            _copy_bert_head(bert, model.text_head)
        # The image head starts as a copy of BERT's; its first layer only where the towers are equally wide.
        for name in ("norm", "decoder") + (("dense",) if model.image_encoder.width == text.hidden_size else ()):
            getattr(model.image_head, name).load_state_dict(getattr(model.text_head, name).state_dict())
        model.check_keys(keys)
        model.set_lexicon_head(keys["lexicon_head"])
        return model

    def set_lexicon_head(self, method: str) -> None:
        """How both heads take their maximum: "auto", "fused" or "textbook", see `lexlip.lexicon.max_logits`."""
        self.text_head.method = self.image_head.method = method

    def keys(self) -> dict:
        """The command line's keys that this model decides."""
        text = self.config.text
        return {
            "vit": self.config.vit,
            "vit_kwargs": self.config.vit_kwargs,
            "vit_pretrained": False,
            "image_size": self.config.image_size,
            "image_norm_eps": self.config.image_norm_eps,
            "patch_size": self.image_encoder.patch,
            "input_image_embed_size": self.image_encoder.width,
            "input_text_embed_size": self.text_encoder.width,
            "hidden_size": self.text_encoder.width,
            "vocab_size": self.config.vocab_size,
            "num_heads": text["num_attention_heads"],
            "text_layers": text["num_hidden_layers"],
            "drop_rate": text["hidden_dropout_prob"],
            "text_pretrained": False,
            "max_text_len": self.config.max_text_len,
        }

    def check_keys(self, keys: dict) -> None:
        """Refuse keys that contradict the towers, naming the key and the value that fits.

        Raises:
            ConfigError: as above.
        """
        facts = {
            "input_image_embed_size": self.image_encoder.width,
            "input_text_embed_size": self.text_encoder.width,
            "hidden_size": self.text_encoder.width,
            "vocab_size": self.config.vocab_size,
            "num_heads": self.text_encoder.config.num_attention_heads,
        }
        if self.image_encoder.patch is not None:
            facts["patch_size"] = self.image_encoder.patch
        for key, fact in facts.items():
            if keys[key] != fact:
                raise ConfigError(f"{key}={keys[key]}, but the towers that were built have {fact}; set {key}={fact}")
        positions = self.text_encoder.config.max_position_embeddings
        if keys["max_text_len"] > positions:
            raise ConfigError(f"max_text_len={keys['max_text_len']}, but the text tower has {positions} positions")

    # --- token states to lexicon vectors ---

    def lexicon_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Captions to lexicon vectors, not normalised.

        Args:
            input_ids, attention_mask: (B, L) word ids and their mask, 0 at padding.

        Returns:
            (B, V) float32 term weights log(1 + max over L of relu(z)).
        """
        return self.text_head.term_weights(self.text_encoder(input_ids, attention_mask), attention_mask)

    def lexicon_image(self, pixel_values: Tensor) -> Tensor:
        """Pictures to lexicon vectors, not normalised.

        Args:
            pixel_values: (B, 3, H, W) normalised pixels; H and W multiples of the patch.

        Returns:
            (B, V) float32 term weights.
        """
        return self.image_head.term_weights(self.image_encoder(pixel_values))

    # --- for users ---

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str] | Tensor, attention_mask: Tensor | None = None, normalize: bool = True
    ) -> Tensor:
        """Captions to retrieval vectors.

        Args:
            texts: strings, or (B, L) word ids with their `attention_mask`.
            normalize: divide by the L2 norm, so that dot products are cosines.

        Returns:
            (B, V) float32, on the model's device.
        """
        if not isinstance(texts, Tensor):
            if self.tokenizer is None:
                raise ValueError("this model has no tokenizer: pass word ids and their mask, or set model.tokenizer")
            batch = self.tokenizer(
                [texts] if isinstance(texts, str) else list(texts),
                padding=True,
                truncation=True,
                max_length=self.config.max_text_len,
                return_tensors="pt",
            )
            texts, attention_mask = batch["input_ids"], batch["attention_mask"]
        if attention_mask is None:
            raise ValueError("word ids need their attention_mask")
        with _evaluating(self):
            vectors = self.lexicon_text(texts.to(self.device), attention_mask.to(self.device))
        return F.normalize(vectors, dim=-1) if normalize else vectors

    @torch.no_grad()
    def encode_image(self, images: Sequence[Image.Image] | Tensor, normalize: bool = True) -> Tensor:
        """Pictures to retrieval vectors.

        Args:
            images: PIL pictures, or (B, 3, H, W) normalised pixels.
            normalize: divide by the L2 norm, so that dot products are cosines.

        Returns:
            (B, V) float32, on the model's device.
        """
        if not isinstance(images, Tensor):
            transform = build_transform("vit", self.config.image_size)
            images = [images] if isinstance(images, Image.Image) else images
            images = torch.stack([transform(to_rgb(upright(image))) for image in images])
        with _evaluating(self):
            vectors = self.lexicon_image(images.to(self.device))
        return F.normalize(vectors, dim=-1) if normalize else vectors

    def lexicon(self, vectors: Tensor, top_k: int = 10) -> list[list[tuple[str, float]]]:
        """The heaviest words of each vector, heaviest first, without words of weight 0.

        Args:
            vectors: (B, V).
            top_k: at most so many words each.
        """
        if self.tokenizer is None:
            raise ValueError("this model has no tokenizer to name the words; set model.tokenizer")
        top = vectors.topk(min(top_k, vectors.shape[-1]), dim=-1)
        rows = []
        for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            words = self.tokenizer.convert_ids_to_tokens(ids)
            rows.append([(word, value) for word, value in zip(words, values, strict=True) if value > 0])
        return rows

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text_head.decoder.weight.device

    # --- folders and the hub: save_pretrained, from_pretrained and push_to_hub are huggingface_hub's ---

    def _save_pretrained(self, save_directory: Path) -> None:
        """config.json, model.safetensors, the tokenizer's files and the pictures' preprocessing."""
        draft = save_directory / f"{WEIGHTS_FILE}.tmp"
        save_model(self, str(draft))
        give_usual_rights(draft)
        # What an older model left must not pass for this one's: its phase's own parts, its words.
        for pattern in ("phase*.safetensors", "tokenizer*.json", "special_tokens_map.json", "vocab.txt", CONFIG_FILE):
            for stale in save_directory.glob(pattern):
                stale.unlink()
        draft.replace(save_directory / WEIGHTS_FILE)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(save_directory)
        write_json(_preprocessing(self.config.image_size), save_directory / PREPROCESSING_FILE)
        write_json(dataclasses.asdict(self.config), save_directory / CONFIG_FILE)  # last: without it there is no model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options) -> LexLIP:
        """Load a model folder or a name on the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: folder, or "owner/name".
            options: huggingface_hub's (`revision`, `token`, `cache_dir`, ...), and `drop_rate`, another dropout of
                the text tower for training on.

        Raises:
            CheckpointError: neither a folder nor to be fetched, no model in it, or weights that do not fit its config.
        """
        if Path(pretrained_model_name_or_path).is_dir():
            folder_config(Path(pretrained_model_name_or_path))  # the mixin's own reading of it would say less
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (OSError, HFValidationError) as error:  # hub errors are OSErrors
            raise CheckpointError(
                f"{pretrained_model_name_or_path} is neither a model folder nor could it be fetched: {error}"
            ) from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id, revision, cache_dir, force_download, local_files_only, token,
        drop_rate=None, config=None, **unknown,
    ) -> LexLIP:  # fmt: skip
        if unknown:
            raise TypeError(f"from_pretrained() takes no {', '.join(sorted(unknown))}")
        folder = Path(model_id)
        if not folder.is_dir():
            download = {"revision": revision, "cache_dir": cache_dir, "token": token}
            folder = Path(
                snapshot_download(
                    str(model_id), force_download=force_download, local_files_only=local_files_only, **download
                )
            )
        return load_folder(cls, folder, drop_rate)


def known_config(path: str | Path) -> ModelConfig | None:
    """How the model of a folder or checkpoint is built; None for a checkpoint that does not say.

    Raises:
        CheckpointError: it says something else.
    """
    saved = checkpoint.model_config(path)
    try:
        return ModelConfig(**saved) if saved is not None else None
    except TypeError as error:
        where = path / CONFIG_FILE if (path := Path(path)).is_dir() else path
        raise CheckpointError(f"{where} holds the config of another kind of model: {error}") from error


def folder_config(folder: Path) -> ModelConfig:
    """`known_config` of a folder that must hold a whole model."""
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} is no model folder: {CONFIG_FILE} and {WEIGHTS_FILE} are needed")
    return known_config(folder)


def load_folder(cls: type[LexLIP], folder: Path, drop_rate: float | None = None) -> LexLIP:
    """What `save_pretrained` wrote, in evaluation mode; see `LexLIP.from_pretrained`."""
    config = folder_config(folder)
    if drop_rate is not None:
        config.text.update(hidden_dropout_prob=drop_rate, attention_probs_dropout_prob=drop_rate)
    tokenizer = None
    if any((folder / name).exists() for name in ("tokenizer.json", "vocab.txt")):
        tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cls(config, tokenizer)
    checkpoint.load_model(model, folder)
    return model.eval()


def _preprocessing(size: int) -> dict:
    """What `encode_image` does to a picture, in the words of transformers' image processors."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": int(Image.Resampling.BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


class _evaluating:
    """Evaluation mode for a while."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __enter__(self) -> None:
        self.was = self.module.training
        self.module.eval()

    def __exit__(self, *error) -> None:
        self.module.train(self.was)


def _plain(config: BertConfig) -> dict:
    """The numbers that shape a BERT."""
    names = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size hidden_act "
        "hidden_dropout_prob attention_probs_dropout_prob max_position_embeddings type_vocab_size "
        "initializer_range layer_norm_eps pad_token_id"
    )
    return {name: getattr(config, name) for name in names.split()}


def _copy_bert_head(bert: nn.Module, head: LexiconHead) -> None:
    predictions = bert.cls.predictions
    head.dense.load_state_dict(predictions.transform.dense.state_dict())
    head.norm.load_state_dict(predictions.transform.LayerNorm.state_dict())
    with torch.no_grad():
        head.decoder.weight.copy_(predictions.decoder.weight)
        head.decoder.bias.copy_(predictions.bias)
