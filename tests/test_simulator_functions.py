"""The C functions behind the simulator, called as it never calls them: TypeError, ValueError,
RuntimeError; never a crash, and never another error."""

import ctypes
import socket
from typing import Any

import pytest
from support import Pair

from wfpioctl import _wfpioctl
from wfpioctl.simulator import Engine, Scripted, wsaioctl_address

END = ("127.0.0.1", 1)

ENGINE: dict[str, tuple[Any, ...]] = {
    "engine_add_flow": (5, END, END, 1, b"", b""),
    "engine_remove_flow": (END, END),
    "engine_add_listener": (1, 1, b"", b""),
    "engine_remove_listener": (1,),
    "engine_add_datagram_flow": (5, END, 1, 1, b"", b""),
    "engine_set_target": (5, END, "target"),
    "engine_target_of": (5, END),
    "engine_flow_id": (5,),
    "engine_records_of": (5,),
    "engine_make_records": (b"",),
    "engine_counts": (),
    "engine_stop": (),
}
SCRIPTED: dict[str, tuple[Any, ...]] = {
    "scripted_calls": (),
    "scripted_abort": (5,),
    "scripted_stop": (),
}


@pytest.mark.parametrize("name", [*ENGINE, *SCRIPTED])
def test_without_the_simulator(name: str) -> None:
    arguments = (ENGINE | SCRIPTED)[name]
    with pytest.raises(RuntimeError, match="is not active"):
        getattr(_wfpioctl, name)(*arguments)
    other = Scripted(b"r") if name in ENGINE else Engine(intercept=False)
    with other, pytest.raises(RuntimeError, match="is not active"):
        getattr(_wfpioctl, name)(*arguments)


@pytest.mark.parametrize("name", [name for name, arguments in ENGINE.items() if arguments])
def test_with_arguments_of_no_use(name: str) -> None:
    with Engine(intercept=False):
        with pytest.raises(TypeError):
            getattr(_wfpioctl, name)()
        with pytest.raises(TypeError):
            getattr(_wfpioctl, name)(*[object() for _ in ENGINE[name]])


@pytest.mark.parametrize("name", ["engine_start", "scripted_start"])
def test_starts_without_arguments(name: str) -> None:
    with pytest.raises(TypeError):
        getattr(_wfpioctl, name)()


@pytest.mark.parametrize(
    "arguments",
    [(object(), b"", ()), (b"", object(), ()), (b"", b"", []), (b"", b"", ((0, 1, 0, 0.0, 0, 0),))],
)
def test_scripts_of_other_types(arguments: Any) -> None:
    with pytest.raises(TypeError):
        _wfpioctl.scripted_start(*arguments)


@pytest.mark.parametrize("end", [("nowhere", 1), ("127.0.0.1", -1), ("127.0.0.1", 1 << 16)])
def test_ends_that_are_none(end: Any) -> None:
    with Engine(intercept=False), pytest.raises(ValueError, match="not a numeric address"):
        _wfpioctl.engine_remove_flow(end, END)


def test_listeners_come_and_go() -> None:
    with Engine(intercept=False):
        assert not _wfpioctl.engine_remove_listener(1)
        _wfpioctl.engine_add_listener(1, 7, b"records", b"context")
        assert _wfpioctl.engine_remove_listener(1)
        assert not _wfpioctl.engine_remove_listener(1)


def test_a_connection_that_nobody_redirected_is_no_flow(pair: Pair) -> None:
    with Engine(intercept=False):
        assert _wfpioctl.engine_flow_id(pair.server.fileno()) == 0


def test_blobs_have_a_limit() -> None:
    huge = (ctypes.c_char * ((1 << 28) + 1))()  # its pages are never touched
    with pytest.raises(ValueError, match="blob may hold 268435456 bytes"):
        _wfpioctl.scripted_start(huge, b"", ())
    with Engine(intercept=False), pytest.raises(ValueError, match="records may hold"):
        _wfpioctl.engine_make_records(huge)


def test_a_code_that_the_script_does_not_know() -> None:
    """C programs may send any (W10)."""
    with Scripted(b"records"), socket.socket() as sock:
        function = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_size_t, ctypes.c_uint32, *[ctypes.c_void_p, ctypes.c_uint32] * 2,
            *[ctypes.c_void_p] * 3, use_errno=True
        )(wsaioctl_address())  # fmt: skip
        returned = ctypes.c_uint32(77)
        result = function(sock.fileno(), 1, None, 0, None, 0, ctypes.byref(returned), None, None)
        assert (result, returned.value) == (-1, 0)
