"""What a real kernel answers on connections that nobody redirected.

For a Windows machine; elsewhere everything here is skipped. Where the facts leave the answer open,
these tests are how to learn it: each writes down the codes that it saw, also when it passes::

    python -m pytest tests/test_kernel.py -rA --junitxml kernel.xml
"""

import contextlib
import ctypes
import importlib
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import QUERIES, Pair, every_query

import wfpioctl
from wfpioctl.errors import CODES

pytestmark = pytest.mark.kernel

Seen = Callable[[str, int], None]
Query = Callable[[int | socket.socket], object]

NOT_REDIRECTED = {1168, 0x80320008, 10022}  # W17
SO_UPDATE_ACCEPT_CONTEXT = 0x700B
RECORDS = bytes(range(64))  # which no kernel gave out


@pytest.fixture
def seen(
    record_property: Callable[[str, object], None], capsys: pytest.CaptureFixture[str]
) -> Seen:
    """A function that writes down a code, for the report and for whoever watches."""

    def write_down(what: str, code: int) -> None:
        name = CODES[code].name if code in CODES else "success" if code == 0 else "unknown"
        record_property(what, f"{code} {name}")
        with capsys.disabled():
            print(f"\n{what}: {code} {name}")

    return write_down


def code_of(call: Callable[[], object]) -> int:
    """Make a call, and return the code of its failure, or 0."""
    try:
        call()
    except OSError as error:
        return error.winerror  # type: ignore[attr-defined, no-any-return]
    return 0


@pytest.fixture
def accepted_ex(listener: socket.socket) -> Iterator[socket.socket]:
    """A connection from AcceptEx, without SO_UPDATE_ACCEPT_CONTEXT."""
    overlapped: Any = importlib.import_module("_overlapped")
    with socket.socket() as accepted, socket.socket() as client:
        listener.setblocking(True)
        accept = overlapped.Overlapped(0)
        accept.AcceptEx(listener.fileno(), accepted.fileno())
        client.connect(listener.getsockname())
        accept.getresult(True)
        yield accepted


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("end", ["server", "client"])
def test_W17_not_redirected(pair: Pair, end: str, query: str, seen: Seen) -> None:
    code = code_of(lambda: QUERIES[query](getattr(pair, end)))
    seen(f"W17 {query} of the {end}", code)
    assert code in NOT_REDIRECTED


def test_W17_read_redirect_says_that_it_was_not(pair: Pair) -> None:
    assert wfpioctl.read_redirect(pair.server) is None


def test_W16_not_redirected_is_no_empty_context(pair: Pair, seen: Seen) -> None:
    """Success with 0 bytes means redirected without a context, and nothing else."""
    code = code_of(lambda: wfpioctl.query_redirect_context(pair.server))
    seen("W16 query_redirect_context, not redirected", code)
    assert code != 0


@pytest.mark.parametrize("size", [0, 3, 4, 1 << 16])
def test_W14_not_redirected_with_a_buffer_of_any_size(pair: Pair, size: int, seen: Seen) -> None:
    """Whether the size or the connection is looked at first is open; that it fails is not."""
    code = code_of(lambda: wfpioctl.query_redirect_records_into(pair.server, bytearray(size)))
    seen(f"W14 query_redirect_records_into {size} bytes, not redirected", code)
    assert code in NOT_REDIRECTED | {122}


@every_query
def test_W18_unconnected(tcp: socket.socket, query: Query, seen: Seen) -> None:
    code = code_of(lambda: query(tcp))
    seen("W18 unconnected", code)
    assert code == 10057


@every_query
def test_W19_file(query: Query, seen: Seen) -> None:
    import msvcrt

    with tempfile.TemporaryFile() as file:
        handle = msvcrt.get_osfhandle(file.fileno())  # type: ignore[attr-defined]
        code = code_of(lambda: query(handle))
    seen("W19 a file", code)
    assert code == 10038


@every_query
def test_W19_handle_of_a_closed_socket(query: Query, seen: Seen) -> None:
    with socket.socket() as sock:
        handle = sock.fileno()
    code = code_of(lambda: query(handle))
    seen("W19 a closed socket's handle", code)
    assert code == 10038


def test_W20_set_of_invented_records(tcp: socket.socket, seen: Seen) -> None:
    """Not elevated, the process may not; elevated, whether the kernel looks at them is open."""
    elevated = ctypes.WinDLL("shell32").IsUserAnAdmin()  # type: ignore[attr-defined]
    code = code_of(lambda: wfpioctl.set_redirect_records(tcp, RECORDS))
    seen(f"W20 set_redirect_records, {'' if elevated else 'not '}elevated", code)
    assert elevated or code == 10013


@every_query
def test_W21_listener(listener: socket.socket, query: Query, seen: Seen) -> None:
    code = code_of(lambda: query(listener))
    seen("W21 a listener", code)
    assert code in NOT_REDIRECTED | {10057}


@pytest.mark.parametrize("updated", [True, False])
@every_query
def test_W22_accept_ex(
    listener: socket.socket,
    accepted_ex: socket.socket,
    query: Query,
    updated: bool,
    seen: Seen,
) -> None:
    """Both answer as a socket from accept() does."""
    if updated:
        option = struct.pack("@P", listener.fileno())
        accepted_ex.setsockopt(socket.SOL_SOCKET, SO_UPDATE_ACCEPT_CONTEXT, option)
    code = code_of(lambda: query(accepted_ex))
    seen(f"W22 AcceptEx, with{'' if updated else 'out'} SO_UPDATE_ACCEPT_CONTEXT", code)
    assert code in NOT_REDIRECTED


def test_W05_original_destination_option(pair: Pair, seen: Seen) -> None:
    level, option = socket.IPPROTO_IP, wfpioctl.SO_ORIGINAL_DST
    code = code_of(lambda: pair.server.getsockopt(level, option, 128))
    seen("W05 SO_ORIGINAL_DST", code)
    assert code == 10022


@pytest.mark.parametrize("option", ["IP_WFP_REDIRECT_RECORDS", "IP_WFP_REDIRECT_CONTEXT"])
def test_W41_udp_socket_takes_the_options(option: str, seen: Seen) -> None:
    with contextlib.closing(socket.socket(type=socket.SOCK_DGRAM)) as udp:
        number = getattr(wfpioctl, option)
        code = code_of(lambda: udp.setsockopt(socket.IPPROTO_IP, number, 1))
    seen(f"W41 {option}", code)
    assert code == 0


def test_windows_is_new_enough() -> None:
    """W10"""
    assert sys.getwindowsversion() >= (6, 2)  # type: ignore[attr-defined]
