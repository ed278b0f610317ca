"""lexlip encode: what the shards hold, that a run goes on where it was stopped, and what is refused."""

import dataclasses
import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.encode.files import FolderImages, LineTexts
from lexlip.encode.run import encode, process_of
from lexlip.encode.tables import read_arrow, read_tsv
from lexlip.encode.vectors import CorpusEncoder
from lexlip.errors import EncodingError
from lexlip.index import Index, read_shards
from lexlip.train.build import build_model
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import Skipped
from lexlip_data.sources.table import TsvSource

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(tiny_data):
    return AutoTokenizer.from_pretrained(tiny_data["tokenizer"])


@pytest.fixture
def model(make_config, livelier, tiny_data, tokenizer):
    return livelier(build_model(LexLIP, make_config(vocab_size=tiny_data["words"]), tokenizer)).eval()


@pytest.fixture
def table(tiny_data):
    return tiny_data["root"] / "tiny" / "tiny_train.tsv"


@pytest.fixture
def lines(tmp_path, tiny_data):
    rng = np.random.default_rng(0)
    words = "red green blue dot ring cross box beside under".split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 12))) for _ in range(100)]
    (tmp_path / "lines.txt").write_text("\n".join(texts) + "\n")
    return tmp_path / "lines.txt", texts


def stored(folder):
    """Id -> (terms, weights) of all shards, in their order."""
    found = {}
    for rows in read_shards([folder]):
        for id, terms, weights in rows.documents():
            assert id not in found
            found[id] = terms, weights
    return found


def assert_holds(found, ids, vectors):
    """The stored rows are these (N, V) vectors, to float16's rounding and that of another batch."""
    assert list(found) == list(ids)
    for (terms, weights), vector in zip(found.values(), vectors):
        dense = torch.zeros_like(vector)
        dense[torch.from_numpy(terms.astype(np.int64))] = torch.from_numpy(weights.astype(np.float32))
        torch.testing.assert_close(dense, vector, rtol=1e-3, atol=1e-6)
        assert len(terms) > 1 and (weights > 0).all()


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.arrow"))}


def test_texts_are_what_encode_text_gives(model, lines, tmp_path):
    path, texts = lines
    done = encode(model, LineTexts(path), tmp_path / "out", batch_size=2, shard_documents=40)
    assert (done.documents, done.encoded, done.shards, done.skipped, done.complete) == (100, 100, 3, 0, True)
    assert_holds(stored(tmp_path / "out"), range(1, 101), model.encode_text(texts))
    with pa.ipc.open_file(tmp_path / "out" / "shard-00000.arrow") as reader:
        assert reader.num_record_batches == 2  # windows of 32
        assert reader.schema.names == ["id", "terms", "weights"]
        assert reader.schema.types == [pa.int64(), pa.list_(pa.uint16()), pa.list_(pa.float16())]


def test_images_are_what_encode_image_gives(model, table, tmp_path):
    images = [Image.open(table.parent / f"train_{number}.png") for number in range(8)]
    vectors = model.encode_image(images)
    for name, corpus, ids in (
        ("tsv", read_tsv(table), [f"train{number}" for number in range(8)]),
        ("folder", FolderImages(table.parent), None),
    ):
        encode(model, corpus, tmp_path / name, batch_size=3)
        found = stored(tmp_path / name)
        if ids is None:
            assert list(found) == sorted(path.name for path in table.parent.glob("*.png"))
            found = {id: row for id, row in found.items() if id.startswith("train")}
        assert_holds(found, ids or [f"train_{number}.png" for number in range(8)], vectors)


def test_decoding_in_other_processes_changes_nothing(model, table, tmp_path):
    for workers in (0, 2):
        encode(model, read_tsv(table), tmp_path / str(workers), batch_size=2, shard_documents=5, workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "2") != {}


def test_captions_have_ids_of_their_own(model, table, tmp_path):
    source = TsvSource("tiny", "train", table)
    encode(model, read_tsv(table, "texts"), tmp_path / "out", batch_size=4)
    ids = [f"train{number}#{caption}" for number in range(8) for caption in range(2)]
    texts = [text for image in range(8) for text in source.captions(image)]
    assert_holds(stored(tmp_path / "out"), ids, model.encode_text(texts))


