"""Redirect contexts: what a callout driver tells the proxy about a connection that it redirected.

The context is the driver's own (W57): usually the original destination, in a layout that only
the driver and its proxy know.  A `Layout` describes one as a list of fields, in the order in which
they lie in memory; its decoder and its encoder are read off that list::

    ACME = Layout(
        "acme",
        [
            raw("magic", 4, equals=b"ACME"),
            u32("version", equals=2),
            sockaddr("destination"),
            port("listener_port", host_order=True),
            padding(6),
            u64("process_id"),
            wchar("image_path", 260),
        ],
    )
    decode(context, ACME).address

The names "destination", "source", "process_id" and "image_path" (or "destination_host" with
"destination_port", "source_host" with "source_port") fill the attributes of `OriginalDestination`;
every other name goes into its `fields`.  The layouts of known drivers are at the end of this file.

A context comes from another component, and is treated as hostile: every length, address family
and constant is checked, and what is wrong raises `ContextError` and nothing else.  All sizes and
offsets are in bytes.  Nothing here needs Windows.
"""

from __future__ import annotations

import dataclasses
import reprlib
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from .constants import SO_ORIGINAL_DST, WSAEINVAL, WSAENOPROTOOPT
from .errors import InvalidArgumentError, NotRedirectedError

if TYPE_CHECKING:
    from _typeshed import HasFileno, ReadableBuffer

__all__ = [
    "AZURE_GPA",
    "LAYOUTS",
    "LEAFSDK",
    "TUNLESS",
    "WFPSAMPLER",
    "Address",
    "ContextError",
    "Field",
    "Layout",
    "OneOf",
    "OriginalDestination",
    "decode",
    "encode",
    "ipv4",
    "ipv6",
    "original_destination",
    "padding",
    "port",
    "raw",
    "sockaddr",
    "u8",
    "u16",
    "u32",
    "u64",
    "wchar",
]

# Windows' own numbers: the running system's AF_INET6 is another one (10 on Linux, 30 on macOS).
_WINDOWS_AF_UNSPEC = 0
_WINDOWS_AF_INET = 2
_WINDOWS_AF_INET6 = 23

# A sockaddr's family and port, read at once; in the port's order, so that the family is swapped.
_SOCKADDR_HEAD = struct.Struct(">HH")


def _swapped(family: int) -> int:
    return family << 8 & 0xFF00 | family >> 8


_SWAPPED_AF_INET = _swapped(_WINDOWS_AF_INET)
_SWAPPED_AF_INET6 = _swapped(_WINDOWS_AF_INET6)

# The running system's, as plain ints: its functions are several times faster with them.
_AF_INET = int(socket.AF_INET)
_AF_INET6 = int(socket.AF_INET6)

_SOCKADDR_IN_SIZE = 16
_SOCKADDR_IN6_SIZE = 28
_SOCKADDR_STORAGE_SIZE = 128

Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int]
"""What `socket.connect` takes: (host, port), or (host, port, flowinfo, scope_id) for IPv6."""

_ByteOrder: TypeAlias = Literal["little", "big"]
_T = TypeVar("_T")


class ContextError(ValueError):
    """A context does not have the layout that it should have, or a value does not fit into it.

    Attributes:
        layout: the name of the layout.
        field: the name of the field; "context" if it is about the context as a whole.
        offset: where in the context, in bytes.
        expected: what should be there, in words.
        found: what is there instead, in words.
    """

    def __init__(self, layout: str, field: str, offset: int, expected: str, found: str) -> None:
        super().__init__(layout, field, offset, expected, found)
        self.layout = layout
        self.field = field
        self.offset = offset
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        return (
            f"{self.layout}: {self.field} at offset {self.offset}: "
            f"expected {self.expected}, found {self.found}"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class OriginalDestination:
    """Where a redirected connection was going, and what else its context says.

    Attributes:
        address: the destination, as `socket.connect` takes it: (host, port), or for IPv6
            (host, port, flowinfo, scope_id).  The host is a numeric address.
        source: the address the connection came from, in the same form, or None.
        process_id: the process that made the connection, or None.
        image_path: that process's program file, as the driver wrote it (kernel drivers often
            write NT paths: \\device\\harddiskvolume3\\...), or None.
        fields: whatever else the layout has, by field name.
    """

    address: Address
    source: Address | None = None
    process_id: int | None = None
    image_path: str | None = None
    fields: Mapping[str, object] = dataclasses.field(default_factory=dict[str, object], hash=False)

    @property
    def host(self) -> str:
        """The destination's numeric address."""
        return self.address[0]

    @property
    def port(self) -> int:
        """The destination's port."""
        return self.address[1]

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET or AF_INET6 of the running system (not the number in the context)."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


# Fields: what a layout is made of.


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """One entry of a layout.  Made with `u32`, `sockaddr` and the other functions below.

    Attributes:
        name: what its value is called; "" for padding.
        kind: how it is decoded and encoded.
        size: in bytes.
        order: its byte order, or None for the layout's.
        equals: the only value that it may have, or None.  Such a constant is checked when decoded,
            written when encoded, and no part of the result.
        optional: whether a sockaddr may be AF_UNSPEC.
    """

    name: str
    kind: Literal["uint", "ip", "sockaddr", "wchar", "raw", "padding"]
    size: int
    order: _ByteOrder | None = None
    equals: int | bytes | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"field {self.name!r}: a size of {self.size} bytes; at least 1 needed")


