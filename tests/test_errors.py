"""Every code becomes its class through every function, with all attributes filled."""

import contextlib
import copy
import errno
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from conftest import is_wine
from support import QUERIES, Pair, Redirected, every_dialect, operation_of, reset

import wfpioctl
from wfpioctl import RedirectError, constants
from wfpioctl.errors import CODES, error_from_code
from wfpioctl.simulator import Engine, Scripted, Step

SET = "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS"

# The table of the design, with every other code that is known by name, and one that is not.
TABLE: dict[int, tuple[type[RedirectError], type[OSError]]] = {
    10022: (wfpioctl.InvalidArgumentError, OSError),
    122: (wfpioctl.InsufficientBufferError, OSError),
    1168: (wfpioctl.NotRedirectedError, OSError),
    0x80320008: (wfpioctl.NotRedirectedError, OSError),
    10045: (wfpioctl.NotSupportedError, OSError),
    10057: (wfpioctl.NotConnectedError, ConnectionError),
    10038: (wfpioctl.NotASocketError, OSError),
    10013: (wfpioctl.AccessDeniedError, PermissionError),
    10004: (wfpioctl.IoctlInterruptedError, InterruptedError),
    995: (wfpioctl.OperationAbortedError, OSError),
    10014: (wfpioctl.BadAddressError, OSError),
    10036: (wfpioctl.CallbackInProgressError, OSError),
    10050: (wfpioctl.NetworkDownError, OSError),
    10042: (wfpioctl.ProtocolOptionError, OSError),
    234: (RedirectError, OSError),
    996: (RedirectError, OSError),
    997: (RedirectError, OSError),
    10040: (RedirectError, OSError),
    10055: (RedirectError, OSError),
    8: (RedirectError, OSError),
    0xFFFFFFFF: (RedirectError, OSError),
}
ABOUT_SIZE = {122, 234, 10014, 10040, 10055}  # for a QUERY, once growth has ended (W15)

every_code = pytest.mark.parametrize("code", TABLE)


def check(error: RedirectError, kind: type[RedirectError], code: int, operation: str) -> None:
    assert type(error) is kind
    assert isinstance(error, TABLE[code][1])
    assert error.winerror == code
    assert error.operation == operation
    assert error.errno == expected_errno(code)
    assert error.filename is None
    assert operation in str(error)
    assert f"[WinError {code}]" in str(error)
    if code in CODES:
        assert CODES[code].name in str(error)


def expected_errno(code: int) -> int:
    """The errno constant of the Winsock code's name; Win32 codes are EINVAL, as on Windows."""
    names = {value: name for name, value in vars(constants).items() if name.startswith("WSAE")}
    return getattr(errno, names[code].removeprefix("WSA")) if code in names else errno.EINVAL


def test_the_table_is_complete() -> None:
    assert set(CODES) == set(TABLE) - {8, 0xFFFFFFFF}
    public = {getattr(wfpioctl, name) for name in wfpioctl.__all__ if name.endswith("Error")}
    assert public == {kind for kind, _ in TABLE.values()}
    assert {code: getattr(constants, CODES[code].name) for code in CODES} == {
        code: code for code in CODES
    }


@every_code
@pytest.mark.parametrize("function", QUERIES)
def test_W20_query(function: str, code: int) -> None:
    with Scripted(steps=[Step(code)]), pytest.raises(RedirectError) as caught:
        QUERIES[function](3)
    kind = wfpioctl.InsufficientBufferError if code in ABOUT_SIZE else TABLE[code][0]
    check(caught.value, kind, code, operation_of(function))
    assert caught.value.required_size is None


@every_code
def test_W20_set(code: int) -> None:
    with Scripted(steps=[Step(code)]), pytest.raises(RedirectError) as caught:
        wfpioctl.set_redirect_records(3, b"records")
    check(caught.value, TABLE[code][0], code, SET)


