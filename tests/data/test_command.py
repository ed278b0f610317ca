"""How commands end: one line and the right exit status, whatever went wrong."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lexlip_data.command import prints_unicode, reason, run_command
from lexlip_data.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


def child(code: str, **how) -> subprocess.Popen:
    """A command of its own process, whose work is `code`."""
    text = "import sys\nfrom lexlip_data.command import run_command\n" + code + "\nsys.exit(run_command(work))"
    usual = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": {**os.environ, **how.pop("env", {})}}
    return subprocess.Popen([sys.executable, "-c", text], text=True, **{**usual, **how})


@pytest.mark.parametrize("do, line", [
    (lambda folder: (folder / "file" / "x").mkdir(parents=True), "/file/x: Not a directory; {}/file is a file, not a"),
    (lambda folder: (folder / "file").mkdir(), "/file: File exists; {}/file is a file, not a folder"),
    (lambda folder: (folder / "nowhere").read_bytes(), "/nowhere: No such file or directory"),
    (lambda folder: folder.read_bytes(), ": Is a directory"),
    (lambda folder: (folder / ("x" * 300)).write_bytes(b""), ": File name too long; give a shorter name"),
    (lambda folder: os.rename(folder / "no", folder / "new"), "/no -> {}/new: No such file"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_line_with_path_and_reason(tmp_path, capsys, do, line):
    (tmp_path / "file").write_bytes(b"")
    assert run_command(lambda: do(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path}") and line.format(tmp_path) in error and error.count("\n") == 1


def test_reasons():
    assert reason(OSError(errno.ENOSPC, "No space left on device", "a")).startswith("a: No space left on device; make")
    assert reason(OSError("two\nlines")) == "two lines"
    assert reason(DataError("")) == "DataError"


def test_statuses_pass_and_mistakes_are_told(capsys):
    def wrong():
        raise KeyError("x")

    assert (run_command(lambda: None), run_command(lambda: 1)) == (0, 1)
    assert run_command(wrong, (KeyError,)) == 2 and capsys.readouterr().err == "error: 'x'\n"
    with pytest.raises(KeyError):  # a fault of the program shows where it lies
        run_command(wrong)


def test_ctrl_c_is_one_line(capsys):
    def stopped():
        raise KeyboardInterrupt

    assert run_command(stopped) == 130
    assert capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_reader_that_goes_away_ends_a_command_quietly():
    for lines in (1, 100_000):  # found at the end, and in the middle
        running = child(f"import time\ndef work():\n    time.sleep(0.3)\n    for n in range({lines}): print(n)")
        running.stdout.close()
        assert running.stderr.read() == "" and running.wait(20) == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_the_output_is_told():
    with open("/dev/full", "w") as full:
        running = child("def work(): print(1)", stdout=full)
        assert running.communicate(timeout=20)[1].startswith("error: No space left on device; make room")
    assert running.returncode == 2


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_a_narrow_terminal_prints_escapes(encoding):
    running = child("def work(): print('\\u7ea2 \\U0001f600')", env={"PYTHONIOENCODING": encoding})
    assert running.communicate(timeout=20) == ("\\u7ea2 \\U0001f600\n", "") and running.returncode == 0


def test_unicode_output_is_recognised(monkeypatch):
    for encoding, wide in (("utf-8", True), ("UTF8", True), ("utf-16-le", True), ("cp1252", False), ("ascii", False)):
        monkeypatch.setattr(sys, "stdout", open(os.devnull, "w", encoding=encoding))
        assert prints_unicode() == wide


@pytest.mark.parametrize("script", ["Phase1/run.py", "Phase2/run.py"])
def test_ctrl_c_while_a_command_loads(script, tmp_path):
    """Each command loads what is heavy inside `run_command`: a module in its place is interrupted there."""
    package = tmp_path / "pytorch_lightning"
    package.mkdir()
    (package / "__init__.py").write_text("raise KeyboardInterrupt")
    path = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "datasets")))
    env = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, str(ROOT / script)], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 130 and done.stderr.count("\n") == 1 and done.stderr.startswith("stopped"), done.stderr
