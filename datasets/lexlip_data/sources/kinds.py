"""What a file is by its first bytes, whatever its name says: images that are read or not, and files that people take
for tables, for JSON or for Arrow files.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lexlip_data.errors import BrokenImage, DataError
from lexlip_data.sources.files import NONBLOCK, require_file
from lexlip_data.sources.plugins import can_open, package_for

HEAD = 512  # bytes that tell

_PLUGINS = {  # of Pillow, for the kinds that `lexlip_data.sources.images` reads where its Pillow can
    "JPEG": "JPEG", "PNG": "PNG", "GIF": "GIF", "WebP": "WEBP", "TIFF": "TIFF", "BMP": "BMP", "PPM": "PPM",
    "JPEG 2000": "JPEG2000", "AVIF": "AVIF", "HEIC/HEIF": "HEIF", "JPEG XL": "JXL",
}  # fmt: skip
READ = frozenset(kind for kind, plugin in _PLUGINS.items() if can_open(plugin))
_OTHERS = "JPEG XR|SVG|Photoshop|icon|EPS|PDF|OpenEXR|Radiance HDR|camera raw|DICOM|GIMP|DDS"
UNREAD = frozenset((*_PLUGINS, *_OTHERS.split("|"))) - READ  # images to people
_RAW = frozenset(".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl "
                 ".sr2 .srf .srw .x3f".split())  # fmt: skip
# Suffixes of files that are taken for images unseen: whether they are, their decoder says.
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .pjpeg .pjp .mpo .png .apng .gif .webp .tif .tiff .bmp .dib .ppm .pgm .pbm .pnm .pfm "
    ".jp2 .j2k .jpf .jpx .j2c .jpc".split()
)
_BRANDS = dict.fromkeys(b"heic heix heim heis hevc hevx mif1 msf1".split(), "HEIC/HEIF")
_BRANDS |= {b"avif": "AVIF", b"avis": "AVIF", b"crx ": "camera raw", b"M4A ": "sound", b"M4B ": "sound"}
_STARTS = (  # longer before shorter where one begins with the other
    (b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF87a", "GIF"), (b"GIF89a", "GIF"),
    (b"II*\0\x10\0\0\0CR", "camera raw"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"), (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"), (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"), (b"II\xbc", "JPEG XR"),
    (b"8BPS", "Photoshop"), (b"\0\0\1\0", "icon"), (b"%!PS", "EPS"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"%PDF", "PDF"),
    (b"\x76\x2f\x31\x01", "OpenEXR"), (b"#?RADIANCE", "Radiance HDR"), (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"), (b"IIRS", "camera raw"), (b"MMOR", "camera raw"), (b"IIU\0", "camera raw"),
    (b"gimp xcf", "GIMP"), (b"DDS ", "DDS"), (b"\x1aE\xdf\xa3", "video"),  # Matroska and WebM
    (b"PAR1", "Parquet"), (b"FEA1", "Feather version 1"), (b"ARROW1", "Arrow"), (b"ORC", "ORC"), (b"Obj\x01", "Avro"),
    (b"PK\x03\x04", "zip"), (b"PK\x05\x06", "zip"), (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"), (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!", "RAR"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Excel"), (b"SQLite format 3\0", "SQLite"), (b"\x80\x02}", "pickle"),
    (b"\x80\x03", "pickle"), (b"\x80\x04\x95", "pickle"), (b"\x80\x05\x95", "pickle"), (b"\x93NUMPY", "NumPy"),
    (b"\x89HDF\r\n", "HDF5"), (b"\x00\x05\x16\x07", "AppleDouble"), (b"version https://git-lfs", "Git LFS pointer"),
    (b"\xff\xfe\0\0", "UTF-32"), (b"\0\0\xfe\xff", "UTF-32"), (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"),
)  # fmt: skip
_UNMARKED = "UTF-16 without its mark"  # every second byte is 0
_CHUNKS = {b"WEBP": "WebP", b"ACON": "icon", b"AVI ": "video", b"WAVE": "sound"}  # of RIFF
_BMP_HEADERS = {12, 16, 40, 52, 56, 64, 108, 124}  # bytes


def kind_of(head: bytes, name: str = "") -> str:
    """The kind of a file that begins with `head` (HEAD bytes or the whole file); "" if it is none that is known.

    Args:
        name: its name; raw files of cameras are TIFF files to their first bytes.
    """
    kind = _by_content(head)
    return "camera raw" if kind == "TIFF" and os.path.splitext(name)[1].lower() in _RAW else kind


def _by_content(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        compatible = range(16, min(int.from_bytes(head[:4], "big"), len(head)) - 3, 4)
        brands = (head[start : start + 4] for start in (8, *compatible))
        return next((_BRANDS[brand] for brand in brands if brand in _BRANDS), "video")
    if head[:4] == b"RIFF":
        return _CHUNKS.get(head[8:12], "sound or video")
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if re.match(rb"P[1-6f]\s+(#[^\n]*\n\s*)*-?\d", head):
        return "PPM"
    if head[128:132] == b"DICM":
        return "DICOM"
    if len(head) >= 8 and len(head) % 2 == 0 and (not any(head[1::2]) or not any(head[::2])):
        return _UNMARKED if any(head) else ""
    if head[:4] == b"\xff\xff\xff\xff" and len(head) > 8 and head[4:8] != b"\xff\xff\xff\xff":
        return "Arrow stream"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lower = text[:HEAD].lower()
    if lower.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in lower:
        return "SVG"
    if lower.startswith((b"<!doctype html", b"<html", b"<head")):
        return "HTML"
    if re.match(rb'(\{\s*("|\}|\Z)|\[\s*([\[{"\]\d-]|\Z))', text):
        return "JSON"
    return ""


def kind_of_file(path: str | Path) -> str | None:
    """`kind_of` a file by its content and name; None if it is no ordinary file or cannot be opened."""
    head = _head_of(path)
    return None if head is None else kind_of(head, str(path))


def video_type(head: bytes) -> str | None:
    """The media type of a video's file that begins with `head` (HEAD bytes); None if it is no video."""
    if kind_of(head) != "video":
        return None
    if head[:4] == b"RIFF":
        return "video/x-msvideo"
    if head[4:8] == b"ftyp":
        return "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    return "video/webm" if b"webm" in head[:64] else "video/x-matroska"  # the type stands in the first element


