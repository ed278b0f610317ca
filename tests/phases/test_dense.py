"""The dense head's training: its loss written out, its temperature, whole runs, export."""

import math

import pytest
import torch
import torch.nn.functional as F

from lexlip import DenseLIP
from lexlip.cli import main
from lexlip.train.build import build_model
from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(learning_rate=0.0, **changes):
        config = make_config(head="dense", training_mode="con", **changes)
        torch.manual_seed(0)
        return without_trainer(DenseModule(config, livelier(build_model(DenseLIP, config))).train(), learning_rate)

    return make


@pytest.mark.parametrize("ids", [None, [1, 1, 2, 3, 2, 1]], ids=["images", "same_images"])
def test_loss_and_gradients_are_the_equation(build, make_batch, gradients_of, contrastive_by_loops, ids):
    module, batch = build(), make_batch(ids=ids)
    text = F.normalize(module.model.vectors_text(batch["text_ids"], batch["text_mask"]), dim=-1)
    image = F.normalize(module.model.vectors_image(batch["image"]), dim=-1)
    wanted = contrastive_by_loops(text, image, batch["image_id"], module.model.logit_scale.exp())
    wanted.backward()
    wanted_gradients = gradients_of(module)
    module.zero_grad()
    losses = module.compute_losses(batch)
    assert set(losses) == {"contrastive_loss"}
    torch.testing.assert_close(losses["contrastive_loss"], wanted, rtol=1e-5, atol=1e-6)
    losses["contrastive_loss"].backward()
    gradients = gradients_of(module)
    assert set(gradients) == set(wanted_gradients)
    assert float(gradients["model.logit_scale"].abs()) > 0
    for name, value in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6 + 1e-4 * float(value.abs().max()))


def test_the_temperature_starts_as_clip_s_and_stays_within_bounds(make_config, build, make_batch):
    assert float(build_model(DenseLIP, make_config(head="dense")).logit_scale.exp()) == pytest.approx(1 / 0.07)
    module = build()
    for start, bound in ((7.0, math.log(100)), (-3.0, 0.0)):
        with torch.no_grad():
            module.model.logit_scale.fill_(start)
        module.training_step(make_batch(), 0)
        assert float(module.model.logit_scale.detach()) == pytest.approx(bound)


def test_a_run_is_exported_evaluated_and_refused_by_the_other_head(start, tmp_path):
    from runs import DENSE, EVALUATE, PHASE1, Refused, checkpoint_of

    done = start(Phase1Module, DENSE, max_steps=3, version=0)  # the key head=dense chooses what is trained
    assert {"val/rsum", "val/tiny/t2i_R@1"} <= set(done.result)
    best = done.folder / "checkpoints" / "best.ckpt"
    state = checkpoint_of(done.folder, "best.ckpt")["state_dict"]
    assert "model.logit_scale" in state and not any("text_head" in name or "decoder" in name for name in state)

    assert main(["export", str(best), str(tmp_path / "folder")]) == 0
    model = DenseLIP.from_pretrained(tmp_path / "folder")
    assert model.encode_text(["red dot"]).shape == (1, 512)

    results = [
        start(phase, EVALUATE, head="dense", load_path=str(source)).result
        for phase, source in ((Phase1Module, best), (Phase2Module, tmp_path / "folder"))
    ]
    assert results[0] == results[1]
    assert results[0]["tiny"]["captions"] == 8 and 0 <= results[0]["tiny"]["rsum"] <= 600

    with pytest.raises(Refused, match="holds a model with the dense head"):
        start(Phase1Module, PHASE1, load_path=str(best), max_steps=1)
    for changes in ({"training_mode": "both"}, {"eval_top_k": [4]}, {"train_top_k": [4]}):
        with pytest.raises(Refused, match=next(iter(changes))):
            start(Phase1Module, DENSE, max_steps=1, **changes)
