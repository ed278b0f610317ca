"""The large-scale benchmark with a model: what the vectors are, and the rows it writes."""

import csv
import gzip
import json
import zipfile

import numpy as np
import pytest
from transformers import AutoTokenizer

from lexlip import DenseLIP, LexLIP
from lexlip.index import SparseRows, write_shard
from lexlip.index.adapters import installed
from lexlip.train.build import build_model
from lexlip_data.sources.images import open_image


@pytest.fixture
def inputs(make_config, livelier, tiny_data, tmp_path):
    """A model folder, a data folder with 4 val and 8 train images, and files of other captions and phrases."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    model = livelier(build_model(LexLIP, make_config(vocab_size=tiny_data["words"]), tokenizer))
    model.save_pretrained(tmp_path / "model")
    config = make_config(vocab_size=tiny_data["words"], embed_dim=6)
    livelier(build_model(DenseLIP, config, tokenizer)).save_pretrained(tmp_path / "dense")
    with gzip.open(tmp_path / "captions.tsv.gz", "wt", newline="") as file:
        rows = csv.writer(file, delimiter="\t")
        rows.writerow(["title", "image", "split"])
        rows.writerow(["a caption of a photo that is known", "val.jpg", "train"])  # as val_0.png is
        rows.writerows([f"the red dot number {number}", f"77{number}.jpg", "train"] for number in range(6))
    with zipfile.ZipFile(tmp_path / "phrases.whl", "w") as files:
        text = "0.5\nsmall green ring\nsmall green ring\ntwo words\n0.25\n" + "".join(
            f"a box on {'the ' * number}cross\n" for number in range(30)
        )
        files.writestr("pycocoevalcap/meteor/data/paraphrase-en.gz", gzip.compress(text.encode()))
    return model.eval(), tiny_data["root"] / "tiny", tmp_path


def test_what_the_vectors_are(inputs):
    from trained_set import CROPS_PER_PHOTO, TrainedSet, other_captions

    model, data, folder = inputs
    made = TrainedSet(model, data, folder / "captions.tsv.gz", folder / "phrases.whl", folder / "vectors", 50)
    assert made.sources["images"] == [
        ("training photos", 8), ("crops of them", 8 * CROPS_PER_PHOTO),
        ("mixtures of vectors, which are no images", 10),
    ]  # fmt: skip
    known = [data / "tiny_val.tsv", data / "tiny_train.tsv"]
    others = list(other_captions(folder / "captions.tsv.gz", known))
    assert others == [f"the red dot number {number}" for number in range(6)]
    assert made.sources["captions"][0] == ("captions of other photos", 6)
    # Numbered through, the val documents last; each query's right answer is what the table says.
    for kind, val in (("images", 4), ("captions", 8)):
        rows = list(made.rows(kind, 20))
        assert np.concatenate([part.ids for part in rows]).tolist() == list(range(20 + val))
        assert len(made.queries(kind)) == len(made.ids(kind)) == val
    assert made.texts(6)[:6] == others and len(made.texts(6)) == 6 + 8
    assert made.right == {
        "images": [{caption // 2} for caption in range(8)],
        "captions": [{2 * image, 2 * image + 1} for image in range(4)],
    }
    np.testing.assert_allclose(
        dense_of(made.rows("captions", 6), model.config.vocab_size)[:6], model.encode_text(others), atol=2e-3
    )


def test_texts_for_fewer_distractors_are_refused(inputs):
    from trained_set import TrainedSet

    model, data, folder = inputs
    made = lambda most: TrainedSet(
        model, data, folder / "captions.tsv.gz", folder / "phrases.whl", folder / "vectors", most, ["captions"]
    )
    made(3)
    with pytest.raises(SystemExit, match="other_captions.txt was written for fewer distractors: it holds 3 texts"):
        made(5)
    assert sum(map(len, made(2).rows("captions", 2))) == 2 + 8


def test_dense_vectors_stand_as_the_lexicon_vectors_do(inputs):
    from dense_set import DenseSet
    from trained_set import TrainedSet, mixed_pairs

    model, data, folder = inputs
    made = TrainedSet(model, data, folder / "captions.tsv.gz", folder / "phrases.whl", folder / "vectors", 50)
    dense = DenseLIP.from_pretrained(folder / "dense")
    vectors = DenseSet(dense, made, folder / "vectors")
    texts = np.concatenate(list(vectors.rows("captions", 20)))
    np.testing.assert_allclose(texts, dense.encode_text(made.texts(20)), atol=1e-5)
    assert np.array_equal(texts[20:], vectors.queries("captions"))
    images = np.concatenate(list(vectors.rows("images", 50)))
    files = [made.corpora["images"][1].image(i)[1] for i in range(8)]
    np.testing.assert_allclose(images[:8], dense.encode_image([open_image(file) for file in files]), atol=1e-5)
    _, pairs, ratios = next(mixed_pairs(40, 10))
    a, b = images[pairs[3, 0]], images[pairs[3, 1]]
    mixed = ratios[3] * a + (1 - ratios[3]) * b
    np.testing.assert_allclose(images[43], mixed / np.linalg.norm(mixed), atol=1e-6)
    assert len(images) == 54 and np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-5)
    with pytest.raises(SystemExit, match="60 distractors are wanted, but 10 images are missing"):
        list(vectors.rows("images", 60))


def test_the_dense_head_beside_a_lexicon_head_will_do(inputs, make_config, livelier):
    from dense_set import DenseSet
    from trained_set import TrainedSet

    model, data, folder = inputs
    made = TrainedSet(model, data, None, None, folder / "vectors", 0)
    joint = build_model(LexLIP, make_config(vocab_size=model.config.vocab_size, joint_dim=6), model.tokenizer)
    vectors = DenseSet(livelier(joint).eval(), made, folder / "vectors")
    expected = joint.encode_text(made.texts(0), head="dense")
    np.testing.assert_allclose(vectors.queries("captions"), expected, atol=1e-5)
    with pytest.raises(SystemExit, match="this model has no dense head"):
        DenseSet(model, made, folder / "vectors")


def test_a_sample_is_always_the_same():
    from trained_run import sample

    assert sorted(sample(30, 1000)) == list(range(30))
    assert sample(30, 5).tolist() == sample(30, 30)[:5].tolist() != list(range(5))


def dense_of(batches, vocabulary):
    """(N, V) float32 of some rows."""
    blocks = []
    for rows in batches:
        block = np.zeros((len(rows), vocabulary), np.float32)
        block[np.repeat(np.arange(len(rows)), np.diff(rows.offsets)), rows.terms] = rows.weights
        blocks.append(block)
    return np.concatenate(blocks)


def test_mixtures_lie_between_two_vectors(tmp_path):
    from trained_set import mixtures

    a, b = np.zeros(50, np.float32), np.zeros(50, np.float32)
    a[:8], b[5:20] = np.linspace(1, 2, 8), np.linspace(2, 1, 15)
    vectors = np.stack([a / np.linalg.norm(a), b / np.linalg.norm(b)])
    write_shard(tmp_path / "two.arrow", [SparseRows.from_dense(vectors)])
    made = dense_of(mixtures([tmp_path], 40, 50), 50)
    np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=2e-3)
    assert set((made > 0).sum(1)) == {8, 15}  # as many terms as one of them
    assert any((row[:5] > 0).any() and (row[8:] > 0).any() for row in made)
    again = dense_of(mixtures([tmp_path], 20, 50), 50)
    assert np.array_equal(made[:20], again)


def test_cut_keeps_the_heaviest():
    from trained_run import cut_bag
    from trained_set import cut

    rng = np.random.default_rng(0)
    dense = np.round(rng.random((30, 60)) * (rng.random((30, 60)) < rng.random((30, 1))), 1)  # with ties
    rows = SparseRows.from_dense(dense)
    for k in (1, 3, 10, 60):
        kept = cut(rows, k)
        for row in range(30):
            order = sorted(np.flatnonzero(dense[row]), key=lambda term: (-np.float16(dense[row, term]), term))[:k]
            part = slice(kept.offsets[row], kept.offsets[row + 1])
            assert kept.terms[part].tolist() == sorted(order)
            whole = slice(rows.offsets[row], rows.offsets[row + 1])
            terms, weights = cut_bag((rows.terms[whole], rows.weights[whole].astype(np.float32)), k)
            assert np.array_equal(terms, kept.terms[part]) and np.array_equal(weights, kept.weights[part])


def test_recall_is_counted_by_rank():
    from contenders import Contender
    from trained_run import measure_loss, measure_recall

    class Options:
        round_seconds = 0.01

    results = [[9, 1, 2], [5, 6, 7, 8, 9, 1], [], [3]]
    right = [{9}, {1, 77}, {4}, {4}]
    contender = Contender("x", lambda query: results[query], lambda queries: [results[query] for query in queries], 1)
    measure_recall(contender, right, Options)
    assert contender.facts == {"R@1": 25, "R@5": 25, "R@10": 50, "queries": 4}
    uncut = Contender("y", None, None, 1, first=np.array([True, True, False, True]))
    measure_loss(contender, uncut)  # the first document is right of queries 0, and 0, 1, 3: two of four are lost
    assert (contender.facts["R@1 lost"], contender.facts["R@1 lost, error"]) == (50, 25)


def test_rows(inputs, monkeypatch, capsys):
    """The whole run on tiny data: rows of every engine, curves, and the same vectors the next time."""
    pytest.importorskip("faiss", reason="the dense rows need faiss-cpu")
    import large_scale

    _, data, folder = inputs
    arguments = ["--model", str(folder / "model"), "--data", str(data), "--captions", str(folder / "captions.tsv.gz")]
    arguments += ["--phrases", str(folder / "phrases.whl"), "--vectors", str(folder / "vectors")]
    arguments += ["--dense-model", str(folder / "dense"), "--queries", "3"]
    arguments += ["--distractors", "0", "30", "--top-k", "4", "8", "--rounds", "1", "--round-seconds", "0.01"]
    arguments += ["--adapters", "lexlip", *(name for name in ("milvus", "qdrant") if name in installed())]
    arguments += ["--adapter-top-k", "8", "--work", str(folder), "--json", str(folder / "rows.json")]
    arguments += ["--curves", str(folder / "curves")]
    large_scale.main(arguments)
    rows = json.loads((folder / "rows.json").read_text())
    groups = {(row["direction"], row["distractors"]) for row in rows}
    assert groups == {(way, count) for way in ("text to image", "image to text") for count in (0, 30)}
    same_task = lambda one, two: (one["direction"], one["distractors"]) == (two["direction"], two["distractors"])
    for row in rows:
        assert row["documents"] == row["distractors"] + (4 if row["direction"] == "text to image" else 8)
        assert 0 <= row["R@1"] <= row["R@5"] <= row["R@10"] <= 100 and row["qps"] > 0 and row["bytes"] > 0
        assert row["queries"] == 3
        uncut = next(other for other in rows if other["engine"] == "lexlip, all terms" and same_task(other, row))
        if "R@1 lost" in row:
            assert row["R@1 lost"] == pytest.approx(uncut["R@1"] - row["R@1"], abs=0.02)
        assert ("R@1 lost" in row) == ("top_k" in row and row is not uncut)
    names = [row["engine"] for row in rows if row["direction"] == "text to image" and row["distractors"] == 30]
    ours = ["lexlip, all terms", "lexlip, all terms, drop 0.1", "lexlip, 8 terms", "lexlip, 4 terms"]
    assert names.pop(3) == "lexlip, 8 terms"  # as an adapter
    for other in ("milvus", "qdrant"):
        assert other not in installed() or names.pop(3) == f"{other}, 8 terms"
    assert names[:4] == ours and names[4].startswith("faiss IndexFlatIP") and names[5].startswith("matrix product")
    own = [row for row in rows if row["engine"].startswith("dense model, ")]
    assert len(own) == 2 * len(groups) and {row["bytes"] / row["documents"] for row in own} == {4 * 6}
    assert all(row["faster_than_flat"] > 0 for row in own)
    output = capsys.readouterr()
    assert output.out.count("lexlip, all terms, drop 0.1") == 4 and output.out.count("3 queries, the same for all") == 4
    assert "3 of 8 queries" in output.err and "3 of 4 queries" in output.err
    frequencies = np.loadtxt(folder / "curves" / "document_frequencies_captions.txt")
    assert (np.diff(frequencies) <= 0).all() and 0 < frequencies[0] <= 1
    assert not list(folder.glob("large-scale-*"))


def test_results_are_those_of_the_vectors(inputs):
    """Recall of the uncut rows is that of the dot products of the model's own vectors."""
    from trained_set import TrainedSet

    from lexlip.index import Index, build

    model, data, folder = inputs
    made = TrainedSet(model, data, folder / "captions.tsv.gz", None, folder / "vectors", 6)
    build(folder / "index", made.rows("images", 6), impact_bits=12)
    index = Index.open(folder / "index")
    gallery = dense_of(made.rows("images", 6), model.config.vocab_size)
    for terms, weights in made.queries("captions"):
        scores = gallery[:, terms] @ weights
        best = index.search((terms, weights), 1)[0]
        assert scores[best.id] == pytest.approx(scores.max(), abs=2e-3)
