"""The verb ``relay``: its options, its signals, its log, and its live table."""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from .. import context
from .counters import Counters, Ended, address_text
from .datagrams import DatagramRelay
from .decide import Address, Policy
from .service import Relay

if TYPE_CHECKING:
    from rich.console import RenderableType

_log = logging.getLogger("wfpioctl.relay")

_REFRESH = 0.5  # seconds between two looks at the counters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "A transparent relay: reads the redirect of each connection, goes on to the original"
        " destination with the records set, and copies both ways. Ctrl-C stops accepting and waits"
        " for the connections that are left; a second one resets them."
    )
    parser.epilog = (
        "To try it anywhere: --simulate HOST:PORT, and any client becomes the redirected app,"
        " such as 'curl http://127.0.0.1:15001/'."
    )
    add = parser.add_argument
    add("--listen", type=_address, default=("127.0.0.1", 15001), metavar="HOST:PORT",
        help="accept on this address (default: 127.0.0.1:15001)")  # fmt: skip
    add("--layout", choices=context.LAYOUTS, default="wfpsampler",
        help="the driver's context layout (default: wfpsampler)")  # fmt: skip
    add("--to", type=_address, metavar="HOST:PORT",
        help="go there, whatever the context says")  # fmt: skip
    add("--direct", action="store_true",
        help="also serve connections that were not redirected; they go to --to")  # fmt: skip
    add("--udp", action="store_true", help="relay UDP on that address too")
    add("--policy", type=_policy, metavar="MODULE:FUNCTION",
        help="ask this function about each connection: permit, block or rewrite")  # fmt: skip
    add("--simulate", type=_address, metavar="HOST:PORT",
        help="simulate the driver: every client counts as redirected from there")  # fmt: skip
    add("--max-connections", type=_count, default=8_192, metavar="N",
        help="serve so many at once; more wait in the backlog (default: 8192)")  # fmt: skip
    add("--connect-timeout", type=_seconds, default=10.0, metavar="SECONDS",
        help="for reaching a destination (default: 10)")  # fmt: skip
    add("--idle-timeout", type=_seconds, default=300.0, metavar="SECONDS",
        help="reset a connection on which nothing moves (default: 300)")  # fmt: skip
    add("--drain-timeout", type=_seconds, default=30.0, metavar="SECONDS",
        help="after Ctrl-C, wait so long for connections to end (default: 30)")  # fmt: skip
    add("--uvloop", action="store_true", help="run on uvloop, which must be installed")
    add("--log", choices=("text", "json", "none"),
        help="a line for each connection, on stderr (default: text, or a live table on a"
        " terminal where rich is installed)")  # fmt: skip


def run(options: argparse.Namespace) -> int:
    live = options.log is None and sys.stdout.isatty() and _can_draw()
    _configure_log(options.log or ("none" if live else "text"))
    _allow_descriptors(2 * options.max_connections + 100)
    with asyncio.Runner(loop_factory=_uvloop() if options.uvloop else None) as runner:
        return runner.run(_serve(options, live))


def _uvloop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        sys.exit("wfpioctl relay: --uvloop needs uvloop, which is not installed")
    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


async def _serve(options: argparse.Namespace, live: bool) -> int:
    """Serve until the first signal, drain until the second; 0 if every connection ended."""
    stop = _Stop(asyncio.get_running_loop())
    rules = {
        "layout": options.layout,
        "to": options.to,
        "direct": options.direct,
        "policy": options.policy,
        "idle_timeout": options.idle_timeout,
    }
    relay = Relay(
        options.listen,
        max_connections=options.max_connections,
        connect_timeout=options.connect_timeout,
        **rules,
    )

    def counters() -> Counters:
        return relay.counters + datagrams.counters if datagrams else relay.counters

    datagrams: DatagramRelay | None = None
    async with contextlib.AsyncExitStack() as stack:
        simulate = stack.enter_context(_simulation(options.simulate))
        try:
            await stack.enter_async_context(relay)
            if options.udp:
                datagrams = DatagramRelay(relay.address, max_flows=options.max_connections, **rules)
                await stack.enter_async_context(datagrams)
        except OSError as error:
            where = address_text(options.listen)
            print(f"wfpioctl relay: cannot listen on {where}: {error}", file=sys.stderr)
            return 1
        simulate(relay.address)
        _log.info("listening on %s", address_text(relay.address))
        if live:
            stack.push_async_callback(_cancel, asyncio.create_task(_draw(relay.address, counters)))
        await stop.wait()
        _log.info("draining %d connections", counters().active)
        stop.callback = relay.abort
        drained = await relay.drain(options.drain_timeout)
    total = counters()
    _log.info(
        "stopped: %d accepted, %d finished, %d failed, %d refused",
        total.accepted, total.finished, total.failed, total.refused.total(),
    )  # fmt: skip
    return 0 if drained and not stop.twice else 1


