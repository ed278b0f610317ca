"""Whether the nodes can reach each other, and over which interface; says what is wrong by address and port."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import TCPStore

from lexlip.errors import LaunchError

ATTEMPT = 5.0  # seconds until one attempt to connect counts as unanswered
PAUSE = 1.0
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def reach(host: str, port: int, seconds: float, say: Callable[[str], None]) -> None:
    """Wait until a launcher listens there.

    The attempts run in a thread of their own, because looking up a name can take longer than the whole wait.

    Args:
        host: name or address.
        port: TCP.
        seconds: how long to wait.
        say: gets the reason whenever it is a new one.

    Raises:
        LaunchError: nothing listened in time; names host, port and the last reason.
    """
    attempts = _Attempts(host, port, say)
    attempts.start()
    attempts.join(seconds)
    attempts.over = True
    if not attempts.connected:
        raise LaunchError(
            f"cannot reach node 0 at {host} port {port} within {seconds:.0f} s: {attempts.reason}. Start the node with "
            "NODE_RANK=0, check MASTER_ADDR and MASTER_PORT on both, and that no firewall stands between; "
            "REACH_TIMEOUT waits longer"
        )


class _Attempts(threading.Thread):
    def __init__(self, host: str, port: int, say: Callable[[str], None]):
        super().__init__(daemon=True)
        self.host, self.port, self.say = host, port, say
        self.reason = "no answer so far"
        self.connected = self.over = False

    def run(self) -> None:
        while not self.over:
            reason = attempt(self.host, self.port)
            if reason is None:
                self.connected = True
                return
            if reason != self.reason and not self.over:
                self.say(f"waiting for node 0 at {self.host} port {self.port}: {reason}")
            self.reason = reason
            time.sleep(PAUSE)


def attempt(host: str, port: int) -> str | None:
    """Connect once; None if a launcher listens there, else why not."""
    try:
        socket.create_connection((host, port), ATTEMPT).close()
        TCPStore(host, port, is_master=False, timeout=timedelta(seconds=ATTEMPT), wait_for_workers=False)
    except socket.gaierror as error:
        return f"the name {host} cannot be looked up ({error.strerror})"
    except ConnectionRefusedError:
        return "the machine answers, but nothing listens on this port (yet)"
    except TimeoutError:
        return f"no answer for {ATTEMPT:.0f} s; the address is wrong, the link is down, or a firewall drops it"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    except RuntimeError:  # DistNetworkError: connected, but the answer was no store's
        return "something answers there that is no launcher; another program or a proxy has the port"
    return None


def check_free(port: int) -> None:
    """Refuse a port that something else on this machine listens on.

    Raises:
        LaunchError: naming the port.
    """
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            with socket.socket(family) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(("", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LaunchError(
                    f"port {port} is in use on this node; set MASTER_PORT to another one on all nodes, or end the "
                    "earlier run that holds it"
                ) from None
            if error.errno == errno.EACCES:
                raise LaunchError(
                    f"port {port} may not be used without privileges; set MASTER_PORT above 1023"
                ) from None
            if family == socket.AF_INET:  # a machine without IPv6 is no problem
                raise LaunchError(f"cannot listen on port {port}: {error}") from None


def own_address(host: str, port: int) -> str:
    """The address that this machine sends from when it talks to a host.

    Raises:
        LaunchError: the host cannot be looked up, or there is no route to it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: picks the route, sends nothing
            return probe.getsockname()[0]
    except OSError as error:
        raise LaunchError(f"no route to MASTER_ADDR={host} port {port}: {error.strerror or error}") from None


def is_loopback(address: str) -> bool:
    """Whether an address never leaves the machine; names count as not."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def interface(address: str) -> str | None:
    """Name of the interface with this IPv4 address, or None where it cannot be told."""
    try:
        import fcntl  # not on Windows
    except ImportError:
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address, or a system with another call
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None
