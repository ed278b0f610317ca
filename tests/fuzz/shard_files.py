"""Hostile Arrow shards of vectors: `index build` takes them or refuses them in one line.

    python -m tests.fuzz.shard_files --files 1000 --seed 0

Files of every type that a shard may have; offsets, views and indices are replaced by others, bytes flipped in the
metadata and in the body, files cut. Each is read in a process of its own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from lexlip.index import IndexingError, build, read_shards

sys.path.insert(0, str(Path(__file__).parent))
from apart import run_apart

ROWS, TERMS = 200, 5
EXTREMES = [0, 1, -1, 7, 1000, 10**6, 10**8, (1 << 31) - 1, -(1 << 31), -100_000]
GOOD = {"built", "refused"}


def make_bases() -> list[bytes]:
    """Shards of all kinds of lists and ids, in Arrow's file format."""
    flat = np.tile(np.arange(TERMS, dtype=np.uint32), ROWS)
    terms, weights = flat.reshape(ROWS, TERMS).tolist(), pa.array(np.full(ROWS * TERMS, 0.5, np.float16))
    names = [f"image {number:06}.jpg" for number in range(ROWS)]
    lists = [pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, TERMS)]
    ids = [pa.array(range(ROWS)), *(pa.array(names, kind()) for kind in (pa.string, pa.large_string, pa.string_view))]
    ids.append(pa.array(names).dictionary_encode())
    files = []
    for number, kind in enumerate(lists):
        offsets = pa.array(range(0, ROWS * TERMS + 1, TERMS), pa.int32())
        heavy = pa.ListArray.from_arrays(offsets, weights)
        if number:
            heavy = pa.array([[np.float32(0.5)] * TERMS] * ROWS, kind(pa.float32()))
        for id in ids:
            batch = pa.record_batch({"id": id, "terms": pa.array(terms, kind(pa.uint32())), "weights": heavy})
            sink = pa.BufferOutputStream()
            with pa.ipc.new_file(sink, batch.schema) as writer:
                writer.write_batch(batch)
            files.append(sink.getvalue().to_pybytes())
    return files


def make_hostile(data: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind = int(rng.integers(5))
        place = int(rng.integers(len(content) // 8)) * 8
        if kind == 0:  # numbers of 32 or 64 bits, where offsets, views and indices lie
            width = int(rng.choice([4, 8]))
            value = int(rng.choice(EXTREMES)).to_bytes(width, "little", signed=True)
            content[place : place + width] = value[: len(content) - place]
        elif kind == 1:
            for at in rng.integers(0, len(content), 4).tolist():
                content[at] = int(rng.integers(256))
        elif kind == 2:  # the schema and the footer
            begin = 8 if rng.random() < 0.5 else max(len(content) - 1500, 0)
            at = begin + int(rng.integers(min(1500, len(content) - begin)))
            content[at] = int(rng.integers(256))
        elif kind == 3 and rng.random() < 0.2:
            content = content[: int(rng.integers(16, len(content)))]
        else:  # a part moved over another: valid numbers in wrong places
            other = int(rng.integers(len(content) // 8)) * 8
            part = content[other : other + int(rng.choice([8, 64, 512]))][: len(content) - place]
            content[place : place + len(part)] = part
    return bytes(content)


def try_one(path: Path, out: Path) -> dict[str, str]:
    begin = time.process_time()
    try:
        build(out, read_shards([path]))
        outcome = "built"
    except IndexingError as error:
        outcome = "refused" if str(path) in str(error) or "id " in str(error) else f"without a name: {error}"
        outcome = outcome if "\n" not in str(error) else "several lines"
    except Exception as error:
        outcome = f"{type(error).__name__}: {str(error)[:100]}"
    return {"build": outcome if time.process_time() - begin < 5 else "more than 5 s"}


def run(files: int, seed: int, work: Path) -> tuple[Counter, list[str]]:
    """Outcomes, and a line for each failure."""
    bases = make_bases()
    for data in bases:
        (work / "good.arrow").write_bytes(data)
        build(work / "good", read_shards([work / "good.arrow"]), overwrite=True)
    counts: Counter = Counter()
    failures = []
    for number in range(files):
        place = work / "one"
        place.mkdir()
        path = place / "a.arrow"
        path.write_bytes(make_hostile(bases[number % len(bases)], np.random.default_rng([seed, number])))
        outcomes, grown = run_apart(lambda path=path: try_one(path, path.parent / "out"))
        if grown > 256 << 20:
            outcomes["memory"] = f"grew by {grown >> 20} MiB"
        for outcome in outcomes.values():
            counts[outcome if outcome in GOOD else "failed"] += 1
            if outcome not in GOOD:
                failures.append(f"file {number}: {outcome}")
        shutil.rmtree(place)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        counts, failures = run(options.files, options.seed, Path(work))
    print(dict(counts))
    print("\n".join(failures[:100]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
