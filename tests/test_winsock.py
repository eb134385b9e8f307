"""The way from the module to the system's own Winsock, which is Windows' or Wine's.

Wine knows none of the IOCTLs and says so (10045) of whatever it is given. What a kernel that knows
them answers comes from a stand-in: our function in WSAIoctl's place in the extension's imports.
"""

import contextlib
import ctypes
import errno
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import is_wine
from support import accept, address_of, listen

import wfpioctl
from wfpioctl import _wfpioctl
from wfpioctl.errors import CODES

pytestmark = pytest.mark.winsock

QUERY_RECORDS = "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS"
QUERY_CONTEXT = "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT"
SET_RECORDS = "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS"

FUNCTIONS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "query_redirect_records": (QUERY_RECORDS, wfpioctl.query_redirect_records),
    "query_redirect_context": (QUERY_CONTEXT, wfpioctl.query_redirect_context),
    "query_redirect_records_into": (
        QUERY_RECORDS,
        lambda sock: wfpioctl.query_redirect_records_into(sock, bytearray(100)),
    ),
    "query_redirect_context_into": (
        QUERY_CONTEXT,
        lambda sock: wfpioctl.query_redirect_context_into(sock, bytearray(100)),
    ),
    "set_redirect_records": (
        SET_RECORDS,
        lambda sock: wfpioctl.set_redirect_records(sock, b"records"),
    ),
    "transfer_redirect_records": (
        QUERY_RECORDS,
        lambda sock: wfpioctl.transfer_redirect_records(sock, sock),
    ),
    "read_redirect": (QUERY_RECORDS, wfpioctl.read_redirect),
}
every_function = pytest.mark.parametrize(
    ("operation", "function"), FUNCTIONS.values(), ids=FUNCTIONS
)


# ---- what a handle may be ----


@contextlib.contextmanager
def connected() -> Iterator[int]:
    with (
        listen() as listener,
        socket.create_connection(address_of(listener)) as client,
        accept(listener),
    ):
        yield client.fileno()


@contextlib.contextmanager
def unconnected() -> Iterator[int]:
    with socket.socket() as sock:
        yield sock.fileno()


@contextlib.contextmanager
def closed() -> Iterator[int]:
    with socket.socket() as sock:
        handle = sock.fileno()
    yield handle


@contextlib.contextmanager
def listening() -> Iterator[int]:
    with listen() as listener:
        yield listener.fileno()


@contextlib.contextmanager
def udp() -> Iterator[int]:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        yield sock.fileno()


@contextlib.contextmanager
def file() -> Iterator[int]:
    import msvcrt

    with tempfile.TemporaryFile() as opened:
        yield msvcrt.get_osfhandle(opened.fileno())  # type: ignore[attr-defined]


# What a kernel that knows the IOCTLs answers, where that is known; without a code, any error.
HANDLES = {
    "connected": (connected, None),  # W17: test_kernel.py
    "unconnected": (unconnected, 10057),  # W18
    "closed": (closed, 10038),  # W19
    "listening": (listening, None),
    "udp": (udp, None),
    "file": (file, 10038),  # W19
}


def check(error: wfpioctl.RedirectError, operation: str) -> None:
    """Whatever the code: class, codes and message belong together, and are as Python's own."""
    code = CODES.get(error.winerror)
    assert type(error) is (code.error if code else wfpioctl.RedirectError)
    assert error.operation == operation
    assert error.required_size is None
    assert str(error).startswith(f"[WinError {error.winerror}] {operation}: ")
    assert str(error).endswith(f"({code.name})" if code else "unexpected code")
    if sys.platform == "win32" and error.winerror < 1 << 31:
        assert error.errno == OSError(0, "", None, error.winerror).errno


