"""Images that crashed engines are remembered, for a while and with the operation, and no others."""

import errno
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest

from server.cluster.memory_files import memory_file
from server.cluster.quarantine import CRASH_THRESHOLD, Quarantine, QuarantineEntry
from server.operations.images import OPERATIONS

FLIP = OPERATIONS["flip"]
IMAGE = b"an image that crashes engines"
RECIPE = {"quality": None, "format": "avif"}


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(60, clock_s=clock)


@pytest.fixture
def upload() -> Iterator[FileIO]:
    with memory_file("upload") as file:
        file.write(IMAGE)
        yield file


def entry(content: bytes) -> QuarantineEntry:
    return QuarantineEntry(hashlib.sha256(content).hexdigest(), "flip", 1, len(content))


BAD, GOOD = entry(b"bad"), entry(b"good!")


def test_an_image_of_a_size_that_never_crashed_an_engine_needs_no_digest(quarantine: Quarantine) -> None:
    assert not quarantine.may_hold(BAD.body_bytes)
    assert quarantine.crashes(BAD) == 0


def test_crashes_add_up(quarantine: Quarantine) -> None:
    assert [quarantine.add(BAD, 1), quarantine.add(BAD, 1), quarantine.add(BAD, 2)] == [1, 2, 4]
    assert quarantine.may_hold(BAD.body_bytes)
    assert quarantine.crashes(BAD) == 4


def test_another_image_is_not_suspected(quarantine: Quarantine) -> None:
    quarantine.add(BAD, 2)
    assert quarantine.crashes(GOOD) == 0
    assert not quarantine.may_hold(GOOD.body_bytes)


def test_an_entry_expires(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.add(BAD, 2)
    clock.now_s += 59
    assert quarantine.crashes(BAD) == 2
    clock.now_s += 3
    assert quarantine.crashes(BAD) == 0
    assert not quarantine.may_hold(BAD.body_bytes)
    assert quarantine.add(BAD, 1) == 1


def test_of_more_entries_than_there_is_room_for_the_last_ones_are_remembered(quarantine: Quarantine) -> None:
    all_bad = [entry(b"%d" % number) for number in range(5000)]
    for bad in all_bad:
        quarantine.add(bad, 2)
        assert quarantine.crashes(bad) == 2
    assert sum(quarantine.crashes(bad) > 0 for bad in all_bad) > 500


@pytest.mark.parametrize("content", [IMAGE, b""])
def test_an_entry_names_the_image_and_what_was_done_to_it(content: bytes) -> None:
    with memory_file("upload") as upload:
        upload.write(content)
        found = QuarantineEntry.of(upload, FLIP, RECIPE)
    recipe = '{"format": "avif", "quality": null}'
    assert found == QuarantineEntry(
        hashlib.sha256(content).hexdigest(), "flip", FLIP.version, len(content), recipe
    )


def test_a_crash_of_one_operation_refuses_no_other_and_no_newer_version(
    quarantine: Quarantine, upload: FileIO
) -> None:
    quarantine.add(QuarantineEntry.of(upload, FLIP, RECIPE), CRASH_THRESHOLD)
    others = [OPERATIONS["flop"], replace(FLIP, version=FLIP.version + 1)]
    crashes = [
        quarantine.crashes(QuarantineEntry.of(upload, operation, RECIPE)) for operation in (FLIP, *others)
    ]
    assert crashes == [CRASH_THRESHOLD, 0, 0]


def test_a_recipe_refuses_no_other_and_is_told_from_all_of_them(
    quarantine: Quarantine, upload: FileIO
) -> None:
    bad = QuarantineEntry.of(upload, FLIP, RECIPE)
    assert bad == QuarantineEntry.of(upload, FLIP, dict(reversed(RECIPE.items())))
    other = QuarantineEntry.of(upload, FLIP, {**RECIPE, "format": "png"})
    quarantine.add(bad, CRASH_THRESHOLD)
    found = (bad, other, bad.with_any_recipe)
    assert [quarantine.crashes(entry) for entry in found] == [CRASH_THRESHOLD, 0, 0]
    assert bad.with_any_recipe == other.with_any_recipe


def test_the_image_is_kept_in_the_directory(upload: FileIO, tmp_path: Path) -> None:
    found = QuarantineEntry.of(upload, FLIP, RECIPE)
    assert not Quarantine(60).keep(upload, found)
    assert [Quarantine(60, tmp_path).keep(upload, found) for _ in range(2)] == [True, True]
    (file,) = tmp_path.iterdir()
    assert file.name == f"{found.digest}.flip"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found.digest


def test_a_file_that_cannot_be_finished_is_removed(
    upload: FileIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match="No space"):
        Quarantine(60, tmp_path).keep(upload, QuarantineEntry.of(upload, FLIP, RECIPE))
    assert list(tmp_path.iterdir()) == []


def test_the_directory_does_not_fill_the_disk(upload: FileIO, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert not Quarantine(60, tmp_path).keep(upload, QuarantineEntry.of(upload, FLIP, RECIPE))
    assert len(list(tmp_path.iterdir())) == 100


def test_the_files_in_the_directory_have_a_limit_in_bytes(upload: FileIO, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(bytes(50))
    found = QuarantineEntry.of(upload, FLIP, RECIPE)
    assert not Quarantine(60, tmp_path, 50 + len(IMAGE) - 1).keep(upload, found)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    assert Quarantine(60, tmp_path, 50 + len(IMAGE)).keep(upload, found)
