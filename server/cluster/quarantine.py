"""Quarantine: pictures that ended engines, remembered by all workers so that they end no more of them."""

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Self

from server.errors import UnsupportedImage
from server.imaging.codecs import sniff

#: How many engines a picture may end before it is refused unseen.
CRASH_THRESHOLD = 2

#: How many pictures are remembered; a newer one may take the place of an older one.
_SLOTS = 1024

#: Integers of one slot: two of the digest, engines ended, and when it is forgotten.
_WIDTH = 4

#: How many files are kept as entry at most.
_MOST_FILES = 100


@dataclass(frozen=True, slots=True)
class QuarantineEntry:
    """What is known of a picture without decoding it.

    Attributes:
        digest: SHA-256 of its bytes, in hexadecimal.
        format: by its first bytes; "unknown" for none of ours.
    """

    digest: str
    format: str
    body_bytes: int

    @classmethod
    def of(cls, upload: FileIO) -> Self:
        """Look at an upload; takes about a millisecond for each two megabytes."""
        size = os.fstat(upload.fileno()).st_size
        if size == 0:
            return cls(hashlib.sha256().hexdigest(), "unknown", 0)
        with mmap.mmap(upload.fileno(), size, prot=mmap.PROT_READ) as data:
            try:
                form = str(sniff(data))
            except UnsupportedImage:
                form = "unknown"
            return cls(hashlib.sha256(data).hexdigest(), form, size)


class Quarantine:
    """Shared memory made in the arbiter; every worker reads it and writes to it.

    There is no lock. Two workers that write to one slot at once may lose a picture or leave a digest that no
    picture has: then that picture ends one more engine before it is remembered.

    Args:
        expiry_s: how long a picture is remembered, in seconds.
        directory: where pictures that ended engines are kept as entry; None for nowhere.
        clock_s: the same for all processes of a machine.
    """

    def __init__(
        self, expiry_s: float, directory: Path | None = None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._expiry_s = expiry_s
        self._directory = directory
        self._clock_s = clock_s
        memory = memoryview(mmap.mmap(-1, _SLOTS * (_WIDTH + 1) * 8)).cast("q")
        self._slots, self._sizes = memory[: _SLOTS * _WIDTH], memory[_SLOTS * _WIDTH :]

    def may_hold(self, body_bytes: int) -> bool:
        """Say whether a picture of this size may be in it: if not, nobody has to compute a digest."""
        return self._sizes[body_bytes % _SLOTS] > self._clock_s()

    def deaths(self, digest: str) -> int:
        """Count the engines that a picture has ended."""
        slot = self._slot(digest)
        is_it = slot[:2].tolist() == _words(digest) and slot[3] > self._clock_s()
        return slot[2] if is_it else 0

    def add(self, entry: QuarantineEntry, deaths: int) -> int:
        """Remember that a picture ended engines, and return how many it ended in all."""
        deaths += self.deaths(entry.digest)
        slot = self._slot(entry.digest)
        expires_s = int(self._clock_s() + self._expiry_s) + 1
        for cell, value in enumerate((*_words(entry.digest), deaths, expires_s)):
            slot[cell] = value
        self._sizes[entry.body_bytes % _SLOTS] = expires_s
        return deaths

    def keep(self, upload: FileIO, entry: QuarantineEntry) -> bool:
        """Write a picture that ended engines into the directory, for whoever looks for the cause.

        Returns:
            Whether it is there; not without a directory, nor when it is full.

        Raises:
            OSError: it cannot be written.
        """
        if self._directory is None:
            return False
        path = self._directory / f"{entry.digest}.{entry.format}"
        if not path.exists():
            if sum(1 for _ in self._directory.iterdir()) >= _MOST_FILES:
                return False
            with NamedTemporaryFile(dir=self._directory) as unfinished:  # gone when it cannot be finished
                unfinished.write(os.pread(upload.fileno(), entry.body_bytes, 0))
                unfinished.flush()
                with suppress(FileExistsError):  # by somebody who had the same picture at the same time
                    os.link(unfinished.name, path)
        return True

    def _slot(self, digest: str) -> memoryview:
        start = int(digest[:8], 16) % _SLOTS * _WIDTH
        return self._slots[start : start + _WIDTH]


def _words(digest: str) -> list[int]:
    raw = bytes.fromhex(digest)
    return [int.from_bytes(raw[start : start + 8], "big", signed=True) for start in (0, 8)]
