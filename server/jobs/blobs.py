"""Blobs: the files of jobs, by group and name.

Each group, a batch or a single job, has a directory of its own, so that expiry is the removal of a directory.
A file has no name while it is written: when its process dies, the kernel frees it.

Source: open(2) on O_TMPFILE, linkat(2), sync_file_range(2).
"""

import ctypes
import errno
import os
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Protocol

from server.cluster.threads import run_in_thread

#: What is made of a path is checked again here, however it was parsed.
_GROUP = re.compile(r"[0-9a-f]{32}([0-9a-f]{8})?")
_NAME = re.compile(r"(0|[1-9][0-9]{0,9})\.(in|[1-9][0-9]{0,15}\.out)")

#: What open(2) says when a file system has no unnamed files, the second on one that ignores the flag.
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR})

#: For sync_file_range(2).
_OFF = ctypes.c_int64
_SYNC_FILE_RANGE_WRITE = 2

#: How much one sendfile(2) may copy, in bytes.
_COPY_BYTES = 1 << 30

#: What is wrong where the extra `s3` is needed and not installed.
NO_OBSTORE = "FLIP_BLOB_URL: s3:// needs the package obstore; docs/runbook.md says how to install it"


class BlobGone(Exception):
    """There is no file with this name, or its group was removed."""


class UnsuitableBlobs(Exception):
    """The files of jobs cannot be kept where they are to be; the text says why."""


class Blobs(Protocol):
    """Where the files of jobs are.

    Groups and names are those of `JobId`; anything else raises ValueError.
    """

    def new(self) -> FileIO:
        """Open an empty file that has no name, to be written and then kept or closed."""

    async def keep(self, file: FileIO, group: str, name: str, *, must_exist: bool = False) -> None:
        """Give a file a name; it is durable when this returns.

        Args:
            file: from `new`; any other file is copied.
            group: of the file.
            name: within its group.
            must_exist: whether the group must have a file already: a late result must not bring it back.

        Raises:
            BlobGone: the group was removed.
            FileExistsError: there is a file with this name; not every place notices.
            OSError: there is no room for it; nothing is left behind.
            StoreAway: the place cannot be reached, now or in any other call.
        """

    async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
        """Give files from `new` or `open` their names, as `keep` does; together that takes much less time.

        After a failure some of them may have their names on S3.
        """

    async def open(self, group: str, name: str, part: tuple[int, int] | None = None) -> FileIO:
        """Open a file for reading.

        Args:
            group: of the file.
            name: within its group.
            part: the first byte that is wanted, and the one after the last: all others may be missing, so
                that they need not be fetched; None for all.

        Raises:
            BlobGone: there is none.
        """

    async def remove(self, group: str, name: str) -> None:
        """Remove a file if it is there."""

    async def remove_group(self, group: str) -> None:
        """Remove all files of a group if there are any."""

    def groups(self) -> AsyncIterator[tuple[str, float]]:
        """Iterate over all groups, each with its last change in seconds of Unix time."""


def is_group(text: str) -> bool:
    """Whether a text may be the name of a group."""
    return _GROUP.fullmatch(text) is not None


def place_of(group: str, name: str | None = None) -> str:
    """Return the path of a group, or of a file in it, below the place of all."""
    if not is_group(group):
        raise ValueError(f"not a group: {group!r}")
    if name is not None and not _NAME.fullmatch(name):
        raise ValueError(f"not a name: {name!r}")
    return f"{group[:2]}/{group}" if name is None else f"{group[:2]}/{group}/{name}"


