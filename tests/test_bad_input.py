"""Arguments that are wrong: each is refused by name, before the provider is asked anything."""

import array
import ctypes
import io
import re
import socket
import sys
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from support import Redirected

import wfpioctl
from wfpioctl import _wfpioctl, datagram
from wfpioctl.simulator import Engine, Scripted, Step


class SocketArgument(NamedTuple):
    """One place where a function takes a socket."""

    function: str
    argument: str
    call: Callable[[Any], object]


PLACES = [
    SocketArgument("query_redirect_records", "sock", wfpioctl.query_redirect_records),
    SocketArgument("query_redirect_context", "sock", wfpioctl.query_redirect_context),
    SocketArgument(
        "query_redirect_records_into",
        "sock",
        lambda sock: wfpioctl.query_redirect_records_into(sock, bytearray(9)),
    ),
    SocketArgument(
        "query_redirect_context_into",
        "sock",
        lambda sock: wfpioctl.query_redirect_context_into(sock, bytearray(9)),
    ),
    SocketArgument(
        "set_redirect_records", "sock", lambda sock: wfpioctl.set_redirect_records(sock, b"x")
    ),
    SocketArgument(
        "transfer_redirect_records",
        "accepted",
        lambda sock: wfpioctl.transfer_redirect_records(sock, 4),
    ),
    SocketArgument(
        "transfer_redirect_records",
        "outbound",
        lambda sock: wfpioctl.transfer_redirect_records(3, sock),
    ),
    SocketArgument("read_redirect", "sock", wfpioctl.read_redirect),
]
INTO = [wfpioctl.query_redirect_records_into, wfpioctl.query_redirect_context_into]

every_place = pytest.mark.parametrize(
    "place", PLACES, ids=[f"{place.function}-{place.argument}" for place in PLACES]
)
every_into = pytest.mark.parametrize("into", INTO, ids=[into.__name__ for into in INTO])


@pytest.fixture
def untouched() -> Iterator[None]:
    """A provider that must not be called."""
    with Scripted(steps=[Step(data=b"data")]) as script:
        yield
        assert script.calls == []


class Fileno:
    """Its fileno() returns, raises or does whatever the test wants."""

    def __init__(self, answer: Callable[[], object]) -> None:
        self.answer = answer

    def fileno(self) -> Any:
        return self.answer()


class Unprintable:
    """A value that cannot even be shown in a message."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


def names(place: SocketArgument, value: object) -> str:
    """A pattern: the message names the function, the argument and the value."""
    return rf"^{place.function}\(\): {place.argument}\b.*{re.escape(repr(value)[:40])}"


# ---- sockets ----


@every_place
@pytest.mark.parametrize(
    "value",
    [True, False, 3.0, "3", b"3", None, [3], (3,), Decimal(3), type, io.StringIO],
    ids=repr,
)
def test_no_socket(untouched: None, place: SocketArgument, value: object) -> None:
    with pytest.raises(TypeError) as caught:
        place.call(value)
    if not isinstance(value, type):
        assert re.match(names(place, value), str(caught.value))


@every_place
@pytest.mark.parametrize("value", [-2, -(1 << 31), -(1 << 63), -(1 << 64), -(1 << 1000)], ids=hex)
def test_negative_handle(untouched: None, place: SocketArgument, value: int) -> None:
    for sock in (value, Fileno(lambda: value)):
        with pytest.raises(ValueError, match=names(place, value)):
            place.call(sock)


@every_place
def test_handle_of_a_closed_socket(untouched: None, place: SocketArgument) -> None:
    """-1 is what fileno() of a closed socket returns; that is WSAENOTSOCK."""
    for sock in (-1, Fileno(lambda: -1)):
        with pytest.raises(wfpioctl.NotASocketError):
            place.call(sock)


@every_place
@pytest.mark.parametrize("value", [(1 << 64) - 1, 1 << 64, 1 << 1000], ids=hex)
def test_huge_handle(untouched: None, place: SocketArgument, value: int) -> None:
    for sock in (value, Fileno(lambda: value)):
        with pytest.raises(OverflowError, match=names(place, value)):
            place.call(sock)


@every_place
@pytest.mark.parametrize("sign", [1, -1])
def test_handle_with_more_digits_than_python_prints(
    untouched: None, place: SocketArgument, sign: int
) -> None:
    kind = OverflowError if sign > 0 else ValueError
    with pytest.raises(kind, match=rf"{place.function}\(\): {place.argument} .*int"):
        place.call(sign * 10**5000)


@every_place
def test_value_that_cannot_be_shown(untouched: None, place: SocketArgument) -> None:
    with pytest.raises(TypeError, match=rf"{place.function}\(\): {place.argument} .*Unprintable"):
        place.call(Unprintable())


@every_place
def test_long_value_is_cut(untouched: None, place: SocketArgument) -> None:
    with pytest.raises(TypeError) as caught:
        place.call("x" * 10_000)
    assert len(str(caught.value)) < 300


@every_place
@pytest.mark.parametrize("answer", [None, True, 3.0, "3", b"3", Decimal(3), ()], ids=repr)
def test_fileno_that_returns_no_int(untouched: None, place: SocketArgument, answer: object) -> None:
    with pytest.raises(TypeError, match=names(place, answer)) as caught:
        place.call(Fileno(lambda: answer))
    assert "fileno()" in str(caught.value)


@every_place
@pytest.mark.parametrize(
    "error", [ZeroDivisionError(), OSError(5, "x"), AttributeError("mine"), KeyboardInterrupt()]
)
def test_fileno_that_raises(untouched: None, place: SocketArgument, error: BaseException) -> None:
    """What a user's fileno() raises comes out as it is, wherever the fileno() is defined."""

    def fileno() -> int:
        raise error

    class Property:
        @property
        def fileno(self) -> Any:
            raise error

    for sock in (Fileno(fileno), types.SimpleNamespace(fileno=fileno), Property()):
        with pytest.raises(type(error)) as caught:
            place.call(sock)
        assert caught.value is error


