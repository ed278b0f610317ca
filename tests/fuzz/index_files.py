"""Index files with right checksums and hostile contents: every operation ends in a result or a DamagedIndex.

    python -m tests.fuzz.index_files --files 5000 --seed 0

Each file is made from a good index by changing one to three fields that the format names: of the manifest, a footer,
the table of sections, the columns of the lists, skips, impacts, occurrences, ids and their groups, postings,
deletions. Then all checksums are computed anew. Each index goes through all operations in a process of its own. A
crash, another error, more than 5 s of processor time or memory beyond twice the index and 64 MiB is a failure.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lexlip.index import DamagedIndex, Index, IndexingError, SparseRows, add, build, delete, merge
from lexlip.index.export import export
from lexlip.index.index import damage_of
from lexlip.index.stored import stored_rows

sys.path.insert(0, str(Path(__file__).parent))
from apart import run_apart

MAGIC = b"LEXLIPIX"
COLUMNS = (("gap", "<u4"), ("count", "<u4"), ("bytes", "<u4"), ("low", "u1"), ("top", "<u2"))
NUMBERS = [0, 1, -1, 2, 7, 8, 9, 15, 16, 17, 63, 255, 256, 1 << 16, 1 << 22, 1 << 25, (1 << 31) - 1, 1 << 31, 1 << 32]
NUMBERS += [(1 << 63) - 1, 1 << 63, -(1 << 63), 1 << 64, 10**30, 10**400, 1.0, 0.5, 1e300]
OTHERS = [None, True, False, "", "x", "int", "string", "../../etc/passwd", "/dev/zero", [], {}, [1], {"a": 1}, [[]] * 3]
SECONDS, MEMORY = 5.0, 64 << 20


def make_bases(folder: Path) -> list[Path]:
    """Good indexes: ids that are numbers with and without gaps, and names; two segments, some documents deleted."""
    rng = np.random.default_rng(0)
    kinds: dict[str, Callable] = {"gaps": lambda n: 7 * n - 90, "row": lambda n: n, "names": lambda n: f"p/{n:04}.jpg"}
    for kind, name in kinds.items():
        bags = [{int(t): float(rng.random() + 0.01) for t in rng.zipf(1.4, 8) if t < 60} for _ in range(700)]
        ids = [name(number) for number in range(700)]
        build(folder / kind, [SparseRows.from_bags(bags[:600], ids[:600])], impact_bits=5)
        add(folder / kind, [SparseRows.from_bags(bags[600:], ids[600:])])
        delete(folder / kind, ids[3:500:11])
    return [folder / kind for kind in kinds]


def read_container(path: Path) -> tuple[dict, dict[str, bytes]]:
    content = path.read_bytes()
    length = struct.unpack("<I", content[-16:-12])[0]
    footer = json.loads(content[-16 - length : -16])
    return footer, {name: content[b : b + n] for name, (b, n, _) in footer["sections"].items()}


def write_container(path: Path, footer: dict, sections: dict[str, bytes], places: dict) -> None:
    out = bytearray(MAGIC)
    table = {}
    for name, data in sections.items():
        out += bytes(-len(out) % 8)
        table[name] = [len(out), len(data), zlib.crc32(data)]
        out += data
    for name, change in places.items():
        if name in table:
            table[name] = change(table[name])
    encoded = json.dumps({**footer, "sections": table}).encode()
    out += bytes(-len(out) % 8) + encoded + struct.pack("<II", len(encoded), zlib.crc32(encoded)) + MAGIC
    path.write_bytes(out)


def hostile_value(rng: np.random.Generator, old: object) -> object:
    if type(old) is int and rng.random() < 0.5:
        return old + int(rng.choice([-1, 1, -2, 2, 8, -8, 16, 1 << 20]))
    values = NUMBERS if rng.random() < 0.7 else OTHERS
    return values[int(rng.integers(len(values)))]


def change_json(rng: np.random.Generator, value: object, depth: int = 0) -> object:
    """The value with one thing in it changed, removed or added."""
    if isinstance(value, (dict, list)) and value and (depth == 0 or rng.random() < 0.85):
        copy = value.copy()
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.06:
            del copy[key]
        elif rng.random() < 0.06 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = change_json(rng, copy[key], depth + 1)
        return copy
    return hostile_value(rng, value)


def change_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    array = np.frombuffer(data, np.uint8).copy()
    kind = int(rng.integers(8))
    if kind == 0 and len(array):
        array[rng.integers(0, len(array), int(rng.integers(1, 9)))] ^= rng.integers(1, 256, 1, np.uint8)[0]
    elif kind == 1:
        array[:] = rng.integers(0, 256, len(array), np.uint8)
    elif kind == 2:
        array[:] = 0xFF
    elif kind == 3:
        array[:] = 0
    elif kind == 4:
        array = array[: int(rng.integers(0, len(array) + 1))]
    elif kind == 5:
        array = np.append(array, rng.integers(0, 256, int(rng.integers(1, 40)), np.uint8))
    elif kind == 6 and len(array):
        array = array[::-1]
    elif len(array):
        begin = int(rng.integers(len(array)))
        part = array[begin : begin + int(rng.integers(1, 200))]
        part[:] = rng.integers(0, 256, len(part), np.uint8)
    return array.tobytes()


def change_numbers(rng: np.random.Generator, data: bytes, dtype: str) -> bytes:
    """Some of an array's numbers set to others that its type holds."""
    array = np.frombuffer(data, dtype).copy()
    if not len(array):
        return data
    where = rng.integers(0, len(array), int(rng.choice([1, 1, 2, len(array)])))
    if array.dtype.kind == "f":
        values = np.array([np.nan, np.inf, -np.inf, -1, 0, 65504, 1e-7], array.dtype)
        array[where] = rng.choice(values, len(where))
    else:
        top = int(np.iinfo(array.dtype).max)
        near = [int(value) for value in array[where][:1]]
        values = [v for v in (*NUMBERS, *near, near[0] + 1, near[0] - 1) if type(v) is int and 0 <= v <= top]
        array[where] = np.array([values[int(n)] for n in rng.integers(0, len(values), len(where))], array.dtype)
    return array.tobytes()


