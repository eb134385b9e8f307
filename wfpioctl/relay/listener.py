"""Accepts connections on one address, and can pause: what is not accepted waits in the backlog.

A loop that watches descriptors calls back; the proactor cannot watch: it awaits each connection.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable

from .decide import Address

_log = logging.getLogger("wfpioctl.relay")

_BACKLOG = 4096
_ACCEPTS_AT_ONCE = 64  # then the other sockets get their turn
_PAUSE_AFTER_ERROR = 0.2  # seconds: the system is out of sockets or memory, which takes time

_CLIENT_GONE = {59, 64, 1236}
"""Win32 codes with which AcceptEx says that the client has reset its connection meanwhile: the
proactor makes no ConnectionError of them.  UNEXP_NET_ERR is Wine's, NETNAME_DELETED Windows'."""


class Listener:
    """A listening socket; it calls ``on_accept(socket, peer)`` for each connection.

    The sockets that it hands out are non-blocking.
    """

    def __init__(self, address: Address, on_accept: Callable[[socket.socket, Address], None]):
        self._loop = asyncio.get_running_loop()
        self._on_accept = on_accept
        self._open = asyncio.Event()  # cleared while paused
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._sock = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._sock.setblocking(False)
        self.address: Address = self._sock.getsockname()
        self._task: asyncio.Task[None] | None = None
        try:
            self.resume()
        except NotImplementedError:  # the proactor
            self._task = self._loop.create_task(self._accept_awaiting())

    @property
    def closed(self) -> bool:
        return self._sock.fileno() == -1

    def pause(self) -> None:
        self._open.clear()
        if self._task is None:
            self._loop.remove_reader(self._sock)

    def resume(self) -> None:
        if not self.closed:
            self._open.set()
            if self._task is None:
                self._loop.add_reader(self._sock, self._accept_some)

    async def close(self) -> None:
        """Stop listening.  What waits in the backlog is reset by the system."""
        if self.closed:
            return
        if self._task is None:
            self._loop.remove_reader(self._sock)
        else:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._sock.close()

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                self._suspend(error)
                return
            sock.setblocking(False)
            self._on_accept(sock, peer)
            if not self._open.is_set():
                return

    def _suspend(self, error: OSError) -> None:
        _log.warning("accept failed, tried again in %.1f s: %s", _PAUSE_AFTER_ERROR, error)
        self.pause()
        self._loop.call_later(_PAUSE_AFTER_ERROR, self.resume)

    async def _accept_awaiting(self) -> None:
        while True:
            await self._open.wait()
            try:
                sock, peer = await self._loop.sock_accept(self._sock)
            except ConnectionError:
                continue
            except OSError as error:
                if getattr(error, "winerror", None) not in _CLIENT_GONE:
                    self._suspend(error)
                continue
            self._on_accept(sock, peer)


def is_reached(destination: Address, listening: Address) -> bool:
    """Whether what goes to ``destination`` comes to who listens on ``listening``."""
    if destination[1] != listening[1]:
        return False
    host, own = _ip(destination[0]), _ip(listening[0])
    return host == own or host.is_unspecified or (own.is_unspecified and is_local(destination))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, without its scope; mapped IPv4 is plain IPv4."""
    ip = ipaddress.ip_address(host.partition("%")[0])
    return (ip.ipv4_mapped or ip) if isinstance(ip, ipaddress.IPv6Address) else ip


def is_local(address: Address) -> bool:
    """Whether this machine has the address."""
    ip = _ip(address[0])
    if ip.is_loopback:
        return True
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return True
