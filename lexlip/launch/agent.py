"""torch's elastic agent and rendezvous, taught what docs/RUNNING.md lists under "What the launcher adds to torchrun".

All of it hangs on what torch documents: a rendezvous handler made `from_backend`, and the methods that an agent may
override ("Extending the Agent"). No private attribute is read or set.
"""

import contextlib
import json
import os
import signal
import sys
import time
import uuid
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousParameters
from torch.distributed.elastic.rendezvous.c10d_rendezvous_backend import create_backend
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler, RendezvousTimeout

from lexlip.launch.exit_status import INTERRUPTED, REQUEUE, USAGE
from lexlip.launch.network import say, within
from lexlip.launch.settings import Settings

FINAL = (USAGE, INTERRUPTED, REQUEUE)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
EXIT_TIMEOUT = 300.0  # seconds that a node waits for the others after its own processes are done
CLOSE_TIMEOUT = 10.0  # seconds to tell the other nodes that it is over
PARTING = 10.0  # seconds that processes get to end by themselves when node 0 has gone, perhaps leaving as they are


class Meeting(DynamicRendezvousHandler):
    """Where the nodes meet, with a limit of `patience` seconds for questions to node 0."""

    patience = 60.0
    lost: Exception | None = None  # why there is no contact with node 0 any more
    asked = 0.0  # when the last question was put to it
    use_agent_store = True  # processes agree in a store of the launcher before they have a process group

    def num_nodes_waiting(self) -> int:
        """How many nodes wait to be let in; the agent asks ten times a second. 0 if node 0 does not say."""
        if self.lost is None:
            self.asked = time.monotonic()
            try:
                return within(self.patience, super().num_nodes_waiting)
            except (TimeoutError, RendezvousConnectionError) as error:
                self.lost = error
        return 0

    def shutdown(self) -> bool:
        """Nothing: torch 2.6 calls this whenever a node leaves, which is not the end of an elastic run."""
        return True

    def close(self) -> None:
        """Tell the other nodes that the run is over, so that they do not wait for this one."""
        if not self.lost:
            with contextlib.suppress(Exception):  # the link may be what failed
                within(CLOSE_TIMEOUT, super().shutdown)


