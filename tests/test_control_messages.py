"""The parser of control buffers: what it finds, and that no input gives a wrong answer."""

import random
import socket
import struct
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wfpioctl import _wfpioctl

RECORDS, CONTEXT = 60, 70  # W04

WORD = struct.calcsize("N")
HEADER = struct.Struct("Nii")
DATA_OFFSET = -(-HEADER.size // WORD) * WORD


def entry(level: int, kind: int, data: bytes, length: int | None = None) -> bytes:
    """A control message as Windows lays it out; ``length`` is what its header claims."""
    size = DATA_OFFSET + len(data)
    header = HEADER.pack(size if length is None else length, level, kind).ljust(DATA_OFFSET, b"\0")
    return header + data + bytes(-size % WORD)


class Parsed(NamedTuple):
    flags: int
    records: bytes | None
    context: bytes | None


def expected(control: bytes, flags: int = 0) -> Parsed:
    """What parse_control() must say, from the layout's definition."""
    found: dict[int, bytes] = {}
    offset = 0
    while len(control) - offset >= HEADER.size:
        length, level, kind = HEADER.unpack_from(control, offset)
        length = length or DATA_OFFSET
        if length < DATA_OFFSET or offset + length > len(control):
            flags |= socket.MSG_CTRUNC
            break
        following = offset + -(-length // WORD) * WORD
        data = control[offset + DATA_OFFSET : offset + length]
        whole = not flags & socket.MSG_CTRUNC or len(control) - following >= HEADER.size
        if level in (socket.IPPROTO_IP, socket.IPPROTO_IPV6) and data and whole:
            found.setdefault(kind, data)
        offset = following
    return Parsed(flags, found.get(RECORDS), found.get(CONTEXT))


LEVELS = [socket.IPPROTO_IP, socket.IPPROTO_IPV6]


@pytest.mark.parametrize("level", LEVELS)
def test_W40_records_and_context_are_found_at_either_level(level: int) -> None:
    control = entry(level, RECORDS, b"records") + entry(level, CONTEXT, b"context")
    assert _wfpioctl.parse_control(control) == (0, b"records", b"context")


def test_unknown_entries_are_skipped() -> None:
    control = (
        entry(socket.IPPROTO_IP, 19, b"pktinfo")
        + entry(socket.SOL_SOCKET, RECORDS, b"another level")
        + entry(socket.IPPROTO_IP, RECORDS, b"records")
    )
    assert _wfpioctl.parse_control(control) == (0, b"records", None)


@pytest.mark.parametrize("length", [None, 0])
def test_W43_an_empty_entry_is_skipped_and_ends_nothing(length: int | None) -> None:
    empty = entry(socket.IPPROTO_IP, RECORDS, b"", length)
    assert _wfpioctl.parse_control(empty) == (0, None, None)
    control = empty + entry(socket.IPPROTO_IP, RECORDS, b"records")
    assert _wfpioctl.parse_control(control) == (0, b"records", None)


def test_the_first_of_two_entries_counts() -> None:
    control = entry(0, RECORDS, b"first") + entry(0, RECORDS, b"second")
    assert _wfpioctl.parse_control(control) == (0, b"first", None)


@pytest.mark.parametrize("length", [1, DATA_OFFSET - 1, DATA_OFFSET + 9, (1 << 8 * WORD) - 1])
def test_an_impossible_length_is_reported_and_what_precedes_it_counts(length: int) -> None:
    control = entry(0, CONTEXT, b"context") + entry(0, RECORDS, b"records!", length)
    assert _wfpioctl.parse_control(control) == (socket.MSG_CTRUNC, None, b"context")


@pytest.mark.parametrize("data", [b"records", b"records!"])
def test_W25_records_that_may_have_been_cut_are_not_given(data: bytes) -> None:
    context = entry(0, CONTEXT, b"context")
    flags = socket.MSG_CTRUNC
    assert _wfpioctl.parse_control(entry(0, RECORDS, data), flags) == (flags, None, None)
    control = entry(0, RECORDS, data) + context
    assert _wfpioctl.parse_control(control, flags) == (flags, data, None)


def test_no_control_data_is_nothing() -> None:
    assert _wfpioctl.parse_control(b"") == (0, None, None)
    assert _wfpioctl.parse_control(bytes(HEADER.size - 1)) == (0, None, None)


controls = st.lists(
    st.builds(
        entry,
        st.sampled_from([*LEVELS, 1, -1]),
        st.sampled_from([RECORDS, CONTEXT, 19, -1]),
        st.binary(max_size=40),
        st.none() | st.integers(0, 80) | st.just((1 << 8 * WORD) - 1),
    ),
    max_size=5,
).map(b"".join)
flag_values = st.sampled_from([0, int(socket.MSG_CTRUNC)])


@given(controls | st.binary(max_size=200), st.integers(0, 40), flag_values)
def test_any_control_buffer_gives_the_right_answer(control: bytes, cut: int, flags: int) -> None:
    control = control[: len(control) - cut]
    assert _wfpioctl.parse_control(control, flags) == expected(control, flags)


@pytest.mark.slow
def test_100_000_hostile_control_buffers_give_the_right_answer() -> None:
    rng = random.Random(60_70)
    for _ in range(100_000):
        if rng.random() < 0.2:
            control = bytearray(rng.randbytes(rng.randrange(120)))
        else:
            control = bytearray()
            for _ in range(rng.randrange(5)):
                kind = rng.choice([RECORDS, CONTEXT, 19])
                control += entry(rng.choice(LEVELS), kind, rng.randbytes(rng.randrange(30)))
        for _ in range(rng.randrange(4)):
            if control:
                control[rng.randrange(len(control))] = rng.choice([0, 1, 16, 17, 24, 255])
        del control[len(control) - rng.choice([0, 0, 1, 7, 16]) :]
        flags = rng.choice([0, int(socket.MSG_CTRUNC)])
        data = bytes(control)
        assert _wfpioctl.parse_control(data, flags) == expected(data, flags), data.hex()
