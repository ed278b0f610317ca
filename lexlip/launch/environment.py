"""What the environment says about the processes of a run, and what they agree on before there is a process group.

Under torchrun (scripts/launch.sh) the number of processes comes from its environment, so the same command runs on one
GPU or on a hundred. The first process picks the run directory and the checkpoint and tells the others through
torchrun's store.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from lexlip.errors import LaunchError

PR_SET_PDEATHSIG = 1  # of linux/prctl.h
STARTER = "LEXLIP_STARTER"  # process that may start others of the run itself, as Lightning does with their ranks
STORE_WAIT = timedelta(minutes=30)  # the first process may read whole checkpoints, over a network, before it answers


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def local_processes(num_gpus: int) -> int:
    """Processes on this node; on the CPU one, unless torchrun starts more."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() else max(1, num_gpus)


def processes(num_gpus: int, num_nodes: int) -> int:
    """Processes of the run, on all nodes."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else max(1, num_gpus) * num_nodes


def restarted() -> bool:
    """Whether torchrun has started these processes again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def job() -> str:
    """The name of this launch, new for every launch and the same after its restarts; "" without scripts/launch.sh."""
    return os.environ.get("LEXLIP_JOB", "")


def first_rank() -> bool:
    """Whether this is the run's first process, known before there is a process group."""
    return not any(int(os.environ.get(name, 0)) for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))


def check() -> None:
    """Refuse what a launcher that has gone left in the environment; call it as a command starts.

    Raises:
        LaunchError: a rank without a launcher, which would train in silence as one of several processes, or a value
            that is no number.
    """
    needed = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE") if under_torchrun() else ()
    for name in {*needed, *{"RANK", "LOCAL_RANK", "NODE_RANK"} & os.environ.keys()}:
        if not os.environ.get(name, "").isdecimal():
            raise LaunchError(
                f"{name}={os.environ.get(name, '')}; it must be a whole number, or unset without a launcher"
            )
    left = [name for name in ("LOCAL_RANK", "RANK") if name in os.environ]
    if left and not under_torchrun() and os.environ.get(STARTER) != str(os.getppid()):
        raise LaunchError(
            f"{left[0]}={os.environ[left[0]]} is set, but no launcher started this process; "
            f"`unset {' '.join(left)}`, or start with scripts/launch.sh"
        )
    if not left:
        os.environ[STARTER] = str(os.getpid())


def leave_with_launcher() -> None:
    """Ask the system for SIGTERM when the launcher dies: processes it leaves behind would write beside the next run's.

    Only Linux can; elsewhere nothing happens.
    """
    if not under_torchrun() or not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died in between
        sys.exit(1)


def settled(name: str, decide: Callable[[], dict]) -> dict:
    """What the first process decides, the same on every process and at every later call.

    Args:
        name: of the environment variable that keeps the decision, also for processes that this one starts.
        decide: returns it, a dict that JSON can hold; runs in the first process only where there is a way to tell the
            others, else in each.

    Raises:
        LookupError: torchrun gives these processes no store to share it through.
    """
    if name not in os.environ:
        os.environ[name] = json.dumps(decide()) if not under_torchrun() else _through_store(name, decide)
    return json.loads(os.environ[name])


def _through_store(name: str, decide: Callable[[], dict]) -> str:
    if int(os.environ["WORLD_SIZE"]) == 1:
        return json.dumps(decide())
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise LookupError("these processes share no store")
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(address, port, is_master=False, timeout=STORE_WAIT)
    key = "/".join(("lexlip", job(), name, os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["WORLD_SIZE"]))
    if os.environ["RANK"] == "0":
        store.set(key, json.dumps(decide()))
    return store.get(key).decode()
