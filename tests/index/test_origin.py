"""An index remembers the model of its vectors and what was encoded; others are refused or told."""

import json
import logging
from types import SimpleNamespace

import pytest
import torch

from lexlip.cli import main
from lexlip.index import Index, IndexingError, SparseRows, add, build, delete, merge, read_shards
from lexlip.index.origin import ModelStamp, Origin, Source, origin_metadata
from lexlip.index.store import read_manifest

A, B = (ModelStamp(name, f"/models/{name}", name * 32) for name in "ab")


def shard(path, ids, model=A, root="/photos"):
    """As `lexlip encode` writes one."""
    import pyarrow as pa

    from lexlip.index.shards import record_batch

    rows = SparseRows.from_bags([{1: 1.0}] * len(ids), ids)
    schema = pa.schema({"id": pa.string(), "terms": pa.list_(pa.uint16()), "weights": pa.list_(pa.float16())})
    schema = schema.with_metadata(origin_metadata(Origin(model, Source(root, "images"))))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        writer.write_batch(record_batch(rows, schema))
    return path


def test_the_model_goes_from_the_shards_into_the_index(tmp_path):
    build(tmp_path / "i", read_shards([shard(tmp_path / "a.arrow", ["x", "y"])]))
    add(tmp_path / "i", read_shards([shard(tmp_path / "b.arrow", ["z"])]))
    for change in (lambda: delete(tmp_path / "i", ["y"]), lambda: merge(tmp_path / "i")):
        change()
        info = Index.open(tmp_path / "i").info()
        assert info["model"] == {"name": "a", "folder": "/models/a", "fingerprint": "a" * 32}
        assert info["sources"] == [{"root": "/photos", "what": "images", "id_prefix": ""}]


def test_vectors_of_another_model_are_refused(tmp_path, capsys):
    index = tmp_path / "i"
    one, other = shard(tmp_path / "a.arrow", ["x"]), shard(tmp_path / "b.arrow", ["z"], B)
    with pytest.raises(IndexingError, match=r"b.arrow: .* made by b \(bbbbbbbb\), those of the index by a"):
        build(index, read_shards([one, other]))
    build(index, read_shards([one]))
    assert main(["index", "add", str(index), str(other)]) != 0
    assert "--force" in capsys.readouterr().err
    add(index, [SparseRows.from_bags([{2: 1.0}], ["bag"])])  # nobody knows
    assert main(["index", "add", str(index), str(other), "--force"]) in (0, None)
    assert len(Index.open(index)) == 3 and read_manifest(index).model == A


def test_an_index_without_a_model_takes_any(tmp_path):
    build(tmp_path / "i", [SparseRows.from_bags([{1: 1.0}], ["x"])])
    add(tmp_path / "i", read_shards([shard(tmp_path / "b.arrow", ["z"], B)]))
    assert read_manifest(tmp_path / "i").model is None


def test_a_search_with_another_model_is_refused(tmp_path):
    from lexlip.models.fingerprint import fingerprint

    model = lambda seed: SimpleNamespace(
        state_dict=lambda: {"w": torch.full((3,), float(seed))},
        config=SimpleNamespace(activation="log1p"),
        tokenizer=SimpleNamespace(get_vocab=lambda: {"a": 0}),
    )
    stamp = ModelStamp("mine", "", fingerprint(model(1)))
    build(tmp_path / "i", read_shards([shard(tmp_path / "a.arrow", ["x"], stamp)]))
    assert Index.open(tmp_path / "i", model(1)).model is not None
    with pytest.raises(IndexingError, match=r"made by mine \(.*\), not by a model"):
        Index.open(tmp_path / "i", model(2))
    assert Index.open(tmp_path / "i", model(2), force=True).model is not None


def test_replaced_documents_of_another_root_are_told(tmp_path, caplog):
    index = tmp_path / "i"
    build(index, read_shards([shard(tmp_path / "a.arrow", ["x", "y", "z"])]))
    with caplog.at_level(logging.WARNING):
        add(index, read_shards([shard(tmp_path / "again.arrow", ["x"])]))
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert add(index, read_shards([shard(tmp_path / "b.arrow", ["y", "new"], root="/other")])).replaced == 1
    assert "1 documents from /photos are replaced by ones of the same ids from /other, e.g. y" in caplog.text
    merge(index)
    assert read_manifest(index).segments[0].sources == (0, 1)
    caplog.clear()
    added = add(index, read_shards([tmp_path / "b.arrow"], id_prefix="other/"))
    assert added.replaced == 0
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert read_manifest(index).sources[-1] == Source("/other", "images", "other/")


def test_an_older_manifest_has_none_of_it(tmp_path):
    import zlib

    build(tmp_path, [SparseRows.from_bags([{1: 1.0}], ["x"])])
    value = json.loads((tmp_path / "manifest").read_bytes().split(b"\n", 1)[1])
    del value["model"], value["sources"], value["segments"][0]["sources"]
    text = json.dumps(value).encode()
    (tmp_path / "manifest").write_bytes(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(text) + text)
    assert Index.open(tmp_path).search({1: 1.0}) == [("x", 1.0)]
    assert Index.open(tmp_path).info()["model"] is None