@every_code
def test_W20_transfer_whose_query_fails(code: int) -> None:
    with Scripted(steps=[Step(code)]) as script, pytest.raises(RedirectError) as caught:
        wfpioctl.transfer_redirect_records(3, 4)
    kind = wfpioctl.InsufficientBufferError if code in ABOUT_SIZE else TABLE[code][0]
    check(caught.value, kind, code, operation_of("query_redirect_records"))
    assert all(call.input == b"" for call in script.calls), "SET after a QUERY that failed"


@every_code
def test_W20_transfer_whose_set_fails(code: int) -> None:
    steps = [Step(data=b"records"), Step(code)]
    with Scripted(steps=steps) as script, pytest.raises(RedirectError) as caught:
        wfpioctl.transfer_redirect_records(3, 4)
    check(caught.value, TABLE[code][0], code, SET)
    assert len(script.calls) == 2


@every_code
def test_W17_read_redirect_whose_records_fail(code: int) -> None:
    """None stands for the codes of W17, and for those only."""
    with Scripted(steps=[Step(code)]):
        if code in (1168, 0x80320008, 10022):
            assert wfpioctl.read_redirect(3) is None
            return
        with pytest.raises(RedirectError) as caught:
            wfpioctl.read_redirect(3)
    kind = wfpioctl.InsufficientBufferError if code in ABOUT_SIZE else TABLE[code][0]
    check(caught.value, kind, code, operation_of("query_redirect_records"))


@every_code
def test_W16_read_redirect_whose_context_fails(code: int) -> None:
    """With records there is a redirect; the codes of W17 then mean that it has no context."""
    with Scripted(steps=[Step(data=b"records"), Step(code)]):
        if code in (1168, 0x80320008, 10022):
            assert wfpioctl.read_redirect(3) == wfpioctl.Redirect(b"records", b"")
            return
        with pytest.raises(RedirectError) as caught:
            wfpioctl.read_redirect(3)
    kind = wfpioctl.InsufficientBufferError if code in ABOUT_SIZE else TABLE[code][0]
    check(caught.value, kind, code, operation_of("query_redirect_context"))


def test_a_failure_with_code_0_is_a_failure() -> None:
    """A provider may fail and leave no code; that must not become success."""
    error = error_from_code("SIO_X", 0)
    assert type(error) is RedirectError
    assert error.winerror == 0


@every_code
def test_errors_can_be_pickled_and_copied(code: int) -> None:
    error = TABLE[code][0]("SIO_X", code, 4711)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert (twin.errno, twin.strerror, str(twin)) == (error.errno, error.strerror, str(error))


def test_a_message_has_the_operation_the_meaning_the_name_and_the_size() -> None:
    assert str(error_from_code("SIO_X", 122, 4711)) == (
        "[WinError 122] SIO_X: the buffer is too small (ERROR_INSUFFICIENT_BUFFER); "
        "4711 bytes are required"
    )
    assert str(error_from_code("SIO_X", 8)) == "[WinError 8] SIO_X: unexpected code"


@pytest.mark.skipif(sys.platform != "win32", reason="only Windows' OSError maps winerror to errno")
def test_errno_is_what_windows_python_makes_of_the_code() -> None:
    for code in CODES.keys() - {constants.FWP_E_NOT_FOUND}:  # not one for OSError's C long
        assert error_from_code("SIO_X", code).errno == OSError(0, "", None, code).errno


# ---- the codes that the engine gives, of its own accord, for the sockets themselves ----

