"""The file of an id: under the remembered folders, and nowhere else."""

import os

import pytest

from lexlip.index import SparseRows, build
from lexlip.index.origin import Origin, Source
from lexlip.sync.photos import moment_of


@pytest.fixture
def index(tmp_path):
    """An index of two folders, the second with a prefix, and files around them that are nobody's business."""
    for name in ("one/a.jpg", "one/sub/b.jpg", "one/.secret/c.jpg", "two/a.jpg", "one-more/a.jpg", "secret.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "one" / "clip.mp4").write_text("clip")
    (tmp_path / "one" / "out.jpg").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "one" / "folder").symlink_to(tmp_path)
    (tmp_path / "one" / "across.jpg").symlink_to(tmp_path / "two" / "a.jpg")
    os.mkfifo(tmp_path / "one" / "pipe.jpg")
    parts = []
    for root, prefix, ids in (("one", "", ["a.jpg"]), ("two", "2/", ["2/a.jpg"]), ("gone", "g/", ["g/a.jpg"])):
        rows = SparseRows.from_bags([{1: 1.0}], ids)
        origin = Origin(source=Source(str(tmp_path / root), "images", prefix))
        parts.append(SparseRows(rows.ids, rows.offsets, rows.terms, rows.weights, root, origin))
    build(tmp_path / "index", parts)
    return tmp_path / "index"


@pytest.mark.parametrize(
    ("id", "file"),
    [
        ("a.jpg", "one/a.jpg"), ("sub/b.jpg", "one/sub/b.jpg"), ("2/a.jpg", "two/a.jpg"),
        ("across.jpg", "two/a.jpg"), ("clip.mp4#t=12.0", "one/clip.mp4"),
    ],
)  # fmt: skip
def test_a_photo_of_the_folders_is_found(index, id, file, photo_path):
    assert photo_path(index, id) == (index.parent / file).resolve()


@pytest.mark.parametrize(
    "id",
    [
        "", ".", "..", "/", "../secret.txt", "sub/../../secret.txt", "sub/../a.jpg", "./a.jpg", "sub//b.jpg", "/a.jpg",
        "{root}/secret.txt", "{root}/one/a.jpg", "out.jpg", "folder/secret.txt", "folder/one/../secret.txt", "sub",
        "pipe.jpg", ".secret/c.jpg", "../one-more/a.jpg", "2/../secret.txt", "2//a.jpg", "g/a.jpg", "a.jpg\0",
        "a.jpg\0/../../secret.txt", "..\\secret.txt", "x" * 5000, "\udcff", "a.jpg/", "a.jpg/..", "%2e%2e/secret.txt",
        "../secret.txt#t=1", "out.jpg#t=1.0", "clip.mp4#t=-1", "clip.mp4#t=1e9", 7, None, b"a.jpg",
    ],
)  # fmt: skip
def test_nothing_else_is(index, id, photo_path):
    id = id.format(root=index.parent) if isinstance(id, str) and "{root}" in id else id
    assert photo_path(index, id) is None


def test_an_index_without_folders_has_no_photos(tmp_path, photo_path):
    build(tmp_path / "index", [SparseRows.from_bags([{1: 1.0}], ["a.jpg"])])
    assert photo_path(tmp_path / "index", "a.jpg") is None


def test_an_id_names_a_moment():
    assert moment_of("a/clip.mp4#t=12.5") == ("a/clip.mp4", 12.5)
    assert moment_of("a#t=x.jpg") == ("a#t=x.jpg", None)
