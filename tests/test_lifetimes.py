"""Interpreters, forks and reloads: nothing crashes, nothing leaks, state stays apart."""

import importlib
import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest
from support import ORIGINAL, accept, address_of, end_child, listen

import wfpioctl
from wfpioctl.simulator import Engine, Scripted


def run(program: str, timeout: float = 50) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LIVES = """
    import sys
    try:
        import _xxsubinterpreters as interpreters   # 3.12
    except ImportError:
        import _interpreters as interpreters        # 3.13
    import wfpioctl
    from wfpioctl.simulator import Scripted

    BODY = '''
    import wfpioctl
    from wfpioctl.simulator import Scripted
    try:
        wfpioctl.query_redirect_records(5)
    except wfpioctl.RedirectError as error:
        assert error.winerror in (10045, 10038), error
    else:
        raise SystemExit("it saw the other interpreter's script")
    '''
    ALONE = '''
    import wfpioctl
    from wfpioctl.simulator import Scripted
    Scripted(b"mine").__enter__()   # never left: the interpreter's end takes it back
    assert wfpioctl.query_redirect_records(5) == b"mine"
    '''

    def live(body):
        interpreter = interpreters.create()
        try:
            failure = interpreters.run_string(interpreter, body)
            assert failure is None, failure
        finally:
            interpreters.destroy(interpreter)

    import textwrap
    for number in range({lives}):
        with Scripted(b"theirs"):
            live(textwrap.dedent(BODY))
        live(textwrap.dedent(ALONE))
    print("done")
"""

isolated = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="isolated interpreters need Python 3.12"
)


@isolated
def test_isolated_interpreters_come_and_go() -> None:
    assert "done" in run(LIVES.format(lives=3))


@isolated
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_isolated_interpreters_come_and_go_a_thousand_times() -> None:
    assert "done" in run(LIVES.format(lives=500), timeout=1700)


@pytest.mark.linux_program
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_fork_inherits_the_engine_and_disturbs_nobody() -> None:
    with listen() as listener, Engine() as engine:
        engine.add_driver("A", proxy=address_of(listener), match=ORIGINAL, context=b"context")
        with socket.create_connection(ORIGINAL, 5), accept(listener) as accepted:
            child = os.fork()
            if child == 0:  # nothing but the exit code may leave this branch
                code = 1
                try:
                    assert wfpioctl.query_redirect_context(accepted) == b"context"
                    engine.__exit__(None, None, None)
                    with Scripted(b"child"):
                        assert wfpioctl.query_redirect_records(5) == b"child"
                    code = 0
                finally:
                    end_child(code)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
            assert wfpioctl.query_redirect_context(accepted) == b"context"


def test_a_reload_leaves_a_working_package() -> None:
    run(
        """
        import importlib, wfpioctl, wfpioctl.errors
        from wfpioctl.simulator import Scripted
        for _ in range(10):
            importlib.reload(wfpioctl)
        with Scripted(b"records"):
            assert wfpioctl.query_redirect_records(5) == b"records"
        try:
            wfpioctl.query_redirect_records(-1)
        except wfpioctl.NotASocketError:
            pass
        """
    )
    assert importlib.import_module("wfpioctl") is wfpioctl


def test_the_interpreter_may_end_inside_a_call() -> None:
    """A daemon thread blocks in the provider while the interpreter ends."""
    run(
        """
        import math, threading, wfpioctl
        from wfpioctl.simulator import Scripted, Step
        script = Scripted(steps=[Step(delay=math.inf)])
        script.__enter__()
        thread = threading.Thread(target=wfpioctl.query_redirect_records, args=(5,), daemon=True)
        thread.start()
        while not script.calls:
            pass
        """
    )


def test_a_script_may_end_while_calls_are_under_way() -> None:
    """They are aborted (995), not answered from memory that is gone."""
    from math import inf

    from wfpioctl.simulator import Step

    errors: list[OSError] = []

    def call() -> None:
        try:
            wfpioctl.query_redirect_records(5)
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    with Scripted(steps=[Step(delay=inf)]) as script:
        for thread in threads:
            thread.start()
        while len(script.calls) < len(threads):
            pass
    for thread in threads:
        thread.join(20)
    assert [type(error) for error in errors] == [wfpioctl.OperationAbortedError] * 4


def test_fixed_scripts_may_come_and_go_under_calls() -> None:
    """Threads query all the while; each answer is a whole one of some script, or unsupported."""
    answers = {bytes([number]) * 5000 for number in range(8)}
    wrong: list[object] = []
    ended = threading.Event()

    def call() -> None:
        while not ended.is_set():
            try:
                answer = wfpioctl.query_redirect_records(5)
            except (wfpioctl.NotSupportedError, wfpioctl.NotASocketError):
                continue
            if answer not in answers:
                wrong.append(answer)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        for answer in answers:
            with Scripted(answer):
                assert wfpioctl.query_redirect_records(5) == answer
    ended.set()
    for thread in threads:
        thread.join(20)
    assert not wrong