class Agent(LocalElasticAgent):
    """Starts the processes of one node, watches them, and starts them again together with the other nodes.

    `run` raises SystemExit with the exit status when the processes ended for good. The other nodes reach this one at
    `address`.

    Raises:
        RendezvousConnectionError: node 0 does not answer.
    """

    def __init__(self, settings: Settings, address: str):
        # A store that torch itself shares among the processes would outlive restarts.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        nodes, patience = (settings.min_nodes, settings.max_nodes), settings.store_timeout
        parameters = RendezvousParameters(
            "c10d", settings.endpoint, settings.run_id, *nodes, is_host=settings.node_rank == 0, read_timeout=patience
        )
        backend, store = create_backend(parameters)
        timeout = RendezvousTimeout(timedelta(seconds=settings.join_timeout), timedelta(seconds=settings.last_call))
        self.meeting = Meeting.from_backend(settings.run_id, store, backend, *nodes, address, timeout)
        self.meeting.patience = patience
        spec = WorkerSpec(
            role="lexlip",
            local_world_size=settings.processes,
            rdzv_handler=self.meeting,
            entrypoint=sys.executable,
            args=("-u", *settings.command),
            max_restarts=0,  # this class decides what is started again
            local_addr=address,
        )
        super().__init__(spec, DefaultLogsSpecs(log_dir=os.devnull), exit_barrier_timeout=EXIT_TIMEOUT)
        self.settings = settings
        self.round, self.restarts_left, self.job = -1, settings.max_restarts, uuid.uuid4().hex
        self.leaving: int | None = None  # the exit status, once a signal came
        self.deadline = 0.0
        self.watch_signals()

    def watch_signals(self) -> None:
        """Hand SIGINT, SIGTERM and SIGUSR1 on to the processes from now on."""
        for signum in SIGNALS:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: object) -> None:
        group, grace = self.get_worker_group(), self.settings.shutdown_timeout
        if self.leaving is None:
            self.leaving = INTERRUPTED if signum == signal.SIGINT else REQUEUE
            self.deadline = time.monotonic() + grace
            name = signal.Signals(signum).name
            say(f"{name}: asking the processes to write a checkpoint and leave, for at most {grace} s")
        if group.state is not WorkerState.HEALTHY:
            sys.exit(self.leaving)  # none is running; waiting for other nodes has no other way out
        for worker in group.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.id, signum)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        started = super()._start_workers(worker_group)
        self.watch_signals()  # torch has just put its own handlers in
        return started

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        if self.leaving is not None:  # asked while the old processes were being stopped
            sys.exit(self.leaving)
        within(self.settings.join_timeout + self.settings.store_timeout, self._meet, worker_group)

    def _meet(self, group: Any) -> None:  # Any: to type checkers all fields of a WorkerGroup are None
        """The same round, restarts left and job on every node; a node that came later takes those of the others."""
        super()._rendezvous(group)
        mine = {"round": self.round + 1, "restarts_left": self.restarts_left, "job": self.job}
        if group.group_rank == 0:
            self.process_store = TCPStore(group.master_addr, 0, is_master=True, wait_for_workers=False)
            mine["port"] = self.process_store.port
        group.store.set(f"lexlip/{group.group_rank}", json.dumps(mine))
        nodes = [json.loads(group.store.get(f"lexlip/{rank}")) for rank in range(group.group_world_size)]
        oldest = max(nodes, key=lambda node: node["round"])
        self.round, self.job = oldest["round"], oldest["job"]
        self.restarts_left = min(node["restarts_left"] for node in nodes)
        group.master_port = nodes[0]["port"]
        group.spec.max_restarts = self.round  # what processes get as TORCHELASTIC_RESTART_COUNT
        os.environ["LEXLIP_JOB"] = self.job

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state is WorkerState.HEALTHY:
            self._check_time()
        if not result.is_failed():
            return result
        codes = {failure.exitcode for failure in result.failures.values()}
        final = next((code for code in FINAL if code in codes), self.leaving)
        if self.leaving is not None or final == USAGE or (final is not None and not self.settings.elastic):
            sys.exit(final)
        if final is not None:
            say("another node leaves; going on with those that stay")
        else:
            self._report(result)
            if not self.restarts_left:
                return result
            self.restarts_left -= 1
        self._restart_workers(worker_group)
        return RunResult(state=WorkerState.HEALTHY)

    def _check_time(self) -> None:
        grace, now = self.settings.shutdown_timeout, time.monotonic()
        if self.leaving is None:
            if self.meeting.lost and now > self.meeting.asked + PARTING:
                raise self.meeting.lost
        elif now > self.deadline:
            say(f"the processes did not leave within {grace} s and are killed; the last checkpoint is whole")
            sys.exit(self.leaving)

    def _report(self, result: RunResult) -> None:
        # The others were ended by torch, or lost contact with the one that died.
        own = {rank: failure for rank, failure in result.failures.items() if failure.exitcode != -signal.SIGTERM}
        for rank, failure in sorted((own or result.failures).items()):
            say(f"process {rank} (pid {failure.pid}) {how_it_ended(failure.exitcode)}")
        if self.restarts_left:
            say(f"starting all processes again from the newest checkpoint; {self.restarts_left} such restarts are left")

    def _exit_barrier(self) -> None:
        with contextlib.suppress(SystemExit):  # a signal ends the wait for the other nodes; the work here is done
            within(EXIT_TIMEOUT + self.settings.store_timeout, super()._exit_barrier)

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *more: Any, **named: Any) -> None:
        # Behind a cut link no step ends. What torch passes besides the signal is not the same in all releases.
        cut = isinstance(self.meeting.lost, TimeoutError)
        super()._shutdown(signal.SIGKILL if cut else death_sig, *more, **named)


def how_it_ended(exitcode: int) -> str:
    """An exit status in words, with what most likely led to it."""
    if exitcode >= 0:
        return f"ended with exit status {exitcode}; its message is above"
    if exitcode == -signal.SIGKILL:
        return (
            "was killed by SIGKILL, which is how the kernel ends a process when memory runs out (dmesg would say so); "
            "a smaller per_gpu_batchsize, eval_batch_size or num_workers needs less"
        )
    names = [known.name for known in signal.Signals if known == -exitcode]
    return f"was killed by {names[0] if names else f'signal {-exitcode}'}"
