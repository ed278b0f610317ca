"""Arrow files that would take memory out of proportion to their length are refused before anything is unpacked."""

import pyarrow as pa
import pytest

from lexlip_data.errors import DataError
from lexlip_data.sources import ipc_bounds
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.ipc import open_arrow
from lexlip_data.sources.ipc_bounds import require_proportion

MEGABYTE = 1 << 20


def write(path, table: pa.Table, stream: bool = False, **options):
    options = pa.ipc.IpcWriteOptions(**options)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema, options=options) as writer:
        writer.write_table(table, 10)
    return path


def captioned(images: list[bytes], **columns) -> pa.Table:
    rows = len(images)
    ids = pa.array([f"{i}.jpg" for i in range(rows)])
    return pa.table({"image": images, "caption": ["a dog"] * rows, "image_id": ids, **columns})


def unpacked(path, stream: bool) -> int:
    """What a file's metadata says, by refusing it whatever it says."""
    with pa.memory_map(str(path)) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ipc_bounds, "MOST_TIMES", 0)
        patch.setattr(ipc_bounds, "MOST_SMALL", -1)
        with pytest.raises(DataError) as error:
            require_proportion(file, path, stream)
    return int(str(error.value).split("would unpack to ")[1].split(", more")[0].replace(",", ""))


OLD = {"metadata_version": pa.ipc.MetadataVersion.V4, "use_legacy_format": True}


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize(("stream", "options"), [(False, {}), (True, {}), (False, OLD)])
def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch, stream, codec, options):
    monkeypatch.setattr(ipc_bounds, "MOST_SMALL", 4 * MEGABYTE)
    path = write(tmp_path / "b.arrow", captioned([bytes(MEGABYTE)] * 10), stream, compression=codec, **options)
    before = pa.total_allocated_bytes()
    with pytest.raises(DataError, match=r"b\.arrow: its [\d,]+ bytes would unpack to 10,\d+,\d+.*compression=None"):
        ArrowSource("x", "train", [path])
    assert path.stat().st_size < MEGABYTE // 10 and pa.total_allocated_bytes() == before


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_counted_is_what_arrow_allocates(tmp_path, stream):
    """Of all batches, and of dictionaries, whose values a batch does not hold itself."""
    kinds = pa.array(["x" * 1000, "y" * 1000] * 15).dictionary_encode()
    table = captioned([bytes(1000)] * 30, kind=kinds)
    path = write(tmp_path / "a.arrow", table, stream, compression="zstd")
    lengths = 30 * 1000 + 30 * 4 + 2 * 1000  # images, indices, and the dictionary
    assert lengths < unpacked(path, stream) < lengths + 2000
    assert unpacked(write(tmp_path / "b.arrow", table, stream), stream) == 0  # not compressed


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("codec", [None, "lz4"])
def test_files_in_proportion_are_read(tmp_path, stream, codec):
    table = captioned([b"image %d" % i for i in range(25)])
    source = ArrowSource("x", "train", [write(tmp_path / "a.arrow", table, stream, compression=codec)])
    assert [bytes(source.image_bytes(i)) for i in range(25)] == table["image"].to_pylist()


def test_rows_without_a_byte_are_counted(tmp_path):
    """Nulls and binary values of no length take no space: a file of 700 bytes could hold a billion of them."""
    rows = 10**9
    empty = pa.Array.from_buffers(pa.binary(0), rows, [None, pa.py_buffer(b"")])
    table = pa.table({"image": empty, "caption": pa.nulls(rows), "image_id": pa.nulls(rows)})
    with pa.ipc.new_file(str(tmp_path / "r.arrow"), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"r\.arrow: it claims 1,000,000,000 rows in [\d,]+ bytes"):
        open_arrow(tmp_path / "r.arrow")


def test_a_length_below_nothing(tmp_path):
    path = write(tmp_path / "n.arrow", captioned([bytes(100_000)] * 5), compression="lz4")
    before, _, after = path.read_bytes().rpartition((500_000).to_bytes(8, "little"))  # the images follow the offsets
    path.write_bytes(before + (-5).to_bytes(8, "little", signed=True) + after)
    with pytest.raises(DataError, match=r"n\.arrow: its Arrow metadata is damaged"):
        open_arrow(path)
