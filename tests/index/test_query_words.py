"""The syntax of a query: signs, weights, quotes, and what is refused."""

import time

import numpy as np
import pytest

from lexlip.index import IndexingError
from lexlip.index.query_words import WordQuery, parse_query, resolve

WORDS = ["dog", "beach", "cat", "a", "cafe", "t-shirt"]


class Tokenizer:
    def get_vocab(self):
        return {word: number for number, word in enumerate(WORDS)}


class Model:
    """Each known word of a text weighs 0.5."""

    tokenizer = Tokenizer()

    def encode_text(self, texts):
        return np.array([[0.5 * (word in text.split()) for word in WORDS] for text in texts], np.float32)


@pytest.mark.parametrize(
    ("query", "parsed"),
    [
        ("a dog on the beach", WordQuery("a dog on the beach")),
        ("a dog -cat", WordQuery("a dog", without={"cat": 0.0})),
        ("a dog, -cat, +beach:0.1", WordQuery("a dog, beach", without={"cat": 0.0}, required={"beach": 0.1})),
        ("dog^2 beach^.5", WordQuery("", {"dog": 2.0, "beach": 0.5})),
        ("+dog +beach^3", WordQuery("", {"dog": 1.0, "beach": 3.0}, required={"dog": 0.0, "beach": 0.0})),
        ("a dog^2 cat^-0.5", WordQuery("a dog", {"dog": 2.0}, penalties={"cat": 0.5})),
        ('"-5 degrees" dog', WordQuery("-5 degrees dog")),
        ("“a dog” −cat", WordQuery("a dog", without={"cat": 0.0})),
        ('a dog -"t-shirt":0.2', WordQuery("a dog", without={"t-shirt": 0.2})),
        ('t-shirt 15" 12:30 - -- + ^_^ a-b', WordQuery('t-shirt 15" 12:30 - -- + ^_^ a-b')),
        ("über -Äpfel", WordQuery("über", without={"Äpfel": 0.0})),
        ("", WordQuery()), ("  ", WordQuery()), ('""', WordQuery("")),
        ("dog^0 cat", WordQuery("dog cat", {"dog": 0.0})),
        ("a dog^2, on", WordQuery("a dog on", {"dog": 2.0})), ("dog^.5!", WordQuery("", {"dog": 0.5})),
        ("dog^1.5e-1 -cat:2.5E1.", WordQuery("", {"dog": 0.15}, without={"cat": 25.0})),
    ],
)  # fmt: skip
def test_a_query_is_taken_apart(query, parsed):
    assert parse_query(query) == parsed


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ('a "dog', "a quote that does not end"), ("-cat", "something to look for"), ("-cat -dog", "something to look"),
        ("dog^x", "a number is due"), ("a -cat:", "a number is due"), ("dog^", "a number is due"),
        ("-cat^2 a", "has no weight"), ("+dog -dog", "'dog' is both wanted and forbidden"),
        ("dog^2 -dog", "both wanted"), ("a +dog^1e999", "weight"), ("cat^-1", "something to look for"),
        (" ".join(f"w{n}^1" for n in range(1001)), "more than 1,000 words"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(query, message):
    with pytest.raises(IndexingError, match=message):
        resolve(parse_query(query), Model())


@pytest.mark.parametrize("query", ["dog^" + "1" * 20_000 + "x", "+dog:" + "1" * 9_000 + "^" + "2" * 9_000 + "x"])
def test_a_long_query_takes_no_time(query):
    begin = time.process_time()
    with pytest.raises(IndexingError, match="a number is due"):
        parse_query(query)
    assert time.process_time() - begin < 0.5


def test_text_and_words_become_one_bag():
    query = resolve(parse_query("a dog^3 +Café -CAT:0.2"), Model())
    terms, weights = query.bag
    assert dict(zip(terms.tolist(), weights.tolist())) == {0: 1.5, 3: 0.5}
    assert query.conditions == {"without": {2: 0.2}, "required": {4: 0.0}, "penalties": {}}
    bag = resolve(parse_query("zebra beach^2 dog^0"), Model()).bag  # the text knows beach
    assert dict(zip(*(column.tolist() for column in bag))) == {1: 1.0}


def test_words_alone_need_no_text_side():
    model = Model()
    model.encode_text = None
    terms, weights = resolve(parse_query("dog^2 +beach -cat"), model).bag
    assert dict(zip(terms.tolist(), weights.tolist())) == {0: 2.0, 1: 1.0}


def test_a_word_that_is_none_names_what_is_near():
    with pytest.raises(IndexingError, match="'beech' is no word of the model's vocabulary; near it: beach"):
        resolve(parse_query("dog -beech"), Model())
    with pytest.raises(IndexingError, match="vocabulary"):
        resolve(parse_query("dog -cat"), None)
