"""wfpioctl.context: decoders and encoders of the context layouts W70 to W75, and W05."""

from __future__ import annotations

import array
import pickle
import socket
import struct
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import wfpioctl
from wfpioctl import context as context_module
from wfpioctl.constants import (
    ERROR_NOT_FOUND,
    FWP_E_NOT_FOUND,
    WSAEINVAL,
    WSAENOPROTOOPT,
    WSAENOTCONN,
    WSAENOTSOCK,
    WSAEOPNOTSUPP,
)
from wfpioctl.context import (
    AZURE_GPA,
    LAYOUTS,
    LEAFSDK,
    TUNLESS,
    WFPSAMPLER,
    Address,
    ContextError,
    Field,
    Layout,
    OneOf,
    OriginalDestination,
    decode,
    encode,
    ipv4,
    ipv6,
    original_destination,
    padding,
    port,
    raw,
    sockaddr,
    u8,
    u16,
    u32,
    u64,
    wchar,
)
from wfpioctl.simulator import Connection, Engine, Scripted, Step

# Sockaddrs as Windows lays them out, spelled out byte by byte: nothing of the module under test.
V4 = bytes.fromhex("0200 01bb c0000207") + bytes(120)  # 192.0.2.7:443
V4_ADDRESS = ("192.0.2.7", 443)
V6 = bytes.fromhex("1700 1f90 00012345 20010db8000000000000000000000009 07000000") + bytes(
    100
)  # family 23, [2001:db8::9]:8080, flow label 0x12345, scope 7
V6_ADDRESS = ("2001:db8::9", 8080, 0x12345, 7)
NOTHING = bytes(128)

MAGIC = Layout(
    "acme",
    [
        raw("magic", 4, equals=b"ACME"),
        u16("version", equals=2),
        port("destination_port", host_order=True),
        ipv4("destination_host"),
        ipv4("source_host", host_order=True),
        port("source_port"),
        padding(2),
        u32("process_id"),
        wchar("image_path", 8),
        u8("flags"),
        raw("tag", 3),
    ],
)
MAGIC_CONTEXT = (
    b"ACME\x02\x00\x50\x00"
    + bytes([198, 51, 100, 1])
    + bytes([9, 2, 0, 192])
    + b"\xc0\x00\xee\xee"
    + (4711).to_bytes(4, "little")
    + "a.exe".encode("utf-16-le").ljust(16, b"\0")
    + b"\x81xyz"
)
UNION_V4 = Layout(
    "union-4",
    [u8("version", equals=4), ipv4("destination_host"), padding(12), port("destination_port")],
)
UNION_V6 = Layout(
    "union-6",
    [u8("version", equals=6), ipv6("destination_host"), port("destination_port")],
)
UNION = OneOf("union", [UNION_V4, UNION_V6])


def error_of(context: bytes, layout: Layout | OneOf | str) -> ContextError:
    with pytest.raises(ContextError) as caught:
        decode(context, layout)
    return caught.value


# The known layouts.


def test_W70_wfpsampler_is_the_original_remote_and_the_original_local_address() -> None:
    got = decode(V4 + V6, "wfpsampler")
    assert got == OriginalDestination(V4_ADDRESS, source=V6_ADDRESS)
    assert WFPSAMPLER.size == 256


def test_W70_a_local_address_that_was_not_bound_yet_is_no_source() -> None:
    assert decode(V4 + NOTHING, WFPSAMPLER) == OriginalDestination(V4_ADDRESS)


def test_W71_tunless_has_a_destination_a_process_and_its_image() -> None:
    path = "\\device\\harddiskvolume3\\app.exe"
    context = V6 + struct.pack("<Q", 4711) + path.encode("utf-16-le").ljust(520, b"\0")
    got = decode(context, "tunless")
    assert got == OriginalDestination(V6_ADDRESS, process_id=4711, image_path=path)
    assert TUNLESS.size == 656


