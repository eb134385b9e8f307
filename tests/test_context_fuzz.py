"""Hostile contexts: random and mutated bytes into every decoder, checked against a second opinion.

For every input the decoder must either raise ContextError or give exactly what an independent
reading of the layout (struct and ipaddress, written out by hand below) gives; where one refuses,
so must the other.  A few thousand inputs a decoder by default, 100,000 marked slow.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from wfpioctl.context import (
    LAYOUTS,
    ContextError,
    Layout,
    OneOf,
    OriginalDestination,
    ipv4,
    ipv6,
    padding,
    port,
    raw,
    sockaddr,
    u8,
    u16,
    u32,
    wchar,
)

# Layouts of one's own, which between them use every kind of field.
PRIVATE = Layout(
    "private",
    [
        raw("magic", 4, equals=b"WFPR"),
        u16("version", equals=0x0103),
        port("destination_port", host_order=True),
        ipv4("destination_host", host_order=True),
        sockaddr("source", 28, optional=True),
        u32("process_id"),
        wchar("image_path", 6),
        raw("tag", 4),
        padding(4),
    ],
    byte_order="big",
    allow_trailing=True,
)
UNION = OneOf(
    "union",
    [
        Layout(
            "four",
            [u8("v", equals=4), ipv4("destination_host"), padding(12), port("destination_port")],
        ),
        Layout("six", [u8("v", equals=6), ipv6("destination_host"), port("destination_port")]),
    ],
)

Answer = tuple[Any, ...]
"""Destination, source, process id, image path, fields; hosts as packed addresses."""


class RefusedError(Exception):
    pass


def read_sockaddr(data: bytes, *, optional: bool) -> Answer | None:
    family, port = struct.unpack_from("<H", data)[0], struct.unpack_from(">H", data, 2)[0]
    match family:
        case 0 if optional:
            return None
        case 2:
            return data[4:8], port
        case 23:
            flow = struct.unpack_from(">I", data, 4)[0]
            if flow < 2**20:
                return data[8:24], port, flow, struct.unpack_from("<I", data, 24)[0]
    raise RefusedError


def read_text(data: bytes) -> str:
    units = [data[at : at + 2] for at in range(0, len(data), 2)]
    if b"\0\0" in units:
        units = units[: units.index(b"\0\0")]
    return b"".join(units).decode("utf-16-le", "surrogatepass")


def read_wfpsampler(data: bytes) -> Answer:
    there = read_sockaddr(data[:128], optional=False)
    return there, read_sockaddr(data[128:], optional=True), None, None, {}


def read_tunless(data: bytes) -> Answer:
    there = read_sockaddr(data[:128], optional=False)
    return there, None, struct.unpack_from("<Q", data, 128)[0], read_text(data[136:]), {}


def read_leafsdk(data: bytes) -> Answer:
    number = struct.unpack_from("<Q", data)[0]
    there = read_sockaddr(data[8:136], optional=False)
    return there, read_sockaddr(data[136:], optional=True), None, None, {"id": number}


def read_azure_gpa(data: bytes) -> Answer:
    logon, process, admin = struct.unpack_from("<III", data)
    port = struct.unpack_from(">H", data, 16)[0]
    return (data[12:16], port), None, process, None, {"logon_id": logon, "is_admin": admin}


def read_private(data: bytes) -> Answer:
    if data[:6] != b"WFPR\x01\x03":
        raise RefusedError
    port, host = struct.unpack_from(">H4s", data, 6)
    source = read_sockaddr(data[12:40], optional=True)
    process = struct.unpack_from(">I", data, 40)[0]
    return (host, port), source, process, read_text(data[44:56]), {"tag": data[56:60]}


def read_union(data: bytes) -> Answer:
    port = struct.unpack_from(">H", data, 17)[0]
    match data[0]:
        case 4:
            return (data[1:5], port), None, None, None, {}
        case 6:
            return (data[1:17], port, 0, 0), None, None, None, {}
    raise RefusedError


Decoder = Layout | OneOf
# By name: the decoder, its size, whether more may follow, and the second opinion.
DECODERS: dict[str, tuple[Decoder, int, bool, Callable[[bytes], Answer]]] = {
    "wfpsampler": (LAYOUTS["wfpsampler"], 256, False, read_wfpsampler),
    "tunless": (LAYOUTS["tunless"], 656, False, read_tunless),
    "leafsdk": (LAYOUTS["leafsdk"], 264, False, read_leafsdk),
    "azure-gpa": (LAYOUTS["azure-gpa"], 20, False, read_azure_gpa),
    "private": (PRIVATE, 64, True, read_private),
    "union": (UNION, 19, False, read_union),
}


def packed(address: Any) -> Any:
    return address and (ipaddress.ip_address(address[0]).packed, *address[1:])


def as_answer(got: OriginalDestination) -> Answer:
    ends = packed(got.address), packed(got.source)
    return (*ends, got.process_id, got.image_path, dict(got.fields))


def valid_context(decoder: Decoder, rng: random.Random) -> bytes:
    """A context of this layout with random values, to be taken as it is or mutated."""
    layout = rng.choice(decoder.layouts) if isinstance(decoder, OneOf) else decoder
    data = b""
    for field in layout.fields:
        if isinstance(field.equals, bytes):
            data += field.equals
        elif isinstance(field.equals, int):
            data += field.equals.to_bytes(field.size, layout.byte_order)
        elif field.kind == "sockaddr":
            start = bytes([rng.choice([2, 23]), 0, *rng.randbytes(2), 0, 0])
            data += start + rng.randbytes(field.size - len(start))
        else:
            data += rng.randbytes(field.size)
    return data


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of the kinds that break parsers."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(changed)) if changed else 0
        match rng.randrange(8):
            case 0 if changed:
                changed[at] ^= 1 << rng.randrange(8)
            case 1 if changed:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xD8, 0xDC, 0xFF])
            case 2:
                del changed[at:]
            case 3:
                del changed[at : at + rng.randint(1, 8)]
            case 4:
                changed[at:at] = rng.randbytes(rng.randint(1, 8))
            case 5:
                changed += rng.randbytes(rng.choice([1, 2, 4, 128]))
            case 6:  # another family, where there is likely to be one
                at = rng.choice([0, 8, 12, 128, 136])
                changed[at : at + 2] = struct.pack("<H", rng.choice([0, 1, 2, 10, 23, 30, 5888]))
            case 7:
                other = rng.randrange(len(changed) + 1)
                changed[at : at + 16] = changed[other : other + 16]
    return bytes(changed)


def hostile(decoder: Decoder, rng: random.Random) -> bytes:
    size = DECODERS[decoder.name][1]
    match rng.randrange(8):
        case 0:
            return rng.randbytes(rng.randint(0, 2 * size))
        case 1:
            return rng.randbytes(size)
        case 2:
            return bytes([rng.randrange(256)]) * size
        case 3:
            return valid_context(decoder, rng)
        case _:
            return mutate(valid_context(decoder, rng), rng)


def second_opinion(name: str, data: bytes) -> Answer | None:
    _, size, trailing, read = DECODERS[name]
    if len(data) < size or (len(data) > size and not trailing):
        return None
    try:
        return read(data[:size])
    except RefusedError:
        return None


def outcome(decoder: Decoder, data: bytes) -> OriginalDestination | ContextError:
    try:
        return decoder.decode(data)
    except ContextError as error:
        return error


def check(name: str, data: bytes) -> bool:
    """Whether *data* was decoded; both ways, the answer must be the right one."""
    decoder, size, _, _ = DECODERS[name]
    got = outcome(decoder, data)
    expected = second_opinion(name, data)
    if isinstance(got, ContextError):
        assert expected is None, f"{data.hex()}: {got}"
        assert 0 <= got.offset <= size
        assert got.expected
        assert got.found
        return False
    assert as_answer(got) == expected, data.hex()
    assert decoder.decode(decoder.encode(got)) == got, data.hex()
    return True


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "count", [3_000, pytest.param(100_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
def test_hostile_contexts_give_the_right_answer_or_the_documented_error(
    name: str, count: int
) -> None:
    rng = random.Random(f"{name} {count}")
    decoder = DECODERS[name][0]
    accepted = sum(check(name, hostile(decoder, rng)) for _ in range(count))
    # The inputs reach both outcomes often enough to mean something.
    assert count // 10 < accepted < count * 9 // 10


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_known_layout_is_fuzzed(name: str) -> None:
    assert DECODERS[name][0] is LAYOUTS[name]
