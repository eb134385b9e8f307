"""Hardening: the test suite on instrumented builds, fuzzers, coverage, mutation.

    asan        the suite under AddressSanitizer and UndefinedBehaviorSanitizer
    tsan        threads on a free-threaded CPython, all of it built with ThreadSanitizer
    threads     tests in 8 threads at once, on a free-threaded CPython
    debug       the leak tests on a debug interpreter, which counts references
    coverage    lines of src/, lines and branches of wfpioctl/
    fuzz        coverage-guided fuzzers (fuzz/), one or all
    mutation    mutants of the pure Python files; reports, and fails nobody

Every verb copies the checkout and builds in the copy; nothing is written to the checkout.  Copies,
environments and corpora are kept in ``$WFPIOCTL_CACHE``, else ``$XDG_CACHE_HOME/wfpioctl``, else
``~/.cache/wfpioctl``.  The tools are pinned by hash.  Arguments after ``--`` go to pytest.
"""

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kept import cache

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements-harden.txt"
VERSION = {"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_WFPIOCTL": "0.0+harden"}
DEBUG_PYTHON = "python3.11-dbg"
CLANG_LINK = "clang -shared"

OTHER_PYTHONS = "test_isolated_interpreters_of_another_python_use_this_build"

# Wine's Python is not the one that is instrumented.
SUITE = ("-q", "-p", "no:cacheprovider", "--ignore=tests/test_windows.py")

# What threads may do to each other.
THREAD_TESTS = (
    *("test_threads.py", "test_lifetimes.py"),
    *("test_scripted.py", "test_overlapped_storm.py"),
)

# Tests of which each can run in several threads at once; fixtures are made once for all threads.
# Those that need hypothesis are left out: the free-threaded CPython does not have it.
PARALLEL_TESTS = (
    *("test_bad_input.py", "test_constants.py", "test_datagram.py", "test_errors.py"),
    *("test_growth.py", "test_hostile_provider.py", "test_ioctl.py", "test_redirect.py"),
    "test_simulator_functions.py",
)

# Tests that call these run in one thread: there is one simulator, one handler, one default.
ONE_FOR_ALL = (
    *("_wfpioctl.scripted_start", "_wfpioctl.engine_start"),
    *("signal.signal", "socket.setdefaulttimeout"),
)

# The engine asks whose a descriptor is now, which another thread may just be closing or opening: to
# ThreadSanitizer that is a race for the descriptor, here it is the question.
NO_RACES = "race:owner_is_gone\n"

OWN_FRAME = re.compile(r"^ +#[01] .*\bsrc/\w+\.[ch]:\d+", re.MULTILINE)

# Not to be lost again, in percent.
MIN_C_LINES = 98.0
MIN_PYTHON = 100.0

MAX_KEPT = 300  # bytes of an input that is kept in fuzz/corpus


class Failed(Exception):
    """A verb found something, or could not run; the message says what."""


