"""Corner tokens: who sees whom, shown by the mask, by outputs and by gradients."""

import pytest
import torch
from transformers import BertConfig, BertModel

from lexlip import DenseLIP, LexLIP
from lexlip.errors import ConfigError
from lexlip.models.encoders import TextEncoder
from lexlip.models.long_texts import KEPT_POSITIONS, corner_mask, insert_corners, stretch_positions
from lexlip.train.build import build_model, decided_by
from Phase1.module import Phase1Module

LENGTHS = [pytest.param([6, 6, 6], id="unpadded"), pytest.param([6, 4, 3], id="padded")]


def padding(lengths):
    return (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()


@pytest.fixture
def encoder(livelier):
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=42, max_position_embeddings=16, **shape)
    return livelier(TextEncoder(config, corner_tokens=2)).eval()


@pytest.fixture
def ids():
    return torch.randint(5, 40, (3, 6), generator=torch.Generator().manual_seed(3))


def allowed(i, j, corners, length):
    """The rule as the paper states it, for position i looking at position j of [CLS], corners, words, padding."""
    heads = range(corners + 1)
    words = range(corners + 1, corners + length)
    if i in heads:
        return j == i or j in words
    return j == 0 or j in words


@pytest.mark.parametrize("corners", [0, 1, 2, 5])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_the_mask_is_the_rule_position_by_position(lengths, corners):
    mask = corner_mask(padding(lengths), corners)
    size = max(lengths) + corners
    assert mask.shape == (len(lengths), size, size) and mask.dtype == torch.int64
    for row, length in enumerate(lengths):
        for i in range(size):
            for j in range(size):
                assert mask[row, i, j] == allowed(i, j, corners, length), (row, i, j)


def test_corners_come_after_cls():
    ids = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]])
    assert insert_corners(ids, 40, 2).tolist() == [[2, 40, 41, 7, 8, 3], [2, 40, 41, 9, 3, 0]]
    assert insert_corners(ids, 40, 0).tolist() == ids.tolist()


@pytest.mark.parametrize("lengths", LENGTHS)
def test_no_corner_sees_another_and_no_word_sees_a_corner(encoder, ids, lengths):
    """The gradient of a state by a corner's embedding is zero everywhere but at the corner itself."""
    mask = padding(lengths)
    for corner in range(2):
        states = encoder.with_corners(ids, mask)
        for position in range(states.shape[1]):
            encoder.zero_grad()
            states[:, position].square().sum().backward(retain_graph=True)
            reached = float(encoder.bert.embeddings.word_embeddings.weight.grad[40 + corner].abs().sum())
            assert (reached > 0) == (position == 1 + corner), (corner, position)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_outputs_do_not_change_with_another_corner_s_embedding(encoder, ids, lengths):
    mask = padding(lengths)
    with torch.no_grad():
        before = encoder.with_corners(ids, mask)
        encoder.bert.embeddings.word_embeddings.weight[40] += 5
        after = encoder.with_corners(ids, mask)
    same = [torch.equal(before[:, i], after[:, i]) for i in range(before.shape[1])]
    assert same == [i != 1 for i in range(before.shape[1])]