@every_function
@pytest.mark.parametrize(("handle", "kernel_answer"), HANDLES.values(), ids=HANDLES)
def test_error_of_each_kind_of_handle(
    operation: str,
    function: Callable[[Any], object],
    handle: Callable[[], contextlib.AbstractContextManager[int]],
    kernel_answer: int | None,
) -> None:
    with handle() as number, pytest.raises(wfpioctl.RedirectError) as caught:
        function(number)
    check(caught.value, operation)
    if is_wine():
        assert caught.value.winerror == 10045
    elif kernel_answer is not None:
        assert caught.value.winerror == kernel_answer


@every_function
def test_W19_closed_socket_object(operation: str, function: Callable[[Any], object]) -> None:
    """It is INVALID_SOCKET, which Winsock need not be asked about."""
    sock = socket.socket()
    sock.close()
    with pytest.raises(wfpioctl.NotASocketError) as caught:
        function(sock)
    check(caught.value, operation)
    assert caught.value.winerror == errno.ENOTSOCK == 10038


def test_works_where_socket_was_never_imported() -> None:
    """The extension starts Winsock by itself, and does not count on the socket module for it."""
    program = """
        import ctypes, sys, types
        package = types.ModuleType("wfpioctl")  # the real one imports socket
        package.__path__ = [sys.argv[1]]
        sys.modules["wfpioctl"] = package
        sys.modules["socket"] = types.SimpleNamespace(socket=type("socket", (), {"fileno": None}))

        ws2_32 = ctypes.WinDLL("ws2_32")
        ws2_32.socket.restype = ctypes.c_size_t
        from wfpioctl import _wfpioctl
        handle = ws2_32.socket(2, 1, 6)
        assert handle != ctypes.c_size_t(-1).value, ws2_32.WSAGetLastError()
        try:
            _wfpioctl.query_redirect_records(handle)
        except OSError as error:
            assert error.winerror in (10045, 10057), error
        assert "_socket" not in sys.modules
        print("done")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), Path(wfpioctl.__file__).parent],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


# ---- a stand-in for the kernel ----


class Received(NamedTuple):
    """What WSAIoctl was given."""

    socket: int
    code: int
    input: bytes | None
    output_size: int
    has_output: bool
    overlapped: int | None
    completion: int | None


class StandIn:
    """Answers in WSAIoctl's place: with `data`, or if it is not 0, with the error `code`."""

    def __init__(self) -> None:
        self.data = b""
        self.code = 0
        self.calls: list[Received] = []

    def ioctl(  # noqa: PLR0917 - WSAIoctl's signature
        self,
        sock: int,
        code: int,
        input_: int | None,
        input_size: int,
        output: int | None,
        output_size: int,
        returned: Any,
        overlapped: int | None,
        completion: int | None,
    ) -> int:
        received = None if input_ is None else ctypes.string_at(input_, input_size)
        self.calls.append(
            Received(sock, code, received, output_size, output is not None, overlapped, completion)
        )
        returned[0] = len(self.data)
        if self.code:
            signed = ctypes.c_int(self.code).value
            ctypes.set_last_error(signed)  # type: ignore[attr-defined]
            return -1
        if output is not None:
            ctypes.memmove(output, self.data, len(self.data))
        return 0


def import_slot(module: Any, function: int) -> int:
    """Return where a loaded module keeps the address of an imported function."""

    def dword(address: int) -> int:
        return ctypes.c_uint32.from_address(address).value

    word = ctypes.sizeof(ctypes.c_void_p)
    kernel32 = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined]
    kernel32.GetModuleHandleW.argtypes = [ctypes.c_wchar_p]
    kernel32.GetModuleHandleW.restype = ctypes.c_size_t
    base: int = kernel32.GetModuleHandleW(module.__file__)
    optional_header = base + dword(base + 0x3C) + 24
    directories = optional_header + (112 if word == 8 else 96)
    descriptor = base + dword(directories + 8)  # the second directory: imports, one for each DLL
    while first := dword(descriptor + 16):
        slot = base + first
        while address := ctypes.c_size_t.from_address(slot).value:
            if address == function:
                return slot
            slot += word
        descriptor += 20
    raise AssertionError("the module does not import it")


