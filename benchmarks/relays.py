"""Run as a process: one of the relays written in Python, from a port of ours to a port of ours.

python -m benchmarks.relays KIND PORT DESTINATION_PORT
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from wfpioctl.context import OriginalDestination, encode
from wfpioctl.simulator import Scripted

HOST = "127.0.0.1"
BLOCK = 65536


async def ours(port: int, destination: int) -> None:
    """The package's relay; with a provider, each connection makes its calls."""
    from wfpioctl.relay import Relay

    # More at once than a benchmark opens; connections that are not redirected are served too.
    async with Relay((HOST, port), to=(HOST, destination), direct=True):
        await asyncio.Event().wait()


async def with_calls(port: int, destination: int) -> None:
    context = encode(OriginalDestination(("192.0.2.1", 443)), "wfpsampler")
    with Scripted(b"r" * 128, context):
        await ours(port, destination)


async def streams(port: int, destination: int) -> None:
    """What one writes first: asyncio's streams, two tasks a connection."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(BLOCK):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(HOST, destination)
        try:
            await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))
        finally:
            up_writer.close()
            writer.close()

    server = await asyncio.start_server(serve, HOST, port, backlog=1024)
    async with server:
        await server.serve_forever()


KINDS: dict[str, Callable[[int, int], Coroutine[Any, Any, None]]] = {
    "with-calls": with_calls,
    "without-calls": ours,
    "streams": streams,
}

if __name__ == "__main__":
    kind, port, destination = sys.argv[1:]
    asyncio.run(KINDS[kind](int(port), int(destination)))
