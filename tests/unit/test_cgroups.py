"""How much memory there is: that of the machine, or less where a control group of either version says so.

The files are those of proc(5) and cgroups(7), written below a temporary directory.
"""

import os
from pathlib import Path

import pytest

from server import settings
from server.cgroups import memory_bytes

GIB = 1 << 30


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine of 8 GiB, on which this process is in a group of a group."""
    write(tmp_path / "proc/meminfo", f"MemTotal:       {8 * GIB >> 10} kB\nMemFree:        5 kB")
    write(tmp_path / "proc/self/cgroup", "4:memory:/outer/inner\n0::/outer/inner")
    return tmp_path


def test_it_is_that_of_the_machine(machine: Path) -> None:
    assert memory_bytes(machine) == 8 * GIB


@pytest.mark.parametrize(
    "file",
    [
        *("outer/inner/memory.max", "outer/memory.max"),
        *("memory/outer/inner/memory.limit_in_bytes", "memory/memory.limit_in_bytes"),
    ],
)
@pytest.mark.parametrize(
    ("limit", "expected"),
    [(str(3 * GIB), 3 * GIB), ("max", 8 * GIB), ("9223372036854771712", 8 * GIB)],
)
def test_it_is_less_where_a_group_has_less(machine: Path, file: str, limit: str, expected: int) -> None:
    write(machine / "sys/fs/cgroup" / file, limit)
    assert memory_bytes(machine) == expected


def test_where_nothing_says_how_much_there_is_no_limit(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path) > 1 << 50


def test_on_the_real_machine_it_is_no_more_than_there_is() -> None:
    assert 0 < memory_bytes() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("memory", "engines", "expected"),
    [(GIB, 2, GIB // 2), (64 * GIB, 2, 2 * GIB), (64 * GIB, 64, 16 * GIB), (16 * GIB, 64, 8 * GIB)],
)
def test_images_in_flight_take_no_more_than_half_of_it(
    monkeypatch: pytest.MonkeyPatch, memory: int, engines: int, expected: int
) -> None:
    monkeypatch.setattr(settings, "memory_bytes", lambda: memory)
    assert settings.bytes_in_flight(engines) == expected
