"""Sentences of long texts, and how the collator reads their ends."""

from transformers import AutoTokenizer

from lexlip_data.loading.collate import Collator
from lexlip_data.loading.sentences import mark_sentences, split_sentences


def test_a_text_is_cut_at_full_stops_line_ends_and_marks():
    assert split_sentences(" A dog. It runs.\nFast</s> .. \n") == ["A dog", "It runs", "Fast"]
    assert split_sentences("3.5 metres") == ["3", "5 metres"]  # the benchmark cuts numbers too
    assert split_sentences(" . \n") == []


def test_only_a_full_stop_before_a_space_becomes_the_separator():
    assert mark_sentences("A dog. It runs 3.5 m. Fast.") == "A dog [SEP] It runs 3.5 m [SEP] Fast."
    assert mark_sentences("A. B", "</s>") == "A </s> B"


def test_the_collator_reads_sentence_ends_as_separators(tiny_data):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    plain, marked = (Collator(tokenizer, 8, 32, sentence_sep=on) for on in (False, True))
    ids, mask = marked.tokenise(["red dot. blue ring", "red"])
    words = [tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
    assert words[0] == ["[CLS]", "red", "dot", "[SEP]", "blue", "ring", "[SEP]"]
    assert mask[1].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert plain.tokenise(["red dot. blue ring"])[0].tolist() != ids[:1].tolist()
