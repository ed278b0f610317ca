"""Refuses images whose structure costs far more than their pixels, before any pixel is decoded.

The number of pixels is known from a header, and bounded there. What else makes a decoder work is bounded here: scans
and segments of a JPEG, chunks of a PNG, extensions of a GIF, directories, tiles and strips of a TIFF, boxes and tiles
of a JPEG 2000 file, the header of a PPM. Each bound is several times what real images have. A JPEG costs some 15
microseconds; one of several scans also a search of its bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import islice

from lexlip_data.errors import BrokenImage

MAX_PIXELS = 64 << 20  # decoded, turned and converted, such an image takes up to 1.3 GB (JPEG 2000), usually 0.5 GB
MAX_SCANS = 100  # of a progressive JPEG; ten are usual, and each takes as long as a pass over all pixels
MAX_SCANNED = 20 * MAX_PIXELS  # scans x pixels: so the largest images have at most 20 scans
MAX_SEGMENTS = 1000  # of a JPEG's header, PNG's chunks beside pixels, JPEG 2000's boxes; Pillow reads them in Python
MAX_METADATA = 16 << 20  # bytes of segments before a JPEG's pixels; the largest known are depth maps of a few MB
MAX_JUNK = 64 << 10  # bytes of fill, comment or nothing, which Pillow reads one at a time
MAX_BLOCKS = 1 << 16  # data blocks of a PNG (8 KiB each fill the largest image), blocks of GIF extensions
MAX_COMPRESSED = 100  # texts and profiles of a PNG, each of which unpacks to as much as 1 MB
MAX_ENTRIES = 4096  # of a directory of tags; real ones have less than 200
SMALL_TILE = 1 << 24  # pixels of a TIFF tile that is allowed around any image

_SOS = b"\xff\xda"  # marker of a JPEG scan; also counts those of thumbnails and of further images
_FILL = re.compile(rb"\xff+")
_SCANS_AND_END = re.compile(rb"\xff\xda|\xff\xd9")
_TAG_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_WIDTH, _HEIGHT, _COMPRESSION, _PLANES, _SAMPLES = 256, 257, 259, 284, 277
_STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 273, 278, 322, 323, 324
_Tags = dict[int, tuple[int, int]]  # tag -> (how many values, the first value if it is a whole number, else 0)


def check_structure(data: bytes) -> None:
    """Look at an encoded image's structure; a file that is merely damaged passes, because its decoder says so better.

    Raises:
        BrokenImage: it has many times more scans, segments, chunks, tiles and so on than a real image.
    """
    for signature, check in _CHECKS.items():
        if data.startswith(signature):
            try:
                check(data)
            except (struct.error, IndexError):
                return  # cut short
            return


def check_tags(block: bytes) -> None:
    """The same for a block of EXIF tags.

    Raises:
        BrokenImage: too many tags, or tags whose values are together much larger than the block.
    """
    _directory(re.sub(b"^(Exif\0\0)+", b"", block))


def _refuse(what: str) -> BrokenImage:
    return BrokenImage(f"{what}: more than a real image has, made to keep a decoder busy")


def _check_jpeg(data: bytes) -> None:
    start, pixels, several = _jpeg_header(data)
    if several and data.count(_SOS) > MAX_SCANNED // MAX_PIXELS:  # else the exact number does not matter
        scans = 1
        for marker in _SCANS_AND_END.finditer(data, start):
            if marker[0] != _SOS:
                break  # the end of the first image
            scans += 1
            if scans > MAX_SCANS or scans * pixels > MAX_SCANNED:
                raise _refuse(f"{scans:,} scans or more, of {pixels:,} pixels")


def _jpeg_header(data: bytes) -> tuple[int, int, bool]:
    """Where the first scan's segment begins, the frame's pixels, and whether more scans would be read.

    None is, and an error it would be, after a first scan of all components that is not progressive.
    """
    at, junk, metadata, pixels, components, progressive = 2, 0, 0, 0, 0, False
    exif = []
    for _ in range(MAX_SEGMENTS):
        fill = _FILL.search(data, at)
        junk += (fill.end() - 1 if fill else len(data)) - at
        if junk > MAX_JUNK:
            raise _refuse(f"{junk:,} bytes of fill between segments")
        if fill is None:
            return len(data), pixels, False
        at = fill.end() + 1
        code = data[at - 1]
        if code == 0xDA:
            break
        if not (0xC0 <= code <= 0xCF or 0xDB <= code <= 0xEF or code == 0xFE) or code == 0xC8:
            continue  # a marker without a segment
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        at += max(length, 2)
        metadata += length
        if metadata > MAX_METADATA:
            raise _refuse(f"{metadata:,} bytes of segments before the pixels")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xCC) or code == 0xDE:
            height, width, components = struct.unpack_from(">HHB", body, 1)
            pixels = max(pixels, height * width)
            progressive = progressive or code not in (0xC0, 0xC1, 0xC9)
        elif code == 0xE1 and body.startswith(b"Exif\0\0"):
            exif.append(body[6:])
        elif code == 0xE2 and body.startswith(b"MPF\0"):
            check_tags(body[4:])
    else:
        raise _refuse(f"more than {MAX_SEGMENTS:,} segments before the pixels")
    check_tags(b"".join(exif))
    return at, pixels, progressive or data[at + 2] < components


def _check_png(data: bytes) -> None:
    at, blocks, others, compressed, animations = 8, 0, 0, 0, 0
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND" or (kind == b"fcTL" and blocks and animations == 1):
            return  # Pillow reads an animation's first frame only
        if kind == b"acTL" and struct.unpack_from(">I", data, at + 8)[0] > 1:
            animations += 1
        blocks += kind == b"IDAT"
        others += kind != b"IDAT"
        compressed += kind in (b"zTXt", b"iTXt", b"iCCP")
        if blocks > MAX_BLOCKS or others > MAX_SEGMENTS or compressed > MAX_COMPRESSED:
            raise _refuse(f"more than {blocks - 1:,} data chunks, {others - 1:,} others or {compressed:,} compressed")
        at += 12 + length


def _check_gif(data: bytes) -> None:
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    junk = blocks = 0
    while data[at] not in b",;":  # the first image, or the end
        if data[at] != 0x21:
            junk, at = junk + 1, at + 1
        else:
            at += 2  # an extension and its label
            while size := data[at]:
                blocks, at = blocks + 1, at + 1 + size
                if blocks > MAX_BLOCKS:
                    break
            blocks, at = blocks + 1, at + 1
        if junk > MAX_JUNK or blocks > MAX_BLOCKS:
            raise _refuse(f"more than {blocks - 1:,} blocks of extensions, or {junk:,} bytes of nothing")


def _check_ppm(data: bytes) -> None:
    if len(data) > MAX_JUNK:
        head = re.sub(rb"#[^\r\n]*([\r\n]|$)", b" ", data[:MAX_JUNK])
        if len(head.split(None, 4)) < 4:  # at least kind, width, height, and a pixel or the highest value
            raise _refuse(f"a header of more than {MAX_JUNK:,} bytes")


def _check_tiff(data: bytes) -> None:
    tags = _directory(data)
    _, width = tags.get(_WIDTH, (0, 0))
    _, height = tags.get(_HEIGHT, (0, 0))
    pixels = width * height
    planes = tags.get(_SAMPLES, (1, 1))[1] if tags.get(_PLANES, (1, 1))[1] == 2 else 1
    if _TILE_WIDTH in tags and _TILE_HEIGHT in tags:
        tile = (max(tags[_TILE_WIDTH][1], 1), max(tags[_TILE_HEIGHT][1], 1))
        area = tile[0] * tile[1]
        if area > min(MAX_PIXELS, max(4 * pixels, SMALL_TILE)):
            raise _refuse(f"tiles of {tile[0]:,} x {tile[1]:,} pixels for an image of {width:,} x {height:,}")
        parts = most = -(-width // tile[0]) * -(-height // tile[1]) * planes
        if area < 256 and parts > MAX_BLOCKS:  # the format's smallest tiles are of 16 x 16
            raise _refuse(f"{parts:,} tiles of {tile[0]} x {tile[1]} pixels")
    else:
        parts = -(-height // max(tags.get(_ROWS, (1, height))[1], 1)) * planes
        most = height * planes  # some writers leave out how many rows a strip has
    listed = max(tags.get(tag, (0, 0))[0] for tag in (_STRIPS, _TILES))
    if listed > 2 * most + 16:
        raise _refuse(f"{listed:,} strips or tiles for an image of {width:,} x {height:,} pixels")
    if tags.get(_COMPRESSION, (1, 1))[1] in (6, 7):  # JPEG in each part
        scans = data.count(_SOS)
        if scans > MAX_SCANNED // MAX_PIXELS * max(parts, 1):
            raise _refuse(f"{scans:,} scans in {parts:,} strips or tiles")


def _directory(block: bytes) -> _Tags:
    """The first directory of a TIFF file or an EXIF block, as Pillow finds it.

    Raises:
        BrokenImage: too many tags, values larger than the block by far, or a tag of the image's form twice.
    """
    if block[:2] not in (b"II", b"MM") or len(block) < 8:
        return {}
    order = "<" if block[:2] == b"II" else ">"
    big = 43 in block[2:4]
    if big:
        (start,) = struct.unpack_from(order + "Q", block, 8)
        (count,) = struct.unpack_from(order + "Q", block, start)
        entry, first, inline = struct.Struct(order + "HHQ8s"), start + 8, 8
    else:
        (start,) = struct.unpack_from(order + "L", block, 4)
        (count,) = struct.unpack_from(order + "H", block, start)
        entry, first, inline = struct.Struct(order + "HHL4s"), start + 2, 4
    if count > MAX_ENTRIES:
        raise _refuse(f"{count:,} tags")
    tags: _Tags = {}
    total = 0
    for at in range(first, min(first + count * entry.size, len(block) - entry.size + 1), entry.size):
        tag, kind, number, value = entry.unpack_from(block, at)
        size = _TAG_SIZES.get(kind, 0) * number
        total += min(size, len(block))
        if total > 4 * len(block) + (1 << 20):
            raise _refuse(f"tags of more than {total:,} bytes in {len(block):,}")
        if tag in _FORM and tag in tags:
            raise BrokenImage(f"the tag {tag} is there twice, and says twice how the image is stored")
        tags[tag] = (number, _first_value(block, order, kind, size, inline, value))
    return tags


_FORM = {_WIDTH, _HEIGHT, _COMPRESSION, _PLANES, _SAMPLES, _STRIPS, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _TILES}


def _first_value(block: bytes, order: str, kind: int, size: int, inline: int, value: bytes) -> int:
    form = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q"}.get(kind)
    if form is None or size == 0:
        return 0
    if size > inline:
        (at,) = struct.unpack_from(order + ("Q" if inline == 8 else "L"), value)
        value = block[at : at + 8]
    return struct.unpack_from(order + form, value)[0] if len(value) >= struct.calcsize(order + form) else 0


def _check_jp2(data: bytes) -> None:
    for number, (kind, start, end) in enumerate(_boxes(data, 0, len(data))):
        if number >= MAX_SEGMENTS:
            raise _refuse(f"more than {MAX_SEGMENTS:,} boxes")
        if kind == b"jp2h" and len(list(islice(_boxes(data, start, end), MAX_SEGMENTS + 1))) > MAX_SEGMENTS:
            raise _refuse(f"a header of more than {MAX_SEGMENTS:,} boxes")
        if kind == b"jp2c":
            _check_j2k(data, start)
            return


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    while at + 8 <= end:
        length, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if length == 1:
            (length,), head = struct.unpack_from(">Q", data, at + 8), 16
        stop = at + length if length else end  # 0: to the end
        if stop < at + head:
            return
        yield kind, at + head, min(stop, end)
        at = stop


def _check_j2k(data: bytes, start: int = 0) -> None:
    """The codestream: its own size, components and tiles, whatever the boxes around it say."""
    _, _, right, bottom, left, top, width, height, tile_left, tile_top, components = struct.unpack_from(
        ">HHIIIIIIIIH", data, start + 4
    )
    pixels = max(right - left, 0) * max(bottom - top, 0)
    if components > 4 or pixels > MAX_PIXELS:
        raise _refuse(f"{components} components of {pixels:,} pixels")
    if width and height:
        tiles = -(-max(right - tile_left, 0) // width) * -(-max(bottom - tile_top, 0) // height)
        if tiles > max(MAX_J2K_TILES, pixels >> 14):
            raise _refuse(f"{tiles:,} tiles for {pixels:,} pixels")
    at = start + 2
    for _ in range(MAX_SEGMENTS):
        marker, length = struct.unpack_from(">HH", data, at)
        if marker in (0xFF90, 0xFFD9):  # the first tile, or the end
            return
        at += 2 + max(length, 2)
    raise _refuse(f"more than {MAX_SEGMENTS:,} segments before the pixels")


def _check_jxl(data: bytes) -> None:
    """The size, before a plugin decodes all of it to tell it: the codestream itself, or in the first box of one."""
    if data.startswith(b"\0\0\0\x0cJXL "):
        boxes = islice(_boxes(data, 0, len(data)), MAX_SEGMENTS)
        streams = (data[begin + 4 * (kind == b"jxlp") :] for kind, begin, _ in boxes if kind in (b"jxlc", b"jxlp"))
        data = next(streams, b"")
    if not data.startswith(b"\xff\x0a"):
        raise BrokenImage("a JPEG XL file without an image")
    bits, at = int.from_bytes(data[2:18].ljust(16, b"\0"), "little"), 0

    def take(count: int) -> int:
        nonlocal at
        value = bits >> at & (1 << count) - 1
        at += count
        return value

    small = take(1)
    side = lambda: 8 * (1 + take(5)) if small else 1 + take((9, 13, 18, 30)[take(2)])
    height = side()
    ratio = take(3)
    width = side() if ratio == 0 else height * _JXL_RATIOS[ratio - 1][0] // _JXL_RATIOS[ratio - 1][1]
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels are more than {MAX_PIXELS:,}: a decompression bomb, or too large")


_JXL_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))  # width to height
MAX_J2K_TILES = 1024  # of any JPEG 2000 image; more only with 128 x 128 pixels or more each
_CHECKS = {
    b"\xff\xd8\xff": _check_jpeg, b"\x89PNG\r\n\x1a\n": _check_png, b"GIF8": _check_gif, b"P": _check_ppm,
    b"II": _check_tiff, b"MM": _check_tiff, b"\0\0\0\x0cjP  ": _check_jp2, b"\xff\x4f\xff\x51": _check_j2k,
    b"\xff\x0a": _check_jxl, b"\0\0\0\x0cJXL ": _check_jxl,
}  # fmt: skip
