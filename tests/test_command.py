"""The verbs demo and check, and wrong usage; relay's tests are in test_relay_command.py."""

import json
import socket
import sys
from collections.abc import Callable
from typing import Any

import pytest
from support import TIMEOUT

from wfpioctl import cli, demo
from wfpioctl.simulator import Engine, Scripted, Step


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = cli.main(arguments)
    return code, capsys.readouterr().out


def test_demo_shows_two_acts(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "demo")
    assert code == 0
    assert "Act one" in out
    assert "exactly those of the origin" in out
    assert "as it must" in out


def test_demo_in_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, "demo", "--connections", "5", "--json")
    told = json.loads(out)
    assert (code, told["good"], told["act_one"]["failures"]) == (0, True, [])


@pytest.mark.parametrize("rich", [True, False], ids=["with_rich", "without_rich"])
def test_demo_of_many(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, rich: bool
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich", None)
        monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    code, out = run(capsys, "demo", "--connections", "5")
    assert code == 0
    assert "5 connections of" in out
    assert "0 failures" in out


def other_bytes() -> bytes:
    return b"other bytes"


def no_answer() -> bytes:
    raise ConnectionResetError("no answer")


@pytest.mark.parametrize(
    ("fetch", "failures"),
    [
        (other_bytes, ["the app received other bytes than", "the app received an answer"]),
        (no_answer, ["ConnectionResetError: no answer"] * 2),
    ],
)
def test_demo_tells_what_failed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fetch: Callable[[], bytes],
    failures: list[str],
) -> None:
    monkeypatch.setattr(demo, "fetch", fetch)
    code, out = run(capsys, "demo")
    assert code == 1
    assert f"FAILED: {failures[0]}" in out
    assert f"FAILED: it did not loop; {failures[1]}" in out


def test_the_demos_proxy_is_no_open_proxy(engine: Engine) -> None:
    with (
        demo.serving(demo.Proxy()) as address,
        socket.create_connection(address, TIMEOUT) as app,
    ):
        assert app.recv(100) == b""


@pytest.mark.parametrize("count", ["0", "-1", "x", "1000001", ""])
def test_demo_refuses_other_counts(capsys: pytest.CaptureFixture[str], count: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["demo", "--connections", count])
    assert "must be a number from 1 to 1000000" in capsys.readouterr().err


ANSWERS: list[Any] = [
    ([Step(10045)], 1, "needs Windows 8"),
    ([Step(1168)], 0, "not redirected"),
    ([Step(10050)], 0, "WSAENETDOWN"),
    ([Step(12345)], 0, "unknown (12345)"),
    ([Step()], 0, "success (0)"),
]


@pytest.mark.parametrize(("steps", "code", "says"), ANSWERS)
def test_check(capsys: pytest.CaptureFixture[str], steps: list[Step], code: int, says: str) -> None:
    with Scripted(steps=steps):
        got, out = run(capsys, "check")
        assert got == code
        assert says in out
        got, out = run(capsys, "check", "--json")
    assert got == code
    assert json.loads(out)["usable"] == (code == 0)


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["check", "--no-such"]])
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: wfpioctl" in capsys.readouterr().err