def test_W72_leafsdk_has_a_number_before_its_two_addresses() -> None:
    got = decode(struct.pack("<Q", 2**63 + 1) + V4 + V4, "leafsdk")
    assert got == OriginalDestination(V4_ADDRESS, source=V4_ADDRESS, fields={"id": 2**63 + 1})
    assert LEAFSDK.size == 264


def test_W73_azure_gpa_has_its_port_in_network_order_in_the_low_half() -> None:
    context = struct.pack("<III4sI", 999, 4711, 1, bytes([168, 63, 129, 16]), 0x5000)
    got = decode(context, "azure-gpa")
    assert got.address == ("168.63.129.16", 80)
    assert got.process_id == 4711
    assert got.fields == {"logon_id": 999, "is_admin": 1}
    assert AZURE_GPA.size == 20


def test_W74_what_an_ebpf_program_passed_is_described_in_place() -> None:
    program = Layout(
        "bpf", [ipv4("destination_host"), port("destination_port"), padding(2), u64("cookie")]
    )
    got = decode(bytes([192, 0, 2, 7, 1, 187, 0, 0]) + bytes([5, *bytes(7)]), program)
    assert got == OriginalDestination(V4_ADDRESS, fields={"cookie": 5})


def test_W75_magic_version_and_host_order_numbers() -> None:
    assert decode(MAGIC_CONTEXT, MAGIC) == OriginalDestination(
        ("198.51.100.1", 80),
        source=("192.0.2.9", 49152),
        process_id=4711,
        image_path="a.exe",
        fields={"flags": 0x81, "tag": b"xyz"},
    )


def test_W75_a_big_endian_layout_turns_its_integers_but_not_its_sockaddrs() -> None:
    layout = Layout("big", [u32("a"), sockaddr("destination", 16)], byte_order="big")
    got = decode(b"\0\0\1\2" + V4[:16], layout)
    assert got == OriginalDestination(V4_ADDRESS, fields={"a": 0x102})


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_known_layout_goes_by_its_name(name: str) -> None:
    assert LAYOUTS[name].name == name
    context = encode(OriginalDestination(V4_ADDRESS), name)
    assert decode(context, name) == decode(context, LAYOUTS[name])


def test_an_unknown_name_is_a_lookup_error_that_lists_the_known_ones() -> None:
    with pytest.raises(LookupError, match="unknown layout 'nope'; known are wfpsampler, tunless"):
        decode(b"", "nope")
    with pytest.raises(LookupError, match="unknown layout 'nope'"):
        encode(OriginalDestination(V4_ADDRESS), "nope")


# The result.


def test_family_is_the_running_systems_whatever_windows_calls_it() -> None:
    v6 = decode(V6 + NOTHING, WFPSAMPLER)
    assert V6[0] == 23
    assert v6.family is socket.AF_INET6
    assert decode(V4 + NOTHING, WFPSAMPLER).family is socket.AF_INET
    assert (v6.host, v6.port) == V6_ADDRESS[:2]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_address_is_what_connect_takes(family: socket.AddressFamily) -> None:
    host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
    with socket.socket(family) as listener, socket.socket(family) as client:
        try:
            listener.bind((host, 0))
        except OSError:
            pytest.skip(f"no {family.name} here")
        listener.listen()
        context = encode(OriginalDestination(listener.getsockname()), WFPSAMPLER)
        destination = decode(context, WFPSAMPLER)
        assert destination.address == listener.getsockname()
        client.connect(destination.address)


def test_an_original_destination_can_be_hashed_and_pickled() -> None:
    one = OriginalDestination(V4_ADDRESS, fields={"id": 1})
    assert pickle.loads(pickle.dumps(one)) == one
    assert len({one, OriginalDestination(V4_ADDRESS, fields={"id": 1})}) == 1
    assert one != OriginalDestination(V4_ADDRESS, fields={"id": 2})


def test_any_bytes_like_object_is_decoded() -> None:
    context = V4 + V6
    backwards = memoryview(context[::-1])[::-1]  # not contiguous
    for given_as in (
        bytearray(context),
        memoryview(context),
        array.array("I", context),
        backwards,
    ):
        assert decode(given_as, WFPSAMPLER).address == V4_ADDRESS