@every_place
def test_fileno_that_takes_arguments(untouched: None, place: SocketArgument) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        place.call(types.SimpleNamespace(fileno=lambda more: 3))


@pytest.mark.thread_unsafe
def test_fileno_that_closes_the_socket(redirected: Redirected) -> None:
    """The handle that it returned is no socket any more."""
    records = wfpioctl.query_redirect_records(redirected.accepted)
    calls = [
        *(place.call for place in PLACES if place.argument != "outbound"),
        lambda sock: wfpioctl.set_redirect_records(sock, records),
        lambda sock: wfpioctl.transfer_redirect_records(redirected.accepted, sock),
    ]
    for call in calls:
        sock = socket.socket()

        def close(sock: socket.socket = sock) -> int:
            handle = sock.fileno()
            sock.close()
            return handle

        with pytest.raises(wfpioctl.NotASocketError):
            call(Fileno(close))


@every_place
def test_fileno_that_calls_again(place: SocketArgument) -> None:
    depth = 0

    def again() -> int:
        nonlocal depth
        depth += 1
        if depth < 5:
            place.call(Fileno(again))
        return 3

    with Scripted(b"records", b"context"):
        place.call(Fileno(again))
    assert depth == 5


@every_place
def test_fileno_that_recurses_without_end(untouched: None, place: SocketArgument) -> None:
    def again() -> int:
        place.call(Fileno(again))
        return 3

    with pytest.raises(RecursionError):
        place.call(Fileno(again))


def test_fileno_that_ends_the_provider() -> None:
    """The call goes where calls go once the fileno() has returned."""
    script = Scripted(b"records")

    def end() -> int:
        script.__exit__(None, None, None)
        return 3

    script.__enter__()
    with pytest.raises(wfpioctl.RedirectError):
        wfpioctl.query_redirect_records(Fileno(end))


def test_fileno_that_empties_the_records(untouched: None) -> None:
    records = bytearray(b"records")

    def empty() -> int:
        records.clear()
        return 3

    with pytest.raises(ValueError, match="records must be 1 to 1048576 bytes long, not 0"):
        wfpioctl.set_redirect_records(Fileno(empty), records)


def test_transfer_asks_no_second_fileno_after_a_first_that_failed(untouched: None) -> None:
    asked: list[str] = []

    def fail() -> int:
        asked.append("accepted")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wfpioctl.transfer_redirect_records(Fileno(fail), Fileno(lambda: asked.append("outbound")))
    assert asked == ["accepted"]