def change_lists(rng: np.random.Generator, footer: dict, packed: bytes) -> bytes:
    columns, begin, parts = zlib.decompress(packed), 0, {}
    for name, dtype in COLUMNS:
        size = footer["lists"] * np.dtype(dtype).itemsize
        parts[name] = columns[begin : begin + size]
        begin += size
    name, dtype = COLUMNS[int(rng.integers(len(COLUMNS)))]
    parts[name] = change_numbers(rng, parts[name], dtype)
    if rng.random() < 0.05:  # a bomb
        parts["top"] += bytes(32 << 20)
    return zlib.compress(b"".join(parts.values()), 6)


def change_segment(rng: np.random.Generator, path: Path) -> tuple[str, object]:
    """Change one field of a segment or of deletions; returns what it was, and how many documents it now claims."""
    footer, sections = read_container(path)
    footer.pop("sections")
    places: dict[str, Callable] = {}
    name = list(sections)[int(rng.integers(len(sections)))]
    dtypes = {"skips": "<u4", "impacts": "<f2", "occurrences": "<u8", "id_groups": "<u8"}
    kinds = {"footer": 5, "bytes": 4, "numbers": 4, "sections": 2, "lists": 3, "postings": 2}
    kind = str(rng.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values())))
    if kind == "footer":
        footer = change_json(rng, footer)  # type: ignore[assignment]
        footer = footer if isinstance(footer, dict) else {}
    elif kind == "numbers" and name in dtypes:
        sections[name] = change_numbers(rng, sections[name], dtypes[name])
    elif kind == "sections":
        if rng.random() < 0.2:
            del sections[name]
        else:
            places[name] = lambda place: change_json(rng, place)
    elif kind == "lists" and "lists" in sections:
        name = "lists"
        sections[name] = change_lists(rng, footer, sections[name])
    elif kind == "postings" and "postings" in sections:
        name = "postings"
        sections[name] = change_bytes(rng, sections[name])
    else:
        kind = "bytes"
        sections[name] = change_bytes(rng, sections[name])
    write_container(path, footer, sections, places)
    return kind if kind in ("footer", "sections") else name, footer.get("documents")


