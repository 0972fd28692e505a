"""A worker per core that is really ours: the smaller of CPU affinity and every cgroup quota above us.

The files are those of cgroups(7), written below a temporary directory; the affinity is the real one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.cluster.cpus import usable_cores

AFFINITY = len(os.sched_getaffinity(0))
needs_cores = pytest.mark.skipif(AFFINITY < 2, reason="a quota cannot be told from a single core")


def in_group(root: Path, *lines: str) -> None:
    """Say which groups this process is in."""
    write(root / "proc/self/cgroup", "".join(f"{line}\n" for line in lines))


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def limit_v2(root: Path, group: str, text: str) -> None:
    write(root / "sys/fs/cgroup" / group / "cpu.max", f"{text}\n")


def limit_v1(root: Path, group: str, quota_us: int, period_us: int = 100_000) -> None:
    write(root / "sys/fs/cgroup" / group / "cpu.cfs_quota_us", f"{quota_us}\n")
    write(root / "sys/fs/cgroup" / group / "cpu.cfs_period_us", f"{period_us}\n")


def test_without_cgroups_the_affinity_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == AFFINITY


def test_on_the_real_machine_there_is_a_core_and_no_more_than_the_affinity() -> None:
    assert 1 <= usable_cores() <= AFFINITY


@needs_cores
def test_v2_a_quota_of_one_core_is_one_core(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/service")
    limit_v2(tmp_path, "service", "100000 100000")
    assert usable_cores(tmp_path) == 1


@needs_cores
def test_v2_a_started_core_counts_so_that_no_granted_time_is_left_unused(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/service")
    limit_v2(tmp_path, "service", "150000 100000")
    assert usable_cores(tmp_path) == 2


def test_v2_less_than_a_core_is_one_core(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/service")
    limit_v2(tmp_path, "service", "5000 100000")
    assert usable_cores(tmp_path) == 1


def test_v2_the_word_max_is_no_limit(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/service")
    limit_v2(tmp_path, "service", "max 100000")
    assert usable_cores(tmp_path) == AFFINITY


def test_v2_a_quota_above_the_affinity_gives_no_more_than_the_affinity(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/service")
    limit_v2(tmp_path, "service", f"{(AFFINITY + 4) * 100_000} 100000")
    assert usable_cores(tmp_path) == AFFINITY


@needs_cores
@pytest.mark.parametrize("tight", ["", "machine.slice", "machine.slice/pod", "machine.slice/pod/us"])
def test_v2_the_tightest_group_on_the_way_up_counts(tmp_path: Path, tight: str) -> None:
    in_group(tmp_path, "0::/machine.slice/pod/us")
    for group in ("machine.slice", "machine.slice/pod", "machine.slice/pod/us"):
        limit_v2(tmp_path, group, "max 100000")
    limit_v2(tmp_path, tight, "100000 100000")
    assert usable_cores(tmp_path) == 1


@needs_cores
def test_v2_a_sibling_group_does_not_count(tmp_path: Path) -> None:
    in_group(tmp_path, "0::/pod/us")
    limit_v2(tmp_path, "pod/others", "100000 100000")
    assert usable_cores(tmp_path) == AFFINITY


@needs_cores
@pytest.mark.parametrize("path", ["/", "/docker/4f2a", "/../../system.slice"])
def test_v2_inside_a_container_the_mount_itself_is_our_group(tmp_path: Path, path: str) -> None:
    in_group(tmp_path, f"0::{path}")
    limit_v2(tmp_path, "", "100000 100000")
    assert usable_cores(tmp_path) == 1


@needs_cores
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
@pytest.mark.parametrize("group", ["", "/docker/4f2a"])
def test_v1_a_quota_counts_wherever_the_controller_is_mounted(tmp_path: Path, mount: str, group: str) -> None:
    in_group(tmp_path, "5:memory:/docker/4f2a", "4:cpu,cpuacct:/docker/4f2a", "1:name=systemd:/docker/4f2a")
    limit_v1(tmp_path, f"{mount}{group}", 50_000)
    assert usable_cores(tmp_path) == 1


@needs_cores
def test_v1_a_started_core_counts(tmp_path: Path) -> None:
    in_group(tmp_path, "4:cpu,cpuacct:/")
    limit_v1(tmp_path, "cpu,cpuacct", 150_000)
    assert usable_cores(tmp_path) == 2


def test_v1_minus_one_is_no_limit(tmp_path: Path) -> None:
    in_group(tmp_path, "4:cpu,cpuacct:/")
    limit_v1(tmp_path, "cpu,cpuacct", -1)
    assert usable_cores(tmp_path) == AFFINITY


@needs_cores
def test_v1_the_cpuset_controller_is_not_taken_for_the_cpu_controller(tmp_path: Path) -> None:
    in_group(tmp_path, "4:cpuset:/")
    limit_v1(tmp_path, "cpuset", 50_000)
    assert usable_cores(tmp_path) == AFFINITY


@needs_cores
def test_both_versions_side_by_side_both_count(tmp_path: Path) -> None:
    in_group(tmp_path, "4:cpu,cpuacct:/", "0::/")
    limit_v1(tmp_path, "cpu,cpuacct", 50_000)
    limit_v2(tmp_path, "", "max 100000")
    assert usable_cores(tmp_path) == 1


def test_the_affinity_is_that_of_the_process(tmp_path: Path) -> None:
    program = """if True:
        import os, pathlib, sys
        from server.cluster.cpus import usable_cores
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(usable_cores(pathlib.Path(sys.argv[1])))
    """
    printed = subprocess.check_output([sys.executable, "-c", program, tmp_path], text=True)
    assert printed == "1\n"
