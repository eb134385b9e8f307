"""Lets Python's own connects go through the engine, so that unmodified programs can be tested.

``socket.socket.connect`` and ``connect_ex`` cover the standard library, the selector event loops
and every client built on them; the proactor loop connects by ConnectEx and is covered apart.  For
UDP it is ``sendto`` and ``sendmsg`` too, those of sockets and that of wfpioctl.datagram.
"""

import errno
import socket
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from .. import _wfpioctl

Address = tuple[Any, ...]


class Switchboard(Protocol):
    """What interception needs of an engine."""

    def place_call(
        self, sock: socket.socket, address: Address, dial: Callable[[Any], Any]
    ) -> Any: ...

    def datagram_target(
        self, sock: socket.socket, address: Any, records: bytes | None = None
    ) -> Any: ...

    def datagram_received(self, records: bytes) -> None: ...


def is_tcp(sock: socket.socket) -> bool:
    """Whether WFP's connect redirection concerns this socket."""
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM


def is_udp(sock: socket.socket) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_DGRAM


class Interception:
    """Replaces the connects while it is installed, and restores exactly what was there."""

    def __init__(self, switchboard: Switchboard) -> None:
        self._switchboard = switchboard
        self._replaced: list[tuple[type | ModuleType, str, Any]] = []
        self._making_pair = threading.local()

    def install(self) -> None:
        switchboard = self._switchboard
        making = self._making_pair
        plain_connect = socket.socket.connect
        plain_connect_ex = socket.socket.connect_ex

        def connect(self: socket.socket, address: Any, /) -> None:
            if is_udp(self):
                plain_connect(self, switchboard.datagram_target(self, address))
            elif not is_tcp(self) or getattr(making, "now", False):
                plain_connect(self, address)
            else:
                switchboard.place_call(self, address, lambda real: plain_connect(self, real))

        def connect_ex(self: socket.socket, address: Any, /) -> int:
            if not is_tcp(self) and not is_udp(self):
                return plain_connect_ex(self, address)
            try:
                connect(self, address)
            except socket.gaierror:
                raise
            except OSError as error:
                if error.errno is None:  # timed out
                    return errno.EWOULDBLOCK
                return getattr(error, "winerror", None) or error.errno
            return 0

        self._replace(socket.socket, "connect", connect)
        self._replace(socket.socket, "connect_ex", connect_ex)
        self._install_datagrams()
        if sys.platform == "win32":
            self._install_socketpair()
            self._install_proactor()

    def _install_datagrams(self) -> None:
        switchboard = self._switchboard
        plain_sendto = socket.socket.sendto

        def sendto(self: socket.socket, data: Any, *arguments: Any) -> int:
            if arguments and is_udp(self):  # (address) or (flags, address)
                *flags, address = arguments
                arguments = (*flags, switchboard.datagram_target(self, address))
            return plain_sendto(self, data, *arguments)

        self._replace(socket.socket, "sendto", sendto)
        if sys.platform != "win32":
            plain_sendmsg = socket.socket.sendmsg

            def sendmsg(
                self: socket.socket, data: Any, control: Any = (), flags: int = 0,
                address: Any = None, /,
            ) -> int:  # fmt: skip
                if address is not None and is_udp(self):
                    address = switchboard.datagram_target(self, address)
                return plain_sendmsg(self, data, control, flags, address)

            self._replace(socket.socket, "sendmsg", sendmsg)
        self._install_own_datagrams()

    def _install_own_datagrams(self) -> None:
        switchboard = self._switchboard
        plain_sendmsg = _wfpioctl.sendmsg

        def sendmsg(sock: Any, data: Any, address: Any, records: Any = None, /) -> int:
            if address is not None and isinstance(sock, socket.socket) and is_udp(sock):
                given = None if records is None else bytes(records)
                address = switchboard.datagram_target(sock, address, given)
            return plain_sendmsg(sock, data, address, records)

        def noticing(plain: Callable[..., Any]) -> Callable[..., Any]:
            def receive(*arguments: Any) -> Any:
                result = plain(*arguments)
                *_, records, _ = result
                if records is not None:
                    switchboard.datagram_received(records)
                return result

            return receive

        self._replace(_wfpioctl, "sendmsg", sendmsg)
        self._replace(_wfpioctl, "recvmsg", noticing(_wfpioctl.recvmsg))
        self._replace(_wfpioctl, "recvmsg_into", noticing(_wfpioctl.recvmsg_into))

    def _install_socketpair(self) -> None:
        """Let pairs be: on Windows they connect by TCP, and each event loop has one inside."""
        if sys.platform == "win32":
            plain_socketpair = socket.socketpair
            making = self._making_pair

            def socketpair(*arguments: Any, **options: Any) -> tuple[socket.socket, socket.socket]:
                making.now = True
                try:
                    return plain_socketpair(*arguments, **options)
                finally:
                    making.now = False

            self._replace(socket, "socketpair", socketpair)

    def _install_proactor(self) -> None:
        if sys.platform == "win32":
            from asyncio.windows_events import IocpProactor

            switchboard = self._switchboard
            plain_connect = IocpProactor.connect

            def connect(self: Any, conn: socket.socket, address: Any) -> Any:
                if is_udp(conn):
                    return plain_connect(self, conn, switchboard.datagram_target(conn, address))
                if not is_tcp(conn):
                    return plain_connect(self, conn, address)
                return switchboard.place_call(
                    conn, address, lambda real: plain_connect(self, conn, real)
                )

            plain_sendto = IocpProactor.sendto

            def sendto(
                self: Any, conn: socket.socket, buf: Any, flags: int = 0, addr: Any = None
            ) -> Any:
                if addr is not None and is_udp(conn):
                    addr = switchboard.datagram_target(conn, addr)
                return plain_sendto(self, conn, buf, flags, addr)

            self._replace(IocpProactor, "connect", connect)
            self._replace(IocpProactor, "sendto", sendto)

    def _replace(
        self, owner: type | ModuleType, name: str, replacement: Callable[..., Any]
    ) -> None:
        self._replaced.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, replacement)

    def uninstall(self) -> None:
        """Restore what was there, also after an installation that failed half-way."""
        while self._replaced:
            owner, name, own = self._replaced[-1]
            if own is not None:
                setattr(owner, name, own)
            elif name in vars(owner):  # it is inherited
                delattr(owner, name)
            self._replaced.pop()
