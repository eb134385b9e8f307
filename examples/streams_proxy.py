"""A transparent proxy on asyncio's streams.

``python examples/streams_proxy.py 127.0.0.1:8080`` listens where a driver redirects connections
to, and takes each one on to where it was going.
"""

import asyncio
import contextlib
import socket
import sys

import wfpioctl
from wfpioctl import context


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):  # one side is gone, and the other will be told
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


async def connect(redirect: wfpioctl.Redirect) -> socket.socket:
    """Go on to the original destination, without blocking the loop."""
    destination = context.decode(redirect.context, "wfpsampler")
    family = socket.AF_INET6 if ":" in destination.host else socket.AF_INET
    sock = wfpioctl.socket_factory(redirect)((family, socket.SOCK_STREAM, 0))
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, destination.address)
    except BaseException:
        sock.close()
        raise
    return sock


async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer):
        redirect = wfpioctl.read_redirect(writer.get_extra_info("socket"))
        if redirect is None:
            return  # nobody redirected it: there is nowhere to go
        answers, questions = await asyncio.open_connection(sock=await connect(redirect))
        with contextlib.closing(questions):
            await asyncio.gather(copy(reader, questions), copy(answers, writer))


async def serve(listener: socket.socket) -> None:
    async with await asyncio.start_server(handle, sock=listener, backlog=512) as server:
        await server.serve_forever()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(serve(socket.create_server((host, int(port)))))
