"""The authors' recipe: what the four official commands say and the official code makes of it, against what is built.

The numbers and the rule of the weight decay are facts of the official code; names of its parameters are translated by
`lexlip.convert.official`. Towers here are tiny, but as deep as the real ones.
"""

import re
from pathlib import Path

import official_tiny
import pytest
import torch
from runs import PHASE1, PHASE2, checkpoint_of
from torch import nn

from lexlip.convert.official import NAMES
from lexlip.models.lexlip import LexLIP
from lexlip.models.weights import MODEL_PREFIX
from lexlip.train.build import build_model
from lexlip.train.callbacks.saver import Saver
from lexlip.train.checkpoint import WholeFiles
from lexlip.train.config import base, named
from lexlip.train.main import check_config
from lexlip.train.optim import make_optimizer, make_schedule
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.randaug import OPERATIONS, vilt_randaug
from lexlip_data.loading.transforms import build_pixels
from lexlip_data.sources.images import Reading
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

ROOT = Path(__file__).resolve().parents[2]
TOWERS = ["beit16_base224", "text_bert"]
COMMANDS = {
    "phase1": (Phase1Module, ["task_Text_MAE_Contrastive_train", *TOWERS, "vit_randaug"], {
        "num_gpus": 8, "per_gpu_batchsize": 100, "batch_size": 800, "image_size": 224, "precision": 16,
        "max_epoch": 20, "learning_rate": 5e-5,
    }),
    "phase2": (Phase2Module, ["task_contrastive_train", *TOWERS, "vit_randaug"], {
        "num_gpus": 8, "per_gpu_batchsize": 90, "batch_size": 2880, "image_size": 224, "precision": 16,
        "queue_size": 11520, "DR": True, "max_steps": 40000, "learning_rate": 5e-5,
    }),
    "finetune": (Phase2Module, ["task_contrastive_train", *TOWERS, "vit_randaug"], {
        "num_gpus": 8, "per_gpu_batchsize": 24, "batch_size": 1536, "image_size": 384, "precision": 16,
        "queue_size": 11520, "DR": False, "max_epoch": 10, "learning_rate": 5e-5, "get_recall_metric": True,
    }),
    "evaluate": (Phase2Module, ["task_IRTR_evaluate", *TOWERS], {
        "num_gpus": 1, "test_only": True, "image_size": 384, "precision": 16, "queue_size": 11520,
    }),
}  # fmt: skip
# Official: micro-batches of a step, effective momentum of a step, how the best checkpoint is picked.
FACTS = {
    "phase1": (1, None, ("val/loss", -1)),
    "phase2": (4, 0.99**4, ("val/loss", -1)),
    "finetune": (8, 0.99**8, ("val/first_r1", 1)),
    "evaluate": (None, None, ("val/first_r1", 1)),
}
OPERATION_STRENGTHS = {
    "AutoContrast": 0.3, "Equalize": 0.3, "Rotate": 9, "Posterize": 1.2, "Solarize": 76.8, "SolarizeAdd": 33,
    "Color": 0.64, "Contrast": 0.64, "Brightness": 0.64, "Sharpness": 0.64, "ShearX": 0.09, "ShearY": 0.09,
    "TranslateX": 30, "TranslateY": 30,
}  # fmt: skip
NO_DECAY = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")  # parts of official names
TINY = {
    "vit": "beit_base_patch16_224", "vit_pretrained": False, "text_pretrained": False, "input_text_embed_size": 16,
    "vit_kwargs": {"embed_dim": 16, "depth": 12, "num_heads": 2, "init_values": 0.1, "patch_size": 16},
    "input_image_embed_size": 16, "hidden_size": 16, "num_heads": 2, "vocab_size": 40, "text_positions": 64,
    "num_gpus": 0,
}  # fmt: skip


def resolved(command, *more, **changes):
    phase, configs, given = COMMANDS[command]
    keys = base()
    for name in [*configs, *more]:
        keys.update(named()[name])
    return check_config({**keys, **given, **changes}, phase)


def built(command, *more, **changes):
    config = resolved(command, *more)
    tiny = config.changed(**TINY, **changes)
    torch.manual_seed(0)
    return config, COMMANDS[command][0](tiny, build_model(LexLIP, tiny))


@pytest.mark.parametrize("command", ["phase1", "phase2", "finetune"])
def test_the_optimiser_is_the_official_one(command):
    config, module = built(command, image_size=32, queue_size=3000)
    optimizer = make_optimizer(module, config)
    assert isinstance(optimizer, torch.optim.AdamW)
    names = {id(value): name for name, value in module.named_parameters()}
    decay = {}
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["lr"]) == ((0.9, 0.999), 1e-8, 5e-5)
        decay |= {names[id(value)]: group["weight_decay"] for value in group["params"]}
    official = {}
    for name in official_tiny.shapes(layers=12):
        theirs = re.sub(r"attention\.attention\.(query|key|value)\.weight", "attention.attention.qkv.weight", name)
        ours = next((re.sub(a, b, theirs) for a, b in NAMES.items() if re.fullmatch(a, theirs)), None)
        if ours is not None:  # else it has no place of its own here
            official[ours] = 0.0 if any(part in name for part in NO_DECAY) else 0.01
    if command != "phase1":
        official = {name: value for name, value in official.items() if name.startswith(MODEL_PREFIX)}
    assert decay == official
    assert decay["model.image_encoder.backbone.blocks.3.norm1.weight"] == 0.01
    assert decay["model.image_encoder.backbone.blocks.3.gamma_2"] == 0.01
    assert decay["model.image_encoder.norm.weight"] == decay["model.text_head.norm.weight"] == 0


