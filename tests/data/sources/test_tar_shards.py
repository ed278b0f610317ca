"""Tar shards as a source: the samples, what is wrong with them, and archives made to do harm."""

import io
import json
import os
import pickle
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from converter import main
from PIL import Image

from lexlip_data.errors import DataError
from lexlip_data.sources.patterns import find_files
from lexlip_data.sources.skipped import Rules
from lexlip_data.sources.tar_members import members
from lexlip_data.sources.tar_shards import read_tars

ALL = Rules(1.0)


def photo(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (12, 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_tar(path, entries, **options):
    """entries: (name, bytes) or a TarInfo."""
    with tarfile.open(path, "w", **options) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return path


def samples(first, last, text="a photo of {}"):
    return [
        entry
        for k in range(first, last)
        for entry in ((f"{k:05d}.png", photo(k)), (f"{k:05d}.txt", text.format(k).encode()))
    ]


def pairs(table):
    return {(table.image_id(i), text, table.image_bytes(i)) for i in range(len(table)) for text in table.captions(i)}


def reasons(table):
    return [(item.kind, item.reason) for item in table.left_out]


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        write_tar(tmp_path / f"{shard:05d}.tar", samples(10 * shard, 10 * shard + 10))
    return str(tmp_path / "{00000..00002}.tar")


def test_shards_give_the_pairs_that_a_table_of_the_same_files_gives(tmp_path, shards):
    rows = ["title\tfilepath\timage_id"]
    for k in range(30):
        (tmp_path / f"{k}.png").write_bytes(photo(k))
        rows.append(f"a photo of {k}\t{k}.png\t{k:05d}")
    (tmp_path / "t.tsv").write_text("\n".join(rows))
    common = ["--name", "mine", "--split", "train", "--workers", "0", "--quiet"]
    assert main(["folder", "--table", str(tmp_path / "t.tsv"), "--out", str(tmp_path / "a"), *common]) == 0
    assert main(["wds", "--root", shards, "--out", str(tmp_path / "b"), *common]) == 0
    table = pickle.loads(pickle.dumps(read_tars(shards, "mine", "train")))  # as a worker process gets it
    one, two = (pa.ipc.open_file(tmp_path / out / "mine_train.arrow").read_all().to_pylist() for out in "ab")
    assert one == two and len(one) == 30
    assert [table.image_bytes(i) for i in range(30)] == [row["image"] for row in one]


def test_one_shard_at_a_time_gives_the_files_of_one_go(tmp_path, shards):
    common = ["wds", "--root", shards, "--name", "mine", "--split", "val", "--workers", "0", "--quiet"]
    main([*common, "--shards", "2", "--out", str(tmp_path / "whole")])
    for part in ("1/2", "0/2", "1/2"):  # the last one finds its file
        assert main([*common, "--shard", part, "--out", str(tmp_path / "parts")]) == 0
    for name in ("mine_val_0.arrow", "mine_val_1.arrow"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    assert main(["check", "--out", str(tmp_path / "parts"), "--name", "mine"]) == 0


def test_captions_from_text_lines_and_json(tmp_path):
    content = {"caption": ["one", "two"], "alt": "three"}
    both = [("k.jpg", photo(1)), ("k.json", json.dumps(content).encode()), ("k.TXT", b"four\nfive\n"), ("k.cls", b"3")]
    path = write_tar(tmp_path / "x.tar", both)
    for options, wanted in (
        ({}, ["four\nfive"]),
        ({"caption_lines": True}, ["four", "five"]),
        ({"caption_key": "caption"}, ["one", "two"]),
        ({"caption_key": "alt"}, ["three"]),
    ):
        assert read_tars(path, "d", "s", **options).captions(0) == wanted


def test_the_image_of_a_sample_is_the_plainest_unless_one_is_named(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("k.mask.png", photo(1)), ("k.png", photo(2)), ("k.txt", b"text")])
    assert read_tars(path, "d", "s").image_bytes(0) == photo(2)
    assert read_tars(path, "d", "s", image_key="mask.png").image_bytes(0) == photo(1)


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_accented_names_in_every_format(tmp_path, format):
    key = "b/" + "d" * 90 + "/" + "k" * 60 + ("é" if format != tarfile.USTAR_FORMAT else "")
    path = write_tar(tmp_path / "x.tar", [(f"{key}.png", photo(1)), (f"{key}.txt", b"text")], format=format)
    assert read_tars(path, "d", "s").image_id(0) == key


def test_members_of_a_sample_may_lie_apart_and_joined_archives_are_read_on(tmp_path):
    one, two = samples(0, 3), samples(3, 5)
    a = write_tar(tmp_path / "a.tar", one[::2] + one[1::2])
    b = write_tar(tmp_path / "b.tar", two)
    joined = tmp_path / "c.tar"
    joined.write_bytes(a.read_bytes() + b.read_bytes())
    assert len(read_tars(joined, "d", "s")) == 5 and len(read_tars([a, b], "d", "s")) == 5


def test_a_cut_shard_loses_nothing_before_the_cut(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(0, 20))
    whole = path.read_bytes()
    everything = pairs(read_tars(path, "d", "s"))
    places = [member for member in members(path)]
    for cut in (places[20].offset + 100, places[21].offset - 1, places[22].offset - 512, places[21].offset - 300):
        path.write_bytes(whole[:cut])
        table = read_tars(path, "d", "s", ALL)
        good = {row for row in everything if int(row[0]) < 10}
        if cut == places[22].offset - 512:  # between two samples
            good = {row for row in everything if int(row[0]) < 11}
        assert pairs(table) == good
        assert [reason for kind, reason in reasons(table) if kind == "malformed"], cut
        with pytest.raises(
            DataError,
            match=r"^[^ ]*x\.tar: (cut short|it ends|no tar header).*copy it again .* of .* rows .*max_bad_share",
        ):
            read_tars(path, "d", "s")


def test_a_damaged_header_is_told_where_tarfile_sees_the_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", samples(0, 20))
    data = bytearray(path.read_bytes())
    place = list(members(path))[30].offset - 512
    data[place + 3] ^= 0xFF
    path.write_bytes(data)
    assert len(tarfile.open(path).getnames()) == 30  # silently
    table = read_tars(path, "d", "s", ALL)
    assert len(table) == 15 and f"from byte {place:,} on are not read" in reasons(table)[0][1]


def test_what_samples_lack_is_counted_and_listed(tmp_path):
    entries = samples(0, 60) + [
        ("no_text.png", photo(61)), ("no_image.txt", b"text"), ("blank.png", photo(62)), ("blank.txt", b" \n"),
    ]  # fmt: skip
    write_tar(tmp_path / "x.tar", [*entries, ("00003.png", photo(63)), (".hidden", b"x"), ("folder/README", b"")])
    write_tar(tmp_path / "y.tar", samples(59, 61))
    with pytest.raises(DataError, match="repair|repeated|second"):
        read_tars(tmp_path / "?.tar", "d", "s")
    table = read_tars(tmp_path / "?.tar", "d", "s", Rules(0.1))
    assert len(table) == 61
    kinds = sorted(kind for kind, _ in reasons(table))
    assert kinds == ["empty", "empty", "empty", "repeated", "repeated"]
    shown = "\n".join(reason for _, reason in reasons(table))
    assert "no image among its members .txt" in shown and "a second .png, and the first is used" in shown
    assert table.image_bytes(3) == photo(3) and "stands for two files" in shown
    out = tmp_path / "out"
    main(["wds", "--root", str(tmp_path / "?.tar"), "--name", "m", "--split", "train", "--out", str(out), "--quiet",
          "--workers", "0", "--max-bad-share", "0.1"])  # fmt: skip
    assert len((out / "m_train_skipped.tsv").read_text().splitlines()) == 6
    assert main(["check", "--out", str(out)]) == 0


def test_a_key_that_no_sample_has_is_told_with_those_that_are_there(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("k.png", photo(1)), ("k.json", b'{"captions": ["a"], "url": ""}')])
    for options, says in (
        ({}, "'caption' or 'text' but captions, url; --caption-key names another"),
        ({"image_key": "gif"}, "no image .gif"),
        ({"caption_key": "alt"}, "holds no 'alt' but captions"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"{says}.*1 of 1 samples cannot be used.*max_bad_share"):
            read_tars(path, "d", "s", **options)


def test_keys_that_are_unique_in_their_shard_only(tmp_path):
    for shard in ("a", "b"):
        write_tar(tmp_path / f"{shard}.tar", samples(0, 2))
    with pytest.raises(DataError, match="--shard-in-id"):
        read_tars(str(tmp_path / "{a,b}.tar"), "d", "s")
    table = read_tars(str(tmp_path / "{a,b}.tar"), "d", "s", shard_in_id=True)
    assert [table.image_id(i) for i in range(4)] == ["a/00000", "a/00001", "b/00000", "b/00001"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("k.txt", b"\xff\xfe"), ("k.json", b"{"), ("k.json", b'{"caption": 3}'), ("k.json", b"[" * 100_000),
     ("k.json", b'{"caption": "\\ud800"}')],
)  # fmt: skip
def test_a_caption_that_is_none_is_one_listed_sample(tmp_path, name, content):
    path = write_tar(tmp_path / "x.tar", [*samples(0, 2), ("k.png", photo(3)), (name, content)])
    table = read_tars(path, "d", "s", ALL)
    assert len(table) == 2 and [kind for kind, _ in reasons(table)] == ["malformed"]


def test_names_are_never_paths(tmp_path):
    """Names that climb, absolute names, links and devices: nothing is written or read outside the archive."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(photo(9))
    entries = [
        ("../../out.png", photo(1)), ("../../out.txt", b"up"), (str(tmp_path / "abs.png"), photo(2)),
        (str(tmp_path / "abs.txt"), b"absolute"), ("C:\\x.png", photo(3)), ("C:\\x.txt", b"drive"),
    ]  # fmt: skip
    for name, kind, target in (
        ("link.png", tarfile.SYMTYPE, str(secret)), ("hard.png", tarfile.LNKTYPE, "../../out.png"),
        ("dev.png", tarfile.CHRTYPE, ""), ("pipe.png", tarfile.FIFOTYPE, ""),
    ):  # fmt: skip
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        entries += [info, (name.replace("png", "txt"), b"text")]
    before = sorted(os.listdir(tmp_path))
    path = write_tar(tmp_path / "x.tar", entries)
    table = read_tars(path, "d", "s", ALL)
    assert {(text, data) for _, text, data in pairs(table)} == {
        ("up", photo(1)), ("absolute", photo(2)), ("drive", photo(3)),
    }  # fmt: skip
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "x.tar"])
    assert sum(kind == "malformed" for kind, _ in reasons(table)) == 4


def huge(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "header",
    [
        huge("k.png", 1 << 40), huge("k.txt", 1 << 40), huge("k.png", 1 << 62), huge("@LongLink", 1 << 33, b"L"),
        huge("pax", 1 << 33, b"x"), huge("g", 1 << 40, b"g"), huge("k.png", -512),
        huge("pax", 512, b"x") + b"9" * 512, huge("pax", 512, b"x") + b"20 size=-99999999\n".ljust(512, b"\0"),
        huge("pax", 24, b"x") + b"24 size=99999999999999\n".ljust(512, b"\0") + huge("k.png", 1),
    ],
)  # fmt: skip
def test_sizes_that_lie_cost_nothing_and_end_the_shard_with_a_word(tmp_path, header):
    path = write_tar(tmp_path / "x.tar", samples(0, 4))
    good = path.read_bytes()[: list(members(path))[-1].offset + 512]
    path.write_bytes(good + header + samples(9, 10)[0][1])
    tracemalloc.start()
    table = read_tars(path, "d", "s", ALL)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert len(table) == 4 and any(kind == "malformed" for kind, _ in reasons(table))


def test_an_image_that_says_it_is_huge_is_broken_not_read(tmp_path):
    """A file with holes, as large as its header says: the limit of an image's bytes holds."""
    path = tmp_path / "x.tar"
    with open(path, "wb") as file:
        file.write(huge("big.png", 1 << 34))
        file.seek(512 + (1 << 34))
        file.write(write_tar(tmp_path / "y.tar", [("big.txt", b"text"), *samples(0, 2)]).read_bytes())
    table = read_tars(path, "d", "s")
    assert len(table) == 3
    with pytest.raises(DataError, match="an image may have"):
        table.image_bytes(0)


def test_files_that_are_no_plain_tar_are_named(tmp_path):
    write_tar(tmp_path / "x.tar", samples(0, 2))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "x.tar", "x.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "text.tar").write_bytes(b"no tar file at all\n" * 100)
    (tmp_path / "zeros.tar").write_bytes(bytes(10240))
    for name, says in (
        ("x.tar.gz", "packed with gzip.*unpack it"), ("empty.tar", "empty"), ("text.tar", "no tar file"),
        ("zeros.tar", "no sample"), ("none.tar", "no such file"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            read_tars(tmp_path / name, "d", "s")


def test_patterns(tmp_path):
    for name in ("s-08.tar", "s-09.tar", "s-10.tar", "[x].tar"):
        (tmp_path / name).write_bytes(b"")
    names = lambda pattern: [path.name for path in find_files(str(tmp_path / pattern))]
    assert names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert names("s-{10..08}.tar") == ["s-10.tar", "s-09.tar", "s-08.tar"]
    assert names("s-{09,10}.tar") == ["s-09.tar", "s-10.tar"] and names("s-*") == names("s-{08..10}.tar")
    assert names("[x].tar") == ["[x].tar"]
    for pattern, says in (
        ("s-{08..11}.tar", "s-11.tar: no such file"), ("t-*.tar", "no file matches"),
        ("s-{0..99999999}.tar", "no such file"), ("s-{08,08}.tar", "named twice"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            names(pattern)
    with pytest.raises(DataError, match="not a local file"):
        find_files("pipe:curl -s http://x/a.tar")


def test_shards_that_webdataset_wrote(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="pip install webdataset")
    with webdataset.ShardWriter(str(tmp_path / "w-%03d.tar"), maxcount=4, verbose=0) as writer:
        for k in range(10):
            writer.write({"__key__": f"k{k}", "png": photo(k), "json": {"caption": [f"one {k}", f"two {k}"]}})
    table = read_tars(str(tmp_path / "w-{000..002}.tar"), "d", "s", caption_key="caption")
    assert pairs(table) == {(f"k{k}", text, photo(k)) for k in range(10) for text in (f"one {k}", f"two {k}")}
    assert table.left_out == []


@pytest.mark.slow  # three conversions
def test_a_thousand_photos_are_the_same_as_tsv_tar_and_parquet(shared, tmp_path):
    import pyarrow.parquet as pq

    from lexlip_data.sources.table import TsvSource

    source = TsvSource("f8k", "val", shared("data", "flickr8k", "flickr8k_val.tsv"))
    assert len(source) == 1000
    rows = [
        {"image": source.image_bytes(i), "image_id": source.image_id(i), "caption": source.captions(i)}
        for i in range(len(source))
    ]
    for shard in range(4):
        entries = [
            entry
            for row in rows[shard::4]
            for entry in (
                (row["image_id"] + ".jpg", row["image"]),
                (row["image_id"] + ".json", json.dumps({"caption": row["caption"]}).encode()),
            )
        ]
        write_tar(tmp_path / f"{shard}.tar", [(name.replace(".jpg.", "."), data) for name, data in entries])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet", row_group_size=128)
    inputs = {
        "a": ["folder", "--table", str(source.table_path)], "b": ["wds", "--root", str(tmp_path / "{0..3}.tar")],
        "c": ["hf", "--parquet", str(tmp_path / "p.parquet")],
    }  # fmt: skip
    found = []
    for out, words in inputs.items():
        common = ["--name", "m", "--split", "val", "--out", str(tmp_path / out), "--workers", "0", "--quiet"]
        assert main([*words, *common]) == 0
        table = pa.ipc.open_file(tmp_path / out / "m_val.arrow").read_all().to_pylist()
        found.append({(r["image_id"].removesuffix(".jpg"), text, r["image"]) for r in table for text in r["caption"]})
    assert found[0] == found[1] == found[2] and len(found[0]) == 5000
