"""Memory and gradients of a gradient-cached step (Gao et al., 2021) against the plain one, on the demo's towers.

    python benchmarks/grad_cache.py [--batch 512] [--chunk 128] [--json FILE]

Each step runs in a process of its own, on the same random images and captions. Memory is what the process holds at
its peak beyond what it held before the step: gradients included, weights not. Gradients are compared as the optimiser
gets them, clipped to norm 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import checkout
import torch
from batches import random_batch
from memory import memory_of, own_peak

from lexlip.train.config import Config, base, named
from lexlip.utils.files import write_json
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {"Phase1": Phase1Module, "Phase2": Phase2Module}
NAMED = {
    "Phase1": ["task_Text_MAE_Contrastive_train", "demo", "demo_phase1"],
    "Phase2": ["task_contrastive_train", "demo", "demo_phase2"],
}


def make_config(phase: str, batch: int, chunk: int) -> Config:
    """The demo's config without dropout, which would differ between the two; chunk 0: the plain step."""
    values = base()
    for name in NAMED[phase]:
        values.update(named()[name])
    values.update(
        batch_size=batch, per_gpu_batchsize=batch, grad_cache_chunk=chunk or None, tokenizer="none", drop_rate=0.0
    )
    return Config.checked(values)


def one_step(phase: str, batch: int, chunk: int, out: str) -> None:
    """In a child process: prints seconds and memory, writes the gradients."""
    torch.manual_seed(0)
    values = make_config(phase, batch, chunk)
    module = PHASES[phase].from_config(values).train()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
    schedule = SimpleNamespace(step=lambda: None, get_last_lr=lambda: [0.0])
    # Just enough of a Trainer for one step.
    module.trainer = SimpleNamespace(strategy=SimpleNamespace(model=module), global_step=0)
    module.optimizers, module.lr_schedulers = lambda: optimizer, lambda: schedule
    module.manual_backward = lambda loss: loss.backward()
    module.log = module.log_dict = lambda *args, **kwargs: None
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, values.max_text_len + 1, (batch,), generator=generator)
    data = {**random_batch(values, lengths, generator), "skipped": []}
    before = memory_of("self", "VmRSS")
    started = time.perf_counter()
    module.training_step(data, 0)
    seconds, peak = time.perf_counter() - started, own_peak()
    norm = float(torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0))
    torch.save({name: p.grad for name, p in module.named_parameters() if p.grad is not None}, out)
    print(json.dumps({"seconds": seconds, "bytes": peak - before, "process_bytes": peak, "gradient_norm": norm}))


def compare(phase: str, batch: int, chunk: int) -> dict:
    """Both steps, one row."""
    with tempfile.TemporaryDirectory() as folder:
        rows, gradients = [], []
        for rows_at_once in (0, chunk):
            out = str(Path(folder) / f"{rows_at_once}.pt")
            command = [sys.executable, __file__, "--child", phase, str(batch), str(rows_at_once), out]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout.splitlines()[-1]))
            gradients.append(torch.load(out, weights_only=True))
    plain, cached = rows
    differences = [float((value - gradients[1][name]).abs().max()) for name, value in gradients[0].items()]
    return {
        "name": f"grad_cache {phase}, batch {batch}, chunk {chunk}", "device": "cpu",
        "fast": cached["seconds"], "textbook": plain["seconds"], "ratio": plain["seconds"] / cached["seconds"],
        "fast_bytes": cached["bytes"], "textbook_bytes": plain["bytes"],
        "memory_ratio": plain["bytes"] / cached["bytes"],
        "process_memory_ratio": plain["process_bytes"] / cached["process_bytes"],
        "largest_gradient_difference": max(differences), "gradient_norm": plain["gradient_norm"],
    }  # fmt: skip


def main() -> None:
    """Both phases, a table, and JSON where wanted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        phase, batch, chunk, out = arguments.child
        one_step(phase, int(batch), int(chunk), out)
        return
    rows = [compare(phase, arguments.batch, arguments.chunk) for phase in NAMED]
    print(f"{'':42}{'plain MiB':>12}{'cached MiB':>12}{'ratio':>8}{'time ratio':>12}{'gradients differ':>18}")
    for row in rows:
        print(
            f"{row['name']:42}{row['textbook_bytes'] / 2**20:12.0f}{row['fast_bytes'] / 2**20:12.0f}"
            f"{row['memory_ratio']:8.2f}{row['ratio']:12.2f}{row['largest_gradient_difference']:18.1e}"
        )
    if arguments.json:
        write_json(rows, arguments.json)


if __name__ == "__main__":
    checkout.run(main)