def test_what_is_not_bytes_like_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        decode(256, WFPSAMPLER)  # type: ignore[arg-type]


# What is wrong is said: where, what was expected, what was found.


def test_a_context_error_has_its_parts_and_survives_pickling() -> None:
    error = error_of(V4 + b"\x0a" + bytes(127), WFPSAMPLER)
    assert isinstance(error, ValueError)
    for one in error, pickle.loads(pickle.dumps(error)):
        assert (one.layout, one.field, one.offset) == ("wfpsampler", "source", 128)
        assert (one.expected, one.found) == ("an address family of 2 or 23", "10")
        assert one.args == (one.layout, one.field, one.offset, one.expected, one.found)
        assert str(one) == (
            "wfpsampler: source at offset 128: expected an address family of 2 or 23, found 10"
        )


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), MAGIC, UNION_V4], ids=lambda x: x.name)
def test_every_other_length_is_an_error(layout: Layout) -> None:
    valid = encode(OriginalDestination(V4_ADDRESS), layout)
    assert len(valid) == layout.size
    for length in range(layout.size):
        assert str(error_of(valid[:length], layout)) == (
            f"{layout.name}: context at offset {length}: "
            f"expected {layout.size} bytes, found {length}"
        )
    error = error_of(valid + b"\0", layout)
    assert error.offset == layout.size
    assert error.found == f"{layout.size + 1}"


def test_trailing_bytes_are_allowed_where_the_layout_says_so() -> None:
    layout = Layout("grows", [sockaddr("destination", 16)], allow_trailing=True)
    assert decode(V4, layout).address == V4_ADDRESS
    assert "expected at least 16 bytes, found 15" in str(error_of(V4[:15], layout))


@pytest.mark.parametrize("family", [1, 10, 30, 0x0200, 0x1700, 0xFFFF])
def test_W70_other_families_are_errors_among_them_the_ipv6_of_other_systems(family: int) -> None:
    error = error_of(struct.pack("<H", family) + V4[2:] + NOTHING, WFPSAMPLER)
    assert (error.field, error.offset, error.found) == ("destination", 0, str(family))


def test_no_destination_is_an_error() -> None:
    error = error_of(NOTHING + V4, WFPSAMPLER)
    assert (error.field, error.offset, error.found) == ("destination", 0, "0")


def test_an_ipv6_address_needs_room_for_it() -> None:
    layout = Layout("small", [u64("id"), sockaddr("destination", 27)])
    error = error_of(bytes(8) + V6[:27], layout)
    assert (error.offset, error.expected, error.found) == (8, "an address family of 2", "23")
    exact = Layout("exact", [sockaddr("destination", 28)])
    assert decode(V6[:28], exact).address == V6_ADDRESS
    assert error_of(V4[1:29], exact).expected == "an address family of 2 or 23"


def test_a_flow_label_that_connect_would_refuse_is_an_error() -> None:
    bad = V6[:4] + b"\x00\x10\x00\x00" + V6[8:]
    error = error_of(V4 + bad, WFPSAMPLER)
    assert (error.field, error.offset) == ("source", 132)
    assert str(error).endswith("expected a flow label of 20 bits, found 0x100000")


def test_W75_a_wrong_magic_or_version_is_an_error() -> None:
    error = error_of(b"ACMF" + MAGIC_CONTEXT[4:], MAGIC)
    assert str(error) == "acme: magic at offset 0: expected b'ACME', found b'ACMF'"
    error = error_of(b"ACME\x03" + MAGIC_CONTEXT[5:], MAGIC)
    assert str(error) == "acme: version at offset 4: expected 2, found 3"


