"""Meet the other nodes, start the processes of this one, and say in one line why it ended."""

import os
import signal
from collections.abc import Mapping, Sequence

import torch
from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic import rendezvous
from torch.distributed.elastic.agent.server.api import WorkerState
from torch.distributed.elastic.multiprocessing.api import SignalException

from lexlip.errors import LaunchError
from lexlip.launch.agent import Agent
from lexlip.launch.exit_status import INTERRUPTED, REQUEUE, USAGE
from lexlip.launch.network import meet, say
from lexlip.launch.settings import Settings, read


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Launch and wait.

    Returns:
        Exit status: 0 done; 1 failed, and every restart is used up; 2 a mistake of the user's; 75 stopped by SIGTERM or
        SIGUSR1, to be started again; 130 stopped by Ctrl-C.
    """
    try:
        settings = read(arguments, environment, torch.cuda.device_count())
        address = meet(settings, environment)
    except LaunchError as error:
        say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    nodes = f"{settings.min_nodes} to {settings.max_nodes}" if settings.elastic else settings.max_nodes
    say(
        f"node {settings.node_rank} of {nodes}, processes here ({address}): {settings.processes}, "
        f"restarts at most: {settings.max_restarts}"
    )
    return run(settings, address)


def run(settings: Settings, address: str) -> int:
    """Start the processes and watch them until they are done; returns the exit status, as `main`."""
    # The first process need not be on node 0, so processes that read this would be misled.
    os.environ.pop("NODE_RANK", None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // settings.processes)))
    agent = None
    try:
        agent = Agent(settings, address)
        result = agent.run()
        if result is None or result.state is WorkerState.SUCCEEDED:
            return 0
        return failed(f"no restart is left of MAX_RESTARTS={settings.max_restarts}")
    except SystemExit as left:
        return left.args[0]
    except (SignalException, KeyboardInterrupt) as stop:  # between torch's handlers and our own
        return INTERRUPTED if getattr(stop, "sigval", signal.SIGINT) == signal.SIGINT else REQUEUE
    except rendezvous.RendezvousTimeoutError:
        return failed(
            f"fewer than {settings.min_nodes} nodes met at {settings.endpoint} in JOIN_TIMEOUT={settings.join_timeout} "
            "s: others have ended (see their output), cannot be reached, or were given another MASTER_ADDR, "
            "MASTER_PORT, RUN_ID or NNODES, or the same NODE_RANK"
        )
    except rendezvous.RendezvousClosedError:
        return failed("another node has ended the run; its output says why")
    except (rendezvous.RendezvousConnectionError, DistNetworkError, DistStoreError, TimeoutError):
        return failed(f"lost contact with node 0 at {settings.endpoint}: its launcher has ended, or the link is down")
    finally:
        if agent is not None and not (settings.elastic and agent.leaving is not None):
            agent.meeting.close()


def failed(problem: str) -> int:
    """Say it; returns the exit status."""
    say(f"error: {problem}. The last checkpoint is whole: the same command with resume_from=auto goes on from it")
    return 1
