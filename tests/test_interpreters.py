"""Isolated sub-interpreters (3.12 and later), which have a GIL of their own, import the module.

The limited API of 3.11 cannot name the slot that allows it; the module adds it at run time.
"""

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import wfpioctl

MAIN = """\
import sys
from wfpioctl import _wfpioctl, errors

try:
    import _interpreters as interpreters
    isolated = "isolated",
except ImportError:  # 3.12
    import _xxsubinterpreters as interpreters
    isolated = ()

for _ in range(2):
    interpreter = interpreters.create(*isolated)
    failure = interpreters.run_string(interpreter, sys.argv[1])  # 3.12 raises it
    if failure is not None:
        sys.exit(failure.formatted)
    try:
        _wfpioctl.query_redirect_records(5)
    except errors.RedirectError:
        pass
    else:
        sys.exit("the sub-interpreter's provider answers in this one")
    interpreters.destroy(interpreter)  # with its provider active: the next one finds none
print("done")
"""

# The C functions, for the simulator imports asyncio, which alone crashes Python 3.12.1 this way.
SUB = """\
import wfpioctl
from wfpioctl import _wfpioctl

try:
    wfpioctl.query_redirect_records(-1)
except wfpioctl.NotASocketError as error:
    assert error.winerror == 10038

_wfpioctl.scripted_start(b"records", b"context", ())
assert wfpioctl.query_redirect_records(5) == b"records"
assert wfpioctl.query_redirect_context(5) == b"context"
"""


def pythons(version: str) -> str | None:
    """Return a Python of that version other than the running one, wherever this machine has it."""
    installed = os.path.expanduser(f"~/.pyenv/versions/{version}.*/bin/python")
    candidates = [shutil.which(f"python{version}"), *sorted(glob.glob(installed))]
    return next((path for path in candidates if path and ".pyenv/shims" not in path), None)


def use_in_isolated_interpreters(python: str) -> None:
    done = subprocess.run(
        [python, "-W", "error", "-c", MAIN, SUB],
        env=os.environ | {"PYTHONPATH": str(Path(wfpioctl.__file__).parent.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=50,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="isolated interpreters came with Python 3.12"
)
def test_isolated_interpreters_use_the_module() -> None:
    use_in_isolated_interpreters(sys.executable)


@pytest.mark.linux_program
@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_isolated_interpreters_of_another_python_use_this_build(version: str) -> None:
    """One abi3 build serves them all."""
    python = pythons(version)
    if python is None:
        pytest.skip(f"no Python {version} here (apt-get install python{version}, where it is)")
    use_in_isolated_interpreters(python)
