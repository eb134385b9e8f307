"""The Windows build, made and tested on Linux: the real wheel, in the official Windows Pythons.

tools/wine.py brings the Pythons and Wine runs them. What they run is this same test suite, all of
it but what is marked `linux_program` or `kernel`.
"""

import importlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").glob("*.c"))
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Wpedantic", "-Werror"]

pytestmark = [pytest.mark.linux_program, pytest.mark.timeout(1800)]


def need(lack: str) -> None:
    """Skip for what this machine lacks; where WFPIOCTL_REQUIRE_WINDOWS is set (CI), fail."""
    if lack and os.environ.get("WFPIOCTL_REQUIRE_WINDOWS"):
        pytest.fail(lack)
    if lack:
        pytest.skip(f"the Windows build was not tested: {lack}")


def need_program(name: str, how: str) -> str:
    """Return the path of a program of this machine or of this Python's environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which(name, path=path)
    need("" if program else f"no {name} here ({how})")
    return str(program)


@pytest.fixture(scope="module")
def wine() -> Any:
    """tools/wine.py as a module; it is a program, and in no package."""
    if sys.platform == "win32":
        pytest.skip("this is Windows")  # its imports need Linux
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        module = importlib.import_module("wine")
    need(module.missing())
    return module


@pytest.fixture(scope="module")
def wheel(wine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    built: Path = wine.build(tmp_path_factory.mktemp("wheel"))
    return built


@pytest.fixture(scope="module")
def headers(wine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with include/, for compilers that are called directly."""
    folder = tmp_path_factory.mktemp("python") / "windows"
    wine.link_to_python(folder, wine.PLATFORMS["win_amd64"][1])
    return folder / "include"


def test_wheel_is_for_every_python_on_windows(wheel: Path) -> None:
    name, version, *tags = wheel.stem.split("-")
    assert name == "wfpioctl"
    assert tags == ["cp311", "abi3", "win_amd64"]
    contents = zipfile.ZipFile(wheel).namelist()
    binaries = [name for name in contents if not name.endswith((".py", ".pyi", "py.typed"))]
    assert [name for name in binaries if ".dist-info/" not in name] == ["wfpioctl/_wfpioctl.pyd"]
    assert f"wfpioctl-{version}.dist-info/METADATA" in contents


def test_extension_imports_only_what_every_windows_has(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extension = zipfile.ZipFile(wheel).extract("wfpioctl/_wfpioctl.pyd", tmp_path)
    dump = run("x86_64-w64-mingw32-objdump", "-p", extension)
    imports = {line.split()[-1].lower() for line in dump.splitlines() if "DLL Name:" in line}
    assert imports == {"python3.dll", "ws2_32.dll", "kernel32.dll", "msvcrt.dll"}
    size = os.path.getsize(extension)
    with capsys.disabled():
        print(f"\n{wheel.name}: {wheel.stat().st_size:,} bytes, _wfpioctl.pyd {size:,} bytes")
    assert size < 150_000


def test_extension_keeps_to_the_stable_abi(wheel: Path) -> None:
    abi3audit = need_program("abi3audit", "pip install abi3audit")
    run(abi3audit, "--strict", wheel)


@pytest.mark.parametrize("platform", ["win32", "win_arm64"])
def test_builds_for_other_platforms(wine: Any, platform: str, tmp_path: Path) -> None:
    need(wine.missing(platform))
    wheel = wine.build(tmp_path, platform)
    assert wheel.name.endswith(f"-cp311-abi3-{platform}.whl")


@pytest.mark.parametrize("platform", ["win_amd64", "win32", "win_arm64"])
def test_types_are_what_the_source_takes_for_granted(
    wine: Any, platform: str, tmp_path: Path
) -> None:
    need(wine.missing(platform))
    compiler, _ = wine.PLATFORMS[platform]
    compile_types(compiler, tmp_path)


def test_types_are_the_same_where_there_is_no_windows(tmp_path: Path) -> None:
    compile_types([need_program("cc", "apt-get install gcc")], tmp_path)


def compile_types(compiler: list[str], tmp_path: Path) -> None:
    source, output = ROOT / "tests" / "windows_types.c", tmp_path / "types.o"
    run(*compiler, *STRICT, f"-I{ROOT / 'src'}", "-c", source, "-o", output)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_source_keeps_to_what_msvc_compiles(headers: Path, source: Path) -> None:
    """MSVC runs nowhere here. clang in its role refuses what it would: GNU C, VLAs, all but C11."""
    clang = need_program("clang", "apt-get install --no-install-recommends clang")
    flags: list[str | Path] = ["/std:c11", "/W4", "/WX", "/Zs", "-Wpedantic", "-Wgnu", "-Wvla"]
    for folder in headers, Path("/usr/x86_64-w64-mingw32/include"):
        flags += ["-Xclang", "-isystem", "-Xclang", folder]
    target = ("--target=x86_64-w64-windows-gnu", "-DPy_LIMITED_API=0x030b0000")
    run(clang, "--driver-mode=cl", *target, *flags, "--", source)


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_suite_passes_in_windows_python(
    wine: Any,
    wheel: Path,
    version: str,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    done = wine.test(version, wheel, ["-rA"])
    with capsys.disabled():
        print(f"\nWindows Python {version}: {wine.closing_line(done.stdout)}")
    assert done.returncode == 0
    there = {
        line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line[:7] == "PASSED "
    }
    assert passed_here(request.config) <= there


def passed_here(config: pytest.Config) -> set[str]:
    """The tests that have passed in this run, but for those that carry a mark against it."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("passed", [])
    marks = {"linux_program", "kernel", "skipif"}
    return {r.nodeid for r in reports if r.when == "call" and not marks & r.keywords.keys()}


def run(*command: str | Path) -> str:
    """Run a program that must succeed without a word on stderr, and return its output."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=600
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout
