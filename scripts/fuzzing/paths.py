"""Damage to the path that a table gives for an image, and to what is at that path."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from fuzzing.good import Rng, damages, encode, good_tables, read_table, victim, write_table


@damages(
    "tsv", "image paths", "missing", "../ out", "../ inside", "absolute out", "absolute inside", "link out",
    "linked folder out", "link inside", "dangling link", "link loop", "pipe", "folder", "socket", "device", "NUL",
    "long name", "long path",
)  # fmt: skip
def image_path(folder: Path, rng: Rng, how: str) -> None:
    good_tables(folder, rng)
    path = victim(folder, rng)
    name = f"images/{path.name}"
    outside = folder.parent / f"{folder.name}_outside"
    outside.mkdir(exist_ok=True)
    (outside / "secret.png").write_bytes(encode(rng, "PNG"))
    new = name
    if how == "missing":
        path.unlink()
    elif how == "../ out":
        new = f"../../{outside.name}/secret.png"
    elif how == "../ inside":
        new = f"images/../{name}"
    elif how == "absolute out":
        new = str(outside / "secret.png")
    elif how == "absolute inside":
        new = str(path.resolve())
    elif how == "linked folder out":
        (folder / "mine" / "more").symlink_to(outside)
        new = "more/secret.png"
    elif how in ("link out", "link inside", "dangling link", "link loop", "device"):
        inside = path.with_name("other.png")
        inside.write_bytes(encode(rng, "PNG"))
        targets = {
            "link out": outside / "secret.png", "link inside": inside, "dangling link": path.with_name("gone"),
            "link loop": path, "device": Path("/dev/zero"),
        }  # fmt: skip
        path.unlink()
        if how == "device" and os.geteuid() == 0 and rng.integers(2):
            os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero itself
        else:
            path.symlink_to(targets[how])
    elif how in ("pipe", "folder", "socket"):
        path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        elif how == "folder":
            path.mkdir()
        else:
            here = os.getcwd()
            os.chdir(path.parent)  # an address may have 100 bytes
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path.name)
            os.chdir(here)
    else:
        names = {"NUL": "\0.png", "long name": f"{'x' * 300}.png", "long path": "y/" * 3000}
        new = f"images/{names[how]}"
    write_table(folder, read_table(folder).replace(name.encode(), new.encode()))
