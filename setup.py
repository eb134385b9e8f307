"""Builds the extension; everything else is in pyproject.toml."""

import gzip
import os
import shlex
import sys
import sysconfig
import tarfile
from glob import glob
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

# The folder of a Windows Python: build for that one, elsewhere, with the mingw-w64 compiler in $CC.
WINDOWS_PYTHON = os.environ.get("WFPIOCTL_WINDOWS_PYTHON")
WINDOWS = sys.platform == "win32" or WINDOWS_PYTHON is not None

# A free-threaded interpreter has no limited API (before 3.15): it gets a wheel of its own.
LIMITED = WINDOWS_PYTHON is not None or not sysconfig.get_config_var("Py_GIL_DISABLED")

# WFPIOCTL_BUILD=asan, tsan or coverage: an instrumented build, for tools/harden.py.
INSTRUMENTS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
    # -u: a forked child that ends by os._exit() can write its counts (tests/support.py).
    "coverage": ["--coverage", "-O0", "-fprofile-update=atomic", "-Wl,-u,__gcov_dump"],
    "fuzz": ["-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"],
}
BUILD = os.environ.get("WFPIOCTL_BUILD")
INSTRUMENT = INSTRUMENTS[BUILD] if BUILD else []

# Those in which the C allocator can be told to fail, and the start of a thread:
# tests/test_failing_malloc.py says when.
FAILING_MALLOC = ["malloc", "calloc", "pthread_create"] if BUILD in ("asan", "coverage") else []

FLAGS = {
    "msvc": ["/std:c11", "/experimental:c11atomics", "/W4", "/WX", "/Brepro"],
    # Hidden: only PyInit_ is for others, and calls between the files need no detour.
    "unix": [
        "-fvisibility=hidden",
        "-std=c11",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Wshadow",
        "-Werror",
    ],
}


class BuildExt(build_ext):
    """Gives each compiler the flags that it understands, and can build for Windows elsewhere."""

    def build_extensions(self) -> None:
        msvc = self.compiler.compiler_type == "msvc"
        flags = FLAGS["msvc" if msvc else "unix"]
        # Neither the time nor the place of the build gets into its result.
        place = [] if msvc or INSTRUMENT else [f"-ffile-prefix-map={os.getcwd()}=."]
        for extension in self.extensions:
            extension.extra_compile_args += flags + place
            extension.extra_link_args += ["/Brepro"] if msvc else []
            if INSTRUMENT:
                extension.extra_compile_args += [*INSTRUMENT, "-g", "-fno-omit-frame-pointer"]
                extension.extra_link_args += INSTRUMENT
            extension.extra_link_args += [f"-Wl,--wrap={name}" for name in FAILING_MALLOC]
        if WINDOWS_PYTHON:
            self.target_windows(WINDOWS_PYTHON)
        super().build_extensions()

    def target_windows(self, python: str) -> None:
        """Let nothing of the Python that runs this into a build for another system."""
        compiler = shlex.split(os.environ["CC"])
        self.compiler.set_executables(
            compiler_so=[*compiler, "-O2"],
            linker_so=[*compiler, "-shared", "-static-libgcc", "-s", "-Wl,--fatal-warnings"],
        )
        self.compiler.set_include_dirs([os.path.join(python, "include")])
        self.compiler.set_library_dirs([os.path.join(python, "libs")])

    def get_libraries(self, ext: Extension) -> list[str]:
        return [*ext.libraries, "python3"] if WINDOWS_PYTHON else super().get_libraries(ext)

    def get_ext_filename(self, fullname: str) -> str:
        if WINDOWS_PYTHON:
            return os.path.join(*fullname.split(".")) + ".pyd"
        return super().get_ext_filename(fullname)


class Sdist(sdist):
    """With SOURCE_DATE_EPOCH set, equal sources make equal archives, as wheels do by themselves."""

    def make_archive(
        self, base_name: str, format: str, root_dir: Any = None, base_dir: Any = None, **owner: Any
    ) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, **owner)

        def normal(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime = int(epoch)
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return member

        name = f"{base_name}.tar.gz"
        with (
            gzip.GzipFile(name, "wb", mtime=int(epoch)) as compressed,
            tarfile.open(name, "w", compressed, format=tarfile.PAX_FORMAT) as tar,
        ):
            tar.add(base_dir, filter=normal)
        return name


setup(
    ext_modules=[
        Extension(
            "wfpioctl._wfpioctl",
            sources=sorted(glob("src/*.c")) + ["tests/failing_malloc.c"] * bool(FAILING_MALLOC),
            depends=sorted(glob("src/*.h")),
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED else [],
            py_limited_api=LIMITED,
            libraries=["ws2_32"] if WINDOWS else [],
        )
    ],
    cmdclass={"build_ext": BuildExt, "sdist": Sdist},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
