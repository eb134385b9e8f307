"""mitmproxy as the proxy of a redirect driver: it learns the destination, and goes on with SET.

``mitmdump --mode transparent --listen-port 8080 -s examples/mitmproxy_addon.py``, without
WinDivert: where a connection was going comes from its redirect, and so do the records that are set
on mitmproxy's own connection to there.  Each client connection has its own (W27), and mitmproxy
opens them in that connection's context.
"""

import asyncio
import socket
from contextvars import ContextVar
from typing import Any

from mitmproxy import platform

import wfpioctl
from wfpioctl import context

current: ContextVar[wfpioctl.Redirect] = ContextVar("redirect of the client's connection")
plain_open_connection = asyncio.open_connection


def original_addr(client: socket.socket) -> tuple[str, int]:
    """What mitmproxy's transparent mode asks about each connection; an error closes it."""
    redirect = wfpioctl.read_redirect(client)
    if redirect is None:
        raise ConnectionRefusedError("nobody redirected this connection")
    current.set(redirect)
    destination = context.decode(redirect.context, "wfpsampler")
    return destination.host, destination.address[1]


async def open_connection(host: Any = None, port: Any = None, **options: Any) -> Any:
    """Like asyncio's, with the records set if it is for a redirected client."""
    redirect = current.get(None)
    if redirect is None or host is None:
        return await plain_open_connection(host, port, **options)
    loop = asyncio.get_running_loop()
    [info, *_] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    sock = wfpioctl.socket_factory(redirect)(info)
    try:
        sock.setblocking(False)
        await loop.sock_connect(sock, info[4])
        return await plain_open_connection(sock=sock)
    except BaseException:
        sock.close()
        raise


def load(loader: object) -> None:
    platform.init_transparent_mode = lambda: None
    platform.original_addr = original_addr
    asyncio.open_connection = open_connection  # type: ignore[assignment]
