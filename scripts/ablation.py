"""What each part of LexLIP, and each further loss, is worth: one command, one table.

    python scripts/ablation.py --data flickr8k --seeds 0,1,2 [--out runs/ablation] [--steps 468,468] [key=value]
    python scripts/ablation.py --study losses --data flickr8k --seeds 0,1,2 --steps 234,0 --out runs/losses

Small towers on the CPU (configs/flickr8k_small.yaml or demo.yaml): the same towers, data in the same order and starting
weights for all variants of a seed. The study "parts" has the paper's ablations and ours of the two phases: a variant is
one training or two in a row, `--steps` of the first and of the second; "Phase 1 alone" has the first's steps alone and
"Phase 2 alone" the second's, so compare them with each other, not with the sum. The study "losses" adds one thing at a
time to Phase 1's contrastive part, and has the dense head besides. Trainings that several variants share are done once.

Prints recall on the val split, uncut and with fewer terms, active and shared terms and grounded images, mean and
standard deviation over the seeds, and writes the table (`--table`) and OUT/results.json. A training that is finished is
not done again; one that was stopped goes on. Further key=value go to every training and win.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
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
PARTS: dict[str, tuple[Stage, ...]] = {
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
WORDS = (  # as the quickstart has them
    "inactive_terms=['special', 'unused', 'stop', 'sign']", "own_weights=True", "expansion_control='captions'",
    "expansion_start=0.1", "expansion_end=0.5", "push_floor=1.0", "loss_names.push=1", "start_terms_text=16",
    "start_terms_image=32",
)  # fmt: skip
JOINT = ("joint_dim=256", "loss_names.dense=1", "loss_names.distill=1")
CUT = ("train_top_k=[64]", "top_k_start=512")
DENSE = Stage(1, "task_dense_contrastive_train", ("embed_dim=256", "eval_top_k=[]"))
TEACHER = "teacher"  # stands for teacher=CHECKPOINT of the dense head of the same seed


def _with(*keys: str) -> tuple[Stage, ...]:
    return (Stage(1, "task_contrastive_train", keys),)


LOSSES: dict[str, tuple[Stage, ...]] = {
    "dense head": (DENSE,),
    "as before": _with(),
    "1: ramp": _with("flops_warmup=0.5"),
    "1: ramp, FLOPS of images twice": _with("flops_warmup=0.5", "flops_weight_image=1.0"),
    "1: L1": _with("penalty_text='l1'", "penalty_image='l1'", "flops_weight=0.01"),
    "2: threshold of 64 terms": _with("flops_threshold=64"),
    "2: log1p twice": _with("activation='log1p_twice'"),
    "3: target of 64 terms": _with("target_terms_text=64", "target_terms_image=64"),
    "4: cut to 64, annealed": _with(*CUT),
    "5: dense head beside it, self-distillation": _with(*JOINT),
    "5: dense teacher": _with(TEACHER, "loss_names.distill=1"),
    "6: right words": _with(*WORDS),
    "7: in context": _with("head_text='in_context'"),
    "7: lookup": _with("head_text='lookup'", "own_weights=True", "inactive_terms=['special']"),
    "4, 5 and 6": _with(*WORDS, *JOINT, *CUT),
}
STUDIES = {"parts": PARTS, "losses": LOSSES}
CONFIGS = {  # of a data set, for the first training of a variant and for the second, whatever its phase
    "flickr8k": (["flickr8k_small"], ["flickr8k_small"]),
    "openmoji": (["demo", "demo_phase1"], ["demo", "demo_phase2"]),
}
LONGEST = 80  # characters of a training's name
CUTS = [64, 32, 16, 8]
MEASURES: dict[str, Callable[[dict], float]] = {  # column of the table -> of what an evaluation writes
    **{f"R@{k}, {way}": lambda row, k=k, side=side: row[side][f"R@{k}"]
       for side, way in (("t2i", "text to image"), ("i2t", "image to text")) for k in (1, 5, 10)},
    "sum": lambda row: row["rsum"],
    **{f"{k} terms": lambda row, k=k: row["pruned"][str(k)]["rsum"] for k in CUTS},
    "terms of a caption": lambda row: row["active_terms"]["text"],
    "of an image": lambda row: row["active_terms"]["image"],
    "shared": lambda row: row["shared_terms"],
    "grounded images": lambda row: row["grounding"]["images"],
}  # fmt: skip
LEXICON = [f"{k} terms" for k in CUTS] + list(MEASURES)[-4:]  # columns that a dense head does not have


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print and write the table; returns the exit status."""
    options = _options(arguments)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in options.variants}
    for seed in options.seeds:
        for name in options.variants:
            last = ""
            for stage in STUDIES[options.study][name]:
                last = _trained(stage, last, seed, options)
            results[name].append(_measured(stage, last, seed, options))
            table = _table(results, options)  # after each training, so that a stopped command leaves what there is
            options.table.parent.mkdir(parents=True, exist_ok=True)
            options.table.write_text(table)
    found = {"study": options.study, "data": options.data, "seeds": options.seeds, "runs": results}
    write_json(found, options.out / "results.json")
    print(table)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", choices=STUDIES, default="parts")
    parser.add_argument("--data", choices=CONFIGS, default="flickr8k")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--table", type=Path, help="default: OUT/table.md")
    parser.add_argument("--seeds", type=_numbers, default=[0, 1, 2])
    parser.add_argument("--steps", type=_numbers, default=[468, 468], help="of first and of second trainings")
    parser.add_argument("--variants", type=_names, help="; ".join(name for study in STUDIES.values() for name in study))
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for every training")
    options = parser.parse_args(arguments)
    if len(options.steps) != 2:
        parser.error("--steps: two numbers, of first and of second trainings, such as 468,468")
    if options.study == "losses" and options.data == "openmoji":
        parser.error("--study losses: the drawings' settings have some of them already; take --data flickr8k")
    options.variants = options.variants or list(STUDIES[options.study])
    if wrong := [name for name in options.variants if name not in STUDIES[options.study]]:
        parser.error(f"--variants: {wrong[0]!r} is none of: {'; '.join(STUDIES[options.study])}")
    options.table = options.table or options.out / "table.md"
    return options


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(";")]