async def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.wait([task])


class _Stop:
    """Ctrl-C and, where there is one, SIGTERM: the first ends wait(), each later one calls back.

    ``signal.signal()`` works on every loop; ``loop.add_signal_handler()`` does not on Windows.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._first = asyncio.Event()
        self.twice = False
        self.callback: Callable[[], None] = lambda: None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._stop))

    def _stop(self) -> None:
        if self._first.is_set():
            self.twice = True
            self.callback()
        self._first.set()

    async def wait(self) -> None:
        await self._first.wait()


@contextlib.contextmanager
def _simulation(original: Address | None) -> Iterator[Callable[[Address], None]]:
    """The simulated engine, if wanted; yields what makes a listener's clients redirected ones."""
    if original is None:
        yield lambda listener: None
        return
    from ..simulator import Engine

    with Engine(trace_limit=100) as engine:

        def simulate(listener: Address) -> None:
            blob = context.encode(context.OriginalDestination(original), "wfpsampler")
            engine.add_driver("simulated", proxy=listener[:2], match=original[:2], context=blob)
            engine.redirect_listener(listener[1], original=original[:2])

        yield simulate


# ---- what the options mean ----


def _address(text: str) -> Address:
    """HOST:PORT or [HOST]:PORT, resolved once."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, not {text!r}")
    try:
        infos = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    return infos[0][4]


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to 1000000, not {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return seconds


def _policy(text: str) -> Policy:
    module, _, function = text.partition(":")
    sys.path.insert(0, os.getcwd())
    try:
        policy = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    if not callable(policy):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be called")
    return cast(Policy, policy)


def _allow_descriptors(wanted: int) -> None:
    """Raise the soft limit of open files: each connection has two sockets."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < allowed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            _log.warning("only %d files may be open, %d are needed", allowed, wanted)


# ---- what is to be seen ----


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: a connection's fields, or a message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {"time": round(record.created, 6), "level": record.levelname}
        if isinstance(record.msg, Ended):
            line |= record.msg.fields()
        else:
            line["message"] = record.getMessage()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _configure_log(style: str) -> None:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    handler.setFormatter(_JsonFormatter() if style == "json" else text)
    _log.addHandler(handler)
    _log.setLevel(logging.WARNING if style == "none" else logging.INFO)
    _log.propagate = False


def _can_draw() -> bool:
    return importlib.util.find_spec("rich") is not None


async def _draw(address: Address, counters: Callable[[], Counters]) -> None:
    """Keep a table of the counters on the terminal, until cancelled."""
    from rich.live import Live

    before, then = counters(), time.monotonic()
    with Live(_table(address, before, before, 1.0), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_REFRESH)
            now, at = counters(), time.monotonic()
            live.update(_table(address, now, before, at - then), refresh=True)
            before, then = now, at


def _table(address: Address, now: Counters, before: Counters, seconds: float) -> "RenderableType":
    """The counters, and what they grew by in each of the last ``seconds``."""
    from rich.table import Table

    table = Table(title=f"wfpioctl relay on {address_text(address)}", title_justify="left")
    table.add_column("")
    table.add_column("total", justify="right")
    table.add_column("a second", justify="right")

    def row(name: str, value: int, earlier: int | None = None) -> None:
        rate = "" if earlier is None else f"{(value - earlier) / seconds:,.0f}"
        table.add_row(name, f"{value:,}", rate)

    row("active", now.active)
    row("accepted", now.accepted, before.accepted)
    row("finished", now.finished, before.finished)
    row("failed", now.failed, before.failed)
    row("bytes up", now.bytes_up, before.bytes_up)
    row("bytes down", now.bytes_down, before.bytes_down)
    for reason, count in sorted(now.refused.items()):
        row(f"refused: {reason}", count, before.refused[reason])
    for key, count in sorted(now.errors.items()):
        row(f"{key[0]}: {key[1]}", count, before.errors[key])
    return table
