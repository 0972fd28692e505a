"""What is compared: ways to run a service, each started on a free port and stopped with all its processes."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.harness.server import Server

#: A server that does not answer by then does not start.
_START_S = 40.0


@dataclass(frozen=True, slots=True)
class Topology:
    """One way to run a service.

    Attributes:
        name: short, for files.
        title: for people.
        workers: how many processes compute.
        command: with {port} in it.
        environ: added to a clean environment; with {port} in it too.
        query: parameters of each request.
        quality: whether its JPEGs are encoded as ours are ("matched"), or as it does by itself ("default").
        is_peer: another design than ours.
        design: the same for topologies that differ in size or quality only.
        cores: the cores that it may use; empty for all.
    """

    name: str
    title: str
    workers: int
    command: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    quality: str = "matched"
    is_peer: bool = False
    design: str = "flipcluster"
    cores: Sequence[int] = ()


def ours(name: str, title: str, workers: int, *, query: str = "", cores: Sequence[int] = ()) -> Topology:
    """Return flipcluster with a number of workers."""
    command = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:{port}", "-w", str(workers)]
    return Topology(name, title, workers, command, query=query, cores=cores)


class TopologyServer(Server):
    """A running topology."""

    def __init__(self, topology: Topology) -> None:
        each = 1 if topology.is_peer else 2  # ours have an engine
        super().__init__(
            topology.command,
            environ=topology.environ,
            title=topology.title,
            cores=topology.cores,
            fewest_processes=1 + each * topology.workers if topology.workers > 1 else 1,
            start_s=_START_S,
        )
        self.topology = topology

    def __exit__(self, *error: object) -> None:
        with suppress(subprocess.TimeoutExpired):  # some peers finish requests whose clients have left
            super().__exit__(*error)

    def restart(self) -> None:
        """Stop it and start it again, on another port."""
        self.__exit__()
        self.__enter__()
