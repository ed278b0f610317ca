"""The keys of configs/authors_recipe.yaml that change a training step, against the official order of things."""

import pytest
import torch
import torch.nn.functional as F

from lexlip.errors import ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.losses import flops
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PER = {
    "momentum_update": "micro_batch", "queue_update": "micro_batch", "loss_rows": "micro_batch",
    "mask_same_image": False, "queue_start": "noise",
}  # fmt: skip


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(phase, learning_rate=0.0, **changes):
        mode = "con" if phase is Phase2Module else "both"
        changes = {"training_mode": mode, "queue_size": 9, "per_gpu_batchsize": 2, "clip_grad": 0.0, **changes}
        config = make_config(**changes)
        torch.manual_seed(0)
        return without_trainer(phase(config, livelier(build_model(LexLIP, config))).train(), learning_rate)

    return make


def both_sides(model, batch, rows):
    image, text = batch["image"][rows], (batch["text_ids"][rows], batch["text_mask"][rows])
    return F.normalize(model.lexicon_text(*text), dim=-1), F.normalize(model.lexicon_image(image), dim=-1)


def official_step(module, batch, momentum=0.9):
    """One step of the official Phase 2, micro-batch by micro-batch: loss, gradients, momentum encoder, queues."""
    model, twin = module.model, module.momentum_encoder
    queues = {side: list(queue.keys.clone()) for side, queue in module.queues.items()}
    places = {side: int(queue.position) for side, queue in module.queues.items()}
    losses, sparsity = [], []
    for start in range(0, 6, 2):
        rows = slice(start, start + 2)
        text, image = both_sides(model, batch, rows)
        with torch.no_grad():
            text_key, image_key = both_sides(twin, batch, rows)
            for old, new in zip(twin.parameters(), model.parameters(), strict=True):
                old.copy_(momentum * old + (1 - momentum) * new)
        for query, key, side in ((text, image_key, "image"), (image, text_key, "text")):
            past = torch.stack(queues[side])
            scores = torch.cat([(query * key).sum(1, keepdim=True), query @ past.T], dim=1) / 0.05
            losses.append(F.cross_entropy(scores, torch.zeros(2, dtype=torch.int64)) / 6)
        sparsity.append(0.002 * (flops(text) + flops(image)) / 3)
        for side, key in (("text", text_key), ("image", image_key)):
            for row in key:
                queues[side][places[side]] = row
                places[side] = (places[side] + 1) % 9
    (sum(losses) + sum(sparsity)).backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    values = float(sum(losses).detach()), float(sum(sparsity).detach())
    return *values, gradients, queues, dict(twin.named_parameters())


def test_a_step_of_micro_batches_is_the_official_one(build, make_batch):
    keys = {"momentum": 0.9, **PER}
    module, obvious = build(Phase2Module, **keys), build(Phase2Module, **keys)
    for step in range(3):  # the queues of 9 wrap around
        batch = make_batch(seed=step, ids=[1, 1, 2, 3, 2, 6])
        contrastive, sparsity, gradients, queues, momentum = official_step(obvious, batch)
        for side, queue in obvious.queues.items():
            queue.keys.copy_(torch.stack(queues[side]))
            queue.position.copy_((queue.position + 6) % 9)
        kept = {}
        module.on_before_optimizer_step = lambda _, kept=kept: (
            kept.update({name: value.grad.clone() for name, value in module.model.named_parameters()}),
            module.guard.inspect(torch.tensor(1.0), scaled=False),
        )
        module.training_step(batch, step)
        assert module.logged["train/contrastive_loss"] == pytest.approx(contrastive, rel=1e-4)
        assert module.logged["train/flops_loss"] == pytest.approx(sparsity, rel=1e-4)
        for name, value in gradients.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-6, msg=name)
        for side, queue in module.queues.items():
            torch.testing.assert_close(queue.keys, torch.stack(queues[side]), rtol=1e-4, atol=1e-6)
        for name, value in module.momentum_encoder.named_parameters():
            torch.testing.assert_close(value, momentum[name], rtol=1e-5, atol=1e-7)


def test_the_momentum_of_a_step_is_that_of_its_micro_batches(build, make_batch):
    """0.99 for each of 3 micro-batches: 0.97 for the step, before the weights move."""
    module = build(Phase2Module, learning_rate=0.5, momentum_update="micro_batch")
    with torch.no_grad():
        for value in module.model.parameters():
            value.add_(1.0)
    live = {name: value.clone() for name, value in module.model.named_parameters()}
    before = {name: value.clone() for name, value in module.momentum_encoder.named_parameters()}
    module.training_step(make_batch(), 0)
    for name, value in module.momentum_encoder.named_parameters():
        share = 0.99**3
        torch.testing.assert_close(value, share * before[name] + (1 - share) * live[name], rtol=1e-5, atol=1e-6)