@pytest.fixture
def kernel() -> Iterator[StandIn]:
    """A stand-in that the extension takes for WSAIoctl, until the end of the test."""
    stand_in = StandIn()
    dword, pointer = ctypes.c_uint32, ctypes.c_void_p
    signature = ctypes.WINFUNCTYPE(  # type: ignore[attr-defined]
        *(ctypes.c_int, ctypes.c_size_t, dword, pointer, dword, pointer, dword),
        *(ctypes.POINTER(dword), pointer, pointer),
        use_last_error=True,
    )
    ours = signature(stand_in.ioctl)
    theirs = ctypes.cast(ctypes.WinDLL("ws2_32").WSAIoctl, pointer)  # type: ignore[attr-defined]
    assert theirs.value is not None
    slot = ctypes.c_void_p.from_address(import_slot(_wfpioctl, theirs.value))
    protect = ctypes.WinDLL("kernel32").VirtualProtect  # type: ignore[attr-defined]
    protect.argtypes = [ctypes.c_size_t, ctypes.c_size_t, dword, ctypes.POINTER(dword)]
    before = dword()
    assert protect(ctypes.addressof(slot), ctypes.sizeof(slot), 4, before)  # PAGE_READWRITE
    slot.value = ctypes.cast(ours, pointer).value
    try:
        yield stand_in
    finally:
        slot.value = theirs.value
        protect(ctypes.addressof(slot), ctypes.sizeof(slot), before.value, before)


@pytest.mark.parametrize(
    ("code", "query"),
    [(0x980000DC, "query_redirect_records"), (0x980000DD, "query_redirect_context")],
)
def test_W11_query_has_an_output_and_no_input(kernel: StandIn, code: int, query: str) -> None:
    kernel.data = b"answer"
    assert getattr(wfpioctl, query)(1234) == b"answer"
    [call] = kernel.calls
    assert call._replace(output_size=0) == Received(1234, code, None, 0, True, None, None)
    assert call.output_size >= 1024  # W12


def test_W11_set_has_an_input_and_no_output(kernel: StandIn) -> None:
    kernel.data = b"a length, which says nothing (W24)"
    wfpioctl.set_redirect_records(1234, b"records")
    assert kernel.calls == [Received(1234, 0x980000DE, b"records", 0, False, None, None)]


def test_W25_transfer_sets_exactly_what_it_queried(kernel: StandIn) -> None:
    kernel.data = bytes(range(256))
    assert wfpioctl.transfer_redirect_records(1234, 5678) == 256
    query, set_ = kernel.calls
    assert (query.socket, query.code) == (1234, 0x980000DC)
    assert (set_.socket, set_.code, set_.input) == (5678, 0x980000DE, kernel.data)


def test_W16_success_without_a_byte_is_an_answer(kernel: StandIn) -> None:
    assert wfpioctl.query_redirect_context(1234) == b""


@pytest.mark.skipif(sys.maxsize < 1 << 32, reason="handles have 32 bits here")
@pytest.mark.parametrize("handle", [0xFFFF_FFFF, 0x1_0000_0004, 0x7FFF_FFFF_FFFF_FFFC])
def test_handle_of_64_bits_arrives_whole(kernel: StandIn, handle: int) -> None:
    kernel.data = b"data"
    wfpioctl.query_redirect_records(handle)
    wfpioctl.query_redirect_context_into(handle, bytearray(10))
    wfpioctl.set_redirect_records(handle, b"x")
    wfpioctl.transfer_redirect_records(handle, handle)
    assert [call.socket for call in kernel.calls] == [handle] * 5


@pytest.mark.parametrize("code", CODES, ids=lambda code: CODES[code].name)
def test_W20_each_code_of_winsock(kernel: StandIn, code: int) -> None:
    kernel.code = code
    with pytest.raises(wfpioctl.RedirectError) as caught:
        wfpioctl.set_redirect_records(1234, b"x")  # a query would grow its buffer for some
    assert caught.value.winerror == code
    check(caught.value, SET_RECORDS)
