"""Every check that is not a test: ``python tools/check.py`` runs them all, in groups.

    lint        ruff, clang-format, codespell, shellcheck
    types       mypy --strict, pyright, stubtest on the built extension, the type tests
    package     metadata, manifest, two identical builds, wheels audited and installed
    docs        the documentation, with warnings as errors, and its code examples
    workflows   zizmor, and the workflows' and Dependabot's JSON schemas

    lock        not a check: write requirements-*.txt anew from requirements-*.in

It needs nothing but Python 3.11 or later and git.  The tools, pinned by hash, are installed once
into a virtual environment outside the checkout, in ``$WFPIOCTL_CACHE``, else
``$XDG_CACHE_HOME/wfpioctl``, else ``~/.cache/wfpioctl``.  Nothing is written to the checkout but
``docs/_build`` and ``dist``.
"""

import argparse
import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path

from kept import cache

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tools" / "requirements-check.txt"
HARDEN_REQUIREMENTS = ROOT / "tools" / "requirements-harden.txt"
WORKFLOWS = ROOT / ".github" / "workflows"
BIN = "Scripts" if os.name == "nt" else "bin"
PYTHON_VERSIONS = ("3.11", "3.12", "3.13", "3.14", "3.15", "3.13t", "3.14t", "3.15t")
GLIBC = "2.17"  # the oldest that the Linux wheel must run on: CentOS 7's, manylinux2014


class Failed(Exception):
    """A check failed; what it printed says why."""


# ------------------------------------------------------------------------------------------ tools


def programs() -> Path:
    """Return the folder of the tools' programs, for this Python and these pins."""
    pins = REQUIREMENTS.read_bytes() + sys.version.encode()
    return cache() / f"check-{hashlib.sha256(pins).hexdigest()[:12]}" / BIN


