"""How many cores this process may use: the smaller of CPU affinity and cgroup quota."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Count the cores that this process may use, at least 1.

    CPU affinity is what `taskset`, cpusets and `docker --cpuset-cpus` set.
    The CPU bandwidth quota is what `docker --cpus`, Kubernetes limits and systemd's `CPUQuota=` set;
    a quota of 1.5 cores counts as 2, so that no granted time is left unused.

    Args:
        root: the directory that holds `/proc` and `/sys`; another one in tests.

    Source: cgroups(7), sched(7), the kernel's Documentation/admin-guide/cgroup-v2.rst ("cpu.max")
    and Documentation/scheduler/sched-bwc.rst ("cpu.cfs_quota_us").
    """
    quotas = [math.ceil(cores) for cores in _quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    """Iterate over the CPU quotas of all groups that this process is in, in cores."""
    mounts = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # the one line of cgroup v2
            for group in _upwards(mounts, path):
                yield from _v2_quota(group)
        elif "cpu" in controllers.split(","):
            for hierarchy in (mounts / controllers, mounts / "cpu"):
                for group in _upwards(hierarchy, path):
                    yield from _v1_quota(group)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    # Inside a container the path names a group of the host that is not mounted here: the mount
    # itself is then our group, and it is the last one yielded here.
    group = mount / path.strip("/")
    while group != mount:
        yield group
        group = group.parent
    yield mount


def _v2_quota(group: Path) -> Iterator[float]:
    for line in _lines(group / "cpu.max"):
        quota, period = line.split()
        if quota != "max":
            yield int(quota) / int(period)


def _v1_quota(group: Path) -> Iterator[float]:
    for quota, period in zip(
        _lines(group / "cpu.cfs_quota_us"), _lines(group / "cpu.cfs_period_us"), strict=True
    ):
        if int(quota) > 0:  # -1 is no limit
            yield int(quota) / int(period)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:  # no such group, no cgroups at all
        return []
