"""`make queues` in small, with ours alone; nothing that depends on speed is asserted."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.harness.server import ROOT
from benchmarks.harness.tables import read_tables
from benchmarks.peers.queues.systems import SYSTEMS
from benchmarks.queues.tables import markdown

DEADLINE_S = 100.0
OURS = [system.name for system in SYSTEMS if not system.is_peer]


def test_ours_is_measured_and_loses_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.queues", "--quick", "--rounds", "1", "--idle", "1"]
    result = subprocess.run(
        [*command, "--wait", "60", "--into", str(tmp_path), *OURS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "queues.json").read_text()
    found = json.loads(written)["systems"]
    for name in OURS:
        assert len(found[name]["empty"]) == 1
        assert found[name]["first_ms"] > 0
    (service,) = (found[system.name] for system in SYSTEMS if system.is_service)
    assert service["flips"]
    assert service["process_killed"]["again_s"] is not None
    assert service["worker_killed"]["again_s"] is not None
    assert service["worker_killed"]["jobs"][1] == 0  # lost
    acknowledged, lost, twice = service["server_killed"]
    assert acknowledged
    assert (lost, twice) == (0, 0)
    assert "503" in service["away"]["said"]
    assert (tmp_path / "queues.md").read_text() == markdown(read_tables(written))
