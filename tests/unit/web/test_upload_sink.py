"""The upload sink: everything is written, in order, or the caller hears of it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest

from server.cluster.memory_files import write_all
from server.web.upload_sink import UploadSink

ROOT = Path(__file__).parents[3]


class ShortWrites(FileIO):
    """A file whose writes take three bytes at most."""

    def write(self, data: memoryview) -> int:
        return super().write(data[:3])


@pytest.fixture
def file(tmp_path: Path) -> Iterator[FileIO]:
    with FileIO(tmp_path / "file", "w+b") as file:
        yield file


def content(file: FileIO) -> bytes:
    return os.pread(file.fileno(), 1000, 0)


def test_writes_land_in_the_order_of_the_calls_and_are_counted(file: FileIO) -> None:
    sink = UploadSink()
    write_all(file, b"head ")  # what the app received before it opened the sink
    sink.open(file)
    sink.write(memoryview(b"one "))
    sink.write(memoryview(b"two"))
    assert content(file) == b"head one two"
    assert sink.written_bytes == 7


def test_a_sink_that_was_never_opened_is_closed() -> None:
    sink = UploadSink()
    assert not sink.is_open
    with pytest.raises(ValueError, match="closed"):
        sink.write(memoryview(b"x"))
    assert sink.written_bytes == 0


def test_a_sink_that_was_closed_can_be_opened_again(file: FileIO) -> None:
    sink = UploadSink()
    sink.open(file)
    assert sink.is_open
    sink.write(memoryview(b"a"))
    sink.close()
    assert not sink.is_open
    write_all(file, b"b")
    sink.open(file)
    sink.write(memoryview(b"c"))
    assert content(file) == b"abc"
    assert sink.written_bytes == 2


def test_a_sink_is_closed_when_its_file_is(file: FileIO) -> None:
    sink = UploadSink()
    sink.open(file)
    file.close()
    assert not sink.is_open


def test_a_write_that_fails_closes_the_sink_and_does_not_count() -> None:
    sink = UploadSink()
    with FileIO("/dev/full", "r+b") as full:
        sink.open(full)
        with pytest.raises(OSError, match="No space left"):
            sink.write(memoryview(b"x"))
        assert not sink.is_open
    assert sink.written_bytes == 0


@pytest.mark.parametrize("data", [b"", b"ab", b"abc", b"abcdefgh"])
def test_a_short_write_is_continued(tmp_path: Path, data: bytes) -> None:
    with ShortWrites(tmp_path / "file", "w+b") as file:
        write_all(file, b"<")
        sink = UploadSink()
        sink.open(file)
        sink.write(memoryview(data))
        assert content(file) == b"<" + data
        assert sink.written_bytes == len(data)


#: The kernel takes what is below the limit, and fails the next write (setrlimit(2), RLIMIT_FSIZE).
SHORT_FOR_REAL = """
import errno, os, resource
from io import FileIO
from server.cluster.memory_files import write_all
from server.web.upload_sink import UploadSink

resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))

def file():
    return FileIO(os.memfd_create("upload"), "r+b")

with file() as plain:
    assert plain.write(b"a" * 15) == 10, "the write was not short"

with file() as upload:
    sink = UploadSink()
    sink.open(upload)
    sink.write(memoryview(b"abcd"))
    try:
        sink.write(memoryview(b"efghijklmno"))
    except OSError as error:
        assert error.errno == errno.EFBIG, error
    else:
        raise AssertionError("a write above the limit went unnoticed")
    assert os.pread(upload.fileno(), 100, 0) == b"abcdefghij"
    assert (sink.is_open, sink.written_bytes) == (False, 4)
"""


def test_a_write_that_the_kernel_cuts_short_and_then_refuses_is_an_error() -> None:
    subprocess.run([sys.executable, "-c", SHORT_FOR_REAL], cwd=ROOT, check=True, timeout=60)
