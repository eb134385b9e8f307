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


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_success_survives_every_failed_allocation(call: str) -> None:
    out = run(f"with Scripted(b'r' * 128, b'c'):\n    {call}\n    print(sweep(lambda: {call}))\n")
    assert int(out) >= 1


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
