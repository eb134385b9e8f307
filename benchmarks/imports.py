"""What ``import wfpioctl`` costs an interpreter that has imported socket, in fresh processes."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from .rows import Finding, Row, Settings, at_most, finding

CHILD = """
import json, socket, sys, time
before = set(sys.modules)
start = time.perf_counter()
import wfpioctl
taken = time.perf_counter() - start
print(json.dumps([taken * 1e3, len(set(sys.modules) - before)]))
"""


def import_cost(settings: Settings) -> Iterator[Finding]:
    # With compiled modules, as an installed package has them.
    with tempfile.TemporaryDirectory() as compiled:
        environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        samples = []
        for _ in range(1 + settings.pick(15, 101)):
            command = [sys.executable, "-c", CHILD]
            answer = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            )
            samples.append(json.loads(answer.stdout))
    del samples[0]  # this one compiled them
    milliseconds = [sample[0] for sample in samples]
    yield finding("over a bare interpreter with socket", milliseconds, "ms", at_most(3.0))
    yield finding("modules loaded", [sample[1] for sample in samples], "")


ROWS = [Row("import wfpioctl", import_cost)]
