"""Compiles the one module that has to be fast. Everything else about the project is in pyproject.toml.

Where there is no compiler, the project works without it: JPEGs are then decoded and encoded again.
"""

from Cython.Build import cythonize
from setuptools import Extension, setup

KERNEL = Extension(
    "server.imaging.jpeg.entropy",
    ["server/imaging/jpeg/entropy.py"],
    extra_compile_args=["-O3"],
    optional=True,
)

setup(ext_modules=cythonize([KERNEL], build_dir="build"))