@pytest.mark.parametrize(("integer", "size"), [(u8, 1), (u16, 2), (u32, 4), (u64, 8)])
def test_W75_an_integer_of_any_size_can_be_a_constant(
    integer: Callable[..., Field], size: int
) -> None:
    layout = Layout("constant", [integer("version", equals=7), sockaddr("destination", 16)])
    context = bytes([7]).ljust(size, b"\0") + V4[:16]
    assert encode(OriginalDestination(V4_ADDRESS), layout) == context
    assert decode(context, layout) == OriginalDestination(V4_ADDRESS)
    error = error_of(b"\x08" + context[1:], layout)
    assert str(error) == "constant: version at offset 0: expected 7, found 8"


# Text.


def text_context(units: bytes) -> OriginalDestination:
    layout = Layout("text", [sockaddr("destination", 16), wchar("image_path", 4)])
    return decode(V4[:16] + units, layout)


@pytest.mark.parametrize(
    ("units", "text"),
    [
        ("0000 0000 0000 0000", ""),
        ("6100 0000 6200 00d8", "a"),  # what follows the NUL is not looked at
        ("6100 6200 6300 6400", "abcd"),  # no NUL: all of it
        ("0061 6100 0000 0000", "\u6100a"),  # a zero byte is not a NUL unit
        ("3dd8 00de 0000 0000", "\N{GRINNING FACE}"),
        ("00d8 6100 0000 0000", "\ud800a"),  # lone surrogates, first, last and alone
        ("6100 6100 6100 00d8", "aaa\ud800"),
        ("00dc 0000 0000 0000", "\udc00"),
    ],
)
def test_W71_text_ends_at_the_first_nul_and_lone_surrogates_pass(units: str, text: str) -> None:
    assert text_context(bytes.fromhex(units)).image_path == text


# Encoding.

v4_addresses: st.SearchStrategy[Address] = st.tuples(
    st.binary(min_size=4, max_size=4).map(socket.inet_ntoa), st.integers(0, 0xFFFF)
)
v6_addresses: st.SearchStrategy[Address] = st.tuples(
    st.binary(min_size=16, max_size=16).map(lambda ip: socket.inet_ntop(socket.AF_INET6, ip)),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFF),
    st.integers(0, 0xFFFFFFFF),
)
addresses = v4_addresses | v6_addresses


def texts(length: int) -> st.SearchStrategy[str]:
    """What WCHAR[length] can hold and gives back: surrogates only where UTF-16 has no pair."""
    units = st.binary(max_size=2 * length).map(lambda data: data[: len(data) & ~1])
    return units.map(lambda data: data.decode("utf-16-le", "surrogatepass").partition("\0")[0])


u32s = st.integers(0, 2**32 - 1)
u64s = st.integers(0, 2**64 - 1)
destinations: dict[str, st.SearchStrategy[OriginalDestination]] = {
    "wfpsampler": st.builds(OriginalDestination, addresses, st.none() | addresses),
    "tunless": st.builds(OriginalDestination, addresses, process_id=u64s, image_path=texts(260)),
    "leafsdk": st.builds(
        OriginalDestination,
        addresses,
        st.none() | addresses,
        fields=st.fixed_dictionaries({"id": u64s}),
    ),
    "azure-gpa": st.builds(
        OriginalDestination,
        v4_addresses,
        process_id=u32s,
        fields=st.fixed_dictionaries({"logon_id": u32s, "is_admin": u32s}),
    ),
}


def test_every_known_layout_has_its_round_trip() -> None:
    assert destinations.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", LAYOUTS)
@given(data=st.data())
def test_decoding_is_the_inverse_of_encoding(name: str, data: st.DataObject) -> None:
    destination = data.draw(destinations[name])
    context = encode(destination, name)
    assert decode(context, name) == destination
    assert encode(decode(context, name), name) == context


@given(
    st.builds(
        OriginalDestination,
        v4_addresses,
        v4_addresses,
        process_id=u32s,
        image_path=texts(8),
        fields=st.fixed_dictionaries(
            {"flags": st.integers(0, 255), "tag": st.binary(min_size=3, max_size=3)}
        ),
    ),
    st.sampled_from(["little", "big"]),
)
def test_W75_ones_own_layout_round_trips_in_both_byte_orders(
    destination: OriginalDestination, byte_order: str
) -> None:
    layout = Layout("acme", MAGIC.fields, byte_order=byte_order)  # type: ignore[arg-type]
    assert layout.decode(layout.encode(destination)) == destination


