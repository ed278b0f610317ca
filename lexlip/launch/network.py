"""Whether the nodes can reach each other, and over which interface; says what is wrong by address and port."""

import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

from torch.distributed import TCPStore

from lexlip.errors import LaunchError
from lexlip.launch.settings import Settings

Result = TypeVar("Result")
ATTEMPT = 5.0  # seconds until one attempt to connect counts as unanswered
PAUSE = 1.0
SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface
LOOPBACK = ("127.", "::1", "localhost")


def say(text: str) -> None:
    """One line to standard error, at once."""
    with suppress(OSError):  # that nobody reads any more is no reason to end a training
        # Not print: signal handlers call this, perhaps inside another print.
        os.write(2, f"launch: {text}\n".encode(errors="backslashreplace"))


def within(seconds: float, call: Callable[..., Result], *arguments: object) -> Result:
    """What a call returns or raises; TimeoutError if it takes longer.

    For calls that know no limit: a question to a store behind a cut link waits in the kernel for a quarter of an hour.
    The call has a thread of its own, so that signals are heard meanwhile.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    if not wait([future], seconds).done:
        raise TimeoutError
    return future.result()


def meet(settings: Settings, environment: Mapping[str, str]) -> str:
    """Check the way to node 0 and choose the network interface.

    Returns:
        The address under which the other nodes reach this one.

    Raises:
        LaunchError: node 0 cannot be reached, or the port is taken.
    """
    host, port = settings.master, settings.port
    if settings.node_rank:
        reach(host, port, settings.reach_timeout)
    elif port:
        check_free(port)
    if settings.max_nodes == 1:
        return host
    own = own_address(host, port)
    if own.startswith(LOOPBACK) and not host.startswith(LOOPBACK):
        say(
            f"warning: on this node the name {host} means {own}, which other machines cannot reach; if they "
            "fail to connect, set MASTER_ADDR to its address in the network, and GLOO_SOCKET_IFNAME"
        )
    elif "GLOO_SOCKET_IFNAME" not in environment and (name := interface(own)):
        # By itself gloo takes the interface that the machine's own name leads to, often the wrong one or loopback.
        os.environ["GLOO_SOCKET_IFNAME"] = name
    return own if settings.node_rank else host


def reach(host: str, port: int, seconds: float) -> None:
    """Wait until a launcher listens there; LaunchError names host, port and the last reason why none did."""
    deadline, reason = time.monotonic() + seconds, "no answer so far"
    while (left := deadline - time.monotonic()) > 0:
        try:
            now = within(left, attempt, host, port)  # looking up a name can take longer than the whole wait
        except TimeoutError:
            break
        if now is None:
            return
        if now != reason:
            say(f"waiting for node 0 at {host} port {port}: {now}")
        reason = now
        time.sleep(min(PAUSE, left))
    raise LaunchError(
        f"cannot reach node 0 at {host} port {port} within {seconds:.0f} s: {reason}. Start the node with "
        "NODE_RANK=0, check MASTER_ADDR and MASTER_PORT on both, and that no firewall stands between; "
        "REACH_TIMEOUT waits longer"
    )


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
    """LaunchError if something else on this machine listens on the port, or nothing may."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.create_server(("", port), family=family).close()
        except OSError as error:
            known = {
                errno.EADDRINUSE: "is in use on this node; set MASTER_PORT to another one on all nodes, or end the "
                "earlier run that holds it",
                errno.EACCES: "may not be used without privileges; set MASTER_PORT above 1023",
            }.get(error.errno or 0)
            if known or family == socket.AF_INET:  # a machine without IPv6 is no problem
                raise LaunchError(f"port {port} {known or f'cannot be listened on: {error}'}") from None


def own_address(host: str, port: int) -> str:
    """The address that this machine sends from when it talks to a host; LaunchError if there is no way to it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # of a datagram socket: picks the route, sends nothing
            return probe.getsockname()[0]
    except OSError as error:
        raise LaunchError(f"no route to MASTER_ADDR={host} port {port}: {error.strerror or error}") from None


def interface(address: str) -> str | None:
    """Name of the interface with this IPv4 address, or None where it cannot be told."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                reply = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an address, or a system with another call
                continue
            if socket.inet_ntoa(reply[20:24]) == address:
                return name
    return None
