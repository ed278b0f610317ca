"""LoTLIP checkpoints: real names, real sizes, random weights, against timm and transformers by themselves."""

import pytest
import torch
import torch.nn.functional as F

from lexlip import DenseLIP
from lexlip.cli import main
from lexlip.convert.lotlip import import_lotlip


def text_features(bert, proj, ids, corners):
    """[CLS] of plain transformers over the corners and padding, with LoTLIP's rule as a mask, pooled and projected."""
    pad, length = 0, ids.shape[1]
    allowed = torch.zeros(len(ids), length, length, dtype=torch.bool)
    for row, words in enumerate(ids):
        for i in range(length):
            for j in range(length):
                word = j > corners and words[j] != pad
                allowed[row, i, j] = word or (i == j if i <= corners else j == 0)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    states = bert.encoder(bert.embeddings(input_ids=ids), attention_mask=bias[:, None]).last_hidden_state
    return F.normalize(proj(torch.tanh(bert.pooler.dense(states[:, 0]))), dim=-1)


def texts(vocab, length, context):
    """Padded word ids without corners and their mask, and the padded ids with corners that LoTLIP's tokenizer gives."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, vocab, (3, length), generator=generator)
    words[1, length // 2 :], words[2, 3:] = 0, 0
    corners = torch.tensor([[vocab, vocab + 1]] * 3)
    padded = torch.zeros(3, context - length - 2, dtype=torch.long)
    return words, (words != 0).long(), torch.cat([words[:, :1], corners, words[:, 1:], padded], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [16, 32])
def test_a_release_of_real_size_gives_the_features_of_plain_transformers(patch, lotlip_release, tmp_path):
    trunk, bert, proj, state = lotlip_release(patch, {}, {"vocab_size": 30524}, 768)
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "c.pt"
    )
    model = import_lotlip(tmp_path / "c.pt")
    words, mask, full = texts(30522, 60, 128)
    with torch.no_grad():
        wanted = text_features(bert, proj, full, 2)
        images = torch.randn(2, 3, 224, 224)
        image = F.normalize(trunk(images), dim=-1)
    torch.testing.assert_close(model.encode_text(words, mask), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_image(images), image, rtol=0, atol=1e-5)
    assert float(model.logit_scale.detach()) == 4.25
    assert (model.config.image_size, model.config.max_text_len, model.config.vocab_size) == (224, 128, 30522)


@pytest.fixture
def small(lotlip_release, tmp_path):
    release = lotlip_release()
    torch.save(release[-1], tmp_path / "small.pt")
    return release, tmp_path / "small.pt"


def test_the_command_makes_a_folder_that_gives_the_release_s_features(small, tmp_path, capsys):
    (trunk, bert, proj, _), path = small
    assert main(["import-lotlip", str(path), str(tmp_path / "out")]) == 0
    assert "120 words and 2 corner tokens, 64 numbers" in capsys.readouterr().out
    model = DenseLIP.from_pretrained(tmp_path / "out")
    words, mask, full = texts(120, 20, 40)
    with torch.no_grad():
        wanted, image = text_features(bert, proj, full, 2), F.normalize(trunk(torch.ones(1, 3, 32, 32)), dim=-1)
    torch.testing.assert_close(model.encode_text(words, mask), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_image(torch.ones(1, 3, 32, 32)), image, rtol=0, atol=1e-5)


def test_what_does_not_fit_is_refused_by_name(small, tmp_path, capsys):
    (*_, state), path = small

    def refused(change, *options):
        torch.save(change, tmp_path / "other.pt")
        assert main(["import-lotlip", str(tmp_path / "other.pt"), str(tmp_path / "no"), *options]) == 2
        assert not (tmp_path / "no").exists()
        return capsys.readouterr().err

    assert "visual.conv1.weight" in refused({**state, "visual.conv1.weight": torch.zeros(1)})
    assert "no LoTLIP checkpoint" in refused({"weight": torch.zeros(1)})
    less = {name: value for name, value in state.items() if name != "text.transformer.pooler.dense.bias"}
    assert "text_pooler.bias: not in the file" in refused(less)
    assert "--corner-tokens 122" in refused(state, "--corner-tokens", "122")
    wrong = {**state, "text.transformer.encoder.layer.1.output.dense.bias": torch.zeros(3)}
    assert "layer.1.output.dense.bias: (3,) in the file" in refused(wrong)
