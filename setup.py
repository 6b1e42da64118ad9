"""Builds the C engine (runtime/c) into the package. All else about the package stands in pyproject.toml.

The library is no Python module: it has no init function, knows nothing of Python and is loaded with ctypes by
`mednca.engine`. So one wheel serves every Python from 3.11 on. It is optional: where there is no C compiler
the package installs without it and computes in NumPy.
"""

import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("runtime", "c")
FLAGS = ["-O3", "-g0", "-std=gnu11", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]


class BuildEngine(build_ext):
    """build_ext for a library that is no module."""

    def get_export_symbols(self, ext):
        """What the linker must export, on Windows: not PyInit__engine, which there is not."""
        return ext.export_symbols

    def build_extensions(self):
        """Build, with the flags of the compiler at hand."""
        for extension in self.extensions:
            if self.compiler.compiler_type == "msvc":
                extension.extra_compile_args = ["/O2", "/std:c11"]
            else:
                extension.extra_compile_args = FLAGS
                extension.libraries = ["m"]
        super().build_extensions()


# A free-threaded Python has no limited API, and refuses a wheel that claims it.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "mednca._engine",
            [(SOURCES / "mednca.c").as_posix()],
            depends=sorted(path.as_posix() for path in SOURCES.glob("*.h")),
            optional=True,
            py_limited_api=LIMITED,
        )
    ],
    cmdclass={"build_ext": BuildEngine},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if LIMITED else {},
)
