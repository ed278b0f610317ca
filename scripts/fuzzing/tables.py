"""Damage to the table of titles and paths."""

from __future__ import annotations

import os
from pathlib import Path

from fuzzing.good import (
    Rng,
    caption,
    cut,
    damages,
    flip,
    good_rows,
    good_tables,
    read_table,
    write_table,
    write_tables,
    zero,
)


@damages("tsv", "table bytes", "cut short", "flipped bytes", "zeroed", "random bytes", "random text", "empty")
def damaged_bytes(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    data = read_table(folder)
    characters = list("abc\t\t\n\n\"'\\,\0\r ")
    write_table(
        folder,
        {
            "cut short": lambda: cut(data, rng),
            "flipped bytes": lambda: flip(data, rng),
            "zeroed": lambda: zero(data, rng),
            "random bytes": lambda: rng.bytes(int(rng.integers(1, 20_000))),
            "random text": lambda: b"title\tfilepath\n" + "".join(rng.choice(characters, 3000)).encode(),
            "empty": lambda: b"",
        }[how](),
    )


@damages(
    "tsv", "table encodings", "UTF-16", "UTF-16 without mark", "Latin-1", "UTF-8 with mark", "one bad row",
    "surrogates", "old Mac line ends", "Windows line ends", "no line ends",
)  # fmt: skip
def encoding(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    data = read_table(folder)
    text = data.decode().replace("dog", "Füchslein").replace("cat", "Kätzchen")
    at = int(rng.integers(40, len(data)))
    write_table(
        folder,
        {
            "UTF-16": lambda: text.encode("utf-16"),
            "UTF-16 without mark": lambda: text.encode("utf-16-le" if rng.integers(2) else "utf-16-be"),
            "Latin-1": lambda: text.encode("latin-1"),
            "UTF-8 with mark": lambda: text.encode("utf-8-sig"),
            "one bad row": lambda: data[:at] + b"\xff\xfe" + data[at:],
            "surrogates": lambda: data[:at] + b"\xed\xa0\x80" + data[at:],
            "old Mac line ends": lambda: data.replace(b"\n", b"\r"),
            "Windows line ends": lambda: data.replace(b"\n", b"\r\n"),
            "no line ends": lambda: data.replace(b"\n", b" "),
        }[how](),
    )


@damages(
    "tsv", "table shape", "no title", "no filepath", "column twice", "no header", "header only",
    "extra column in a row",
    "missing column in a row", "many extra columns", "blank lines", "commas", "pipe", "folder", "very many columns",
)  # fmt: skip
def shape(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    lines = read_table(folder).splitlines()
    at = int(rng.integers(1, len(lines)))
    if how in ("no title", "no filepath", "column twice"):
        header = {"no title": b"x\tfilepath\timage_id", "no filepath": b"title\tx\timage_id"}
        lines[0] = header.get(how, b"title\tfilepath\ttitle")
    elif how == "no header":
        lines = lines[1:]
    elif how == "header only":
        lines = lines[:1]
    elif how == "extra column in a row":
        lines[at] += b"\tmore"
    elif how == "missing column in a row":
        lines[at] = lines[at].split(b"\t")[0]
    elif how == "many extra columns":
        lines = [line + b"\tmore" * int(rng.integers(2)) for line in lines]
    elif how == "blank lines":
        lines[at:at] = [b"", b"   ", b""]
    elif how == "commas":
        lines = [line.replace(b"\t", b",") for line in lines]
    elif how == "very many columns":
        lines[at] += b"\t" * 1_000_000
    write_table(folder, b"\n".join(lines) + b"\n")
    for split in ("train", "test") if how in ("pipe", "folder") else ():
        path = folder / "mine" / f"mine_{split}.tsv"
        path.unlink()
        os.mkfifo(path) if how == "pipe" else path.mkdir()


@damages("tsv", "table quotes", "one quote", "opening quote", "quotes everywhere", "quoted line break", "many unclosed")
def quotes(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    rows = good_rows(rng)
    at = int(rng.integers(len(rows)))
    title = rows[at][0]
    if how == "one quote":
        cut_at = int(rng.integers(len(title)))
        rows[at][0] = title[:cut_at] + '"' + title[cut_at:]
    elif how == "opening quote":
        rows[at][0] = '"' + title
    elif how == "quoted line break":
        rows[at][0] = f'"{title}\n{title}"'
    elif how == "quotes everywhere":
        for row in rows:
            row[0] = "".join(char + '"' * int(rng.integers(4) == 0) for char in row[0])
    else:
        for row in rows:
            row[0] = '"' * int(rng.integers(2)) + row[0]
    write_tables(folder, rows)


@damages(
    "tsv", "texts", "10 MB caption", "20 MB caption", "one long word", "empty caption", "blank caption",
    "NUL in a caption",
    "control characters", "many empty captions", "10 MB id", "odd characters",
)  # fmt: skip
def text(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    rows = good_rows(rng)
    at = int(rng.integers(len(rows)))
    if how == "10 MB id":
        rows[at][2] = "9" * 10_000_000
    elif how == "many empty captions":
        for i in rng.choice(len(rows), 60, replace=False):
            rows[i][0] = ""
    else:
        controls = "".join(map(chr, [*range(1, 9), 11, 12, *range(14, 32), 0x7F, 0x85, 0x2028, 0x202E, 0xFEFF]))
        rows[at][0] = {
            "10 MB caption": "a dog " * 1_700_000,
            "20 MB caption": "a dog " * 3_400_000,
            "one long word": "x" * int(rng.integers(5000, 12_000)),
            "empty caption": "",
            "blank caption": " \u3000 ",
            "NUL in a caption": "a \0 dog",
            "control characters": controls,
            "odd characters": "\U0001f436\U0010ffff\u0301\u0301\u200d\ufffd ﷺ" * 20,
        }[how]
    write_tables(folder, rows)


@damages("tsv", "ids", "one id, two files", "ids all the same", "one file, two ids", "rows twice", "empty id", "odd id")
def ids(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    rows = good_rows(rng)
    at = int(rng.integers(1, len(rows)))
    if how == "one id, two files":
        rows[at][2] = "1000" if rows[at][2] != "1000" else "1001"
    elif how == "ids all the same":
        for row in rows:
            row[2] = "7"
    elif how == "one file, two ids":
        rows[at][2] = "another"
    elif how == "rows twice":
        rows += rows
    else:
        rows[at][2] = "" if how == "empty id" else f"../{caption(rng)}\u202e"
    write_tables(folder, rows)