@pytest.mark.parametrize("command", ["phase1", "phase2", "finetune"])
def test_the_schedule_at_five_steps(command):
    config = resolved(command)
    steps = config.max_steps or 3620  # 20 epochs of Flickr30k in batches of 800
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    ratio = make_schedule(optimizer, config, steps).lr_lambdas[0]
    warm = steps // 10
    at = [0, warm // 2, warm, warm + (steps - warm) // 2, steps]
    assert [5e-5 * ratio(step) for step in at] == pytest.approx([0, 2.5e-5, 5e-5, 2.5e-5, 0], rel=1e-3)


@pytest.mark.parametrize("command", ["phase1", "phase2", "finetune"])
def test_the_stochastic_depth_of_each_block(command):
    _, module = built(command, image_size=32, queue_size=3000)
    models = [module.model, *([module.momentum_encoder] if command != "phase1" else [])]
    for model in models:
        for number, block in enumerate(model.image_encoder.backbone.blocks):
            rates = [getattr(path, "drop_prob", 0.0) for path in (block.drop_path1, block.drop_path2)]
            assert rates == [pytest.approx(0.1 * number / 11)] * 2
        assert model.text_encoder.config.hidden_dropout_prob == 0.1
        assert model.text_encoder.config.attention_probs_dropout_prob == 0.1


def test_a_block_left_out_passes_its_input_on():
    _, module = built("phase1", image_size=32)
    tower = module.model.image_encoder
    tower.set_drop_path(1 - 1e-9)
    images = torch.randn(2, 3, 32, 32)
    last = tower.backbone.blocks[-1].train()
    states = torch.randn(2, 5, 16)
    assert torch.equal(last(states), states)
    assert not torch.equal(last.eval()(states), states)
    assert torch.equal(tower.eval()(images), tower(images))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_authors_recipe_goes_with_each_command(command):
    micro_batches, momentum, selection = FACTS[command]
    plain, config = resolved(command), resolved(command, "authors_recipe")
    given = COMMANDS[command][2]
    assert all(getattr(config, key) == value for key, value in given.items())
    differing = {key for key, value in config.as_dict().items() if value != plain.as_dict()[key]}
    assert differing == set(named()["authors_recipe"]) - set(given) - {"DR"} | ({"DR"} - set(given))
    saver = Saver(config, Path("/nowhere"), WholeFiles(), validated=True)
    if command in ("phase1", "phase2", "finetune"):
        assert (saver.monitor, saver.sign) == selection
        assert config.batch_size // (config.per_gpu_batchsize * config.processes) == micro_batches
    if command == "phase1":
        assert config.contrastive_gradient == 1 / config.num_gpus
    if momentum is not None:
        _, module = built(
            command, "authors_recipe", image_size=32, queue_size=16, batch_size=micro_batches, per_gpu_batchsize=1
        )
        before = [value.clone() for value in module.momentum_encoder.parameters()]
        live = list(module.model.parameters())
        with torch.no_grad():
            for value in live:
                value.add_(1.0)
        batch = {
            "image": torch.randn(micro_batches, 3, 32, 32), "image_id": torch.arange(micro_batches),
            "text_ids": torch.randint(5, 40, (micro_batches, 6)),
            "text_mask": torch.ones(micro_batches, 6, dtype=torch.int64),
        }  # fmt: skip
        module.train()._keys(batch)
        for old, new, value in zip(before, module.momentum_encoder.parameters(), live, strict=True):
            torch.testing.assert_close(new, momentum * old + (1 - momentum) * value.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("command", ["phase1", "phase2", "finetune"])
def test_the_augmentation_is_vilts(command):
    config = resolved(command)
    assert build_pixels(config.train_transform_keys, config.image_size).keywords["augment"] is vilt_randaug
    assert {name: pytest.approx(op.strength) for name, op in OPERATIONS.items()} == OPERATION_STRENGTHS
    assert build_pixels(config.val_transform_keys, config.image_size).keywords["augment"] is None


def test_images_are_read_and_masked_as_the_recipe_says(tiny_data):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    keys = {**resolved("phase1", "authors_recipe").as_dict(), "datasets": ["tiny"], "data_root": tiny_data["root"]}
    data = CaptionDataModule(keys, tokenizer, mlm=True)
    assert data.reading == Reading(truncated=True, turned=False, on_white=False, reduced=False)
    assert data.train_set.reading == data.reading and data.collator.masking == "positions"
    usual = CaptionDataModule({**keys, **{key: base()[key] for key in named()["authors_recipe"]}}, tokenizer, mlm=True)
    assert usual.reading == Reading() and usual.collator.masking == "words"


def test_an_interval_of_micro_batches_is_counted_in_steps():
    config = resolved("phase2", "authors_recipe", val_check_interval=400)
    assert config.validated_every == 100
    assert config.changed(val_check_unit="batch").validated_every == 400
    assert config.changed(val_check_interval=0.5).validated_every == 0.5
    assert config.changed(val_check_interval=3).validated_every == 1


def test_the_best_checkpoint_is_picked_by_the_metric_that_the_keys_name(monkeypatch):
    for keys, monitor, sign in (
        ({}, "val/rsum", 1), ({"select_by": "first_r1"}, "val/first_r1", 1),
        ({"get_recall_metric": False}, "val/loss", -1),
    ):  # fmt: skip
        saver = Saver(resolved("phase2", **keys), Path("/nowhere"), WholeFiles(), validated=True)
        assert (saver.monitor, saver.sign) == (monitor, sign)
    logged = {}
    _, module = built("phase2", image_size=32, queue_size=16)
    side = {f"R@{k}": 1.0 for k in (1, 5, 10)}
    rows = {
        name: {"t2i": {**side, "R@1": 10.0 * number}, "i2t": {**side, "R@1": 3.0}, "rsum": number, "active_terms": {}}
        for number, name in enumerate(("coco", "f30k"), 1)
    }
    monkeypatch.setattr(module, "_evaluation_metrics", lambda: rows)
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(module, "log_dict", lambda values, **_: None)
    names = type("Data", (), {"eval_names": lambda self, split: [("f30k", "image"), ("coco", "image")]})()
    monkeypatch.setattr(Phase2Module, "_data", names)
    module.on_validation_epoch_end()
    assert logged == {"val/rsum": 1.5, "val/first_r1": 23.0}


@pytest.mark.parametrize(("phase", "configs"), [(Phase1Module, PHASE1), (Phase2Module, PHASE2)])
def test_a_run_by_the_authors_recipe(start, phase, configs):
    """Two steps of two micro-batches, a validation, and the best checkpoint by its loss."""
    how = {"queue_size": 8, "drop_rate": 0.1, "drop_path_rate": 0.2, "log_every": 1}
    done = start(phase, [*configs, "vit_randaug", "authors_recipe"], max_steps=2, **how)
    assert done.keys["masking"] == "positions" and done.keys["train_transform_keys"] == ["vit_randaug"]
    assert "val/loss" in done.result and "val/rsum" not in done.result
    assert (done.folder / "checkpoints" / "best.ckpt").exists()
    assert checkpoint_of(done.folder)["global_step"] == 2


SHOWN_BY = {  # key of the recipe -> test that it does what it says
    "contrastive_gradient": "test_the_contrastive_gradient_is_scaled_and_its_value_is_not",
    "loss_rows": "test_masked_words_of_a_micro_batch_share_one_mean",
    "mask_same_image": "test_same_image_keys_are_masked_by_default",
    "masking": "test_words_are_hit_as_often_as_padding",
    "momentum_update": "test_the_momentum_of_a_step_is_that_of_its_micro_batches",
    "momentum_dropout": "test_the_momentum_encoder_drops_out_only_by_its_key",
    "queue_start": "test_noise_fills_the_queues_with_keys_of_no_image",
    "queue_update": "test_a_step_of_micro_batches_is_the_official_one",
    "queue_size": "test_it_holds_the_last_keys_whatever_came",
    "DR": "test_half_of_the_steps_are_at_half_the_size",
    "DR_coin": "test_each_micro_batch_has_a_coin",
    "rel_pos": "test_the_official_bias_of_a_smaller_grid_is_cut_out",
    "get_recall_metric": "test_the_best_checkpoint_is_picked_by_the_metric_that_the_keys_name",
    "select_by": "test_the_best_checkpoint_is_picked_by_the_metric_that_the_keys_name",
    "val_check_unit": "test_an_interval_of_micro_batches_is_counted_in_steps",
    "truncated_images": "test_a_file_that_is_cut_short_is_read_only_where_asked_for",
    "reduced_images": "test_a_large_jpeg_is_decoded_whole_where_asked_for",
    "turned_images": "test_an_image_is_not_turned_where_not_asked_for",
    "transparency": "test_transparent_pixels_show_their_colours_where_asked_for",
}


def test_every_key_of_the_recipe_differs_from_ours_and_has_a_test_and_a_place_in_the_docs():
    recipe = named()["authors_recipe"]
    assert set(SHOWN_BY) == set(recipe)
    assert all(base()[key] != value for key, value in recipe.items())
    tests = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("test_*.py")))
    for key, test in SHOWN_BY.items():
        assert f"def {test}(" in tests, (key, test)
    method = (ROOT / "docs" / "METHOD.md").read_text()
    assert [key for key in recipe if f"`{key}" not in method] == []
