"""Files that exist in memory only: what an image travels in between a worker and an engine.

Source: memfd_create(2).
"""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import FileIO
from mmap import ACCESS_READ, ALLOCATIONGRANULARITY, mmap
from pathlib import Path

#: What a write says when the memory behind a file has run out, or a limit on it has been reached.
NO_ROOM = frozenset({errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EDQUOT})

#: What memfd_create(2) says where it is forbidden, by a seccomp profile or by `vm.memfd_noexec`, or unknown.
_FORBIDDEN = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS})

_MODES = {os.O_RDONLY: "rb", os.O_RDWR: "r+b"}

#: How large a piece is mapped, in bytes.
_MAPPED_BYTES = 1 << 18

#: Small enough to stay in the cache of a core.
_ZEROS = bytes(1 << 18)


def memory_file(name: str, *, is_sealable: bool = False) -> FileIO:
    """Open an empty file that exists in memory only and is freed with its last descriptor.

    Where memfd_create(2) is forbidden, it is an unnamed file in a directory instead.
    Unbuffered, so that Pillow's encoders write to the descriptor themselves.

    Args:
        name: shown in `/proc/PID/fd` as `/memfd:NAME (deleted)`.
        is_sealable: whether it can be sealed (F_ADD_SEALS of fcntl(2)), by an engine that has it as well, and
            is of no more use then.

    Raises:
        OSError: no descriptor is free, or no directory will do.
    """
    flags = os.MFD_CLOEXEC | (os.MFD_ALLOW_SEALING if is_sealable else 0)
    try:
        return FileIO(os.memfd_create(name, flags), "r+b")
    except OSError as error:
        if error.errno not in _FORBIDDEN:
            raise
    return _unnamed_file()[0]


def directory_instead() -> str | None:
    """Return the directory in which memory files are where memfd_create(2) is forbidden; None elsewhere.

    Raises:
        OSError: as `memory_file`.
    """
    with memory_file("probe") as file:
        if str(Path(f"/proc/self/fd/{file.fileno()}").readlink()).startswith("/memfd:"):
            return None
    file, directory = _unnamed_file()
    file.close()
    return directory


def _unnamed_file() -> tuple[FileIO, str]:
    """Open an empty file that is freed with its last descriptor, in memory or else on disk, and say where."""
    for directory in _directories():
        with suppress(OSError):
            return FileIO(os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600), "r+b"), directory
    raise OSError("memfd_create is forbidden, and no directory for temporary files can be written to")


def _directories() -> Iterator[str]:
    yield "/dev/shm"  # noqa: S108 the file gets no name
    import tempfile  # noqa: PLC0415 it takes milliseconds of each start of an engine, and is hardly ever needed

    with suppress(FileNotFoundError):  # none can be written to
        yield tempfile.gettempdir()


def reopened(file: FileIO, access: int) -> FileIO:
    """Open a file again, with a position of its own.

    Unlike a duplicate it can be limited, and as long as it or a mapping of it is open anywhere, the kernel
    knows (`MemoryFilePool.give_back`).

    Args:
        file: open.
        access: `os.O_RDONLY` or `os.O_RDWR`.

    Raises:
        OSError: no descriptor is free, or `/proc` is not there.
    """
    return FileIO(os.open(f"/proc/self/fd/{file.fileno()}", access), _MODES[access])


def has_room(file: FileIO) -> bool:
    """Say whether a file can grow at its end.

    Encoders that write to the descriptor may lose the error of a write, and do not see that one was short.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        is_written = os.pwrite(file.fileno(), b"\0", size) == 1
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        return False
    os.ftruncate(file.fileno(), size)
    return is_written


def reader(file: FileIO, end: int) -> Callable[[int, int], bytes | mmap]:
    """Return a function that reads up to so many bytes from a position, and leaves the file's own alone.

    Large pieces that begin with a page are mapped, which is faster than to copy them.

    Args:
        file: open.
        end: nothing behind it is read; it may be left of the file's last use (`MemoryFilePool.take`).
    """

    def read(position: int, size: int) -> bytes | mmap:
        size = min(size, end - position)
        if size >= _MAPPED_BYTES and not position % ALLOCATIONGRANULARITY:
            return mmap(file.fileno(), size, access=ACCESS_READ, offset=position)
        return os.pread(file.fileno(), size, position) if size > 0 else b""

    return read


def write_all(file: FileIO, data: bytes | memoryview) -> None:
    """Write all of it, however often that takes: a raw write may be short (write(2)).

    Raises:
        OSError: there is no room for it.
    """
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]


class MemoryFilePool:
    """Memory files that are written over, for uploads and for results.

    Fetching fresh pages from the kernel and returning them costs more than copying an image into them.
    """

    #: How many are kept, and how large one may be, in bytes.
    _FILES = 8
    _FILE_BYTES = 8 << 20

    def __init__(self) -> None:
        self._files: list[FileIO] = []

    def take(self) -> FileIO:
        """Return a file to be written from its start; it still holds the bytes of its last use."""
        if self._files:
            return self._files.pop()
        with memory_file("image") as file:
            return reopened(file, os.O_RDWR)  # the kernel grants no lease on what memfd_create(2) returns

    def take_zeroed(self) -> FileIO:
        """Return a file to be written by an engine from its start; instead of its old bytes it holds zeros.

        An engine that an image has taken over could otherwise answer with the image of another client.
        """
        file = self.take()
        rest = os.fstat(file.fileno()).st_size
        while rest > 0:
            rest -= file.write(_ZEROS[:rest])
        file.seek(0)
        return file

    def give_back(self, file: FileIO) -> None:
        """Take a file back, and keep it unless it is large or open elsewhere.

        An engine that an image has taken over may have kept it, to see or to change the next client's image.
        """
        if (
            len(self._files) < self._FILES
            and os.fstat(file.fileno()).st_size <= self._FILE_BYTES
            and is_open_here_only(file)
        ):
            file.seek(0)
            self._files.append(file)
        else:
            file.close()


def is_open_here_only(file: FileIO) -> bool:
    """Say whether the kernel would grant a lease on the file: it does to the only one that has it open.

    Source: F_SETLEASE of fcntl(2). A duplicate of the same descriptor is not noticed, so what engines get
    must be `reopened`.
    """
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError:
        return False
    return True