def test_the_momentum_encoder_drops_out_only_by_its_key(build, make_batch):
    for wanted in (False, True):
        module = build(Phase2Module, drop_rate=0.5, drop_path_rate=0.9, momentum_dropout=wanted)
        one, two = (module.prepare(make_batch())[1] for _ in range(2))
        for side in ("text", "image"):
            assert torch.equal(getattr(one, side), getattr(two, side)) is not wanted
        module.eval()
        assert torch.equal(module.prepare(make_batch())[1].text, module.prepare(make_batch())[1].text)


def test_noise_fills_the_queues_with_keys_of_no_image(build):
    module, other = (build(Phase2Module, queue_start="noise", queue_size=1030, seed=seed) for seed in (1, 2))
    for queue in module.queues.values():
        keys, ids = queue.negatives()
        assert keys.shape == (1030, 40) and torch.all(ids == -1) and int(queue.position) == 0
        torch.testing.assert_close(keys.norm(dim=1), torch.ones(1030))
        assert keys.mean().abs() < 0.01 and keys.min() < -0.3
    assert not torch.equal(module.text_ring.keys, module.image_ring.keys)
    assert not torch.equal(module.text_ring.keys, other.text_ring.keys)


def test_each_micro_batch_has_a_coin(build, make_batch):
    module, sizes = build(Phase2Module, DR=True, DR_coin="micro_batch"), []
    tower = module.model.image_encoder.register_forward_hook(lambda _, given, out: sizes.append(given[0].shape[-1]))
    for step in range(6):
        module.trainer.global_step = step
        module.training_step(make_batch(seed=step), step)
    tower.remove()
    firsts, seconds = sizes[:3], sizes[3:6]
    assert firsts == seconds  # both encodings of a step see the same size
    steps = [tuple(sizes[at : at + 3]) for at in range(0, len(sizes), 6)]
    assert len(steps) == 6 and any(len(set(step)) == 2 for step in steps)
    assert 4 < sum(size == 16 for step in steps for size in step) < 14
    with pytest.raises(ConfigError, match="grad_cache_chunk=2 must divide per_gpu_batchsize=3"):
        config = module.config.changed(per_gpu_batchsize=3, grad_cache_chunk=2)
        Phase2Module.check_config(config)


def test_masked_words_of_a_micro_batch_share_one_mean(build, make_batch):
    module, batch = build(Phase1Module, loss_rows="micro_batch"), make_batch()
    parts = [{name: v[at : at + 2] for name, v in batch.items() if isinstance(v, torch.Tensor)} for at in (0, 2, 4)]
    wanted: dict = {}
    exact = build(Phase1Module)
    for part in parts:
        assert (part["encoder_labels"] != -100).any()
        for name, value in exact.compute_losses(part).items():
            wanted[name] = wanted.get(name, 0) + float(value.detach()) / 3
    module.training_step(batch, 0)
    for name in ("self_t_mlm_loss", "i2t_mlm_loss", "t2t_mlm_loss", "flops_loss"):
        assert module.logged[f"train/{name}"] == pytest.approx(wanted[name], rel=1e-4), name
    counts = [(part["encoder_labels"] != -100).sum() for part in parts]
    assert len(set(map(int, counts))) > 1  # so that both means differ
    with pytest.raises(ConfigError, match="grad_cache_chunk=1 with loss_rows=micro_batch"):
        Phase1Module.check_config(module.config.changed(grad_cache_chunk=1))


def test_the_contrastive_gradient_is_scaled_and_its_value_is_not(build, make_batch):
    losses = {"contrastive": 1, "i2t": 0, "t2t": 0, "self_t": 0}
    found = {}
    for factor in (1.0, 0.125):
        module = build(Phase1Module, contrastive_gradient=factor, loss_names=losses, flops_weight=0.0)
        module.zero_grad()
        loss = sum(module.compute_losses(make_batch()).values())
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        found[factor] = float(loss.detach()), gradient
    assert found[1.0][0] == pytest.approx(found[0.125][0])
    torch.testing.assert_close(found[0.125][1], found[1.0][1] / 8, rtol=1e-4, atol=1e-8)
