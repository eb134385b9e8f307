"""A provider that lies: bounded time and memory, the right error, and no storm of retries."""

from collections.abc import Callable

import pytest

import wfpioctl
from wfpioctl.errors import CODES
from wfpioctl.simulator import Scripted, Step

MAX_TRIES = 12  # IOCTL_MAX_TRIES
CAP = 1 << 20

TOO_SMALL = {122, 234, 10014, 10040, 10055}
NOT_REDIRECTED = {1168, 10022, 0x80320008}

QUERIES: list[Callable[[], object]] = [
    lambda: wfpioctl.query_redirect_records(5),
    lambda: wfpioctl.query_redirect_context(5),
    lambda: wfpioctl.query_redirect_records_into(5, bytearray(64)),
    lambda: wfpioctl.query_redirect_context_into(5, bytearray(8192)),
    lambda: wfpioctl.transfer_redirect_records(5, 6),
    lambda: wfpioctl.read_redirect(5),
]

every_query = pytest.mark.parametrize(
    "query",
    QUERIES,
    ids=["records", "context", "records_into", "context_into", "transfer", "read_redirect"],
)


def raised_by(call: Callable[[], object]) -> tuple[type, int] | None:
    """What pytest.raises() finds, without its cost: this runs half a million times."""
    try:
        call()
    except wfpioctl.RedirectError as error:
        return type(error), error.winerror
    return None


def class_of(code: int) -> type:
    return CODES[code].error if code in CODES else wfpioctl.RedirectError


@every_query
def test_every_16_bit_code_raises_its_class(query: Callable[[], object]) -> None:
    codes = [code for code in range(1, 0x10000) if code not in TOO_SMALL]
    reads = query is QUERIES[-1]
    with Scripted(steps=[Step(code) for code in codes]):
        for code in codes:
            if reads and code in NOT_REDIRECTED:
                assert query() is None
                continue
            assert raised_by(query) == (class_of(code), code)


def test_every_16_bit_code_raises_its_class_from_set() -> None:
    with Scripted(steps=[Step(code) for code in range(1, 0x10000)]):
        for code in range(1, 0x10000):
            raised = raised_by(lambda: wfpioctl.set_redirect_records(5, b"records"))
            assert raised == (class_of(code), code)


@every_query
@pytest.mark.parametrize("code", sorted(TOO_SMALL))
def test_too_small_for_ever_ends(query: Callable[[], object], code: int) -> None:
    with Scripted(steps=[Step(code)]) as script:
        with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
            query()
        assert caught.value.winerror == code
        assert len(script.calls) <= MAX_TRIES
        assert max(call.capacity for call in script.calls) <= CAP


@every_query
@pytest.mark.parametrize("code", [0, 122, 31, 10022])
@pytest.mark.parametrize("returned", [CAP + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_size_beyond_the_cap_is_not_followed(
    query: Callable[[], object], code: int, returned: int
) -> None:
    with Scripted(steps=[Step(code, returned=returned)]) as script:
        with pytest.raises(wfpioctl.InsufficientBufferError) as caught:
            query()
        assert caught.value.required_size == returned
        assert len(script.calls) == 1


@every_query
def test_a_size_that_always_grows_ends(query: Callable[[], object]) -> None:
    steps = [Step(122, returned=5000 + 1000 * number) for number in range(100)]
    with Scripted(steps=steps) as script:
        with pytest.raises(wfpioctl.InsufficientBufferError):
            query()
        assert len(script.calls) <= MAX_TRIES


@every_query
def test_codes_that_change_from_call_to_call_end(query: Callable[[], object]) -> None:
    with Scripted(
        steps=[Step(234), Step(10014, returned=9000), Step(10055), Step(10004)]
    ) as script:
        with pytest.raises(wfpioctl.IoctlInterruptedError):
            query()
        assert len(script.calls) == 4


def test_success_that_claims_more_than_the_buffer_holds_is_never_believed() -> None:
    steps = [Step(0, b"x" * 4096, returned=4097), Step(0, b"y" * 4097)]
    with Scripted(steps=steps):
        assert wfpioctl.query_redirect_records(5) == b"y" * 4097


def test_an_interrupted_call_is_not_repeated() -> None:
    """WSAEINTR (W20) is for the caller to repeat, or not."""
    with Scripted(steps=[Step(10004)]) as script:
        with pytest.raises(InterruptedError):
            wfpioctl.query_redirect_records(5)
        assert len(script.calls) == 1


def test_success_with_nothing_is_an_answer() -> None:
    with Scripted(steps=[Step(0, b"")]):
        assert wfpioctl.query_redirect_records(5) == b""
        assert wfpioctl.transfer_redirect_records(5, 6) == 0
        assert wfpioctl.read_redirect(5) == wfpioctl.Redirect(b"", b"")
