"""The benchmarks of the training and of recall in turn, each in a process of its own: their tables, and one JSON file.

    python benchmarks/all.py --json all.json --data DATA/flickr8k --data DATA/coco_mini
    python benchmarks/all.py --only head step --device cuda

Options it does not know go to every benchmark (--device, --dtype, --threads, --repeats, --warmups, --no-memory). About
fifteen minutes on two cores. The index has benchmarks of its own, large_scale.py among them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import checkout

from lexlip.utils.files import write_json

HERE = Path(__file__).resolve().parent
NAMES = ("head", "step", "data", "evaluate")
FIXED = {"data": ("--device", "--dtype", "--threads"), "evaluate": ("--device", "--dtype")}  # the CPU's


def main(arguments: list[str] | None = None) -> int:
    """Run them; the status is 1 if one of them failed, after all others were run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--data", action="append", default=[], help="a folder of images for data.py; may be repeated")
    options, common = parser.parse_known_args(arguments)
    rows, failed = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.only:
            out = Path(scratch) / f"{name}.json"
            own = options.data if name == "data" else []
            command = [sys.executable, str(HERE / f"{name}.py"), *own, "--json", str(out), *_known(name, common)]
            print(f"\n--- {name} ---", flush=True)
            if subprocess.run(command).returncode:
                failed.append(name)
            if out.is_file():
                rows += json.loads(out.read_text())
    if options.json:
        write_json(rows, options.json)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _known(name: str, common: list[str]) -> list[str]:
    """Without the options that a benchmark fixes itself."""
    kept, words = [], iter(common)
    for word in words:
        option = word.split("=")[0]
        if option in FIXED.get(name, ()):
            if "=" not in word:
                next(words, None)
            continue
        kept.append(word)
    return kept


if __name__ == "__main__":
    checkout.run(main)
