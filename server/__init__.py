"""flipcluster: a multi-core clustered image server."""

__version__ = "0.1.0"
