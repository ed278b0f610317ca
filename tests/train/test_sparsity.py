"""Weights per side, targets instead of weights, cuts that fall: by hand, and on vectors that are trained."""

import pytest
import torch
import torch.nn.functional as F

from lexlip.train.losses import flops, mean_l1
from lexlip.train.sparsity import Sparsity, TermTarget, active_terms, bias_shift


@pytest.fixture
def build(make_config):
    def make(steps=10, **changes):
        sparsity = Sparsity(make_config(**changes))
        sparsity.begin(steps)
        return sparsity

    return make


def unit(rows, seed):
    return F.normalize(torch.randn(rows, 9, generator=torch.Generator().manual_seed(seed)).relu(), dim=-1)


TEXT, OTHER, IMAGE = unit(4, 0), unit(4, 1), unit(4, 2)
BATCH = {"text": [TEXT], "image": [IMAGE]}


def test_the_old_key_sets_both_sides(build):
    wanted = 0.3 * (float(flops(TEXT)) + float(flops(IMAGE)))
    assert float(build(flops_weight=0.3).loss(BATCH, 5)) == pytest.approx(wanted)


def test_each_side_has_its_own_weight_ramp_and_penalty(build):
    keys = {"flops_weight": 0.3, "flops_weight_text": 2.0, "penalty_text": "l1", "flops_warmup_image": 0.4}
    sparsity = build(**keys)
    for step, share in ((0, 1 / 16), (1, 1 / 4), (3, 1), (None, 1)):
        wanted = 2 * float(mean_l1(TEXT)) + share * 0.3 * float(flops(IMAGE))
        assert float(sparsity.loss(BATCH, step)) == pytest.approx(wanted)
    assert float(build(flops_weight=0.3, flops_weight_text=0.0).loss(BATCH, 5)) == pytest.approx(
        0.3 * float(flops(IMAGE))
    )


def test_several_texts_of_a_pair_count_as_one(build):
    wanted = 0.3 * ((float(flops(TEXT)) + float(flops(OTHER))) / 2 + float(flops(IMAGE)))
    value = build(flops_weight=0.3).loss({"text": [TEXT, OTHER], "image": [IMAGE]}, 5)
    assert float(value) == pytest.approx(wanted)


def test_vectors_at_the_threshold_are_left_alone(build):
    most = int((TEXT > 0).sum(1).max())
    only = {"flops_weight": 1.0, "flops_weight_image": 0.0}
    assert float(build(flops_threshold=most, **only).loss(BATCH, 5)) == 0
    assert 0 < float(build(flops_threshold=most - 1, **only).loss(BATCH, 5)) < float(build(**only).loss(BATCH, 5))


def test_cuts_fall_in_equal_steps(build):
    sparsity = build(steps=20, train_top_k=[8, 32], top_k_start=100, top_k_steps=0.5)
    assert [sparsity.cuts(step) for step in (0, 5, 10, 19, None)] == [
        [100, 100], [54, 66], [8, 32], [8, 32], [8, 32],
    ]  # fmt: skip
    assert build(train_top_k=[8]).cuts(0) == [8]


def trained(sparsity, side, steps, begin=0, state=None):
    """Vectors that are drawn towards many terms and paid for by FLOPS; gives the active terms of each step."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(32, 200, generator=g) + 1.0 if state is None else state["logits"]
    wanted = torch.randn(32, 200, generator=g)
    logits = logits.detach().requires_grad_()
    optimizer = torch.optim.AdamW([logits], lr=0.03, weight_decay=0.0)
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
    counts = []
    for step in range(begin, steps):
        vectors = F.normalize(torch.log1p(F.relu(logits)), dim=-1)
        pull = -F.logsigmoid(logits - wanted).mean()
        loss = 10 * pull + sparsity.loss({side: [vectors]}, step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sparsity.after_step(step)
        counts.append(float(active_terms(vectors)))
    return counts, {"logits": logits.detach().clone(), "optimizer": optimizer.state_dict()}


@pytest.mark.parametrize("target", [100, 40])
@pytest.mark.parametrize("start", [0.1, 1.0])
def test_a_target_is_reached_and_held(build, target, start):
    keys = {"target_terms_image": float(target), "target_steps": 0.5, "flops_weight": start}
    counts, _ = trained(build(steps=400, **keys), "image", 400)
    assert counts[0] > 160
    later = torch.tensor(counts[200:])
    assert ((later.unfold(0, 20, 1).mean(1) - target).abs() <= 0.1 * target).all()


def test_a_target_goes_on_after_a_checkpoint(build):
    keys = {"target_terms_text": 50.0, "target_steps": 40, "flops_weight": 0.1}
    whole, _ = trained(build(steps=60, **keys), "text", 60)
    first, second = build(steps=60, **keys), build(steps=60, **keys)
    begun, state = trained(first, "text", 25)
    second.load(first.state())
    # `wanted` is drawn anew from the same seed after the logits.
    assert begun == whole[:25] and first.state()["text"]["change"] != 0
    assert second.weight("text", 25) == first.weight("text", 25) != build(steps=60, **keys).weight("text", 25)


def test_a_weight_that_moves_is_logged_and_leaves_validation_alone(build):
    sparsity = build(steps=60, target_terms_text=2.0, flops_weight=0.3)
    before = float(sparsity.loss(BATCH, None))
    for step in range(9):
        sparsity.loss(BATCH, step)
        sparsity.after_step(step)
    logged = sparsity.moved_weights(9)
    assert logged == {"flops_weight_text": sparsity.weight("text", 9)} and logged["flops_weight_text"] > 0.5
    assert float(sparsity.loss(BATCH, None)) == before


@pytest.mark.parametrize("by", [0, 1, 0.01])
def test_a_target_for_the_next_step_does_not_swing(build, by):
    keys = {"target_terms_image": 60.0, "target_steps": by, "flops_weight": 0.1}
    counts, _ = trained(build(steps=200, **keys), "image", 200)
    later = torch.tensor(counts[100:])
    assert ((later.unfold(0, 20, 1).mean(1) - 60).abs() <= 9).all() and float(later.std()) < 9


def test_the_weight_of_a_target_by_hand():
    target = TermTarget(10.0, by=100)
    target.observe(20.0, step=99)  # twice too many, as the first step saw
    error = torch.tensor(2.0).log().item()
    assert target.change == pytest.approx(0.4 * error + 16 * error)
    before = target.change
    for _ in range(80):
        target.observe(5.0, step=100)
    assert target.change < before  # too few: the weight falls


def test_a_shift_gives_so_many_terms():
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 3 + 20
    shift = bias_shift(logits, 12)
    assert shift < 0 and float(((logits + shift) > 0).sum(1).float().mean()) == pytest.approx(12, abs=0.05)
