"""Blobs in a directory: a kept file is there until it is removed, and nothing else ever is."""

import asyncio
import errno
import os
import resource
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from support.asgi import run

from server.cluster.memory_files import memory_file
from server.jobs.blobs import Blobs, Directory, Spool, UnsuitableBlobs

GROUP = "0123456789abcdef" * 2
OTHER = "fedcba9876543210" * 2
LIMIT_BYTES = 1 << 16


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "blobs"


@pytest.fixture
def blobs(root: Path) -> Directory:
    blobs = Directory(root)
    blobs.prepare()
    return blobs


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open() -> Iterator[None]:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 counted

    run(asyncio.sleep(0))  # whatever the first event loop of a process opens for good
    before = descriptors()
    yield
    assert descriptors() == before


@pytest.fixture
def oversize_sample(tmp_path: Path) -> Iterator[Path]:
    """A file larger than any that this process may write from now on."""
    sample = tmp_path / "sample"
    sample.write_bytes(bytes(LIMIT_BYTES + 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    yield sample
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


async def put(blobs: Blobs, content: bytes, group: str, name: str, *, must_exist: bool = False) -> None:
    with blobs.new() as file:
        file.write(content)
        await blobs.keep(file, group, name, must_exist=must_exist)


async def get(blobs: Blobs, group: str, name: str) -> bytes:
    with await blobs.open(group, name) as file:
        return file.read()


async def groups(blobs: Blobs) -> dict[str, float]:
    return {group: changed_s async for group, changed_s in blobs.groups()}


def test_a_file_that_is_not_kept_leaves_nothing(blobs: Directory, root: Path) -> None:
    with blobs.new() as file:
        file.write(b"half")
        assert os.fstat(file.fileno()).st_nlink == 0
        assert tree(root) == set()
    assert tree(root) == set()


def test_only_the_owner_may_read_whatever_the_umask_is(root: Path) -> None:
    async def test() -> None:
        blobs = Directory(root)
        blobs.prepare()
        await put(blobs, b"input", GROUP, "0.in")

    umask = os.umask(0)
    try:
        run(test())
    finally:
        os.umask(umask)
    modes = {str(path.relative_to(root)): path.stat().st_mode & 0o777 for path in [root, *root.rglob("*")]}
    assert modes == {".": 0o700, "01": 0o700, f"01/{GROUP}": 0o700, f"01/{GROUP}/0.in": 0o600}


def test_a_name_is_given_once(blobs: Directory, root: Path) -> None:
    async def test() -> None:
        await put(blobs, b"first", GROUP, "0.in")
        before = tree(root)
        with pytest.raises(FileExistsError):
            await put(blobs, b"second", GROUP, "0.in")
        assert await get(blobs, GROUP, "0.in") == b"first"
        assert tree(root) == before

    run(test())


def test_a_copy_that_has_no_room_leaves_nothing(blobs: Directory, root: Path, oversize_sample: Path) -> None:
    async def test() -> None:
        with FileIO(oversize_sample) as file, pytest.raises(OSError, match="File too large"):
            await blobs.keep(file, GROUP, "0.in")

    run(test())
    assert tree(root) == set()


@pytest.mark.parametrize("must_exist", [False, True])
def test_a_file_that_has_no_room_on_the_disk_loses_its_name(
    blobs: Directory, root: Path, monkeypatch: pytest.MonkeyPatch, must_exist: bool
) -> None:
    """The file system may notice only when it writes, at fsync(2)."""

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test() -> None:
        await put(blobs, b"input", GROUP, "0.in")
        before = tree(root)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                await put(blobs, b"result", GROUP, "0.1.out", must_exist=must_exist)
            with blobs.new() as first, blobs.new() as second, pytest.raises(OSError, match="No space left"):
                await blobs.keep_all({"1.in": first, "2.in": second}, GROUP)
        assert tree(root) == before
        await put(blobs, b"result", GROUP, "0.1.out", must_exist=must_exist)  # the name is free

    run(test())


@pytest.mark.parametrize("is_room", [True, False])
def test_a_file_that_has_as_many_names_as_it_may_have_is_copied(
    blobs: Directory, root: Path, monkeypatch: pytest.MonkeyPatch, is_room: bool
) -> None:
    """The limit is 65,000 on ext4; here it is 3."""
    link = os.link

    def limited(source: str, target: str, **how: int) -> None:
        if os.stat(source).st_nlink >= 3:  # noqa: PTH116 of a descriptor
            raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))
        link(source, target, **how)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test() -> None:
        await put(blobs, b"result", GROUP, "0.1.out")
        before = tree(root)
        names = [f"{index}.in" for index in range(6)]
        monkeypatch.setattr(os, "link", limited)
        with await blobs.open(GROUP, "0.1.out") as file:
            if is_room:
                await blobs.keep_all(dict.fromkeys(names, file), OTHER)
                assert [await get(blobs, OTHER, name) for name in names] == [b"result"] * 6
            else:
                monkeypatch.setattr(os, "sendfile", full)
                with pytest.raises(OSError, match="No space left"):
                    await blobs.keep_all(dict.fromkeys(names, file), OTHER)
                assert {path for path in tree(root) if not path.startswith(OTHER[:2])} == before

    run(test())
    assert (root / OTHER[:2] / OTHER).exists() == is_room


def test_a_file_that_cannot_be_linked_leaves_no_directory(blobs: Directory, root: Path) -> None:
    async def test() -> None:
        with memory_file("elsewhere") as file, pytest.raises(OSError, match="cross-device"):
            await blobs.keep(file, GROUP, "0.in")

    run(test())
    assert not (root / GROUP[:2] / GROUP).exists()


def test_groups_are_listed_with_their_last_change(blobs: Directory, root: Path) -> None:
    async def test() -> None:
        assert await groups(blobs) == {}
        await put(blobs, b"input", GROUP, "0.in")
        await put(blobs, b"input", OTHER, "0.in")
        for group, changed_s in ((GROUP, 1_000), (OTHER, 2_000)):
            os.utime(root / group[:2] / group, (changed_s, changed_s))
        (root / "lost+found").mkdir()
        (root / "note").touch()
        (root / GROUP[:2] / "note").touch()
        assert await groups(blobs) == {GROUP: 1_000, OTHER: 2_000}
        await put(blobs, b"result", GROUP, "0.1.out", must_exist=True)
        assert (await groups(blobs))[GROUP] > 2_000

    run(test())


def test_a_directory_that_cannot_be_made_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnsuitableBlobs, match="file/blobs: Not a directory"):
        Directory(tmp_path / "file" / "blobs").prepare()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may open files in /proc for writing")
def test_a_file_system_without_unnamed_files_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsuitableBlobs, match="does not support O_TMPFILE; choose one on ext4"):
        Directory(Path("/proc")).prepare()


def test_a_spool_frees_what_was_not_kept(blobs: Directory, root: Path) -> None:
    async def test() -> None:
        spool = Spool(blobs)
        kept, dropped = spool.take(), spool.take()
        kept.write(b"kept")
        await blobs.keep(kept, GROUP, "0.in")
        for file in (kept, dropped):
            spool.give_back(file)
            assert file.closed
        assert await get(blobs, GROUP, "0.in") == b"kept"

    run(test())
    assert {path.name for path in root.rglob("*") if path.is_file()} == {"0.in"}
