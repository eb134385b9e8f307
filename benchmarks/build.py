"""Builds the peers that are compiled, on demand, into the cache outside the checkout."""

import contextlib
import hashlib
import importlib.util
import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

from .peers import cffi_peer
from .rows import Unavailable

HERE = Path(__file__).parent
PEERS = HERE / "peers"
FLOOR_SOURCE = PEERS / "floor.c"
WINSOCK_TYPES = HERE.parent / "src" / "winsock_types.h"


def cache() -> Path:
    """Return the folder of everything that is kept between runs."""
    own = os.environ.get("WFPIOCTL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = (Path(own) if own else base / "wfpioctl") / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def floor(*, limited_api: bool = False) -> ModuleType:
    """Return the floor extension, built against the full or the limited API."""
    source = FLOOR_SOURCE.read_text()
    if limited_api:
        if sys.platform == "win32":
            raise Unavailable("the floor against the limited API is not built for Windows")
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            raise Unavailable("a free-threaded Python has no limited API")
        source = f"#define Py_LIMITED_API 0x030b0000\n{source}"
    return _load("floor_peer", source, WINSOCK_TYPES.read_text())


def cffi() -> ModuleType:
    """Return the cffi module in API mode."""
    try:
        from cffi import FFI
    except ImportError:
        raise Unavailable("cffi is not installed") from None
    ffi = FFI()
    ffi.cdef(cffi_peer.DECLARATIONS)
    ffi.set_source("cffi_peer_module", cffi_peer.SOURCE)
    with tempfile.TemporaryDirectory() as scratch:
        generated = Path(scratch) / "source.c"
        with contextlib.redirect_stdout(None):  # it says what it does
            ffi.emit_c_code(str(generated))
        return _load("cffi_peer_module", generated.read_text())


def _load(name: str, source: str, *other_input: str) -> ModuleType:
    """Import the module ``name``; compile it unless the cache has it, of this very source."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    key = hashlib.sha256("\0".join([sys.version, source, *other_input]).encode()).hexdigest()[:16]
    library = PEERS / f"{name}{suffix}"  # cross-built, for where there is no compiler
    if not library.exists():
        library = cache() / key / f"{name}{suffix}"
    if not library.exists():
        _compile(name, source, library)
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _compile(name: str, source: str, library: Path) -> None:
    """Compile with the flags that the interpreter gives to every extension, setup.py's too."""
    try:
        from setuptools import Distribution, Extension
        from setuptools.command.build_ext import build_ext
    except ImportError:
        raise Unavailable("setuptools is not installed") from None
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        (Path(scratch) / f"{name}.c").write_text(source)
        extension = Extension(
            name,
            sources=[str(Path(scratch) / f"{name}.c")],
            include_dirs=[str(WINSOCK_TYPES.parent)],
            libraries=["ws2_32"] if sys.platform == "win32" else [],
        )
        command = build_ext(Distribution({"name": name, "ext_modules": [extension]}))
        command.build_temp, command.build_lib = scratch, scratch
        command.ensure_finalized()
        command.run()
        library.parent.mkdir(exist_ok=True)
        Path(command.get_ext_fullpath(name)).replace(library)