def u8(name: str, *, equals: int | None = None) -> Field:
    """An unsigned integer of 1 byte; with *equals*, a constant such as a version number."""
    return Field(name, "uint", 1, equals=equals)


def u16(name: str, *, equals: int | None = None) -> Field:
    """An unsigned integer of 2 bytes in the layout's byte order; *equals* makes it a constant."""
    return Field(name, "uint", 2, equals=equals)


def u32(name: str, *, equals: int | None = None) -> Field:
    """An unsigned integer of 4 bytes in the layout's byte order; *equals* makes it a constant."""
    return Field(name, "uint", 4, equals=equals)


def u64(name: str, *, equals: int | None = None) -> Field:
    """An unsigned integer of 8 bytes in the layout's byte order; *equals* makes it a constant."""
    return Field(name, "uint", 8, equals=equals)


def port(name: str, *, host_order: bool = False) -> Field:
    """A port, 2 bytes in network order; with *host_order*, in the layout's byte order (W75)."""
    return Field(name, "uint", 2, order=None if host_order else "big")


def ipv4(name: str, *, host_order: bool = False) -> Field:
    """An IPv4 address, 4 bytes in network order; with *host_order*, in the layout's byte order.

    WFP itself hands IPv4 addresses to a driver in host order, and some drivers pass them on so.
    """
    return Field(name, "ip", 4, order=None if host_order else "big")


def ipv6(name: str) -> Field:
    """An IPv6 address, 16 bytes."""
    return Field(name, "ip", 16, order="big")


def sockaddr(name: str, size: int = _SOCKADDR_STORAGE_SIZE, *, optional: bool = False) -> Field:
    """A Windows SOCKADDR_STORAGE; with *size* 16 a SOCKADDR_IN, with 28 a SOCKADDR_IN6.

    Its family is in little-endian order, its port in network order, whatever the byte order of
    the layout.  With *optional*, AF_UNSPEC (such as all zeros) is no address: None.
    """
    if size < _SOCKADDR_IN_SIZE:
        raise ValueError(
            f"field {name!r}: a sockaddr of {size} bytes; at least {_SOCKADDR_IN_SIZE} needed"
        )
    return Field(name, "sockaddr", size, optional=optional)


def wchar(name: str, length: int) -> Field:
    """A WCHAR[length]: UTF-16LE, up to the first NUL, or all of it if there is none.

    Lone surrogates are legal in Windows file names, and pass in both directions as they do in
    Python's own paths ("surrogatepass").
    """
    return Field(name, "wchar", 2 * length)


def raw(name: str, size: int, *, equals: bytes | None = None) -> Field:
    """Bytes as they are; with *equals*, a constant such as a magic."""
    return Field(name, "raw", size, equals=equals)


def padding(size: int) -> Field:
    """Bytes without a meaning: not looked at when decoded, zeros when encoded."""
    return Field("", "padding", size)


# The codec of each kind of field.  A decoder reads field.size bytes from an offset on; they are
# there.  An encoder returns so many.  What they do not like raises _Mismatch, with an offset from
# the field's start.


class _Mismatch(Exception):
    def __init__(self, offset: int, expected: str, found: str) -> None:
        self.offset = offset
        self.expected = expected
        self.found = found


