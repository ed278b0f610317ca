"""The schedule by hand, the parameter groups, the optimisers."""

import math

import pytest
import torch
from torch import nn

from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.optim import in_steps, make_optimizer, make_schedule, parameter_groups


def rates(config, steps):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule, values = make_schedule(optimizer, config, steps), []
    for _ in range(steps + 2):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


def test_a_length_is_a_fraction_or_steps():
    assert [in_steps(length, 10) for length in (0.5, 1.0, 1, 0, 25)] == [5, 10, 1, 0, 25]


def test_warm_up_then_a_straight_line_to_zero(make_config):
    values = rates(make_config(learning_rate=1.0, warmup_steps=0.2), 10)
    assert values == pytest.approx([0, 0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0, 0])


def test_a_number_of_warm_up_steps_and_a_floor(make_config):
    values = rates(make_config(learning_rate=2.0, warmup_steps=1, end_lr=0.5), 4)
    assert values == pytest.approx([0, 2, 1.5, 1, 0.5, 0.5])


def test_one_as_integer_is_a_step_and_as_float_all_of_them(make_config):
    assert rates(make_config(learning_rate=1.0, warmup_steps=1), 4)[:2] == [0, 1]
    assert rates(make_config(learning_rate=1.0, warmup_steps=1.0), 4)[:4] == pytest.approx([0, 0.25, 0.5, 0.75])


def test_no_warm_up(make_config):
    assert rates(make_config(learning_rate=1.0, warmup_steps=0), 2) == pytest.approx([1, 0.5, 0, 0])


def test_square_and_cosine_decay(make_config):
    assert rates(make_config(learning_rate=1.0, warmup_steps=0, decay_power=2), 4)[:5] == pytest.approx(
        [1, 9 / 16, 1 / 4, 1 / 16, 0]
    )
    wanted = [(1 + math.cos(math.pi * i / 4)) / 2 for i in range(5)]
    assert rates(make_config(learning_rate=1.0, warmup_steps=0, decay_power="cosine"), 4)[:5] == pytest.approx(wanted)


def test_a_learning_rate_of_zero_stays_there(make_config):
    assert rates(make_config(learning_rate=0.0, warmup_steps=0), 3) == [0] * 5


def test_one_step_of_adamw_is_the_official_one_but_for_its_epsilon(make_config):
    """Transformers' AdamW moves first and decays what is left, and does not correct epsilon's share of the bias."""
    config = make_config(learning_rate=1e-3, weight_decay=0.1, adam_betas=[0.9, 0.999], adam_eps=1e-8)
    module = nn.Linear(3, 2, bias=False)
    optimizer, official = make_optimizer(module, config), module.weight.detach().clone()
    mean = square = torch.zeros(2, 3)
    for step in range(1, 4):
        gradient = torch.full((2, 3), 0.5 / step)
        module.weight.grad = gradient.clone()
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        rate = 1e-3 * math.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        official = (official - rate * mean / (square.sqrt() + 1e-8)) * (1 - 1e-3 * 0.1)
        torch.testing.assert_close(module.weight.detach(), official, rtol=0, atol=1e-3 * 1e-3)


def test_norms_and_layer_scale_in_blocks_have_decay_by_the_key(make_config):
    model = build_model(LexLIP, make_config())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with_key, without = (
        {names[id(p)] for p in parameter_groups(model, 0.01, block_decay=key)[0]["params"]} for key in (True, False)
    )
    blocks = "image_encoder.backbone.blocks"
    assert with_key - without == {
        f"{blocks}.{n}.{part}" for n in (0, 1) for part in ("norm1.weight", "norm2.weight", "gamma_1", "gamma_2")
    }


def test_decay_for_matrices_and_none_for_biases_norms_and_position_tables(make_config):
    model = build_model(LexLIP, make_config())
    model.text_head.dense.weight.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in (decayed, plain))
    assert not decayed & plain
    assert decayed | plain | {"text_head.dense.weight"} == set(names.values())
    for name in names.values():
        table = name.endswith("relative_position_bias_table")
        if name.endswith("bias") or "norm" in name.lower() or table or "gamma" in name:
            assert name in plain, name
    assert {
        "text_head.decoder.weight", "image_encoder.backbone.blocks.0.attn.qkv.weight",
        "image_encoder.backbone.patch_embed.proj.weight", "text_encoder.bert.encoder.layer.0.output.dense.weight",
    } <= decayed  # fmt: skip


class Told(nn.Module):
    """Says of its own parameters that one learns twice as fast, and that another has no decay."""

    rate_factors, without_decay = {"fast": 2.0}, ("still",)

    def __init__(self):
        super().__init__()
        self.fast, self.still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
        self.usual, self.frozen = nn.Linear(2, 2), nn.Parameter(torch.ones(2, 2), requires_grad=False)


def test_a_module_says_what_rate_and_decay_its_parameters_have(make_config):
    model = nn.Sequential(Told(), nn.Linear(2, 2))
    optimizer = make_optimizer(model, make_config(learning_rate=0.1, weight_decay=0.2))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert found == {
        "0.fast": (0.2, 0.2), "0.still": (0.1, 0.0), "0.usual.weight": (0.1, 0.2), "0.usual.bias": (0.1, 0.0),
        "1.weight": (0.1, 0.2), "1.bias": (0.1, 0.0),
    }  # fmt: skip
    schedule = make_schedule(optimizer, make_config(learning_rate=0.1, warmup_steps=0), 4)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == pytest.approx([0.075, 0.075, 0.15])


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_optimisers_take_their_settings(make_config, name, kind):
    config = make_config(optim_type=name, learning_rate=0.3, adam_betas=[0.5, 0.6], adam_eps=1e-3, weight_decay=0.2)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"], optimizer.param_groups[1]["weight_decay"]) == (0.3, 0.2, 0)
    if name != "sgd":
        assert (group["betas"], group["eps"]) == ((0.5, 0.6), 1e-3)
