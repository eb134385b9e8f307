"""What ``await`` adds to a call that completes at once."""

import asyncio
import importlib
import socket
import time
from collections.abc import Iterator

import wfpioctl
from wfpioctl import simulator

from .rows import Finding, Row, Settings, Unavailable, at_most, finding

CALLS = 1_000


def at_once(settings: Settings) -> Iterator[Finding]:
    try:
        aio = importlib.import_module("wfpioctl.aio")
    except ImportError:
        raise Unavailable("this version has no wfpioctl.aio") from None

    async def awaited(sock: socket.socket) -> float:
        query = aio.query_redirect_context
        start = time.perf_counter()
        for _ in range(CALLS):
            await query(sock)
        return (time.perf_counter() - start) / CALLS * 1e9

    async def called(sock: socket.socket) -> float:
        query = wfpioctl.query_redirect_context
        start = time.perf_counter()
        for _ in range(CALLS):
            query(sock)
        return (time.perf_counter() - start) / CALLS * 1e9

    async def turns() -> list[tuple[float, float]]:
        with socket.socket() as sock:
            sock.setblocking(False)
            return [
                (await awaited(sock), await called(sock)) for _ in range(settings.pick(30, 301))
            ]

    with simulator.Scripted(b"r" * 128, b"c" * 256):
        pairs = asyncio.run(turns())
    ratios = [slow / fast for slow, fast in pairs]
    yield finding("await against the call", ratios, "x", at_most(3))
    yield finding("await aio.query_redirect_context, a call", [each for each, _ in pairs], "ns")
    yield finding("query_redirect_context, a call", [each for _, each in pairs], "ns")


ROWS = [Row("await of a call that completes at once", at_once)]
