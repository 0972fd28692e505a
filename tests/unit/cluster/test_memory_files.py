"""Memory files are on no disk, are used again, and say when they cannot grow."""

import errno
import os
import resource
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from server.cluster.memory_files import NO_ROOM, MemoryFilePool, has_room, memory_file

LIMIT_BYTES = 1 << 16


@pytest.fixture
def file() -> Iterator[FileIO]:
    with memory_file("upload") as file:
        yield file


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond a limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_memory_file_is_on_no_disk_and_shows_its_name(file: FileIO) -> None:
    file.write(b"bytes")
    shown = Path(f"/proc/self/fd/{file.fileno()}").readlink()
    assert os.fstat(file.fileno()).st_nlink == 0
    assert os.fstat(file.fileno()).st_size == 5
    assert str(shown) == "/memfd:upload (deleted)"


def test_a_file_that_can_grow_is_left_as_it_was(file: FileIO) -> None:
    file.write(b"bytes")
    assert has_room(file)
    assert os.pread(file.fileno(), 100, 0) == b"bytes"
    assert file.tell() == 5


@pytest.mark.usefixtures("small_files")
def test_a_short_write_leaves_a_file_that_has_no_room(file: FileIO) -> None:
    assert file.write(bytes(LIMIT_BYTES + 1)) == LIMIT_BYTES
    assert not has_room(file)
    with pytest.raises(OSError) as raised:  # noqa: PT011 the number says it
        file.write(b"more")
    assert raised.value.errno == errno.EFBIG
    assert raised.value.errno in NO_ROOM


def test_a_file_that_cannot_be_written_for_another_reason_is_an_error(file: FileIO) -> None:
    with FileIO(os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)) as read_only, pytest.raises(OSError):  # noqa: PT011 any
        has_room(read_only)


def test_a_pool_lends_its_files_again_from_their_start() -> None:
    pool = MemoryFilePool()
    with pool.take() as file:
        file.write(b"old")
        pool.give_back(file)
        again = pool.take()
        assert again is file
        assert again.tell() == 0


def test_a_pool_keeps_few_files_and_no_large_ones() -> None:
    pool = MemoryFilePool()
    files = [pool.take() for _ in range(10)]
    files[0].truncate((8 << 20) + 1)
    for file in files:
        pool.give_back(file)
    assert [file.closed for file in files] == [True, *[False] * 8, True]
    for file in files:
        file.close()
