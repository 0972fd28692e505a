"""How many cores this process may use: the smaller of CPU affinity and cgroup quota."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from server.cgroups import groups, lines


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
    for group in groups("cpu", root):
        yield from _v2_quota(group)
        yield from _v1_quota(group)


def _v2_quota(group: Path) -> Iterator[float]:
    for line in lines(group / "cpu.max"):
        quota, period = line.split()
        if quota != "max":
            yield int(quota) / int(period)


def _v1_quota(group: Path) -> Iterator[float]:
    for quota, period in zip(
        lines(group / "cpu.cfs_quota_us"), lines(group / "cpu.cfs_period_us"), strict=True
    ):
        if int(quota) > 0:  # -1 is no limit
            yield int(quota) / int(period)
