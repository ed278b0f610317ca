"""The benchmark's own evaluation of a model, by our index and by dense scores, on tasks that are made here."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from lexlip.cli import main

mteb = pytest.importorskip("mteb", reason="pip install mteb", minversion="2")

from datasets import Dataset  # noqa: E402  (mteb needs it)
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

from lexlip.evaluate.mteb import LexLIPEncoder, LexLIPSearch  # noqa: E402

WORDS = "red green blue grey dark light dot ring cross box".split()


def metadata(name, category, modalities):
    return TaskMetadata(
        name=name, description="made by a test", reference=None, dataset={"path": "NA", "revision": "NA"},
        type="Any2AnyRetrieval" if "image" in modalities else "Retrieval", category=category, modalities=modalities,
        eval_splits=["test"], eval_langs=["eng-Latn"], main_score="ndcg_at_10", date=("2026-01-01", "2026-01-02"),
        domains=[], task_subtypes=[], license="cc0-1.0", annotations_creators="derived", dialect=[],
        sample_creation="created", bibtex_citation="",
    )  # fmt: skip


def task(category):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 4)) for _ in range(12)]
    images = [Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(12)]
    columns = {"t": ("text", texts), "i": ("image", images)}
    query, document = (columns[category[0]], columns[category[2]])

    class Task(AbsTaskRetrieval):
        def load_data(self, num_proc=None, **_):
            from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData

            data = RetrievalSplitData(
                queries=Dataset.from_dict({"id": [f"q{n}" for n in range(12)], query[0]: query[1]}),
                corpus=Dataset.from_dict({"id": [f"d{n}" for n in range(12)], document[0]: document[1]}),
                relevant_docs={f"q{n}": {f"d{n}": 1} for n in range(12)}, top_ranked=None,
            )  # fmt: skip
            self.dataset = {"default": {"test": data}}
            self.data_loaded = True

    Task.metadata = metadata(f"Made{category.upper()}", category, sorted({query[0], document[0]}))
    return Task(), query[1], document[1]


def vectors(model, items):
    return (model.encode_text if isinstance(items[0], str) else model.encode_image)(items)


@pytest.mark.parametrize("category", ["t2i", "i2t", "t2t"])
def test_the_benchmark_finds_what_we_find(make_worded, category):
    model = make_worded().eval()
    made, queries, documents = task(category)
    scores = vectors(model, queries) @ vectors(model, documents).T
    ranks = 1 + (scores > scores.diagonal()[:, None]).sum(1).numpy()
    for encoder in (LexLIPEncoder(model), LexLIPSearch(model, impact_bits=12)):
        result = mteb.evaluate(encoder, made, cache=None, show_progress_bar=False, encode_kwargs={"batch_size": 5})
        found = result.task_results[0].scores["test"][0]
        assert found["recall_at_1"] == pytest.approx((ranks <= 1).mean(), abs=1e-5)
        assert found["recall_at_10"] == pytest.approx((ranks <= 10).mean(), abs=1e-5)
        assert found["mrr_at_10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean(), abs=1e-5)


def test_dense_vectors_are_ours_and_the_index_scores_them(make_worded):
    model = make_worded().eval()
    made, queries, documents = task("t2i")
    made.load_data()
    data, search = made.dataset["default"]["test"], LexLIPSearch(model, impact_bits=12)
    how = {"task_metadata": made.metadata, "encode_kwargs": {"batch_size": 5}, "num_proc": None}
    search.index(data["corpus"], hf_split="test", hf_subset="default", **how)
    found = search.search(data["queries"], hf_split="test", hf_subset="default", top_k=3, **how)
    scores = vectors(model, queries) @ vectors(model, documents).T
    for n in range(12):
        best = scores[n].topk(3)
        assert list(found[f"q{n}"]) == [f"d{place}" for place in best.indices.tolist()]
        np.testing.assert_allclose(list(found[f"q{n}"].values()), best.values, atol=2e-3)  # 12 bits a weight
    few = {f"q{n}": ["d3", "d1"] for n in range(12)}
    ranked = search.search(data["queries"], hf_split="test", hf_subset="default", top_k=3, top_ranked=few, **how)
    assert all(set(of_query) == {"d1", "d3"} for of_query in ranked.values())
    encoder = LexLIPEncoder(model)
    given = encoder.encode([{"text": queries[:5]}, {"text": queries[5:]}])
    torch.testing.assert_close(given, model.encode_text(queries), atol=1e-5, rtol=0)
    assert encoder.mteb_model_meta.modalities == ["text", "image"]
    with pytest.raises(ValueError, match="text and image"):
        encoder.encode([{"text": queries, "image": documents}])


def test_queries_are_kept_by_their_terms_alone(make_worded, monkeypatch):
    """A query of V numbers is some 250 KB, and a benchmark has hundreds of thousands of them."""
    made, _, _ = task("t2t")
    made.load_data()
    data, search = made.dataset["default"]["test"], LexLIPSearch(make_worded().eval())
    how = {"task_metadata": made.metadata, "encode_kwargs": {"batch_size": 5}, "num_proc": None}
    search.index(data["corpus"], **how)
    kept, batch = [], search._index.search_batch
    monkeypatch.setattr(search._index, "search_batch", lambda queries, k: kept.extend(queries) or batch(queries, k))
    assert len(search.search(data["queries"], top_k=3, **how)) == len(kept) == 12
    assert all(len(terms) == len(weights) and (weights > 0).all() for terms, weights in kept)


def test_scores_of_other_settings_are_not_taken_from_the_cache(make_worded, tmp_path, monkeypatch, capsys):
    make_worded().eval().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(mteb, "get_tasks", lambda **_: [task("t2t")[0]])
    words = ["eval-mteb", "--model", str(tmp_path / "model"), "--results", str(tmp_path / "r"), "--tasks", "MadeT2T"]
    for settings in ([], ["--top-k", "1"], ["--dense"], ["--dense"]):
        assert main([*words, *settings]) == 0
    kept = {file.parent.name.partition("-")[2] for file in (tmp_path / "r").rglob("MadeT2T.json")}
    assert kept == {"9-bits", "9-bits-1-terms", "dense"}


def test_the_command(make_worded, tmp_path, monkeypatch, capsys):
    make_worded().eval().save_pretrained(tmp_path / "model")
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks, **_: [task("t2i")[0]] if tasks == ["MadeT2I"] else [])
    words = ["eval-mteb", "--model", str(tmp_path / "model"), "--metrics-file", str(tmp_path / "m.json"), "--tasks"]
    assert main([*words, "MadeT2I"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "m.json").read_text())
    assert set(shown["tasks"]["MadeT2I"]["test"][0]) >= {"main_score", "ndcg_at_10", "recall_at_1"}
    for wrong, says in ((["None"], "None"), (["MadeT2I", "--top-k", "0"], "--top-k 0"),
                        (["MadeT2I", "--batch-size", "-1"], "--batch-size -1")):  # fmt: skip
        assert main([*words, *wrong]) == 2
        assert says in capsys.readouterr().err
