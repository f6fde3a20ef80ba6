"""The compiled part of vitdeploy: INT8 kernels for x86-64 CPUs. The rest of the package is described by pyproject.toml.

Without a C++ compiler, or elsewhere, vitdeploy is installed without them, and says so when it is asked for them.
"""

import platform

from setuptools import Extension, setup

KERNELS = Extension(
    "vitdeploy.runtime._kernels",
    ["vitdeploy/runtime/kernels.cpp"],
    depends=["vitdeploy/runtime/steps.h"],
    extra_compile_args=["-std=c++17", "-O3", "-march=cascadelake", "-g0"],  # that is AVX-512 with VNNI
    extra_link_args=["-pthread"],
    py_limited_api=True,  # it is loaded by ctypes and knows nothing of Python
    optional=True,
)

setup(ext_modules=[KERNELS] if platform.machine() in ("x86_64", "AMD64") else [])
