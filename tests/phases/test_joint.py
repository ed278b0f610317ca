"""A dense head beside the lexicon, and a dense teacher: formulas, splits, folders, what is refused."""

import pytest
import torch
import torch.nn.functional as F

from lexlip.errors import ConfigError
from lexlip.models.dense import DenseLIP
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.config import base
from lexlip.train.joint import joint_losses, self_distillation
from lexlip.train.lexicon import LexiconModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {"phase1": Phase1Module, "phase2": Phase2Module}
JOINT = {
    "joint_dim": 6,
    "joint_weights": [0.7, 0.4],
    "loss_names": {**base()["loss_names"], "dense": 2.0, "distill": 3},
}
LOSSES = {"self_t": 1, "i2t": 1, "t2t": 1, "contrastive": 1}


@pytest.fixture
def teacher(make_config, livelier, tmp_path):
    config = make_config(head="dense", embed_dim=5, training_mode="con")
    livelier(build_model(DenseLIP, config), seed=4).save_pretrained(tmp_path / "teacher")
    return str(tmp_path / "teacher")


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(phase, **changes):
        config = make_config(**{"clip_grad": 0.0, "training_mode": "con", **JOINT, **changes})
        PHASES[phase].check_config(config)
        torch.manual_seed(0)
        module = PHASES[phase](config, livelier(build_model(LexLIP, config)))
        return without_trainer(module.train())

    return make


def kl(taught, scores):
    p = taught.softmax(1)
    return (p * (p.log() - scores.log_softmax(1))).sum(1).mean()


def test_both_heads_learn_from_their_sum_by_rows_and_by_columns():
    g = torch.Generator().manual_seed(0)
    dense, lexicon = (torch.rand(4, 4, generator=g, requires_grad=True) for _ in range(2))
    value, taught = self_distillation(dense, lexicon, [0.7, 0.4], 0.1), (0.7 * dense + 0.4 * lexicon).detach()
    wanted = sum((kl(taught / 0.1, s / 0.1) + kl(taught.T / 0.1, s.T / 0.1)) / 2 for s in (dense, lexicon))
    torch.testing.assert_close(value, wanted)
    one, two = torch.autograd.grad(value, (dense, lexicon)), torch.autograd.grad(wanted, (dense, lexicon))
    torch.testing.assert_close(one, two)


def test_losses_of_a_head_and_of_a_teacher(make_config):
    config = make_config(joint_weights=[1.0, 1.0])
    eye = torch.eye(3)
    assert joint_losses(eye, None, None, config, None) == {}
    assert set(joint_losses(eye, None, eye, config, None)) == {"distill_loss"}
    assert float(joint_losses(eye, None, eye, config, None)["distill_loss"]) == pytest.approx(0, abs=1e-6)
    both = joint_losses(eye, eye, eye.flip(0), config, None)
    assert float(both["dense_loss"]) == pytest.approx(0, abs=1e-6) and float(both["distill_loss"]) > 1


@pytest.mark.parametrize("phase", PHASES)
def test_micro_batches_change_nothing(build, make_batch, gradients_of, teacher, phase):
    results = []
    for rows in (6, 4):
        module = build(phase, teacher=teacher, per_gpu_batchsize=rows)
        module.training_step(make_batch(ids=[1, 1, 2, 3, 2, 1]), 0)
        results.append((module.logged, gradients_of(module)))
    (losses, gradients), (parts, ours) = results
    assert losses["train/dense_loss"] > 0 and losses["train/distill_loss"] > 0
    for name in losses:
        assert parts[name] == pytest.approx(losses[name], rel=1e-4, abs=1e-7), name
    assert {"model.joint_text.weight", "model.joint_image.weight"} <= gradients.keys() == ours.keys()
    assert not any("teacher" in name for name in module.state_dict())
    for name, value in gradients.items():
        assert float((ours[name] - value).abs().max()) < 1e-4 * float(value.abs().max()) + 1e-6, name


def test_a_folder_holds_both_heads(build, make_batch, make_config, tmp_path):
    module, batch = build("phase1"), make_batch()
    model = module.model.eval()
    dense = model.encode_text(batch["text_ids"], batch["text_mask"], head="dense")
    states = model.text_encoder(batch["text_ids"], batch["text_mask"])
    torch.testing.assert_close(dense, F.normalize(model.joint_text(states[:, 0]), dim=-1))
    image = model.encode_image(batch["image"], head="dense", normalize=False)
    torch.testing.assert_close(image, model.joint_image(model.image_encoder(batch["image"]).mean(1)))
    assert model.encode_image(batch["image"]).shape == (6, 40) and dense.shape == (6, 6)
    model.save_pretrained(tmp_path)
    again = LexLIP.from_pretrained(tmp_path)
    torch.testing.assert_close(again.encode_image(batch["image"], head="dense", normalize=False), image)
    keys = {"training_mode": "con", "load_path": str(tmp_path), "eval_head": "dense"}
    other = Phase2Module.from_config(make_config(**keys, test_only=True))
    torch.testing.assert_close(other.eval().vectors_of("image", batch), image)
    assert other.vocabulary is None
    with pytest.raises(ConfigError, match="eval_head=dense: .* has no dense head, or nothing trains it"):
        Phase2Module.from_config(make_config(**keys))


