"""A machine's WFP without a driver: run and test a proxy on any system.

``Engine`` is the whole machine: drivers redirect real connections, and the IOCTLs answer what the
kernel would.  ``Scripted`` answers from a script.  One of them at most is active in a process.
"""

from .._wfpioctl import wsa_get_last_error_address, wsaioctl_address
from .dialects import DIALECTS, Dialect
from .engine import Connection, Driver, Engine, RedirectLoopError
from .records import RedirectRecord, RedirectState
from .scripted import Call, Scripted, Step
from .trace import Action, Connected, Event, Queried, RecordsSet, Verdict

__all__ = [
    "DIALECTS",
    "Action",
    "Call",
    "Connected",
    "Connection",
    "Dialect",
    "Driver",
    "Engine",
    "Event",
    "Queried",
    "RecordsSet",
    "RedirectLoopError",
    "RedirectRecord",
    "RedirectState",
    "Scripted",
    "Step",
    "Verdict",
    "wsa_get_last_error_address",
    "wsaioctl_address",
]