FUNCTIONS: dict[str, Callable[[Any], object]] = {
    **QUERIES,
    "set_redirect_records": lambda sock: wfpioctl.set_redirect_records(sock, b"records"),
    "transfer_redirect_records, accepted": lambda sock: wfpioctl.transfer_redirect_records(
        sock, sock
    ),
    "read_redirect": wfpioctl.read_redirect,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
ASKING = {name: function for name, function in FUNCTIONS.items() if name[:3] != "set"}
every_asking_function = pytest.mark.parametrize("function", ASKING.values(), ids=ASKING)


@every_dialect
class TestSockets:
    @every_asking_function
    def test_W18_unconnected(
        self, engine: Engine, tcp: socket.socket, function: Callable[[Any], object]
    ) -> None:
        with pytest.raises(wfpioctl.NotConnectedError):
            function(tcp)

    @every_asking_function
    def test_W18_W21_listener(
        self, engine: Engine, listener: socket.socket, function: Callable[[Any], object]
    ) -> None:
        with pytest.raises(wfpioctl.NotConnectedError):
            function(listener)

    @every_function
    def test_W19_closed_socket(self, engine: Engine, function: Callable[[Any], object]) -> None:
        sock = socket.socket()
        sock.close()
        with pytest.raises(wfpioctl.NotASocketError):
            function(sock)

    @pytest.mark.thread_unsafe
    @every_function
    def test_W19_closed_handle(self, engine: Engine, function: Callable[[Any], object]) -> None:
        sock = socket.socket()
        handle = sock.fileno()
        sock.close()
        with pytest.raises(wfpioctl.NotASocketError):
            function(handle)

    @every_function
    def test_W19_handle_that_never_was(
        self, engine: Engine, function: Callable[[Any], object]
    ) -> None:
        with pytest.raises(wfpioctl.NotASocketError):
            function(0x7FFFFFFC)

    @every_function
    def test_W19_pipe(self, engine: Engine, function: Callable[[Any], object]) -> None:
        ends = os.pipe()
        try:
            for end in ends:
                with pytest.raises(wfpioctl.NotASocketError):
                    function(handle_of(end))
        finally:
            for end in ends:
                os.close(end)

    @every_function
    def test_W19_file(self, engine: Engine, function: Callable[[Any], object]) -> None:
        with open(__file__) as file, pytest.raises(wfpioctl.NotASocketError):
            function(handle_of(file.fileno()))

    @every_function
    def test_udp_socket(self, engine: Engine, function: Callable[[Any], object]) -> None:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as sock,
            pytest.raises(wfpioctl.NotSupportedError),
        ):
            function(sock)

    @pytest.mark.thread_unsafe
    @every_asking_function
    def test_connection_that_was_reset(
        self, redirected: Redirected, function: Callable[[Any], object]
    ) -> None:
        """Systems disagree whether it still has a peer; either way there is a clean answer."""
        reset(redirected.app)
        with contextlib.suppress(ConnectionError):  # not under Wine, which closes it gracefully
            assert redirected.accepted.recv(1) == b""
        with contextlib.suppress(wfpioctl.NotConnectedError, wfpioctl.InvalidArgumentError):
            function(redirected.accepted)

    def test_W23_set_on_a_connected_socket(self, engine: Engine, pair: Pair) -> None:
        with pytest.raises(wfpioctl.InvalidArgumentError):
            wfpioctl.set_redirect_records(pair.client, b"records")


def handle_of(descriptor: int) -> int:
    """What a function that expects a socket handle may be given instead: a file's handle."""
    if sys.platform == "win32":
        import msvcrt

        return msvcrt.get_osfhandle(descriptor)
    return descriptor


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_W10_without_the_ioctls_nothing_is_supported(
    pair: Pair, function: Callable[[Any], object]
) -> None:
    """No simulator: Winsock answers, or off Windows what stands for it."""
    if sys.platform == "win32" and not is_wine():
        pytest.skip("a Windows kernel has them")
    with pytest.raises(wfpioctl.NotSupportedError) as caught:
        function(pair.server)
    assert caught.value.winerror == 10045
    assert caught.value.errno == errno.EOPNOTSUPP


def test_W10_in_a_fresh_process() -> None:
    """Nothing of the simulator is needed, or loaded, for the answer."""
    program = (
        "import socket, sys, wfpioctl\n"
        "assert not any('simulator' in name for name in sys.modules)\n"
        "a, b = socket.socketpair()\n"
        "try: wfpioctl.query_redirect_records(b)\n"
        "except wfpioctl.RedirectError as error: print(error.winerror)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    if sys.platform != "win32":
        assert done.stdout == "10045\n"
