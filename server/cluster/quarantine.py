"""Quarantine: images that crashed engines, remembered by all workers so that they crash no more of them."""

import hashlib
import json
import math
import mmap
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Self

from server.operations.registry import Operation

#: How many engines an image may crash before it is refused unseen.
CRASH_THRESHOLD = 2

#: How many entries are remembered; a newer one may take the place of an older one.
_SLOTS = 1024

#: Integers of one slot: two of the key, engines crashed, and when it expires.
_WIDTH = 4

#: How many files are kept at most.
_MOST_FILES = 100


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """An image and what an engine did to it.

    Attributes:
        digest: SHA-256 of the image's bytes, in hexadecimal.
        operation, version: a bug in one operation, or in an older version of it, refuses no other.
        recipe: the parameters as JSON; empty for all parameters, because the engine crashed while it read the
            image. What is slow, needs much memory or crashes after that refuses no other recipe, or a caller
            could have the image of another one refused.
    """

    digest: str
    operation: str
    version: int
    body_bytes: int
    recipe: str = ""

    @classmethod
    def of(cls, upload: FileIO, operation: Operation, parameters: Mapping[str, Any]) -> Self:
        """Make the entry of an upload; takes about a millisecond for each two megabytes."""
        size = os.fstat(upload.fileno()).st_size
        digest = hashlib.sha256()
        if size:
            with mmap.mmap(upload.fileno(), size, prot=mmap.PROT_READ) as data:
                digest.update(data)
        recipe = json.dumps(parameters, sort_keys=True)
        return cls(digest.hexdigest(), operation.name, operation.version, size, recipe)

    @property
    def with_any_recipe(self) -> Self:
        """Return the entry of the image for all recipes of the operation."""
        return replace(self, recipe="")

    @property
    def key(self) -> bytes:
        """Return what the entry is looked up by."""
        named = f"{self.operation} {self.version} {self.digest} {self.recipe}"
        return hashlib.sha256(named.encode()).digest()


class Quarantine:
    """Shared memory made in the arbiter; every worker reads it and writes to it.

    There is no lock. Two workers that write to one slot at once may lose an entry or leave a key that belongs
    to no image: then that image crashes one more engine before it is remembered.

    Args:
        expiry_s: how long an entry is remembered, in seconds.
        directory: where images that crashed engines are kept; None for nowhere.
        max_kept_bytes: how many bytes may be there, with the image to be kept.
        clock_s: the same for all processes of a machine.
    """

    def __init__(
        self,
        expiry_s: float,
        directory: Path | None = None,
        max_kept_bytes: float = math.inf,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expiry_s = expiry_s
        self._directory = directory
        self._max_kept_bytes = max_kept_bytes
        self._clock_s = clock_s
        memory = memoryview(mmap.mmap(-1, _SLOTS * (_WIDTH + 1) * 8)).cast("q")
        self._slots, self._sizes = memory[: _SLOTS * _WIDTH], memory[_SLOTS * _WIDTH :]

    def may_hold(self, body_bytes: int) -> bool:
        """Say whether an image of this size may be in it; if not, no digest has to be computed."""
        return self._sizes[body_bytes % _SLOTS] > self._clock_s()

    def crashes(self, entry: QuarantineEntry) -> int:
        """Count the engines that an image has crashed in this way."""
        key = entry.key
        slot = self._slot(key)
        is_it = slot[:2].tolist() == _words(key) and slot[3] > self._clock_s()
        return slot[2] if is_it else 0

    def add(self, entry: QuarantineEntry, crashes: int) -> int:
        """Remember that an image crashed engines, and return how many it has crashed in all."""
        crashes += self.crashes(entry)
        key = entry.key
        slot = self._slot(key)
        expires_s = int(self._clock_s() + self._expiry_s) + 1
        for cell, value in enumerate((*_words(key), crashes, expires_s)):
            slot[cell] = value
        self._sizes[entry.body_bytes % _SLOTS] = expires_s
        return crashes

    def keep(self, upload: FileIO, entry: QuarantineEntry) -> bool:
        """Write an image that crashed engines into the directory, so that the cause can be found.

        Returns:
            Whether it is there; not without a directory, nor when it is full.

        Raises:
            OSError: it cannot be written.
        """
        if self._directory is None:
            return False
        path = self._directory / f"{entry.digest}.{entry.operation}"
        if not path.exists():
            sizes = [*_sizes(self._directory)]
            if len(sizes) >= _MOST_FILES or sum(sizes) + entry.body_bytes > self._max_kept_bytes:
                return False
            with NamedTemporaryFile(dir=self._directory) as unfinished:  # gone when it cannot be finished
                unfinished.write(os.pread(upload.fileno(), entry.body_bytes, 0))
                unfinished.flush()
                with suppress(FileExistsError):  # another worker had the same image at the same time
                    os.link(unfinished.name, path)
        return True

    def _slot(self, key: bytes) -> memoryview:
        start = int.from_bytes(key[:4], "big") % _SLOTS * _WIDTH
        return self._slots[start : start + _WIDTH]


def _words(key: bytes) -> list[int]:
    return [int.from_bytes(key[start : start + 8], "big", signed=True) for start in (0, 8)]


def _sizes(directory: Path) -> Iterator[int]:
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # another worker has just finished it
            yield path.stat().st_size
