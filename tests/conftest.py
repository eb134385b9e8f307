"""Which tests run on which ground, and the fixtures: sockets that close themselves, an engine, and
a connection that it redirected."""

import contextlib
import ctypes
import socket
import sys
from collections.abc import Callable, Iterator

import pytest
from loops import balanced, run, run_seen  # noqa: F401
from support import ORIGINAL, TIMEOUT, Pair, Redirected, Udp, accept, address_of, listen

from wfpioctl.simulator import Engine

WINDOWS = sys.platform == "win32"


def is_wine() -> bool:
    """Whether this is a Windows Python under Wine, which has no filtering platform."""
    return WINDOWS and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


# The marks that say what a test needs, and why it is skipped where that is not.
NEEDS = {
    "kernel": (WINDOWS and not is_wine(), "needs the kernel of a real Windows"),
    "winsock": (WINDOWS, "needs Winsock: Windows, or Wine (tools/wine.py)"),
    "linux_program": (not WINDOWS, "needs a program or a facility that only Linux has"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, (here, reason) in NEEDS.items():
            if not here and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def closing() -> Iterator[Callable[[socket.socket], socket.socket]]:
    """A function that takes care of a socket: it returns it, and the test's end closes it."""
    with contextlib.ExitStack() as stack:

        def take(sock: socket.socket) -> socket.socket:
            stack.callback(sock.close)
            return sock

        yield take


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A listening socket on an ephemeral port of 127.0.0.1."""
    with listen() as sock:
        yield sock


@pytest.fixture
def nowhere() -> Iterator[tuple[str, int]]:
    """An address that refuses connections; it is held, so that no connect can come from it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield address_of(sock)


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    """A TCP socket that is neither bound nor connected."""
    with socket.socket() as sock:
        sock.settimeout(TIMEOUT)
        yield sock


@pytest.fixture
def udp() -> Iterator[Udp]:
    """A function that returns a UDP socket bound to loopback; the test's end closes it."""
    with contextlib.ExitStack() as stack:

        def make(family: int = socket.AF_INET) -> socket.socket:
            sock = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            sock.settimeout(TIMEOUT)
            sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
            return sock

        yield make


@pytest.fixture
def pair(listener: socket.socket) -> Iterator[Pair]:
    """A connection that nobody redirected."""
    with (
        socket.create_connection(address_of(listener), TIMEOUT) as client,
        accept(listener) as server,
    ):
        yield Pair(client, server)


@pytest.fixture
def dialect() -> str:
    """The engine's dialect; @every_dialect puts each of them in its place."""
    return "documented"


@pytest.fixture
def engine(dialect: str) -> Iterator[Engine]:
    """An active engine without drivers."""
    with Engine(dialect=dialect) as engine:
        yield engine


@pytest.fixture
def redirected(engine: Engine, listener: socket.socket) -> Iterator[Redirected]:
    """A connection that driver "A" redirected to the listener, with the context b"context"."""
    driver = engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=b"context")
    with socket.create_connection(ORIGINAL, TIMEOUT) as app, accept(listener) as accepted:
        yield Redirected(app, accepted, engine, driver)