@pytest.fixture
def repeating(table, tmp_path):
    """An Arrow file whose rows 0 and 2 are one image, with captions of their own."""
    data = [(table.parent / f"train_{number}.png").read_bytes() for number in range(2)]
    batch = pa.record_batch(
        {
            "image": pa.array([data[0], data[1], data[0]], pa.binary()),
            "caption": pa.array([["red dot", "green ring"], ["blue box"], ["a small cross"]]),
            "image_id": ["a", "b", "a"],
        }
    )
    with pa.ipc.new_file(tmp_path / "mine.arrow", batch.schema) as writer:
        writer.write_batch(batch)
    return tmp_path / "mine.arrow", data


def write_shard(path, source, images):
    """A tar shard of some images of a source, with their captions in .json."""
    with tarfile.open(path, "w") as tar:
        for i in images:
            caption = json.dumps({"caption": source.captions(i)}).encode()
            for ending, data in (("png", source.image_bytes(i)), ("json", caption)):
                member = tarfile.TarInfo(f"{source.image_id(i)}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def test_a_further_tar_shard_is_encoded_on_and_images_are_read_once(model, table, tmp_path, monkeypatch, capsys):
    from lexlip_data.sources import tar_members

    source = TsvSource("corpus", "encode", table)
    model.save_pretrained(tmp_path / "model")
    read = []
    of_locator = tar_members.read_member
    monkeypatch.setattr("lexlip_data.sources.tar_shards.read_member", lambda at: read.append(at) or of_locator(at))
    words = ["encode", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "v"), "--tar"]
    write_shard(tmp_path / "s-0.tar", source, range(5))
    assert main([*words, str(tmp_path / "s-*.tar")]) == 0 and len(read) == 5
    write_shard(tmp_path / "s-1.tar", source, range(5, 8))
    assert main([*words, str(tmp_path / "s-*.tar")]) == 0 and len(read) == 8
    assert "3 encoded now" in capsys.readouterr().out
    assert list(stored(tmp_path / "v")) == [source.image_id(i) for i in range(8)]


