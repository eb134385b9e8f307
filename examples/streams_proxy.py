"""A transparent proxy on asyncio's streams.

``python examples/streams_proxy.py 127.0.0.1:8080`` listens where a driver redirects connections
to, and takes each one on to where it was going.
"""

import asyncio
import contextlib
import socket
import sys

import wfpioctl
from wfpioctl import aio, context


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one side is gone, and the other will be told
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def go_on(redirect: wfpioctl.Redirect) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the original destination, with the records set."""
    destination = context.decode(redirect.context, "wfpsampler")
    return await aio.open_connection(redirect, destination.host, destination.port)


async def handle(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, redirect: wfpioctl.Redirect | None
) -> None:
    with contextlib.closing(writer):
        if redirect is None:
            return  # nobody redirected it: there is nowhere to go
        answers, questions = await go_on(redirect)
        with contextlib.closing(questions):
            await asyncio.gather(copy(reader, questions), copy(answers, writer))


async def serve(listener: socket.socket) -> None:
    async with await aio.start_redirect_server(handle, sock=listener, backlog=512) as server:
        await server.serve_forever()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(serve(socket.create_server((host, int(port)))))
