"""Builds a free-threaded CPython 3.13 from Debian's sources, once, and prints its path.

Debian has no package of it.  The sources come through apt, which checks their signature, from the
archive that this machine is configured for; the machine's own apt configuration is not touched.
The result is kept in the cache, outside the checkout.

    python tools/freethreaded.py                    the interpreter
    python tools/freethreaded.py --thread-sanitizer the same, with clang and ThreadSanitizer
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kept import cache

SUITE = "trixie"
PACKAGE = "python3.13"
VERSION = "3.13t"

PROGRAMS = {"apt-get": "apt", "make": "make", "gcc": "gcc"}
HEADERS = {"ffi.h": "libffi-dev", "zlib.h": "zlib1g-dev"}

BUILD_TIMEOUT = 3600.0


class BuildError(Exception):
    """Something is missing or failed; the message says what."""


def missing(compiler: str) -> str:
    """Return what this machine lacks, with the command that brings it; empty if nothing."""
    programs = PROGRAMS | {compiler: compiler}
    packages = [programs[name] for name in programs if shutil.which(name) is None]
    packages += [package for header, package in HEADERS.items() if not has_header(header)]
    if not packages:
        return ""
    return f"needs apt-get install --no-install-recommends {' '.join(dict.fromkeys(packages))}"


def has_header(header: str) -> bool:
    """Say whether the C compiler finds a header."""
    compile_it = ["gcc", "-E", "-include", header, "-x", "c", os.devnull]
    try:
        return subprocess.run(compile_it, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return True  # the compiler is what is missing


def interpreter(thread_sanitizer: bool = False) -> Path:
    """Return the interpreter; build it if the cache has none."""
    name = f"python-{VERSION}" + ("-tsan" if thread_sanitizer else "")
    folder = cache() / "freethreaded" / name
    python = folder / "bin" / f"python{VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent / f"{name}.lock"):
        if not python.exists():
            if absent := missing("clang" if thread_sanitizer else "gcc"):
                raise BuildError(absent)
            build(folder, thread_sanitizer)
    return python


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let a second run wait for the first."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(folder: Path, thread_sanitizer: bool) -> None:
    """Configure, make and install into ``folder``; the last step of it makes it complete."""
    say(f"building {folder.name}; this takes minutes")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        source = fetch_source(Path(scratch))
        options = ["--disable-gil", "--disable-test-modules", f"--prefix={folder}"]
        environment = {}
        if thread_sanitizer:
            options.append("--with-thread-sanitizer")
            environment = {"CC": "clang", "TSAN_OPTIONS": "report_bugs=0"}
        run("./configure", *options, cwd=source, **environment)
        run("make", f"-j{os.cpu_count() or 1}", cwd=source, **environment)
        shutil.rmtree(folder, ignore_errors=True)
        run("make", "install", cwd=source, **environment)
    run(str(folder / "bin" / f"python{VERSION}"), "-c", "import ctypes, pip, socket, zlib")


def fetch_source(scratch: Path) -> Path:
    """Download the source package into ``scratch``, and return the folder of its unpacked tar."""
    sources = scratch / "sources.list"
    sources.write_text("".join(f"deb-src {uri} {SUITE} main\n" for uri in archives()))
    for name in "lists/partial", "cache/archives/partial":
        (scratch / name).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": "",  # it may not write here
    }
    apt = ["apt-get", *(f"--option={name}={value}" for name, value in settings.items())]
    run(*apt, "update", cwd=scratch)
    run(*apt, "source", "--download-only", "--only-source", PACKAGE, cwd=scratch)
    [archive] = scratch.glob(f"{PACKAGE}_*.orig.tar.*[!c]")  # not its .asc
    with tarfile.open(archive) as tar:
        tar.extractall(scratch / "source", filter="data")
    [source] = (scratch / "source").iterdir()
    return source


def archives() -> list[str]:
    """Return the addresses of Debian's archive that this machine's own apt uses."""
    question = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]
    answer = subprocess.run(question, capture_output=True, text=True, check=True).stdout
    lines = (line.split() for line in answer.splitlines())
    found = dict.fromkeys(line[2] for line in lines if line[:2] == ["Debian", "Debian"])
    if not found:
        raise BuildError("apt knows no Debian archive yet: run apt-get update")
    return [*found]


def run(*command: str, cwd: Path | None = None, **environment: str) -> None:
    """Run a program at low priority; on failure, its output is in the error."""
    done = subprocess.run(
        ["nice", *command],
        cwd=cwd,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=BUILD_TIMEOUT,
    )
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stdout[-5000:]}")


def say(text: str) -> None:
    """Tell the user what is going on."""
    print(f"freethreaded.py: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the interpreter's path; 2 if it cannot be had, with the reason."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--thread-sanitizer", action="store_true", help="build with clang and TSan")
    try:
        print(interpreter(parser.parse_args(argv).thread_sanitizer))
    except BuildError as error:
        say(str(error))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
