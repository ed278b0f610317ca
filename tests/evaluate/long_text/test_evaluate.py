"""Recall of the miniatures: worked by hand with an encoder that sees colours, and by plain loops with real models."""

import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoTokenizer

from lexlip import DenseLIP, LexLIP
from lexlip.cli import main
from lexlip.evaluate.long_text import encoders
from lexlip.evaluate.long_text.evaluate import evaluate
from lexlip.evaluate.long_text.layouts import read_dci, read_iiw, read_share4v, read_urban1k
from lexlip.train.build import build_model
from lexlip_data.loading.transforms import build_transform

WORDS = {"red": [1.0, 0, 0], "green": [0, 1.0, 0], "blue": [0, 0, 1.0], "yellow": [0.7, 0.7, 0.1]}


class ColourEncoder:
    """An image's mean colour against the colour that a text names; the "model" reads 4 words."""

    name, context = "colours", 4
    transform = staticmethod(build_transform("vit", 8))

    def images(self, pixels):
        return F.normalize((pixels.mean((2, 3)) + 1) / 2, dim=-1)

    def texts(self, texts):
        found = [next(WORDS[word] for word in WORDS if word in text) for text in texts]
        return F.normalize(torch.tensor(found), dim=-1), sum(len(text.split()) > self.context for text in texts)


def numbers(row):
    return [[row[side][f"R@{k}"] for k in (1, 5, 10)] for side in ("i2t", "t2i")]


def test_dci_by_hand(dci):
    """Texts red, blue, blue of images red, green, blue. Text 2 finds blue, not green; image green finds all texts
    at score 0, so the two wrong ones count; image blue finds texts 2 and 3 equal, and a wrong equal one counts."""
    row = evaluate(read_dci(dci), ColourEncoder(), batch_size=2)
    third = 100 / 3
    assert numbers(row)[0] == pytest.approx([third, 100, 100], abs=1e-3)
    assert numbers(row)[1] == pytest.approx([2 * third, 100, 100], abs=1e-3)
    assert (row["pairs"], row["missing"], row["truncated"]) == (3, 0, 0)


def test_texts_of_one_length_are_encoded_together(dci):
    """So batches hold little padding; the numbers are those of any order."""
    pairs, given = read_dci(dci), []
    pairs.texts = ["red " * 3, "blue", "blue " * 2]

    class Watched(ColourEncoder):
        def texts(self, texts):
            given.append([len(text) for text in texts])
            return super().texts(texts)

    row = evaluate(pairs, Watched(), batch_size=2)
    assert given == [[4, 10], [12]] and row == evaluate(pairs, ColourEncoder(), batch_size=1)
    assert numbers(row)[1] == pytest.approx([200 / 3, 100, 100], abs=1e-3)


def test_iiw_by_hand(iiw):
    """Two reds: each finds the other's half as near as its own, so neither is first; the other three are."""
    row = evaluate(read_iiw(iiw), ColourEncoder())
    assert numbers(row) == [[60, 100, 100], [60, 100, 100]] and row["pairs"] == 5


def test_share4v_by_hand(share4v):
    """Texts red, green, green, yellow of red, green, blue, yellow. Text 3 ranks green, yellow, blue: third. Image
    green is equal between texts 2 and 3; image blue is nearest to yellow's text."""
    row = evaluate(read_share4v(*share4v, 4), ColourEncoder(), workers=0)
    assert numbers(row) == [[50, 100, 100], [75, 100, 100]]


def test_urban1k_by_hand(urban1k):
    row = evaluate(read_urban1k(urban1k), ColourEncoder())
    assert numbers(row) == [[100, 100, 100], [100, 100, 100]]
    row = evaluate(read_urban1k(urban1k), type("Short", (ColourEncoder,), {"context": 3})())
    assert row["truncated"] == 3  # "A red street. Cars" has four words


@pytest.fixture
def colours(monkeypatch):
    monkeypatch.setattr(encoders, "load_encoder", lambda *_: ColourEncoder())


def test_the_command_evaluates_all_sets_and_writes_the_numbers(colours, dci, iiw, share4v, urban1k, tmp_path, capsys):
    words = ["eval-long-text", "--model", "colours", "--dci", str(dci), "--iiw", str(iiw), "--urban1k", str(urban1k)]
    words += ["--share4v", str(share4v[0]), "--share4v-anno", str(share4v[1]), "--share4v-val-num", "2,4"]
    assert main([*words, "--metrics-file", str(tmp_path / "m.json")]) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert list(found["sets"]) == ["DCI", "IIW", "SV-2", "SV-4", "Urban1k"]
    assert numbers(found["sets"]["SV-4"]) == [[50, 100, 100], [75, 100, 100]]
    assert numbers(found["sets"]["SV-2"]) == [[100, 100, 100], [100, 100, 100]]
    printed = capsys.readouterr().out
    assert "SV-4           50.00  100.00  100.00   75.00  100.00  100.00       4       0        0" in printed


