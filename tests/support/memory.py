"""Directories in memory, for files that need not outlive a loss of power."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

_MEMORY = "/dev/shm"  # noqa: S108 what is made in it has a name of its own


@contextmanager
def memory_directory() -> Iterator[Path]:
    """Make a directory in memory where that can be had, and remove it when the block ends.

    Its path is short enough for a socket, which those of pytest's directories are not.
    """
    with TemporaryDirectory(dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None) as directory:
        yield Path(directory)
