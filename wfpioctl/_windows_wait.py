"""Await a Windows handle on an event loop that cannot: asyncio's SelectorEventLoop.

The system's thread pool waits, as many handles in a thread as it can, and tells the loop.
"""

import asyncio
import ctypes
import socket
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


async def wait_for_handle(handle: int) -> None:
    """Wait until the handle is signalled; when this ends, however it ends, nothing waits for it.

    Raises OSError if the pool takes no more.
    """
    loop = asyncio.get_running_loop()
    waiter = loop.create_future()
    wait = wintypes.HANDLE()
    # A socket, because what the loop watches keeps the waiting task alive, and dies with the loop.
    ours, pools = socket.socketpair()

    def signalled(context: int | None, timed_out: bool) -> None:
        pools.send(b"\0")

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    callback = _Callback(signalled)
    with ours, pools:
        ours.setblocking(False)
        if not _register(
            ctypes.byref(wait), handle, callback, None, _INFINITE, _WT_EXECUTEONLYONCE
        ):
            raise ctypes.WinError(ctypes.get_last_error())
        try:
            loop.add_reader(ours, wake)
            await waiter
        finally:
            loop.remove_reader(ours)
            _unregister(wait, _INVALID_HANDLE_VALUE)  # waits for signalled(), if that is running
