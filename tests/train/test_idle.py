"""Keys that would do nothing are refused where they are set, and only there."""

import pytest

from lexlip.errors import ConfigError
from lexlip.train.idle import NEEDS, refuse_idle_keys
from Phase2.module import Phase2Module

CASES = [
    ({"flops_warmup_text": 0.2}, {"target_terms_text": 9.0}),
    ({"flops_warmup_image": 0.2}, {"target_terms_image": 9.0}),
    ({"start_terms_text": 9}, {"head_text": "lookup"}),
    ({"expansion_control": "terms"}, {"head_text": "in_context"}),
    ({"top_k_start": 9, "train_top_k": [4]}, {"train_top_k": []}),
    ({"top_k_start": 9, "train_top_k": [4]}, {"train_top_k": [4, 16]}),
    ({"head_text": "in_context"}, {"head": "dense"}),
    ({"activation": "log1p_twice"}, {"head": "dense"}),
    ({"eval_head": "dense"}, {"head": "dense"}),
    ({"push_floor": 1.0}, {"head": "dense"}),
    ({"eval_head": "dense"}, {"features": "x"}),
]


@pytest.mark.parametrize(("keys", "other"), CASES)
def test_a_key_that_would_do_nothing_is_refused(make_config, keys, other):
    refuse_idle_keys(make_config(**keys))
    refuse_idle_keys(make_config(**{**keys, **other}, test_only=True))
    with pytest.raises(ConfigError, match=f"{next(iter(keys))}=.* would do nothing"):
        refuse_idle_keys(make_config(**{**keys, **other}))


def test_each_need_has_a_case_and_phases_ask(make_config):
    assert len(CASES) == len(NEEDS)
    with pytest.raises(ConfigError, match="top_k_start=9 would do nothing"):
        Phase2Module.check_config(make_config(training_mode="con", top_k_start=9))
