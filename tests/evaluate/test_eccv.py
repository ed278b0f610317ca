"""ECCV Caption and CxC on the package's own data, and from Karpathy's JSON to the metrics of an evaluation."""

import json

import numpy as np
import pyarrow as pa
import pytest
import runs
import torch
from converter import main
from PIL import Image
from runs import EVALUATE, Refused

from lexlip.errors import ConfigError
from lexlip.evaluate.eccv import CocoIds, eccv_metrics, table
from lexlip.evaluate.recall import SparseVectors
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.source import hash_id
from Phase2.module import Phase2Module

package = pytest.importorskip("eccv_caption", reason="pip install eccv-caption ujson")


@pytest.fixture(scope="module")
def metrics():
    return package.Metrics()


def source_of(path, images):
    """An Arrow file of COCO's test split, without the images: {cocoid: caption ids}."""
    table = pa.table({
        "image": [b""] * len(images), "caption": [["text"] * len(ids) for ids in images.values()],
        "image_id": [f"{cocoid}.jpg" for cocoid in images], "cocoid": [str(cocoid) for cocoid in images],
        "caption_id": [[str(id) for id in ids] for ids in images.values()],
    })  # fmt: skip
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return ArrowSource("coco", "test", [path])


@pytest.mark.slow  # two rankings of 5,000 by 25,000
def test_the_numbers_of_the_packages_own_data(metrics, tmp_path):
    images = metrics.coco_gts["i2t"]
    ids = CocoIds([source_of(tmp_path / "coco.arrow", images)])
    assert len(ids.images) == 5000 and len(ids.captions) == 25000
    generator = torch.Generator().manual_seed(0)
    topics = torch.rand(len(images), 48, generator=generator)
    of_captions = topics.repeat_interleave(5, 0) + 0.2 * torch.rand(25000, 48, generator=generator)
    hashes = torch.tensor([hash_id("coco", f"{cocoid}.jpg") for cocoid in images])
    rows = [
        SparseVectors.from_dense(vectors * (vectors > 0.3), of_ids, torch.arange(len(vectors)))
        for vectors, of_ids in ((topics, hashes), (of_captions, hashes.repeat_interleave(5)))
    ]
    found = eccv_metrics(*rows, ids)
    image, text = (torch.zeros(len(row), 48) for row in rows)
    for dense, row in zip((image, text), rows):
        dense[torch.from_numpy(row.rows), torch.from_numpy(row.terms).long()] = torch.from_numpy(row.weights)
    scores = text @ image.T
    cocoids, captions = np.array(list(images)), np.concatenate(list(images.values()))
    rankings = {
        "t2i": dict(zip(captions.tolist(), cocoids[scores.topk(200, dim=1).indices.numpy()].tolist())),
        "i2t": dict(zip(cocoids.tolist(), captions[scores.T.topk(200, dim=1).indices.numpy()].tolist())),
    }
    wanted = metrics.compute_all_metrics(
        rankings["i2t"], rankings["t2i"], target_metrics=("eccv_r1", "eccv_map_at_r", "eccv_rprecision", "cxc_recalls",
                                                          "coco_5k_recalls"), Ks=(1,),
    )  # fmt: skip
    for name, sides in found.items():
        for side, value in sides.items():
            assert value == pytest.approx(100 * wanted[name][side], abs=1e-4), (name, side)
    assert set(found) == {"eccv_map_at_r", "eccv_rprecision", "eccv_r1", "cxc_r1", "coco_5k_r1"}
    assert 1 < found["eccv_map_at_r"]["t2i"] < 99
    assert len(table({"coco": {"eccv": found}}).splitlines()) == 5


def test_a_split_that_is_not_cocos_is_refused(metrics, tmp_path):
    few = dict(list(metrics.coco_gts["i2t"].items())[:10])
    with pytest.raises(ConfigError, match="24,950 of the 25,000 captions .* not in the test split"):
        CocoIds([source_of(tmp_path / "few.arrow", few)])


def test_from_karpathys_json_to_the_evaluation(tiny_data, tmp_path, monkeypatch, capsys):
    sentence = lambda k, n: {"raw": f"a red dot {k} {n}", "sentid": 100 * k + n}
    entries = []
    for k in range(1, 5):
        Image.new("RGB", (40, 36), (60 * k, 9, 90)).save(tmp_path / f"{k}.png")
        entries.append(
            {"filename": f"{k}.png", "split": "test", "cocoid": k, "sentences": [sentence(k, n) for n in (1, 2)]}
        )
    (tmp_path / "d.json").write_text(json.dumps({"dataset": "coco", "images": entries}))
    out = tmp_path / "data"
    words = ["karpathy", "--json", str(tmp_path / "d.json"), "--images", str(tmp_path), "--name", "coco"]
    assert main([*words, "--out", str(out), "--workers", "0", "--quiet"]) == 0
    assert main(["check", "--out", str(out)]) == 0
    source = ArrowSource("coco", "test", [out / "coco_caption_karpathy_test.arrow"])
    assert source.coco_ids(1) == ("2", ["201", "202"])
    data = {**tiny_data, "root": out}
    keys = {"datasets": ["coco"], "eccv": True, "metrics_file": str(tmp_path / "m.json")}
    with pytest.raises(Refused, match="of the 25,000 captions"):
        runs.run_phase(data, tmp_path, Phase2Module, EVALUATE, **keys)

    def small(self, *_):
        i2t = {k: [100 * k + 1, 100 * k + 2] for k in range(1, 5)}
        t2i = {caption: [k] for k, captions in i2t.items() for caption in captions}
        self.coco_gts = self.cxc_gts = {"i2t": i2t, "t2i": t2i}
        self.eccv_gts, self.verbose = {"i2t": {1: [101, 102, 201]}, "t2i": {101: [1, 2]}}, False

    monkeypatch.setattr(package.Metrics, "__init__", small)
    runs.run_phase(data, tmp_path, Phase2Module, EVALUATE, **keys, version=1)
    reported = json.loads((tmp_path / "m.json").read_text())["coco"]
    assert reported["eccv"]["coco_5k_r1"]["i2t"] >= reported["i2t"]["R@1"]  # ties count for it here
    assert 0 <= reported["eccv"]["eccv_map_at_r"]["t2i"] <= 100
    assert "eccv_rprecision" in capsys.readouterr().out


def test_tables_without_the_numbers_are_named(tmp_path, tiny_data):
    with pytest.raises(Refused, match="has no numbers of COCO"):
        runs.run_phase(tiny_data, tmp_path, Phase2Module, EVALUATE, eccv=True)
