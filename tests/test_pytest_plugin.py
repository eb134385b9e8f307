"""The pytest plugin, in a pytest of its own."""

import pytest

pytest_plugins = "pytester"


@pytest.fixture(autouse=True)
def plain(pytester: pytest.Pytester) -> None:
    """This suite's own configuration says nothing about the inner one."""
    pytester.makeini("[pytest]\naddopts = --strict-markers -p no:cacheprovider")


def test_an_engine_in_one_word(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import socket

        def test_proxy(wfp_engine):
            with socket.create_server(("127.0.0.1", 0)) as proxy:
                wfp_engine.add_driver("acme", proxy=proxy.getsockname())
                with socket.create_connection(("203.0.113.7", 443), 10) as app:
                    assert app.getpeername() == proxy.getsockname()
            assert wfp_engine.dialect.name == "documented"
        """
    )
    pytester.runpytest().assert_outcomes(passed=1)


def test_chosen_dialects(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.wfp_dialect("ulong", "fault")
        def test_proxy(wfp_engine):
            assert wfp_engine.dialect.name in ("ulong", "fault")
        """
    )
    result = pytester.runpytest("-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*test_proxy?ulong? PASSED*", "*test_proxy?fault? PASSED*"])


def test_every_dialect(pytester: pytest.Pytester) -> None:
    from wfpioctl.simulator import DIALECTS

    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.wfp_dialect
        def test_proxy(wfp_engine):
            pass
        """
    )
    pytester.runpytest().assert_outcomes(passed=len(DIALECTS))


@pytest.mark.parametrize(
    ("mark", "argument", "message"),
    [
        ('wfp_dialect("klingon")', "wfp_engine", "'klingon' is none of documented, ulong"),
        ("wfp_dialect", "", "test_proxy does not use wfp_engine"),
    ],
)
def test_misuse_is_said(pytester: pytest.Pytester, mark: str, argument: str, message: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.{mark}
        def test_proxy({argument}):
            pass
        """
    )
    result = pytester.runpytest()
    assert result.ret != 0
    result.stdout.fnmatch_lines([f"*{message}*"])


def test_the_marker_is_documented_and_nothing_else_is_loaded(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.wfp_dialect(*names): *"])
    pytester.makepyfile(
        """
        import sys

        def test_lazy():
            assert "wfpioctl.simulator" not in sys.modules
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
