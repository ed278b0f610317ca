"""Fuzzing of Arrow files of captioned images: right but for one field, which says something else.

    python -m tests.fuzz.training_arrow --files 500
    python -m tests.fuzz.training_arrow --only 137          # one file again, with its message

A file is a function of (seed, number): columns in any layout that is read, and one kind of damage to a field that
decoding relies on. Each is opened and read to its end as training does, and checked as `convert.py check` does, in a
process of its own. It must end "read", "skipped" (cells are told, the rest is read) or "refused" (one line that names
the file); never in a crash, after more than ten seconds, or with more than 1 GB. The status is 1 if one does.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from lexlip_data.convert.check import check_folder
from lexlip_data.errors import BrokenSample, DataError
from lexlip_data.sources.arrow import ArrowSource

GOOD = ("read", "skipped", "refused")
OUTCOMES = (*GOOD, "crash", "hang", "memory")
ROWS = 12
SECONDS, MEGABYTES = 10, 1024
Rng = np.random.Generator
HOSTILE = (-1, 0, 1, 7, ROWS + 1, 2**15, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62, -(2**62), 2**63 - 1)


def columns(rng: Rng) -> dict[str, pa.Array]:
    """Images, captions and ids, each in one of the layouts that are read."""
    images = [rng.bytes(int(rng.integers(5, 60))) for _ in range(ROWS)]
    texts = [[f"a dog number {row} {i}" for i in range(int(rng.integers(1, 4)))] for row in range(ROWS)]
    ids = [f"{row}.jpg" for row in range(ROWS)]
    if rng.integers(2):
        images[3], texts[4], ids[5] = None, None, None
    plain, pairs = [row and row[0] for row in texts], [row and [row[0], "b"] for row in texts]
    inner = (pa.string(), pa.large_string(), pa.string_view())[rng.integers(3)]
    lists = (pa.list_, pa.large_list, pa.list_view, pa.large_list_view)[rng.integers(4)]
    image = (
        lambda: pa.array(images, (pa.binary(), pa.large_binary(), pa.binary_view())[rng.integers(3)]),
        lambda: pa.array([data and data[:5] for data in images], pa.binary(5)),
        lambda: pa.array([{"bytes": data, "path": None} for data in images]),
        lambda: pa.array(images, pa.binary()).dictionary_encode(),
    )[rng.integers(4)]
    caption = (
        lambda: pa.array(texts, lists(inner)),
        lambda: pa.array(texts, lists(inner)),
        lambda: pa.array(pairs, pa.list_(pa.string(), 2)),
        lambda: pa.array(plain, inner),
        lambda: pa.array(plain).dictionary_encode(),
    )[rng.integers(5)]
    image_id = (
        lambda: pa.array(ids, inner),
        lambda: pa.array(ids).dictionary_encode(),
        lambda: pa.array(range(ROWS), pa.int32()),
        lambda: pa.array(range(ROWS), pa.int64()).dictionary_encode(),
    )[rng.integers(4)]
    return {"image": image(), "caption": caption(), "image_id": image_id()}


def write(path: Path, arrays: dict[str, pa.Array], rng: Rng) -> None:
    batch = pa.record_batch(arrays).replace_schema_metadata({"lexlip": '{"name": "mine", "split": "train"}'})
    compression = ("lz4", "zstd")[rng.integers(2)] if rng.integers(6) == 0 else None
    options = pa.ipc.IpcWriteOptions(compression=compression)
    make = pa.ipc.new_stream if rng.integers(5) == 0 else pa.ipc.new_file
    with make(str(path), batch.schema, options=options) as writer:
        for _ in range(int(rng.integers(1, 3))):
            writer.write_batch(batch)


def messages(data: bytes) -> list[tuple[int, int]]:
    """(start, stop) of the metadata of each message: of the schema, dictionaries and record batches."""
    found, at = [], data.find(b"\xff\xff\xff\xff")
    while 0 <= at < len(data) - 8:
        (size,) = struct.unpack_from("<i", data, at + 4)
        if 0 < size < 1 << 20 and at + 8 + size <= len(data):
            found.append((at + 8, at + 8 + size))
        at = data.find(b"\xff\xff\xff\xff", at + 4)
    return found


def put(data: bytes, at: int, content: bytes) -> bytes:
    return data[:at] + content + data[at + len(content) :]


def change_buffer(data: bytes, arrays: dict[str, pa.Array], rng: Rng, place: int) -> bytes:
    """One number of one buffer of a column: place 0 is its validity, 1 its offsets, indices or views, 2 the rest."""
    buffers = []
    for array in arrays.values():
        parts = array.buffers()
        if isinstance(array, pa.DictionaryArray):
            parts = parts + array.dictionary.buffers()
        kinds = [min(i, 2) for i in range(len(parts))]
        buffers += [part for kind, part in zip(kinds, parts) if part is not None and part.size and kind == place]
    if not buffers:
        return flip(data, rng)
    content = bytearray(buffers[rng.integers(len(buffers))].to_pybytes())
    at = data.find(bytes(content).rstrip(b"\0") or b"\0")
    width = (1, 2, 4, 8)[rng.integers(4)] if len(content) >= 8 else 1
    start = int(rng.integers(len(content) // width)) * width
    value = int(HOSTILE[rng.integers(len(HOSTILE))]) & (2 ** (8 * width) - 1)
    if at < 0 or at + start + width > len(data):
        return flip(data, rng)
    return put(data, at + start, value.to_bytes(width, "little"))


def change_metadata(data: bytes, rng: Rng, which: slice) -> bytes:
    """One 64-bit number of a message's metadata: lengths, counts of nulls, places and sizes of buffers."""
    found = messages(data)[which]
    if not found:
        return flip(data, rng)
    start, stop = found[rng.integers(len(found))]
    slots = [at for at in range(start + -start % 8, stop - 8, 8)]
    numbers = [at for at in slots if 0 <= struct.unpack_from("<q", data, at)[0] < 1 << 20] or slots
    at = numbers[rng.integers(len(numbers))]
    value = HOSTILE[rng.integers(len(HOSTILE))]
    if rng.integers(3) == 0:
        value = struct.unpack_from("<q", data, at)[0] + int(rng.integers(-16, 17))
    return put(data, at, struct.pack("<q", value))