# ---- counts ----


@pytest.mark.parametrize(
    ("function", "least", "most"),
    [
        ("query_redirect_records", 1, 1),
        ("query_redirect_context", 1, 1),
        ("query_redirect_records_into", 2, 3),
        ("query_redirect_context_into", 2, 3),
        ("set_redirect_records", 2, 2),
        ("transfer_redirect_records", 2, 2),
    ],
)
def test_wrong_number_of_arguments(untouched: None, function: str, least: int, most: int) -> None:
    call = getattr(wfpioctl, function)
    for count in {0, least - 1, most + 1, 100}:
        with pytest.raises(TypeError, match=rf"{function}\(\) takes .* \({count} given\)"):
            call(*range(3, 3 + count))
    with pytest.raises(TypeError, match=rf"{function}\(\) takes no keyword arguments"):
        call(*range(3, 3 + least - 1), sock=3)


@pytest.mark.parametrize(
    ("function", "counts"),
    [
        ("overlapped_start", (3, 5)),
        ("overlapped_call", (2, 4)),
        ("recvmsg", (1, 4)),
        ("recvmsg_into", (1, 5)),
        ("sendmsg", (2, 5)),
        ("parse_control", (0, 3)),
    ],
)
def test_wrong_number_of_arguments_of_what_the_package_calls(
    untouched: None, function: str, counts: tuple[int, int]
) -> None:
    for count in counts:
        with pytest.raises(TypeError, match=rf"{function}\(\) takes .* \({count} given\)"):
            getattr(_wfpioctl, function)(*range(count))


@pytest.mark.parametrize("function", ["overlapped_start", "overlapped_call"])
def test_a_code_that_is_none_starts_nothing(untouched: None, function: str) -> None:
    others = (5, None, False) if function == "overlapped_start" else (5, None)
    for code, error in ((1 << 80, OverflowError), (-1, OverflowError), ("1", TypeError)):
        with pytest.raises(error):
            getattr(_wfpioctl, function)(code, *others)


def test_a_time_to_sleep_that_is_none() -> None:
    with pytest.raises(TypeError):
        _wfpioctl.overlapped_sleep("1")  # type: ignore[arg-type]


def test_a_socket_to_be_enabled_that_is_none() -> None:
    with pytest.raises(TypeError, match=r"^enable_redirect_metadata\(\): sock must be"):
        datagram.enable_redirect_metadata("5")  # type: ignore[arg-type]


# ---- buffers ----


@every_into
@pytest.mark.parametrize(
    "buffer",
    [b"bytes", "text", None, 7, [1], memoryview(b"read-only"), memoryview(bytearray(9))[::2],
     memoryview(bytearray(9))[::-1]],
    ids=["bytes", "str", "None", "int", "list", "read-only", "every other byte", "backwards"],
)  # fmt: skip
def test_buffer_that_cannot_be_written(
    untouched: None, into: Callable[..., int], buffer: object
) -> None:
    """A TypeError, as of socket.recv_into()."""
    pattern = (
        rf"{into.__name__}\(\): buffer must be a writable contiguous bytes-like object, not "
        + re.escape(repr(buffer)[:12])
    )
    with pytest.raises(TypeError, match=pattern):
        into(3, buffer)
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(TypeError):
        sock.recv_into(buffer)  # type: ignore[arg-type]


@every_into
def test_released_buffer(untouched: None, into: Callable[..., int]) -> None:
    view = memoryview(bytearray(9))
    view.release()
    with pytest.raises(ValueError, match="released memoryview"):
        into(3, view)


@every_into
@pytest.mark.parametrize(
    "buffer",
    [bytearray(8), memoryview(bytearray(8)), array.array("I", [0, 0]), (ctypes.c_char * 8)(),
     memoryview(bytearray(16))[4:12], memoryview(bytearray(8)).cast("B", (2, 4))],
    ids=["bytearray", "memoryview", "array", "ctypes", "slice", "two dimensions"],
)  # fmt: skip
def test_buffers_of_every_kind(into: Callable[..., int], buffer: Any) -> None:
    with Scripted(b"answer", b"answer"):
        assert into(3, buffer) == 6
    assert memoryview(buffer).tobytes() == b"answer\0\0"


