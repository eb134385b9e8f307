"""Accepts connections on one address, and can pause: what is not accepted waits in the backlog.

A loop that watches descriptors calls back.  The proactor cannot watch, and its own accept leaks a
socket and an error whenever a client has gone before it was accepted: there a thread accepts.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable

from .decide import Address

_log = logging.getLogger("wfpioctl.relay")

_BACKLOG = 4096
_ACCEPTS_AT_ONCE = 64  # then the other sockets get their turn
_PAUSE = 0.2  # seconds before the next accept, where the system is out of sockets or memory
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Listener:
    """A listening socket; it calls ``on_accept(socket, peer)`` for each connection.

    The sockets that it hands out are non-blocking.
    """

    def __init__(self, address: Address, on_accept: Callable[[socket.socket, Address], None]):
        self._loop = asyncio.get_running_loop()
        self._on_accept = on_accept
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._sock = socket.create_server(address, family=family, backlog=_BACKLOG)
        self._sock.setblocking(False)
        self.address: Address = self._sock.getsockname()
        self._open = True  # not paused
        self._thread: threading.Thread | None = None
        try:
            self.resume()
        except NotImplementedError:  # the proactor
            self._sock.setblocking(True)
            self._may_accept = threading.Event()
            self._thread = threading.Thread(target=self._accept_in_thread, daemon=True)
            self._thread.start()
            self.resume()

    @property
    def watches(self) -> bool:
        """Whether the loop watches descriptors; on one that does not, a thread accepts."""
        return self._thread is None

    @property
    def closed(self) -> bool:
        return self._sock.fileno() == -1

    def pause(self) -> None:
        self._open = False
        if self._thread is None:
            self._loop.remove_reader(self._sock.fileno())

    def resume(self) -> None:
        if self.closed:
            return
        self._open = True
        if self._thread is None:
            self._loop.add_reader(self._sock.fileno(), self._accept_some)
        else:
            self._may_accept.set()

    def close(self) -> None:
        """Stop listening.  What waits in the backlog is reset by the system."""
        if self.closed:
            return
        if self._thread is None:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        else:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)  # wakes the thread where close() does not
            self._sock.close()
            self._may_accept.set()
            self._thread.join()

    def _accept_some(self) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("accept failed, tried again in %.1f s: %s", _PAUSE, error)
                    self.pause()
                    self._loop.call_later(_PAUSE, self.resume)
                return
            sock.setblocking(False)
            self._on_accept(sock, peer)
            if not self._open:
                return

    def _accept_in_thread(self) -> None:
        while self._may_accept.wait() and not self.closed:
            try:
                sock, peer = self._sock.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    _log.warning("accept failed, tried again in %.1f s: %s", _PAUSE, error)
                    time.sleep(_PAUSE)
                continue
            sock.setblocking(False)
            self._may_accept.clear()  # until the loop has taken this one, and says so
            self._loop.call_soon_threadsafe(self._take, sock, peer)

    def _take(self, sock: socket.socket, peer: Address) -> None:
        if self.closed:
            sock.close()
            return
        self._on_accept(sock, peer)
        if self._open:
            self._may_accept.set()


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