def test_encoding_is_byte_for_byte_what_a_driver_writes() -> None:
    assert encode(OriginalDestination(V4_ADDRESS, V6_ADDRESS), WFPSAMPLER) == V4 + V6
    zeroed = MAGIC_CONTEXT.replace(b"\xee\xee", b"\0\0")
    assert encode(decode(MAGIC_CONTEXT, MAGIC), MAGIC) == zeroed


def test_an_ipv6_address_may_be_given_as_host_and_port() -> None:
    context = encode(OriginalDestination(("::1", 80), ("::2", 81)), WFPSAMPLER)
    assert decode(context, WFPSAMPLER).address == ("::1", 80, 0, 0)
    assert decode(context, WFPSAMPLER).source == ("::2", 81, 0, 0)


def test_what_the_destination_does_not_say_is_zeros() -> None:
    context = encode(OriginalDestination(V4_ADDRESS), TUNLESS)
    assert context == V4 + bytes(8 + 520)


def test_an_attribute_without_a_field_is_left_out() -> None:
    rich = OriginalDestination(V4_ADDRESS, V4_ADDRESS, 7, "x")
    assert encode(rich, WFPSAMPLER) == V4 + V4


@pytest.mark.parametrize(
    ("destination", "layout", "message"),
    [
        (
            OriginalDestination(("example.com", 80)),
            WFPSAMPLER,
            "wfpsampler: destination at offset 4: "
            "expected a numeric IPv4 address, found 'example.com'",
        ),
        (
            OriginalDestination(("fe80::1%eth0", 80)),
            WFPSAMPLER,
            "destination at offset 8: expected a numeric IPv6 address, found 'fe80::1%eth0'",
        ),
        (
            OriginalDestination(("1.2.3.4\0", 80)),
            AZURE_GPA,
            r"destination_host at offset 12: expected a numeric IPv4 address, found '1.2.3.4\x00'",
        ),
        (
            OriginalDestination(("::1", 80)),
            AZURE_GPA,
            "destination_host at offset 12: expected a numeric IPv4 address, found '::1'",
        ),
        (
            OriginalDestination(("1.2.3.4", 80, 0, 0)),
            WFPSAMPLER,
            "destination at offset 8: expected a numeric IPv6 address, found '1.2.3.4'",
        ),
        (
            OriginalDestination(V4_ADDRESS, ("1.2.3.4", 65536)),
            WFPSAMPLER,
            "source at offset 130: expected an integer of 2 bytes, found 65536",
        ),
        (
            OriginalDestination(("1.2.3.4", -1)),
            AZURE_GPA,
            "destination_port at offset 16: expected an integer of 2 bytes, found -1",
        ),
        (
            OriginalDestination(("::1", 1, 1 << 20, 0)),
            WFPSAMPLER,
            "destination at offset 4: expected a flow label of 20 bits, found 0x100000",
        ),
        (
            OriginalDestination(("::1", 1, -1, 0)),
            WFPSAMPLER,
            "destination at offset 4: expected an integer of 4 bytes, found -1",
        ),
        (
            OriginalDestination(("::1", 65536)),
            WFPSAMPLER,
            "destination at offset 2: expected an integer of 2 bytes, found 65536",
        ),
        (
            OriginalDestination(("::1", 1, 0, 1 << 32)),
            WFPSAMPLER,
            "destination at offset 24: expected an integer of 4 bytes, found 4294967296",
        ),
        (
            OriginalDestination(("::1", 1)),
            Layout("small", [sockaddr("destination", 16)]),
            "small: destination at offset 0: expected an address of family 2, found ('::1', 1)",
        ),
        (
            OriginalDestination(V4_ADDRESS, None),
            Layout("both", [sockaddr("destination"), sockaddr("source")]),
            "both: source at offset 128: expected an address of family 2 or 23, found None",
        ),
        (
            OriginalDestination((b"1.2.3.4", 80)),  # type: ignore[arg-type]
            AZURE_GPA,
            "destination_host at offset 12: expected a numeric IPv4 address, found b'1.2.3.4'",
        ),
        (
            OriginalDestination(V4_ADDRESS, fields={"": 1}),
            AZURE_GPA,
            "azure-gpa:  at offset 20: expected no field of this name, found 1",
        ),
        (
            OriginalDestination(V4_ADDRESS, process_id="7"),  # type: ignore[arg-type]
            TUNLESS,
            "process_id at offset 128: expected an integer of 8 bytes, found '7'",
        ),
        (
            OriginalDestination(V4_ADDRESS, image_path="x" * 261),
            TUNLESS,
            "tunless: image_path at offset 136: "
            "expected text of at most 260 UTF-16 units, without a NUL, found 'xxxx",
        ),
        (
            OriginalDestination(V4_ADDRESS, image_path="a\0b"),
            TUNLESS,
            r"without a NUL, found 'a\x00b'",
        ),
        (
            OriginalDestination(V4_ADDRESS, fields={"tag": b"four"}),
            MAGIC,
            "acme: tag at offset 41: expected 3 bytes, found b'four'",
        ),
        (
            OriginalDestination(V4_ADDRESS, fields={"logonid": 1}),
            AZURE_GPA,
            "azure-gpa: logonid at offset 20: expected no field of this name, found 1",
        ),
        (
            OriginalDestination(V4_ADDRESS, fields={"magic": b"ACME"}),
            MAGIC,
            "acme: magic at offset 44: expected no field of this name, found b'ACME'",
        ),
        (
            OriginalDestination(V4_ADDRESS, fields={"process_id": 1}),
            AZURE_GPA,
            "azure-gpa: process_id at offset 20: expected no field of this name, found 1",
        ),
    ],
)
def test_what_does_not_fit_is_an_error(
    destination: OriginalDestination, layout: Layout, message: str
) -> None:
    with pytest.raises(ContextError) as caught:
        encode(destination, layout)
    assert message in str(caught.value)


