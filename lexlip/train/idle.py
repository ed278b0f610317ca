"""Keys that would do nothing beside others: refused, so that nobody takes them for the cause of a result."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lexlip.errors import ConfigError
from lexlip.train.config import Config, base


class Need(NamedTuple):
    """What a key that is set to other than its default must not meet."""

    key: str
    idle: Callable[[Config], object]
    why: str


NEEDS = (
    Need("flops_warmup_text", lambda c: c.target_terms_text, "target_terms_text moves that weight itself"),
    Need("flops_warmup_image", lambda c: c.target_terms_image, "target_terms_image moves that weight itself"),
    Need("start_terms_text", lambda c: c.head_text == "lookup", "head_text=lookup has no biases to shift"),
    Need(
        "expansion_control", lambda c: not c.features and c.head_text != "contextual",
        "only head_text=contextual gives a caption other terms than its own",
    ),
    Need("top_k_start", lambda c: not c.train_top_k, "train_top_k=[] has no cut that falls"),
    Need(
        "top_k_start", lambda c: (c.top_k_start or 0) < max(c.train_top_k, default=0),
        "it lies below an entry of train_top_k, and cuts fall",
    ),
    Need("head_text", lambda c: c.head == "dense", "head=dense has no lexicon head"),
    Need("activation", lambda c: c.head == "dense", "head=dense has no lexicon head"),
    Need("eval_head", lambda c: c.head == "dense", "head=dense has one head alone"),
    Need("push_floor", lambda c: c.head == "dense", "head=dense has no terms"),
    Need("eval_head", lambda c: c.features, "heads on features are evaluated by head"),
)  # fmt: skip


def refuse_idle_keys(config: Config) -> None:
    """Refuse what `NEEDS` lists, in a training.

    Raises:
        ConfigError: naming the key, its value and what makes it do nothing.
    """
    usual = base()
    for need in NEEDS if not config.test_only else ():
        if (value := getattr(config, need.key)) != usual[need.key] and need.idle(config):
            raise ConfigError(f"{need.key}={value} would do nothing: {need.why}; leave one of them out")
