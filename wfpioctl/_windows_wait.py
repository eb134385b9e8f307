"""Await a Windows handle on an event loop that cannot: asyncio's SelectorEventLoop.

The system's thread pool waits, as many handles in a thread as it can, and tells the loop.
"""

import asyncio
import ctypes
import sys
from ctypes import wintypes

assert sys.platform == "win32"

_INFINITE = 0xFFFFFFFF
_WT_EXECUTEONLYONCE = 8
_INVALID_HANDLE_VALUE = wintypes.HANDLE(-1)

_Callback = ctypes.WINFUNCTYPE(None, ctypes.c_void_p, wintypes.BOOLEAN)

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_register = _kernel32.RegisterWaitForSingleObject
_register.argtypes = (
    ctypes.POINTER(wintypes.HANDLE),
    wintypes.HANDLE,
    _Callback,
    ctypes.c_void_p,
    wintypes.ULONG,
    wintypes.ULONG,
)
_unregister = _kernel32.UnregisterWaitEx
_unregister.argtypes = wintypes.HANDLE, wintypes.HANDLE


# What the pool may still call, and for whom; only the loop's thread takes something out.
_waiting: dict[object, asyncio.Future[None] | None] = {}


def wait_for_handle(loop: asyncio.AbstractEventLoop, handle: int) -> asyncio.Future[None]:
    """Return a future that is done when the handle is signalled; raises OSError if it cannot be.

    The handle must stay open until then; the future is kept alive for as long.
    """
    waiter = loop.create_future()
    wait = wintypes.HANDLE()

    def signalled(context: int | None, timed_out: bool) -> None:
        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:  # the loop is closed: nobody waits, but this very call must last
            _waiting[callback] = None

    def finish() -> None:
        _unregister(wait, _INVALID_HANDLE_VALUE)  # returns when signalled() has
        del _waiting[callback]
        if not waiter.done():
            waiter.set_result(None)

    callback = _Callback(signalled)
    _waiting[callback] = waiter
    if not _register(ctypes.byref(wait), handle, callback, None, _INFINITE, _WT_EXECUTEONLYONCE):
        del _waiting[callback]
        raise ctypes.WinError(ctypes.get_last_error())
    return waiter
