"""Reaching node 0: what is said when it fails."""

import socket
import threading
import time
from datetime import timedelta

import pytest
import torch
from packaging.version import Version
from torch.distributed import TCPStore

from lexlip.errors import LaunchError
from lexlip.launch import network
from lexlip.launch.settings import Settings


@pytest.fixture
def listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def port_of(server):
    return server.getsockname()[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return port_of(probe)


def test_a_launcher_that_starts_later_is_found(capfd):
    port, stores = free_port(), []

    def serve():
        time.sleep(1.5)
        stores.append(TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5)))

    server = threading.Thread(target=serve)
    server.start()
    network.reach("127.0.0.1", port, 20)
    server.join()
    # Libraries' threads of other tests in this process may write to stderr too.
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("launch:")]
    assert len(said) == 1 and f"127.0.0.1 port {port}: the machine answers, but nothing listens" in said[0]


def test_nothing_listens():
    port, started = free_port(), time.monotonic()
    with pytest.raises(LaunchError, match=rf"cannot reach node 0 at 127.0.0.1 port {port} within 2 s.*nothing listens"):
        network.reach("127.0.0.1", port, 2)
    assert time.monotonic() - started < 4


@pytest.mark.skipif(Version(torch.__version__) < Version("2.5"), reason="older stores do not ask who answers")
def test_another_program_has_the_port(listener):
    def answer():
        connection, _ = listener.accept()  # the first attempt only connects
        connection.close()
        connection, _ = listener.accept()
        connection.recv(64)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.close()
        listener.close()

    threading.Thread(target=answer, daemon=True).start()
    assert "no launcher" in network.attempt("127.0.0.1", port_of(listener))


def test_a_name_that_nobody_knows():
    assert "name no-such-host.invalid cannot be looked up" in network.attempt("no-such-host.invalid", 29500)


def test_a_lookup_that_hangs_does_not_hold_the_launch(monkeypatch):
    monkeypatch.setattr(network, "attempt", lambda host, port: time.sleep(30))
    started = time.monotonic()
    with pytest.raises(LaunchError, match="no answer so far"):
        network.reach("node0", 29500, 1)
    assert time.monotonic() - started < 5


def test_a_taken_port_is_refused_before_anything_starts(listener):
    with pytest.raises(LaunchError, match=rf"port {port_of(listener)} is in use on this node; set MASTER_PORT"):
        network.meet(Settings(command=(), max_nodes=2, master="127.0.0.1", port=port_of(listener)), {})
    network.check_free(free_port())


def test_a_host_without_route_or_name():
    with pytest.raises(LaunchError, match="no route to MASTER_ADDR=no-such-host.invalid"):
        network.own_address("no-such-host.invalid", 29500)


def test_the_interface_of_the_route_is_given_to_gloo(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(network.os, "environ", {})
    settings = Settings(command=(), max_nodes=2, master="127.0.0.1", port=free_port())
    assert network.meet(settings, {}) == "127.0.0.1"
    loopback = network.interface("127.0.0.1")
    assert loopback in [name for _, name in socket.if_nameindex()]
    assert network.os.environ == {"GLOO_SOCKET_IFNAME": loopback}
    assert network.interface("203.0.113.7") is None


def test_a_user_given_interface_stays(monkeypatch):
    monkeypatch.setattr(network.os, "environ", {})
    settings = Settings(command=(), max_nodes=2, master="127.0.0.1", port=free_port())
    network.meet(settings, {"GLOO_SOCKET_IFNAME": "ib0"})
    assert network.os.environ == {}


def test_a_name_that_means_loopback_is_warned_about(monkeypatch, capfd):
    monkeypatch.setattr(network.os, "environ", {})
    monkeypatch.setattr(network, "own_address", lambda host, port: "127.0.1.1")
    settings = Settings(command=(), max_nodes=2, master="node0", port=free_port())
    assert network.meet(settings, {}) == "node0"  # the name under which the others know it
    assert "the name node0 means 127.0.1.1" in capfd.readouterr().err and network.os.environ == {}
