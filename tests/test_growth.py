"""The growth rule of W15, call by call, against providers that name sizes, do not, or lie."""

from collections.abc import Callable

import pytest
from support import QUERIES

import wfpioctl
from wfpioctl.simulator import Scripted, Step

KIB = 1024
CAP = 1024 * KIB
DOUBLING = [4 * KIB << n for n in range(9)]  # 4 KiB ... 1 MiB

TOO_SMALL = [122, 234, 10014, 10040, 10055]

GROWING: dict[str, Callable[[int], bytes]] = {
    "query_redirect_records": wfpioctl.query_redirect_records,
    "query_redirect_context": wfpioctl.query_redirect_context,
}


@pytest.fixture(params=GROWING)
def query(request: pytest.FixtureRequest) -> Callable[[int], bytes]:
    return GROWING[request.param]


def capacities(script: Scripted) -> list[int]:
    return [call.capacity for call in script.calls]


@pytest.mark.parametrize("size", [0, 1, 100, 4 * KIB])
def test_usual_case_is_one_call(query: Callable[[int], bytes], size: int) -> None:
    answer = b"x" * size
    with Scripted(steps=[Step(data=answer)]) as script:
        assert query(3) == answer
    assert capacities(script) == [4 * KIB]


@pytest.mark.parametrize("code", [*TOO_SMALL, 1, 10022, 10057])
def test_W13_W15_named_size_is_the_next_capacity(query: Callable[[int], bytes], code: int) -> None:
    """Whatever the code: more returned than the buffer holds is a size."""
    answer = b"x" * 5000
    with Scripted(steps=[Step(code, returned=5000), Step(data=answer)]) as script:
        assert query(3) == answer
    assert capacities(script) == [4 * KIB, 5000]


@pytest.mark.parametrize("code", TOO_SMALL)
@pytest.mark.parametrize("returned", [0, 1, 4 * KIB])
def test_W15_without_a_size_the_capacity_doubles(
    query: Callable[[int], bytes], code: int, returned: int
) -> None:
    """Bytes returned that fit the buffer name no size."""
    steps = [Step(code, returned=returned)] * 3 + [Step(data=b"answer")]
    with Scripted(steps=steps) as script:
        assert query(3) == b"answer"
    assert capacities(script) == DOUBLING[:4]


@pytest.mark.parametrize("code", [1, 8, 10022, 10050, 10057, 1168])
def test_other_codes_end_it_at_once(query: Callable[[int], bytes], code: int) -> None:
    with Scripted(steps=[Step(code)]) as script, pytest.raises(wfpioctl.RedirectError):
        query(3)
    assert capacities(script) == [4 * KIB]


def test_other_code_after_growth(query: Callable[[int], bytes]) -> None:
    """The error is of the last call, and has no size of an earlier one."""
    steps = [Step(122, returned=5000), Step(10057)]
    with Scripted(steps=steps), pytest.raises(wfpioctl.NotConnectedError) as caught:
        query(3)
    assert caught.value.required_size is None


@pytest.mark.parametrize("code", TOO_SMALL)
def test_W15_growth_ends_at_the_cap(query: Callable[[int], bytes], code: int) -> None:
    with (
        Scripted(steps=[Step(code)]) as script,
        pytest.raises(wfpioctl.InsufficientBufferError) as caught,
    ):
        query(3)
    assert capacities(script) == DOUBLING
    assert caught.value.winerror == code
    assert caught.value.required_size is None


def test_W15_doubling_from_a_named_size_stops_exactly_at_the_cap(
    query: Callable[[int], bytes],
) -> None:
    steps = [Step(122, returned=700 * KIB), Step(10055)]
    with Scripted(steps=steps) as script, pytest.raises(wfpioctl.InsufficientBufferError):
        query(3)
    assert capacities(script) == [4 * KIB, 700 * KIB, CAP]


def test_W15_answer_of_exactly_the_cap(query: Callable[[int], bytes]) -> None:
    answer = b"x" * CAP
    with Scripted(steps=[Step(122, returned=CAP), Step(data=answer)]):
        assert query(3) == answer