def install_tools() -> None:
    """Install the tools, if this is the first time."""
    folder = programs().parent
    complete = folder / "complete"
    if not complete.exists():
        print(f"installing the tools into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = ("python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--require-hashes", "--no-deps", "--requirement", REQUIREMENTS, quiet=True)
        complete.touch()


def run(
    *command: str | Path, cwd: Path = ROOT, quiet: bool = False, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program, one of the tools first of all; raise Failed with its output if it fails."""
    parts = [str(part).replace(f"{ROOT}{os.sep}", "") for part in command]
    line = shlex.join(parts[:9]) + (f" (and {len(parts) - 9} more)" if len(parts) > 9 else "")
    if not quiet:
        print(f"  $ {line}", flush=True)
    path = f"{programs()}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which(str(command[0]), path=path)
    if program is None:
        raise Failed(f"no program {command[0]}")
    done = subprocess.run(
        [program, *map(str, command[1:])],
        cwd=cwd,
        env=os.environ | {"PATH": path} | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Failed(f"{line}\n{done.stdout}")
    return done


# ----------------------------------------------------------------------------------------- source


def versioned(*endings: str) -> list[Path]:
    """The checkout's files that git has or would take, with one of these endings."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (ROOT / name for name in listing.split("\0") if name.endswith(endings or "") and name)
    return sorted(path for path in paths if path.is_file())


def copy_tree(folder: Path) -> Path:
    """Copy the checkout without git and without anything that was built in it."""
    for path in versioned():
        copy = folder / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    return folder


def build_variables() -> dict[str, str]:
    """What makes a build outside the checkout the same each time: its version and its date."""
    version = run("python", "-m", "setuptools_scm", quiet=True).stdout.split()[-1]
    dated = subprocess.run(
        ["git", "log", "-1", "--format=%ct"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {
        "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_WFPIOCTL": version,
        "SOURCE_DATE_EPOCH": dated.stdout.strip(),
    }


def build_wheel(tree: Path, to: Path, env: dict[str, str]) -> Path:
    """Build the wheel with the pinned tools, not with whatever is newest today."""
    run("python", "-m", "build", "--no-isolation", "--wheel", "--outdir", to, tree, env=env)
    [wheel] = to.glob("*.whl")
    return wheel


@contextlib.contextmanager
def built_package() -> Iterator[dict[str, str]]:
    """Build the package of this checkout; yields the variables with which Python imports it."""
    with scratch() as folder:
        wheel = build_wheel(copy_tree(folder / "tree"), folder / "wheel", build_variables())
        site = folder / "site"
        install = ("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
        run(*install, "--target", site, wheel, quiet=True)
        yield {"PYTHONPATH": str(site)}


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wfpioctl-check-") as folder:
        yield Path(folder).resolve()


# ----------------------------------------------------------------------------------------- checks


def lint() -> None:
    run("ruff", "check", ".")
    run("ruff", "format", "--check", ".")
    run("clang-format", "--dry-run", "--Werror", *versioned(".c", ".h"))
    run("codespell", *versioned(".c", ".h", ".md", ".py", ".pyi", ".svg", ".toml", ".yml"))
    scripts = [*versioned(".sh"), ROOT / ".ci" / "run"]
    run("shellcheck", *(script for script in scripts if script.exists()))


def types() -> None:
    with built_package() as package:
        run("mypy", "wfpioctl")
        run("mypy", "tools/check.py", "tests/typing_api.py", env=package)
        run("basedpyright", "--project", ROOT)
        with scratch() as elsewhere:  # where no source tree is in the way of the built package
            run("python", "-m", "mypy.stubtest", "wfpioctl._wfpioctl", cwd=elsewhere, env=package)
            verify = ("--verifytypes", "wfpioctl", "--ignoreexternal")
            run("basedpyright", *verify, cwd=elsewhere, env=package)
            for test in versioned("typing_api.py"):  # what it asserts of types must also run
                run("python", "-W", "error", test, cwd=elsewhere, env=package)


def package() -> None:
    run("validate-pyproject", ROOT / "pyproject.toml")
    variables = build_variables()
    run("check-manifest", "--no-build-isolation", env=variables)
    with scratch() as folder:
        sdist = reproducible(folder, "sdist", copy_tree, variables)
        sources = unpack(sdist, folder / "unpacked")

        def copy_sources(to: Path) -> Path:
            shutil.copytree(sources, to)
            return to

        wheel = reproducible(folder, "wheel", copy_sources, variables)
        run("twine", "check", "--strict", sdist, wheel)
        if "-abi3-" in wheel.name:
            run("abi3audit", "--strict", wheel)
        if sys.platform == "linux":
            wheel = manylinux_wheel(sources, folder / "manylinux", variables)
        for number, (version, python) in enumerate(pythons().items()):
            if "-abi3-" in wheel.name and "free-threading" in version:
                continue  # it has a wheel of its own
            try_wheel(wheel, python, folder / f"venv-{number}")
            print(f"  works in Python {version.removeprefix('Python ')}")
        dist = ROOT / "dist"
        dist.mkdir(exist_ok=True)
        for result in sdist, wheel:
            print(f"  {shutil.copy(result, dist)}")


def reproducible(
    folder: Path, kind: str, copy: Callable[[Path], Path], variables: dict[str, str]
) -> Path:
    """Build twice, in folders of different names; the results must not differ in a byte."""
    results: list[Path] = []
    for place in "one", "another":
        tree = copy(folder / f"{place}-{kind}")
        to = folder / f"{place}-{kind}-built"
        build = ("python", "-m", "build", "--no-isolation", f"--{kind}", "--outdir", to)
        run(*build, tree, env=variables)
        results += to.iterdir()
    digests = {hashlib.sha256(result.read_bytes()).hexdigest() for result in results}
    print(f"  {results[0].name}: sha256 {' and '.join(digests)}")
    if len(digests) != 1:
        raise Failed(f"two builds of one {kind} differ")
    return results[0]


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data")
    [sources] = folder.iterdir()
    return sources


def manylinux_wheel(sources: Path, folder: Path, variables: dict[str, str]) -> Path:
    """Build for an old glibc with zig's compiler, and let auditwheel say what it depends on."""
    machine = platform.machine()
    compiler = f"python -m ziglang cc -target {machine}-linux-gnu.{GLIBC}"
    zig = {"CC": compiler, "LDSHARED": f"{compiler} -shared"}
    wheel = build_wheel(sources, folder / "plain", zig | variables)
    tag = f"manylinux_{GLIBC.replace('.', '_')}_{machine}"
    run("auditwheel", "repair", "--plat", tag, "--wheel-dir", folder / "repaired", wheel)
    [repaired] = (folder / "repaired").iterdir()
    if "-abi3-" in wheel.name:
        run("abi3audit", "--strict", repaired)
    return repaired


def pythons() -> dict[str, Path]:
    """This machine's interpreters that the wheel is for, by what they say of their version."""
    found = [Path(sys.executable)]
    found += [Path(path) for name in PYTHON_VERSIONS if (path := shutil.which(f"python{name}"))]
    found += Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python")
    versions: dict[str, Path] = {}
    for python in found:
        done = subprocess.run([python, "-VV"], check=False, capture_output=True, text=True)
        if done.returncode == 0:  # a version manager's stand-in fails for what it does not have
            versions.setdefault(done.stdout.strip(), python)
    return versions


def try_wheel(wheel: Path, python: Path, folder: Path) -> None:
    """Install the wheel and nothing else; import it with warnings as errors, and use it."""
    run(python, "-m", "venv", folder, quiet=True)
    own = folder / BIN / "python"
    pip = (own, "-m", "pip", "--disable-pip-version-check", "install", "--no-index", "--no-deps")
    run(*pip, "--quiet", wheel, quiet=True)
    package = ("-m", "wfpioctl")
    for arguments in ("-c", "import wfpioctl"), (*package, "--version"), (*package, "demo"):
        run(own, "-W", "error", *arguments, cwd=folder, quiet=True)


def docs() -> None:
    with built_package() as package:
        # Not "python -m sphinx", which would import the source tree instead of the built package.
        build = ("sphinx-build", "--fail-on-warning", "--keep-going", "--fresh-env", "--quiet")
        output = ROOT / "docs" / "_build"
        run(*build, "--nitpicky", "-b", "html", "docs", output / "html", env=package)
        done = run(*build[:-1], "-b", "doctest", "docs", output / "doctest", env=package)
        summary = done.stdout.partition("Doctest summary")[2].splitlines()
        print("  examples:", ", ".join(line.strip() for line in summary[2:4]))


def workflows() -> None:
    files = [str(path) for path in versioned(".yml") if path.parent == WORKFLOWS]
    run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *files)
    dependabot = ROOT / ".github" / "dependabot.yml"
    run("check-jsonschema", "--builtin-schema", "vendor.dependabot", dependabot)
    run("zizmor", "--offline", "--persona", "pedantic", "--no-progress", ROOT / ".github")
    for file in files:
        if "never run on GitHub" not in Path(file).read_text().partition("\n")[0]:
            raise Failed(f"{file}: its first line must say that it was never run on GitHub")


def lock() -> None:
    """Write the pins anew; run it in a branch, and look at what changed."""
    for pins in REQUIREMENTS, HARDEN_REQUIREMENTS:
        run("uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes",
            "--upgrade", "--quiet", "--no-annotate", "--custom-compile-command",
            "python tools/check.py lock", "--output-file", pins,
            pins.with_suffix(".in"))  # fmt: skip


CHECKS = {check.__name__: check for check in (lint, types, package, docs, workflows)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checks", nargs="*", choices=[*CHECKS, "all", "lock"], default="all", metavar="CHECK"
    )
    chosen = parser.parse_args().checks
    if "lock" in chosen:
        install_tools()
        lock()
        return 0
    install_tools()
    failures = []
    for name in CHECKS if "all" in chosen else chosen:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        try:
            CHECKS[name]()
        except Failed as failure:
            print(f"\nFAILED: {failure}", flush=True)
            failures.append(name)
        else:
            print(f"  passed in {time.monotonic() - started:.0f} s", flush=True)
    print(f"== {'failed: ' + ', '.join(failures) if failures else 'all passed'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
