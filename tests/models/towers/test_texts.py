"""Text towers: states by the lexicon's word pieces, pooled as the library pools."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import AutoTokenizer, BertModel

from lexlip.errors import UserError
from lexlip.models.towers import load_text_tower
from lexlip.models.towers.align import find_offsets, overlap_mean

SIDE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MINILM = os.environ.get("LEXLIP_MINILM")  # a folder of all-MiniLM-L6-v2, for the comparison with the real one


def equal(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def run_bert(folder, texts, length=12):
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.no_grad():
        states = BertModel.from_pretrained(folder).eval()(**tokens).last_hidden_state
    return tokens, states


def test_bert_whose_own_word_pieces_are_the_terms(bert_folder):
    texts = ["A dog runs, unrun", "two"]
    tokens, states = run_bert(bert_folder, texts)
    tower = load_text_tower(f"hf:{bert_folder}")
    found = tower.features(texts)
    assert tower.lexicon.convert_ids_to_tokens(found.terms[0]) == ["a", "dog", "runs", ",", "un", "##run"]
    assert found.mask.tolist() == [[True] * 6, [True] + [False] * 5] and found.terms[1].tolist()[1:] == [0] * 5
    equal(found.states[0], states[0, 1:7])
    equal(found.states[1, 0], states[1, 1])
    assert not found.states[1, 1:].any()
    mask = tokens["attention_mask"][..., None]
    equal(found.pooled, (states * mask).sum(1) / mask.sum(1))
    assert (tower.width, tower.pooled_width) == (16, 16)
    json.dumps(tower.facts())


def test_unknown_words_and_empty_texts_are_no_terms(bert_folder):
    found = load_text_tower(str(bert_folder)).features(["a zebra runs [SEP]", "", "zebra"])
    assert found.terms.tolist() == [[5, 7], [0, 0], [0, 0]] and found.mask.sum(1).tolist() == [2, 0, 0]
    assert found.pooled.isfinite().all()
    nothing = load_text_tower(str(bert_folder)).features([""])
    assert nothing.terms.shape == (1, 1) and not nothing.mask.any() and nothing.states.shape == (1, 1, 16)


def test_what_the_tower_has_no_room_for_is_left_out(bert_folder):
    found = load_text_tower(str(bert_folder)).features(["a dog " * 20])
    assert found.terms.shape == (1, 10)  # 12 tokens, [CLS] and [SEP] among them


@pytest.mark.parametrize(
    ("pooling", "reduce"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda s, m: s[:, 0]),
        ({"pooling_mode_mean_tokens": True}, lambda s, m: (s * m).sum(1) / m.sum(1)),
        ({"pooling_mode": "max"}, lambda s, m: s.masked_fill(m == 0, -1e9).amax(1)),
        ({"pooling_mode": "lasttoken"}, lambda s, m: torch.stack([s[0, m[0].sum() - 1], s[1, m[1].sum() - 1]])),
        ({"pooling_mode": ["cls", "mean"]}, lambda s, m: torch.cat([s[:, 0], (s * m).sum(1) / m.sum(1)], -1)),
    ],
)  # fmt: skip
def test_sentence_transformers_pooling(sentence_folder, pooling, reduce):
    folder = sentence_folder(pooling, ("Normalize", "2_Normalize"))
    texts = ["a dog runs on the beach a dog runs", "two"]
    tokens, states = run_bert(folder, texts, 8)
    found = load_text_tower(f"st:{folder}").features(texts)
    equal(found.pooled, F.normalize(reduce(states, tokens["attention_mask"][..., None]), dim=-1))
    assert found.terms.shape == (2, 6)  # max_seq_length is 8
    assert load_text_tower(str(folder)).reference == f"st:{folder}"
    equal(load_text_tower(f"hf:{folder}").features(texts).pooled, found.pooled)


@pytest.mark.parametrize("pickled", [False, True])
def test_dense_after_pooling(sentence_folder, pickled):
    folder = sentence_folder({"pooling_mode_mean_tokens": True}, ("Dense", "2_Dense"))
    linear = torch.nn.Linear(16, 6)
    (folder / "2_Dense").mkdir()
    config = {
        "in_features": 16,
        "out_features": 6,
        "bias": True,
        "activation_function": "torch.nn.modules.activation.Tanh",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(config))
    state = {f"linear.{name}": value.data for name, value in linear.named_parameters()}
    if pickled:
        torch.save(state, folder / "2_Dense" / "pytorch_model.bin")
    else:
        save_file(state, folder / "2_Dense" / "model.safetensors")
    tokens, states = run_bert(folder, ["a dog"])
    tower = load_text_tower(str(folder))
    equal(tower.features(["a dog"]).pooled, torch.tanh(linear(states.mean(1))).detach())
    assert tower.pooled_width == 6 and tower.width == 16
    (folder / "2_Dense" / "config.json").write_text(json.dumps({**config, "activation_function": "os.system"}))
    with pytest.raises(UserError, match="activation system is not known"):
        load_text_tower(str(folder))


def test_a_prompt_is_read_and_is_no_term(sentence_folder):
    folder = sentence_folder({"pooling_mode_mean_tokens": True})
    prompts = {"prompts": {"query": "the beach "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    _, states = run_bert(folder, ["the beach a dog"])
    found = load_text_tower(str(folder)).features(["a dog"])
    equal(found.states[0], states[0, 3:5])
    equal(found.pooled, states.mean(1))
    assert found.terms.tolist() == [[5, 6]]


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([("WordEmbeddings", "")], "begins with WordEmbeddings"),
        ([("Transformer", ""), ("LSTM", "1")], "module LSTM is not read"),
        ([("Transformer", "../other")], "leads out of the folder"),
        ([("Transformer", ""), ("Dense", "../other")], "leads out of the folder"),
    ],
)
def test_modules_that_are_refused(sentence_folder, modules, message):
    folder = sentence_folder({})
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        load_text_tower(str(folder))


def test_pooling_that_is_not_known_is_refused(sentence_folder):
    folder = sentence_folder({"pooling_mode_weightedmean_tokens": True})
    with pytest.raises(UserError, match="weightedmean"):
        load_text_tower(str(folder))


def clip_folder(folder, tokenizer):
    text = {**SIDE, "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config=text, vision_config={**SIDE, "image_size": 32, "patch_size": 8}, projection_dim=12
    )
    config.text_config.projection_dim = 12
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_clip_by_the_word_pieces_of_bert(tmp_path, clip_tokenizer, bert_tokenizer):
    """ "Dog un-running": CLIP reads dog, u, n, -, ru, n, n, i, n, g and BERT dog, un, [UNK], then run, ##ning."""
    model = clip_folder(tmp_path / "clip", clip_tokenizer)
    text = "Dog beaches."
    tokens = clip_tokenizer([text], return_tensors="pt")
    assert clip_tokenizer.convert_ids_to_tokens(tokens["input_ids"][0]) == [
        "<|startoftext|>", "dog</w>", "bea", "ch", "e", "s</w>", ".</w>", "<|endoftext|>",
    ]  # fmt: skip
    assert bert_tokenizer.tokenize(text) == ["dog", "beach", "##es", "."]
    with torch.no_grad():
        states = model.text_model(**tokens).last_hidden_state[0]
        pooled = model.get_text_features(**tokens)
    pooled = getattr(pooled, "pooler_output", pooled)
    found = load_text_tower(f"hf:{tmp_path}/clip", bert_tokenizer).features([text, "a"])
    assert found.terms.tolist() == [bert_tokenizer.convert_tokens_to_ids(["dog", "beach", "##es", "."]), [5, 0, 0, 0]]
    # "beach" is bea + ch, "##es" is e + s
    equal(found.states[0], torch.stack([states[1], states[2:4].mean(0), states[4:6].mean(0), states[6]]))
    equal(found.pooled[:1], pooled)


