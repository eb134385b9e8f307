"""Every function while the allocator fails: MemoryError or success, and nothing half-done.

``_testcapi.set_nomemory(n)`` makes every allocation of Python's from the n-th on fail; the sweep
moves n through the whole call.  It runs in a process of its own, which a bug may end.
"""

import subprocess
import sys
import textwrap

import pytest

PRELUDE = textwrap.dedent(
    """
    import gc, socket, sys
    import _testcapi
    import wfpioctl
    from wfpioctl._wfpioctl import overlapped_call, overlapped_start, read_redirect_parts
    from wfpioctl.simulator import Engine, Scripted, Step

    def sweep(call):
        for number in range(1, 1000):
            _testcapi.set_nomemory(number, number + 1)
            try:
                call()
            except MemoryError:
                continue
            except Exception as error:
                # an error of ours that an allocation's failure turned into something else is a bug
                assert isinstance(error, (OSError, ValueError, TypeError)), repr(error)
                continue
            finally:
                _testcapi.remove_mem_hooks()
            return number
        raise SystemExit("the call never got through")

    class Sock:
        def fileno(self):
            return 5
    """
)

CALLS = {
    "query_redirect_records": "wfpioctl.query_redirect_records(Sock())",
    "query_redirect_context": "wfpioctl.query_redirect_context(Sock())",
    "query_redirect_records_into": "wfpioctl.query_redirect_records_into(5, bytearray(8192))",
    "query_redirect_context_into": "wfpioctl.query_redirect_context_into(5, bytearray(8192), 4096)",
    "set_redirect_records": "wfpioctl.set_redirect_records(5, b'records')",
    "transfer_redirect_records": "wfpioctl.transfer_redirect_records(Sock(), Sock())",
    # Not read_redirect(): where an error passes a Python frame, a failed allocation can make
    # CPython itself raise SystemError (int("x") does so too).
    "read_redirect_parts": "read_redirect_parts(Sock())",
    # What overlapped.py and aio.py call, for the same reason.
    "overlapped_call": "overlapped_call(0x980000DD, Sock(), None)",
    "overlapped_call, set": "overlapped_call(0x980000DE, Sock(), bytes(5000))",
    "overlapped_start": "overlapped_start(0x980000DC, Sock(), None, False).result(0.0)",
}

ANSWERS = {"usual": (128, 1), "grown": (100_000, 100_000)}  # bytes of records, of context


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", PRELUDE + program],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def has_testcapi() -> bool:
    try:
        import _testcapi  # noqa: F401
    except ImportError:
        return False
    return True


pytestmark = [
    pytest.mark.linux_program,
    pytest.mark.skipif(not has_testcapi(), reason="this Python has no _testcapi"),
]


@pytest.mark.parametrize("sizes", ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_success_survives_every_failed_allocation(call: str, sizes: tuple[int, int]) -> None:
    """Into 8192 bytes a grown answer does not go: then it is the error that is made."""
    out = run(
        f"""
def call():
    try:
        {call}
    except wfpioctl.InsufficientBufferError:
        pass
with Scripted(bytes({sizes[0]}), bytes({sizes[1]})):
    call()
    print(sweep(call))
"""
    )
    assert int(out) >= 1


def test_what_the_engine_notes_survives_every_failed_allocation() -> None:
    """The answer was there, but its trace was not to be had: the caller is told."""
    run(
        """
from wfpioctl import _wfpioctl
listener = socket.create_server(("127.0.0.1", 0))
with Engine() as engine, socket.socket() as app, socket.socket() as outbound:
    engine.add_driver("A", proxy=listener.getsockname(), match=("203.0.113.7", 80))
    app.connect(("203.0.113.7", 80))
    accepted, _ = listener.accept()
    records = wfpioctl.query_redirect_records(accepted)
    for call in (
        lambda: wfpioctl.query_redirect_records(accepted),
        lambda: wfpioctl.set_redirect_records(outbound, records),
        lambda: overlapped_call(0x980000DC, accepted, None),
        lambda: read_redirect_parts(accepted),
    ):
        assert sweep(call) > 1
    assert read_redirect_parts(accepted) == (records, b"")
    accepted.close()
"""
    )


def test_datagrams_survive_every_failed_allocation() -> None:
    run(
        """
from wfpioctl import _wfpioctl
sock = socket.socket(type=socket.SOCK_DGRAM)
sock.bind(("127.0.0.1", 0))
address = sock.getsockname()
for receive in (
    lambda: _wfpioctl.recvmsg(sock, 1000), lambda: _wfpioctl.recvmsg_into(sock, bytearray(1000))
):
    def call():
        _wfpioctl.sendmsg(sock, b"data", address)
        receive()
    call()
    sweep(call)
"""
    )


def test_what_a_script_recorded_survives_every_failed_allocation() -> None:
    run(
        """
from wfpioctl._wfpioctl import scripted_calls
with Scripted(steps=[Step()]):
    for _ in range(20):
        wfpioctl.set_redirect_records(5, b"records" * 100)
    assert sweep(scripted_calls) > 20
    assert len(scripted_calls()) == 20
"""
    )


@pytest.mark.skipif(
    sys.version_info >= (3, 13),
    reason="CPython 3.13 itself crashes where a type's dictionary cannot grow",
)
def test_an_import_survives_every_failed_allocation() -> None:
    run(
        """
import _imp, importlib.util
from wfpioctl import _wfpioctl
spec = importlib.util.spec_from_file_location("wfpioctl._wfpioctl", _wfpioctl.__file__)
def call():
    try:
        _imp.exec_dynamic(_imp.create_dynamic(spec))
    except SystemError:  # PyType_FromModuleAndSpec() can fail without an exception
        raise MemoryError
call()
assert sweep(call) > 20
"""
    )


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_failure_survives_every_failed_allocation(call: str) -> None:
    run(
        f"""
with Scripted(steps=[Step(10050)]):
    def call():
        try:
            {call}
        except wfpioctl.NetworkDownError:
            pass
    call()
    sweep(call)
"""
    )


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="CPython 3.12 and 3.13 themselves crash where a closure's allocation fails",
)
def test_the_engine_survives_every_failed_allocation() -> None:
    run(
        """
listener = socket.create_server(("127.0.0.1", 0))
engine = Engine()
engine.add_driver("A", proxy=listener.getsockname(), match=("203.0.113.7", 80))
def call():
    with engine:
        app = socket.socket()
        try:
            engine.connect_socket(app, ("203.0.113.7", 80))
            accepted, _ = listener.accept()
            wfpioctl.transfer_redirect_records(accepted, socket.socket())
            accepted.close()
        finally:
            app.close()
call()
listener.settimeout(0.0)  # a connect that failed is not accepted
sweep(call)
with engine:  # the last failure left nothing active
    pass
assert "connect" not in vars(socket.socket)
"""
    )
