"""Build of the one compiled module. Everything else about the project is in pyproject.toml.

Without a compiler the project works too: JPEGs are then decoded and encoded again.
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