def test_clip_has_no_terms_of_its_own(tmp_path, clip_tokenizer):
    clip_folder(tmp_path, clip_tokenizer)
    with pytest.raises(UserError, match="give the lexicon's tokenizer"):
        load_text_tower(str(tmp_path))


def test_word_pieces_after_what_clip_could_read_are_left_out(tmp_path, clip_tokenizer, bert_tokenizer):
    clip_folder(tmp_path, clip_tokenizer)
    found = load_text_tower(str(tmp_path), bert_tokenizer).features(["dog " * 30])
    assert found.mask.sum() == 14


def test_siglip_reads_its_full_length(tmp_path, gemma_tokenizer, bert_tokenizer):
    text = {**SIDE, "vocab_size": len(gemma_tokenizer), "max_position_embeddings": 8}
    config = transformers.SiglipConfig(text_config=text, vision_config={**SIDE, "image_size": 32, "patch_size": 8})
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    gemma_tokenizer.save_pretrained(tmp_path)
    tokens = gemma_tokenizer(["a dog runs"], padding="max_length", max_length=8, return_tensors="pt")
    with torch.no_grad():
        output = model.text_model(input_ids=tokens["input_ids"])
    found = load_text_tower(str(tmp_path), bert_tokenizer).features(["a Dog"])
    assert found.terms.tolist() == [[5, 6]]
    tokens = gemma_tokenizer(["a dog"], padding="max_length", max_length=8, return_tensors="pt")
    with torch.no_grad():
        output = model.text_model(input_ids=tokens["input_ids"])
    equal(found.states[0], output.last_hidden_state[0, :2])
    equal(found.pooled, output.pooler_output)


def test_overlap_by_hand():
    states = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    tokens = torch.tensor([[[0, 0], [0, 3], [3, 5], [5, 6]]])
    real = torch.tensor([[False, True, True, True]])
    pieces = torch.tensor([[[0, 2], [2, 4], [0, 6], [6, 7]]])
    # the last word piece has no token: the mean of all real ones
    equal(overlap_mean(states, tokens, real, pieces), torch.tensor([[[2.0], [3.0], [14 / 3], [14 / 3]]]))
    assert not overlap_mean(states, tokens, real & False, pieces).any()


def test_offsets_are_found_where_a_tokenizer_tells_none():
    assert find_offsets("A İdog, dog", ["a", " dog", "zebra", "DOG", ""]) == [(0, 1), (3, 6), (0, 0), (8, 11), (0, 0)]


def test_a_tokenizer_that_is_missing_is_said(bert_folder):
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (bert_folder / file).unlink(missing_ok=True)
    with pytest.raises(UserError, match="tokenizer"):
        load_text_tower(str(bert_folder))


def test_image_models_and_views_are_refused(bert_folder):
    with pytest.raises(UserError, match="leave out #cls"):
        load_text_tower(f"{bert_folder}#cls")
    with pytest.raises(UserError, match="text towers are read from"):
        load_text_tower("timm:resnet18")


@pytest.mark.skipif(not MINILM, reason="LEXLIP_MINILM names no folder of all-MiniLM-L6-v2")
def test_minilm_is_that_of_sentence_transformers():
    library = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    texts = ["A dog runs on the beach.", "Two men, one of them in a red shirt", "cafés"]
    expected = library.SentenceTransformer(str(Path(MINILM)), device="cpu").encode(texts)
    equal(load_text_tower(MINILM).features(texts).pooled, torch.tensor(expected))
