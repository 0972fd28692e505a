"""Machines in network namespaces, joined by a switch; it takes root."""

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from benchmarks.harness import processes
from benchmarks.harness.server import ROOT
from benchmarks.harness.waiting import until

_DEADLINE_S = 60.0


class Machine:
    """A network namespace, which exists as long as the process that holds it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.started: list[subprocess.Popen[str]] = []
        self._holder = processes.start(["unshare", "--net", "sleep", "infinity"])
        self.started.append(self._holder)
        ours = Path("/proc/self/ns/net").readlink()
        if not until(lambda: self._network() not in {ours, None}, _DEADLINE_S):
            raise SystemExit(f"{name} got no network of its own; are you root?")

    @property
    def pid(self) -> int:
        """Of the process that holds the network."""
        return self._holder.pid

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":  # noqa: ANN401 those of Popen
        """Start a command on this machine."""
        process = processes.start([*self._enter, *command], cwd=ROOT, stdin=subprocess.DEVNULL, **options)
        self.started.append(process)
        return process

    def run(self, *command: str) -> str:
        """Run a command on this machine to its end, and return what it prints."""
        ended = subprocess.run(
            [*self._enter, *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=_DEADLINE_S,
        )
        if ended.returncode:
            raise SystemExit(f"{self.name}: {' '.join(command)}: {ended.stderr.strip()}")
        return ended.stdout

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def switch_off(self) -> None:
        """End everything on this machine at once."""
        for process in reversed(self.started):
            processes.kill_session(process.pid)
            process.wait(_DEADLINE_S)

    def _network(self) -> Path | None:
        try:
            return Path(f"/proc/{self.pid}/ns/net").readlink()
        except OSError:
            return None


class Rack:
    """Machines that are joined by a switch.

    Args:
        addresses: of each machine, by its name.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self._addresses = addresses

    def __enter__(self) -> Self:
        self._all = ExitStack()
        try:
            self._switch = self._machine("switch")
            self._switch.run("ip", "link", "add", "switch", "type", "bridge")
            self._switch.run("ip", "link", "set", "switch", "up")
            self._machines = {name: self._joined(name, address) for name, address in self._addresses.items()}
        except BaseException:
            self._all.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    def __getitem__(self, name: str) -> Machine:
        return self._machines[name]

    def cut_off(self, name: str) -> None:
        """Pull the cable of a machine: nothing reaches it, and nothing says so."""
        self._switch.run("ip", "link", "set", "dev", name, "down")

    def join(self, name: str) -> None:
        """Plug it in again."""
        self._switch.run("ip", "link", "set", "dev", name, "up")

    def _machine(self, name: str) -> Machine:
        machine = Machine(name)
        self._all.callback(machine.switch_off)
        return machine

    def _joined(self, name: str, address: str) -> Machine:
        machine = self._machine(name)
        cable = ["type", "veth", "peer", "name", "eth0", "netns", str(machine.pid)]
        self._switch.run("ip", "link", "add", "name", name, *cable)
        self._switch.run("ip", "link", "set", "dev", name, "master", "switch", "up")
        machine.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
        machine.run("ip", "link", "set", "lo", "up")
        return machine
