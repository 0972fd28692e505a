"""Pictures that ended engines are remembered, for a while, and no others."""

import errno
import hashlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from support.specimens import encoded, noise_image

from server.cluster.memory_files import memory_file
from server.cluster.quarantine import Quarantine, QuarantineEntry


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
        file.write(encoded(noise_image("RGB", (3, 2), 1), "PNG"))
        yield file


def entry(content: bytes) -> QuarantineEntry:
    return QuarantineEntry(hashlib.sha256(content).hexdigest(), "png", len(content))


BAD, GOOD = entry(b"bad"), entry(b"good!")


def test_what_never_did_harm_is_not_even_looked_at(quarantine: Quarantine) -> None:
    assert not quarantine.may_hold(BAD.body_bytes)
    assert quarantine.deaths(BAD.digest) == 0


def test_deaths_add_up(quarantine: Quarantine) -> None:
    assert [quarantine.add(BAD, 1), quarantine.add(BAD, 1), quarantine.add(BAD, 2)] == [1, 2, 4]
    assert quarantine.may_hold(BAD.body_bytes)
    assert quarantine.deaths(BAD.digest) == 4


def test_another_picture_is_not_suspected(quarantine: Quarantine) -> None:
    quarantine.add(BAD, 2)
    assert quarantine.deaths(GOOD.digest) == 0
    assert not quarantine.may_hold(GOOD.body_bytes)


def test_it_is_forgotten_in_time(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.add(BAD, 2)
    clock.now_s += 59
    assert quarantine.deaths(BAD.digest) == 2
    clock.now_s += 3
    assert quarantine.deaths(BAD.digest) == 0
    assert not quarantine.may_hold(BAD.body_bytes)
    assert quarantine.add(BAD, 1) == 1


def test_however_many_are_bad_the_last_ones_are_remembered(quarantine: Quarantine) -> None:
    all_bad = [entry(b"%d" % number) for number in range(5000)]
    for bad in all_bad:
        quarantine.add(bad, 2)
        assert quarantine.deaths(bad.digest) == 2
    assert sum(quarantine.deaths(bad.digest) > 0 for bad in all_bad) > 500


def test_the_evidence_names_the_picture(upload: FileIO) -> None:
    found = QuarantineEntry.of(upload)
    upload.seek(0)
    content = upload.read()
    assert found == QuarantineEntry(hashlib.sha256(content).hexdigest(), "png", len(content))


def test_what_is_no_picture_has_a_name_too() -> None:
    with memory_file("upload") as upload:
        assert QuarantineEntry.of(upload).format == "unknown"
        upload.write(b"hello")
        assert QuarantineEntry.of(upload).format == "unknown"


def test_the_bytes_are_kept_where_they_shall_be(upload: FileIO, tmp_path: Path) -> None:
    found = QuarantineEntry.of(upload)
    assert not Quarantine(60).keep(upload, found)
    assert [Quarantine(60, tmp_path).keep(upload, found) for _ in range(2)] == [True, True]
    (file,) = tmp_path.iterdir()
    assert file.name == f"{found.digest}.png"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == found.digest


def test_a_file_that_cannot_be_finished_does_not_stay(
    upload: FileIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    with pytest.raises(OSError, match="No space"):
        Quarantine(60, tmp_path).keep(upload, QuarantineEntry.of(upload))
    assert list(tmp_path.iterdir()) == []


def test_the_directory_does_not_fill_the_disk(upload: FileIO, tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / str(number)).touch()
    assert not Quarantine(60, tmp_path).keep(upload, QuarantineEntry.of(upload))
    assert len(list(tmp_path.iterdir())) == 100
