"""Each call leaves the interpreter once, around all that it asks of the provider.

What is counted are the calls of PyEval_SaveThread(), by a library that stands in its place.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.linux_program

SOURCE = Path(__file__).with_name("gil_releases.c")

CALLS = {
    "query_redirect_records": "wfpioctl.query_redirect_records(5)",
    "query_redirect_context": "wfpioctl.query_redirect_context(5)",
    "query_redirect_records_into": "wfpioctl.query_redirect_records_into(5, bytearray(5000))",
    "query_redirect_context_into": "wfpioctl.query_redirect_context_into(5, bytearray(5000))",
    "set_redirect_records": "wfpioctl.set_redirect_records(5, b'records')",
    "transfer_redirect_records": "wfpioctl.transfer_redirect_records(5, 6)",
    "read_redirect": "wfpioctl.read_redirect(5)",
    "aio.query_redirect_records": "at_once(aio.query_redirect_records(5))",
    "overlapped.query_redirect_records": "overlapped.query_redirect_records(5)",
    "overlapped.set_redirect_records": "overlapped.set_redirect_records(5, b'records')",
}

PROGRAM = """
import contextlib, ctypes, json, sys
import wfpioctl
from wfpioctl import aio, overlapped
from wfpioctl.simulator import Scripted

def at_once(coroutine):
    with contextlib.suppress(StopIteration):
        coroutine.send(None)

everything = ctypes.CDLL(None)
count = ctypes.c_long.in_dll(everything, "gil_releases")

def releases(call):
    before = count.value
    call()
    return count.value - before

counts = {"ctypes": releases(everything.getpid)}
with Scripted(b"records", b"context"):
    for name, call in json.loads(sys.argv[1]).items():
        counts[name] = releases(eval(f"lambda: {call}"))
print(json.dumps(counts))
"""


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """How often each call left the interpreter."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    library = tmp_path_factory.mktemp("gil") / "gil_releases.so"
    command = [compiler, "-shared", "-fPIC", SOURCE, "-o", library, "-ldl"]
    subprocess.run(command, check=True, timeout=50)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(CALLS)],
        env=os.environ | {"LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    if "undefined symbol: gil_releases" in done.stderr:
        pytest.skip("this Python preloads other libraries")
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = json.loads(done.stdout)
    if counts["ctypes"] == 0:
        pytest.skip("this Python's own function comes first: it has no libpython")
    return counts


@pytest.mark.parametrize("name", CALLS)
def test_a_call_leaves_the_interpreter_once(counts: dict[str, int], name: str) -> None:
    """Also for two IOCTLs: transfer_redirect_records() and read_redirect()."""
    assert counts[name] == counts["ctypes"] == 1
