"""Connects a socket that does not block.

``loop.sock_connect()`` does it on every loop.  A loop that watches descriptors is asked only where
there is something to wait for: a destination on this machine is reached at once.
"""

import asyncio
import socket

from .decide import Address


async def connect(
    loop: asyncio.AbstractEventLoop,
    sock: socket.socket,
    destination: Address,
    timeout: float,
    *,
    watches: bool,
) -> None:
    """Connect within ``timeout`` seconds, or raise OSError; TimeoutError is one.

    ``watches``: whether the loop can watch descriptors.
    """
    if watches and _reached_at_once(sock, destination):
        return
    async with asyncio.timeout(timeout):
        if watches:
            await _reached(loop, sock, destination)
        else:
            await loop.sock_connect(sock, destination)


def _reached_at_once(sock: socket.socket, destination: Address) -> bool:
    try:
        sock.connect(destination)
    except BlockingIOError:
        try:
            sock.getpeername()
        except OSError:  # not yet, or refused: the loop will say
            return False
    return True


async def _reached(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, destination: Address
) -> None:
    ended = loop.create_future()
    descriptor = sock.fileno()
    loop.add_writer(descriptor, _set, ended)
    try:
        await ended
    finally:
        loop.remove_writer(descriptor)
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, f"connecting to {destination} failed")


def _set(future: "asyncio.Future[None]") -> None:
    if not future.done():  # the loop may call again before the waiter has been woken
        future.set_result(None)
