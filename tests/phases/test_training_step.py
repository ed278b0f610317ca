"""The gradient-cached step against one large micro-batch, and what a step does once and only once."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from lexlip.train.build import build_model
from lexlip.train.dense import DenseModule
from lexlip.train.module import _mean_over_ranks
from lexlip.train.step import split_batch
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {"phase1": Phase1Module, "phase2": Phase2Module, "dense": DenseModule}


@pytest.fixture
def build(make_config, livelier, without_trainer, every_loss_weighed):
    def make(phase, learning_rate=0.0, **changes):
        changes.setdefault("training_mode", "both" if phase == "phase1" else "con")
        changes.setdefault("loss_names", every_loss_weighed)
        changes.setdefault("clip_grad", 0.0)  # gradients are compared with those of a plain backward
        config = make_config(**changes)
        torch.manual_seed(0)
        model = livelier(build_model(PHASES[phase].model_class, config))
        module = PHASES[phase](config, model)
        if phase == "phase2":
            livelier(module.momentum_encoder, seed=1)
            fill = F.normalize(torch.rand(2, 5, 40, generator=torch.Generator().manual_seed(2)), dim=2)
            for queue, keys in zip(module.queues.values(), fill, strict=True):
                queue.push(keys, torch.arange(5) * 7 + 3)  # ids as in the batch, so that some are masked
        elif hasattr(module, "decoder"):
            livelier(module.decoder, seed=3)
        return without_trainer(module.train(), learning_rate)

    return make


def assert_same(ours, wanted):
    assert set(ours) == set(wanted)
    for name, value in wanted.items():
        scale = float(value.abs().max())
        difference = float((ours[name] - value).abs().max())
        assert difference < 1e-4 * scale + 1e-7, name


@pytest.mark.parametrize("ids", [None, [1, 1, 2, 3, 2, 1]], ids=["images", "same_images"])
@pytest.mark.parametrize("rows", [1, 2, 4, 5])  # 4 and 5 leave a shorter last micro-batch
@pytest.mark.parametrize("phase", PHASES)
def test_losses_and_gradients_do_not_depend_on_the_micro_batches(build, make_batch, gradients_of, phase, rows, ids):
    whole, parts = build(phase), build(phase, per_gpu_batchsize=rows)
    batch = make_batch(ids=ids)
    losses = whole.compute_losses(batch)
    sum(losses.values()).backward()
    parts.training_step(batch, 0)
    for name, value in losses.items():
        assert parts.logged[f"train/{name}"] == pytest.approx(float(value.detach()), rel=1e-4), name
    assert parts.logged["train/loss"] == pytest.approx(float(sum(losses.values()).detach()), rel=1e-4)
    logged = {name.removeprefix("train/") for name in parts.logged}
    assert set(losses) == logged - {"loss", "learning_rate", "skipped_samples", "grad_norm"}
    assert_same(gradients_of(parts), gradients_of(whole))


@pytest.mark.parametrize("phase", PHASES)
def test_every_loss_has_a_gradient(build, make_batch, phase):
    """A loss that lost its graph on the way would agree with itself however the batch is split, and train nothing."""
    module = build(phase)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    for name, loss in module.compute_losses(make_batch()).items():
        assert loss.requires_grad, name
        gradients = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in gradients), name


@pytest.mark.parametrize("phase", PHASES)
def test_grad_cache_chunk_splits_what_per_gpu_batchsize_leaves_whole(build, make_batch, gradients_of, phase):
    """A quarter of the batch at once; gradients as the optimiser gets them, clipped to norm 1."""
    how = {"batch_size": 8, "per_gpu_batchsize": 8, "queue_size": 8}
    whole, parts = build(phase, **how), build(phase, grad_cache_chunk=2, **how)
    rows = []
    encode = parts.encode
    parts.encode = lambda part, *args, **kwargs: rows.append(len(part["image_id"])) or encode(part, *args, **kwargs)
    for module in (whole, parts):
        module.training_step(make_batch(rows=8), 0)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    assert rows == [2] * 8
    ours, wanted = gradients_of(parts), gradients_of(whole)
    assert ours.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((ours[name] - value).abs().max()) < 1e-6, name


@pytest.mark.parametrize("mode", ["bottle", "con"])
def test_micro_batches_of_a_mode(build, make_batch, gradients_of, mode):
    whole, parts = build("phase1", training_mode=mode), build("phase1", training_mode=mode, per_gpu_batchsize=2)
    batch = make_batch()
    sum(whole.compute_losses(batch).values()).backward()
    parts.training_step(batch, 0)
    assert_same(gradients_of(parts), gradients_of(whole))


@pytest.mark.parametrize("phase", PHASES)
def test_one_micro_batch_in_training_step_is_compute_losses(build, make_batch, gradients_of, phase):
    one, two = build(phase), build(phase)
    sum(one.compute_losses(make_batch()).values()).backward()
    two.training_step(make_batch(), 0)
    assert_same(gradients_of(two), gradients_of(one))


@pytest.mark.parametrize("phase", PHASES)
def test_with_dropout_the_cached_step_is_all_micro_batches_with_graph(build, make_batch, gradients_of, phase):
    """The obvious version keeps the graph of every micro-batch, with the random state that each had."""
    cached, obvious = (build(phase, per_gpu_batchsize=2, drop_rate=0.3) for _ in range(2))
    batch = make_batch()
    cached.training_step(batch, 0)

    obvious.batches_seen = 1
    obvious.seed_step()
    prepared, context = obvious.prepare(batch)
    micro_batches = list(split_batch(prepared, 2))
    states = []
    with torch.no_grad():
        for part in micro_batches:
            states.append(torch.get_rng_state())
            obvious.encode(part, context, vectors_only=True)
    encoded = []
    for part, state in zip(micro_batches, states, strict=True):
        torch.set_rng_state(state)
        encoded.append(obvious.encode(part, context))
    vectors = {name: torch.cat([row[0][name] for row in encoded]) for name in encoded[0][0]}
    losses = dict(obvious.batch_losses(vectors, prepared, context))
    for _, local in encoded:
        for name, value in local.items():
            losses[name] = losses.get(name, 0) + value
    losses = obvious._weighed(losses)
    sum(losses.values()).backward()

    for name, value in losses.items():
        assert cached.logged[f"train/{name}"] == pytest.approx(float(value.detach()), rel=1e-4), name
    assert_same(gradients_of(cached), gradients_of(obvious))


@pytest.mark.parametrize("phase", PHASES)
def test_a_cached_step_moves_running_statistics_once_per_micro_batch(build, make_batch, phase):
    module = build(phase, per_gpu_batchsize=2, **tiny.CONVOLUTIONAL)
    module.training_step(make_batch(), 0)
    norms = [part for part in module.model.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert norms and all(part.num_batches_tracked == 3 and part.track_running_stats for part in norms)


def test_a_step_that_is_not_finite_leaves_no_running_statistics(build, make_batch):
    module, batch = build("phase1", **tiny.CONVOLUTIONAL), make_batch()
    module.training_step(batch, 0)
    before = {name: value.clone() for name, value in module.model.named_buffers()}
    batch["image"] = batch["image"].float()
    batch["image"][0, 0, 0, 0] = float("nan")
    module.training_step(batch, 0)
    assert module.guard.not_finite == 1 and not module.guard.finite
    assert all(torch.equal(value, before[name]) for name, value in module.model.named_buffers())


def test_dropout_differs_between_steps_and_micro_batches(build, make_batch):
    module = build("phase1", per_gpu_batchsize=3, drop_rate=0.5)
    seen = []
    encode = module.encode
    module.encode = lambda *given: seen.append(torch.get_rng_state()) or encode(*given)
    for _ in range(2):
        module.training_step(make_batch(), 0)
    first, second = seen[:4], seen[4:]
    assert torch.equal(first[0], first[2]) and torch.equal(first[1], first[3])  # encoded twice alike
    assert not torch.equal(first[0], first[1])
    assert not any(torch.equal(a, b) for a in first for b in second)


@pytest.mark.parametrize("phase", PHASES)
def test_the_step_moves_the_weights_and_forgets_old_gradients(build, make_batch, gradients_of, phase):
    module, other = build(phase, learning_rate=0.1), build(phase)
    before = {n: p.detach().clone() for n, p in module.model.named_parameters()}
    for parameter in module.model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    module.training_step(make_batch(), 0)
    other.training_step(make_batch(), 0)
    assert_same(gradients_of(module), gradients_of(other))
    assert any(not torch.equal(p, before[n]) for n, p in module.model.named_parameters())


@pytest.mark.parametrize("phase", PHASES)
def test_every_trained_parameter_gets_a_gradient(build, make_batch, gradients_of, phase):
    """One without would make distributed training wait for it."""
    module = build(phase, per_gpu_batchsize=2)
    module.training_step(make_batch(), 0)
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(gradients_of(module)) == trained


@pytest.mark.parametrize("phase", PHASES)
def test_a_batch_whose_images_were_all_skipped_leaves_the_weights_alone(build, make_batch, phase):
    module = build(phase, learning_rate=0.1, max_bad_share=1.0)
    before = {n: v.clone() for n, v in module.state_dict().items()}
    batch = {k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in make_batch().items()}
    module.training_step({**batch, "skipped": ["tiny/1: broken", "tiny/2: broken"]}, 0)
    assert module.skipped.total == 2
    assert module.logged["train/skipped_samples"] == 2
    for name, value in module.state_dict().items():
        if "twin" not in name:
            assert torch.equal(value, before[name]), name


def test_skipped_samples_are_counted_and_logged_by_name(build, make_batch, caplog):
    module = build("phase1", max_bad_share=0.5)
    for _ in range(2):
        module.training_step({**make_batch(), "skipped": ["tiny/7: the file is empty"]}, 0)
    assert module.skipped.total == 2
    assert sum("tiny/7: the file is empty" in line for line in caplog.messages) == 2


def test_losses_are_averaged_in_an_order_that_all_processes_share():
    one = _mean_over_ranks({"b": torch.tensor(2.0), "a": torch.tensor(1.0)})
    assert list(one.items()) == [("a", 1.0), ("b", 2.0)]


def test_scores_of_a_loss_are_in_32_bits(build, make_batch):
    """Divided by 0.05, scores of 16 bits would be off by a twentieth; the towers may be in 16 bits all the same."""
    module, batch = build("phase1"), make_batch()
    batch, context = module.prepare(batch)
    vectors = {name: F.normalize(torch.rand(6, 40), dim=1) for name in ("text", "image")}
    plain = module._batch_losses(vectors, batch, context)["contrastive_loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module._batch_losses(vectors, batch, context)["contrastive_loss"], plain)
