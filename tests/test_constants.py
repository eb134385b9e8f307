"""The constants against their formulas: wrong values circulate in public code (W07)."""

import socket

import pytest

import wfpioctl
from wfpioctl import constants

IOC_OUT = 0x40000000
IOC_IN = 0x80000000
IOC_VENDOR = 0x18000000


def wsaiow(kind: int, number: int) -> int:
    """The macro _WSAIOW of ws2def.h."""
    return IOC_IN | kind | number


def wsaior(kind: int, number: int) -> int:
    """The macro _WSAIOR of ws2def.h."""
    return IOC_OUT | kind | number


@pytest.mark.parametrize(
    ("name", "number", "value"),
    [
        pytest.param("QUERY_WFP_CONNECTION_REDIRECT_RECORDS", 220, 0x980000DC, id="W01"),
        pytest.param("QUERY_WFP_CONNECTION_REDIRECT_CONTEXT", 221, 0x980000DD, id="W02"),
        pytest.param("SET_WFP_CONNECTION_REDIRECT_RECORDS", 222, 0x980000DE, id="W03"),
    ],
)
def test_W01_W02_W03_ioctls(name: str, number: int, value: int) -> None:
    assert getattr(wfpioctl, f"SIO_{name}") == wsaiow(IOC_VENDOR, number) == value


def test_W04_options_and_control_message_types() -> None:
    assert wfpioctl.IP_WFP_REDIRECT_RECORDS == wfpioctl.IPV6_WFP_REDIRECT_RECORDS == 60
    assert wfpioctl.IP_WFP_REDIRECT_CONTEXT == wfpioctl.IPV6_WFP_REDIRECT_CONTEXT == 70


def test_W05_original_destination_option() -> None:
    assert wfpioctl.SO_ORIGINAL_DST == wfpioctl.IP6T_SO_ORIGINAL_DST == 0x300F


def test_W06_endpoint_handle_ioctl() -> None:
    assert wfpioctl.SIO_QUERY_WFP_ALE_ENDPOINT_HANDLE == wsaior(IOC_VENDOR, 205) == 0x580000CD


def test_W07_query_codes_carry_the_in_bit_only() -> None:
    for name in dir(wfpioctl):
        if name.startswith("SIO_") and name != "SIO_QUERY_WFP_ALE_ENDPOINT_HANDLE":
            assert getattr(wfpioctl, name) & (IOC_IN | IOC_OUT) == IOC_IN


def test_public_constants_are_those_of_the_constants_module() -> None:
    public = [name for name in wfpioctl.__all__ if name.isupper()]
    assert public
    for name in public:
        assert getattr(wfpioctl, name) is getattr(constants, name)


@pytest.mark.skipif(not hasattr(socket, "SIO_RCVALL"), reason="a Windows Python's socket module")
def test_formula_agrees_with_an_ioctl_that_python_knows() -> None:
    assert wsaiow(IOC_VENDOR, 1) == socket.SIO_RCVALL  # type: ignore[attr-defined]
