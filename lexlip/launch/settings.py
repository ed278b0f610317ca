"""What the environment and the command line say about a launch, checked before anything is started."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lexlip.errors import LaunchError

DEFAULT_PORT = 29500  # torchrun's


@dataclass(frozen=True)
class Settings:
    """One node's part in a launch; all times are in seconds."""

    command: tuple[str, ...]  # the words after `python` that every process runs
    min_nodes: int = 1
    max_nodes: int = 1  # more than min_nodes in an elastic run, where nodes may come and go
    node_rank: int = 0  # 0 on the node that the others connect to
    processes: int = 1  # on this node
    master: str = "localhost"  # name or address of node 0
    port: int = 0  # where node 0 listens; 0 on a single node, which takes a free port
    max_restarts: int = 3  # how often all processes are started again after one of them died
    run_id: str = "lexlip"  # the same on all nodes
    reach_timeout: int = 50  # how long to wait until node 0 listens
    join_timeout: int = 300  # how long to wait for enough nodes, at the start and after a restart
    last_call: int = 30  # how long an elastic run waits for more nodes once enough are there
    shutdown_timeout: int = 100  # how long processes may take to write a checkpoint when asked to stop

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
        """How long node 0 may take to answer before it counts as lost."""
        return min(60, self.join_timeout)


def read(arguments: Sequence[str], environment: Mapping[str, str], gpus: int) -> Settings:
    """Settings of this node.

    Args:
        arguments: `[--max-restarts N] PHASE [with key=value ...]`; in place of a phase any command of `lexlip`.
        environment: NNODES, NODE_RANK and the others that docs/RUNNING.md lists.

    Raises:
        LaunchError: a variable is missing, is not a number, or contradicts another.
    """
    parser = argparse.ArgumentParser(
        "launch.sh",
        description="Start a phase, or any lexlip command, in several processes on one node or many.",
        epilog="docs/RUNNING.md lists the variables: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT, NPROC_PER_NODE, ...",
    )
    parser.add_argument("--max-restarts", help="restarts of all processes after one died (MAX_RESTARTS, 3)")
    parser.add_argument("command", metavar="PHASE", help="Phase1, Phase2 or a command of lexlip")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="its own words, such as: with key=value ...")
    options = parser.parse_args(list(arguments))
    if options.max_restarts is not None:
        environment = {**environment, "MAX_RESTARTS": options.max_restarts}
    number = partial(_number, environment)

    min_nodes, max_nodes = _nodes(environment.get("NNODES", ""))
    alone, master = max_nodes == 1, environment.get("MASTER_ADDR", "").strip("[]")
    if not alone and "NODE_RANK" not in environment:
        each = f"give each of the {max_nodes} nodes its own, from 0 to {max_nodes - 1}"
        raise LaunchError(f"NODE_RANK is not set; {each}")
    if not alone and not master:
        raise LaunchError("MASTER_ADDR is not set; give all nodes the address of the one with NODE_RANK=0")
    command, num_gpus = _command(options.command, options.words, gpus)
    processes = number("NPROC_PER_NODE", max(1, gpus if num_gpus is None else num_gpus), 1)
    if command[0] != "-m" and num_gpus != 0 and ((num_gpus or 0) > gpus or processes > gpus > 0):
        raise LaunchError(
            f"{processes} processes with a GPU each, but this node shows {gpus}; set num_gpus (NUM_GPUS for the "
            f"scripts) to {gpus}{', which means the CPU' * (not gpus)}, or look at CUDA_VISIBLE_DEVICES"
        )
    return Settings(
        command=tuple(command),
        min_nodes=min_nodes,
        max_nodes=max_nodes,
        node_rank=number("NODE_RANK", 0, 0, max_nodes - 1),
        processes=processes,
        master=Settings.master if alone else master,
        port=number("MASTER_PORT", 0 if alone else DEFAULT_PORT, 0 if alone else 1, 65535),
        run_id=environment.get("RUN_ID") or Settings.run_id,
        max_restarts=number("MAX_RESTARTS", Settings.max_restarts, 0),
        reach_timeout=number("REACH_TIMEOUT", Settings.reach_timeout, 1),
        join_timeout=number("JOIN_TIMEOUT", Settings.join_timeout, 1),
        shutdown_timeout=number("SHUTDOWN_TIMEOUT", Settings.shutdown_timeout, 1),
    )


def _number(environment: Mapping[str, str], name: str, default: int, least: int, most: int | None = None) -> int:
    text = environment.get(name, "").strip() or str(default)
    if not text.isdecimal() or int(text) < least or (most is not None and int(text) > most):
        bounds = f"from {least} to {most}" if most is not None else f"of at least {least}"
        raise LaunchError(f"{name}={text}; it must be a whole number {bounds}")
    return int(text)


def _nodes(text: str) -> tuple[int, int]:
    least, _, most = (text.strip() or "1").partition(":")
    most = most or least
    if not (least.isdecimal() and most.isdecimal() and 1 <= int(least) <= int(most)):
        raise LaunchError(f"NNODES={text}; it must be a number of nodes such as 2, or for an elastic run a range, 1:4")
    return int(least), int(most)


def _command(name: str, words: list[str], gpus: int) -> tuple[list[str], int | None]:
    """The words after `python`, and the GPUs that they ask for; None where they name no number."""
    phases = {path.parent.name.lower(): path for path in Path(__file__).resolve().parents[2].glob("Phase*/run.py")}
    script = phases.get(name.lower().strip("/"))
    if script is None:
        return ["-m", "lexlip.cli", name, *words], None
    values = [word.partition("=")[2] for word in words if word.startswith("num_gpus=")]
    if not values and not gpus:
        print("launch: no GPU here, so num_gpus=0: on the CPU", file=sys.stderr)
        words = [*words, *["with"] * ("with" not in words), "num_gpus=0"]
    return [str(script), *words], int(values[-1]) if values and values[-1].isdecimal() else None
