"""What a person writes into a search box: text, and words with signs and weights.

    a dog on the beach      text for the model
    dog^2                   twice the weight that the text gives the word
    dog^-0.5                a penalty: 0.5 x the photo's weight for the word is taken off its score
    +beach  +beach:0.1      only photos with a weight for the word, above 0 or above 0.1; also part of the text
    -cat  -cat:0.05         no photo whose weight for the word is above 0, or above 0.05
    "-5 degrees"            text in which no sign means anything

Where every word has a sign or a weight, they are taken as they are, each as one term with its weight (1 for +word), and
no text is encoded. Needs no torch.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lexlip.errors import IndexingError
from lexlip.index.queries import Bag, Model, bag_of
from lexlip_data.errors import one_line

MAX_WORDS = 1000  # with signs or weights
_QUOTES = str.maketrans("\u201c\u201d\u201e\u2212", '"""-')  # what phones and text programs make of " and -
_PART = re.compile(r'[+-]?"[^"]*"(?=\s|$)|[^\s"]\S*|\S+')
# One way to read each number, and bounded: else a long query of digits takes hours.
_NUMBER = r"(?:\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})(?:[eE][+-]?\d{1,6})?"
_AFTER = ",.;!?"  # of a sentence, not of a word
_SIGNED = re.compile(
    rf"(?P<sign>[+-])(?P<word>\"[^\"]+\"|\w[^\s:^]*)(?::(?P<level>{_NUMBER}))?(?:\^(?P<weight>-?{_NUMBER}))?"
)
_WEIGHED = re.compile(rf"(?P<word>\w[^\s^]*)\^(?P<weight>-?{_NUMBER})")
_ALMOST = re.compile(r"\w[^\s^]*\^[^\s^]*|[+-]\w\S*[:^]\S*")


@dataclass
class WordQuery:
    """A query as it was written.

    Attributes:
        text: for the model; empty where only words are given.
        weights: of words: what the text's weight is multiplied by, or the weight itself where there is no text.
        without: words that no result has, above a weight.
        required: words that every result has, above a weight.
        penalties: what is taken off a score for each unit of a document's weight for a word.
    """

    text: str = ""
    weights: dict[str, float] = field(default_factory=dict)
    without: dict[str, float] = field(default_factory=dict)
    required: dict[str, float] = field(default_factory=dict)
    penalties: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TermQuery:
    """A query in terms, for `Index.search(query.bag, **query.conditions)`.

    Attributes:
        bag: terms and weights.
        conditions: what `Index.search` takes besides: `without`, `required` and `penalties` as `WordQuery`, by term.
        unknown: words that the vocabulary lacks, where they are no error.
    """

    bag: Bag
    conditions: dict[str, Any]
    unknown: list[str] = field(default_factory=list)


def parse_query(query: str) -> WordQuery:
    """Take a query apart.

    Raises:
        IndexingError: a quote that does not end, a sign with a number that is none, nothing to look for, or a word
            that is both wanted and forbidden.
    """
    parts = _PART.findall(query.translate(_QUOTES))
    parsed, texts, plain = WordQuery(), [], False
    for part in parts:
        if part.startswith('"') or part[1:2] == '"' and part[0] in "+-":
            if part.count('"') < 2:
                raise IndexingError(f"a quote that does not end: {one_line(part, 40)}")
        bare = part.rstrip(_AFTER)
        if match := _SIGNED.fullmatch(bare) or _WEIGHED.fullmatch(bare):
            texts += _note(parsed, {"sign": "", "level": None, **match.groupdict()}, part)
        elif _ALMOST.fullmatch(part):
            raise IndexingError(f"{one_line(part, 40)}: a number is due after ^ and :, as in dog^2 or -cat:0.05")
        else:
            plain = True
            texts.append(part[1:-1] if part.startswith('"') else part)
    if len(parsed.weights) + len(parsed.without) + len(parsed.penalties) + len(parsed.required) > MAX_WORDS:
        raise IndexingError(f"more than {MAX_WORDS:,} words with signs or weights")
    if query.strip() and not texts:
        raise IndexingError("a query needs something to look for; words with - only say what to leave out")
    if both := {*parsed.without} & {*parsed.required, *parsed.weights}:
        raise IndexingError(f"{min(both)!r} is both wanted and forbidden")
    if plain:
        parsed.text = " ".join(texts)
    else:
        parsed.weights = {**dict.fromkeys(parsed.required, 1.0), **parsed.weights}
    return parsed


def _note(parsed: WordQuery, found: dict[str, str | None], part: str) -> list[str]:
    """Note a word with a sign or weight; returns what of it belongs to the text."""
    word = (found["word"] or "").strip('"')
    weight = None if found["weight"] is None else float(found["weight"])
    if found["sign"] == "-":
        if weight is not None:
            raise IndexingError(f"{one_line(part, 40)}: a word that is left out has no weight; {word}^-1 is a penalty")
        parsed.without[word] = float(found["level"] or 0)
        return []
    if found["sign"] == "+":
        parsed.required[word] = float(found["level"] or 0)
    if weight is not None and weight < 0:
        parsed.penalties[word] = -weight
        return [word] if found["sign"] else []
    if weight is not None:
        parsed.weights[word] = weight
    return [word]


def resolve(query: WordQuery, model: Model, vocabulary: Vocabulary | None = None) -> TermQuery:
    """A query's words as terms, its text encoded.

    Args:
        query: of `parse_query`.
        model: its vocabulary; its text side where there is text.
        vocabulary: the model's, for callers with many queries: reading it out takes longer than a search.

    Raises:
        IndexingError: a word that is no term of the vocabulary; the message names words that are like it.
    """
    vocabulary = vocabulary or Vocabulary(model)
    weights = vocabulary.terms(query.weights)
    if query.text:
        terms, given = bag_of(query.text, model)
        bag = dict(zip(terms.tolist(), given.tolist()))
        # A word that the text's vector lacks is as heavy as the heaviest, before its own factor.
        heaviest = max(bag.values(), default=1.0)
        bag |= {term: factor * bag.get(term, heaviest) for term, factor in weights.items()}
    else:
        bag = weights
    conditions = {name: vocabulary.terms(getattr(query, name)) for name in ("without", "required", "penalties")}
    return TermQuery(bag_of((np.array([*bag], np.int64), np.array([*bag.values()], float))), conditions)


class Vocabulary:
    """A model's words, looked up as people write them.

    Raises:
        IndexingError: the model has no tokenizer.
    """

    def __init__(self, model: Any):
        if model is None or model.tokenizer is None:
            raise IndexingError("words need a model's vocabulary: Index.open(path, model=...)")
        self.of: Mapping[str, int] = model.tokenizer.get_vocab()

    def term(self, word: str) -> int:
        """The term of a word; in lower case and without accents where only that is known.

        Raises:
            IndexingError: no such word.
        """
        lower = word.lower()
        bare = "".join(char for char in unicodedata.normalize("NFD", lower) if not unicodedata.combining(char))
        for form in (word, lower, bare):
            if form in self.of:
                return self.of[form]
        near = difflib.get_close_matches(lower, [known for known in self.of if known[:1] == lower[:1]], 3)
        known = f"; near it: {', '.join(near)}" if near else ""
        raise IndexingError(f"{one_line(word, 40)!r} is no word of the model's vocabulary{known}")

    def terms(self, words: Mapping[str, float]) -> dict[int, float]:
        """By term. Raises as `term`."""
        return {self.term(word): value for word, value in words.items()}
