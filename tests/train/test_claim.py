"""One run at a time trains in a directory, and a refused one leaves none behind."""

import subprocess
import sys

import pytest

from lexlip.errors import ConfigError
from lexlip.train import run_dir
from lexlip.train.claim import LOCK, Claim, Taken

HOLD = """
import sys
from pathlib import Path
from lexlip.train.claim import Claim
claim = Claim(Path(sys.argv[1]), alone=True)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held():
    """Lets another process claim a folder; gives the process."""
    running = []

    def hold(folder):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def config(make_config, tmp_path):
    yield make_config(log_dir=str(tmp_path), exp_name="x", version=None)
    run_dir.forget()


def test_a_second_run_is_refused_until_the_first_ends_however_it_ends(tmp_path, held):
    folder = tmp_path / "x" / "version_0"
    first = held(folder)
    with pytest.raises(Taken, match=f"process {first.pid} on "):
        Claim(folder, alone=True)
    Claim(folder, alone=False)  # an evaluation writes nothing that a training does
    first.kill()
    first.wait()
    Claim(folder, alone=True).release()


def test_a_run_in_a_directory_of_another_is_refused_and_a_new_one_takes_the_next_number(config, tmp_path, held):
    folder = tmp_path / f"x_seed{config.seed}" / "version_0"
    held(folder)
    for how in ({"version": 0}, {"version": 0, "resume_from": "auto"}):
        with pytest.raises(ConfigError, match=r"version=0: another run trains in .*version_0 \(process"):
            run_dir.choose(config.changed(**how))
        run_dir.forget()
    assert run_dir.choose(config)[0].name == "version_1"
    run_dir.forget()
    assert run_dir.choose(config.changed(version=0, test_only=True))[0] == folder


def test_two_that_start_at_once_take_two_numbers(config, tmp_path, held, monkeypatch):
    monkeypatch.setattr(run_dir, "_free", lambda config, free=run_dir._free: (free(config), held_once())[0])
    taken = []

    def held_once():
        if not taken:
            taken.append(held(tmp_path / f"x_seed{config.seed}" / "version_0"))

    assert run_dir.choose(config)[0].name == "version_1"


def test_a_refused_run_takes_no_number_and_removes_nothing_of_others(config, tmp_path):
    folder = run_dir.choose(config)[0]
    (folder / "sacred" / "1").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    run_dir.give_back()
    run_dir.forget()
    assert list(tmp_path.iterdir()) == []
    folder = run_dir.choose(config)[0]
    (folder / "notes").write_text("of someone else")
    run_dir.give_back()
    run_dir.forget()
    assert (folder / "notes").exists()
    folder = run_dir.choose(config)[0]
    run_dir.begin()
    run_dir.give_back()
    assert folder.name == "version_1" and (folder / LOCK).exists()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, True, None, "1"])
def test_seeds_that_no_generator_takes(make_keys, seed):
    from lexlip.train.config import Config, check_seed

    for check in (lambda: Config.checked(make_keys(seed=seed)), lambda: check_seed(seed)):
        with pytest.raises(ConfigError, match="seed="):
            check()
    check_seed(2**32 - 1)


@pytest.mark.parametrize("version", ["", "..", "a/b", "a\\b"])
def test_versions_that_are_no_names(make_keys, version):
    from lexlip.train.config import Config

    with pytest.raises(ConfigError, match="version="):
        Config.checked(make_keys(version=version))
