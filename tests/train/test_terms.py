"""What is counted of the terms that a training uses, by hand; and when it raises an alarm."""

import csv
from types import SimpleNamespace

import pytest
import torch

from lexlip.train.callbacks.terms import Terms, alarm, summary

TEXT = torch.tensor([[1.0, 0, 0, 0.5], [0.2, 0.1, 0, 0]])
IMAGE = torch.tensor([[0.0, 0, 0, 1], [0.3, 0, 0, 1]])


def test_the_numbers_of_two_batches_by_hand(tmp_path):
    counts = Terms(1, tmp_path).counts
    counts.add({"text": TEXT[:1], "image": IMAGE[:1], "scale": torch.ones(1)})
    counts.add({"text": TEXT[1:], "image": IMAGE[1:]})
    values = summary(counts.taken())
    # text: term 0 in both, 1 and 3 in one; image: term 0 in one, 3 in both
    assert values == {
        "train/active_terms_text": 2.0, "train/dead_terms_text": 1.0, "train/top_term_text": 1.0,
        "train/active_terms_image": 1.5, "train/dead_terms_image": 2.0, "train/top_term_image": 1.0,
        "train/flops_per_pair": 1.0 * 0.5 + 0.5 * 1.0,
    }  # fmt: skip
    pairs = [(text > 0) & (image > 0) for text in TEXT for image in IMAGE]
    assert values["train/flops_per_pair"] == sum(float(pair.sum()) for pair in pairs) / 4  # what the field calls FLOPS
    assert counts.taken() == {}


@pytest.mark.parametrize(
    ("active", "pressed", "says"),
    [(0.4, False, "go to 0.*Lower flops_weight"), (0.0, True, "go to 0"), (60.0, True, "60 of 100.*Raise flops_weight"),
     (60.0, False, "^$"), (5.0, True, "^$")],
)  # fmt: skip
def test_alarms(active, pressed, says):
    import re

    assert re.search(says, alarm("text", active, 100, pressed))


def test_an_alarm_is_told_once_until_it_is_over(tmp_path, caplog):
    logged = {}
    module = SimpleNamespace(
        model=SimpleNamespace(tokenizer=None),
        step_now=50,
        sparsity=SimpleNamespace(whole_from=lambda side: 10),
        log_dict=logged.update,
        term_counts=None,
        term_ids=None,
    )
    trainer = SimpleNamespace(is_global_zero=True, loggers=[])
    terms = Terms(1, tmp_path)
    terms.on_fit_start(trainer, module)
    for vectors in (torch.ones(2, 30), torch.ones(2, 30), torch.eye(2, 30), torch.ones(2, 30), torch.zeros(2, 30)):
        module.term_counts.add({"text": vectors, "image": torch.eye(2, 30)})
        terms.on_train_batch_end(trainer, module)
    told = [line for line in caplog.messages if "text vectors" in line]
    assert [("not sparse" in line, "go to 0" in line) for line in told] == [(True, False), (True, False), (False, True)]
    with open(tmp_path / "terms.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 5 * 2 * 10


def test_columns_that_are_some_terms_have_their_words(tmp_path):
    """Heads on frozen towers give vectors over the terms that may be active."""
    words = {3: "dog", 7: "cat", 9: "tree"}
    module = SimpleNamespace(
        model=SimpleNamespace(tokenizer=SimpleNamespace(convert_ids_to_tokens=lambda ids: [words[i] for i in ids])),
        step_now=1,
        sparsity=SimpleNamespace(whole_from=lambda side: 10),
        log_dict=lambda values: None,
        term_counts=None,
        term_ids=torch.tensor([3, 7, 9]),
    )
    terms = Terms(1, tmp_path)
    terms.on_fit_start(SimpleNamespace(is_global_zero=True, loggers=[]), module)
    module.term_counts.add({"text": torch.tensor([[0.0, 1, 1], [0, 0, 1]]), "image": torch.tensor([[1.0, 1, 0]])})
    terms.on_train_batch_end(SimpleNamespace(is_global_zero=True, loggers=[]), module)
    with open(tmp_path / "terms.csv", newline="") as file:
        rows = [row[1:4] for row in csv.reader(file)][1:]
    assert rows[:3] == [["text", "1", "tree"], ["text", "2", "cat"], ["text", "3", "dog"]]