def _name(stage: Stage) -> str:
    words = [str(stage.phase), stage.task.removesuffix("_train"), *stage.keys]
    own = "".join(c if c.isalnum() else "-" for c in "-".join(words))
    if len(own) > LONGEST:  # a file's name has some 250 bytes
        own = f"{own[:LONGEST]}-{hashlib.blake2b(own.encode(), digest_size=4).hexdigest()}"
    return own


def _trained(stage: Stage, before: str, seed: int, options: argparse.Namespace) -> str:
    """Do a training after the one named `before` unless it is done; gives its name, which says all that led to it."""
    name = f"{before}_then_{_name(stage)}" if before else _name(stage)
    file = options.out / "metrics" / f"{name}_seed{seed}.json"
    second = bool(before) or stage.phase == 2  # Phase 2 alone is trained as where it comes second
    configs = CONFIGS[options.data][second]
    config = {"data": options.data, "configs": configs, "steps": options.steps, "more": options.keys}
    if not file.is_file():
        if TEACHER in stage.keys:
            teacher = _checkpoint(options.out, _trained(DENSE, "", seed, options), seed)
            stage = stage._replace(keys=tuple(f"teacher={str(teacher)!r}" if k == TEACHER else k for k in stage.keys))
        keys = {
            "seed": seed, "log_dir": str(options.out), "exp_name": name, "version": 0, "resume_from": "auto",
            "max_steps": options.steps[second], "val_check_interval": 1.0, "keep_checkpoints": 1,
        }  # fmt: skip
        if before:
            keys["load_path"] = str(_checkpoint(options.out, before, seed))
        (options.out / "metrics" / f"{name}_seed{seed}_val.json").unlink(missing_ok=True)  # of another training
        _run(stage, [stage.task, *configs], keys, options)
        write_json({"keys": config}, file)
    if json.loads(file.read_text())["keys"] != config:
        raise SystemExit(f"error: {file} is of a run with other settings; remove it or give another --out")
    return name


def _measured(stage: Stage, name: str, seed: int, options: argparse.Namespace) -> dict[str, float]:
    """The table's numbers of a training, from the file that holds them already or from the val split."""
    from lexlip.train.config import named
    from lexlip.train.words import read_words

    file = options.out / "metrics" / f"{name}_seed{seed}_val.json"
    dense = "dense" in stage.task
    if not file.is_file():
        given = {**named()[CONFIGS[options.data][1][0]], **read_words(options.keys, {})[0]}
        val = [_val_split(Path(given["data_root"]), name) for name in given["datasets"]]
        keys = {
            "log_dir": str(options.out), "exp_name": f"{name}_val", "head": "dense" if dense else "lexicon",
            "load_path": str(_checkpoint(options.out, name, seed)), "eval_top_k": [] if dense else CUTS,
            "data_sets": {"val": {"test": val}}, "metrics_file": str(file),
        }  # fmt: skip
        # The data sets come last: those of the command line are what was trained on.
        shape = [key for key in stage.keys if key.startswith("embed_dim")]
        evaluation = Stage(2, "task_IRTR_evaluate", tuple(shape))
        _run(evaluation, [evaluation.task, *CONFIGS[options.data][1][:1]], keys, options, ["datasets=['val']"])
    row = json.loads(file.read_text())["val"]
    return {column: measure(row) for column, measure in MEASURES.items() if not (dense and column in LEXICON)}


def _val_split(data_root: Path, name: str) -> str:
    """As `data_sets` names it."""
    from lexlip_data.sources.arrow import find_arrow_files
    from lexlip_data.sources.registry import arrow_prefix, table_paths

    prefix = arrow_prefix(name, "val")
    return prefix if find_arrow_files(data_root, prefix) else table_paths(name, "val")[0]


def _checkpoint(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}_seed{seed}" / "version_0" / "checkpoints" / "last.ckpt"


def _run(stage: Stage, configs: list[str], keys: dict, options: argparse.Namespace, last: Sequence[str] = ()) -> None:
    command = [sys.executable, str(ROOT / f"Phase{stage.phase}" / "run.py"), "with", *configs]
    command += [f"{key}={value!r}" for key, value in keys.items()]
    subprocess.run([*command, *stage.keys, *options.keys, *last], check=True)


def _table(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    seeds, steps = (",".join(map(str, numbers)) for numbers in (options.seeds, options.steps))
    words = ["--study", options.study, "--data", options.data, "--seeds", seeds, "--steps", steps, *options.keys]
    lines = [
        f"`python scripts/ablation.py {' '.join(words)}`",
        "",
        f"| variant | seeds | {' | '.join(MEASURES)} |",
        f"| --- | --- | {' | '.join('---' for _ in MEASURES)} |",
    ]
    for variant, runs in results.items():
        if runs:
            cells = " | ".join(_spread([run[name] for run in runs]) if name in runs[0] else "" for name in MEASURES)
            lines.append(f"| {variant} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2f}"


if __name__ == "__main__":
    sys.exit(run_command(main, (UserError, subprocess.CalledProcessError)))
