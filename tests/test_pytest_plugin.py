"""The pytest plugin, in a pytest of its own."""

import pytest

pytest_plugins = "pytester"


@pytest.fixture(autouse=True)
def alone(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other plugin, which would only take time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini(
        "[pytest]\naddopts = --strict-markers -p no:cacheprovider -p wfpioctl.pytest_plugin"
    )


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


def test_the_marker_is_documented(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.wfp_dialect(*names): *"])


def test_pytest_finds_it_and_loads_nothing_more(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    pytester.makeini("[pytest]")
    pytester.makepyfile(
        """
        import sys

        def test_lazy(request):
            assert request.config.pluginmanager.has_plugin("wfpioctl")
            assert "wfpioctl.simulator" not in sys.modules

        def test_proxy(wfp_engine):
            pass
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)