def test_lotlips_own_command_line_is_read(dci, iiw, share4v, monkeypatch, tmp_path, capsys):
    """As in its README, with the folder of its code as the current one."""
    asked = []
    monkeypatch.setattr(encoders, "load_encoder", lambda *given: asked.append(given[:2]) or ColourEncoder())
    notes = tmp_path / "code" / "dataloaders" / "imageinwords"
    notes.mkdir(parents=True)
    for file in sorted(iiw.glob("*/data.jsonl")):
        file.parent.rename(notes / file.parent.name)
    monkeypatch.chdir(tmp_path / "code")
    words = ["--share4v-retrieval", str(share4v[0]), "--share4v-anno", str(share4v[1]), "--share4v_val_num", "2,4"]
    words += ["--dci-retrieval", str(dci), "--iiw-retrieval", str(iiw)]
    words += ["--metrics-file", str(tmp_path / "m.json")]
    assert main(["eval-long-text", *words, "--model", "ViT-B-16", "--pretrained", "openai"]) == 0
    assert asked == [("open_clip:ViT-B-16", "openai")]
    assert list(json.loads((tmp_path / "m.json").read_text())["sets"]) == ["DCI", "IIW", "SV-2", "SV-4"]
    assert "annotations of IIW from dataloaders/imageinwords" in capsys.readouterr().out
    own = ["--cache-dir", "towers", "--model", "lotlip_bert-ViT-B-16", "--pretrained", "there/model.pt"]
    assert main(["eval-long-text", *words, *own]) == 2
    assert "lexlip import-lotlip there/model.pt FOLDER" in capsys.readouterr().err
    assert main(["eval-long-text", *words, "--model", "FOLDER", "--cache-dir", "towers"]) == 2
    assert "--cache-dir towers: no towers are read from there" in capsys.readouterr().err


