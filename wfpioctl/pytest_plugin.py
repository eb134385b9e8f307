"""The pytest plugin: an engine as a fixture, so that the test of a proxy is three lines.

::

    def test_my_proxy(wfp_engine):
        wfp_engine.add_driver("acme", proxy=MY_PROXY, match=("203.0.113.7", 443))
        assert socket.create_connection(("203.0.113.7", 443)).recv(2) == b"ok"

``@pytest.mark.wfp_dialect("ulong", "fault")`` runs a test once with each of these dialects of the
kernel, and without arguments with all of them.  pytest finds this plugin by its entry point;
nothing else imports it, and it imports nothing of wfpioctl until a test asks for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .simulator import Engine

_MARK = "wfp_dialect"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{_MARK}(*names): run the test with each of these dialects of the simulated Windows"
        " Filtering Platform; without names, with all of them",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    mark = metafunc.definition.get_closest_marker(_MARK)
    if mark is None:
        return
    from .simulator import DIALECTS

    unknown = [name for name in mark.args if name not in DIALECTS]
    if unknown:
        raise pytest.UsageError(f"{_MARK}: {unknown[0]!r} is none of {', '.join(DIALECTS)}")
    if "wfp_engine" not in metafunc.fixturenames:
        raise pytest.UsageError(f"{_MARK}: {metafunc.definition.name} does not use wfp_engine")
    metafunc.parametrize("wfp_engine", mark.args or DIALECTS, indirect=True)


@pytest.fixture
def wfp_engine(request: pytest.FixtureRequest) -> "Iterator[Engine]":
    """An active wfpioctl.simulator.Engine, without drivers; Python's connects go through it."""
    from .simulator import Engine

    with Engine(dialect=getattr(request, "param", "documented")) as engine:
        yield engine
