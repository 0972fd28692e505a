"""Memory files are on no disk and are used again."""

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from server.cluster.memory_files import MemoryFilePool, memory_file


@pytest.fixture
def file() -> Iterator[FileIO]:
    with memory_file("upload") as file:
        yield file


def test_a_memory_file_is_on_no_disk_and_shows_its_name(file: FileIO) -> None:
    file.write(b"bytes")
    shown = Path(f"/proc/self/fd/{file.fileno()}").readlink()
    assert os.fstat(file.fileno()).st_nlink == 0
    assert os.fstat(file.fileno()).st_size == 5
    assert str(shown) == "/memfd:upload (deleted)"


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
