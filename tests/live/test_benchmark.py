"""The benchmark itself: what it notices, and what it leaves behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from benchmarks.comparison.profiles import BURST, Profile, Scenario
from benchmarks.comparison.run import Bar, Benchmark, Recorder, WrongAnswer
from benchmarks.comparison.topologies import Topology, TopologyServer, ours
from benchmarks.harness import processes
from benchmarks.harness.server import ROOT, DidNotStart
from benchmarks.harness.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DEADLINE_S = 60.0
IMPOSTOR = str(ROOT / "tests" / "support" / "impostor.py")
SHORT = Profile("short", {"small": (Scenario("2", 1, 2), Scenario(BURST, 0, 1))})


def impostor(way: str) -> Topology:
    return Topology(way, f"an impostor ({way})", 1, [sys.executable, IMPOSTOR, "{port}", way])


def measured(directory: Path, topologies: Sequence[Topology]) -> Path:
    """Run a short benchmark and return where its raw data are."""
    scratch = directory / "scratch"
    scratch.mkdir()
    recorder = Recorder(directory / "result", {})
    with Bar(1) as bar:
        Benchmark(SHORT, recorder, scratch).run(topologies, [], bar, peers=False)
    recorder.finish(is_interrupted=False)
    return directory / "result" / "raw"


def rows(raw: Path, table: str) -> list[dict[str, str]]:
    with (raw / f"{table}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_records_every_request_of_every_cell(tmp_path: Path) -> None:
    raw = measured(tmp_path, [ours("single", "single process", 1), ours("cluster", "cluster", 2)])
    cells = {(row["topology"], row["scenario"], row["repetition"]) for row in rows(raw, "windows")}
    assert cells == {
        (topology, scenario, repetition)
        for topology in ("single", "cluster")
        for scenario, repetition in (("2", "0"), ("2", "1"), (BURST, "0"))
    }
    requests = rows(raw, "requests")
    assert {row["outcome"] for row in requests} == {"ok"}
    for topology in ("single", "cluster"):
        burst = [row for row in requests if (row["topology"], row["scenario"]) == (topology, BURST)]
        assert len(burst) == 10
    assert {row["topology"] for row in rows(raw, "answers")} == {"single", "cluster"}
    for table in ("processes", "generator", "health"):
        assert {(row["topology"], row["scenario"]) for row in rows(raw, table)} >= {
            ("single", "2"),
            ("cluster", "2"),
        }, table
    assert json.loads((raw / "run.json").read_text())["interrupted"] is False


@pytest.mark.parametrize(("way", "fault"), [("echo", "not the flipped image"), ("garbage", "no image")])
def test_a_wrong_answer_ends_the_run(way: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(WrongAnswer, match=fault):
        measured(tmp_path, [impostor(way)])


def test_a_wrong_answer_among_right_ones_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WrongAnswer, match=r"(?s)wrong answers.*not the flipped image"):
        measured(tmp_path, [impostor("late")])


def test_a_server_that_does_not_start_shows_its_log() -> None:
    broken = Topology(
        "broken", "a broken server", 1, [sys.executable, "-c", "raise SystemExit('no such cable')"]
    )
    with (
        pytest.raises(DidNotStart, match=r"(?s)a broken server ended.*no such cable"),
        TopologyServer(broken),
    ):
        pass


def test_locust_ends_with_an_error_when_no_answer_could_be_told_from_a_wrong_one(tmp_path: Path) -> None:
    plain = tmp_path / "plain.png"
    Image.new("RGB", (64, 48), "white").save(plain)
    command = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py", "--headless", "-t", "50s"]
    command += ["--host", "http://127.0.0.1:1", "--image", str(plain), "RawUser"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert ended.returncode == 70
    assert "looks the same upside down; choose another one" in ended.stderr


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int], int]]:
    """A benchmark under way: it, the processes it has started, and the port of one of its servers."""
    command = [sys.executable, "-m", "benchmarks", "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            assert until(lambda: any(map(is_locust, processes.tree(process.pid))), DEADLINE_S), (
                "locust has not started"
            )
            started = [pid for pid in processes.tree(process.pid) if pid != process.pid]
            commands = [processes.command(pid) for pid in started]
            port = next(
                int(command.partition("127.0.0.1:")[2].split()[0])
                for command in commands
                if "-b 127.0.0.1:" in command
            )
            yield process, started, port
        finally:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def is_locust(pid: int) -> bool:
    with suppress(OSError):
        return "locustfile" in processes.command(pid)
    return False


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_nothing_is_left(
    run: tuple[subprocess.Popen[bytes], list[int], int], ending: signal.Signals, tmp_path: Path
) -> None:
    process, started, port = run
    assert len(started) > 5
    process.send_signal(ending)
    process.wait(DEADLINE_S)
    assert until(lambda: not any(map(processes.is_alive, started)), DEADLINE_S), "a process is left"
    assert not is_listening(port)
    if ending != signal.SIGKILL:
        (result,) = tmp_path.iterdir()
        assert json.loads((result / "raw" / "run.json").read_text())["interrupted"] is True