class Spool:
    """Files for uploads that become blobs, with the interface of `MemoryFilePool`.

    Args:
        blobs: makes the files.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def take(self) -> FileIO:
        """Return an empty file."""
        return self._blobs.new()

    def give_back(self, file: FileIO) -> None:
        """Close a file; unless it was kept, that frees it."""
        file.close()


class Directory:
    """Blobs in a directory of this machine.

    Args:
        root: see `prepare`.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._synced: set[str] = set()  # directories of groups that are on the disk: they stay

    def prepare(self) -> None:
        """Make the directory if it is not there, and see that it is fit for its purpose.

        Raises:
            UnsuitableBlobs: it cannot be written to, or its file system has no unnamed files.
        """
        root = self._root
        try:
            root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
            self.new().close()
        except OSError as error:
            reason = error.strerror
            if isinstance(error, FileExistsError):  # a file that is in the way
                reason = os.strerror(errno.ENOTDIR)
            if error.errno in _NO_UNNAMED_FILES:
                reason = "its file system does not support O_TMPFILE; choose one on ext4, XFS, Btrfs or tmpfs"
            raise UnsuitableBlobs(f"Cannot keep the files of jobs in {root}: {reason}") from None

    def new(self) -> FileIO:
        """Open an empty file that has no name."""
        return FileIO(os.open(self._root, os.O_TMPFILE | os.O_RDWR, 0o600), "r+b")

    async def keep(self, file: FileIO, group: str, name: str, *, must_exist: bool = False) -> None:
        """Give a file a name; it is durable when this returns. See `Blobs`."""
        path = self._path(group, name)
        if os.fstat(file.fileno()).st_nlink:  # its name is somewhere else, as the sample image's is
            with self.new() as copy:
                await run_in_thread(_copy, file, copy)
                await run_in_thread(self._keep, {path: copy}, must_exist)
        else:
            await run_in_thread(self._keep, {path: file}, must_exist)

    async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
        """Give files their names; they are durable when this returns. See `Blobs`."""
        paths = {self._path(group, name): file for name, file in files.items()}
        await run_in_thread(self._keep, paths, False)  # noqa: FBT003 given by place

    async def open(
        self,
        group: str,
        name: str,
        part: tuple[int, int] | None = None,  # noqa: ARG002 nothing needs to be fetched
    ) -> FileIO:
        """Open a file for reading. See `Blobs`."""
        try:
            return FileIO(self._path(group, name))
        except FileNotFoundError:
            raise BlobGone(f"{group}/{name}") from None

    async def remove(self, group: str, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            await run_in_thread(self._path(group, name).unlink)

    async def remove_group(self, group: str) -> None:
        """Remove all files of a group if there are any."""
        await run_in_thread(_remove, self._group(group))

    async def groups(self) -> AsyncIterator[tuple[str, float]]:
        """Iterate over all groups, each with its last change in seconds of Unix time."""
        for parent in await run_in_thread(list, self._root.iterdir()):
            for found in await run_in_thread(_groups_in, parent):
                yield found

    def _group(self, group: str) -> Path:
        return self._root / place_of(group)

    def _path(self, group: str, name: str) -> Path:
        return self._root / place_of(group, name)

    def _keep(self, files: Mapping[Path, FileIO], must_exist: bool) -> None:  # noqa: FBT001 given by place
        """Link files of one directory, then write it all to the disk: one commit of the journal does for all.

        After a power cut a name may stand for half a file, but for none whose job was submitted.
        """
        directory = next(iter(files)).parent
        is_new = False
        try:
            if not must_exist:
                is_new = _make(directory)
            self._link(files, directory)
            if is_new:
                _sync(directory.parent)
                if directory.parent.name not in self._synced:
                    _sync(self._root)
                    self._synced.add(directory.parent.name)
        except OSError as error:
            if is_new:
                with suppress(OSError):
                    _remove(directory)
            if isinstance(error, FileNotFoundError):
                raise BlobGone(f"{directory.name} was removed") from None
            raise

    def _link(self, files: Mapping[Path, FileIO], directory: Path) -> None:
        """Link files into their directory and write it all to the disk; after a failure none has a name."""
        linked = []
        with _opened(directory) as descriptor, ExitStack() as copies, ExitStack() as undo:
            for path, file in files.items():
                try:
                    _name(file, path, descriptor)
                except OSError as error:
                    if error.errno != errno.EMLINK:
                        raise
                    # The result of one job can be the item of so many others: ext4 gives a file 65,000 names.
                    copy = copies.enter_context(self.new())
                    _copy(file, copy)
                    _name(copy, path, descriptor)
                    linked.append(copy)
                else:
                    linked.append(file)
                undo.callback(path.unlink, missing_ok=True)
            if len(linked) > 1:
                _start_writing(linked)
            for file in linked:
                os.fsync(file.fileno())  # may be the first to notice that the disk is full
            os.fsync(descriptor)
            undo.pop_all()


def _name(file: FileIO, path: Path, directory: int) -> None:
    """Give a file a name in a directory, of which there is a descriptor."""
    # Without the descriptor, CPython links the symbolic link instead of the file.
    os.link(f"/proc/self/fd/{file.fileno()}", path.name, dst_dir_fd=directory)


def _start_writing(files: Iterable[FileIO]) -> None:
    """Let the disk begin with all files before one is waited for: one after the other takes twice as long."""
    with suppress(AttributeError):  # another C library
        start = ctypes.CDLL(None).sync_file_range
        for file in files:  # only a hint, so its failure is none
            start(file.fileno(), _OFF(0), _OFF(0), _SYNC_FILE_RANGE_WRITE)


def _make(directory: Path) -> bool:
    """Make a directory and its parent; False: it was there."""
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        return False
    return True


def _sync(directory: Path) -> None:
    with _opened(directory) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy(source: FileIO, target: FileIO) -> None:
    offset = 0
    while copied := os.sendfile(target.fileno(), source.fileno(), offset, _COPY_BYTES):
        offset += copied


def _remove(directory: Path) -> None:
    """Remove a directory with its files, those included that arrive meanwhile."""
    with suppress(FileNotFoundError):
        while True:
            for file in directory.iterdir():
                file.unlink(missing_ok=True)
            try:
                directory.rmdir()
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise


def _groups_in(parent: Path) -> list[tuple[str, float]]:
    """List the groups in a directory, leaving out what is not ours or has just been removed."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for directory in parent.iterdir():
            with suppress(FileNotFoundError):
                if is_group(directory.name):
                    found.append((directory.name, directory.stat().st_mtime))
    return found
