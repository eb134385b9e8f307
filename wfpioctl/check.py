"""The verb ``check``: what this system answers to each IOCTL, and what that means for the user."""

import argparse
import json
import platform
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version

from . import _wfpioctl
from .errors import CODES, NotRedirectedError, NotSupportedError, RedirectError

_PROBE_RECORDS = bytes(16)  # no kernel has given these out


@dataclass(frozen=True, slots=True)
class Answer:
    """One IOCTL tried for real: its code (0 is success), the code's name, and what it means."""

    operation: str
    code: int
    name: str
    meaning: str
    supported: bool


def _try(operation: str, call: Callable[[], object], refused: str) -> Answer:
    """Make a call that a working system refuses, because nobody redirected the connection."""
    try:
        call()
    except NotSupportedError as error:
        meaning = "not supported: needs Windows 8 / Server 2012 or later"
        return Answer(operation, error.winerror, "WSAEOPNOTSUPP", meaning, False)
    except RedirectError as error:
        code = CODES.get(error.winerror)
        expected = isinstance(error, NotRedirectedError) or error.winerror in (10013, 10022)
        meaning = refused if expected else error.strerror or ""
        return Answer(operation, error.winerror, code.name if code else "unknown", meaning, True)
    return Answer(operation, 0, "success", "the IOCTL works here", True)


def ask() -> list[Answer]:
    """Try each IOCTL on a loopback connection that nobody redirected."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=10),
        listener.accept()[0] as accepted,
        socket.socket() as outbound,
    ):
        return [
            _try(
                "SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS",
                lambda: _wfpioctl.query_redirect_records(accepted),
                "not redirected: the IOCTL works here",
            ),
            _try(
                "SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT",
                lambda: _wfpioctl.query_redirect_context(accepted),
                "not redirected: the IOCTL works here",
            ),
            _try(
                "SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS",
                lambda: _wfpioctl.set_redirect_records(outbound, _PROBE_RECORDS),
                "refused what no kernel gave out: the IOCTL works here",
            ),
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Try each IOCTL on a loopback connection and say what the system answers. "
        "Exit code 0: usable here; 1: not."
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def run(options: argparse.Namespace) -> int:
    answers = ask()
    usable = all(answer.supported for answer in answers)
    system = {
        "wfpioctl": version("wfpioctl"),
        "extension": _wfpioctl.__file__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()} ({platform.version()})",
        "machine": f"{platform.machine()}, {sys.maxsize.bit_length() + 1} bits",
    }
    if options.json:
        answer_list = [asdict(answer) for answer in answers]
        print(json.dumps({**system, "answers": answer_list, "usable": usable}, indent=2))
        return 0 if usable else 1
    for name, value in system.items():
        print(f"{name:<10} {value}")
    for answer in answers:
        print(f"\n{answer.operation}\n    {answer.name} ({answer.code}): {answer.meaning}")
    print("\nUsable on this system." if usable else "\nNot usable on this system.", end=" ")
    if not usable:
        print("The simulated engine is: wfpioctl.simulator, or try 'wfpioctl demo'.", end="")
    print()
    return 0 if usable else 1
