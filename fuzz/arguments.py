"""Any arguments into every function of the C module: a value or an error of the promised kinds.

A crash is what this looks for: in the argument parsing, in the scripts' conversion, in the calls
while a script answers anything.
"""

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import atheris

with atheris.instrument_imports(include=["wfpioctl"]):
    import wfpioctl
    from wfpioctl import _wfpioctl
    from wfpioctl.simulator import Engine, Scripted, Step

PUBLIC: list[Callable[..., Any]] = [
    wfpioctl.query_redirect_records,
    wfpioctl.query_redirect_context,
    wfpioctl.query_redirect_records_into,
    wfpioctl.query_redirect_context_into,
    wfpioctl.set_redirect_records,
    wfpioctl.transfer_redirect_records,
    wfpioctl.read_redirect,
    wfpioctl.socket_factory,
]
PRIVATE: list[Callable[..., Any]] = [
    getattr(_wfpioctl, name)
    for name in sorted(vars(_wfpioctl))
    if name.startswith(("engine_", "scripted_")) and not name.endswith("observer")
]

EXPECTED = (TypeError, ValueError, OverflowError, OSError, BufferError, AttributeError,
            RuntimeError, MemoryError)  # fmt: skip


class Sock:
    """Its fileno() returns anything, or raises."""

    def __init__(self, value: object) -> None:
        self.value = value

    def fileno(self) -> object:
        if isinstance(self.value, str):
            raise RuntimeError(self.value)
        return self.value


LEAVES: list[Callable[[Any], object]] = [
    lambda provider: provider.ConsumeIntInRange(-5, 300),
    lambda provider: provider.ConsumeInt(provider.ConsumeIntInRange(1, 20)),
    lambda provider: provider.ConsumeBytes(provider.ConsumeIntInRange(0, 200)),
    lambda provider: bytearray(provider.ConsumeIntInRange(0, 10_000)),
    lambda provider: provider.ConsumeUnicode(20),
    lambda provider: provider.PickValueInList([None, False, True, object()]),
    lambda provider: provider.ConsumeFloat(),
    lambda provider: memoryview(bytearray(100))[:: provider.ConsumeIntInRange(1, 3)],
    lambda provider: ("127.0.0.1", provider.ConsumeIntInRange(-2, 70_000)),
    lambda provider: ("::1" if provider.ConsumeBool() else provider.ConsumeUnicode(60), 1),
]


def any_value(provider: Any, depth: int = 0) -> object:
    kind = provider.ConsumeIntInRange(0, len(LEAVES) + 1)
    if kind < len(LEAVES) or depth == 3:
        return LEAVES[kind % len(LEAVES)](provider)
    if kind == len(LEAVES):
        return Sock(any_value(provider, depth + 1))
    return tuple(any_value(provider, depth + 1) for _ in range(provider.ConsumeIntInRange(0, 4)))


def any_step(provider: Any) -> Step:
    codes = [0, 0, 122, 234, 10014, 10040, 10055, 1168, 10022, 10013, provider.ConsumeUInt(4)]
    returned = provider.ConsumeUInt(4) if provider.ConsumeBool() else None
    size = provider.ConsumeIntInRange(0, 10_000)
    return Step(provider.PickValueInList(codes), bytes(size), returned)


def call(function: Callable[..., Any], provider: Any) -> None:
    arguments = [any_value(provider) for _ in range(provider.ConsumeIntInRange(0, 7))]
    try:
        function(*arguments)
    except EXPECTED as error:
        str(error)


def test_one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    kind = provider.ConsumeIntInRange(0, 3)
    simulator: Any = contextlib.nullcontext()
    if kind == 1:
        steps = [any_step(provider) for _ in range(provider.ConsumeIntInRange(1, 6))]
        simulator = Scripted(steps=steps)
    elif kind == 2:
        simulator = Scripted(provider.ConsumeBytes(9000), provider.ConsumeBytes(9000))
    elif kind == 3:
        simulator = Engine(intercept=False)
    with simulator:
        for _ in range(provider.ConsumeIntInRange(1, 8)):
            call(provider.PickValueInList(PUBLIC), provider)
    for _ in range(provider.ConsumeIntInRange(0, 8)):
        call(provider.PickValueInList(PRIVATE), provider)
    for stop in _wfpioctl.engine_stop, _wfpioctl.scripted_stop:
        with contextlib.suppress(RuntimeError):
            stop()


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
