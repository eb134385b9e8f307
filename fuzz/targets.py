"""The fuzzers, by name, and how each is built.  tools/harden.py fuzz runs them."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CLANG = (
    *("clang", "-std=c11", "-g", "-O1", "-fno-omit-frame-pointer", "-Isrc"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
)


@dataclass(frozen=True)
class Program:
    """A command to which libFuzzer's options are added, and its environment."""

    command: list[str | Path]
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """``prepare(tree, python)`` builds it in a copy of the checkout."""

    about: str
    prepare: Callable[[Path, Path], Program]


def c_target(about: str, name: str, *sources: str) -> Target:
    """A harness in C, with the files of src/ that it needs: no Python in it."""

    def prepare(tree: Path, python: Path) -> Program:
        program = tree / f"fuzz-{name}"
        files = [f"fuzz/{name}.c", *(f"src/{source}" for source in sources)]
        subprocess.run([*CLANG, *files, "-pthread", "-o", program], cwd=tree, check=True)
        return Program([program], {"ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0"})

    return Target(about, prepare)


def python_target(about: str, name: str) -> Target:
    """A harness in Python: atheris traces the branches of the package, in Python and in C."""

    def prepare(tree: Path, python: Path) -> Program:
        question = [str(python), "-c", "import atheris; print(atheris.path())"]
        folder = subprocess.run(question, capture_output=True, text=True, check=True).stdout.strip()
        variables = {
            "LD_PRELOAD": f"{folder}/asan_with_fuzzer.so",
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own, at its end
        }
        return Program([python, f"fuzz/{name}.py"], variables)

    return Target(about, prepare)


TARGETS = {
    "growth": c_target("the growth rule against any provider", "growth", "ioctl.c"),
    "control": c_target("the parser of datagrams' control buffers", "control", "control_message.c"),
    "engine": c_target(
        "the engine's table and IOCTLs, against a model",
        *(
            "engine",
            "provider_engine.c",
            "provider_winsock.c",
            "control_message.c",
            "simulated.c",
            "alertable.c",
        ),
    ),
    "context": python_target("the context decoders, on any bytes", "context"),
    "arguments": python_target("every function, with any arguments", "arguments"),
}

if __name__ == "__main__":
    for target, each in TARGETS.items():
        sys.stdout.write(f"{target:10} {each.about}\n")
