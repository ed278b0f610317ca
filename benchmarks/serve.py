"""`lexlip serve` under load while new states of the index are published: requests, failures, latency.

    python benchmarks/serve.py --index pictures.index --model model_folder --texts captions.txt --picture dog.jpg

The index is copied, and served by a process of its own. Clients, threads of this process with one connection each, send
requests one after another: texts, every tenth an image where one is given. Meanwhile documents are added and deleted
and the index is merged, in turn; each publishes a new state. A failure is anything but 200 with hits. Latency is what
the client sees, connection kept, from the request's first byte to the answer's last.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import checkout
import httpx
from memory import memory_of

from lexlip.index import Index, SparseRows, add, delete, merge
from lexlip.utils.files import write_json

EVERY = 10  # one request in ten is an image


@dataclass
class Record:
    """What one client saw: seconds of each request by kind, generations, failures in words."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {"text": [], "picture": []})
    generations: set[int] = field(default_factory=set)
    failures: list[str] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> dict:
    """Run the benchmark; returns what it prints and writes."""
    options = _parser().parse_args(arguments)
    texts = options.texts.read_text(encoding="utf-8").splitlines()
    if len(texts) < options.clients:
        raise SystemExit(f"{options.texts}: {len(texts)} lines for {options.clients} clients; each needs one at least")
    image = options.picture.read_bytes() if options.picture else None
    with tempfile.TemporaryDirectory(prefix="serve-") as folder:
        index = Path(folder) / "index"
        shutil.copytree(options.index, index)
        documents = len(Index.open(index))
        with _Service(index, options.model, options.threads) as service:
            records, published, seconds = load(service.address, index, texts, image, options.seconds, options.clients)
            memory = service.memory_mb()
    result = summary(records, seconds)
    result.update(
        documents=documents, clients=options.clients, published=published, memory_mb=memory,
        machine=f"{os.cpu_count()} x {platform.machine()}",
    )  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        write_json(result, options.json)
    return result


def load(
    address: str, index: Path, texts: list[str], image: bytes | None, seconds: float, clients: int
) -> tuple[list[Record], int, float]:
    """Send requests for a while and publish new states meanwhile; returns records, states published, seconds."""
    stop = threading.Event()
    records = [Record() for _ in range(clients)]
    threads = [
        threading.Thread(target=_client, args=(address, texts[number::clients], image, stop, record))
        for number, record in enumerate(records)
    ]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    published = 0
    changes = itertools.cycle((_add, _delete, merge))
    try:
        while (left := begin + seconds - time.perf_counter()) > 0:
            time.sleep(min(seconds / 10, left))
            next(changes)(index)
            published += 1
    finally:  # a change that fails must not leave clients that never end
        stop.set()
        for thread in threads:
            thread.join()
    return records, published, time.perf_counter() - begin


def summary(records: list[Record], seconds: float) -> dict:
    """Numbers over all clients."""
    failures = [failure for record in records for failure in record.failures]
    kinds = {kind: sorted(s for record in records for s in record.seconds[kind]) for kind in ("text", "picture")}
    requests = sum(map(len, kinds.values()))
    return {
        "seconds": round(seconds, 1),
        "requests": requests,
        "failures": len(failures),
        "first_failures": failures[:3],
        "per_second": round(requests / seconds, 1),
        "generations_seen": len(set().union(*(record.generations for record in records))),
        **{
            f"{kind}_{name}": round(1000 * value, 2)
            for kind, times in kinds.items() if len(times) > 1
            for name, value in (
                ("p50_ms", statistics.median(times)),
                ("p99_ms", times[min(len(times) - 1, int(0.99 * len(times)))]),
                ("worst_ms", times[-1]),
            )
        },
    }  # fmt: skip


def _client(address: str, texts: list[str], image: bytes | None, stop: threading.Event, record: Record) -> None:
    with httpx.Client(base_url=address, timeout=60) as client:
        for number, text in enumerate(itertools.cycle(texts)):
            if stop.is_set():
                return
            kind = "picture" if image and number % EVERY == EVERY - 1 else "text"
            request = {"files": {"image": image}} if kind == "picture" else {"json": {"text": text}}
            begin = time.perf_counter()
            try:
                answer = client.post("/search", **request)
                record.seconds[kind].append(time.perf_counter() - begin)
                if answer.status_code != 200 or not answer.json()["hits"]:
                    record.failures.append(f"{answer.status_code} {answer.text[:200]}")
                else:
                    record.generations.add(answer.json()["generation"])
            except httpx.HTTPError as error:
                record.seconds[kind].append(time.perf_counter() - begin)
                record.failures.append(repr(error))


def _add(index: Path) -> None:
    add(index, [SparseRows.from_bags([{term: 1.0} for term in range(1000)], ids=_names(index))])


def _delete(index: Path) -> None:
    delete(index, _names(index)[::2])


def _names(index: Path) -> list:
    """Ids of the documents that come and go, of the index's kind."""
    strings = Index.open(index).manifest.settings.ids == "string"
    return [f"new {number}" if strings else (1 << 40) + number for number in range(1000)]


class _Service:
    """`lexlip serve` on a free port, in a process of its own."""

    def __init__(self, index: Path, model: str, threads: int):
        command = [sys.executable, "-m", "lexlip.cli", "serve", "--port", "0", "--index", str(index), "--model", model]
        self._command = [*command, "--threads", str(threads)]

    def __enter__(self) -> _Service:
        path = os.pathsep.join([str(checkout.ROOT), str(checkout.ROOT / "datasets")])
        self._process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        )
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if match := re.search(r"running on (http://\S+)", line):
                self.address = match[1]
                threading.Thread(target=lambda: sys.stderr.writelines(self._process.stderr), daemon=True).start()
                return self
        raise RuntimeError("".join(lines))

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait()

    def memory_mb(self) -> float | None:
        """Its highest resident memory so far; None where the system has no /proc."""
        try:
            return round(memory_of(self._process.pid, "VmHWM") / 2**20, 1)
        except OSError:
            return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=Path, required=True, help="copied, so that it stays as it is")
    parser.add_argument("--model", required=True)
    parser.add_argument("--texts", type=Path, required=True, help="a query a line")
    parser.add_argument("--picture", type=Path, help="an image, sent as every tenth request")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of the service that search")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser


if __name__ == "__main__":
    checkout.run(main)