def flip(data: bytes, rng: Rng, start: int = 0) -> bytes:
    at = int(rng.integers(start, len(data)))
    return put(data, at, bytes([data[at] ^ 1 << int(rng.integers(8))]))


def cut_out(data: bytes, rng: Rng) -> bytes:
    """Some bytes are missing in the middle: buffers are truncated, and all that follows is elsewhere."""
    start = int(rng.integers(8, len(data) - 16))
    return data[:start] + data[start + 8 * int(rng.integers(1, 40)) :]


DAMAGES = {
    "validity": lambda data, arrays, rng: change_buffer(data, arrays, rng, 0),
    "offsets, indices, views": lambda data, arrays, rng: change_buffer(data, arrays, rng, 1),
    "values": lambda data, arrays, rng: change_buffer(data, arrays, rng, 2),
    "lengths of a batch": lambda data, arrays, rng: change_metadata(data, rng, slice(1, None)),
    "schema": lambda data, arrays, rng: change_metadata(data, rng, slice(0, 1)),
    "footer": lambda data, arrays, rng: flip(data, rng, max(0, len(data) - 1500)),
    "missing bytes": lambda data, arrays, rng: cut_out(data, rng),
    "cut short": lambda data, arrays, rng: data[: int(rng.integers(1, len(data)))],
    "flipped bits": lambda data, arrays, rng: flip(flip(flip(data, rng), rng), rng),
}


def make(path: Path, seed: int, number: int) -> str:
    """Write the file of a number; returns the kind of its damage."""
    rng = np.random.default_rng([seed, number])
    kind = list(DAMAGES)[number % len(DAMAGES)]
    arrays = columns(rng)
    write(path, arrays, rng)
    path.write_bytes(DAMAGES[kind](path.read_bytes(), arrays, rng))
    return kind


def use(path: Path) -> tuple[str, str]:
    """Read a file as training does, then check it; (outcome of reading, message)."""
    told = []
    try:
        for split in check_folder(path.parent):
            told += split.problems
        for problem in told:
            require_clear(problem, path)
        told = []
        source = ArrowSource("mine", "train", [path])
        for i in range(len(source)):
            for read in (source.image_id, source.captions, lambda i: bytes(source.image_bytes(i))):
                try:
                    read(i)
                except BrokenSample as error:
                    told.append(str(error))
        return ("skipped" if told or source.left_out else "read"), "; ".join(told)[:300]
    except DataError as error:
        require_clear(str(error), path)
        return "refused", str(error)


def require_clear(message: str, path: Path) -> None:
    if len(message.splitlines()) != 1 or len(message) > 2000 or path.stem not in message:
        raise RuntimeError(f"unclear: {message!r}")


def in_process(path: Path) -> tuple[str, str]:
    """`use` in a forked process with limits."""
    reading, writing = os.pipe()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # which the fork begins with
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                outcome, message = use(path)
            except MemoryError as error:
                outcome, message = "memory", repr(error)
            except BaseException as error:
                outcome, message = "crash", repr(error)
            os.write(writing, f"{outcome}\n{message}".encode(errors="replace")[:4000])
        finally:
            os._exit(0)
    os.close(writing)
    deadline = time.monotonic() + SECONDS
    while (ended := os.wait4(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.wait4(pid, 0)
            os.close(reading)
            return "hang", f"more than {SECONDS} s"
        time.sleep(0.001)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read().decode(errors="replace")
    _, status, usage = ended
    if status or not content:
        return "crash", f"the process ended with status {status}"
    outcome, _, message = content.partition("\n")
    if usage.ru_maxrss - before > MEGABYTES * 1024:
        return "memory", f"{(usage.ru_maxrss - before) >> 10} MB; {message}"
    return outcome, message


def fuzz(numbers: range, seed: int, report=lambda *line: None) -> dict[str, Counter]:
    """Counts of outcomes by kind of damage."""
    counts = {kind: Counter() for kind in DAMAGES}
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            path = Path(folder) / "mine_train.arrow"
            kind = make(path, seed, number)
            outcome, message = in_process(path)
            counts[kind][outcome] += 1
            report(number, kind, outcome, message)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one file")
    options = parser.parse_args()
    numbers = range(options.files) if options.only is None else range(options.only, options.only + 1)

    def report(number: int, kind: str, outcome: str, message: str) -> None:
        if outcome not in GOOD or options.only is not None:
            print(f"file {number}, {kind}: {outcome}: {message}", flush=True)

    counts = fuzz(numbers, options.seed, report)
    print(f"| damaged | files | {' | '.join(OUTCOMES)} |\n|{' --- |' * (2 + len(OUTCOMES))}")
    for kind, of_kind in (*counts.items(), ("all", sum(counts.values(), Counter()))):
        print(f"| {kind} | {sum(of_kind.values())} | {' | '.join(str(of_kind[outcome]) for outcome in OUTCOMES)} |")
    return 0 if all(outcome in GOOD for of_kind in counts.values() for outcome in of_kind) else 1


if __name__ == "__main__":
    sys.exit(main())
