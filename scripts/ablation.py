"""What each part of LexLIP is worth: the paper's ablations and ours, one command, one table.

    python scripts/ablation.py --data flickr8k --seeds 0,1,2 [--out runs/ablation] [--steps 468,468] [key=value]

Small towers on the CPU (configs/flickr8k_small.yaml or demo.yaml): the same towers, data in the same order, steps and
starting weights for all variants of a seed. A variant is one training or two in a row, `--steps` of Phase 1 and of
Phase 2; trainings that several variants share are done once. Prints R@1 on the val split and active terms, mean and
standard deviation over the seeds, and writes the table (`--table`) and OUT/results.json. A training that is finished is
not done again; one that was stopped goes on. Further key=value go to every training and win.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip.errors import UserError  # noqa: E402
from lexlip.utils.files import write_json  # noqa: E402
from lexlip_data.command import run_command  # noqa: E402


class Stage(NamedTuple):
    """One training: which phase's command, its task, and what differs from the data set's configs."""

    phase: int
    task: str
    keys: tuple[str, ...] = ()


def _phase1(*keys: str) -> Stage:
    return Stage(1, "task_Text_MAE_Contrastive_train", keys)


def _phase2(*keys: str) -> Stage:
    return Stage(2, "task_contrastive_train", keys)


IN_BATCH = Stage(1, "task_contrastive_train", ("training_mode='con'",))  # Phase 1's contrastive loss instead of Phase 2
NO_FLOPS = "flops_weight=0.0"
VARIANTS: dict[str, tuple[Stage, ...]] = {
    "Phase 2 alone": (_phase2(),),
    "Phase 1 alone": (_phase1(),),
    "Phase 1 + 2": (_phase1(), _phase2()),
    "without i2t": (_phase1("loss_names.i2t=0"), _phase2()),
    "without t2t": (_phase1("loss_names.t2t=0"), _phase2()),
    "without self_t": (_phase1("loss_names.self_t=0"), _phase2()),
    "without the bottleneck": (_phase1("loss_names.i2t=0", "loss_names.t2t=0"), _phase2()),
    "without momentum": (_phase1(), IN_BATCH),
    "without FLOPS": (_phase1(NO_FLOPS), _phase2(NO_FLOPS)),
    "with DR": (_phase1(), _phase2("DR=True")),
}
# Of a data set, for a variant's first training and for what Phase 2 does: whoever takes that place has its settings.
CONFIGS = {
    "flickr8k": (["flickr8k_small"], ["flickr8k_small"]),
    "openmoji": (["demo", "demo_phase1"], ["demo", "demo_phase2"]),
}
MEASURES = {  # column of the table -> what a training logs, behind val/DATASET/
    "R@1, text to image": "t2i_R@1",
    "R@1, image to text": "i2t_R@1",
    "terms of a caption": "active_terms_text",
    "terms of an image": "active_terms_image",
}


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print and write the table; returns the exit status."""
    options = _options(arguments)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for seed in options.seeds:
        for name in options.variants:
            file, before = None, ""
            for stage in VARIANTS[name]:
                before = _trained(stage, before, seed, options)
                file = options.out / "metrics" / f"{before}_seed{seed}.json"
            assert file is not None
            results[name].append(json.loads(file.read_text())["val"])
            table = _table(results, options)  # after each training, so that a stopped command leaves what there is
            options.table.parent.mkdir(parents=True, exist_ok=True)
            options.table.write_text(table)
    write_json({"data": options.data, "seeds": options.seeds, "runs": results}, options.out / "results.json")
    print(table)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=CONFIGS, default="flickr8k")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--table", type=Path, help="default: OUT/table.md")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--steps", type=_numbers, default=[468, 468], help="of Phase 1 and of Phase 2")
    parser.add_argument("--variants", type=_names, default=list(VARIANTS), help="; ".join(VARIANTS))
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for every training")
    options = parser.parse_args(arguments)
    if len(options.steps) != 2:
        parser.error("--steps: two numbers, of Phase 1 and of Phase 2, such as 468,468")
    options.table = options.table or options.out / "table.md"
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if wrong := sorted(set(names) - set(VARIANTS)):
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of: {'; '.join(VARIANTS)}")
    return names


def _trained(stage: Stage, before: str, seed: int, options: argparse.Namespace) -> str:
    """Do a training after the one named `before` unless it is done; gives its name, which says all that led to it."""
    words = [stage.task.removesuffix("_train"), *stage.keys]
    own = "".join(c if c.isalnum() else "-" for c in f"{stage.phase}-{'-'.join(words)}")
    name = f"{before}_then_{own}" if before else own
    file = options.out / "metrics" / f"{name}_seed{seed}.json"
    second = bool(before) or stage.phase == 2
    config = {"data": options.data, "steps": options.steps, "more": options.keys}
    if not file.is_file():
        run = options.out / f"{name}_seed{seed}" / "version_0"
        keys = {
            "seed": seed, "log_dir": str(options.out), "exp_name": name, "version": 0, "resume_from": "auto",
            "max_steps": options.steps[second], "val_check_interval": 1.0, "keep_checkpoints": 1, "eval_top_k": [],
        }  # fmt: skip
        if before:
            keys["load_path"] = str(options.out / f"{before}_seed{seed}" / "version_0" / "checkpoints" / "last.ckpt")
        command = [sys.executable, str(ROOT / f"Phase{stage.phase}" / "run.py"), "with", stage.task]
        command += [*CONFIGS[options.data][second], *(f"{key}={value!r}" for key, value in keys.items())]
        subprocess.run([*command, *stage.keys, *options.keys], check=True)
        write_json({"keys": config, "val": _last(run / "metrics.csv")}, file)
    if json.loads(file.read_text())["keys"] != config:
        raise SystemExit(f"error: {file} is of a run with other settings; remove it or give another --out")
    return name


def _last(file: Path) -> dict[str, float]:
    """The last validation of a run's log."""
    with open(file, newline="") as lines:
        rows = list(csv.DictReader(lines))
    found = {}
    for name in MEASURES.values():
        values = [v for row in rows for key, v in row.items() if v and key.startswith("val/") and key.endswith(name)]
        found[name] = float(values[-1])
    return found


def _table(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    shared = " ".join(options.keys)
    lines = [
        f"`python scripts/ablation.py --data {options.data} --seeds {','.join(map(str, options.seeds))} --steps "
        f"{','.join(map(str, options.steps))}{f' {shared}' if shared else ''}`",
        "",
        f"| variant | seeds | {' | '.join(MEASURES)} |",
        f"| --- | --- | {' | '.join('---' for _ in MEASURES)} |",
    ]
    for variant, runs in results.items():
        if runs:
            cells = " | ".join(_spread([run[name] for run in runs]) for name in MEASURES.values())
            lines.append(f"| {variant} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


if __name__ == "__main__":
    sys.exit(run_command(main, (UserError, subprocess.CalledProcessError)))
