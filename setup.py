"""The compiled part of vitdeploy: INT8 kernels for CPUs. The rest of the package is described by pyproject.toml.

Each instruction set is a file in isa/ that is compiled with flags of its own, which its first line states together with
the kind of machine; all that fit this one go into one library, which takes the fastest when it runs. Without a C++
compiler vitdeploy is installed without them, and says so when it is asked for them. VITDEPLOY_PURE=1 leaves them out,
for a wheel that fits every machine.
"""

import os
import platform
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = Path("vitdeploy/backends/native")
MACHINE = {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


def stated(source: Path) -> tuple[str, list[str]]:
    """The machine and the flags that a source asks for in its first line; any machine and none where it does not."""
    found = re.match(r"// Compiled for (\S+) with (.*)", source.read_text(encoding="utf-8"))
    return (found[1], found[2].split()) if found else ("any", [])


class BuildKernels(build_ext):
    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def with_its_flags(object_file, source, extension, before, after, options):
            compile_one(object_file, source, extension, before, [*after, *stated(Path(source))[1]], options)

        self.compiler._compile = with_its_flags
        super().build_extensions()


class Wheel(bdist_wheel):
    """The library is loaded by ctypes and knows nothing of Python: one wheel a machine serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


KERNELS = Extension(
    "vitdeploy.backends.native._kernels",
    [str(path) for path in sorted(FOLDER.rglob("*.cpp")) if stated(path)[0] in (MACHINE, "any")],
    depends=[str(path) for path in sorted(FOLDER.rglob("*.h"))],
    # a product and a sum are one rounding only where the source says so: every instruction set gives the same bits
    extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=off", "-fvisibility=hidden", "-g0"],
    extra_link_args=["-pthread"],
    py_limited_api=True,  # its file's name holds no version of Python
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("VITDEPLOY_PURE") == "1" else [KERNELS],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
