"""What the tests share besides fixtures: addresses, groups of functions, small programs."""

import contextlib
import ctypes
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

import pytest

import wfpioctl
from wfpioctl import _wfpioctl
from wfpioctl.simulator import DIALECTS, Driver, Engine

ORIGINAL = ("203.0.113.7", 443)  # where apps want to go; no such host exists (RFC 5737)
ORIGINAL6 = ("2001:db8::7", 443)

TIMEOUT = 20.0  # seconds; no test comes near it unless something hangs

Udp = Callable[..., socket.socket]
"""What the fixture ``udp`` gives: a function of an address family."""

every_dialect = pytest.mark.parametrize("dialect", DIALECTS)


class Pair(NamedTuple):
    """Both ends of a plain connection."""

    client: socket.socket
    server: socket.socket


class Redirected(NamedTuple):
    """A connection from an app to ORIGINAL, which a driver sent to a listener."""

    app: socket.socket
    accepted: socket.socket
    engine: Engine
    driver: Driver


def has_ipv6() -> bool:
    """Whether a socket can be bound to ::1 here."""
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this system has no IPv6 loopback")

LOOPBACKS = [
    pytest.param(socket.AF_INET, id="ipv4"),
    pytest.param(socket.AF_INET6, id="ipv6", marks=needs_ipv6),
]


def listen(family: int = socket.AF_INET, backlog: int = 128) -> socket.socket:
    """Return a listener on an ephemeral loopback port."""
    sock = socket.socket(family)
    try:
        sock.settimeout(TIMEOUT)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def accept(listener: socket.socket) -> socket.socket:
    """Accept one connection, with a timeout on everything."""
    sock, _ = listener.accept()
    sock.settimeout(TIMEOUT)
    return sock


def address_of(sock: socket.socket) -> tuple[str, int]:
    """Return (host, port) of a bound socket of either family."""
    host, port = sock.getsockname()[:2]
    return host, port


def reset(sock: socket.socket) -> None:
    """Close a connection with a RST, as a crash of its process does."""
    linger = struct.pack("HH" if hasattr(socket, "SIO_RCVALL") else "ii", 1, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Read until the other side closes its end."""
    parts = []
    while part := sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def open_handles() -> int:
    """How many handles this process has open; where there is no Windows, how many descriptors."""
    if sys.platform != "win32":
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    count = ctypes.c_uint32()
    of_this_process = ctypes.c_void_p(-1)
    assert ctypes.WinDLL("kernel32").GetProcessHandleCount(of_this_process, ctypes.byref(count))
    return count.value


@contextlib.contextmanager
def running(*targets: Callable[[], object]) -> Iterator[list[threading.Thread]]:
    """Run functions in threads; leaving waits for them and raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(each,), daemon=True) for each in targets]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


# ---- forks ----

# Of a build that counts its lines; looked up before any fork, for the loader has a lock.
write_counts = getattr(ctypes.CDLL(str(_wfpioctl.__file__)), "__gcov_dump", None)


def end_child(code: int) -> NoReturn:
    """End a forked child, without whatever the parent would still do."""
    if write_counts is not None:
        write_counts()
    os._exit(code)


# ---- every function that makes an IOCTL, in a form that a table of tests can use ----

QUERIES = {
    "query_redirect_records": wfpioctl.query_redirect_records,
    "query_redirect_context": wfpioctl.query_redirect_context,
    "query_redirect_records_into": lambda sock: wfpioctl.query_redirect_records_into(
        sock, bytearray(1 << 21)
    ),
    "query_redirect_context_into": lambda sock: wfpioctl.query_redirect_context_into(
        sock, bytearray(1 << 21)
    ),
}
"""Name -> function(accepted)."""

every_query = pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)


def operation_of(function: str) -> str:
    """Return the name of the IOCTL that a function of QUERIES makes."""
    kind = "CONTEXT" if "context" in function else "RECORDS"
    return f"SIO_QUERY_WFP_CONNECTION_REDIRECT_{kind}"
