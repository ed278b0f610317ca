"""Reading images from disk: nothing outside the roots, nothing that waits, nothing without a bound."""

import os
import socket

import pytest

from lexlip_data.errors import BrokenImage, DataError, MissingImage, OutsideImage
from lexlip_data.sources import files
from lexlip_data.sources.files import read_image, real_roots, require_file


@pytest.fixture
def tree(tmp_path):
    """root/inside.jpg, outside.jpg, and roots."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "inside.jpg").write_bytes(b"inside")
    (tmp_path / "outside.jpg").write_bytes(b"outside")
    (tmp_path / "rootless").mkdir()  # begins as the root's name does
    (tmp_path / "rootless" / "x.jpg").write_bytes(b"outside")
    return tmp_path / "root"


def test_what_stays_inside_is_read(tree):
    roots = real_roots(tree)
    (tree / "link.jpg").symlink_to(tree / "inside.jpg")
    (tree.parent / "linked_root").symlink_to(tree)
    for path in ("inside.jpg", "sub/../inside.jpg", "link.jpg", str(tree / "inside.jpg")):
        assert read_image(tree / path, roots) == b"inside"
    # A data root may be a link itself.
    linked = tree.parent / "linked_root"
    assert read_image(linked / "inside.jpg", real_roots(linked)) == b"inside"
    assert read_image(tree / "inside.jpg", real_roots("/")) == b"inside"


@pytest.mark.parametrize("way", ["..", "absolute", "link", "folder", "neighbour"])
def test_what_leaves_the_root_is_refused_unless_allowed(tree, way):
    (tree / "link.jpg").symlink_to(tree.parent / "outside.jpg")
    (tree / "folder").symlink_to(tree.parent)
    path = {
        "..": tree / "../outside.jpg",
        "absolute": tree / str(tree.parent / "outside.jpg"),
        "link": tree / "link.jpg",
        "folder": tree / "folder" / "outside.jpg",
        "neighbour": tree / "../rootless/x.jpg",
    }[way]
    with pytest.raises(OutsideImage, match=f"leads out of {tree} to {tree.parent}/.*picture_roots") as raised:
        read_image(path, real_roots(tree))
    assert raised.value.kind == "outside"
    assert read_image(path, real_roots(tree, [tree.parent])) == b"outside"
    assert read_image(path) == b"outside"


def test_a_link_loop_and_a_missing_file(tree):
    (tree / "loop.jpg").symlink_to(tree / "loop.jpg")
    with pytest.raises(BrokenImage, match="symbolic links"):
        read_image(tree / "loop.jpg", real_roots(tree))
    for path, message in (("none.jpg", "No such file or directory"), ("inside.jpg/none.jpg", "Not a directory")):
        with pytest.raises(MissingImage, match=f"^{message}$"):
            read_image(tree / path, real_roots(tree))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a pipe", "^is a pipe, not a file$"),
        ("a folder", "^Is a directory$"),
        ("a socket", "^No such device or address$"),
        ("a device", "^is a device, not a file$"),
    ],
)
def test_what_is_no_file_is_refused_at_once(tree, kind, message, monkeypatch):
    path = tree / "odd.jpg"
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a socket":
        monkeypatch.chdir(tree)  # an address may have 100 bytes
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(BrokenImage, match=message):
        read_image(path)
    with pytest.raises(DataError, match=f"odd.jpg: is {kind}, not a file"):
        require_file(path)


def test_impossible_paths(tree):
    for path, message in (
        (tree / "a\0b.jpg", "not a possible path: embedded null byte"),
        (tree / "\ud800.jpg", "not a possible path: .* surrogates not allowed"),
        (tree / ("x" * 300), "File name too long"),
        (tree / ("y/" * 3000), "File name too long"),
    ):
        for roots in ((), real_roots(tree)):
            with pytest.raises(BrokenImage, match=f"^{message}"):
                read_image(path, roots)
        assert not files.is_file(path)
        with pytest.raises(DataError, match=r": cannot be opened \("):
            require_file(path)


def test_an_image_has_a_largest_size(tree, monkeypatch):
    monkeypatch.setattr(files, "MAX_IMAGE_BYTES", 5)
    with pytest.raises(BrokenImage, match="6 bytes; an image may have 5"):
        read_image(tree / "inside.jpg")
