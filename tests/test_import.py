"""What importing says and does, built or not."""

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import Pair

import wfpioctl
from wfpioctl import _wfpioctl
from wfpioctl.simulator import Engine


def run(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that finds what is in the folder, and nothing that is installed (-S)."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-S", "-c", program]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def copy_of_the_source(folder: Path) -> Path:
    source = Path(wfpioctl.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    # copy2() calls what Wine lacks
    shutil.copytree(source, folder / "wfpioctl", ignore=ignore, copy_function=shutil.copyfile)
    return folder / "wfpioctl"


def test_unbuilt_source_tree_says_what_to_type(tmp_path: Path) -> None:
    copy_of_the_source(tmp_path)
    done = run("import wfpioctl", tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: wfpioctl in ")
    assert "has no built extension: this is a source tree" in last
    assert "python -m pip install -e ." in last
    assert "During handling" not in done.stderr


def test_unbuilt_source_tree_says_so_for_its_submodules_too(tmp_path: Path) -> None:
    copy_of_the_source(tmp_path)
    for module in ("wfpioctl.simulator", "wfpioctl.errors"):
        assert "has no built extension" in run(f"import {module}", tmp_path).stderr


def test_other_import_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    """An extension that fails to load is another story, told as it is."""
    (copy_of_the_source(tmp_path) / "_wfpioctl.py").write_text("import no_such_module\n")
    done = run("import wfpioctl", tmp_path)
    assert done.stderr.strip().endswith("ModuleNotFoundError: No module named 'no_such_module'")


CHILD = """
import __future__, json, socket, sys
before = set(sys.modules)
import wfpioctl
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_loads_only_its_own_modules() -> None:
    """Not typing, dataclasses, asyncio, argparse, the simulator or the relay: they take longer."""
    command = [sys.executable, "-I", "-c", CHILD]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=50)
    assert json.loads(answer.stdout) == [
        "wfpioctl",
        "wfpioctl._wfpioctl",
        "wfpioctl.constants",
        "wfpioctl.errors",
        "wfpioctl.redirect",
    ]


def test_public_names() -> None:
    assert sorted(set(wfpioctl.__all__)) == sorted(wfpioctl.__all__)
    for name in wfpioctl.__all__:
        assert getattr(wfpioctl, name).__class__ is not None
    namespace: dict[str, object] = {}
    exec("from wfpioctl import *", namespace)
    assert set(wfpioctl.__all__) <= set(namespace)


def test_importing_connects_nothing_and_simulates_nothing() -> None:
    program = (
        "import socket; before = dict(vars(socket.socket))\n"
        "import wfpioctl, sys\n"
        "assert dict(vars(socket.socket)) == before\n"
        "assert 'wfpioctl.simulator' not in sys.modules\n"
        "import wfpioctl.simulator\n"
        "assert dict(vars(socket.socket)) == before\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def another_extension() -> ModuleType:
    """The extension once more, with a state of its own, as each interpreter has it."""
    spec = importlib.util.spec_from_file_location("wfpioctl._wfpioctl", _wfpioctl.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_an_extension_without_its_errors_is_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wfpioctl.errors", None)
    with pytest.raises(ImportError, match=r"wfpioctl\.errors"):
        another_extension()
    monkeypatch.undo()
    assert another_extension().query_redirect_records is not wfpioctl.query_redirect_records


def test_an_extension_that_goes_takes_its_engine_along(pair: Pair) -> None:
    module = another_extension()
    module.engine_start(122, 1, 0, 1168, 0, 1)
    with pytest.raises(RuntimeError, match="another Engine or Scripted is active"):
        Engine().__enter__()
    with pytest.raises(wfpioctl.NotSupportedError):
        wfpioctl.query_redirect_records(pair.server)  # not simulated in this one
    with pytest.raises(wfpioctl.NotRedirectedError):
        module.query_redirect_records(pair.server)
    del module
    gc.collect()
    with Engine(), pytest.raises(wfpioctl.NotRedirectedError):
        wfpioctl.query_redirect_records(pair.server)
