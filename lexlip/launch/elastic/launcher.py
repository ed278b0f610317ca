"""Meet the other nodes, start the processes of this one, and say in one line why it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence

import torch
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousParameters,
    RendezvousTimeoutError,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from lexlip.errors import LaunchError
from lexlip.launch.elastic import network, settings
from lexlip.launch.elastic.agent import Agent, Left, say
from lexlip.launch.elastic.settings import AGAIN, Settings
from lexlip.launch.exit_status import INTERRUPTED, REQUEUE, USAGE

CLOSE_TIMEOUT = 10.0  # seconds to tell the other nodes that it is over


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Launch and wait.

    Returns:
        Exit status: 0 done; 1 failed, and every restart is used up; 2 a mistake of the user's; 75 stopped by SIGTERM or
        SIGUSR1, to be started again; 130 stopped by Ctrl-C.
    """
    try:
        wanted = settings.read(arguments, environment, torch.cuda.device_count())
        address = meet(wanted, environment)
    except LaunchError as error:
        say(f"error: {error}")
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    say(
        f"node {wanted.node_rank} of {nodes(wanted)}, processes here ({address}): {wanted.processes}, "
        f"restarts at most: {wanted.max_restarts}"
    )
    return run(wanted, address)


def meet(wanted: Settings, environment: Mapping[str, str]) -> str:
    """Check the way to node 0 and choose the network interface.

    Returns:
        The address under which the other nodes reach this one.

    Raises:
        LaunchError: node 0 cannot be reached, or the port is taken.
    """
    if wanted.node_rank == 0 and wanted.port:
        network.check_free(wanted.port)
    if wanted.max_nodes == 1:
        return "localhost"
    if wanted.node_rank:
        network.reach(wanted.master, wanted.port, wanted.reach_timeout, say)
    own = network.own_address(wanted.master, wanted.port)
    if network.is_loopback(own) and not network.is_loopback(wanted.master):
        say(
            f"warning: on this node the name {wanted.master} means {own}, which other machines cannot reach; if they "
            "fail to connect, set MASTER_ADDR to its address in the network, and GLOO_SOCKET_IFNAME"
        )
    elif "GLOO_SOCKET_IFNAME" not in environment:
        # By itself gloo takes the interface that the machine's own name leads to, often the wrong one or loopback.
        name = network.interface(own)
        if name:
            os.environ["GLOO_SOCKET_IFNAME"] = name
    return wanted.master if wanted.node_rank == 0 else own


def nodes(wanted: Settings) -> str:
    """The number of nodes in words."""
    few, many = wanted.min_nodes, wanted.max_nodes
    return str(many) if few == many else f"{few} to {many}"


def run(wanted: Settings, address: str) -> int:
    """Start the processes and watch them until they are done.

    Returns:
        Exit status, as `main`.
    """
    # The first process need not be on node 0, so processes that read this would be misled.
    os.environ.pop("NODE_RANK", None)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, settings.threads() // wanted.processes)))
    agent = None
    try:
        agent = make_agent(wanted, address)
        return watch(agent)
    except LaunchError as error:
        say(f"error: {error}")
        return 1
    finally:
        if agent is not None and not (wanted.elastic and agent.leaving is not None):
            close(agent.get_worker_group().spec.rdzv_handler)


def make_agent(wanted: Settings, address: str) -> Agent:
    """This node's agent, which has met node 0.

    Raises:
        LaunchError: node 0 does not answer.
    """
    meeting = RendezvousParameters(
        backend="c10d",
        endpoint=wanted.endpoint,
        run_id=wanted.run_id,
        min_nodes=wanted.min_nodes,
        max_nodes=wanted.max_nodes,
        local_addr=address,
        is_host=wanted.node_rank == 0,
        read_timeout=wanted.store_timeout,
        join_timeout=wanted.join_timeout,
    )
    try:
        handler = get_rendezvous_handler(meeting)
    except RendezvousConnectionError:
        raise LaunchError(wanted.lost_contact) from None
    spec = WorkerSpec(
        role="lexlip",
        local_world_size=wanted.processes,
        rdzv_handler=handler,
        entrypoint=sys.executable,
        args=("-u", *wanted.command),
        max_restarts=wanted.max_restarts,
        local_addr=address,
    )
    return Agent(spec, wanted)


def watch(agent: Agent) -> int:
    """Run the agent until its processes are done; gives the exit status.

    Raises:
        LaunchError: the run cannot go on.
    """
    wanted = agent.settings
    try:
        agent.watch_signals()
        result = agent.run()
    except Left as left:
        return left.code
    except SignalException as error:
        return INTERRUPTED if error.sigval == signal.SIGINT else REQUEUE
    except KeyboardInterrupt:
        return INTERRUPTED
    except RendezvousTimeoutError:
        raise LaunchError(
            f"fewer than {wanted.min_nodes} nodes met at {wanted.endpoint} in JOIN_TIMEOUT={wanted.join_timeout} s: "
            "others have ended (see their output), cannot be reached, or were given another MASTER_ADDR, MASTER_PORT, "
            f"RUN_ID or NNODES, or the same NODE_RANK. {AGAIN}"
        ) from None
    except RendezvousClosedError:
        raise LaunchError(f"another node has ended the run; its output says why. {AGAIN}") from None
    except RendezvousConnectionError:
        raise LaunchError(wanted.lost_contact) from None
    if result is not None and result.is_failed():
        raise LaunchError(f"no restart is left of MAX_RESTARTS={wanted.max_restarts}. {AGAIN}")
    return 0


def close(handler: RendezvousHandler) -> None:
    """Tell the other nodes that the run is over, so that they do not wait for this one."""

    def tell() -> None:
        with contextlib.suppress(Exception):  # the link may be what failed
            handler.shutdown()

    telling = threading.Thread(target=tell, daemon=True)
    telling.start()
    telling.join(CLOSE_TIMEOUT)
