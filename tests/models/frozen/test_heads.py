"""Heads on frozen features: by hand, and against plain loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from lexlip.errors import CheckpointError, EncodingError
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.heads import DenseHeads, LexiconHeads, Standardise, TextBatch
from lexlip.models.frozen.model import FrozenLexLIP
from lexlip.models.frozen.table import with_table
from lexlip.train.losses import score_distillation

TERMS = torch.tensor([2, 5, 6, 9])  # of a vocabulary of 12


def shape(**changes):
    values = {
        "image_tower": "i", "image_width": 3, "vocab_size": 12, "terms": 4, "text_tower": "t", "text_width": 6,
        "pooled_width": 5, "width": 8, "row_terms": 3, "embed_dim": 7, **changes,
    }  # fmt: skip
    return FrozenConfig(**values)


@pytest.fixture
def heads(livelier):
    def make(**changes):
        made = livelier(LexiconHeads(shape(**changes))).eval()
        made.start(TERMS, None, torch.tensor([3.0, 0.6, 0.0, 1.5]))
        if hasattr(made.text_side, "words"):
            made.text_side.words.copy_(torch.randn(4, 5, generator=torch.Generator().manual_seed(5)))
        return made

    return make


@pytest.fixture
def texts():
    """A text with a term twice and a word piece that is no term; one with a pad; one without a word piece."""
    g = torch.Generator().manual_seed(1)
    terms = torch.tensor([[5, 9, 5, 7], [2, 11, 0, 0], [0, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    return TextBatch(terms, mask, torch.randn(3, 4, 6, generator=g), torch.randn(3, 5, generator=g))


def test_own_word_pieces_weigh_the_most_that_they_do_in_the_text_and_no_other_piece_does(heads, texts):
    made = heads()
    own, expansion = made.text_side(texts, made.positions(texts.terms), made)
    wanted = torch.zeros(3, 4)
    for row in range(3):
        for place, term in enumerate(texts.terms[row].tolist()):
            if texts.mask[row, place] and term in TERMS.tolist():
                column = TERMS.tolist().index(term)
                logit = made.text_side.weigh(texts.states[row, place])[0] + made.own[column]
                wanted[row, column] = max(wanted[row, column], F.softplus(logit))
    torch.testing.assert_close(own, wanted)
    assert (own[0] > 0).tolist() == [False, True, False, True] and not own[2].any()
    side, pooled = made.text_side.expand, F.normalize(texts.pooled, dim=-1) * math.sqrt(5)
    logits = side.norm(side.project(pooled)) @ made.table.T + side.bias
    torch.testing.assert_close(expansion, torch.log1p(torch.relu(logits)))
    both = made.encode_text(texts, keep=torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(both, own + expansion * torch.tensor([[1.0], [0.0], [1.0]]))
    torch.testing.assert_close(made.encode_text(texts), own + expansion)


def test_own_words_begin_at_a_third_of_their_idf_and_terms_at_the_tower_s_embeddings():
    made = LexiconHeads(shape())
    embeddings = torch.randn(4, 8)
    made.start(TERMS, embeddings, torch.tensor([3.0, 0.6, 0.0, 1.5]))
    torch.testing.assert_close(made.own.detach(), torch.tensor([1.0, 0.2, 0.0, 0.5]))
    torch.testing.assert_close(made.table.detach().norm(dim=1), torch.ones(4))
    centred = embeddings - embeddings.mean(0)
    torch.testing.assert_close(F.cosine_similarity(made.table.detach(), centred), torch.ones(4))
    assert made.positions(torch.tensor([[0, 2, 5], [6, 9, 11]])).tolist() == [[4, 0, 1], [2, 3, 4]]


def test_tables_of_their_own_start_alike_and_each_side_has_its_gradient(heads, texts):
    made = LexiconHeads(shape(separate_tables=True))
    made.start(TERMS, torch.randn(4, 8), torch.ones(4))
    assert torch.equal(made.image_table, made.table)
    made, shared = heads(separate_tables=True), heads()
    features = 3 * torch.randn(20, 1, 3, generator=torch.Generator().manual_seed(0))
    made.encode_image(features).sum().backward()
    assert made.table.grad is None and made.image_table.grad.any()
    with torch.no_grad():
        made.text_side.expand.bias += 5  # so that texts are expanded
    made.encode_text(texts).sum().backward()
    assert made.table.grad.any()
    shared.load_state_dict({**made.state_dict(), "table": made.image_table.detach()}, strict=False)
    torch.testing.assert_close(made.encode_image(features), shared.encode_image(features))
    logits = made.term_logits(made.patch_states(features[:, None], False), TERMS)
    torch.testing.assert_close(torch.log1p(logits.relu())[:, 0, 0], made.encode_image(features))


@pytest.mark.parametrize("tokens", [1, 5])
def test_an_image_s_terms_are_the_largest_over_its_tokens(heads, tokens):
    made, features = heads(), torch.randn(2, tokens, 3) * 3 + 1
    made.standardise.fit(features.flatten(0, 1))
    wanted = torch.zeros(2, 12)
    for row in range(2):
        for token in features[row]:
            hidden = made.image_norm(made.image((token - made.standardise.mean) / made.standardise.std))
            for column, term in enumerate(TERMS.tolist()):
                logit = hidden @ made.table[column] + made.image_bias[column]
                wanted[row, term] = max(wanted[row, term], torch.log1p(torch.relu(logit)))
    torch.testing.assert_close(made.scattered(made.encode_image(features)), wanted)


def test_weights_by_the_logarithm_twice(heads, texts):
    made, other = heads(), heads(activation="log1p_twice")
    other.load_state_dict(made.state_dict())
    features = torch.randn(2, 5, 3)
    torch.testing.assert_close(other.encode_image(features), torch.log1p(made.encode_image(features)))
    (own, expansion), (other_own, other_expansion) = (
        each.text_side(texts, each.positions(texts.terms), each) for each in (made, other)
    )
    torch.testing.assert_close(other_expansion, torch.log1p(expansion))
    assert torch.equal(other_own, own)  # a softplus, not a logit of the head


def test_a_feature_is_dropped_from_all_tokens_of_an_image():
    part = Standardise(50, 0.5).train()
    kept = part(torch.ones(3, 7, 50))
    assert set(kept.unique().tolist()) == {0.0, 2.0} and (kept == kept[:, :1]).all()
    assert not (kept[0] == kept[1]).all()  # but not of all images
    torch.manual_seed(0)
    one = part(torch.ones(3, 1, 50))
    torch.manual_seed(0)
    assert torch.equal(one, F.dropout(torch.ones(3, 1, 50), 0.5))


def test_the_dense_reference_is_that_of_the_tokens_mean(heads):
    made, features = DenseHeads(shape()).eval(), torch.randn(2, 5, 3)
    made.standardise.fit(features.mean(1))
    wanted = made.image((features.mean(1) - made.standardise.mean) / made.standardise.std)
    torch.testing.assert_close(made.encode_image(features), wanted)


def test_standardise_by_hand():
    part = Standardise(3)
    part.fit(torch.tensor([[1.0, 4.0, 7.0], [3.0, 8.0, 7.0]], dtype=torch.float16))
    assert part.mean.tolist() == [2, 6, 7] and part.std.tolist() == [1, 2, 1]  # the last never changes
    assert part(torch.tensor([[[4.0, 4.0, 8.0]]])).tolist() == [[[2, -1, 1]]]
    one = Standardise(2)
    one.fit(torch.tensor([[5.0, 6.0]]))
    assert torch.isfinite(one(torch.zeros(1, 2))).all()


def test_the_dense_reference_projects_the_mean_of_the_tokens(livelier):
    made, features, pooled = livelier(DenseHeads(shape())).eval(), torch.randn(2, 4, 3), torch.randn(2, 5)
    torch.testing.assert_close(made.encode_image(features), made.image(features.mean(1)))
    torch.testing.assert_close(made.encode_text(pooled), made.text(pooled / pooled.norm(dim=1, keepdim=True) * 5**0.5))


def test_score_distillation_by_hand():
    scores, taught = torch.tensor([[0.3, 0.1], [0.0, 0.2]]), torch.tensor([[0.5, 0.1], [0.2, 0.1]])
    wanted = 0.0
    for own, given in ((scores, taught), (scores.T, taught.T)):
        for row, goal in zip(own.tolist(), given.tolist()):
            p, q = ([math.exp(x / 0.1) for x in values] for values in (goal, row))
            p, q = ([x / sum(values) for x in values] for values in (p, q))
            wanted += sum(a * math.log(a / b) for a, b in zip(p, q)) / 4
    assert float(score_distillation(scores, taught, 0.1)) == pytest.approx(wanted, rel=1e-5)
    assert float(score_distillation(taught, taught, 0.1)) == pytest.approx(0, abs=1e-6)


@pytest.fixture
def lookup(livelier):
    """A trained lookup side; its vectors of all 12 word pieces, of which two have none."""
    model = livelier(FrozenLexLIP(shape(text_head="lookup", row_terms=4))).eval()
    words = torch.randn(12, 5, generator=torch.Generator().manual_seed(6))
    words[:2] = 0
    model.lexicon_heads.start(TERMS, None, torch.tensor([3.0, 0.6, 0.0, 1.5]))
    model.lexicon_heads.text_side.words.copy_(words[TERMS])
    return model, words


def test_a_table_says_what_the_lookup_said(lookup, texts):
    """Own terms alike; a word piece that is no term, 11, adds what its neighbours have, and one without a vector, 0,
    nothing."""
    model, words = lookup
    known = TextBatch(torch.where(texts.terms == 7, 2, texts.terms), texts.mask & (texts.terms != 11))
    table = with_table(model, words)
    assert table.widths == {"lexicon": 12} and not table.needs_text_tower and model.config.text_head == "lookup"
    wanted = model.lexicon_heads.encode_text(known)
    assert wanted[:2].any(1).all() and not wanted[2].any()
    torch.testing.assert_close(table.lexicon_heads.encode_text(known), wanted, rtol=2e-3, atol=1e-3)
    side = model.lexicon_heads.text_side
    one = TextBatch(torch.tensor([[11, 11], [0, 1]]), torch.ones(2, 2).bool())
    expected = side.rows(words[[11]], model.lexicon_heads.table)
    found = table.lexicon_heads.encode_text(one)
    torch.testing.assert_close(found[:1], expected, rtol=2e-3, atol=1e-3)
    assert not found[1].any()
    features = torch.randn(2, 1, 3)
    torch.testing.assert_close(table.lexicon_heads.encode_image(features), model.lexicon_heads.encode_image(features))


def test_a_row_has_no_more_terms_than_it_may(lookup):
    model, words = lookup
    model.lexicon_heads.text_side.row_terms = model.config.row_terms = 2
    rows = with_table(model, words).lexicon_heads.text_side
    assert rows.row_terms.shape == (12, 3) and rows.row_terms.dtype == torch.int16
    assert int((rows.row_weights > 0).sum(1).max()) <= 3


def test_a_table_is_made_of_a_lookup_alone(lookup):
    with pytest.raises(EncodingError, match="text_head=contextual"):
        with_table(FrozenLexLIP(shape()), lookup[1])


def test_vectors_of_features_and_of_both_heads(livelier, texts):
    model = livelier(FrozenLexLIP(shape())).eval()
    assert model.widths == {"lexicon": 12, "dense": 7}
    batch = {"image": torch.randn(2, 1, 3).half(), "text_ids": texts.terms, "text_mask": texts.mask,
             "text_states": texts.states.half(), "text_pooled": texts.pooled.half()}  # fmt: skip
    for kind, rows in (("image", 2), ("text", 3)):
        assert model.vectors_of_features(kind, batch, "lexicon").shape == (rows, 12)
        assert model.vectors_of_features(kind, batch, "dense").shape == (rows, 7)
    with pytest.raises(EncodingError, match="takes texts, not token ids"):
        model.tokenizer = object()
        model.encode_text(torch.ones(1, 2, dtype=torch.int64), torch.ones(1, 2))
    with pytest.raises(ValueError, match="head='sparse': this model has lexicon, dense"):
        model.encode_text(["a"], head="sparse")


GOOD = shape().as_dict()


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("terms", 0, "terms=0"), ("terms", 13, "terms=13"), ("terms", True, "whole number"), ("width", -1, "width=-1"),
        ("width", 1 << 40, "whole number"), ("image_width", "9" * 10**5, "image_width="), ("width", 0, "width=0"),
        ("image_tower", 7, "image_tower=7"), ("text_head", "free", "one of contextual, lookup, table"),
        ("text_head", [1], "text_head"), ("head", "sparse", "head=sparse"), ("tower_facts", [], "tower_facts"),
        ("tower_facts", {"image": 3}, "tower_facts"), ("tower_facts", {"text": {"preprocessing": 1}}, "tower_facts"),
        ("embedded", ["audio"], "embedded"), ("embedded", [[1]], "embedded"), ("embedded", "image", "embedded"),
        ("surprise", 1, "'surprise'"), ("max_text_len", 0, "max_text_len=0"), ("text_width", 0, "text_width=0"),
        ("pooled_width", 0, "pooled_width=0"), ("row_terms", 1.5, "row_terms=1.5"), ("embed_dim", None, "embed_dim"),
    ],
)  # fmt: skip
def test_a_config_of_other_values_is_refused_in_one_line(name, value, told):
    assert FrozenConfig.checked(GOOD, "config.json").as_dict() == GOOD
    with pytest.raises(CheckpointError) as refused:
        FrozenConfig.checked({**GOOD, name: value}, "config.json")
    line = str(refused.value)
    assert line.startswith("config.json") and told in line and "\n" not in line and len(line) < 300


def test_a_dense_config_needs_its_width_and_a_lexicon_its_fields():
    with pytest.raises(CheckpointError, match="embed_dim=0"):
        FrozenConfig.checked({**GOOD, "head": "dense", "embed_dim": 0}, "config.json")
    with pytest.raises(CheckpointError, match="is no config .*vocab_size"):
        FrozenConfig.checked({k: v for k, v in GOOD.items() if k != "vocab_size"}, "config.json")