def _head_of(path: str | Path) -> bytes | None:
    try:
        handle = os.open(path, os.O_RDONLY | NONBLOCK)
    except (OSError, ValueError):
        return None
    try:
        return os.read(handle, HEAD) if stat.S_ISREG(os.fstat(handle).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(handle)


@contextmanager
def unread_named(data: bytes | memoryview) -> Iterator[None]:
    """Where an image's bytes cannot be decoded because they are of another known kind, the error says of which."""
    try:
        yield
    except BrokenImage as error:
        kind = kind_of(bytes(data[:HEAD]))
        if not kind or kind in READ:
            raise
        what = f"which is not read; {advice_for([kind])}" if kind in UNREAD else "no image"
        raise BrokenImage(f"{error}: it is {kind}, {what}") from error


def require_text(path: str | Path, wanted: str, json: bool = False) -> None:
    """Refuse a file that is surely no text, or text of another kind, by its first bytes.

    Args:
        wanted: what it should be, for the message.
        json: whether JSON and other marked-up text will do.
    Raises:
        DataError: it is no file, or of a known other kind.
    """
    require_file(path)
    with open(path, "rb") as file:
        head = file.read(HEAD)
    kind = kind_of(head, str(path))
    refused = _NEVER if json else _TEXT_KINDS
    if not kind or (kind == _UNMARKED and not json) or (_is_plain(head) and kind not in refused):
        return
    if kind.startswith("UTF-"):
        text = f"not UTF-8 text but {kind}" if json else f"{kind} text"
        raise DataError(f"{path}: {text}; save it as UTF-8")
    if kind == "zip" and Path(path).suffix.lower() in (".xlsx", ".xlsm", ".ods"):
        kind = "Excel" if Path(path).suffix.lower() != ".ods" else "OpenDocument"
    article = "an" if kind[0] in "AEIO" or kind in ("HTML", "HDF5") else "a"
    advice = _TODO.get(kind, "give the text itself")
    raise DataError(f"{path}: {article} {kind} file, not {wanted}; {advice}")


def _is_plain(head: bytes) -> bool:
    """Whether the first bytes are text: a caption may begin with the letters of a magic number, such as ORC."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else the last character is cut
            return False
        text = head[: error.start].decode()
    return not re.search(r"[\x00-\x08\x0e-\x1f]", text)


_NEVER = ("Git LFS pointer",)
_TEXT_KINDS = ("JSON", "HTML", "SVG", *_NEVER)
_UNPACK = "unpack it and give the file inside"
_EXPORT = "save it as CSV or TAB-separated text in UTF-8"
_TODO = {
    **dict.fromkeys("zip gzip bzip2 xz Zstandard 7-Zip RAR LZ4".split(), _UNPACK),
    **dict.fromkeys("Excel|old Excel|OpenDocument|SQLite|ORC|Avro|pickle|HDF5|NumPy".split("|"), _EXPORT),
    "Parquet": "give it with --parquet (convert.py hf, lexlip encode), or save it as text, as with "
    "pandas.read_parquet(FILE).to_csv(NEW, sep='\\t', index=False)",
    "Arrow": "give it as an Arrow file (--arrow, or under data_root), or save it as text",
    "Arrow stream": "give it as an Arrow file (--arrow, or under data_root), or save it as text",
    "JSON": "convert.py's layouts karpathy, coco-captions, gcc and sbu read JSON; else save it as CSV or TAB-separated",
    "HTML": "a web page was stored in its place: download it again",
    "Git LFS pointer": "fetch the file itself with git lfs pull",
    "AppleDouble": "it holds what macOS keeps beside a file: give the file without ._ before its name",
}
SAVE_AS_IMAGE = "save it as JPEG or PNG"


def advice_for(kinds: list[str]) -> str:
    """What to do about images of kinds that are not read."""
    return "; ".join(filter(None, (SAVE_AS_IMAGE, package_for(kinds))))
