"""Memory files are on no disk, are used again, and say when they cannot grow."""

import errno
import fcntl
import mmap
import os
import resource
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from random import Random

import pytest

from server.cluster.memory_files import NO_ROOM, MemoryFilePool, has_room, memory_file, reader, reopened

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


def test_a_reader_sees_what_was_written_and_nothing_of_the_last_use(file: FileIO) -> None:
    file.write(b"the bytes of another client")
    file.seek(0)
    file.write(b"mine")
    read = reader(file, file.tell())
    assert (read(0, 100), read(1, 2), read(3, 2)) == (b"mine", b"in", b"e")
    assert [read(position, 1) for position in (4, 5, 2**63 - 1, 2**70)] == [b""] * 4
    assert file.tell() == 4


def test_a_reader_maps_large_pieces_and_reads_the_same(file: FileIO) -> None:
    data = Random(1).randbytes(3 << 20)
    file.write(data + b"of another client")
    read = reader(file, len(data))
    for position in (0, 4096, 5000, 2 << 20, (3 << 20) - 4096, 3 << 20):
        for size in (1, 4096, 1 << 20, 1 << 22):
            assert bytes(read(position, size)) == data[position : position + size]
    assert isinstance(read(0, 1 << 20), mmap.mmap)
    assert "/memfd:upload" not in Path("/proc/self/maps").read_text()  # a mapping lives as long as its piece


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


def test_a_file_that_an_engine_has_kept_is_not_used_again() -> None:
    pool = MemoryFilePool()
    for access in (os.O_RDONLY, os.O_RDWR):
        file = pool.take()
        with reopened(file, access) as kept:
            pool.give_back(file)
            assert file.closed
            assert not kept.closed


def test_a_file_that_an_engine_has_kept_mapped_is_not_used_again() -> None:
    pool = MemoryFilePool()
    file = pool.take()
    file.write(b"an image")
    with reopened(file, os.O_RDONLY) as lent:
        kept = mmap.mmap(lent.fileno(), 8, prot=mmap.PROT_READ)
    with kept:
        pool.give_back(file)
        assert file.closed
        assert kept[:] == b"an image"


def test_a_file_that_an_engine_has_closed_is_used_again() -> None:
    pool = MemoryFilePool()
    file = pool.take()
    for access in (os.O_RDONLY, os.O_RDWR):
        reopened(file, access).close()
    pool.give_back(file)
    with pool.take() as again:
        assert again is file


def test_a_file_of_the_pool_cannot_be_sealed() -> None:
    with MemoryFilePool().take_zeroed() as file, reopened(file, os.O_RDWR) as lent:
        with pytest.raises(PermissionError):
            fcntl.fcntl(lent, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert file.write(b"bytes") == 5


def test_a_file_that_is_lent_for_reading_cannot_be_changed(file: FileIO) -> None:
    file.write(b"bytes")
    with reopened(file, os.O_RDONLY) as source:
        assert source.read() == b"bytes"
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(source.fileno(), b"x")
        with pytest.raises(PermissionError):
            mmap.mmap(source.fileno(), 5)


def test_a_file_for_a_result_holds_nothing_of_its_last_use() -> None:
    pool = MemoryFilePool()
    with pool.take() as first:
        first.write(b"image of another client" * 20_000)
        pool.give_back(first)
        with pool.take_zeroed() as result:
            assert result is first
            assert result.tell() == 0
            assert not result.read().strip(b"\0")