@every_into
@pytest.mark.parametrize("nbytes", [-1, 10, -(1 << 63), 1 << 64, -(1 << 64)])
def test_nbytes_out_of_range(untouched: None, into: Callable[..., int], nbytes: int) -> None:
    pattern = rf"{into.__name__}\(\): nbytes must be from 0 to the buffer's 9 bytes, not {nbytes}"
    with pytest.raises(ValueError, match=pattern):
        into(3, bytearray(9), nbytes)


@every_into
def test_nbytes_with_more_digits_than_python_prints(
    untouched: None, into: Callable[..., int]
) -> None:
    with pytest.raises(ValueError, match="nbytes must be from 0 to the buffer's 9 bytes"):
        into(3, bytearray(9), 10**5000)


@every_into
@pytest.mark.parametrize("nbytes", [True, 1.0, "1", None], ids=repr)
def test_nbytes_that_is_no_int(untouched: None, into: Callable[..., int], nbytes: object) -> None:
    pattern = rf"{into.__name__}\(\): nbytes must be an int, not {re.escape(repr(nbytes))}"
    with pytest.raises(TypeError, match=pattern):
        into(3, bytearray(9), nbytes)


@every_into
def test_refused_call_gives_the_buffer_back(untouched: None, into: Callable[..., int]) -> None:
    buffer = bytearray(9)
    with pytest.raises(ValueError, match="nbytes"):
        into(3, buffer, 10)
    buffer.clear()


# ---- records ----


@pytest.mark.parametrize(
    "records", [b"", bytearray(), memoryview(b""), bytes((1 << 20) + 1), bytes(3 << 20)], ids=len
)
def test_records_of_impossible_size(untouched: None, records: Any) -> None:
    pattern = (
        rf"set_redirect_records\(\): records must be 1 to 1048576 bytes long, not {len(records)}"
    )
    with pytest.raises(ValueError, match=pattern):
        wfpioctl.set_redirect_records(3, records)


@pytest.mark.parametrize("size", [1, 4096, 1 << 20])
def test_records_of_possible_size(size: int) -> None:
    with Scripted(steps=[Step()]) as script:
        wfpioctl.set_redirect_records(3, b"r" * size)
    assert script.calls[0].input == b"r" * size


@pytest.mark.parametrize("records", ["text", None, 7, [1]], ids=repr)
def test_records_that_are_no_bytes(untouched: None, records: Any) -> None:
    pattern = r"set_redirect_records\(\): records must be a contiguous bytes-like object, not "
    with pytest.raises(TypeError, match=pattern + re.escape(repr(records)[:40])):
        wfpioctl.set_redirect_records(3, records)


def test_records_that_are_not_contiguous(untouched: None) -> None:
    pattern = r"set_redirect_records\(\): records must be a contiguous bytes-like object"
    with pytest.raises(BufferError, match=pattern):
        wfpioctl.set_redirect_records(3, memoryview(b"records")[::2])


def test_released_records(untouched: None) -> None:
    view = memoryview(b"records")
    view.release()
    with pytest.raises(ValueError, match="released memoryview"):
        wfpioctl.set_redirect_records(3, view)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="__buffer__ is of Python 3.12")
def test_buffer_method_that_raises(untouched: None) -> None:
    class Buffer:
        def __buffer__(self, flags: int) -> memoryview:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wfpioctl.set_redirect_records(3, Buffer())  # type: ignore[arg-type]


@pytest.mark.parametrize("sock", [None, -2, "x"])
def test_socket_is_checked_before_the_buffer(untouched: None, sock: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="sock"):
        wfpioctl.set_redirect_records(sock, b"")


@pytest.mark.parametrize("steps", [(1,), ([0, b"", 0, 0.0, False, True],)])
def test_a_script_of_other_things_than_tuples_is_a_type_error(steps: Any) -> None:
    with pytest.raises(TypeError, match="a step is a tuple"):
        _wfpioctl.scripted_start(b"", b"", steps)


@pytest.mark.parametrize("endpoint", [1, ["127.0.0.1", 1], None])
def test_an_endpoint_that_is_no_tuple_is_a_type_error(endpoint: Any) -> None:
    with Engine(), pytest.raises(TypeError, match="an endpoint is a"):
        _wfpioctl.engine_remove_flow(endpoint, ("127.0.0.1", 1))