@pytest.mark.parametrize("returned", [CAP + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
@pytest.mark.parametrize("code", [0, 122, 10014])
def test_W15_named_size_over_the_cap(
    query: Callable[[int], bytes], code: int, returned: int
) -> None:
    with (
        Scripted(steps=[Step(code, returned=returned)]) as script,
        pytest.raises(wfpioctl.InsufficientBufferError) as caught,
    ):
        query(3)
    assert len(script.calls) == 1
    assert caught.value.required_size == returned
    assert str(returned) in str(caught.value)


def test_size_that_grows_between_two_calls_is_followed(query: Callable[[int], bytes]) -> None:
    answer = b"x" * 6002
    steps = [Step(122, returned=6000), Step(122, returned=6001), Step(122, returned=6002)]
    with Scripted(steps=[*steps, Step(data=answer)]) as script:
        assert query(3) == answer
    assert capacities(script) == [4 * KIB, 6000, 6001, 6002]


def test_size_that_shrinks_between_two_calls(query: Callable[[int], bytes]) -> None:
    with Scripted(steps=[Step(122, returned=100_000), Step(data=b"short")]):
        assert query(3) == b"short"


def test_size_that_never_stops_growing_ends_after_bounded_tries(
    query: Callable[[int], bytes],
) -> None:
    steps = [Step(122, returned=5000 + n) for n in range(1000)]
    with (
        Scripted(steps=steps) as script,
        pytest.raises(wfpioctl.InsufficientBufferError) as caught,
    ):
        query(3)
    assert len(script.calls) <= 16
    assert caught.value.required_size == 5000 + len(script.calls) - 1


def test_success_that_claims_more_than_the_buffer_is_a_size(
    query: Callable[[int], bytes],
) -> None:
    """Never are bytes handed out that the provider did not write."""
    with Scripted(steps=[Step(data=b"y" * 4096, returned=5000), Step(data=b"x" * 5000)]) as script:
        assert query(3) == b"x" * 5000
    assert capacities(script) == [4 * KIB, 5000]


def test_success_with_nothing_is_an_answer(query: Callable[[int], bytes]) -> None:
    with Scripted(steps=[Step()]):
        assert query(3) == b""


# ---- where the caller brings the buffer ----

INTO = {
    name: getattr(wfpioctl, name)
    for name in ("query_redirect_records_into", "query_redirect_context_into")
}


@pytest.fixture(params=INTO)
def query_into(request: pytest.FixtureRequest) -> Callable[..., int]:
    return INTO[request.param]


@pytest.mark.parametrize("size", [0, 1, 3, 4, 4095])
def test_W14_small_buffer_is_not_shown_to_the_provider(
    query_into: Callable[..., int], size: int
) -> None:
    buffer = bytearray(size)
    with Scripted(steps=[Step(data=b"x" * size)]) as script:
        assert query_into(3, buffer) == size
    assert buffer == b"x" * size
    assert capacities(script) == [4 * KIB]


@pytest.mark.parametrize("size", [4 * KIB, 4 * KIB + 1, 100_000])
def test_usual_buffer_takes_the_answer_directly(query_into: Callable[..., int], size: int) -> None:
    buffer = bytearray(size)
    with Scripted(steps=[Step(data=b"answer")]) as script:
        assert query_into(3, buffer) == 6
    assert buffer == b"answer".ljust(size, b"\0")
    assert capacities(script) == [size]


def test_nbytes_is_the_capacity(query_into: Callable[..., int]) -> None:
    with Scripted(steps=[Step(data=b"answer")]) as script:
        query_into(3, bytearray(100_000), 50_000)
    assert capacities(script) == [50_000]


def test_into_learns_the_size_of_what_does_not_fit(query_into: Callable[..., int]) -> None:
    """A kernel that names no size: the answer is fetched elsewhere to learn it."""
    buffer = bytearray(b"\xaa" * 5000)
    with (
        Scripted(steps=[Step(10055), Step(data=b"x" * 7000)]) as script,
        pytest.raises(wfpioctl.InsufficientBufferError) as caught,
    ):
        query_into(3, buffer)
    assert capacities(script) == [5000, 10_000]
    assert caught.value.required_size == 7000
    assert buffer == b"\xaa" * 5000


def test_into_uses_an_answer_that_fits_after_growth(query_into: Callable[..., int]) -> None:
    buffer = bytearray(5000)
    with Scripted(steps=[Step(10055), Step(data=b"answer")]):
        assert query_into(3, buffer) == 6
    assert buffer[:7] == b"answer\0"


def test_into_believes_no_success_beyond_the_buffer(query_into: Callable[..., int]) -> None:
    buffer = bytearray(5000)
    with (
        Scripted(steps=[Step(data=b"x" * 5000, returned=5001)]),
        pytest.raises(wfpioctl.InsufficientBufferError) as caught,
    ):
        query_into(3, buffer)
    assert caught.value.required_size == 5001


def test_transfer_grows_too() -> None:
    records = b"x" * 5000
    with Scripted(steps=[Step(122, returned=5000), Step(data=records), Step()]) as script:
        assert wfpioctl.transfer_redirect_records(3, 4) == 5000
    assert [call.input for call in script.calls] == [b"", b"", records]


def test_transfer_sets_what_was_returned_and_not_the_whole_buffer() -> None:
    """W25"""
    with Scripted(steps=[Step(data=b"x" * 100, returned=7)]) as script:
        assert wfpioctl.transfer_redirect_records(3, 4) == 7
    assert script.calls[1].input == b"x" * 7


def test_read_redirect_grows_each_of_its_queries() -> None:
    steps = [
        Step(122, returned=5000),
        Step(data=b"r" * 5000),
        Step(122, returned=6000),
        Step(data=b"c" * 6000),
    ]
    with Scripted(steps=steps):
        assert wfpioctl.read_redirect(3) == wfpioctl.Redirect(b"r" * 5000, b"c" * 6000)


def test_every_query_function_is_tested_here() -> None:
    assert {*GROWING, *INTO} == {*QUERIES}
