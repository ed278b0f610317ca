"""Model folders as SparseEncoders of the real sentence-transformers, and SPLADE models of it as model folders."""

import json

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForMaskedLM

from lexlip import LexLIP
from lexlip.cli import main

library = pytest.importorskip("sentence_transformers", reason="pip install sentence-transformers", minversion="5")
pytest.importorskip("sentence_transformers.sparse_encoder", reason="pip install 'sentence-transformers>=5'")

TEXTS = ["a red dot", "small green ring on a grey box", "dark", "a large blue cross beside the box under a light"]
SIX = int(library.__version__.split(".")[0]) >= 6


@pytest.fixture
def folder(make_worded, tmp_path):
    model = make_worded().eval()
    model.save_pretrained(tmp_path / "model")
    return model, tmp_path / "model"


@pytest.fixture
def images(tiny_data):
    return sorted((tiny_data["root"] / "tiny").glob("train_*.png"))[:3]


def load(folder):
    return library.SparseEncoder(str(folder), device="cpu", **({"trust_remote_code": True} if SIX else {}))


def test_a_folder_is_a_sparse_encoder(folder):
    model, path = folder
    encoder = load(path)
    ours = model.encode_text(TEXTS)
    for encode in (encoder.encode, encoder.encode_query, encoder.encode_document):
        theirs = encode(TEXTS, batch_size=3, show_progress_bar=False)
        assert theirs.is_sparse
        torch.testing.assert_close(theirs.to_dense(), ours, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.similarity(ours, ours), ours @ ours.T, atol=1e-5, rtol=0)
    one = encoder.encode(TEXTS[0])
    assert one.shape == ours[0].shape
    assert [word for word, _ in encoder.decode(one, top_k=3)] == [word for word, _ in model.lexicon(ours[:1], 3)[0]]
    shared = encoder.intersection(encoder.encode(TEXTS[0]), encoder.encode(TEXTS[1])).to_dense()
    torch.testing.assert_close(shared, ours[0] * ours[1], atol=1e-5, rtol=0)


def test_the_heaviest_terms_alone(folder):
    model, path = folder
    cut = load(path).encode(TEXTS, max_active_dims=4, show_progress_bar=False).to_dense()
    top = model.encode_text(TEXTS).topk(4)
    assert ((cut > 0).sum(1) <= 4).all()
    torch.testing.assert_close(cut.gather(1, top.indices), top.values, atol=1e-5, rtol=0)


@pytest.mark.skipif(not SIX, reason="version 5 takes texts alone")
def test_images_by_path_and_opened(folder, images):
    model, path = folder
    encoder = load(path)
    ours = model.encode_image(images)
    for inputs in ([str(image) for image in images], [Image.open(image) for image in images]):
        theirs = encoder.encode(inputs, batch_size=2, show_progress_bar=False).to_dense()
        torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)
    with pytest.raises(ValueError):
        encoder.encode([TEXTS[0], Image.open(images[0])])


def test_without_a_word_of_the_folder_and_back_to_one(folder, tmp_path):
    """Folders of earlier versions have no modules.json; what the library saves is a model folder again."""
    from lexlip.integrations.sentence_transformers import sparse_encoder

    model, path = folder
    (path / "modules.json").unlink()
    encoder = sparse_encoder(path, device="cpu")
    assert encoder.similarity_fn_name == "dot" and encoder[0].get_sentence_embedding_dimension() == model.vocab_size
    encoder.save_pretrained(str(tmp_path / "saved"))
    ours = model.encode_text(TEXTS)
    torch.testing.assert_close(LexLIP.from_pretrained(tmp_path / "saved").encode_text(TEXTS), ours)
    torch.testing.assert_close(load(tmp_path / "saved").encode(TEXTS).to_dense(), ours, atol=1e-5, rtol=0)


def test_what_is_fetched_is_what_was_asked_for(folder, monkeypatch):
    from lexlip.integrations.sentence_transformers import LexLIPModule, sparse_encoder

    asked = []
    monkeypatch.setattr(LexLIP, "from_pretrained", lambda name, **options: asked.append((name, options)) or folder[0])
    options = {"revision": "v2", "token": "secret", "cache_folder": "far", "local_files_only": True}
    LexLIPModule.load("owner/name", trust_remote_code=True, **options)
    sparse_encoder("owner/name", device="cpu", **options)
    wanted = {"revision": "v2", "token": "secret", "cache_dir": "far", "local_files_only": True}
    assert asked == [("owner/name", wanted)] * 2


def test_nothing_else_than_texts_and_images(folder):
    from lexlip.integrations.sentence_transformers import LexLIPModule

    module = LexLIPModule(folder[0])
    for wrong in (3, torch.zeros(2), {"text": "a", "image": "b"}):
        with pytest.raises(ValueError, match="a text, a PIL image or the path of one"):
            module.preprocess([wrong])


@pytest.fixture
def splade(tiny_data, tmp_path):
    """A SPLADE of the library's own modules, with random weights."""
    from transformers import AutoTokenizer

    if SIX:
        from sentence_transformers.base.modules import Transformer
        from sentence_transformers.sparse_encoder.modules import SpladePooling

        first = lambda path: Transformer(path, transformer_task="fill-mask", max_seq_length=16)
    else:
        from sentence_transformers.sparse_encoder.models import MLMTransformer, SpladePooling

        first = lambda path: MLMTransformer(path, max_seq_length=16)
    torch.manual_seed(0)
    bert = BertForMaskedLM(BertConfig(
        vocab_size=tiny_data["words"], hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40, initializer_range=0.5,
    ))  # fmt: skip
    bert.save_pretrained(tmp_path / "bert")
    AutoTokenizer.from_pretrained(tiny_data["tokenizer"]).save_pretrained(tmp_path / "bert")

    def make(**pooling):
        modules = [first(str(tmp_path / "bert")), SpladePooling(**pooling)]
        encoder = library.SparseEncoder(modules=modules, device="cpu")
        encoder.save_pretrained(str(tmp_path / "splade"))
        return encoder, tmp_path / "splade"

    return make


@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_a_splade_becomes_text_tower_and_head(splade, tmp_path, capsys, activation):
    encoder, path = splade(pooling_strategy="max", activation_function=activation)
    out = str(tmp_path / "ours")
    words = ["import-sparse-encoder", str(path), out, "--vit", "vit_tiny_patch16_224", "--image-size", "32"]
    assert main(words) == 0
    assert "image tower vit_tiny_patch16_224 (random, its head to be trained)" in capsys.readouterr().out
    ours = LexLIP.from_pretrained(out)
    theirs = encoder.encode(TEXTS, show_progress_bar=False).to_dense()
    assert (theirs > 0).any()
    torch.testing.assert_close(ours.encode_text(TEXTS, normalize=False), theirs, atol=1e-5, rtol=0)
    assert ours.config.max_text_len == 16
    long = " ".join(TEXTS * 4)
    torch.testing.assert_close(
        ours.encode_text([long], normalize=False), encoder.encode([long]).to_dense(), atol=1e-5, rtol=0
    )
    assert json.loads((tmp_path / "ours" / "modules.json").read_text())[0]["type"].startswith("lexlip.")


def test_other_sparse_encoders_are_refused(splade, folder, tmp_path, capsys):
    _, path = splade(pooling_strategy="sum")
    assert main(["import-sparse-encoder", str(path), str(tmp_path / "ours")]) == 2
    assert "pools by sum" in capsys.readouterr().err
    assert main(["import-sparse-encoder", str(tmp_path / "none"), str(tmp_path / "ours")]) == 2
    assert "no such folder" in capsys.readouterr().err
