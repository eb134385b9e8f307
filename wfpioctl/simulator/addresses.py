"""Socket addresses as the engine compares and uses them: numeric, IPv4 in its plain form."""

import errno
import ipaddress
import socket
from typing import Any

Address = tuple[str, int]


def numeric(address: tuple[Any, ...]) -> Address:
    """(host, port) with a numeric host, resolved if need be; mapped IPv4 is plain IPv4."""
    if not isinstance(address, tuple) or len(address) < 2:
        raise TypeError(f"an address must be a (host, port) tuple, not {address!r}")
    host, port = address[:2]
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        host = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
        ip = ipaddress.ip_address(str(host).partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip), port


def destination_of(sock: socket.socket, address: Any) -> Address | None:
    """(host, port) that a connect of this socket means, numeric; None if it can only fail."""
    ipv6 = sock.family == socket.AF_INET6
    if sock.fileno() == -1 or not isinstance(address, tuple):
        return None
    if not 2 <= len(address) <= (4 if ipv6 else 2):
        return None
    host, port = address[:2]
    if not isinstance(host, str) or not host or not isinstance(port, int) or port >> 16:
        return None
    try:
        version = ipaddress.ip_address(host.partition("%")[0]).version
    except ValueError:
        name = host.encode("ascii" if host.isascii() else "idna")  # as connect() does
        host = str(socket.getaddrinfo(name, None, sock.family, socket.SOCK_STREAM)[0][4][0])
    else:
        if (version == 6) != ipv6:
            return None
    return numeric((host, port))


def probe_connect(probe: socket.socket, address: tuple[Any, ...]) -> None:
    """Connect a UDP socket to learn its source address; an engine does not see it."""
    super(socket.socket, probe).connect(address)


def is_own(host: str) -> bool:
    """Whether the machine has this address: what a redirection may go to (W58)."""
    if ipaddress.ip_address(host).is_loopback:
        return True
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe_connect(probe, (host, 9))  # sends nothing; from itself is how one reaches oneself
        except OSError:
            return False
        return str(probe.getsockname()[0]) == host


def bound(sock: socket.socket) -> Address | None:
    """The address that a socket is bound to, or None."""
    try:
        host, port = sock.getsockname()[:2]
    except OSError:  # Windows: not bound
        return None
    return (host, port) if port else None


def as_seen_from(sock: socket.socket, address: Address) -> tuple[Any, ...]:
    """``address`` in the form that the socket's family can connect to."""
    host, port = address
    if sock.family == socket.AF_INET6:
        if ":" in host:
            return (host, port, 0, 0)
        if bound(sock) is None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        return (f"::ffff:{host}", port, 0, 0)
    if ":" in host:
        raise OSError(errno.EAFNOSUPPORT, f"an IPv4 socket cannot be sent to [{host}]:{port}")
    return (host, port)


def bind_anywhere(sock: socket.socket) -> None:
    """Bind the socket to a port of no address in particular, unless it is bound."""
    if bound(sock) is None:
        sock.bind(("::" if sock.family == socket.AF_INET6 else "", 0))


def bind_towards(sock: socket.socket, target: tuple[Any, ...]) -> Address:
    """Bind the socket for a connect to ``target``, if need be; return the connection's own end."""
    source = _source(sock.family, target)
    own = bound(sock)
    if own is not None:
        host, port = own
        return (source if ipaddress.ip_address(host).is_unspecified else host), port
    for candidate in _candidates(source):
        try:
            sock.bind((candidate, 0))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            break
    else:
        raise OSError(errno.EADDRINUSE, f"no port is free for a connect to {target[0]}")
    host, port = sock.getsockname()[:2]
    return host, port


def _source(family: int, target: tuple[Any, ...]) -> str:
    """The address from which the system would connect to ``target``."""
    if target[0] in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        return str(target[0])
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe_connect(probe, target)
        return str(probe.getsockname()[0])


def _candidates(source: str) -> list[str]:
    """``source``, then more loopback addresses: each has 28,000 ports, and load tests use them."""
    prefix, loopback, host = source.rpartition("127.0.0.1")
    if not loopback or host:
        return [source]
    return [f"{prefix}127.0.0.{number}" for number in range(1, 255)]