def _decode_uint(field: Field, data: bytes, offset: int, order: _ByteOrder) -> int:
    return int.from_bytes(data[offset : offset + field.size], order)


def _encode_uint(field: Field, value: object, order: _ByteOrder) -> bytes:
    return _pack_uint(value, field.size, order)


def _pack_uint(value: object, size: int, order: _ByteOrder, offset: int = 0) -> bytes:
    if not isinstance(value, int) or not 0 <= value < 1 << 8 * size:
        raise _Mismatch(offset, f"an integer of {size} bytes", reprlib.repr(value))
    return value.to_bytes(size, order)


def _decode_ip(field: Field, data: bytes, offset: int, order: _ByteOrder) -> str:
    family = _AF_INET if field.size == 4 else _AF_INET6
    packed = data[offset : offset + field.size]
    return socket.inet_ntop(family, packed if order == "big" else packed[::-1])


def _encode_ip(field: Field, value: object, order: _ByteOrder) -> bytes:
    packed = _pack_ip(value, field.size)
    return packed if order == "big" else packed[::-1]


def _pack_ip(value: object, size: int, offset: int = 0) -> bytes:
    family, name = (socket.AF_INET, "IPv4") if size == 4 else (socket.AF_INET6, "IPv6")
    try:
        if isinstance(value, str):
            return socket.inet_pton(family, value)
    except (OSError, ValueError):  # ValueError: a NUL or a surrogate in it
        pass
    raise _Mismatch(offset, f"a numeric {name} address", reprlib.repr(value))


def _decode_sockaddr(field: Field, data: bytes, offset: int, order: _ByteOrder) -> Address | None:
    port: int
    family, port = _SOCKADDR_HEAD.unpack_from(data, offset)
    if family == _SWAPPED_AF_INET:
        return socket.inet_ntop(_AF_INET, data[offset + 4 : offset + 8]), port
    if family == _SWAPPED_AF_INET6 and field.size >= _SOCKADDR_IN6_SIZE:
        rest = data[offset + 4 : offset + _SOCKADDR_IN6_SIZE]
        scope_id = int.from_bytes(rest[20:], "little")
        return socket.inet_ntop(_AF_INET6, rest[4:20]), port, _flowinfo(rest), scope_id
    if family == _WINDOWS_AF_UNSPEC and field.optional:
        return None
    raise _Mismatch(0, f"an address family of {_families(field)}", str(_swapped(family)))


def _encode_sockaddr(field: Field, value: Any, order: _ByteOrder) -> bytes:
    match value:
        case None if field.optional:
            return bytes(field.size)
        case (str(host), port) if ":" not in host:
            packed = (
                _WINDOWS_AF_INET.to_bytes(2, "little")
                + _pack_uint(port, 2, "big", offset=2)
                + _pack_ip(host, 4, offset=4)
            )
        case (str(host), port) | (str(host), port, _, _) if field.size >= _SOCKADDR_IN6_SIZE:
            flowinfo, scope_id = value[2:] or (0, 0)
            packed = (
                _WINDOWS_AF_INET6.to_bytes(2, "little")
                + _pack_uint(port, 2, "big", offset=2)
                + _pack_uint(flowinfo, 4, "big", offset=4)
                + _pack_ip(host, 16, offset=8)
                + _pack_uint(scope_id, 4, "little", offset=24)
            )
            _flowinfo(packed[4:])  # is it one that can be decoded?
        case _:
            raise _Mismatch(0, f"an address of family {_families(field)}", reprlib.repr(value))
    return packed.ljust(field.size, b"\0")


def _flowinfo(packed: bytes) -> int:
    flowinfo = int.from_bytes(packed[:4], "big")
    if flowinfo >= 1 << 20:  # socket.connect refuses it
        raise _Mismatch(4, "a flow label of 20 bits", hex(flowinfo))
    return flowinfo


def _families(field: Field) -> str:
    if field.size < _SOCKADDR_IN6_SIZE:
        return f"{_WINDOWS_AF_INET}"
    return f"{_WINDOWS_AF_INET} or {_WINDOWS_AF_INET6}"


def _decode_wchar(field: Field, data: bytes, offset: int, order: _ByteOrder) -> str:
    packed = data[offset : offset + field.size]
    return packed.decode("utf-16-le", "surrogatepass").partition("\0")[0]


