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


async def with_calls(port: int, destination: int) -> None:
    """The package's relay as it is used: each connection goes where its context says."""
    from wfpioctl.relay import Relay

    context = encode(OriginalDestination((HOST, destination)), "wfpsampler")
    with Scripted(b"r" * 128, context):
        async with Relay((HOST, port)):
            await asyncio.Event().wait()


async def without_calls(port: int, destination: int) -> None:
    """The same relay on a system without the IOCTLs, told where everything goes."""
    from wfpioctl.relay import Relay

    async with Relay((HOST, port), to=(HOST, destination), direct=True):
        await asyncio.Event().wait()


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
    "without-calls": without_calls,
    "streams": streams,
}

if __name__ == "__main__":
    kind, port, destination = sys.argv[1:]
    asyncio.run(KINDS[kind](int(port), int(destination)))
