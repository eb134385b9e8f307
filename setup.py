"""Builds the extension; everything else is in pyproject.toml."""

import sys
import sysconfig
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# A free-threaded interpreter has no limited API (before 3.15): it gets a wheel of its own.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")

FLAGS = {
    "msvc": ["/std:c11", "/experimental:c11atomics", "/W4", "/WX"],
    "unix": ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"],
}


class BuildExt(build_ext):
    """Gives each compiler the flags that it understands."""

    def build_extensions(self) -> None:
        flags = FLAGS["msvc" if self.compiler.compiler_type == "msvc" else "unix"]
        for extension in self.extensions:
            extension.extra_compile_args.extend(flags)
        super().build_extensions()


setup(
    ext_modules=[
        Extension(
            "wfpioctl._wfpioctl",
            sources=sorted(glob("src/*.c")),
            depends=sorted(glob("src/*.h")),
            define_macros=[("Py_LIMITED_API", "0x030b0000")] if LIMITED else [],
            py_limited_api=LIMITED,
            libraries=["ws2_32"] if sys.platform == "win32" else [],
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
