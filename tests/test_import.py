"""What importing the package brings along: nothing that its import does not need."""

import json
import subprocess
import sys

import pytest

import wfpioctl

CHILD = """
import json, socket, sys
before = set(sys.modules)
import wfpioctl
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_loads_only_its_own_modules() -> None:
    """Not typing, dataclasses, asyncio, argparse, the simulator or the relay: they take longer."""
    command = [sys.executable, "-I", "-c", CHILD]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    assert json.loads(answer.stdout) == [
        "wfpioctl",
        "wfpioctl._wfpioctl",
        "wfpioctl.constants",
        "wfpioctl.errors",
        "wfpioctl.redirect",
    ]


def test_redirect_is_an_immutable_value() -> None:
    redirect = wfpioctl.Redirect(b"records")
    assert redirect.context == b""
    assert repr(redirect) == "<Redirect records=7 bytes context=0 bytes>"
    assert {redirect, wfpioctl.Redirect(records=b"records", context=b"")} == {redirect}
    with pytest.raises(AttributeError):
        redirect.records = b""  # type: ignore[misc]
