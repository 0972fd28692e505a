"""flipcluster: a multi-core clustered image server."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("flipcluster")
except PackageNotFoundError:  # run from a checkout, not installed
    __version__ = "0.1.0"
