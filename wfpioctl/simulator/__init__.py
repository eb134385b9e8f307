"""A machine's WFP without a driver: run and test a proxy on any system.

``Engine`` is the whole machine: drivers redirect real connections, and the IOCTLs answer what the
kernel would.  ``Scripted`` answers from a script.  One of them at most is active in a process.
"""

from .._wfpioctl import wsa_get_last_error_address, wsaioctl_address
from .scripted import Call, Scripted, Step

__all__ = [
    "Call",
    "Scripted",
    "Step",
    "wsa_get_last_error_address",
    "wsaioctl_address",
]