def test_missing_ones_are_an_error_that_lists_them_or_counted(colours, dci, urban1k, capsys, tmp_path):
    photo = dci / "densely_captioned_images" / "photos" / "a.png"
    photo.unlink()
    (urban1k / "caption" / "2.txt").unlink()
    words = ["eval-long-text", "--model", "colours", "--dci", str(dci), "--urban1k", str(urban1k)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "2 images or entries are missing" in error and str(photo) in error and "2.txt" in error
    assert main([*words, "--allow-missing", "--metrics-file", str(tmp_path / "m.json")]) == 0
    sets = json.loads((tmp_path / "m.json").read_text())["sets"]
    assert [(row["pairs"], row["missing"]) for row in sets.values()] == [(2, 1), (2, 1)]


def test_an_image_that_cannot_be_decoded_is_missing_too(colours, urban1k, capsys, tmp_path):
    (urban1k / "image" / "10.jpg").write_bytes(b"no picture")
    words = ["eval-long-text", "--model", "colours", "--urban1k", str(urban1k)]
    assert main(words) == 2
    assert f"{urban1k / 'image' / '10.jpg'}: cannot be decoded" in capsys.readouterr().err
    assert main([*words, "--allow-missing", "--metrics-file", str(tmp_path / "m.json")]) == 0
    row = json.loads((tmp_path / "m.json").read_text())["sets"]["Urban1k"]
    assert (row["pairs"], row["missing"]) == (2, 1)


@pytest.fixture
def by_loops(brute_ranks):
    """Recall of texts and images in pairs, as `numbers` has it."""

    def recalls(texts, images):
        pairs = range(len(texts))
        sides = brute_ranks(images, pairs, texts, pairs), brute_ranks(texts, pairs, images, pairs)
        return [[round(100 * sum(rank <= k for rank in ranks) / len(ranks), 4) for k in (1, 5, 10)] for ranks in sides]

    return recalls


@pytest.mark.parametrize("head", [LexLIP, DenseLIP])
def test_model_folders_of_both_heads(make_config, livelier, tiny_data, urban1k, share4v, by_loops, tmp_path, head):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    words = tiny_data["words"]
    config = make_config(head=head.head, vocab_size=words, max_text_len=10, corner_tokens=2, sentence_sep=True)
    model = livelier(build_model(head, config, tokenizer)).eval()
    model.save_pretrained(tmp_path / "m")
    words = ["eval-long-text", "--model", str(tmp_path / "m"), "--share4v", str(share4v[0])]
    words += ["--share4v-anno", str(share4v[1]), "--share4v-val-num", "4", "--batch-size", "3"]
    assert main([*words, "--device", "cpu", "--metrics-file", str(tmp_path / "m.json")]) == 0
    row = json.loads((tmp_path / "m.json").read_text())["sets"]["SV-4"]
    pairs = read_share4v(*share4v, 4)
    images = model.encode_image([Image.open(path) for path in pairs.images])
    texts = torch.cat([model.encode_text([text]) for text in pairs.texts])
    assert numbers(row) == by_loops(texts, images)
    assert row["truncated"] == 0

    encoder = encoders.FolderEncoder(str(tmp_path / "m"), "cpu")
    texts = ["red", "red dot. red dot red", "red dot. red dot red dot"]  # 3, 8 and 9 of 8 tokens beside two corners
    assert encoder.texts(texts)[1] == 1


def test_a_tiny_random_open_clip_model(dci, iiw, share4v, urban1k, by_loops, tmp_path, capsys):
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
    text = {"context_length": 9, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    (tmp_path / "lexlip_tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "lexlip_tiny.json")
    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("lexlip_tiny")
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    model.eval()

    words = ["eval-long-text", "--model", "open_clip:lexlip_tiny", "--device", "cpu"]
    words += ["--dci", str(dci), "--iiw", str(iiw), "--urban1k", str(urban1k)]
    words += ["--share4v", str(share4v[0]), "--share4v-anno", str(share4v[1]), "--share4v-val-num", "4"]
    weights = ["--pretrained", str(tmp_path / "tiny.pt")]
    assert main([*words, *weights, "--metrics-file", str(tmp_path / "m.json")]) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    assert found["context"] == 9
    tokenizer = open_clip.get_tokenizer("lexlip_tiny")
    assert list(found["sets"]) == ["DCI", "IIW", "SV-4", "Urban1k"]
    for pairs in (read_dci(dci), read_iiw(iiw), read_share4v(*share4v, 4), read_urban1k(urban1k)):
        with torch.no_grad():
            images = model.encode_image(torch.stack([transform(Image.open(path)) for path in pairs.images]))
            texts = model.encode_text(tokenizer(pairs.texts))
        row = found["sets"][pairs.name]
        assert numbers(row) == by_loops(F.normalize(texts, dim=-1), F.normalize(images, dim=-1)), pairs.name
        assert row["truncated"] == 0
    encoder = encoders.OpenClipEncoder("lexlip_tiny", str(tmp_path / "tiny.pt"), "cpu")
    long = " ".join(["red"] * 7)  # nine tokens with the marks of start and end
    assert encoder.texts([long, long + " red"])[1] == 1

    capsys.readouterr()
    assert main(words) == 2 and "name its weights" in capsys.readouterr().err
    assert main([*words, "--pretrained", "nowhere"]) == 2 and "nowhere" in capsys.readouterr().err
    unknown = [word.replace("lexlip_tiny", "no_such_model") for word in words]
    assert main([*unknown, *weights]) == 2 and "no_such_model" in capsys.readouterr().err


@pytest.mark.parametrize(("end", "padding"), [(9, 0), (1, 1), (None, 0)], ids=["clip", "siglip", "no_end"])
def test_texts_that_open_clip_cuts_are_counted_whatever_ends_them(end, padding):
    """SigLIP's mark of the end is its padding token, other tokenizers have none."""

    def tokenizer(texts, context_length=4):
        rows = torch.full((len(texts), context_length), padding)
        for row, text in zip(rows, texts, strict=True):
            room = context_length - (end is not None)
            ids = [int(word) for word in text.split()][:room] + ([] if end is None else [end])
            row[: len(ids)] = torch.tensor(ids)
        return rows

    encoder = object.__new__(encoders.OpenClipEncoder)
    encoder.tokenizer, encoder.context, encoder.padding, encoder.device = tokenizer, 4, padding, "cpu"
    encoder.model = type("Model", (), {"encode_text": staticmethod(lambda ids: ids.float())})
    texts = ["2", "2 3 4", "2 3 4 5", "2 3 4 5 6", "2 3 4 5 6 7 8"]
    assert encoder.texts(texts)[1] == (2 if end is None else 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "no set was named"), (["--share4v", "x"], "--share4v-anno"), (["--iiw-anno", "x"], "--iiw,"),
        (["--pretrained", "openai"], "belongs to open_clip"), (["--workers", "-1"], "--workers -1: 0 or more"),
        (["--device", "abacus"], "--device abacus cannot be used"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_told(words, told, urban1k, capsys):
    more = ["--urban1k", str(urban1k)] if words[:1] in (["--pretrained"], ["--device"]) else []
    assert main(["eval-long-text", "--model", "m", *words, *more]) == 2
    assert told in capsys.readouterr().err


def test_open_ai_weights_are_read_with_their_own_activation():
    open_clip = pytest.importorskip("open_clip")
    known = encoders._quick_gelu
    assert known(open_clip, "ViT-B-16", "openai") and known(open_clip, "ViT-B/16", "openai")
    assert not known(open_clip, "ViT-B-16", "laion2b_s34b_b88k")
    assert not known(open_clip, "ViT-B-16", "weights.pt") and not known(open_clip, "hf-hub:a/b", None)
