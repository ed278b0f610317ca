"""Kill a training again and again, and see that it ends with the very weights of one that nobody touched.

    python scripts/soak.py [--kills 20] [--seed 0] [--data data/openmoji] [--out runs/soak]

Both phases train the demo's towers, with a checkpoint after every step, dropout, and a loader process. Half of the
kills fall at any moment, half while a checkpoint is being written. After the last kill of a phase nothing disturbs the
run any more. Weights, momentum encoder, queue, optimiser and schedule must be the same bit for bit. Takes about ten
minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip_data.command import interrupt_in_one_line, run_command  # noqa: E402

if __name__ == "__main__":
    interrupt_in_one_line()

import torch  # noqa: E402

PHASES = {
    "Phase1": ["task_Text_MAE_Contrastive_train", "demo", "demo_phase1"],
    "Phase2": ["task_contrastive_train", "demo", "demo_phase2"],
}
STEPS = 80  # per phase: more than the kills can use up
LONGEST = 20.0  # seconds until a kill at any moment; starting takes up to half of it


def command(phase: str, version: str, arguments: argparse.Namespace) -> list[str]:
    """The training's command line."""
    config = {
        "data_root": arguments.data, "tokenizer": f"{arguments.data}/vocab", "log_dir": arguments.out,
        "version": version, "resume_from": "auto", "max_steps": STEPS, "checkpoint_steps": 1, "batch_size": 16,
        "per_gpu_batchsize": 8, "queue_size": 64, "drop_rate": 0.1, "num_workers": 1, "cpu_threads": 1,
        "get_recall_metric": False, "max_images": 400,
    }  # fmt: skip
    if phase == "Phase2":
        config["load_path"] = str(checkpoints_of("Phase1", "whole", arguments) / "last.ckpt")
    words = [sys.executable, str(ROOT / phase / "run.py"), "with", *PHASES[phase]]
    return words + [f"{key}={value}" for key, value in config.items()]


def checkpoints_of(phase: str, version: str, arguments: argparse.Namespace) -> Path:
    """The folder of a run's checkpoints."""
    return Path(arguments.out) / f"{phase.lower()}_seed0" / version / "checkpoints"


def run(words: list[str], log: Path, moment: float | None = None, drafts: Path | None = None) -> bool:
    """Run a command; True if it was killed, False if it ended by itself.

    Args:
        words: the command.
        log: file for what it prints.
        moment: seconds after which it is killed; None: never.
        drafts: if given, `moment` counts steps instead, and the kill falls while the next checkpoint is written there.

    Raises:
        SystemExit: the command failed without being killed.
    """
    with open(log, "ab") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True)
    started, seen, writing = time.monotonic(), 0, False
    while moment is not None and process.poll() is None:
        if drafts is None:
            now = time.monotonic() - started >= moment
        else:
            before, writing = writing, any(drafts.glob("step_*.tmp"))
            seen += writing and not before
            now = writing and seen > moment
        if now:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.0005 if drafts else 0.01)
    code = process.wait()
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{' '.join(words)} failed by itself with {code}; see {log}")
    return code != 0


def differences(one: dict, two: dict) -> list[str]:
    """Names of the parts of two checkpoints that are not the same bit for bit."""
    wrong = [name for name, value in one["state_dict"].items() if not torch.equal(value, two["state_dict"][name])]
    states = [content["optimizer_states"][0]["state"] for content in (one, two)]
    for index, state in states[0].items():
        wrong += [f"optimiser {index} {n}" for n, v in state.items() if not torch.equal(v, states[1][index][n])]
    for name in ("global_step", "batches_seen", "lr_schedulers"):
        if one[name] != two[name]:
            wrong.append(name)
    return wrong


def soak(phase: str, kills: int, chance: random.Random, arguments: argparse.Namespace) -> None:
    """One phase, once undisturbed and once killed again and again, then compared."""
    log = Path(arguments.out) / f"{phase.lower()}.txt"
    run(command(phase, "whole", arguments), log)
    killed, writing = 0, 0
    checkpoints = checkpoints_of(phase, "killed", arguments)
    while killed < kills:
        in_writing = killed % 2 == 1
        moment = chance.randint(0, 3) if in_writing else chance.uniform(0.5, LONGEST)
        if not run(command(phase, "killed", arguments), log, moment, checkpoints if in_writing else None):
            raise SystemExit(f"{phase}: finished after {killed} of {kills} kills; raise STEPS")
        killed += 1
        left = sorted(path.name for path in checkpoints.glob("step_*")) if checkpoints.is_dir() else []
        halves = [name for name in left if name.endswith(".tmp")]
        writing += bool(halves)
        when = "in writing" if in_writing else f"after {moment:.1f} s"
        print(f"{phase}: kill {killed} {when}, left {left}", flush=True)
    run(command(phase, "killed", arguments), log)
    one, two = (
        torch.load(checkpoints_of(phase, version, arguments) / "last.ckpt", weights_only=True)
        for version in ("whole", "killed")
    )
    wrong = differences(one, two)
    if wrong:
        raise SystemExit(f"{phase}: not the same after {kills} kills: {wrong[:5]}")
    print(f"{phase}: {kills} kills, {writing} left half a file; the same bit for bit after {one['global_step']} steps")


def main() -> None:
    """Both phases, half of the kills each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default=str(ROOT / "data" / "openmoji"))
    parser.add_argument("--out", default=str(ROOT / "runs" / "soak"))
    arguments = parser.parse_args()
    if not (Path(arguments.data) / "openmoji_train.arrow").is_file():
        convert = [sys.executable, str(ROOT / "datasets" / "convert.py"), "demo", "--out", arguments.data]
        convert += ["--vocab", f"{arguments.data}/vocab", "--vocab-size", "2000", "--size", "96"]
        subprocess.run(convert, check=True)
    shutil.rmtree(arguments.out, ignore_errors=True)
    Path(arguments.out).mkdir(parents=True)
    chance = random.Random(arguments.seed)
    for phase, kills in (("Phase1", arguments.kills // 2), ("Phase2", arguments.kills - arguments.kills // 2)):
        soak(phase, kills, chance, arguments)


if __name__ == "__main__":
    sys.exit(run_command(main, (subprocess.CalledProcessError,)))