def test_what_a_tar_shard_lacks_is_told_by_encode_and_qrels(model, table, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    write_shard(tmp_path / "s.tar", TsvSource("corpus", "encode", table), range(5))
    with tarfile.open(tmp_path / "s.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("no_image.txt"))
    words = [
        "encode",
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "v"),
        "--tar",
        str(tmp_path / "s.tar"),
    ]
    for _ in range(2):  # the second finds all shards there
        assert main(words) == 0
        assert f", 1 rows or samples of the input left out: {tmp_path / 'v'}" in capsys.readouterr().out
    assert main(["qrels", "--tar", str(tmp_path / "s.tar"), "--out", str(tmp_path / "q")]) == 0
    told = capsys.readouterr().err
    assert told.startswith("1 rows or samples of the input are left out, such as ") and told.count("s.tar") == 1


def test_tar_shards_and_parquet_give_the_vectors_of_the_table(model, table, tmp_path):
    source = TsvSource("corpus", "encode", table)
    model.save_pretrained(tmp_path / "model")
    write_shard(tmp_path / "s-0.tar", source, range(len(source)))
    rows = [{"image": source.image_bytes(i), "key": source.image_id(i), "text": source.captions(i)} for i in range(8)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=3)
    inputs = {
        "tsv": ["--tsv", str(table)], "tar": ["--tar", str(tmp_path / "s-{0..0}.tar")],
        "parquet": ["--parquet", str(tmp_path / "p*.parquet"), "--caption", "text", "--id", "key"],
    }  # fmt: skip
    for what in ("images", "texts"):
        found = {}
        for name, options in inputs.items():
            out = tmp_path / f"{name}-{what}"
            assert (
                main(["encode", "--model", str(tmp_path / "model"), *options, "--what", what, "--out", str(out)]) == 0
            )
            found[name] = stored(out)
        assert len(found["tsv"]) == (8 if what == "images" else 16)
        for other in ("tar", "parquet"):
            assert list(found[other]) == list(found["tsv"])
            for (terms, weights), (terms_too, weights_too) in zip(found[other].values(), found["tsv"].values()):
                assert (terms == terms_too).all() and (weights == weights_too).all()


def test_rows_that_repeat_an_image(model, repeating, tmp_path):
    path, data = repeating
    encode(model, read_arrow([path]), tmp_path / "images")
    assert_holds(stored(tmp_path / "images"), ["a", "b"], model.encode_image([open_image(part) for part in data]))
    encode(model, read_arrow([path], "texts"), tmp_path / "texts")
    texts = ["red dot", "green ring", "blue box", "a small cross"]
    assert_holds(stored(tmp_path / "texts"), ["a#0", "a#1", "b#0", "a#2"], model.encode_text(texts))


def test_top_k_keeps_the_heaviest_as_they_were(model, lines, tmp_path):
    path, texts = lines
    encode(model, LineTexts(path), tmp_path / "all")
    encode(model, LineTexts(path), tmp_path / "cut", top_k=5)
    everything, cut = stored(tmp_path / "all"), stored(tmp_path / "cut")
    for id, (terms, weights) in cut.items():
        whole = dict(zip(*map(np.ndarray.tolist, everything[id])))
        assert len(terms) == 5 and {term: whole[term] for term in terms.tolist()} == dict(zip(terms.tolist(), weights))
        assert min(weights) >= sorted(whole.values())[-5]


def test_top_k_brings_vectors_to_length_one_again_where_the_model_was_trained_so(frozen, tmp_path):
    path = tmp_path / "lines.txt"
    path.write_text("a red box left\nthe small blue box on a large photo\n")
    model = LexLIP.from_pretrained(frozen.folder("contextual"))
    encode(model, LineTexts(path), tmp_path / "all")
    encode(model, LineTexts(path), tmp_path / "cut", top_k=2)
    everything, cut = stored(tmp_path / "all"), stored(tmp_path / "cut")
    for id, (terms, weights) in cut.items():
        whole = dict(zip(*map(np.ndarray.tolist, everything[id])))
        wanted = np.array([whole[term] for term in terms.tolist()])
        assert len(wanted) == 2 < len(whole)
        assert weights == pytest.approx(wanted / np.linalg.norm(wanted), rel=2e-3)
    facts = json.loads((tmp_path / "cut" / "encoding.json").read_text())
    assert facts["cut_to_length"] == 1 and "cut_to_length" not in (tmp_path / "all" / "encoding.json").read_text()


def test_many_words_have_wide_terms(make_config, livelier, tokenizer, lines, tmp_path):
    model = livelier(build_model(LexLIP, make_config(vocab_size=70_000), tokenizer))
    encode(model, LineTexts(lines[0]), tmp_path / "out", top_k=300)
    with pa.ipc.open_file(tmp_path / "out" / "shard-00000.arrow") as reader:
        assert reader.schema.field("terms").type == pa.list_(pa.uint32())
        assert max(max(row) for row in reader.get_batch(0).column("terms").to_pylist()) >= 1 << 16


def test_two_processes_are_one(model, lines, tmp_path):
    corpus = LineTexts(lines[0])
    one = encode(model, corpus, tmp_path / "one", shard_documents=15)
    parts = [encode(model, corpus, tmp_path / "two", shard_documents=15, process=(rank, 2)) for rank in (1, 0)]
    assert [part.complete for part in parts] == [False, True] and sum(part.encoded for part in parts) == one.encoded
    assert content(tmp_path / "one") == content(tmp_path / "two") and one.shards == 7


@pytest.mark.slow
def test_the_launcher_starts_several(model, lines, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    command = ["encode", "--model", "model", "--texts", str(lines[0]), "--shard-documents", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NPROC_PER_NODE": "2", "PYTHON": sys.executable}
    run = ["bash", str(ROOT / "scripts" / "launch.sh"), *command, "--out", "two"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)  # the shards tell where the model lies
    encode(model, LineTexts(lines[0]), tmp_path / "one", shard_documents=20, model_name="model")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_killed_run_goes_on(model, lines, tmp_path):
    """Killed in its second shard: what is there is refused by the index, kept, and completed to the same bytes."""
    corpus, out = LineTexts(lines[0]), tmp_path / "out"
    model.save_pretrained(tmp_path / "model")
    settings = {"batch_size": 2, "shard_documents": 40, "model_name": str(tmp_path / "model")}
    encode(model, corpus, tmp_path / "whole", **settings)
    kill = (
        "import os, signal, sys\n"
        "from lexlip.models.lexlip import LexLIP\n"
        "from lexlip.cli import main\n"
        "calls, real = [], LexLIP.encode_text\n"
        "def dying(self, texts):\n"
        "    calls.append(1)\n"
        "    return os.kill(os.getpid(), signal.SIGKILL) if len(calls) > 37 else real(self, texts)\n"
        "LexLIP.encode_text = dying\n"
        "main(sys.argv[1:])\n"
    )
    options = ["encode", "--model", str(tmp_path / "model"), "--texts", str(lines[0]), "--out", str(out)]
    options += ["--batch-size", "2", "--shard-documents", "40"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'datasets'}"}
    assert subprocess.run([sys.executable, "-c", kill, *options], env=environment).returncode == -9
    assert [path.name for path in out.glob("*.arrow")] == ["shard-00000.arrow"] and list(out.glob(".shard-00001*.tmp"))
    assert main(["index", "build", str(tmp_path / "index"), str(out)]) == 2
    before = (out / "shard-00000.arrow").stat().st_mtime_ns
    assert encode(model, corpus, out, **settings).encoded == 60
    assert (out / "shard-00000.arrow").stat().st_mtime_ns == before
    assert content(out) == content(tmp_path / "whole") and not list(out.glob(".shard*"))
    assert encode(model, corpus, out, **settings).encoded == 0


def test_from_the_command_line_to_an_answer(model, table, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    out, index = tmp_path / "out", tmp_path / "index"
    assert main(["encode", "--model", str(tmp_path / "model"), "--tsv", str(table), "--out", str(out)]) == 0
    assert capsys.readouterr().out == "8 images in 1 shards, 8 encoded now\n"
    assert main(["index", "build", str(index), str(out)]) == 0
    image = Image.open(table.parent / "train_3.png")
    assert Index.open(index, model=model).search(image, k=1)[0].id == "train3"


def test_a_part_of_a_run_is_no_corpus(model, lines, tmp_path, capsys):
    encode(model, LineTexts(lines[0]), tmp_path / "out", shard_documents=40)
    (tmp_path / "out" / "shard-00001.arrow").unlink()
    assert main(["index", "build", str(tmp_path / "index"), str(tmp_path / "out")]) == 2
    assert "holds 2 of the 3 shards" in capsys.readouterr().err
    assert sum(map(len, read_shards([tmp_path / "out" / "shard-00002.arrow"]))) == 20  # named by itself it is wanted


def test_another_run_in_the_same_folder_is_refused(model, livelier, lines, tmp_path):
    path, texts = lines
    out = tmp_path / "out"
    encode(model, LineTexts(path), out)
    for change, name in (({"top_k": 3}, "top k None, not 3"), ({"batch_size": 7}, "batch size 64, not 7"),
                         ({"shard_documents": 7}, "shard documents 8192, not 7")):  # fmt: skip
        with pytest.raises(EncodingError, match=name):
            encode(model, LineTexts(path), out, **change)
    path.write_text("\n".join([*texts[:-1], "another ring"]) + "\n")
    with pytest.raises(EncodingError, match="begun with corpus"):
        encode(model, LineTexts(path), out)
    path.write_text("\n".join(texts) + "\n")
    with pytest.raises(EncodingError, match="begun with model"):
        encode(livelier(model, seed=1), LineTexts(path), out)
    (out / "encoding.json").unlink()
    with pytest.raises(EncodingError, match="Arrow files of something else"):
        encode(model, LineTexts(path), out)


def broken_folder(folder, good, bad):
    folder.mkdir()
    for number in range(good):
        Image.new("RGB", (33, 32), (number % 256, 7, 9)).save(folder / f"good{number:03}.png")
    for number in range(bad):
        (folder / f"bad{number:03}.jpg").write_bytes(b"no picture")
    return FolderImages(folder)


def test_a_broken_image_is_left_out_and_listed(model, tmp_path):
    done = encode(model, broken_folder(tmp_path / "in", 20, 3), tmp_path / "out", shard_documents=9, batch_size=2)
    assert done.skipped == 3 and len(stored(tmp_path / "out")) == 20
    lines = (tmp_path / "out" / "skipped_samples.tsv").read_text().splitlines()
    assert lines[0] == "image_id\tfilepath\tkind\treason"
    assert [line.split("\t")[0] for line in lines[1:]] == ["bad000.jpg", "bad001.jpg", "bad002.jpg"]
    assert all("no image" in line for line in lines[1:])


def test_too_many_broken_images_end_the_run(model, tmp_path):
    """More than 1%, counted over all shards and processes."""
    corpus, out = broken_folder(tmp_path / "in", 22, 11), tmp_path / "out"  # bad ones come first
    encode(model, corpus, out, shard_documents=10, batch_size=5, process=(0, 4))
    with pytest.raises(EncodingError, match="11 of 33 documents cannot be used, more than the 10 .* bad000.jpg"):
        encode(model, corpus, out, shard_documents=10, batch_size=5, process=(1, 4))
    assert not (out / "shard-00001.arrow").exists()


def test_lines_that_are_no_texts(model, tmp_path):
    texts = ["red dot", "", "   ", "green ring", "x" * 10_001, "y" * 300_000, "blue box"]
    (tmp_path / "in.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(texts).encode() + b"\n\xff\xfe\nlast cross")
    corpus = LineTexts(tmp_path / "in.txt")
    assert len(corpus) == 9
    found = list(corpus.read(0, 9))
    assert [item for item in found if not isinstance(item, Skipped)] == [
        (1, "red dot"), (4, "green ring"), (7, "blue box"), (9, "last cross"),
    ]  # fmt: skip
    reasons = {item.image_id: item.reason for item in found if isinstance(item, Skipped)}
    assert list(reasons) == ["2", "3", "5", "6", "8"] and "UTF-8" in reasons["8"] and "10,000" in reasons["6"]


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("block", [7, 1 << 20])
def test_any_part_of_a_text_file(tmp_path, monkeypatch, count, block):
    monkeypatch.setattr("lexlip.encode.files._BLOCK", block)
    (tmp_path / "in.txt").write_text("".join(f"line {number}\n" for number in range(1, count + 1)))
    corpus = LineTexts(tmp_path / "in.txt")
    assert len(corpus) == count
    wanted = [(number, f"line {number}") for number in range(1, count + 1)]
    assert list(corpus.read(0, count)) == wanted
    for start in (count // 2, max(0, count - 3), count - 1):
        assert list(corpus.read(start, min(count, start + 40))) == wanted[start : start + 40]


def test_refusals(model, lines, table, tmp_path, capsys, monkeypatch):
    out = tmp_path / "out"
    for options, message in (({"top_k": 0}, "top_k=0"), ({"batch_size": 0}, "batch_size=0"),
                             ({"shard_documents": -1}, "shard_documents=-1")):  # fmt: skip
        with pytest.raises(EncodingError, match=message):
            encode(model, LineTexts(lines[0]), out, **options)
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(EncodingError, match="no texts to encode"):
        encode(model, LineTexts(tmp_path / "empty.txt"), out)
    model.tokenizer = None
    with pytest.raises(EncodingError, match="no tokenizer"):
        encode(model, LineTexts(lines[0]), out)
    assert not out.exists()
    for environment in ({"RANK": "1"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with pytest.raises(EncodingError, match="RANK="):
            process_of(environment)
    assert process_of({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2)
    for source in (["--texts", "absent.txt"], ["--images", "absent"], ["--tsv", "absent.tsv"], ["--arrow", "a.arrow"]):
        assert main(["encode", "--model", str(tmp_path), *source, "--out", str(out)]) == 2
        assert source[1] in capsys.readouterr().err


def test_weights_that_are_no_numbers_name_the_document(model, lines, tmp_path):
    with torch.no_grad():
        model.text_head.decoder.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="id 1 holds nan"):
        encode(model, LineTexts(lines[0]), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.arrow")) and not list((tmp_path / "out").glob(".shard*"))


def test_no_more_than_a_window_is_read_ahead(model, tmp_path, monkeypatch):
    """Memory does not grow with the corpus: lines are read a window at a time, and written before the next."""
    read = []
    real = LineTexts.read
    monkeypatch.setattr(
        LineTexts, "read", lambda self, start, stop: read.append((start, stop)) or real(self, start, stop)
    )
    (tmp_path / "in.txt").write_text("red dot\n" * 150)
    encoder = CorpusEncoder(model, None, 4, 0)
    windows = encoder.windows(LineTexts(tmp_path / "in.txt"), iter([(0, 64), (64, 128), (128, 150)]))
    for number in range(3):
        assert len(read) == number and len(next(windows)[0]) == (64, 64, 22)[number]


def folder_of(path, names):
    path.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", (33, 32), (40 * number % 256, 7, 9)).save(path / name, "PNG")
    return path


def test_a_folder_that_grew_is_encoded_on(model, tmp_path, caplog):
    """Only what is new; what is there stays as it is, byte for byte; an index takes all of it."""
    folder, out = folder_of(tmp_path / "in", ["b.png", "d.png", "f.png"]), tmp_path / "out"
    encode(model, FolderImages(folder), out, shard_documents=2)
    before = content(out)
    folder_of(folder, ["a.png", "c.png", "e.png"])
    done = encode(model, FolderImages(folder), out, shard_documents=2)
    assert (done.documents, done.encoded, done.shards, done.skipped) == (6, 3, 4, 0)
    after = content(out)
    assert {name: after[name] for name in before} == before and len(after) == 4
    assert list(stored(out)) == ["b.png", "d.png", "f.png", "a.png", "c.png", "e.png"] and not caplog.messages
    (folder / "d.png").unlink()
    os.utime(folder / "f.png", (2e9, 2e9))
    done = encode(model, FolderImages(folder), out, shard_documents=2)
    assert (done.documents, done.encoded) == (5, 0) and content(out) == after
    assert "1 images were changed after they were encoded (e.g. f.png)" in caplog.text
    assert "1 images that were encoded are gone" in caplog.text and "(e.g. d.png)" in caplog.text


def test_broken_images_are_removed_as_advised(model, tmp_path):
    """Before the first shard is finished, and after."""
    for shard_documents, bad in ((100, "a"), (2, "z")):
        folder, out = folder_of(tmp_path / bad, ["m.png", "n.png", "o.png"]), tmp_path / f"out_{bad}"
        for number in range(5):
            (folder / f"{bad}{number}.jpg").write_bytes(b"no image")
        with pytest.raises(EncodingError, match="repair or remove them, then run it again"):
            encode(model, FolderImages(folder), out, shard_documents=shard_documents)
        for path in folder.glob("*.jpg"):
            path.unlink()
        folder_of(folder, ["p.png"])
        done = encode(model, FolderImages(folder), out, shard_documents=shard_documents)
        assert sorted(stored(out)) == ["m.png", "n.png", "o.png", "p.png"]
        assert (done.documents, done.skipped) == (4, 0) and not list(out.glob("*names.gz"))


def test_two_commands_that_see_other_folders_do_not_mix(model, tmp_path, monkeypatch):
    folder, out = folder_of(tmp_path / "in", ["a.png"]), tmp_path / "out"
    corpus, real = FolderImages(folder), CorpusEncoder.windows

    def meanwhile(self, *arguments):
        monkeypatch.setattr(CorpusEncoder, "windows", real)
        folder_of(folder, ["b.png"])
        encode(model, FolderImages(folder), out)
        return real(self, *arguments)

    monkeypatch.setattr(CorpusEncoder, "windows", meanwhile)
    with pytest.raises(EncodingError, match="begun anew by another command"):
        encode(model, corpus, out)
    assert list(stored(out)) == ["a.png", "b.png"]


def test_images_elsewhere(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    folder_of(tmp_path / "store", ["a.png", "b.png"])
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "t.tsv").write_text("title\tfilepath\nred\t../store/a.png\n")
    (tmp_path / "lists" / "u.tsv").write_text("title\tfilepath\nred\ta.png\n")
    (tmp_path / "farm").mkdir()
    os.symlink("../store/a.png", tmp_path / "farm" / "a.png")
    begin, store = ["encode", "--model", str(tmp_path / "model")], str(tmp_path / "store")
    for number, (source, allow) in enumerate([
        (["--tsv", "lists/t.tsv"], ["--picture-roots", store]), (["--images", "farm"], ["--picture-roots", store]),
        (["--tsv", "lists/u.tsv"], ["--images", store]),
    ]):  # fmt: skip
        words = [*begin, source[0], str(tmp_path / source[1]), "--out", str(tmp_path / f"out{number}")]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert allow[0] in error or "no such file" in error.lower()
        assert main([*words, *allow]) == 0
        assert capsys.readouterr().out == "1 images in 1 shards, 1 encoded now\n"


def test_one_corpus_at_a_time(tmp_path, capsys):
    for words, message in (([], "no corpus"), (["--images", "a", "--texts", "b"], "--texts and --images"),
                           (["--tsv", "a", "--arrow", "b"], "--arrow and --tsv"),
                           (["--texts", "a", "--picture-roots", "b"], "--texts reads no image")):  # fmt: skip
        assert main(["encode", "--model", "m", "--out", str(tmp_path), *words]) == 2
        assert message in capsys.readouterr().err


def test_texts_of_another_kind(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"\x1f\x8b\x08" + bytes(20))
    with pytest.raises(ValueError, match="t.txt: a gzip file, not a text file .*unpack"):
        LineTexts(tmp_path / "t.txt")
    (tmp_path / "t.txt").write_text('{"a": 1}\nORC stands for\n')
    assert len(LineTexts(tmp_path / "t.txt")) == 2


def test_texts_that_the_tokenizer_does_not_know(model, tmp_path, caplog):
    (tmp_path / "t.txt").write_text("猫 狗\n你好\n")
    encode(model, LineTexts(tmp_path / "t.txt"), tmp_path / "out")
    assert "t.txt: 100% of the captions' tokens are unknown" in caplog.text


def test_folders_from_before_there_were_activations_go_on(model, monkeypatch):
    from lexlip.encode import run
    from lexlip.models.frozen.config import FrozenConfig

    plain, values = run.fingerprint(model), dataclasses.asdict(model.config)
    model.config.activation = "log1p_twice"
    assert run.fingerprint(model) != plain
    del values["activation"]
    assert run.LATER["separate_tables"] is FrozenConfig.separate_tables  # the other one, of heads on frozen towers
    monkeypatch.setattr(run.dataclasses, "asdict", lambda config: values)
    assert run.fingerprint(model) == plain


def test_shards_tell_the_model_and_the_source(model, lines, tmp_path):
    from lexlip.index import IndexingError, add, build
    from lexlip.models.fingerprint import fingerprint

    path, texts = lines
    encode(model, LineTexts(path), tmp_path / "v", model_name="mine")
    encode(model, LineTexts(path), tmp_path / "w", model_name="mine", id_prefix="old/")
    build(tmp_path / "i", read_shards([tmp_path / "w"]))
    index = Index.open(tmp_path / "i", model)
    assert index.manifest.model.fingerprint == fingerprint(model) and index.manifest.model.name == "mine"
    (source,) = index.manifest.sources
    assert (source.root, source.what, source.id_prefix) == (str(path), "texts", "old/")
    assert index.search(texts[3], 1)[0].id.startswith("old/")
    with pytest.raises(IndexingError, match="ids are int, those before were string"):
        add(tmp_path / "i", read_shards([tmp_path / "v"]))
    assert add(tmp_path / "i", read_shards([tmp_path / "v"], id_prefix="old/")).replaced == len(texts)
    with pytest.raises(EncodingError, match="begun with id prefix old/"):
        encode(model, LineTexts(path), tmp_path / "w")
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    with pytest.raises(IndexingError, match="its vectors were made by mine"):
        Index.open(tmp_path / "i", model)


def test_lines_that_grew_are_encoded_on(model, lines, tmp_path, caplog):
    """Only the new ones; what is there stays, byte for byte. A last line without its end is one all the same."""
    (path, texts), out = lines, tmp_path / "out"
    path.write_text("\n".join(texts[:20]))
    encode(model, LineTexts(path), out, shard_documents=8)
    before = content(out)
    for count, encoded, shards in ((25, 5, 4), (25, 0, 4), (26, 1, 5)):
        path.write_text("\n".join(texts[:count]) + "\n")
        done = encode(model, LineTexts(path), out, shard_documents=8)
        assert (done.documents, done.encoded, done.shards, done.skipped) == (count, encoded, shards, 0)
    after = content(out)
    assert {name: after[name] for name in before} == before and list(stored(out)) == list(range(1, 27))
    assert_holds(stored(out), range(1, 27), model.encode_text(texts[:26]))
    assert not caplog.messages
    path.write_text("\n".join([*texts[:7], "another ring", *texts[8:27]]) + "\n")
    assert encode(model, LineTexts(path), out, shard_documents=8).encoded == 1
    assert f"1 texts of {path} were changed after they were encoded (e.g. 8); they are not encoded anew" in caplog.text
    path.write_text("\n".join(reversed(texts[:28])) + "\n")  # another file
    with pytest.raises(EncodingError, match="begun with documents 20, not 28"):
        encode(model, LineTexts(path), out, shard_documents=8)


@pytest.mark.parametrize("what", ["images", "texts"])
def test_a_table_that_grew_is_encoded_on(model, tmp_path, caplog, what):
    out, table = tmp_path / "out", folder_of(tmp_path / "in", [f"{n}.png" for n in range(6)]) / "t"

    def write(*rows: tuple[int, str]) -> None:
        table.write_text("title\tfilepath\timage_id\n" + "".join(f"{text}\t{n}.png\tid{n}\n" for n, text in rows))

    rows = [(n, f"a box {n}") for n in range(6)]
    write(*rows[:3])
    encode(model, read_tsv(table, what), out)
    before = content(out)
    write(*rows[:5])
    done = encode(model, read_tsv(table, what), out)
    assert (done.documents, done.encoded, done.skipped) == (5, 2, 0)
    after = content(out)
    assert {name: after[name] for name in before} == before and "changed" not in caplog.text
    assert [str(id).split("#")[0] for id in stored(out)] == [f"id{n}" for n in range(5)]
    write((0, "a ring"), *rows[1:])  # of images, a caption does not matter
    assert encode(model, read_tsv(table, what), out).encoded == 1
    assert ("1 texts" in caplog.text and "(e.g. id0#0)" in caplog.text) == (what == "texts")
    caplog.clear()
    table.write_text(table.read_text().replace("1.png", "2.png"))
    encode(model, read_tsv(table, what), out)
    assert ("1 images" in caplog.text and "(e.g. id1)" in caplog.text) == (what == "images")
    write(rows[1], rows[0], *rows[2:], (5, "more"))  # not at its end
    with pytest.raises(EncodingError, match="begun with"):
        encode(model, read_tsv(table, what), out)


def test_a_changed_caption_is_told_where_nothing_is_new(model, tmp_path, caplog):
    folder_of(tmp_path, ["0.png"])
    table = tmp_path / "t"
    table.write_text("title\tfilepath\na box\t0.png\n")
    encode(model, read_tsv(table, "texts"), tmp_path / "out")
    table.write_text("title\tfilepath\na ring\t0.png\n")
    encode(model, read_tsv(table, "texts"), tmp_path / "out")
    assert "1 texts" in caplog.text and "were changed after they were encoded" in caplog.text


def test_arrow_files_that_grew_are_encoded_on(model, tmp_path):
    """By another file at the end."""
    image = io.BytesIO()
    Image.new("RGB", (32, 32)).save(image, "PNG")
    files = []
    for n in range(2):
        table = pa.table({"image": [image.getvalue()], "caption": [["a box"]], "image_id": [f"id{n}"]})
        files.append(tmp_path / f"{n}.arrow")
        with pa.ipc.new_file(str(files[-1]), table.schema) as writer:
            writer.write_table(table)
    encode(model, read_arrow(files[:1]), tmp_path / "out")
    assert encode(model, read_arrow(files), tmp_path / "out").encoded == 1
    assert list(stored(tmp_path / "out")) == ["id0", "id1"]


@pytest.mark.parametrize("content", ["[" * 100_000, '{"documents": 1, "run": 5}', "\0"])
def test_facts_that_cannot_be_read(model, lines, tmp_path, content):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "encoding.json").write_text(content)
    with pytest.raises(EncodingError, match=r"out/encoding\.json cannot be read .*name a new folder with --out"):
        encode(model, LineTexts(lines[0]), tmp_path / "out")


def test_marks_and_names_that_cannot_be_read(model, lines, tmp_path):
    """Also a list of names that would unpack out of proportion."""
    path, texts = lines
    path.write_text("\n".join(texts[:10]) + "\n")
    encode(model, LineTexts(path), tmp_path / "out")
    np.save(tmp_path / "out" / "encoding-rows.npy", np.zeros((3, 2), np.uint32))
    path.write_text("\n".join(texts[:12]) + "\n")
    with pytest.raises(EncodingError, match=r"encoding-rows\.npy cannot be read \(uint32 of shape"):
        encode(model, LineTexts(path), tmp_path / "out")
    folder = folder_of(tmp_path / "in", ["a.png", "b.png"])
    encode(model, FolderImages(folder), tmp_path / "images", shard_documents=1)
    (tmp_path / "images" / "shard-00001.arrow").unlink()
    (tmp_path / "images" / "encoding-names.gz").write_bytes(gzip.compress(bytes(100 << 20)))
    folder_of(folder, ["c.png"])
    with pytest.raises(EncodingError, match="cut short, or out of proportion"):
        encode(model, FolderImages(folder), tmp_path / "images", shard_documents=1)
