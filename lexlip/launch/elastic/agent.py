"""torch's elastic agent, taught four things.

1. Processes that leave on purpose are not started again. A signal goes to the processes alone, which write a
   checkpoint and leave; torch by itself would kill them 30 s later.
2. All nodes count the same restarts. By itself an agent counts only those that its own processes caused, so after a
   restart some processes would believe to be the first (https://github.com/pytorch/pytorch/issues/108158).
3. The processes get a fresh store after every restart. By itself the agent keeps one, where they find the addresses of
   their dead predecessors.
4. It gives up when node 0 does not answer. By itself it can wait for a quarter of an hour.

It overrides the methods that torch documents for this, and sets four attributes that are not documented; all of them
are there from torch 2.4 to 2.15.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
import uuid

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs

from lexlip.launch.elastic.patience import Patience
from lexlip.launch.elastic.settings import Settings
from lexlip.launch.exit_status import INTERRUPTED, REQUEUE, USAGE

FINAL = (USAGE, INTERRUPTED, REQUEUE)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
JOB_VARIABLE = "LEXLIP_JOB"  # tells processes which launch they belong to, the same before and after a restart


class Left(Exception):
    """The processes ended for good, with an exit status that forbids to start them again.

    Attributes:
        code: the exit status.
    """

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class Agent(LocalElasticAgent):
    """Starts the processes of one node, watches them, and starts them again together with the other nodes.

    Args:
        spec: what to run, how often, and where the nodes meet.
        settings: of the launch.
    """

    def __init__(self, spec: WorkerSpec, settings: Settings):
        super().__init__(spec, logs_specs=DefaultLogsSpecs(log_dir=os.devnull))
        self.settings = settings
        self._rdzv_handler = None  # older torch closes the meeting through it, for all, whenever one node leaves
        self.grace = settings.shutdown_timeout
        self.leaving: int | None = None  # the exit status, once a signal came
        self.deadline = 0.0
        self.round = 0
        self.job = uuid.uuid4().hex
        self.patience = Patience(self._give_up)
        self.patience.start()

    # --- signals ---

    def watch_signals(self) -> None:
        """Hand SIGINT, SIGTERM and SIGUSR1 on to the processes from now on."""
        for signum in SIGNALS:
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: object) -> None:
        name = signal.Signals(signum).name
        if self.leaving is None:
            self.leaving = INTERRUPTED if signum == signal.SIGINT else REQUEUE
            self.deadline = time.monotonic() + self.grace
            say(f"{name}: asking the processes to write a checkpoint and leave, for at most {self.grace:.0f} s")
        if self.get_worker_group().state is not WorkerState.HEALTHY:
            raise Left(self.leaving)  # none is running; waiting for other nodes has no other way out
        self._hand_on(signum)

    def _hand_on(self, signum: int) -> None:
        for worker in self.get_worker_group().workers:
            with contextlib.suppress(ProcessLookupError, TypeError):  # gone, or never started
                os.kill(worker.id, signum)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        if self.leaving is not None:  # asked while the old processes were being stopped
            raise Left(self.leaving)
        started = super()._start_workers(worker_group)
        self.watch_signals()  # torch has just put its own handlers in
        return started

    # --- node 0 ---

    def _give_up(self) -> None:
        say(f"error: {self.settings.lost_contact}")
        for worker in self.get_worker_group().workers:
            with contextlib.suppress(ProcessLookupError, TypeError):
                os.killpg(worker.id, signal.SIGKILL)  # with its loader processes; torch starts each as a group
        os._exit(1)

    def _exit_barrier(self) -> None:
        self.patience.allow(self._exit_barrier_timeout + self.settings.store_timeout)
        super()._exit_barrier()
        self.patience.allow(None)

    def _stop_workers(self, worker_group: WorkerGroup, *more: object, **named: object) -> None:
        self.patience.allow(None)
        super()._stop_workers(worker_group, *more, **named)  # some releases of torch also say whether it is a restart

    # --- restarts ---

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.patience.allow(self.settings.join_timeout + self.settings.store_timeout)
        handler = worker_group.spec.rdzv_handler
        handler._bootstrap_store_info = handler._shared_tcp_store_server = None
        super()._rendezvous(worker_group)
        self._agree(worker_group)
        self.patience.allow(None)

    def _agree(self, worker_group: WorkerGroup) -> None:
        """The same round, restarts left and job on every node; a node that came later takes those of the others."""
        mine = {"round": self.round, "left": self._remaining_restarts, "job": self.job}
        worker_group.store.set(f"lexlip/{worker_group.group_rank}", json.dumps(mine))
        everyone = [
            json.loads(worker_group.store.get(f"lexlip/{node}")) for node in range(worker_group.group_world_size)
        ]
        oldest = max(everyone, key=lambda node: node["round"])
        self.job = os.environ[JOB_VARIABLE] = oldest["job"]
        self._remaining_restarts = min(node["left"] for node in everyone)
        # Processes are told the difference of the two as TORCHELASTIC_RESTART_COUNT.
        worker_group.spec.max_restarts = self._remaining_restarts + oldest["round"]
        self.round = oldest["round"] + 1

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        self.patience.allow(None)
        result = super()._monitor_workers(worker_group)
        if result.is_failed():
            codes = {failure.exitcode for failure in result.failures.values()}
            final = [code for code in FINAL if code in codes]
            if self.leaving is not None or USAGE in final or (final and not self.settings.elastic):
                raise Left(final[0] if final else self.leaving)
            if final:
                say("another node leaves; going on with those that stay")
                self._remaining_restarts += 1  # torch takes one off, for a departure that is no fault
            else:
                self._report(result)
        elif self.leaving is not None and time.monotonic() > self.deadline:
            say(f"the processes did not leave within {self.grace:.0f} s and are killed; the last checkpoint is whole")
            raise Left(self.leaving)
        elif result.state is WorkerState.HEALTHY:
            self.patience.allow(self.settings.store_timeout)  # before the next call, torch asks the store
        return result

    def _report(self, result: RunResult) -> None:
        # The others were ended by torch, or lost contact with the one that died.
        own = {rank: failure for rank, failure in result.failures.items() if failure.exitcode != -signal.SIGTERM}
        for rank, failure in sorted((own or result.failures).items()):
            say(f"process {rank} (pid {failure.pid}) {how_it_ended(failure.exitcode)}")
        left = self._remaining_restarts
        if left:
            say(f"starting all processes again from the newest checkpoint; {left} such restarts are left")


def how_it_ended(exitcode: int) -> str:
    """An exit status in words, with what most likely led to it."""
    if exitcode >= 0:
        return f"ended with exit status {exitcode}; its message is above"
    name = signal.Signals(-exitcode).name if -exitcode in signal.valid_signals() else f"signal {-exitcode}"
    if exitcode == -signal.SIGKILL:
        return (
            "was killed by SIGKILL, which is how the kernel ends a process when memory runs out (dmesg would say so); "
            "a smaller per_gpu_batchsize, eval_batch_size or num_workers needs less"
        )
    return f"was killed by {name}"


def say(text: str) -> None:
    """One line to standard error, at once."""
    os.write(2, f"launch: {text}\n".encode())  # not print: signal handlers call this, perhaps inside another print
