"""`lexlip serve` as a process: hostile requests in bounded memory, a new index under load, a graceful stop."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexlip.cli import main
from lexlip.index import SparseRows, add, delete, merge
from lexlip.serve.limits import Limits

for module in ("fastapi", "uvicorn", "prometheus_client", "python_multipart"):
    pytest.importorskip(module, reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs the extra dev")
pytestmark = pytest.mark.slow
MIB = 1 << 20


@contextmanager
def serving(index, model, *options):
    """The service's process and address."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "datasets"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "lexlip.cli", "serve", "--index", index, "--model", model, "--port", "0", *options]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    lines = []
    try:
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(lines))
        reader = threading.Thread(target=lambda: lines.extend(process.stderr))
        reader.start()
        yield process, found[1], lines
    finally:
        process.kill()
        process.wait()
    reader.join()


def peak(process):
    """The highest resident memory since the last call, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_hostile_requests_in_bounded_memory(index_folder, model_folder):
    sent = 0

    def gigabyte():
        nonlocal sent
        for _ in range(1024):
            sent += MIB
            yield bytes(MIB)

    flat = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(flat, "PNG")  # 900 million pixels in 110 kB
    form = {"content-type": "multipart/form-data; boundary=b"}
    requests = [
        (413, {"content": gigabyte(), "headers": {"content-type": "application/json"}}),
        (413, {"content": gigabyte(), "headers": form}),
        (413, {"content": gigabyte(), "headers": {**form, "content-length": str(1 << 30)}}),
        (422, {"files": {"image": ("bomb.png", flat.getvalue())}}),
        (422, {"files": {"image": ("zip.jpg", b"PK\x03\x04" + bytes(10 * MIB), "image/jpeg")}}),
        (422, {"json": {"text": "a", "k": 10**9}}),
        (400, {"content": "[" * 1_000_000, "headers": {"content-type": "application/json"}}),
        (400, {"content": '{"a":' * 200_000, "headers": {"content-type": "application/json"}}),
    ]
    with serving(index_folder, model_folder) as (process, address, lines):
        httpx.post(f"{address}/search", json={"text": "a"}).raise_for_status()
        peak(process)
        before = peak(process)
        for status, request in requests:
            sent = 0
            answer = httpx.post(f"{address}/search", timeout=60, **request)
            assert answer.status_code == status, answer.text
            assert answer.json()["error"]["message"]
            assert sent < 64 * MIB  # not read to its end
        # A body of 16 MiB, in the connection, in the form and as a file.
        assert peak(process) - before < 100 * MIB
        assert httpx.get(f"{address}/healthz").status_code == 200
    assert not any("Traceback" in line for line in lines)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
def test_photos_in_bounded_memory(index_folder, model_folder, tmp_path):
    """Twenty-four at once, of 60 MB each, bombs, and large ones that are fine: one file is in memory at a time."""
    (tmp_path / "photos").mkdir()
    flat, fine = io.BytesIO(), io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(flat, "PNG")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (2000, 3000, 3), dtype=np.uint8)).save(fine, "JPEG")
    for number in range(24):
        with open(tmp_path / "photos" / f"photo {number}", "wb") as file:
            file.write((flat.getvalue(), fine.getvalue(), b"\xff\xd8")[number % 3])
            if number % 3 == 2:
                file.truncate(60 * MIB)
    options = ["--photos", tmp_path / "photos", "--cache", tmp_path / "cache"]
    with serving(index_folder, model_folder, *options) as (process, address, lines):
        with httpx.Client(base_url=address, timeout=120) as client:
            assert client.get("/image/photo%201").status_code == 200  # starts the decoder
            peak(process)
            before = peak(process)
            with ThreadPoolExecutor(24) as pool:
                answers = list(pool.map(lambda number: client.get(f"/image/photo%20{number}"), range(24)))
        assert peak(process) - before < (2 * 60 + 60) * MIB
    assert [answer.status_code for answer in answers] == [422, 200, 422] * 8
    assert not any(str(tmp_path) in answer.text for answer in answers if answer.status_code != 200)
    assert not any("Traceback" in line for line in lines)


def test_new_states_under_load(index_folder, model_folder, image):
    stop, answers, failures = threading.Event(), [], []

    def load(request):
        with httpx.Client(base_url=address, timeout=30) as client:
            while not stop.is_set():
                try:
                    answer = client.post("/search", **request)
                    answers.append((answer.status_code, answer.json()["generation"]))
                except Exception as error:
                    failures.append(repr(error))

    requests = [{"json": {"text": "red dot"}}, {"json": {"terms": {"3": 1.0}}}, {"files": {"image": image()}}]
    with serving(index_folder, model_folder, "--reload-seconds", "0.05") as (_, address, lines):
        threads = [threading.Thread(target=load, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        for number in range(5):
            time.sleep(0.3)
            add(index_folder, [SparseRows.from_bags([{3: 1.0}] * 100, ids=[f"{number} {n}" for n in range(100)])])
        delete(index_folder, ["photo 1"])
        generation = merge(index_folder).generation
        end = time.monotonic() + 20
        while answers[-1][1] != generation and time.monotonic() < end:
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == [] and {status for status, _ in answers} == {200}
    served = {number for _, number in answers}
    assert generation in served and len(served) > 3
    assert not any("Traceback" in line for line in lines)


def test_a_stop_lets_requests_end(index_folder, model_folder):
    pixels = np.random.default_rng(0).integers(0, 255, (4000, 4000), dtype=np.uint8)  # takes a while to decode
    large = io.BytesIO()
    Image.fromarray(pixels).save(large, "PNG", compress_level=0)
    answers = []
    with serving(index_folder, model_folder, "--max-body", str(64 * MIB)) as (process, address, lines):
        thread = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{address}/search", files={"image": large.getvalue()}, timeout=60)
            )
        )
        thread.start()
        while "lexlip_active_requests 0.0" in httpx.get(f"{address}/metrics").text:
            pass
        process.send_signal(signal.SIGTERM)
        thread.join()
        assert process.wait(30) in (0, -signal.SIGTERM)
    assert answers[0].status_code == 200
    assert any("Finished server process" in line for line in lines)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/healthz")


def test_memory_stays_below_its_bound_and_a_stop_ends_whatever_is_under_way(index_folder, model_folder, image):
    """As many bodies as there are places, and some more; then a stop while a body and a head are still coming."""
    limits = Limits(concurrency=2, max_body=16 * MIB, decode_memory=256 * MIB)
    options = ["--concurrency", "2", "--decode-memory", str(limits.decode_memory), "--body-seconds", "1"]
    junk = {"files": {"image": bytes(15 * MIB)}}
    statuses = []

    def send():
        with httpx.Client(base_url=address, timeout=60) as client:
            statuses.extend(client.post("/search", **junk).status_code for _ in range(3))

    with serving(index_folder, model_folder, *options) as (process, address, lines):
        httpx.post(f"{address}/search", files={"image": image()}).raise_for_status()
        assert httpx.get(f"{address}/healthz", headers={"host": "evil.example.org"}).status_code == 421
        peak(process)
        before = peak(process)
        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) <= {422, 503} and 422 in statuses
        assert httpx.post(f"{address}/search", json={"text": "a"}).status_code == 200
        assert peak(process) - before < limits.memory()

        place = address.removeprefix("http://").rsplit(":", 1)
        body, head = (socket.create_connection((place[0], int(place[1]))) for _ in range(2))
        body.sendall(
            b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        head.sendall(b"GET / HT")
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert body.recv(100).startswith(b"HTTP/1.1 408 ")
        body.close(), head.close()
    assert not any("Traceback" in line for line in lines)


def test_the_bound_of_memory():
    """What docs/SERVING.md says."""
    assert Limits().memory() / 2**30 == pytest.approx(5.38, abs=0.01)
    more = Limits(concurrency=65).memory() - Limits().memory()
    assert more == (2 * 16 + 2 + 8 + 8) * MIB
    assert Limits(decoders=2).memory() - Limits().memory() == (2 << 30) + (64 + 2 * 64) * MIB


def test_mistakes_are_told_in_one_line(tmp_path, index_folder, model_folder, capsys):
    for index, model, option, message in (
        (tmp_path / "none", model_folder, (), "no such folder"),
        (index_folder, tmp_path / "none", (), "no such folder"),
        (index_folder, model_folder, ("--max-k", "0"), "max_k=0"),
        (index_folder, model_folder, ("--device", "warp"), "--device warp"),
        (index_folder, model_folder, ("--port", "70000"), "--port 70000: 0 to 65535"),
        (index_folder, model_folder, ("--allow-host", "http://a"), "--allow-host"),
        (index_folder, model_folder, ("--decode-seconds", "0"), "decode_seconds=0"),
        (index_folder, model_folder, ("--max-file", "0"), "max_file=0"),
        (index_folder, model_folder, ("--photos", tmp_path / "none"), "no such folder"),
        (index_folder, model_folder, ("--cache-bytes", "-1"), "--cache-bytes -1"),
    ):
        assert main(["serve", "--index", str(index), "--model", str(model), *map(str, option)]) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_options_that_are_given_are_the_limits(index_folder, model_folder, monkeypatch, capsys):
    server, app = pytest.importorskip("lexlip.serve.server"), pytest.importorskip("lexlip.serve.app")
    given = []
    monkeypatch.setattr(app, "create_app", lambda index, model, limits, hosts, *_: given.append((limits, hosts)))
    monkeypatch.setattr(server.Server, "run", lambda self: given.append(self.config))
    words = ["serve", "--index", str(index_folder), "--model", str(model_folder), "--port", "7"]
    some = ["--max-k", "9", "--body-seconds", "0.5", "--threads", "3", "--decode-memory", "9", "--allow-host", "A.b"]
    assert main([*words, *some]) == main(words) == 0
    limits = Limits(max_k=9, body_seconds=0.5, threads=3, decode_memory=9)
    assert [given[0], given[2]] == [(limits, {"a.b", "127.0.0.1"}), (Limits(), {"127.0.0.1"})]
    config = given[1]
    assert (config.port, config.access_log) == (7, False) and config.http.__mro__[1].__name__ == "H11Protocol"
    assert config.timeout_graceful_shutdown < server.STOP_SECONDS
    assert capsys.readouterr().err == ""
    assert main([*words, "--host", "0.0.0.0"]) == 0
    error = capsys.readouterr().err
    assert "--allow-host" in error and error.count("\n") == 1 and given[4][1] == frozenset()


def test_whose_photos_are_shown(index_folder, model_folder, monkeypatch, capsys, tmp_path):
    """Those that are named; what an index remembers, only where nobody else can ask."""
    app, server = pytest.importorskip("lexlip.serve.app"), pytest.importorskip("lexlip.serve.server")
    given = []
    monkeypatch.setattr(app, "create_app", lambda *values: given.append(values[5:]))
    monkeypatch.setattr(server.Server, "run", lambda self: None)
    words = ["serve", "--index", str(index_folder), "--model", str(model_folder), "--cache", str(tmp_path / "c")]
    named = ["--photos", str(tmp_path)]
    for more in (
        [],
        named,
        ["--host", "0.0.0.0"],
        ["--host", "0.0.0.0", *named],
        ["--no-page"],
        ["--cache-bytes", "0"],
    ):
        assert main([*words, *more]) == 0
    assert [(page, photos) for page, photos, _ in given] == [
        (True, True), (True, tmp_path), (True, False), (True, tmp_path), (False, True), (True, True)
    ]  # fmt: skip
    assert [cache is not None for _, _, cache in given] == [True] * 5 + [False]


@pytest.mark.parametrize("module", ["uvicorn", "prometheus_client"])
def test_without_the_extra(module, index_folder, model_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    for name in [name for name in sys.modules if name.startswith("lexlip.serve.") and name != "lexlip.serve.cli"]:
        package, _, last = name.rpartition(".")
        monkeypatch.delattr(sys.modules[package], last, raising=False)  # or the package keeps the module made here
        monkeypatch.delitem(sys.modules, name)
    assert main(["serve", "--index", str(index_folder), "--model", str(model_folder)]) == 2
    error = capsys.readouterr().err
    assert "pip install -e '.[serve]'" in error and error.count("\n") == 1
