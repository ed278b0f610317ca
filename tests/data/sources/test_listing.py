"""Which files of a folder are images, and what is said of the others."""

import io
import os

import pytest
from PIL import Image

from lexlip_data.errors import BrokenImage
from lexlip_data.sources import kinds
from lexlip_data.sources import listing as listing_module
from lexlip_data.sources.images import open_image
from lexlip_data.sources.kinds import kind_of, unread_named, video_type
from lexlip_data.sources.listing import Listing

HEIC = b"\0\0\0\x18ftypheic" + b"\0" * 60


@pytest.fixture
def no_plugins(monkeypatch):
    """As without the packages that read HEIC and JPEG XL."""
    for module in (kinds, listing_module):
        monkeypatch.setattr(module, "READ", kinds.READ - {"HEIC/HEIF", "JPEG XL"})
        monkeypatch.setattr(module, "UNREAD", kinds.UNREAD | {"HEIC/HEIF", "JPEG XL"})


@pytest.fixture
def image(jpeg):
    def write(path, data=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(1) if data is None else data)

    return write


def listed(folder, *roots):
    listing = Listing(folder, roots)
    names = list(listing)
    assert all(len(note.splitlines()) == 1 for note in listing.notes())
    return names, "\n".join(listing.notes()), listing


def encoded(form, size=(9, 7)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 10, 30)).save(buffer, form)
    return buffer.getvalue()


def test_content_decides(tmp_path, image, no_plugins):
    forms = {"a.jpe": "JPEG", "b.jfif": "JPEG", "c.pnm": "PPM", "d.j2k": "JPEG2000", "e.scan": "BMP", "f": "PNG",
             "g.txt": "GIF", "h.dat": "TIFF", "i.bin": "WEBP", "j.JPG": "JPEG"}  # fmt: skip
    for name, form in forms.items():
        image(tmp_path / name, encoded(form))
    image(tmp_path / "k.jpg", b"no image: its decoder says so")
    for name, data in (("x.heic", HEIC), ("y.nef", encoded("TIFF")), ("z.svg", b"<?xml?><svg>"), ("notes.txt", b"BMW"),
                       ("list.txt", b"P1 is a caption"), ("README", b"")):  # fmt: skip
        image(tmp_path / name, data)
    names, notes, listing = listed(tmp_path)
    assert names == [*forms, "k.jpg"]
    assert "1 .heic (HEIC/HEIF: an image" in notes and "1 .nef (camera raw: an image" in notes and "save it as" in notes
    assert "HEIC/HEIF is read where pillow-heif is installed" in notes and "JPEG XL" not in notes
    assert "1 .svg (SVG: an image" in notes and "2 .txt" in notes and "1 without a suffix" in notes
    assert {item.path for item in listing.left_out} == {"x.heic", "y.nef", "z.svg"}


def test_what_systems_put_beside_images_is_counted(tmp_path, image):
    image(tmp_path / "a.jpg")
    image(tmp_path / "sub" / "b.jpg")
    for name in ("._a.jpg", ".DS_Store", "Thumbs.db", "sub/._b.jpg"):
        image(tmp_path / name)
    for name in ("@eaDir/a.jpg/SMALL.jpg", ".Trash-1000/c.jpg", "#recycle/d.jpg", "__MACOSX/e.jpg",
                 ".ipynb_checkpoints/a.jpg"):  # fmt: skip
        image(tmp_path / name)
    names, notes, _ = listed(tmp_path)
    assert names == ["a.jpg", "sub/b.jpg"]
    assert "left out: 5 folders and 4 files that are hidden" in notes or "4 files and 5 folders" in notes
    assert listed(tmp_path / ".Trash-1000")[0] == ["c.jpg"]  # asked for by name


def test_links(tmp_path, image):
    """Each file once; rings end; what leads out is told, or allowed."""
    photos, store = tmp_path / "photos", tmp_path / "store"
    for path in (photos / "in.jpg", photos / "real" / "one.jpg", photos / ".kept" / "h.jpg", store / "s.jpg"):
        image(path)
    for link, target in (("album", "real"), ("again.jpg", "in.jpg"), ("kept", ".kept"), ("real/up", ".."),
                         ("ring", "ring"), ("gone.jpg", "nowhere.jpg"), ("out", "../store"),
                         ("s.jpg", "../store/s.jpg")):  # fmt: skip
        os.symlink(target, photos / link)
    names, notes, listing = listed(photos)
    assert names == ["in.jpg", "kept/h.jpg", "real/one.jpg"]
    assert "2 are linked folders that were not entered" in notes and "album" in notes
    assert "1 lead to files that are listed anyway (e.g. again.jpg)" in notes
    assert "2 lead nowhere" in notes and "2 lead out of the folder" in notes and "--picture-roots" in notes
    assert {(item.path, item.kind) for item in listing.left_out} == {
        ("gone.jpg", "missing"), ("ring", "missing"), ("out", "outside"), ("s.jpg", "outside"),
    }  # fmt: skip
    names, notes, _ = listed(photos, store)
    assert names == ["in.jpg", "s.jpg", "kept/h.jpg", "real/one.jpg"] and "lead out" not in notes


def test_folders_nested_deeply(tmp_path, image):
    folder = tmp_path
    for _ in range(300):
        folder = folder / "d"
    image(folder / "a.jpg")
    os.symlink("../d", folder / "ring")
    assert listed(tmp_path)[0] == ["d/" * 300 + "a.jpg"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path, image, monkeypatch):
    image(tmp_path / "closed" / "a.jpg")
    real = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names, notes, _ = listed(tmp_path)
    assert names == [] and "1 folders that cannot be read, Permission denied (e.g. closed/)" in notes


def test_an_image_of_another_kind_is_named_where_it_cannot_be_decoded(no_plugins):
    with pytest.raises(
        BrokenImage, match="it is HEIC/HEIF, which is not read; save it as JPEG or PNG; HEIC/HEIF is read wh"
    ):
        with unread_named(HEIC):
            open_image(HEIC)
    with pytest.raises(BrokenImage, match="unknown format: it is HTML, no image"):
        with unread_named(b"<html>not found</html>"):
            open_image(b"<html>not found</html>")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1....", "Parquet"), (b"FEA1....", "Feather version 1"), (b"ARROW1\0\0", "Arrow"), (b"PK\3\4..", "zip"),
        (b"\xff\xff\xff\xff\x10\0\0\0\x10", "Arrow stream"), (b"\x1f\x8b..", "gzip"), (b'  {"images": ', "JSON"),
        (b"\xff\xfet\0", "UTF-16"), (b"\0\0\0\x1cftypavis", "AVIF"), (b"\0\0\0\x18ftypmp42", "video"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommif1", "HEIC/HEIF"), (b"a dog", ""), (b"", ""), (b"BM is short", ""),
    ],
)  # fmt: skip
def test_kinds(head, kind):
    assert kind_of(head) == kind


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\0\0\0\x18ftypmp42", "video/mp4"), (b"\0\0\0\x14ftypqt  ", "video/quicktime"),
        (b"RIFF\0\0\0\0AVI LIST", "video/x-msvideo"), (b"RIFF\0\0\0\0WAVE", None), (b"GIF89a", None),
        (b"\x1aE\xdf\xa3\x93B\x82\x84webm", "video/webm"), (b"\x1aE\xdf\xa3\x93B\x82\x88matroska", "video/x-matroska"),
    ],
)  # fmt: skip
def test_types_of_videos(head, kind):
    assert video_type(head) == kind
