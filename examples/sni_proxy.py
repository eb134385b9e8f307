"""A TLS passthrough that reads the server's name off the client's hello, and decrypts nothing.

``python examples/sni_proxy.py 127.0.0.1:8443 [FORBIDDEN ...]`` listens where a driver redirects TLS
connections to, says each name, resets what asks for a forbidden one, and passes on all others.
"""

import asyncio
import contextlib
import functools
import socket
import ssl
import sys
from collections.abc import Collection

from streams_proxy import copy, go_on

import wfpioctl
from wfpioctl import aio

MOST_OF_A_HELLO = 1 << 16  # bytes


def server_name(hello: bytes) -> str | None:
    """The name in a client's hello, "" if it names none; None if there is more of it to come.

    The standard library's TLS reads it, as a server without a certificate that soon gives up.
    Raises ssl.SSLError for what is not TLS.
    """
    names: list[str | None] = []
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.sni_callback = lambda _, name, __: names.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(hello)
    try:
        server.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    except ssl.SSLWantReadError:
        return None
    except ssl.SSLError:
        if not names:
            raise
    return names[0] or ""


async def handle(
    forbidden: Collection[str],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    redirect: wfpioctl.Redirect | None,
) -> None:
    with contextlib.closing(writer):
        if redirect is None:
            return  # nobody redirected it: there is nowhere to go
        hello, name = b"", None
        while name is None and len(hello) < MOST_OF_A_HELLO:
            piece = await reader.read(MOST_OF_A_HELLO)
            hello += piece
            try:
                name = server_name(hello) if piece else ""
            except ssl.SSLError:
                name = ""
        print("server name:", name or "none", flush=True)
        if name in forbidden:
            writer.transport.abort()
            return
        answers, questions = await go_on(redirect)
        with contextlib.closing(questions):
            questions.write(hello)
            await asyncio.gather(copy(reader, questions), copy(answers, writer))


async def serve(listener: socket.socket, forbidden: Collection[str] = ()) -> None:
    accepted = functools.partial(handle, forbidden)
    async with await aio.start_redirect_server(accepted, sock=listener, backlog=512) as server:
        await server.serve_forever()


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    asyncio.run(serve(socket.create_server((host, int(port))), sys.argv[2:]))