def test_dense_vectors_are_not_cut(build, monkeypatch):
    asked = []
    for head in ("lexicon", "dense"):
        module = build("phase2", eval_head=head, eval_top_k=[4])
        module.trainer.testing = True
        monkeypatch.setattr(module.collected, "metrics", lambda words, top_k, *rest: asked.append(top_k) or {})
        module._evaluation_metrics()
    assert asked == [[4], []]


def test_a_dense_head_that_nothing_trains_is_left_out(make_config, make_model, tmp_path, caplog):
    """It would be offered still, beside towers that have moved on; and its weights would get no gradient."""
    caplog.set_level("INFO")
    make_model(joint_dim=6, own_weights=True).save_pretrained(tmp_path)
    module = Phase2Module.from_config(make_config(training_mode="con", load_path=str(tmp_path)))
    assert module.model.joint_text is None and module.model.widths == {"lexicon": 40}
    assert (module.config.joint_dim, module.config.own_weights) == (0, True)  # the config says what was built
    assert "is left out: nothing trains it" in caplog.text and "own_weights=True" in caplog.text
    with pytest.raises(ConfigError, match="own_weights=True with long_captions=1"):
        Phase1Module.from_config(make_config(training_mode="con", load_path=str(tmp_path), long_captions=1))


def test_the_teachers_scores_have_a_temperature_of_their_own(make_config):
    lexicon, taught = torch.rand(3, 3, generator=torch.Generator().manual_seed(0)), torch.eye(3)
    value = joint_losses(lexicon, None, taught, make_config(temperature=0.1, teacher_temperature=0.5), None)
    wanted = (kl(taught / 0.5, lexicon / 0.1) + kl(taught.T / 0.5, lexicon.T / 0.1)) / 2
    torch.testing.assert_close(value["distill_loss"], wanted)


def test_a_dense_head_begins_beside_a_trained_lexicon(make_config, make_model, tmp_path):
    make_model().save_pretrained(tmp_path)
    module = Phase2Module.from_config(make_config(training_mode="con", load_path=str(tmp_path), **JOINT))
    assert module.model.joint_text.weight.shape == (6, 16)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"joint_dim": 6}, "joint_dim=6 with loss_names.dense=0: a dense head needs both"),
        ({"loss_names": {"contrastive": 1, "dense": 1}}, "joint_dim=0 with loss_names.dense=1"),
        ({"eval_head": "dense"}, "eval_head=dense: there is no dense head"),
        ({"teacher": "x"}, "teacher=x, but nothing learns from it: set loss_names.distill"),
        ({"joint_dim": 6, "joint_weights": [1.0, 0.0], "loss_names": {"contrastive": 1, "dense": 1}},
         "joint_weights=.* set joint_dim and loss_names.distill"),
    ],
)  # fmt: skip
def test_half_a_head_is_refused(make_config, changes, told):
    with pytest.raises(ConfigError, match=told):
        LexiconModule.check_config(make_config(**changes))


def test_a_joint_head_has_no_part_in_the_bottleneck(make_config):
    with pytest.raises(ConfigError, match="joint_dim=6 with training_mode=bottle"):
        Phase1Module.check_config(make_config(training_mode="bottle", **JOINT))
    with pytest.raises(ConfigError, match="teacher=x, but nothing learns from it"):
        Phase1Module.check_config(make_config(training_mode="bottle", loss_names={**LOSSES, "distill": 1}, teacher="x"))


@pytest.mark.parametrize(
    ("phase", "used", "changes"),
    [
        ("phase1", True, {"training_mode": "both", "own_weights": True, "joint_weights": [0.5, 0.5]}),
        ("phase1", False, {"training_mode": "bottle", "own_weights": True, "joint_dim": 0, "loss_names": LOSSES}),
        ("phase1", True, {"training_mode": "bottle", "joint_dim": 0, "loss_names": LOSSES}),
        ("phase1", False, {"loss_names": {"contrastive": 0, "dense": 1}}),
        ("phase1", False, {"head_text": "lookup", "own_weights": True, "inactive_terms": ["special"]}),
        ("phase2", False, {"own_weights": True, "joint_dim": 0, "loss_names": {"contrastive": 0, "push": 1}}),
        ("phase2", True, {"own_weights": True}),
    ],
)  # fmt: skip
def test_what_gets_no_gradient_is_known(build, make_batch, phase, used, changes):
    """Several processes wait for the gradients of all parameters, unless they are told that some get none."""
    module = build(phase, **{"joint_weights": [0.5, 0.5], **changes})
    sum(module.compute_losses(make_batch()).values()).backward()
    without = [name for name, value in module.named_parameters() if value.requires_grad and value.grad is None]
    assert (not without) == used == PHASES[phase].all_used(module.config), without


def test_a_weight_without_anyone_who_teaches_has_no_effect(make_config):
    config = make_config(loss_names={**base()["loss_names"], "distill": 2})
    assert Phase2Module.ignored_weights(config) == {"distill": 2} and "distill" not in Phase2Module.trained_groups(
        config
    )


def test_a_teacher_of_another_kind_is_refused(build, make_model, teacher, tmp_path):
    make_model().save_pretrained(tmp_path / "lexicon")
    with pytest.raises(ConfigError, match="is no dense model of two towers"):
        build("phase1", teacher=str(tmp_path / "lexicon"))
    with pytest.raises(ConfigError, match="has image_size=32, and this run image_size=64"):
        build("phase1", teacher=teacher, image_size=64)
