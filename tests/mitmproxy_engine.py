"""An addon that gives mitmdump, a process of its own, a simulated engine: see test_examples.py."""

import os

from relay_support import blob
from support import ORIGINAL

from wfpioctl.simulator import Engine, RecordsSet

engine = Engine()


def load(loader: object) -> None:
    engine.__enter__()
    port = int(os.environ["WFPIOCTL_TEST_PROXY_PORT"])
    engine.route(ORIGINAL, ("127.0.0.1", int(os.environ["WFPIOCTL_TEST_ORIGIN_PORT"])))
    engine.add_driver("A", proxy=("127.0.0.1", port), match=ORIGINAL, context=blob())
    engine.redirect_listener(port, original=ORIGINAL)


def done() -> None:
    engine.__exit__(None, None, None)
    sets = [event.code for event in engine.trace if isinstance(event, RecordsSet)]
    print("codes of SET:", sets, flush=True)
