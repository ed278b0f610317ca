"""What the speed benchmarks share: two paths over the same inputs, timed in turn, their memory, a table, a JSON file.

The fast path is ours; the other is the reference, "textbook" in the rows. Times are medians over repeats of paths that
take turns, so that a busy machine slows both. Memory is what a path holds at its peak beyond its inputs, its results
and what it must keep anyway (parameters, gradients, optimiser state), as torch's allocators count it: on a GPU its own
counter, on the CPU the profiler's record. What other libraries allocate is not included; where that matters, a
benchmark measures the growth of the resident set instead, in a fresh process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import checkout  # noqa: F401
import torch
from memory import memory_of
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lexlip.utils.files import write_json

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Subject:
    """One of two paths, ready to run.

    Attributes:
        run: does the whole work once; what it returns is compared, and not counted as extra memory.
        kept: bytes that it holds while running and must, besides what it returns.
    """

    run: Callable[[], list[Tensor]]
    kept: int = 0


@dataclass
class Options:
    """The command line's common part; a benchmark adds its own under `more`."""

    device: str
    dtype: str
    threads: int
    repeats: int
    warmups: int
    memory: bool
    json: str | None
    more: dict = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


PATHS = ("fast", "textbook")
Build = Callable[[str, Options], Subject]  # (one of PATHS, options); picklable, for the process that measures memory


def parser(description: str) -> argparse.ArgumentParser:
    """The common options; a benchmark adds its own and hands the parser to `options`."""
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--json", help="write the rows to this file")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the products; float32 on the CPU, bfloat16 on a GPU")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmups", type=int, help="runs before the timed ones; 1 on the CPU, 3 on a GPU")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave the memory out")
    return parser


def options(parser: argparse.ArgumentParser, arguments: list[str] | None = None) -> Options:
    """Parse; sets torch's threads."""
    given = vars(parser.parse_args(arguments))
    given["dtype"] = given["dtype"] or ("bfloat16" if given["device"] == "cuda" else "float32")
    given["warmups"] = (3 if given["device"] == "cuda" else 1) if given["warmups"] is None else given["warmups"]
    names = ("device", "dtype", "threads", "repeats", "warmups", "memory", "json")
    common = {name: given.pop(name) for name in names}
    torch.set_num_threads(common["threads"])
    return Options(**common, more=given)


def compare(name: str, build: Build, options: Options, resident: bool = False) -> dict:
    """Time both paths in turn, then measure their memory.

    Args:
        resident: measure the resident set rather than the allocator's count, on the CPU.

    Returns:
        A row: times in seconds, memory in bytes, ratios reference over fast.
    """
    subjects = {which: build(which, options) for which in PATHS}
    times: dict[str, list[float]] = {which: [] for which in subjects}
    for repeat in range(-options.warmups, options.repeats):
        for which in sorted(subjects, reverse=repeat % 2 == 1):
            seconds = _seconds(subjects[which].run, options)
            if repeat >= 0:
                times[which].append(seconds)
    row = {"name": name, "device": device_name(options), "dtype": options.dtype}
    row.update({which: statistics.median(values) for which, values in times.items()})
    row["ratio"] = row["textbook"] / row["fast"]
    if options.memory:
        if resident and not options.cuda:
            del subjects
            gc.collect()
            extra = {which: _in_fresh_process(which, build, options) for which in PATHS}
        else:
            extra = {which: _peak(subject, options) for which, subject in subjects.items()}
        row.update({f"{which}_memory": value for which, value in extra.items()})
        row["memory_ratio"] = extra["textbook"] / max(1, extra["fast"])
    return {**row, "repeats": options.repeats, **versions(options)}


def _seconds(run: Callable, options: Options) -> float:
    if options.cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if options.cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


# --- memory ---


def _peak(subject: Subject, options: Options) -> int:
    """Bytes at the peak of a run beyond those before it, its results and what it must keep."""
    gc.collect()
    if options.cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = subject.run()
        torch.cuda.synchronize()
        grown = torch.cuda.max_memory_allocated() - before
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            results = subject.run()
        events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
        events.sort(key=lambda event: event.start_ns())
        grown = max(itertools.accumulate((event.nbytes() for event in events), initial=0))
    return grown - subject.kept - sum(tensor.nbytes for tensor in results)


def _resident_peak(subject: Subject, options: Options) -> int:
    """Like `_peak`, of the whole process, Linux keeping the count."""
    if options.warmups:
        subject.run()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = memory_of("self", "VmRSS")
    results = subject.run()
    return memory_of("self", "VmHWM") - before - subject.kept - sum(tensor.nbytes for tensor in results)


def _child(which: str, build: Build, options: Options, answer) -> None:
    torch.set_num_threads(options.threads)
    answer.send(_resident_peak(build(which, options), options))


def _in_fresh_process(which: str, build: Build, options: Options) -> int:
    if platform.system() != "Linux":
        raise SystemExit("the resident set is read from Linux's /proc; leave the memory out with --no-memory")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Freed tensors go back to the system at once instead of into malloc's own store, which would hide the next peak.
    changed = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        process = context.Process(target=_child, args=(which, build, options, theirs))
        process.start()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit(f"the process that measured the memory of the {which} path ended without an answer") from None
    finally:
        process.join()


# --- the machine ---


def device_name(options: Options) -> str:
    """The GPU's name, or the CPU's model and the number of threads."""
    if options.cuda:
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {options.threads} threads"


def versions(options: Options) -> dict[str, str]:
    """What a number depends on besides the device."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    if options.cuda:
        import triton

        versions |= {"triton": triton.__version__, "cuda": torch.version.cuda}
    return versions


def product_rate(options: Options) -> float:
    """FLOP/s of a large matrix product in the benchmark's dtype: the roof over everything else."""
    # Without a kernel for float16, as on many CPUs, a product takes a thousand times as long as in float32.
    side = 8192 if options.cuda else 2048 if options.dtype == "float32" else 256
    one, two = (torch.randn(side, side, device=options.device).to(options.torch_dtype) for _ in range(2))
    for _ in range(3):
        one @ two
    seconds = [_seconds(lambda: one @ two, options) for _ in range(9)]
    return 2 * side**3 / statistics.median(seconds)


# --- results ---


def report(rows: list[dict], options: Options) -> None:
    """Print the table and write the JSON file that is wanted."""
    print(f"\n{'':44}{'fast':>10}{'reference':>10}{'ratio':>8}{'fast':>12}{'reference':>12}{'ratio':>8}")
    for row in rows:
        line = f"{row['name']:44}{_time(row['fast']):>10}{_time(row['textbook']):>10}{row['ratio']:8.2f}"
        if "memory_ratio" in row:
            line += f"{_size(row['fast_memory']):>12}{_size(row['textbook_memory']):>12}{row['memory_ratio']:8.2f}"
        print(line + "".join(f"  {note}" for note in row.get("notes", ())))
    if rows:
        print(f"{rows[0]['device']}, torch {rows[0]['torch']}; ratios are reference over fast")
    write(rows, options)
    if differ := [row["name"] for row in rows if not row.get("agrees", True)]:
        raise SystemExit(f"the two paths' results differ: {', '.join(differ)}")


def write(rows: list[dict], options: Options) -> None:
    """Write the JSON file, if one is wanted; `report` does so too."""
    if options.json:
        write_json(rows, options.json)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _size(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"
