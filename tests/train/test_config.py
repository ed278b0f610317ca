"""What is refused, by key and value, before anything heavy is loaded."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from lexlip.errors import ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.models.tokenizer import check_tokenizer
from lexlip.train.build import build_model
from lexlip.train.config import Config, base, folder, named
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


def check(keys, phase):
    """As a run does it; the command line itself needs sacred, which not every machine has."""
    config = Config.checked(keys)
    phase.check_config(config)
    return config


def test_the_defaults_and_every_named_config_pass():
    official = {  # the method's table of named configs
        "task_bottle_pretrain", "task_contrastive_train", "task_Text_MAE_Contrastive_train", "task_IRTR_evaluate",
        "beit16_base224", "vit32_base224", "vit16_base224", "vit16_base384", "text_bert", "vit_randaug",
    }  # fmt: skip
    assert official <= set(named())
    for name, changes in named().items():
        assert set(changes) <= set(base()), name
        Config.checked({**base(), **changes})


def test_base_yaml_says_of_every_key_what_the_config_says():
    """In the same words, and the defaults are of the right type."""
    lines = re.findall(r"^(\w+): *(.*?)  +# (.*)$", (folder() / "base.yaml").read_text(), re.MULTILINE)
    documented = {name: doc for name, _, doc in lines}
    assert documented == {field.name: field.metadata["doc"] for field in dataclasses.fields(Config)}
    assert set(documented) == set(base())


def test_what_only_restates_the_towers_is_derived(make_keys, tiny_data):
    """Without them, the towers are those that the keys would have described."""
    restated = ("patch_size", "input_image_embed_size", "hidden_size", "vocab_size", "num_heads")
    assert all(base()[key] is None for key in (*restated, "input_text_embed_size"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    given = make_keys(vocab_size=len(tokenizer), input_text_embed_size=128, hidden_size=128)
    model = build_model(LexLIP, Config.checked(given), tokenizer)
    derived = build_model(LexLIP, Config.checked({**given, **dict.fromkeys(restated)}), tokenizer)
    assert derived.config == model.config
    with pytest.raises(ConfigError, match="vocab_size"):
        build_model(LexLIP, Config.checked({**given, **dict.fromkeys(restated)}))


OFFICIAL = {
    "phase1": (Phase1Module, ["task_Text_MAE_Contrastive_train", "beit16_base224", "text_bert", "vit_randaug"], dict(
        num_gpus=8, num_nodes=1, per_gpu_batchsize=100, image_size=224, batch_size=800, precision=16, max_epoch=20,
        learning_rate=5e-5,
    )),
    "phase2": (Phase2Module, ["task_contrastive_train", "beit16_base224", "text_bert", "vit_randaug"], dict(
        num_gpus=8, num_nodes=1, per_gpu_batchsize=90, image_size=224, batch_size=2880, queue_size=11520, DR=True,
        precision=16, max_steps=40000, learning_rate=5e-5, load_path="PHASE1.ckpt",
    )),
    "finetune": (Phase2Module, ["task_contrastive_train", "beit16_base224", "text_bert", "vit_randaug"], dict(
        num_gpus=8, num_nodes=1, per_gpu_batchsize=24, get_recall_metric=True, image_size=384, batch_size=1536,
        queue_size=11520, DR=False, precision=16, max_epoch=10, learning_rate=5e-5, load_path="PHASE2.ckpt",
    )),
    "evaluate": (Phase2Module, ["task_IRTR_evaluate", "beit16_base224", "text_bert"], dict(
        num_gpus=1, num_nodes=1, test_only=True, image_size=384, queue_size=11520, precision=16, load_path="F.ckpt",
    )),
}  # fmt: skip


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_commands_pass(name):
    phase, parts, changes = OFFICIAL[name]
    keys = base()
    for part in parts:
        keys.update(named()[part])
    config = check({**keys, **changes}, phase)
    for key, value in changes.items():
        assert getattr(config, key) == value, key
    assert config.datasets == ["f30k"] and config.test_only == (name == "evaluate")
    assert config.training_mode == ("both" if name == "phase1" else "con")


def refused(keys, phase=Phase1Module):
    with pytest.raises(ConfigError) as caught:
        check(keys, phase)
    return str(caught.value)


def test_an_unknown_key_is_named(make_keys):
    assert "'learning_rat'" in refused({**make_keys(), "learning_rat": 1.0})


def test_an_absent_key_is_named(make_keys):
    keys = make_keys()
    del keys["momentum"]
    assert "momentum" in refused(keys)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", "8"), ("batch_size", 8.0), ("learning_rate", "1e-4"), ("learning_rate", True), ("DR", 1),
        ("DR", "False"), ("datasets", "coco"), ("loss_names", ["contrastive"]), ("image_size", True), ("seed", None),
        ("vit", None), ("max_steps", 1.5), ("max_steps", True), ("version", 1.5), ("warmup_steps", "0.1"),
        ("val_check_interval", None), ("precision", 16.0), ("vit_pretrained", 1), ("max_images", [3]),
        ("adam_betas", 0.9), ("decay_power", None), ("eval_top_k", 32), ("vit_kwargs", "depth=2"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_refused_with_key_and_value(make_keys, key, value):
    assert refused(make_keys(**{key: value})).startswith(f"{key}={value!r} is {type(value).__name__}")


def test_whole_numbers_and_tuples_are_taken_where_floats_and_lists_are_meant(make_keys):
    keys = make_keys(learning_rate=1, adam_betas=(0.9, 0.98), clip_grad=1, end_lr=1e-6, mlp_ratio=2.5)
    config = Config.checked(keys)
    assert (config.learning_rate, config.adam_betas, config.clip_grad) == (1.0, [0.9, 0.98], 1.0)
    keys = ("target_terms_text", "target_terms_image", "flops_weight_text", "teacher_temperature")  # null, or a number
    assert all(type(getattr(Config.checked(make_keys(**{key: 2}, flops_weight=1)), key)) is float for key in keys)
    assert type(config.learning_rate) is float
    assert (config.end_lr, config.mlp_ratio) == (1e-6, 2.5)
    # An integer and a float mean different things here.
    for key in ("warmup_steps", "flops_warmup", "val_check_interval"):
        assert type(getattr(Config.checked(make_keys(**{key: 1})), key)) is int
        assert type(getattr(Config.checked(make_keys(**{key: 1.0})), key)) is float


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training_mode": "all"}, "training_mode='all'.*bottle, con, both"),
        ({"optim_type": "lion"}, "optim_type='lion'.*adamw"),
        ({"precision": 64}, "precision=64"),
        ({"precision": "fp8"}, "precision='fp8'"),
        ({"train_transform_keys": ["pixelbert"]}, "train_transform_keys=.*pixelbert.*vit_randaug"),
        ({"num_gpus": [0, 2]}, "num_gpus=2, and choose them with CUDA_VISIBLE_DEVICES=0,2"),
        ({"masking": "pieces"}, "masking='pieces'; it must be one of words, positions"),
        ({"val_transform_keys": ["nope"]}, "val_transform_keys=.*nope"),
        ({"decay_power": "linear"}, "decay_power='linear'.*cosine"),
        ({"decay_power": -1}, "decay_power=-1; it must be a number that is not negative"),
        ({"adam_eps": -1e-8}, "adam_eps=-1e-08; it must not be negative"),
        ({"image_norm_eps": -1.0}, "image_norm_eps=-1.0; it must not be negative"),
        ({"loss_names": {"mlm": 1}}, "loss_names has 'mlm'.*self_t"),
        ({"loss_names": {"contrastive": 0, "i2t": 0}}, "training_mode=both.*weigh 0"),
        ({"training_mode": "con", "loss_names": {"contrastive": 0, "i2t": 1}}, "training_mode=con.*weigh 0"),
        ({"datasets": []}, "datasets is empty"),
        ({"image_size": 0}, "image_size=0.*at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"per_gpu_batchsize": -1}, "per_gpu_batchsize=-1"),
        ({"num_nodes": 0}, "num_nodes=0"),
        ({"num_gpus": -1}, "num_gpus=-1.*negative"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"decoder_layers": -1}, "decoder_layers=-1"),
        ({"warmup_steps": -5}, "warmup_steps=-5"),
        ({"warmup_steps": 1.5}, "warmup_steps=1.5.*fraction"),
        ({"clip_grad": -1.0}, "clip_grad=-1.0"),
        ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
        ({"mlm_prob": 1.2}, "mlm_prob=1.2.*between 0 and 1"),
        ({"decoder_mlm_prob": -0.1}, "decoder_mlm_prob=-0.1"),
        ({"drop_rate": 2.0}, "drop_rate=2.0"),
        ({"momentum": 1.1}, "momentum=1.1"),
        ({"temperature": 0.0}, "temperature=0.0.*positive"),
        ({"max_text_len": 2}, "max_text_len=2.*no room"),
        ({"image_size": 30}, "image_size=30 .*patch_size=8; 24 or 32"),
        ({"hidden_size": 32}, "hidden_size=32.*input_text_embed_size=16"),
        ({"num_heads": 3}, "hidden_size=16 .*num_heads=3"),
        ({"batch_size": 10, "per_gpu_batchsize": 4}, "batch_size=10 .*per_gpu_batchsize=4 x 1 processes = 4; 8 or 12"),
        ({"batch_size": 3, "per_gpu_batchsize": 4}, "batch_size=3 .*= 4; 4 would"),
        (
            {"batch_size": 100, "per_gpu_batchsize": 6, "num_gpus": 4, "num_nodes": 2},
            "batch_size=100 .*6 x 8 processes = 48; 96 or 144",
        ),
    ],
)
def test_a_value_or_combination_that_cannot_work_is_refused(make_keys, changes, says):
    assert re.search(says, refused(make_keys(**changes)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_heads", 0), ("max_epoch", -2), ("max_steps", -3), ("text_layers", -1), ("eval_folds", -1),
        ("eval_batch_size", -2), ("val_check_interval", 0), ("val_check_interval", 1.5), ("flops_weight", -1.0),
        ("flops_warmup", -1), ("flops_warmup", 1.5), ("queue_size", -1), ("adam_betas", [0.9]),
        ("adam_betas", [0.9, 1.0]), ("train_top_k", [0]), ("train_top_k", [1.5]),
        ("loss_names", {"contrastive": "1"}), ("eval_top_k", ["32"]), ("eval_top_k", [0]), ("input_text_embed_size", 0),
        ("text_positions", 0), ("end_lr", -1.0), ("weight_decay", -0.1), ("seed", -1), ("mlp_ratio", 0),
    ],
)  # fmt: skip
def test_nonsense_is_refused_before_it_fails_deep_inside(make_keys, key, value):
    assert refused(make_keys(**{key: value})).startswith(f"{key}={value}")


def test_phase_2_is_contrastive(make_keys):
    assert "training_mode=both" in refused(make_keys(), Phase2Module)
    check(make_keys(training_mode="con"), Phase2Module)


def test_the_queue_must_hold_a_step(make_keys):
    assert "queue_size=5 is smaller than batch_size=6" in refused(
        make_keys(training_mode="con", queue_size=5), Phase2Module
    )
    check(make_keys(training_mode="con", queue_size=5, test_only=True), Phase2Module)
    check(make_keys(queue_size=0), Phase1Module)  # of no meaning there


@pytest.mark.parametrize(("size", "near"), [(24, "32|16"), (40, "48|32")])
def test_dynamic_resolution_needs_half_the_size_to_fit_the_patch(make_keys, size, near):
    keys = make_keys(training_mode="con", image_size=size, DR=True)
    message = refused(keys, Phase2Module)
    assert re.search(rf"image_size={size} .*patch_size=8; ({near}) would do", message)
    check({**keys, "DR": False}, Phase2Module)
    check({**keys, "image_size": 32}, Phase2Module)


def test_evaluation_needs_no_batch_and_no_loss(make_keys):
    check(make_keys(test_only=True, batch_size=10, per_gpu_batchsize=4, loss_names={}), Phase1Module)


def fake_tokenizer(pieces, **missing):
    ids = {"cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3, "pad_token_id": 0, **missing}

    class Tokenizer(SimpleNamespace):
        def __len__(self):
            return pieces

    return Tokenizer(**ids)


@pytest.mark.parametrize(("pieces", "fits"), [(1000, True), (873, True), (872, False), (1001, False)])
def test_the_tokenizer_must_fit_the_vocabulary(pieces, fits):
    if fits:
        check_tokenizer("some/words", 1000, fake_tokenizer(pieces))
        return
    message = f"some/words has {pieces} word pieces, but vocab_size=1000; set vocab_size={pieces}"
    with pytest.raises(ConfigError, match=message):
        check_tokenizer("some/words", 1000, fake_tokenizer(pieces))


def test_the_tokenizer_must_be_a_berts():
    with pytest.raises(ConfigError, match="no mask_token"):
        check_tokenizer("some/words", 10, fake_tokenizer(10, mask_token_id=None))


def test_whoever_changes_the_defaults_changes_a_copy():
    base()["loss_names"]["contrastive"] = 5
    assert base()["loss_names"]["contrastive"] == 1
