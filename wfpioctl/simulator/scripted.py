"""A provider that answers from a script: to measure the binding, and to lie to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

from .. import _wfpioctl
from ..constants import WSA_IO_INCOMPLETE

if TYPE_CHECKING:
    from _typeshed import HasFileno


@dataclass(frozen=True, slots=True)
class Step:
    """One answer, played verbatim whatever the caller's buffer holds.

    Attributes:
        code: the code to fail with; 0 is success.
        data: bytes to write into the output buffer, as far as they fit.
        returned: what ``lpcbBytesReturned`` says; None is the length of ``data``.
        delay: seconds before the answer; ``math.inf`` is until the script ends, and the answer
            then is WSA_OPERATION_ABORTED.
        pending: an overlapped call does not wait for the delay but returns at once, and its
            operation pends so long; with ``math.inf`` until it is cancelled or the script ends.
        cancellable: False is a driver that does not react to cancellation: a pending operation then
            ends when the delay is over, or the script.
    """

    code: int = 0
    data: bytes = b""
    returned: int | None = None
    delay: float = 0.0
    pending: bool = False
    cancellable: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.code <= 0xFFFFFFFF:
            raise ValueError(f"Step: code must be from 0 to 0xFFFFFFFF, not {self.code}")
        if self.returned is not None and not 0 <= self.returned <= 0xFFFFFFFF:
            raise ValueError(f"Step: returned must be from 0 to 0xFFFFFFFF, not {self.returned}")
        if math.isnan(self.delay) or self.delay < 0:
            raise ValueError(f"Step: delay must be 0 or more seconds, not {self.delay}")
        if self.pending and self.code == WSA_IO_INCOMPLETE:
            raise ValueError("Step: no operation can end with WSA_IO_INCOMPLETE, it means pending")


class Call(NamedTuple):
    """One call that the provider got: IOCTL code, input bytes, output capacity in bytes."""

    code: int
    input: bytes
    capacity: int


class Scripted:
    """Answer the IOCTLs from a script, on any socket handle, while the with block lasts.

    With ``records`` and ``context`` every QUERY is answered at once from these bytes and every SET
    is accepted, without a lock or a system call: the provider to measure with.  With ``steps`` the
    steps are played in order, the last one for ever, and the first 10,000 calls are recorded.

    Entering raises RuntimeError while another Scripted or an Engine is active in the process.
    """

    def __init__(
        self, records: bytes = b"", context: bytes = b"", *, steps: list[Step] | None = None
    ) -> None:
        if steps is not None and (records or context):
            raise ValueError("Scripted(): give records and context, or steps, not both")
        if steps is not None and not steps:
            raise ValueError("Scripted(): steps must hold at least one Step, not []")
        self._records = bytes(records)
        self._context = bytes(context)
        self._steps = tuple(
            (step.code, step.data, len(step.data) if step.returned is None else step.returned,
             step.delay, step.pending, step.cancellable)
            for step in steps or ()
        )  # fmt: skip
        self._active = False
        self._calls: list[Call] = []

    def __enter__(self) -> Self:
        _wfpioctl.scripted_start(self._records, self._context, self._steps)
        self._active = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._calls = self.calls
        self._active = False
        _wfpioctl.scripted_stop()

    def abort(self, sock: int | HasFileno) -> None:
        """Abort what pends on a socket, as the kernel does when the socket is closed.

        A script answers on any handle and cannot see that one is closed: say it with this.
        """
        _wfpioctl.scripted_abort(sock if isinstance(sock, int) else sock.fileno())

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in order; without steps none are recorded."""
        if not self._active:
            return self._calls
        return [Call(*call) for call in _wfpioctl.scripted_calls()]