def _encode_wchar(field: Field, value: object, order: _ByteOrder) -> bytes:
    if isinstance(value, str) and "\0" not in value:
        packed = value.encode("utf-16-le", "surrogatepass")
        if len(packed) <= field.size:
            return packed.ljust(field.size, b"\0")
    expected = f"text of at most {field.size // 2} UTF-16 units, without a NUL"
    raise _Mismatch(0, expected, reprlib.repr(value))


def _decode_raw(field: Field, data: bytes, offset: int, order: _ByteOrder) -> bytes:
    return data[offset : offset + field.size]


def _encode_raw(field: Field, value: object, order: _ByteOrder) -> bytes:
    if not isinstance(value, bytes) or len(value) != field.size:
        raise _Mismatch(0, f"{field.size} bytes", reprlib.repr(value))
    return value


_Decoder: TypeAlias = Callable[[Field, bytes, int, _ByteOrder], object]
_DECODERS: Mapping[str, _Decoder | None] = {
    "padding": None,
    "uint": _decode_uint,
    "ip": _decode_ip,
    "sockaddr": _decode_sockaddr,
    "wchar": _decode_wchar,
    "raw": _decode_raw,
}
_ENCODERS: Mapping[str, Callable[[Field, Any, _ByteOrder], bytes]] = {
    "uint": _encode_uint,
    "ip": _encode_ip,
    "sockaddr": _encode_sockaddr,
    "wchar": _encode_wchar,
    "raw": _encode_raw,
}

# The names that fill attributes of OriginalDestination, and the (kind, size) that they need;
# a size of None is any.
_ATTRIBUTES: Mapping[str, tuple[str, int | None]] = {
    "destination": ("sockaddr", None),
    "destination_host": ("ip", None),
    "destination_port": ("uint", 2),
    "source": ("sockaddr", None),
    "source_host": ("ip", None),
    "source_port": ("uint", 2),
    "process_id": ("uint", None),
    "image_path": ("wchar", None),
}


# Layouts: lists of fields.


