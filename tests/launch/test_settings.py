"""What a launch makes of its environment and words."""

import signal
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError, DistStoreError

from lexlip.errors import ConfigError, LaunchError, LostContact
from lexlip.launch import agent, launcher
from lexlip.launch.settings import Settings, read
from lexlip.train.callbacks import interruption
from lexlip.train.main import Refused

ROOT = Path(__file__).resolve().parents[2]
TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}


def test_one_node_with_every_gpu():
    settings = read(["Phase1", "with", "demo"], {}, gpus=4)
    assert settings.command == (str(ROOT / "Phase1" / "run.py"), "with", "demo")
    assert (settings.min_nodes, settings.max_nodes, settings.processes, settings.max_restarts) == (1, 1, 4, 3)
    assert settings.endpoint == "localhost:0" and not settings.elastic


@pytest.mark.parametrize(
    "words, expected",
    [
        (["phase2", "with", "demo"], ["with", "demo", "num_gpus=0"]),
        (["Phase2"], ["with", "num_gpus=0"]),
        (["Phase2", "with", "num_gpus=0"], ["with", "num_gpus=0"]),
    ],
)
def test_without_gpu_the_cpu_is_taken_unless_the_user_says_otherwise(words, expected, capsys):
    settings = read(words, {}, gpus=0)
    assert settings.command == (str(ROOT / "Phase2" / "run.py"), *expected) and settings.processes == 1
    assert ("no GPU here" in capsys.readouterr().err) == ("num_gpus=0" not in words)


def test_processes_are_as_many_as_asked_for():
    words = ["Phase1", "with", "num_gpus=8", "num_gpus=2"]
    assert read(words, {}, gpus=4).processes == 2
    assert read(words, {"NPROC_PER_NODE": "3"}, gpus=4).processes == 3
    assert read(["Phase1", "with", "num_gpus=0"], {}, gpus=4).processes == 1
    assert read(["Phase1", "with", "num_gpus=0"], {"NPROC_PER_NODE": "6"}, gpus=4).processes == 6
    assert read(["Phase1"], {"NPROC_PER_NODE": "2"}, gpus=0).processes == 2


@pytest.mark.parametrize("words, nproc, gpus", [(["num_gpus=8"], "", 4), (["num_gpus=1"], "", 0), ([], "5", 4)])
def test_more_gpus_than_there_are_is_refused(words, nproc, gpus):
    with pytest.raises(LaunchError, match=f"this node shows {gpus}; set num_gpus"):
        read(["Phase1", "with", *words], {"NPROC_PER_NODE": nproc}, gpus=gpus)


def test_other_words_are_a_command_of_lexlip():
    settings = read(["--max-restarts", "0", "export", "a.ckpt", "--tokenizer", "t"], {"MAX_RESTARTS": "7"}, gpus=0)
    assert settings.command == ("-m", "lexlip.cli", "export", "a.ckpt", "--tokenizer", "t")
    assert settings.max_restarts == 0


def test_nodes():
    settings = read(["Phase1"], {**TWO, "MASTER_PORT": "1234", "RUN_ID": "x"}, gpus=8)
    assert (settings.min_nodes, settings.max_nodes, settings.node_rank) == (2, 2, 1)
    assert settings.endpoint == "node0:1234" and settings.run_id == "x"
    assert read(["Phase1"], {**TWO, "NNODES": "1:4"}, gpus=8).elastic
    assert read(["Phase1"], {**TWO, "MASTER_ADDR": "[fe80::1]"}, gpus=8).endpoint == "[fe80::1]:29500"


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"NODE_RANK": None}, "NODE_RANK is not set"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"NODE_RANK": "2"}, "NODE_RANK=2; it must be a whole number from 0 to 1"),
        ({"NNODES": "two"}, "NNODES=two"),
        ({"NNODES": "4:2"}, "NNODES=4:2"),
        ({"NNODES": "0"}, "NNODES=0"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000; it must be a whole number from 1 to 65535"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE=0"),
        ({"JOIN_TIMEOUT": "1.5"}, "JOIN_TIMEOUT=1.5"),
        ({"MAX_RESTARTS": "-1"}, "MAX_RESTARTS=-1"),
    ],
)
def test_what_cannot_work_is_named(changes, named):
    environment = {name: value for name, value in {**TWO, **changes}.items() if value is not None}
    with pytest.raises(LaunchError, match=named):
        read(["Phase1"], environment, gpus=1)


def test_runs_and_launchers_mean_the_same_exit_statuses():
    assert agent.REQUEUE == interruption.REQUEUE == interruption.Stopped(signal.SIGTERM).code
    assert agent.INTERRUPTED == interruption.Stopped(signal.SIGINT).code
    assert agent.USAGE == Refused(ConfigError("")).code
    assert Refused(LostContact("")).code not in agent.FINAL  # mended by a restart


@pytest.mark.parametrize("error", [DistNetworkError, DistStoreError, TimeoutError])
def test_a_store_or_network_that_is_gone_is_told_in_one_line(error, monkeypatch, capfd):
    def fail(*_):
        raise error("gone")

    monkeypatch.setattr(launcher, "Agent", fail)
    assert launcher.run(Settings(command=("program",)), "localhost") == 1
    assert "error: lost contact with node 0 at localhost:0" in capfd.readouterr().err
