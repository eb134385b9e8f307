"""Unmodified programs, through the example proxy, to where they wanted to go."""

import asyncio
import contextlib
import functools
import hashlib
import http.server
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ORIGINAL, address_of, listen

from wfpioctl import context
from wfpioctl.simulator import Connection, Engine, Queried, RecordsSet

EXAMPLES = Path(__file__).parent.parent / "examples"
MIB = 1 << 20


def original_destination(connection: Connection) -> bytes:
    return context.encode(context.OriginalDestination(connection.destination), "wfpsampler")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """The example proxy, running in this process; its address."""
    monkeypatch.syspath_prepend(EXAMPLES)
    import threaded_proxy

    stop = threading.Event()

    class Listener:
        """A listener that can be stopped from another thread on every system."""

        def accept(self) -> Any:
            accepted, address = listener.accept()
            if stop.is_set():
                accepted.close()
                raise InterruptedError
            return accepted, address

    def serve() -> None:
        with contextlib.suppress(InterruptedError):
            threaded_proxy.serve(Listener())

    with listen(backlog=1000) as listener:
        listener.settimeout(None)
        thread = threading.Thread(target=serve)
        thread.start()
        yield address_of(listener)
        stop.set()
        socket.create_connection(address_of(listener)).close()
        thread.join()


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(trace_limit=100_000) as engine:
        yield engine


def test_the_example_is_as_short_as_it_says() -> None:
    source = (EXAMPLES / "threaded_proxy.py").read_text()
    body = source.partition('"""\n\n')[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 36
    assert "_wfpioctl" not in body


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.mark.linux_program
def test_curl_fetches_50_mb(engine: Engine, proxy: tuple[str, int], tmp_path: Path) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("no curl here (apt-get install curl)")
    (tmp_path / "www").mkdir()
    data = hashlib.shake_128(b"seed").digest(MIB) * 50
    (tmp_path / "www" / "file").write_bytes(data)
    handler = functools.partial(Quiet, directory=str(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=original_destination)
            engine.redirect_listener(proxy[1], original=ORIGINAL)
            engine.route(ORIGINAL, server.server_address[:2])
            url, output = f"http://127.0.0.1:{proxy[1]}/file", tmp_path / "output"
            command = [curl, "-sS", "--fail", "--noproxy", "*", "--max-time", "50", "-o"]
            subprocess.run([*command, output, url], check=True, timeout=55)
        finally:
            server.shutdown()
            thread.join()
    assert output.read_bytes() == data
    assert any(isinstance(event, RecordsSet) and event.code == 0 for event in engine.trace)


def test_200_concurrent_connections_without_one_error(
    engine: Engine, proxy: tuple[str, int]
) -> None:
    """Each of them sends and gets its own bytes, several times, through proxy and destination."""
    count, rounds = 200, 3

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def app(number: int) -> None:
        reader, writer = await asyncio.open_connection(*ORIGINAL)
        for each in range(rounds):
            message = b"%d of %d\n" % (each, number) * 100
            writer.write(message)
            assert await reader.readexactly(len(message)) == message
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1000) as server:
            engine.add_driver("A", proxy=proxy, match=ORIGINAL, context=original_destination)
            engine.route(ORIGINAL, server.sockets[0].getsockname())
            await asyncio.gather(*[app(number) for number in range(count)])

    asyncio.run(asyncio.wait_for(main(), 50))
    queried = [event for event in engine.trace if isinstance(event, Queried)]
    assert len(queried) == 2 * count
    assert all(event.code == 0 for event in queried)
    assert sum(isinstance(event, RecordsSet) for event in engine.trace) == count


def test_example_refuses_what_nobody_redirected(engine: Engine, proxy: tuple[str, int]) -> None:
    with socket.create_connection(proxy, 20) as app:
        assert app.recv(1) == b""
