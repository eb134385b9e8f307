"""The same benchmarks in a Windows Python under Wine: python -m benchmarks.wine [argument ...].

tools/wine.py builds and installs the package; the floor extension is cross-built here, as there is
no compiler in there.  The arguments are those of python -m benchmarks.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from . import report

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import wine  # type: ignore[import-not-found, unused-ignore]  # noqa: E402

VERSION = "3.13"


def cross_build_floor(python: Path, folder: Path) -> None:
    """Build the floor extension for that Windows Python, where build.py looks first."""
    digits = VERSION.replace(".", "")
    subprocess.run(
        [
            *("x86_64-w64-mingw32-gcc", "-O2", "-shared", "-static-libgcc", "-std=c11"),
            *(f"-I{ROOT / 'src'}", f"-I{python / 'include'}"),
            str(ROOT / "benchmarks" / "peers" / "floor.c"),
            *(str(python / "libs" / f"python{digits}.lib"), "-lws2_32"),
            *("-o", str(folder / f"floor_peer.cp{digits}-win_amd64.pyd")),
        ],
        check=True,
    )


def main(arguments: Sequence[str]) -> int:
    if absent := wine.missing():
        print(absent, file=sys.stderr)
        return 2
    with (
        tempfile.TemporaryDirectory() as scratch,
        wine.installed(VERSION, wine.build(Path(scratch))) as (prefix, python),
    ):
        copy = wine.copy_suite(prefix.parent / "copy")
        cross_build_floor(python, copy / "benchmarks" / "peers")
        os.environ[report.COMMIT] = report.commit()
        command = python / "python.exe", "-m", "benchmarks", *arguments
        timeout = wine.RUN_TIMEOUT
        done = wine.wine(prefix, *command, timeout=timeout, cwd=copy, echo=True)
        status: int = done.returncode
        return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
