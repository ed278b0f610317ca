"""The quickstart's report, from made metrics and logs."""

import json
import re
import shutil

import pytest
from PIL import Image
from transformers import AutoTokenizer

from lexlip import LexLIP
from lexlip.train.build import build_model


@pytest.fixture(scope="module")
def report(load_script):
    return load_script("report")


def row(first: float) -> dict:
    recall = {"R@1": first, "R@5": first + 1, "R@10": first + 2, "mean_rank": 3.0, "median_rank": 1.0}
    sides = {"t2i": recall, "i2t": recall, "rsum": 6 * first + 6, "active_terms": {"text": 4.0, "image": 5.0}}
    by_side = {"t2i": {"R@1": 0.5, "R@5": 2.5, "R@10": 5.0}, "i2t": {"R@1": 0.5, "R@5": 2.5, "R@10": 5.0}}
    return {**sides, "pictures": 200, "captions": 200, "chance": by_side}


@pytest.fixture
def runs(tmp_path):
    for number, stage in enumerate(("untrained", "phase1", "phase2")):
        metrics = {**row(10.0 * number), "pruned": {"32": row(10.0 * number - 1)}}
        (tmp_path / f"{stage}.json").write_text(json.dumps({"openmoji": metrics}))
    for stage in ("phase1", "phase2"):
        folder = tmp_path / f"{stage}_seed0" / "demo"
        folder.mkdir(parents=True)
        lines = ["step,train/loss,val/openmoji/t2i_R@1", "9,2.5,", "19,1.5,", "19,,37.5"]
        (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_metrics_hold_every_stage_beside_chance(report, runs, capsys):
    metrics = report.collect(runs)
    assert json.loads((runs / "metrics.json").read_text()) == metrics
    assert list(metrics) == ["chance", "untrained", "phase1", "phase2"]
    assert metrics["chance"]["R@10"] == metrics["chance"]["t2i"]["R@10"] == 5.0
    assert metrics["phase2"]["pruned"]["32"]["t2i"]["R@1"] == 19.0
    report.print_table(metrics)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line and line[0] != " "] == [
        "untrained", "untrained, 32 terms", "Phase 1", "Phase 1, 32 terms", "Phase 2", "Phase 2, 32 terms", "chance",
    ]  # fmt: skip


def test_curves_are_read_by_phase_and_metric(report, runs):
    series = report.curves(runs)
    assert series["Phase 1"]["train/loss"] == [(9.0, 2.5), (19.0, 1.5)]
    assert series["Phase 2"]["val/openmoji/t2i_R@1"] == [(19.0, 37.5)]


def test_the_page_is_whole_and_escapes_captions(report, runs):
    result = {"png": "AAAA", "score": 0.5, "right": True, "caption": "<b>bold</b>", "words": [("dog", 0.7)]}
    example = {"query": "cat & dog", "rank": 1, "words": [("cat", 0.4)], "results": [result]}
    page = report.render(report.collect(runs), report.curves(runs), [example])
    assert "cat &amp; dog" in page and "&lt;b&gt;bold" in page and "<b>bold" not in page
    assert "dog 0.70" in page and "data:image/png;base64,AAAA" in page
    assert page.count("<svg") == 4 and "polyline" in page
    assert page.count(report.HOW_TO_READ) == 1 and "What photos-small says" not in page
    assert "http" not in page  # nothing is loaded from elsewhere


def test_every_line_of_a_chart_has_a_look_of_its_own_and_a_legend_beside_the_plot(report):
    names = [f"t2i_R@{k}" for k in range(20)]
    page = report.chart("recall", {name: [(1.0, 2.0), (2.0, 3.0)] for name in names})
    looks = re.findall("stroke=(#\\w+) stroke-dasharray='([^']*)'", page)
    lines, legend = looks[::2], looks[1::2]
    assert lines == legend and len(set(lines)) == 20
    assert all(int(x) > 500 for x in re.findall(r"<text x=(\d+) y=\d+>t2i", page))  # the plot ends at 500
    height = int(re.search(r"height=(\d+)", page)[1])
    assert max(int(y) for y in re.findall(r"y=(\d+)>t2i", page)) <= height


def test_photos_small_says_what_drawings_and_photos_show(report, tiny_data, tmp_path):
    shutil.copytree(tiny_data["root"] / "tiny", tmp_path / "openmoji")
    (tmp_path / "openmoji" / "tiny_test.tsv").rename(tmp_path / "openmoji" / "openmoji_test.tsv")
    folder = tmp_path / "my <photos>"
    folder.mkdir()
    Image.new("RGB", (300, 200), (200, 180, 40)).save(folder / "a&b.png")
    (folder / "broken.jpg").write_bytes((folder / "a&b.png").read_bytes()[:60])
    (drawings, figures, _), (title, photos, note) = report.described(tmp_path, folder)
    assert drawings == "Drawings" and len(figures) == 4 and all(image["words"] for image in figures)
    model = LexLIP.from_pretrained("photos-small")
    assert photos[0]["words"] == model.lexicon(model.encode_image([folder / "a&b.png"]), report.WORDS)[0]
    assert len(photos) == 1 and "broken.jpg" in note
    page = report._described([(title, photos, note)])
    assert "my &lt;photos&gt;" in page and "a&amp;b.png" in page
    assert len(report.described(tmp_path, None)) == 1


def test_names_are_looked_for_among_the_heaviest_terms(report, tmp_path):
    """Of four drawings one has a word that training lacks; of the others one image and two names have their word."""
    folder = tmp_path / "openmoji"
    folder.mkdir()
    names = {"train": ["red car", "dog with hat"], "test": ["red dog", "car", "zebra", "hat with car"]}
    for split, titles in names.items():
        rows = [f"{split}{number}.png\t{title}" for number, title in enumerate(titles)]
        (folder / f"openmoji_{split}.tsv").write_text("\n".join(["filepath\ttitle", *rows]) + "\n")
        for number in range(len(titles)):
            Image.new("RGB", (8, 8)).save(folder / f"{split}{number}.png")
    terms = {
        "images": [["dog", "sun"], ["redcar", "with"], ["the", "sun"]],
        "texts": [["red"], ["dog"], ["with", "hat"]],
    }

    class Model:
        def encode_image(self, images):
            return "images" if len(images) == 3 else None

        def encode_text(self, texts):
            return "texts" if texts == ["red dog", "car", "hat with car"] else None

        def lexicon(self, vectors, top_k):
            assert top_k == report.HEAVIEST
            return [[(term, 1.0) for term in row] for row in terms[vectors]]

    found = report.named(Model(), tmp_path)
    assert found == {"count": 3, "images": pytest.approx(100 / 3), "texts": pytest.approx(200 / 3)}


def test_results_are_those_of_the_model(report, make_config, livelier, tiny_data, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    model = build_model(LexLIP, make_config(vocab_size=len(tokenizer)), tokenizer)
    livelier(model)
    shutil.copytree(tiny_data["root"] / "tiny", tmp_path / "openmoji")
    (tmp_path / "openmoji" / "tiny_test.tsv").rename(tmp_path / "openmoji" / "openmoji_test.tsv")
    examples = report.search(model, tmp_path)
    assert len(examples) == 4  # a caption of each test image
    for example in examples:
        scores = [result["score"] for result in example["results"]]
        assert len(scores) == 4 and scores == sorted(scores, reverse=True)
        right = [number for number, result in enumerate(example["results"]) if result["right"]]
        assert len(right) == 1 and scores[right[0]] == scores[example["rank"] - 1]
        assert 0 < len(example["words"]) <= report.WORDS and all(weight > 0 for _, weight in example["words"])
