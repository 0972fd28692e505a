"""Control groups: what the machine or the container lets this process have (cgroups(7))."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path


@cache
def memory_bytes(root: Path = Path("/")) -> int:
    """Return how much memory there is: that of the machine, or less where a control group limits it.

    Args:
        root: as in `groups`.
    """
    of_machine = [int(line.split()[1]) << 10 for line in lines(root / "proc/meminfo")[:1]]  # MemTotal
    limits = [
        int(limit)
        for group in groups("memory", root)
        for name in ("memory.max", "memory.limit_in_bytes")
        for limit in lines(group / name)
        if limit != "max"
    ]
    return min(of_machine + limits, default=_UNKNOWN)


#: Where neither the machine nor a group says anything: no limit.
_UNKNOWN = 1 << 62


def groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Iterate over the directories of all groups that this process is in, of either version of cgroups.

    Args:
        controller: such as `cpu`.
        root: the directory that holds `/proc` and `/sys`; another one in tests.
    """
    mounts = root / "sys/fs/cgroup"
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if not controllers:  # the one line of cgroup v2
            yield from _upwards(mounts, path)
        elif controller in controllers.split(","):
            for hierarchy in {mounts / controllers, mounts / controller}:
                yield from _upwards(hierarchy, path)


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    # Inside a container the path names a group of the host that is not mounted here: the mount
    # itself is then our group, and it is the last one yielded here.
    group = mount / path.strip("/")
    while group != mount:
        yield group
        group = group.parent
    yield mount


def lines(file: Path) -> list[str]:
    """Return the lines of a file; none where there is no such group, or no group at all."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