def make_hostile(base: Path, folder: Path, rng: np.random.Generator) -> str:
    """A copy of an index with some fields changed; returns which."""
    shutil.copytree(base, folder)
    manifest = folder / "manifest"
    value = json.loads(manifest.read_bytes().split(b"\n", 1)[1])
    changed = []
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        if rng.random() < 0.15:
            changed.append("manifest")
            continue
        files = [entry[key] for entry in value["segments"] for key in ("file", "deletions") if entry[key]]
        file = files[int(rng.integers(len(files)))]
        path = folder / file["name"]
        try:
            field, documents = change_segment(rng, path)
            changed.append(field)
        except (ValueError, KeyError, TypeError, zlib.error):  # the field is gone already
            continue
        content = path.read_bytes()
        file["bytes"], file["crc32"] = len(content), zlib.crc32(content)
        for entry in value["segments"]:  # the manifest tells the same lie
            if entry["file"]["name"] == path.name and rng.random() < 0.5:
                entry["documents"] = documents
    for _ in range(changed.count("manifest")):
        value = change_json(rng, value)
    text = json.dumps(value, indent=1).encode() + b"\n"
    manifest.write_bytes(b"lexlip-index 1 crc32=%08x\n" % zlib.crc32(text) + text)
    return "+".join(sorted(set(changed))) or "manifest"


def operations(folder: Path) -> dict[str, Callable]:
    query = {term: 1.0 for term in range(70)}
    names = folder.name.endswith("names")
    row = SparseRows.from_bags([{1: 1.0}], ["new" if names else 10**6])
    opened: list[Index] = []

    def index() -> Index:
        if not opened:
            opened.append(Index.open(folder))
        return opened[0]

    return {
        "open": lambda: len(index()),
        "info": lambda: index().info(),
        "search": lambda: [index().search(query, k, threads=1) for k in (1, 10, 1000)],
        "drop": lambda: index().search(query, 10, drop=0.3, candidates=20, threads=1),
        "explain": lambda: [index().explain(query, hit.id) for hit in index().search(query, 5, threads=1)],
        "verify": lambda: damage_of(folder),
        "stored": lambda: sum(len(rows) for rows in stored_rows(index())),
        "export": lambda: [
            export(index(), format, folder / f"../{folder.name}-{format}") for format in ("ciff", "anserini")
        ],
        "delete": lambda: delete(folder, ["p/0001.jpg"] if names else [1, 15]),
        "add": lambda: add(folder, [row]),
        "merge": lambda: merge(folder),
    }


def try_all(folder: Path) -> dict[str, str]:
    """Operation -> how it ended."""
    outcomes = {}
    for name, call in operations(folder).items():
        begin = time.process_time()
        try:
            found = call()
            outcomes[name] = "damage told" if name == "verify" and found else "result"
        except DamagedIndex:
            outcomes[name] = "DamagedIndex"
        except IndexingError:
            outcomes[name] = "IndexingError"
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {str(error)[:100]}"
        if time.process_time() - begin > SECONDS:
            outcomes[name] = "more than 5 s"
    return outcomes


GOOD = {"result", "damage told", "DamagedIndex", "IndexingError"}


def run(files: int, seed: int, work: Path, progress: bool = False) -> tuple[Counter, list[str]]:
    """Outcomes by operation, and a line for each failure."""
    bases = make_bases(work)
    for base in bases:  # what is compiled is compiled once
        shutil.copytree(base, work / f"warm-{base.name}")
        assert set(try_all(work / f"warm-{base.name}").values()) == {"result"}
    counts: Counter = Counter()
    failures = []
    for number in range(files):
        rng = np.random.default_rng([seed, number])
        base = bases[number % len(bases)]
        place = work / "one"
        place.mkdir()
        folder = place / f"i-{base.name}"
        fields = make_hostile(base, folder, rng)
        size = sum(path.stat().st_size for path in folder.iterdir())
        outcomes, grown = run_apart(lambda folder=folder: try_all(folder))
        if grown > 2 * size + MEMORY:
            outcomes["memory"] = f"grew by {grown >> 20} MiB"
        for name, outcome in outcomes.items():
            counts[name, outcome if outcome in GOOD else "failed"] += 1
            if outcome not in GOOD:
                failures.append(f"file {number} ({base.name}, {fields}): {name}: {outcome}")
        shutil.rmtree(place)
        if progress and number % 100 == 99:
            print(number + 1, "files,", len(failures), "failures", file=sys.stderr, flush=True)
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the files (default: the system's)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        counts, failures = run(options.files, options.seed, Path(work), progress=True)
    for (name, outcome), count in sorted(counts.items()):
        print(f"{name:10} {outcome:15} {count:6}")
    print("\n".join(failures[:200]))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
