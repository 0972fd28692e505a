"""Several machines simulated on one: two instances behind nginx, locust's master and its workers apart.

Each has a network of its own, with the addresses of the documented run (benchmarks/README.md), and nginx has
the configuration that is shipped. It needs root, nginx, and the commands ip, unshare and nsenter. Nothing of
it touches the machine's own network, and nothing is left however it ends: the networks end with the processes
that hold them.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.comparison.profiles import IMAGES
from benchmarks.harness.findings import Finding, print_table
from benchmarks.harness.rack import Rack
from benchmarks.harness.server import ROOT, clean_environ
from benchmarks.harness.waiting import until
from server.cluster.cpus import usable_cores

ADDRESSES = {
    "one": "10.0.0.11",
    "two": "10.0.0.12",
    "front": "10.0.0.10",
    "master": "10.0.0.20",
    "load-one": "10.0.0.21",
    "load-two": "10.0.0.22",
}
_INSTANCES = "one", "two"
_LOADS = "load-one", "load-two"
_NEEDED = "ip", "unshare", "nsenter", "nginx", "curl"
_DEADLINE_S = 60.0
_USERS = 20

#: When one of two machines goes, this many answers have come.
_ANSWERS_BEFORE = 40

_NGINX = """
daemon off; master_process on; worker_processes 1; pid {directory}/nginx.pid; user root;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    include {shipped};
}}
"""


class Deployment:
    """The documented run.

    Args:
        rack: where it runs.
        directory: for nginx.
    """

    def __init__(self, rack: Rack, directory: Path) -> None:
        self._rack = rack
        cores = sorted(os.sched_getaffinity(0))
        for number, name in enumerate(_INSTANCES):
            # Two machines share the cores of one: each has its own ones.
            own = cores[number :: len(_INSTANCES)] or cores
            rack[name].start(
                [sys.executable, "-m", "gunicorn", "-b", "0.0.0.0:8000"],
                cores=own,
                last_signal=signal.SIGINT,  # no client is left to answer
                env=clean_environ(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        shipped = ROOT / "deploy" / "nginx.conf"
        config = directory / "nginx.conf"
        config.write_text(_NGINX.format(directory=directory, shipped=shipped))
        rack["front"].start(["nginx", "-c", str(config)], stdout=subprocess.DEVNULL)
        for name in _INSTANCES:
            self._wait_for(f"http://{ADDRESSES[name]}:8000/readyz")
        self._wait_for(f"http://{ADDRESSES['front']}/readyz")

    def answers_of(self, name: str) -> int:
        """Return how many images an instance has turned."""
        said = self._rack["master"].run(
            "curl", "-sf", "--max-time", "20", f"http://{ADDRESSES[name]}:8000/status"
        )
        return sum(worker["tasks"] for worker in json.loads(said)["workers"])

    def drive(self, host: str, seconds: float) -> "Drive":
        """Start locust: a master and workers, each on a machine of its own."""
        return Drive(self._rack, host, seconds)

    def _wait_for(self, url: str) -> None:
        retry = ["--retry", str(int(_DEADLINE_S)), "--retry-delay", "1", "--retry-all-errors"]
        self._rack["master"].run(
            "curl", "-sf", *retry, "--retry-max-time", str(int(_DEADLINE_S) // 2), "--max-time", "20", url
        )


class Drive:
    """One run of locust over several machines."""

    def __init__(self, rack: Rack, host: str, seconds: float) -> None:
        self._seconds = seconds
        locust = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py"]
        image = str(IMAGES["2mp"].make())
        # Each machine that sends images needs this repository and the image; the master tells the rest.
        command = [*locust, "--master", "--headless", "--expect-workers", str(len(_LOADS)), "--json"]
        command += ["-u", str(_USERS), "-r", str(_USERS), "-t", f"{seconds:.0f}s", "--stop-timeout", "20"]
        command += ["--exit-code-on-error", "0", "--host", host, "--image", image, "RawUser"]
        self._master = rack["master"].start(
            command,
            last_signal=signal.SIGKILL,  # by another one it would wait for its workers
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in _LOADS:
            rack[name].start(
                [*locust, "--worker", "--master-host", ADDRESSES["master"]],
                last_signal=signal.SIGKILL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def outcome(self) -> Mapping[str, int]:
        """Wait until it is over; how many answers were right, refused, and failed or wrong."""
        said, errors = self._master.communicate(timeout=self._seconds + 2 * _DEADLINE_S)
        if self._master.returncode:
            raise SystemExit(f"locust's master ended with {self._master.returncode}:\n{errors}")
        entries: list[dict[str, Any]] = json.loads(said)
        failed = sum(entry["num_failures"] for entry in entries)
        refused = sum(entry["num_requests"] for entry in entries if "503" in entry["name"])
        asked = sum(entry["num_requests"] for entry in entries)
        return {"right": asked - refused - failed, "refused": refused, "failed": failed}


def play(seconds: float) -> list[Finding]:
    """Drive one instance, then both; then let one of them end in the middle."""
    front = f"http://{ADDRESSES['front']}"
    with Rack(ADDRESSES) as rack, TemporaryDirectory() as directory:
        deployment = Deployment(rack, Path(directory))
        alone = deployment.drive(f"http://{ADDRESSES['one']}:8000", seconds).outcome()
        before = {name: deployment.answers_of(name) for name in _INSTANCES}
        both = deployment.drive(front, seconds).outcome()
        parts = [deployment.answers_of(name) - before[name] for name in _INSTANCES]
        lasting = deployment.drive(front, seconds)
        least = deployment.answers_of("one") + _ANSWERS_BEFORE // 2
        reached = until(lambda: deployment.answers_of("one") >= least, _DEADLINE_S)
        rack["one"].switch_off()
        left = deployment.answers_of("two")
        survived = lasting.outcome()
        taken_over = deployment.answers_of("two") - left
    times = both["right"] / max(1, alone["right"])
    return [
        Finding("all answers of one instance are right", _said(alone), _is_fine(alone)),
        Finding("all answers of two behind nginx are right", _said(both), _is_fine(both)),
        Finding(
            "nginx shares them evenly",
            " and ".join(map(str, parts)),
            min(parts) > 0.35 * sum(parts),
        ),
        Finding(
            "two do more than one",
            f"{times:.2f} times as many, on {usable_cores()} cores that locust and nginx share",
            times > 1,
            is_figure=True,
        ),
        Finding(
            "one instance is killed under load, and no request is lost",
            f"{_said(survived)}; the other one did {taken_over} of them alone",
            reached and _is_fine(survived) and taken_over > 0,
        ),
    ]


def _said(outcome: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {name}" for name, number in outcome.items())


def _is_fine(outcome: Mapping[str, int]) -> bool:
    return outcome["right"] > 0 and outcome["failed"] == 0


def main() -> None:
    """Play it; the exit code is 1 when a promise was not kept."""
    options = argparse.ArgumentParser("python -m benchmarks.comparison.machines", description=__doc__)
    options.add_argument("--seconds", type=float, default=15.0, help="of each of three runs")
    given = options.parse_args()
    if lacking := [name for name in _NEEDED if not shutil.which(name)]:
        sys.exit(f"not installed: {', '.join(lacking)}")
    if os.geteuid() != 0:
        sys.exit("networks of its own need root: sudo make machines")
    began_s = time.monotonic()
    findings = play(given.seconds)
    print_table("several machines", findings, time.monotonic() - began_s)
    sys.exit(not all(finding.is_kept for finding in findings))


if __name__ == "__main__":
    main()