def run(
    *command: str | Path, cwd: Path, variables: dict[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program, its output shown and returned."""
    print("  $", shlex.join(map(str, command)).replace(f"{ROOT}{os.sep}", ""), flush=True)
    lines = []
    with subprocess.Popen(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | (variables or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print("   ", line.rstrip(), flush=True)
            lines.append(line)
    if check and process.returncode:
        raise Failed(f"{command[0]} ended with {process.returncode}")
    return subprocess.CompletedProcess(command, process.returncode, "".join(lines))


def quietly(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a program; what it prints is returned, and shown only if it fails."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise Failed(f"{shlex.join(map(str, command))}\n{done.stdout[-8000:]}")
    return done.stdout


class Workshop:
    """A copy of the checkout, built in one way, and the environment that runs it."""

    def __init__(self, name: str, python: str = sys.executable) -> None:
        self.folder = cache() / "harden" / name
        self.tree = self.folder / "tree"
        self.interpreter = python
        self.python = self.folder / "venv" / "bin" / "python"

    @contextlib.contextmanager
    def open(self, **variables: str) -> Iterator["Workshop"]:
        """Build it with these variables; a second run of the same verb waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.install_tools()
            self.copy_tree()
            pip: list[str | Path] = [
                self.python,
                "-m",
                "pip",
                "--disable-pip-version-check",
                "install",
                "--quiet",
            ]
            own = ["--no-build-isolation", "--no-deps", "--no-index", "--editable", "."]
            quietly(*pip, *own, cwd=self.tree, **VERSION, **variables)
            yield self

    def install_tools(self) -> None:
        pins = self.folder / "requirements"
        if pins.exists() and pins.read_bytes() == REQUIREMENTS.read_bytes():
            return
        shutil.rmtree(self.folder / "venv", ignore_errors=True)
        quietly(self.interpreter, "-m", "venv", self.folder / "venv", cwd=self.folder)
        quietly(
            *(self.python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"),
            *("--no-deps", "--require-hashes", "--requirement", REQUIREMENTS),
            cwd=self.folder,
        )
        shutil.copy(REQUIREMENTS, pins)

    def copy_tree(self) -> None:
        """Copy what git has or would take."""
        shutil.rmtree(self.tree, ignore_errors=True)
        listing = quietly(
            *("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"), cwd=ROOT
        )
        for name in filter(None, listing.split("\0")):
            if (ROOT / name).is_file():
                copy = self.tree / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy)

    def preload(self, libraries: list[str]) -> None:
        """Load them into this Python and its Python children, and into nothing else: curl hangs."""
        program = self.python.with_name("python-preloaded")
        program.write_text(
            f"""#!/bin/bash
LD_PRELOAD={shlex.quote(" ".join(libraries))} exec -a "$0" {self.python.resolve()} "$@"
"""
        )
        program.chmod(0o755)
        site = quietly(
            self.python, "-c", "import site; print(site.getsitepackages()[0])", cwd=self.folder
        )
        preloaded = Path(site.strip()) / "preloaded.pth"
        preloaded.write_text('import os; os.environ.pop("LD_PRELOAD", None)\n')
        self.python = program

    def pytest(self, *arguments: str, **variables: str) -> str:
        command = ("-m", "pytest", *SUITE, *arguments)
        return run(self.python, *command, cwd=self.tree, variables=variables).stdout


# ------------------------------------------------------------------------------------------ verbs


def asan(options: argparse.Namespace) -> None:
    runtimes = [
        quietly("gcc", f"-print-file-name=lib{name}.so", cwd=ROOT).strip()
        for name in ("asan", "ubsan")
    ]
    with Workshop("asan").open(WFPIOCTL_BUILD="asan", CC="gcc") as shop:
        shop.preload(runtimes)
        shop.pytest(
            # psleak watches the process's heap, and the sanitizer keeps what was freed.
            *("--deselect", "tests/test_leaks.py::TestProcess"),
            # Other Pythons do not have the sanitizer loaded.
            *("--deselect", "tests/test_interpreters.py::" + OTHER_PYTHONS),
            *options.pytest,
            ASAN_OPTIONS="detect_leaks=0:abort_on_error=1:detect_stack_use_after_return=1",
            UBSAN_OPTIONS="print_stacktrace=1:halt_on_error=1:abort_on_error=1",
            PYTHONMALLOC="malloc",
        )


def debug(options: argparse.Namespace) -> None:
    if shutil.which(DEBUG_PYTHON) is None:
        raise Failed(f"needs apt-get install --no-install-recommends {DEBUG_PYTHON}")
    tests = options.pytest or ["tests/test_leaks.py", "tests/test_lifetimes.py"]
    with Workshop("debug", DEBUG_PYTHON).open() as shop:
        shop.pytest(*tests)


def threads(options: argparse.Namespace) -> None:
    """Without instruments: that no answer is another thread's, and nothing crashes."""
    python = quietly(sys.executable, "tools/freethreaded.py", cwd=ROOT).strip().splitlines()[-1]
    with Workshop("threads", python).open() as shop:
        tests = options.pytest or [f"tests/{name}" for name in PARALLEL_TESTS]
        alone = "thread_unsafe_functions=" + "\n".join(ONE_FOR_ALL)
        shop.pytest("--parallel-threads=8", "-o", alone, *tests, PYTHON_GIL="0")


def tsan(options: argparse.Namespace) -> None:
    """Findings count when src/ is where one of their stacks is, or what called the system there;
    the interpreter has races of its own (one exception object raised in several threads)."""
    builder = [sys.executable, "tools/freethreaded.py", "--thread-sanitizer"]
    python = quietly(*builder, cwd=ROOT).strip().splitlines()[-1]
    os.environ["TSAN_OPTIONS"] = "report_bugs=0"  # of what installs and builds
    with Workshop("tsan", python).open(
        WFPIOCTL_BUILD="tsan", CC="clang", LDSHARED=CLANG_LINK
    ) as shop:
        reports = shop.folder / "reports"
        shutil.rmtree(reports, ignore_errors=True)
        reports.mkdir()
        suppressions = shop.folder / "suppressions"
        suppressions.write_text(NO_RACES)
        settings = f"report_bugs=1:exitcode=0:history_size=4:log_path={reports}/tsan"
        settings += f":suppressions={suppressions}"
        usual = [f"tests/{name}" for name in THREAD_TESTS]
        usual += ["-k", "not fork"]  # the sanitizer does not follow it
        shop.pytest(
            *(options.pytest or usual), "--timeout=600", TSAN_OPTIONS=settings, PYTHON_GIL="0"
        )
        text = "".join(path.read_text(errors="replace") for path in sorted(reports.iterdir()))
        found = [part for part in text.split("=" * 18) if "WARNING: ThreadSanitizer" in part]
        own = [part for part in found if OWN_FRAME.search(part)]
        print(f"  {len(found)} reports, {len(own)} of them in src/")
        if own:
            raise Failed("\n".join(own[:5]))


def coverage(options: argparse.Namespace) -> None:
    with Workshop("coverage").open(WFPIOCTL_BUILD="coverage", CC="gcc") as shop:
        # The objects stay, for their counters; an editable installation forgets them.
        build = (shop.python, "setup.py", "build_ext", "--inplace", "--force")
        quietly(*build, cwd=shop.tree, WFPIOCTL_BUILD="coverage", CC="gcc", **VERSION)
        tool: list[str | Path] = [shop.python, "-m", "coverage"]
        # Coverage allocates where a call does not, and has locks that a fork leaves locked.
        apart = "fork_under or every_failed_allocation"
        usual = ["-m", "not slow", "-k", f"not ({apart})"]
        tests = [*SUITE, *(options.pytest or usual)]
        run(*tool, "run", "-m", "pytest", *tests, cwd=shop.tree)
        if not options.pytest:
            shop.pytest("-k", apart)  # counts the lines of src/ alone
        quietly(*tool, "combine", cwd=shop.tree)
        python = run(*tool, "report", "--skip-covered", "--show-missing", cwd=shop.tree)
        gcov: list[str | Path] = [
            shop.python,
            "-m",
            "gcovr",
            "--root",
            ".",
            "--filter",
            "src/",
            "build",
        ]
        gcov += ["--gcov-ignore-parse-errors=negative_hits.warn", "--exclude-unreachable-branches"]
        report = run(*gcov, "--txt-metric", "line", cwd=shop.tree)
        for name, text, least in (
            ("src/", report.stdout, MIN_C_LINES),
            ("wfpioctl/", python.stdout, MIN_PYTHON),
        ):
            total = re.search(r"^TOTAL\s.*?([\d.]+)%", text, re.MULTILINE)
            if total is None or float(total[1]) < least:
                raise Failed(f"less than {least} % of {name} was run")


def fuzz(options: argparse.Namespace) -> None:
    sys.path.insert(0, str(ROOT / "fuzz"))
    import targets

    chosen = options.targets or [*targets.TARGETS]
    if unknown := set(chosen) - set(targets.TARGETS):
        raise Failed(f"no target {', '.join(unknown)}; there are {', '.join(targets.TARGETS)}")
    with Workshop("fuzz").open(WFPIOCTL_BUILD="fuzz", CC="clang", LDSHARED=CLANG_LINK) as shop:
        for name in chosen:
            print(f"== {name}, {options.seconds} s", flush=True)
            program = targets.TARGETS[name].prepare(shop.tree, shop.python)
            fuzz_one(shop, name, program, options)


def fuzz_one(shop: Workshop, name: str, program: Any, options: argparse.Namespace) -> None:
    corpus, kept = shop.folder / "corpus" / name, shop.folder / "kept" / name
    corpus.mkdir(parents=True, exist_ok=True)
    seeds = ROOT / "fuzz" / "corpus" / f"{name}.hex"
    for line in seeds.read_text().split() if seeds.exists() else ():
        data = bytes.fromhex(line)
        (corpus / hashlib.sha256(data).hexdigest()).write_bytes(data)
    run(
        *program.command,
        f"-max_total_time={options.seconds}",
        f"-artifact_prefix={shop.folder}/crash-{name}-",
        *("-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"),
        corpus,
        cwd=shop.tree,
        variables=program.variables,
    )
    if options.keep:
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        merge = [*program.command, "-merge=1", "-verbosity=0", kept, corpus]
        run(*merge, cwd=shop.tree, variables=program.variables)
        # libFuzzer cannot merge for atheris: there, all that is left after a run is kept.
        inputs = [path.read_bytes() for path in [*kept.iterdir()] or corpus.iterdir()]
        lines = sorted(data.hex() for data in inputs if 0 < len(data) <= MAX_KEPT)
        seeds.parent.mkdir(exist_ok=True)
        seeds.write_text("".join(f"{line}\n" for line in lines[:: -(-len(lines) // 150) or 1]))


def mutation(options: argparse.Namespace) -> None:
    """What survives mutmut's forks gets a process of its own: a fork is too late for what ran when
    a module or a test was imported."""
    with Workshop("mutation").open() as shop:
        tool = [shop.python, "-m", "mutmut"]
        print("  mutmut: it takes some minutes, see [tool.mutmut] in pyproject.toml", flush=True)
        quietly(*tool, "run", cwd=shop.tree)
        listing = quietly(*tool, "results", "--all", "true", cwd=shop.tree)
        verdicts = dict(line.strip().split(": ") for line in listing.splitlines())
        modules = sorted({name.split(".")[1] for name in verdicts})
        for module in modules:
            if not survives(f"wfpioctl.{module}.none", shop, options.pytest):
                raise Failed(f"without a mutant of {module}.py, its tests fail")
        for name, verdict in verdicts.items():
            if verdict == "survived" and not survives(name, shop, options.pytest):
                verdicts[name] = "killed"
            elif verdict not in ("killed", "timeout"):
                print(quietly(*tool, "show", name, cwd=shop.tree), flush=True)
        for module in modules:
            own = [each for name, each in verdicts.items() if name.split(".")[1] == module]
            counts = ", ".join(f"{own.count(each)} {each}" for each in sorted({*own}))
            print(f"  {module}.py: {len(own)} mutants: {counts}", flush=True)


def survives(mutant: str, shop: Workshop, arguments: list[str]) -> bool:
    """Whether the tests of its file pass when the mutant is there from the start."""
    mutants = shop.tree / "mutants"
    tests = mutants.glob(f"tests/test_{mutant.split('.')[1]}*.py")
    command = [shop.python, "-m", "pytest", *SUITE, "-x", *tests, *arguments]
    environment = {"MUTANT_UNDER_TEST": mutant, "PYTHONPATH": str(mutants)}
    try:
        quietly(*command, cwd=mutants, **environment)
    except Failed:
        return False
    return True


VERBS = {verb.__name__: verb for verb in (asan, tsan, threads, debug, coverage, fuzz, mutation)}


def main() -> int:
    arguments = [*sys.argv[1:], "--"]
    at = arguments.index("--")
    arguments, pytest = arguments[:at], arguments[at + 1 : -1]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name in VERBS:
        verb = verbs.add_parser(name)
        if name == "fuzz":
            verb.add_argument("targets", nargs="*", metavar="TARGET")
            verb.add_argument("--keep", action="store_true", help="write fuzz/corpus anew")
            verb.add_argument("--seconds", type=int, default=60, help="for each target")
    options = parser.parse_args(arguments)
    options.pytest = pytest
    started = time.monotonic()
    try:
        VERBS[options.verb](options)
    except (Failed, subprocess.CalledProcessError) as failure:
        print(f"\n{options.verb}: FAILED: {failure}", flush=True)
        return 1
    print(f"{options.verb}: passed in {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