@dataclasses.dataclass(frozen=True, slots=True)
class Layout:
    """The fields of a context, in the order in which they lie in memory, without gaps.

    Alignment is the describer's business: where a C compiler leaves a gap, say `padding`.

    Attributes:
        name: what messages call it.
        fields: its fields.  There must be a "destination", or a "destination_host" and a
            "destination_port"; no two fields have one name.
        byte_order: of its integers, and of ports and IPv4 addresses in host order.
        allow_trailing: whether a context may be longer than the layout; what follows is ignored.
        size: in bytes, computed.

    Raises ValueError if the fields make no sense.
    """

    name: str
    fields: Sequence[Field]
    byte_order: _ByteOrder = "little"
    allow_trailing: bool = False
    size: int = dataclasses.field(init=False)
    _steps: Sequence[tuple[Field, _Decoder | None, _ByteOrder]] = dataclasses.field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "size", sum(field.size for field in self.fields))
        steps = [
            (each, _DECODERS[each.kind], each.order or self.byte_order) for each in self.fields
        ]
        object.__setattr__(self, "_steps", tuple(steps))
        if self.byte_order not in ("little", "big"):
            raise ValueError(f"{self.name}: byte order {self.byte_order!r} is not little or big")
        names = [field.name for field in self.fields if field.kind != "padding"]
        for name in names:
            if not name or names.count(name) > 1:
                raise ValueError(f"{self.name}: field name {name!r} is empty or used twice")
        for end in "destination", "source":
            parts = {f"{end}_host", f"{end}_port"}.intersection(names)
            if len(parts) == 1 or (parts and end in names):
                raise ValueError(f"{self.name}: needs {end}, or {end}_host and {end}_port")
        if not {"destination", "destination_host"}.intersection(names):
            raise ValueError(f"{self.name}: no field says what the destination is")
        for field in self.fields:
            kind, size = _ATTRIBUTES.get(field.name, (field.kind, None))
            if field.kind != kind or field.size != (size or field.size):
                raise ValueError(f"{self.name}: {field.name} cannot be {field.kind}[{field.size}]")
            if field.name in _ATTRIBUTES and field.equals is not None:
                raise ValueError(f"{self.name}: {field.name} cannot be a constant")
            if field.name == "destination" and field.optional:
                raise ValueError(f"{self.name}: the destination cannot be optional")
            if field.equals is not None:
                self._encode_field(field, field.equals, 0)  # does it fit?

    def decode(self, context: ReadableBuffer) -> OriginalDestination:
        """Read a context, any bytes-like object.

        Raises ContextError if it does not have this layout: too short, too long, a constant that
        is another one, an address of an unknown family.
        """
        data = context if type(context) is bytes else memoryview(context).tobytes()
        if len(data) < self.size or (len(data) > self.size and not self.allow_trailing):
            expected = f"{'at least ' if self.allow_trailing else ''}{self.size} bytes"
            offset = min(len(data), self.size)
            raise ContextError(self.name, "context", offset, expected, f"{len(data)}")
        values: dict[str, Any] = {}
        offset = 0
        for field, decode_value, order in self._steps:
            if decode_value is not None:
                try:
                    value = decode_value(field, data, offset, order)
                    if field.equals is not None and value != field.equals:
                        raise _Mismatch(0, repr(field.equals), repr(value))
                except _Mismatch as wrong:
                    raise self._error(field, offset, wrong) from None
                if field.equals is None:
                    values[field.name] = value
            offset += field.size
        destination = _join_address(values, *_DESTINATION)
        assert destination is not None  # the field is there, and not optional
        source = _join_address(values, *_SOURCE)
        process_id, image_path = values.pop("process_id", None), values.pop("image_path", None)
        return OriginalDestination(destination, source, process_id, image_path, values)

    def encode(self, destination: OriginalDestination) -> bytes:
        """Write what a driver with this layout would attach: the inverse of decode().

        What *destination* does not say is written as zeros; an attribute that the layout has no
        field for is left out.  Raises ContextError if a value does not fit into its field, or if
        `destination.fields` has a name that the layout does not have.
        """
        names = {each.name for each in self.fields if each.name and each.equals is None}
        own_names = names - _ATTRIBUTES.keys()
        for name, value in destination.fields.items():
            if name not in own_names:
                raise ContextError(
                    self.name, name, self.size, "no field of this name", reprlib.repr(value)
                )
        values: dict[str, object] = {
            **_split_address(destination.address, "destination"),
            **_split_address(destination.source, "source"),
            "process_id": destination.process_id,
            "image_path": destination.image_path,
            **destination.fields,
        }
        packed = b""
        for field in self.fields:
            value = values.get(field.name) if field.equals is None else field.equals
            packed += self._encode_field(field, value, len(packed))
        return packed

    def _encode_field(self, field: Field, value: object, offset: int) -> bytes:
        if value is None and field.kind != "sockaddr":
            return bytes(field.size)
        try:
            return _ENCODERS[field.kind](field, value, field.order or self.byte_order)
        except _Mismatch as wrong:
            raise self._error(field, offset, wrong) from None

    def _error(self, field: Field, offset: int, wrong: _Mismatch) -> ContextError:
        return ContextError(
            self.name, field.name, offset + wrong.offset, wrong.expected, wrong.found
        )


_DESTINATION = "destination", "destination_host", "destination_port"
_SOURCE = "source", "source_host", "source_port"


def _join_address(values: dict[str, Any], end: str, host: str, port: str) -> Address | None:
    """Take one end of the connection out of *values*: a sockaddr, or a host and a port."""
    if host not in values:
        address: Address | None = values.pop(end, None)
        return address
    name, number = values.pop(host), values.pop(port)
    return (name, number, 0, 0) if ":" in name else (name, number)


def _split_address(address: Address | None, end: str) -> dict[str, object]:
    """One end of the connection under every name that a layout may have for it."""
    host, port = address[:2] if address else (None, None)
    return {end: address, f"{end}_host": host, f"{end}_port": port}


@dataclasses.dataclass(frozen=True, slots=True)
class OneOf:
    """Layouts of one driver, told apart by their constants or sizes.

    Such as a layout for IPv4 and one for IPv6, whose first field says which; or the versions of a
    layout that grew.  The first one that fits is taken.

    Attributes:
        name: what it is called.
        layouts: at least one layout.
    """

    name: str
    layouts: Sequence[Layout]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layouts", tuple(self.layouts))
        if not self.layouts:
            raise ValueError(f"{self.name}: no layouts")

    def decode(self, context: ReadableBuffer) -> OriginalDestination:
        """As `Layout.decode`.  If none fits, the error is that of the layout that got furthest."""
        return self._first(lambda layout: layout.decode(context))

    def encode(self, destination: OriginalDestination) -> bytes:
        """As `Layout.encode`, in the first layout that can hold *destination*."""
        return self._first(lambda layout: layout.encode(destination))

    def _first(self, attempt: Callable[[Layout], _T]) -> _T:
        errors: list[ContextError] = []
        for layout in self.layouts:
            try:
                return attempt(layout)
            except ContextError as error:
                errors.append(error)
        raise max(errors, key=lambda error: error.offset)