def test_no_message_is_longer_than_a_few_lines() -> None:
    with pytest.raises(ContextError) as caught:
        encode(OriginalDestination(V4_ADDRESS, image_path="x" * 10**6), TUNLESS)
    assert len(str(caught.value)) < 300


# Several layouts of one driver.


def test_W75_the_layout_whose_constants_fit_is_taken() -> None:
    four = b"\x04" + V4[4:8] + bytes(12) + b"\x01\xbb"
    six = b"\x06" + V6[8:24] + b"\x1f\x90"
    assert decode(four, UNION) == OriginalDestination(V4_ADDRESS)
    assert decode(six, UNION) == OriginalDestination(("2001:db8::9", 8080, 0, 0))
    assert encode(decode(four, UNION), UNION) == four
    assert encode(decode(six, UNION), UNION) == six


def test_W75_the_error_is_that_of_the_layout_that_got_furthest() -> None:
    assert str(error_of(b"\x05" + bytes(18), UNION)) == (
        "union-4: version at offset 0: expected 4, found 5"
    )
    newer = Layout("v2", [u8("version", equals=2), sockaddr("destination")])
    older = Layout("v1", [u8("version", equals=1), padding(3), sockaddr("destination", 125)])
    error = error_of(b"\x01\0\0\0\x07" + bytes(124), OneOf("both", [newer, older]))
    assert (
        str(error) == "v1: destination at offset 4: expected an address family of 2 or 23, found 7"
    )


# Layouts that make no sense are refused when they are written, not when a context comes.

