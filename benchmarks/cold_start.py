"""How long `lexlip search` takes as a whole process, and where the time goes: the table of docs/SEARCH.md.

    python benchmarks/cold_start.py photos.index [--photos DIR] [--runs 20]

Wall time depends on what else the machine does; the processor's time, of the process and of the system for it, does
less. Stages are of the process that was quickest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import checkout

STAGES = """
import sys, time
begin = time.perf_counter()
import numpy, pyarrow
marks = [("numpy and pyarrow", time.perf_counter())]
from lexlip.index.index import Index
from lexlip.index.query_words import parse_query, resolve
from lexlip.index.lookup import TableModel, VocabularyModel
from lexlip.index.remembered import remembered
from lexlip.models.source import check_source
marks.append(("lexlip", time.perf_counter()))
model = {"words": VocabularyModel, "text": TableModel}[sys.argv[2]](check_source("", remembered(sys.argv[1])))
marks.append(("vocabulary or table", time.perf_counter()))
index = Index.open(sys.argv[1], model, force=sys.argv[2] == "words")
marks.append(("index, and whether the model is its own", time.perf_counter()))
query = resolve(parse_query(sys.argv[3]), model)
index.search(query.bag, 10, **query.conditions)
marks.append(("search", time.perf_counter()))
for name, mark in marks:
    print(f"{1000 * (mark - begin):.1f} {name}")
    begin = mark
"""


def timed(words: list[str]) -> tuple[float, float]:
    """Seconds of wall and of processor that a process takes."""
    before, begin = os.times(), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall, after = time.perf_counter() - begin, os.times()
    return wall, after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("index")
    parser.add_argument("--photos", help="also a search that first looks for changes in this folder")
    parser.add_argument("--runs", type=int, default=20, help="of each command (default: 20)")
    parser.add_argument("--json", help="write the rows to this file")
    options = parser.parse_args()
    command = [sys.executable, "-m", "lexlip.cli", "search", "--index", options.index]
    queries = {"words": "dog^1 beach^1 -cat", "text": "a dog runs on the beach -cat"}
    cases = {
        "Python alone": [sys.executable, "-c", "pass"], "words": [*command, queries["words"]],
        "text": [*command, queries["text"]],
    }  # fmt: skip
    if options.photos:
        cases["text, after a sync that finds nothing new"] = [*command, "--photos", options.photos, queries["text"]]
    print("| query | wall, median | wall, best | processor, median |\n| --- | --- | --- | --- |")
    rows = []
    for name, words in cases.items():
        walls, processors = zip(*(timed(words) for _ in range(options.runs)))
        row = {
            "query": name, "wall_s": statistics.median(walls), "best_wall_s": min(walls),
            "processor_s": statistics.median(processors),
        }  # fmt: skip
        print(f"| {name} | {row['wall_s']:.2f} | {row['best_wall_s']:.2f} | {row['processor_s']:.2f} |", flush=True)
        rows.append(row)
    for kind, query in queries.items():
        words = [sys.executable, "-c", STAGES, options.index, kind, query]
        run = lambda words=words: subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
        runs = [run() for _ in range(options.runs)]
        best = min(runs, key=lambda run: sum(float(line.split()[0]) for line in run.splitlines()))
        rows.append({"query": kind, "stages_ms": {s.split(" ", 1)[1]: float(s.split()[0]) for s in best.splitlines()}})
        print(f"\n{kind}, ms: " + "; ".join(f"{line.split(' ', 1)[1]} {line.split()[0]}" for line in best.splitlines()))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    checkout.run(main)