@pytest.mark.parametrize("lengths", LENGTHS)
def test_cls_and_corners_see_every_word_and_no_padding(encoder, ids, lengths):
    mask = padding(lengths)
    inputs = []
    hook = encoder.bert.embeddings.register_forward_hook(
        lambda m, args, out: inputs.append(out.requires_grad_()) or out
    )
    states = encoder.with_corners(ids, mask)
    hook.remove()
    for head in range(3):
        (gradient,) = torch.autograd.grad(states[:, head].square().sum(), inputs[0], retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        for row, length in enumerate(lengths):
            wanted = [j == head or 3 <= j < length + 2 for j in range(8)]
            wanted[0] = True  # through the words, in the second layer
            assert reached[row].tolist() == wanted, (head, row)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_leaving_the_corners_out_changes_no_other_state(encoder, ids, lengths):
    mask = padding(lengths)
    with torch.no_grad():
        whole, short = encoder.with_corners(ids, mask), encoder(ids, mask)
    without = torch.cat([whole[:, :1], whole[:, 3:]], dim=1)
    torch.testing.assert_close(short[mask == 1], without[mask == 1])


def test_plain_bert_with_the_rule_as_its_mask_agrees(encoder, ids):
    mask = padding([6, 4, 3])
    full = insert_corners(ids, 40, 2)
    rule = torch.tensor([[[allowed(i, j, 2, n) for j in range(8)] for i in range(8)] for n in (6, 4, 3)])
    plain = BertModel(encoder.config, add_pooling_layer=False).eval()
    plain.load_state_dict(encoder.bert.state_dict())
    bias = torch.zeros(3, 1, 8, 8).masked_fill(~rule[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        wanted = plain.encoder(plain.embeddings(input_ids=full), attention_mask=bias).last_hidden_state
        found = encoder.with_corners(ids, mask)
    present = torch.cat([mask.new_ones(3, 2), mask], dim=1) == 1
    torch.testing.assert_close(found[present], wanted[present])


@pytest.mark.parametrize("head", [LexLIP, DenseLIP])
def test_a_fresh_model_starts_as_it_would_without_corners(make_config, head):
    states = []
    for count in (0, 2):
        torch.manual_seed(4)
        states.append(build_model(head, make_config(head=head.head, corner_tokens=count, max_text_len=10)).state_dict())
    words = states[1].pop("text_encoder.bert.embeddings.word_embeddings.weight")
    assert torch.equal(words[:40], states[0].pop("text_encoder.bert.embeddings.word_embeddings.weight"))
    assert words.shape == (42, 16) and 0.005 < float(words[40:].std()) < 0.05
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("head", [LexLIP, DenseLIP])
def test_features_do_not_change_when_the_corner_embeddings_do(make_model, make_batch, head):
    model = make_model(head=head.head, corner_tokens=2, max_text_len=10)
    assert model.config.vocab_size == 40 and len(model.text_encoder.word_embeddings) == 40
    batch = make_batch()
    before = model.encode_text(batch["text_ids"], batch["text_mask"])
    with torch.no_grad():
        model.text_encoder.bert.embeddings.word_embeddings.weight[40:] += 1
    assert torch.equal(model.encode_text(batch["text_ids"], batch["text_mask"]), before)
    assert decided_by(model)["corner_tokens"] == 2


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("head", [LexLIP, DenseLIP])
def test_of_a_long_text_s_vectors_each_corner_moves_its_own_alone(make_model, ids, head, lengths):
    """[CLS]'s vector has no gradient by a corner's embedding and keeps its value when that changes. In the lexicon a
    corner's weight of a word is what the other leaves."""
    model = make_model(head=head.head, corner_tokens=2, max_text_len=10).eval()
    mask, table = padding(lengths), model.text_encoder.bert.embeddings.word_embeddings.weight
    vectors = model.vectors_long(ids, mask)
    gradients = [torch.autograd.grad(vectors[:, i].square().sum(), table, retain_graph=True)[0] for i in range(3)]
    reached = [[bool(gradient[40 + corner].any()) for corner in range(2)] for gradient in gradients]
    assert reached == [[False, False], *([[True, True]] * 2 if head is LexLIP else [[True, False], [False, True]])]
    with torch.no_grad():
        table[40] += 3
        changed = model.vectors_long(ids, mask)
    same = [torch.equal(vectors[:, i], changed[:, i]) for i in range(3)]
    assert same == ([True, False, False] if head is LexLIP else [True, False, True])


def test_strings_leave_the_corners_their_positions_and_read_sentences(make_worded):
    model = make_worded(head="dense", corner_tokens=2, sentence_sep=True, max_text_len=8)
    tokenizer = model.tokenizer
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    red, dot = tokenizer.convert_tokens_to_ids(["red", "dot"])
    ids = torch.tensor([[cls, red, sep, dot, red, sep]])  # 6 of 8: two are the corners'
    wanted = model.encode_text(ids, torch.ones_like(ids))
    torch.testing.assert_close(model.encode_text("red. dot red dot dot dot"), wanted)


def test_stretched_positions_keep_the_first_and_the_last():
    table = torch.arange(40.0)[:, None] * torch.tensor([[1.0, -2.0]])
    long = stretch_positions(table, 128)
    assert long.shape == (128, 2)
    assert torch.equal(long[:KEPT_POSITIONS], table[:KEPT_POSITIONS])
    torch.testing.assert_close(long[-1], table[-1])
    # Linear in between: position 20 + i stands where 19 / 107 of the old step is.
    torch.testing.assert_close(long[20:, 0], 20 + torch.arange(108) * 19 / 107)
    torch.testing.assert_close(stretch_positions(table, 40), table)


@pytest.fixture
def saved(make_model, tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "m")
    return model, str(tmp_path / "m")


def test_a_tower_trained_without_corners_on_short_texts_goes_on_with_both(saved, make_config):
    model, folder = saved
    config = make_config(load_path=folder, corner_tokens=2, max_text_len=24)
    longer = Phase1Module.from_config(config).model
    old, new = model.text_encoder.bert.embeddings, longer.text_encoder.bert.embeddings
    assert torch.equal(new.word_embeddings.weight[:40], old.word_embeddings.weight)
    assert new.word_embeddings.weight.shape == (42, 16)
    assert torch.equal(new.position_embeddings.weight, stretch_positions(old.position_embeddings.weight, 24))
    assert torch.equal(longer.text_head.decoder.weight, model.text_head.decoder.weight)

    eight = Phase1Module.from_config(config.changed(trained_positions=8, max_text_len=12)).model.text_encoder
    table = eight.bert.embeddings.position_embeddings.weight
    assert torch.equal(table[:12], stretch_positions(old.position_embeddings.weight[:8], 12))
    assert torch.equal(table[12:], old.position_embeddings.weight[12:])


def test_what_was_stretched_and_trained_is_not_cut_back_by_the_same_keys(saved, make_config, tmp_path):
    _, folder = saved
    longer = {"trained_positions": 8, "max_text_len": 20}
    model = Phase1Module.from_config(make_config(load_path=folder, **longer)).model
    table = model.text_encoder.bert.embeddings.position_embeddings.weight
    table.data.normal_()  # as training would change it
    model.save_pretrained(tmp_path / "longer")
    again = Phase1Module.from_config(make_config(load_path=str(tmp_path / "longer"), **longer)).model
    assert torch.equal(again.text_encoder.bert.embeddings.position_embeddings.weight, table)


def test_another_number_of_corners_is_refused_by_name(make_config, tmp_path):
    build_model(LexLIP, make_config(corner_tokens=2)).save_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match="corner_tokens=0.*set corner_tokens=2"):
        Phase1Module.from_config(make_config(load_path=str(tmp_path / "m")))


def test_a_pretrained_bert_gets_corners(make_config, saved_bert):
    bert, folder = saved_bert
    config = make_config(text_pretrained=True, text_model=folder, corner_tokens=3, max_text_len=20)
    model = build_model(LexLIP, config)
    table = model.text_encoder.bert.embeddings.word_embeddings.weight
    assert table.shape == (43, 16) and torch.equal(table[:40], bert.bert.embeddings.word_embeddings.weight)
    assert model.text_encoder.config.max_position_embeddings == 20
    assert model.text_head.decoder.weight.shape == (40, 16)