DESTINATION = sockaddr("destination")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ([], "no field says what the destination is"),
        ([sockaddr("remote")], "no field says what the destination is"),
        ([u8("source"), DESTINATION], r"source cannot be uint\[1\]"),
        ([ipv4("destination_host")], "needs destination, or destination_host and destination_port"),
        ([DESTINATION, port("destination_port")], "needs destination, or destination_host"),
        ([DESTINATION, ipv4("source_host")], "needs source, or source_host and source_port"),
        ([ipv4("destination_host"), u32("destination_port")], r"cannot be uint\[4\]"),
        ([DESTINATION, u64("image_path")], r"image_path cannot be uint\[8\]"),
        ([DESTINATION, u32("process_id", equals=4)], "process_id cannot be a constant"),
        ([sockaddr("destination", optional=True)], "the destination cannot be optional"),
        ([DESTINATION, u8("a"), u16("a")], "field name 'a' is empty or used twice"),
        ([DESTINATION, u8("")], "field name '' is empty or used twice"),
        ([u8("v", equals=256), DESTINATION], "v at offset 0: expected an integer of 1 bytes"),
        ([raw("m", 4, equals=b"AC"), DESTINATION], "m at offset 0: expected 4 bytes, found b'AC'"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(fields: list[Field], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout("bad", fields)


def test_fields_without_size_and_layouts_without_order_are_refused() -> None:
    with pytest.raises(ValueError, match="field '': a size of 0 bytes; at least 1 needed"):
        padding(0)
    with pytest.raises(ValueError, match="field 'path': a size of -2 bytes"):
        wchar("path", -1)
    with pytest.raises(ValueError, match="field 'a': a sockaddr of 15 bytes; at least 16 needed"):
        sockaddr("a", 15)
    with pytest.raises(ValueError, match="byte order 'network' is not little or big"):
        Layout("bad", [DESTINATION], byte_order="network")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="none: no layouts"):
        OneOf("none", [])


def test_a_layout_keeps_its_own_copy_of_the_fields() -> None:
    fields = [DESTINATION]
    layout = Layout("mine", fields)
    fields.append(u8("late"))
    assert layout.size == 128
    assert decode(V4, layout).address == V4_ADDRESS


# original_destination: the context, else SO_ORIGINAL_DST, else None.


class FakeSocket:
    """A socket with answers to SO_ORIGINAL_DST by level; the others fail with *winerror*."""

    def __init__(
        self, family: int, answers: dict[int, bytes] | None = None, winerror: int = WSAEINVAL
    ) -> None:
        self.family = family
        self.answers = answers or {}
        self.winerror = winerror
        self.asked: list[tuple[int, int, int]] = []

    def fileno(self) -> int:
        return 7

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        self.asked.append((level, option, size))
        if level in self.answers:
            return self.answers[level]
        error = OSError("getsockopt")
        error.winerror = self.winerror  # type: ignore[attr-defined,unused-ignore]
        raise error


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the module, and nothing else, believe that this is Windows."""
    monkeypatch.setattr(context_module, "sys", SimpleNamespace(platform="win32"))


@pytest.fixture
def not_redirected() -> Iterator[None]:
    with Scripted(steps=[Step(code=ERROR_NOT_FOUND)]):
        yield


def test_the_original_destination_is_in_the_context() -> None:
    with Scripted(context=V4 + V6):
        assert original_destination(5) == OriginalDestination(V4_ADDRESS, V6_ADDRESS)
    with Scripted(context=MAGIC_CONTEXT):
        assert original_destination(5, MAGIC) == decode(MAGIC_CONTEXT, MAGIC)
    with Scripted(context=encode(OriginalDestination(V4_ADDRESS), "azure-gpa")):
        found = original_destination(5, layout="azure-gpa")
        assert found is not None
        assert found.address == V4_ADDRESS


def test_a_redirected_connection_knows_where_it_was_going() -> None:
    def context_of(connection: Connection) -> bytes:
        return encode(OriginalDestination(connection.destination, process_id=4711), TUNLESS)

    with socket.create_server(("127.0.0.1", 0)) as listener, Engine() as engine:
        engine.add_driver("acme", proxy=listener.getsockname(), context=context_of)
        with socket.create_connection(V4_ADDRESS, 10):
            accepted, _ = listener.accept()
            with accepted:
                found = original_destination(accepted, TUNLESS)
    assert found == OriginalDestination(V4_ADDRESS, process_id=4711, image_path="")


def test_a_context_of_another_layout_is_an_error() -> None:
    with (
        Scripted(context=V4),
        pytest.raises(ContextError, match="expected 256 bytes, found 128"),
    ):
        original_destination(5)


def test_an_unknown_layout_is_an_error_before_anything_is_asked() -> None:
    with Scripted(steps=[Step(code=WSAENOTCONN)]) as script, pytest.raises(LookupError):
        original_destination(5, "nope")
    assert script.calls == []


@pytest.mark.parametrize(
    "code",
    [0, ERROR_NOT_FOUND, FWP_E_NOT_FOUND, WSAEINVAL],
    ids=["no-context", "1168", "0x80320008", "10022"],
)
@pytest.mark.usefixtures("windows")
def test_W16_W17_without_a_context_SO_ORIGINAL_DST_is_asked(code: int) -> None:
    sock = FakeSocket(socket.AF_INET, {socket.IPPROTO_IP: V4[:16]})
    with Scripted(steps=[Step(code=code)]):
        assert original_destination(sock) == OriginalDestination(V4_ADDRESS)
    assert sock.asked == [(socket.IPPROTO_IP, 0x300F, 128)]


@pytest.mark.usefixtures("windows", "not_redirected")
def test_W05_ipv6_is_asked_at_its_own_level_and_may_be_dual_stack() -> None:
    six = FakeSocket(socket.AF_INET6, {socket.IPPROTO_IPV6: V6[:28]})
    assert original_destination(six) == OriginalDestination(V6_ADDRESS)
    both = FakeSocket(socket.AF_INET6, {socket.IPPROTO_IP: V4})
    assert original_destination(both) == OriginalDestination(V4_ADDRESS)
    assert [level for level, _, _ in both.asked] == [socket.IPPROTO_IPV6, socket.IPPROTO_IP]


@pytest.mark.parametrize("winerror", [WSAEINVAL, WSAENOPROTOOPT])
@pytest.mark.usefixtures("windows", "not_redirected")
def test_W05_not_redirected_is_none(winerror: int) -> None:
    assert original_destination(FakeSocket(socket.AF_INET, winerror=winerror)) is None
    assert original_destination(FakeSocket(socket.AF_INET6, winerror=winerror)) is None


@pytest.mark.usefixtures("windows", "not_redirected")
def test_W05_other_errors_of_the_option_are_raised() -> None:
    with pytest.raises(OSError, match="getsockopt"):
        original_destination(FakeSocket(socket.AF_INET, winerror=WSAENOTSOCK))


@pytest.mark.usefixtures("windows", "not_redirected")
def test_W05_a_short_answer_is_an_error() -> None:
    with pytest.raises(ContextError, match=r"SO_ORIGINAL_DST: .* at least 16 bytes, found 8"):
        original_destination(FakeSocket(socket.AF_INET, {socket.IPPROTO_IP: V4[:8]}))


@pytest.mark.usefixtures("windows", "not_redirected")
def test_a_bare_handle_has_no_option_to_ask() -> None:
    assert original_destination(5) is None


@pytest.mark.usefixtures("not_redirected")
def test_W05_other_systems_have_no_such_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_module, "sys", SimpleNamespace(platform="linux"))
    sock = FakeSocket(socket.AF_INET, {socket.IPPROTO_IP: V4[:16]})
    assert original_destination(sock) is None
    assert sock.asked == []


@pytest.mark.parametrize("code", [WSAENOTCONN, WSAENOTSOCK, WSAEOPNOTSUPP])
def test_other_errors_of_the_query_are_raised(code: int) -> None:
    with (
        Scripted(steps=[Step(code=code)]),
        pytest.raises(wfpioctl.RedirectError) as caught,
    ):
        original_destination(5)
    assert caught.value.winerror == code