WFPSAMPLER = Layout("wfpsampler", [sockaddr("destination"), sockaddr("source", optional=True)])
"""W70: Microsoft's WFPSampler, and what was modelled on it.  256 bytes."""

TUNLESS = Layout("tunless", [sockaddr("destination"), u64("process_id"), wchar("image_path", 260)])
"""W71: tunless.  656 bytes."""

LEAFSDK = Layout("leafsdk", [u64("id"), sockaddr("destination"), sockaddr("source", optional=True)])
"""W72: leafsdk.  264 bytes; what its first number counts is not published: fields["id"]."""

AZURE_GPA = Layout(
    "azure-gpa",
    [
        u32("logon_id"),
        u32("process_id"),
        u32("is_admin"),
        ipv4("destination_host"),
        port("destination_port"),
        padding(2),
    ],
)
"""W73: the Azure guest proxy agent on eBPF for Windows.  20 bytes."""

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {layout.name: layout for layout in (WFPSAMPLER, TUNLESS, LEAFSDK, AZURE_GPA)}
)
"""The layouts above, by name.  Your own need no entry: pass the object."""


# What to do with them.


def decode(context: ReadableBuffer, layout: Layout | OneOf | str) -> OriginalDestination:
    """Read a redirect context, any bytes-like object.

    *layout* is a Layout, a OneOf, or a name in LAYOUTS; a name that is not there is a LookupError.
    Raises ContextError if the context does not have that layout.
    """
    return _lookup(layout).decode(context)


def encode(destination: OriginalDestination, layout: Layout | OneOf | str) -> bytes:
    """Write the redirect context that a driver with this layout would attach.

    Raises ContextError if a value does not fit, LookupError for an unknown name.
    """
    return _lookup(layout).encode(destination)


def _lookup(layout: Layout | OneOf | str) -> Layout | OneOf:
    if not isinstance(layout, str):
        return layout
    try:
        return LAYOUTS[layout]
    except KeyError:
        raise LookupError(f"unknown layout {layout!r}; known are {', '.join(LAYOUTS)}") from None


def original_destination(
    sock: HasFileno | int, layout: Layout | OneOf | str = WFPSAMPLER
) -> OriginalDestination | None:
    """Where an accepted connection was going before it was redirected; None if it was not.

    From its redirect context if it has one; else from the option SO_ORIGINAL_DST (W05), which a
    container network policy leaves behind.  *sock* is an int handle or anything with fileno(); the
    option can only be asked of what has getsockopt() and family too, and only exists on Windows.

    Raises ContextError if the context does not have that layout, LookupError for an unknown name,
    and RedirectError where the query fails for another reason than that nothing was redirected.
    """
    from ._wfpioctl import query_redirect_context  # late: all else here is pure Python

    layout = _lookup(layout)
    try:
        context = query_redirect_context(sock)
    except (NotRedirectedError, InvalidArgumentError):  # W17
        context = b""
    if context:  # W16: b"" is a redirected connection without a context
        return layout.decode(context)
    return _so_original_dst(sock)


def _so_original_dst(sock: Any) -> OriginalDestination | None:
    if sys.platform != "win32" or not hasattr(sock, "getsockopt"):
        return None
    levels = [(socket.IPPROTO_IP, _SOCKADDR_IN_SIZE)]
    if sock.family == socket.AF_INET6:  # it may be a dual-stack socket
        levels.insert(0, (socket.IPPROTO_IPV6, _SOCKADDR_IN6_SIZE))
    for level, size in levels:
        try:
            answer = sock.getsockopt(level, SO_ORIGINAL_DST, _SOCKADDR_STORAGE_SIZE)
        except OSError as error:
            # Not redirected; or a Windows that does not know the option yet.
            if error.winerror not in (WSAEINVAL, WSAENOPROTOOPT):
                raise
        else:
            layout = Layout("SO_ORIGINAL_DST", [sockaddr("destination", size)], allow_trailing=True)
            return layout.decode(answer)
    return None
