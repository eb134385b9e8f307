"""The IOCTLs in their overlapped form: start one, do something else, take the result::

    with overlapped.query_redirect_records(accepted) as operation:
        ...
        records = operation.result(timeout=1.0)

Each function starts an operation and returns it.  The real kernel answers these IOCTLs at once, as
far as anybody has seen; an operation that pends is what the documentation allows for (W20, W29).
Results and errors are those of the synchronous functions (W30).  ``wfpioctl.aio`` awaits them.
"""

from __future__ import annotations

import time
from threading import local
from typing import TYPE_CHECKING, Any, NamedTuple

from ._wfpioctl import Operation, overlapped_counters, overlapped_sleep, overlapped_start
from .constants import (
    SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT,
    SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS,
    SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import HasFileno, ReadableBuffer

__all__ = [
    "Counters",
    "Operation",
    "counters",
    "query_redirect_context",
    "query_redirect_records",
    "set_redirect_records",
    "sleep",
]


def query_redirect_records(
    sock: int | HasFileno,
    /,
    *,
    completion: Callable[[Operation[bytes]], object] | None = None,
) -> Operation[bytes]:
    """Start to query the redirect records of an accepted connection.

    ``completion`` is a completion routine: it is called with the operation, in this thread, when
    the operation has ended and this thread is in ``sleep()``.  The operation then makes no progress
    anywhere else; its event and ``result()`` in other threads follow the routine.

    Raises TypeError, ValueError, OverflowError and NotASocketError for ``sock`` as the synchronous
    function does; whatever the IOCTL answers is ``result()``'s.
    """
    return _start(SIO_QUERY_WFP_CONNECTION_REDIRECT_RECORDS, sock, None, completion)


def query_redirect_context(
    sock: int | HasFileno,
    /,
    *,
    completion: Callable[[Operation[bytes]], object] | None = None,
) -> Operation[bytes]:
    """Start to query the context; the rules are those of ``query_redirect_records()``."""
    return _start(SIO_QUERY_WFP_CONNECTION_REDIRECT_CONTEXT, sock, None, completion)


def set_redirect_records(
    sock: int | HasFileno,
    records: ReadableBuffer,
    /,
    *,
    completion: Callable[[Operation[None]], object] | None = None,
) -> Operation[None]:
    """Start to set redirect records on a socket that is not connected yet.

    The records are copied.  The rules are those of ``query_redirect_records()``.
    """
    return _start(SIO_SET_WFP_CONNECTION_REDIRECT_RECORDS, sock, records, completion)


class _Thread(local):
    """The calling thread's operations whose completion routines have yet to run."""

    def __init__(self) -> None:
        self.awaiting: list[tuple[Operation[Any], Callable[[Operation[Any]], object]]] = []


_thread = _Thread()


def _start(
    code: int,
    sock: int | HasFileno,
    records: ReadableBuffer | None,
    completion: Callable[[Operation[Any]], object] | None,
) -> Operation[Any]:
    operation = overlapped_start(code, sock, records, completion is not None)
    if completion is not None:
        _thread.awaiting.append((operation, completion))
    return operation


def sleep(seconds: float, /) -> int:
    """Wait alertably, until a completion routine of this thread has run, for ``seconds`` at most.

    Returns how many routines ran; 0 means that the time is over.  An exception that a routine
    raises comes out of here; routines that were to run after it run in the next ``sleep()``.
    On Windows this is SleepEx, and runs every APC of the thread.
    """
    if not seconds >= 0:
        raise ValueError(f"sleep(): seconds must be 0 or more, not {seconds}")
    deadline = time.monotonic() + seconds
    overlapped_sleep(0.0)
    while not (due := [item for item in _thread.awaiting if not item[0].pending]):
        left = deadline - time.monotonic()
        if left <= 0:
            return 0
        overlapped_sleep(left)
    for item in due:
        _thread.awaiting.remove(item)
        operation, completion = item
        completion(operation)
    return len(due)


class Counters(NamedTuple):
    """Operations of this process since it started; all but those that pend have ended somehow.

    Attributes:
        started: started.
        completed: ended with success.
        failed: ended with an error, other than by cancellation.
        cancelled: ended with WSA_OPERATION_ABORTED.
        orphaned: dropped while pending, and still pending after their cancellation.
        given_back: of the orphaned ones, those that have ended since, and their memory with them.
    """

    started: int
    completed: int
    failed: int
    cancelled: int
    orphaned: int
    given_back: int


def counters() -> Counters:
    """Count the operations of this process."""
    return Counters(*overlapped_counters())
