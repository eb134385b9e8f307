"""Builds the extension; everything else is in pyproject.toml."""

import os
import shlex
import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# The folder of a Windows Python: build for that one, elsewhere, with the mingw-w64 compiler in $CC.
WINDOWS_PYTHON = os.environ.get("WFPIOCTL_WINDOWS_PYTHON")
WINDOWS = sys.platform == "win32" or WINDOWS_PYTHON is not None

# A free-threaded interpreter has no limited API (before 3.15): it gets a wheel of its own.
LIMITED = WINDOWS_PYTHON is not None or not sysconfig.get_config_var("Py_GIL_DISABLED")

# WFPIOCTL_BUILD=asan, tsan or coverage: an instrumented build, for tools/harden.py.
INSTRUMENTS = {
    "asan": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "tsan": ["-fsanitize=thread"],
    "coverage": ["--coverage", "-O0"],
}
INSTRUMENT = INSTRUMENTS[build] if (build := os.environ.get("WFPIOCTL_BUILD")) else []

FLAGS = {
    "msvc": ["/std:c11", "/experimental:c11atomics", "/W4", "/WX"],
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
        flags = FLAGS["msvc" if self.compiler.compiler_type == "msvc" else "unix"]
        for extension in self.extensions:
            extension.extra_compile_args.extend(flags)
            if INSTRUMENT:
                extension.extra_compile_args += [*INSTRUMENT, "-g", "-fno-omit-frame-pointer"]
                extension.extra_link_args += INSTRUMENT
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


setup(
    ext_modules=[
        Extension(
            "wfpioctl._wfpioctl",
            sources=sorted(glob("src/*.c")),
            depends=sorted(glob("src/*.h")),
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED else [],
            py_limited_api=LIMITED,
            libraries=["ws2_32"] if WINDOWS else [],
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
