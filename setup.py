"""Builds the package's one C extension; everything else is in pyproject.toml.

The extension is optional: where it cannot be compiled the package is installed without it, and hashes in pure Python.
"""

from pathlib import Path

from setuptools import Extension, setup

FOLDER = Path("ipe_build/integrity")

setup(
    ext_modules=[
        Extension(
            "ipe_build.integrity._native",
            sources=sorted(str(path) for path in FOLDER.glob("*native*.c")),
            depends=[str(FOLDER / "native.h")],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            extra_compile_args=["-std=gnu11", "-O3", "-Wall", "-Wextra", "-Wno-unused-parameter", "-fvisibility=hidden"],
            libraries=["pthread", "dl"],
            py_limited_api=True,
            optional=True,
        )
    ],
    # One wheel for every CPython from 3.11 on: the extension uses the stable ABI only.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
