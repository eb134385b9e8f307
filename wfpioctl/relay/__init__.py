"""A transparent relay: the complete example of a redirect service.

It reads the redirect of each connection that it accepts, goes on to the original destination with
the records set, and copies both ways::

    async with Relay(("127.0.0.1", 15001), layout="wfpsampler"):
        await asyncio.Event().wait()  # until cancelled

``python -m wfpioctl relay`` runs it.  What was not redirected is refused unless ``direct`` is set,
so that it never is an open proxy.
"""

from .command import add_arguments, run
from .counters import Counters, Ended, IdleTimeoutError
from .datagrams import DatagramRelay
from .decide import Decision, Flow, Policy
from .service import Relay

__all__ = [
    "Counters",
    "DatagramRelay",
    "Decision",
    "Ended",
    "Flow",
    "IdleTimeoutError",
    "Policy",
    "Relay",
    "add_arguments",
    "run",
]
