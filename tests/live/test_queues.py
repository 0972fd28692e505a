"""`make queues` in small, with ours alone; nothing that depends on speed is asserted."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks.harness import processes
from benchmarks.harness.server import ROOT, STORE, WORKER, LiveServer
from benchmarks.harness.tables import read_tables
from benchmarks.harness.waiting import until
from benchmarks.peers.queues.systems import SYSTEMS
from benchmarks.queues import measures
from benchmarks.queues.contender import WORKERS, Contender, NotReady, OurService
from benchmarks.queues.tables import markdown
from benchmarks.queues.witness import Life
from benchmarks.survival.batches import PREFIX, background_engines, store

DEADLINE_S = 100.0
KILLS_DEADLINE_S = 240.0  # a lease is waited for after each of three kills
OURS = [system.name for system in SYSTEMS if not system.is_peer]
(SERVICE,) = (system for system in SYSTEMS if system.is_service)
(QUEUE,) = (system for system in SYSTEMS if system.is_queue_alone)
COMMAND = [sys.executable, "-m", "benchmarks.queues", "--quick", "--idle", "1"]


@pytest.mark.timeout(KILLS_DEADLINE_S + 20)
def test_ours_is_measured_and_loses_nothing(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "--rounds", "1", "--wait", "60", "--into", str(tmp_path), *OURS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=KILLS_DEADLINE_S,
    )
    assert result.returncode == 0, result.stderr
    written = (tmp_path / "queues.json").read_text()
    found = json.loads(written)["systems"]
    for name in OURS:
        assert len(found[name]["empty"]) == 1
        assert found[name]["first_ms"] > 0
    service = found[SERVICE.name]
    assert service["flips"]
    assert service["process_killed"]["again_s"] is not None
    assert service["worker_killed"]["again_s"] is not None
    assert service["worker_killed"]["jobs"][1] == 0  # lost
    acknowledged, lost, twice = service["server_killed"]
    assert acknowledged
    assert (lost, twice) == (0, 0)
    assert "503" in service["away"]["said"]
    assert (tmp_path / "queues.md").read_text() == markdown(read_tables(written))


def test_a_run_that_is_stopped_writes_what_it_has_measured(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with output.open("w") as file:
        run = processes.start(
            [*COMMAND, "--rounds", "1000", "--into", str(tmp_path), "ours-store"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        assert until(lambda: "round 2 of" in output.read_text(), DEADLINE_S), output.read_text()
        run.send_signal(signal.SIGTERM)
        assert run.wait(DEADLINE_S) == 0, output.read_text()
    finally:
        processes.kill_session(run.pid)
    document = json.loads((tmp_path / "queues.json").read_text())
    assert document["systems"]["ours-store"]["empty"]
    assert "interrupted" in (tmp_path / "queues.md").read_text()


def test_a_run_that_fails_writes_what_it_has_measured(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 100)  # for the socket of our store
    too_long.mkdir()
    result = subprocess.run(
        [*COMMAND, "--rounds", "1", "--into", str(tmp_path), "ours"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(too_long)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert result.returncode == 1, result.stderr
    assert "all that had not been measured when the run failed" in (tmp_path / "queues.md").read_text()
    assert "Traceback" in result.stderr


@pytest.fixture
def directory() -> Iterator[Path]:
    with TemporaryDirectory(prefix="q-") as short:  # enough for a socket
        yield Path(short)


@pytest.fixture(scope="module")
def ours() -> Iterator[OurService]:
    """One service for all tests that kill a part of it, which it replaces."""
    with TemporaryDirectory(prefix="q-") as short:
        directory = Path(short)
        with OurService(SERVICE, directory / "s", directory) as started:
            started.warm_up()
            yield started


def service_of(ours: OurService) -> LiveServer:
    return ours._service  # noqa: SLF001


def test_a_worker_of_ours_holds_one_job_at_a_time(ours: OurService) -> None:
    jobs = ours.submit(*["sleep 0.2"] * 8)
    with store(ours.directory / "data") as client:

        def have_ended() -> bool:
            assert client.zcard(f"{PREFIX}lease") <= WORKERS
            return ours.witness.count_ended(jobs) == len(jobs)

        assert until(have_ended)


def test_the_worker_that_holds_a_job_is_killed_not_the_one_whose_engine_runs_it(ours: OurService) -> None:
    ours.wait_for(ours.submit(*["sleep 0.2"] * 4))  # so that both workers have an engine for jobs
    service = service_of(ours)
    assert until(lambda: len(background_engines(service)) == WORKERS)
    stopped, running = background_engines(service)
    (holder,) = (each for each in service.roles()[WORKER] if stopped in processes.tree(each))
    os.kill(stopped, signal.SIGSTOP)  # so that the other one runs what its worker holds
    try:
        jobs = ours.submit("sleep 1.0", "sleep 1.0")

        def of_holder() -> Life | None:
            for life in ours.witness.lives(jobs):
                if life.starts and life.location and not life.ends:
                    with suppress(ProcessLookupError):  # it has ended meanwhile
                        return life if ours.holder_of(life) == holder else None
            return None

        life = until(of_holder)
        assert life
        assert life.pids == [running]
        ours.kill_worker_of(life)
        processes.wait_until_gone(holder, DEADLINE_S)
        assert processes.is_alive(running)
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)


def test_a_store_of_ours_is_killed_while_it_rewrites_its_data_and_when_it_is_back(ours: OurService) -> None:
    with store(ours.directory / "data") as client:
        client.config_set("rdb-key-save-delay", 10_000_000)  # microseconds: the child does not end
        client.bgrewriteaof()
    stores = until(lambda: (found := service_of(ours).roles()[STORE])[1:] and found)
    for _ in range(2):  # the second time it is not back yet
        ours.kill_server()
        for pid in stores:
            processes.wait_until_gone(pid, DEADLINE_S)
    assert until(ours.is_server_ready)


def test_a_server_that_does_not_answer_again_gives_no_figure(directory: Path) -> None:
    once = replace(
        QUEUE,
        server=lambda *place: ["sh", "-c", 'mkdir started && exec "$@"', "sh", *QUEUE.server(*place)],
    )
    with Contender(once, directory / "s", directory) as contender:
        assert measures.kill_servers([contender], 1.0) == {contender: None}


def test_what_cannot_be_prepared_leaves_no_process(directory: Path) -> None:
    child = directory / "s" / "child"
    unprepared = replace(QUEUE, prepare=lambda _: ["sh", "-c", "sleep 300 & echo $! > child; exit 1"])
    with pytest.raises(NotReady), Contender(unprepared, directory / "s", directory):
        pass
    pid = int(child.read_text())
    if is_left := processes.is_alive(pid):
        os.kill(pid, signal.SIGKILL)
    assert not is_left
