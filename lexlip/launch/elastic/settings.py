"""What the environment and the command line say about a launch, checked before anything is started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lexlip.errors import LaunchError

PHASES = ("Phase1", "Phase2")
DEFAULT_PORT = 29500  # torchrun's
STORE_TIMEOUT = 60
AGAIN = "The last checkpoint is whole: the same command with resume_from=auto goes on from it"


@dataclass(frozen=True)
class Settings:
    """One node's part in a launch.

    Attributes:
        command: the words after `python` that every process runs.
        min_nodes, max_nodes: nodes of the run; they differ for an elastic one.
        node_rank: 0 on the node that the others connect to.
        processes: on this node.
        master: host name or address of node 0.
        port: where node 0 listens; 0 on a single node, which takes a free one.
        max_restarts: how often all processes are started again after one of them died.
        run_id: the same on all nodes of a run.
        reach_timeout: seconds to wait for node 0 to listen.
        join_timeout: seconds to wait until enough nodes are there, at the beginning and after a restart.
        shutdown_timeout: seconds that processes have to write a checkpoint when asked to stop.
    """

    command: tuple[str, ...]
    min_nodes: int = 1
    max_nodes: int = 1
    node_rank: int = 0
    processes: int = 1
    master: str = "localhost"
    port: int = 0
    max_restarts: int = 3
    run_id: str = "lexlip"
    reach_timeout: int = 50
    join_timeout: int = 300
    shutdown_timeout: int = 100

    @property
    def elastic(self) -> bool:
        """Whether nodes may come and go."""
        return self.min_nodes < self.max_nodes

    @property
    def endpoint(self) -> str:
        """Address and port of node 0, as torch's rendezvous and the messages write them."""
        return f"[{self.master}]:{self.port}" if ":" in self.master else f"{self.master}:{self.port}"

    @property
    def store_timeout(self) -> int:
        """Seconds until an answer of node 0 counts as lost."""
        return min(STORE_TIMEOUT, self.join_timeout)

    @property
    def lost_contact(self) -> str:
        """What to say when it is."""
        return f"lost contact with node 0 at {self.endpoint}: its launcher has ended, or the link is down. {AGAIN}"


def read(arguments: Sequence[str], environment: Mapping[str, str], gpus: int) -> Settings:
    """Settings of this node.

    Args:
        arguments: `[--max-restarts N] PHASE [with key=value ...]`; in place of a phase any command of `lexlip`.
        environment: NNODES, NODE_RANK and the others that docs/RUNNING.md lists.
        gpus: of this machine.

    Raises:
        LaunchError: a variable is missing, no number, or contradicts another.
    """
    options = _parser().parse_args(list(arguments))
    words = [options.command, *options.words]
    numbers = _Numbers(environment)
    least, most = _nodes(environment.get("NNODES", "1"))
    alone = most == 1
    node_rank = numbers.get("NODE_RANK", 0, 0, most - 1) if alone or "NODE_RANK" in environment else None
    if node_rank is None:
        raise LaunchError(f"NODE_RANK is not set; give each of the {most} nodes its own, from 0 to {most - 1}")
    master = environment.get("MASTER_ADDR", "")
    if not alone and not master:
        raise LaunchError("MASTER_ADDR is not set; give all nodes the address of the one with NODE_RANK=0")
    restarts = options.max_restarts
    wanted = _wanted_gpus(words)
    processes = numbers.get("NPROC_PER_NODE", max(1, gpus if wanted is None else wanted), 1)
    _check_gpus(words, processes, gpus)
    return Settings(
        command=tuple(_command(words, gpus)),
        min_nodes=least,
        max_nodes=most,
        node_rank=node_rank,
        processes=processes,
        master="localhost" if alone else master.strip("[]"),
        port=numbers.get("MASTER_PORT", 0 if alone else DEFAULT_PORT, 0 if alone else 1, 65535),
        max_restarts=numbers.get("MAX_RESTARTS", 3, 0) if restarts is None else restarts,
        run_id=environment.get("RUN_ID") or "lexlip",
        reach_timeout=numbers.get("REACH_TIMEOUT", 50, 1),
        join_timeout=numbers.get("JOIN_TIMEOUT", 300, 1),
        shutdown_timeout=numbers.get("SHUTDOWN_TIMEOUT", 100, 1),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "launch.sh",
        description="Start a phase, or any lexlip command, in several processes on one node or many.",
        epilog="docs/RUNNING.md lists the variables: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NPROC_PER_NODE, ...",
    )
    parser.add_argument(
        "--max-restarts", type=_count, help="restarts of all processes after one died (MAX_RESTARTS, 3)"
    )
    parser.add_argument("command", metavar="PHASE", help="Phase1, Phase2 or a command of lexlip")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its own words, such as: with key=value ...")
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of restarts")
    return int(text)


class _Numbers:
    """Whole numbers of the environment; an empty variable counts as not set."""

    def __init__(self, environment: Mapping[str, str]):
        self.environment = environment

    def get(self, name: str, default: int, least: int, most: int | None = None) -> int:
        text = self.environment.get(name, "").strip() or str(default)
        if not text.isdigit() or int(text) < least or (most is not None and int(text) > most):
            bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
            raise LaunchError(f"{name}={text}; it must be a whole number {bounds}")
        return int(text)


def _nodes(text: str) -> tuple[int, int]:
    least, _, most = (text.strip() or "1").partition(":")
    most = most or least
    if not (least.isdigit() and most.isdigit() and 1 <= int(least) <= int(most)):
        raise LaunchError(f"NNODES={text}; it must be a number of nodes such as 2, or for an elastic run a range, 1:4")
    return int(least), int(most)


def _phase(word: str) -> str | None:
    return next((phase for phase in PHASES if phase.lower() == word.lower().strip("/")), None)


def _command(words: list[str], gpus: int) -> list[str]:
    phase = _phase(words[0])
    if phase is None:
        return ["-m", "lexlip.cli", *words]
    script = Path(__file__).resolve().parents[3] / phase / "run.py"
    words = words[1:]
    if not gpus and _key(words, "num_gpus") is None:
        print("launch: no GPU here, so num_gpus=0: on the CPU", file=sys.stderr)
        words += ["num_gpus=0"] if "with" in words else ["with", "num_gpus=0"]
    return [str(script), *words]


def _check_gpus(words: list[str], processes: int, gpus: int) -> None:
    wanted = _wanted_gpus(words)
    if _phase(words[0]) is None or wanted == 0:
        return
    if (wanted or 0) > gpus or processes > gpus > 0:
        raise LaunchError(
            f"{processes} processes with a GPU each, but this node shows {gpus}; set num_gpus (NUM_GPUS for the "
            f"scripts) to {gpus}{', which means the CPU' * (not gpus)}, or look at CUDA_VISIBLE_DEVICES"
        )


def _wanted_gpus(words: list[str]) -> int | None:
    value = _key(words, "num_gpus") if _phase(words[0]) else None
    return int(value) if value is not None and value.isdigit() else None


def _key(words: list[str], name: str) -> str | None:
    """The last value that the command line gives a key; None where it gives none."""
    values = [word.partition("=")[2] for word in words if word.startswith(name + "=")]
    return values[-1] if values else None


def threads() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
