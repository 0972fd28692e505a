"""Supervision: an exception, a refused thread or process, and a stopped process cost nothing that lasts."""

import os
import random
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import httpx
import pytest
from support.live_server import DEADLINE_S, ROOT, LiveServer, curl
from support.load import Load, ask_once
from support.places import AS_A_USER, PlacedServer

from benchmarks.harness import processes
from benchmarks.harness.server import ENGINE, WORKER, faulty_environ
from benchmarks.harness.waiting import until

ASYNC = {"Prefer": "respond-async"}


def is_whole(server: LiveServer) -> bool:
    """Whether there are two workers with an engine each, and no zombie and no stopped process is left."""
    roles, found = server.roles(), server.workers()
    return (
        len(found) == len(roles[WORKER]) == 2
        and {worker["pid"] for worker in found} == set(roles[WORKER])
        # There may be engines for background work, too.
        and len({worker["engine_pid"] for worker in found} & set(roles[ENGINE])) == 2
        and {"Z", "T"}.isdisjoint(state for _, state in processes.states(server.pid))
    )


def ask_again(port: int, cut: list[OSError]) -> Iterator[None]:
    """Have an image flipped, and note a connection that is cut."""
    try:
        yield from ask_once(port)
    except ConnectionError as error:
        cut.append(error)
        yield


# --- exceptions -------------------------------------------------------------------------------------------

#: Parts that run only while the store is away; tests/unit/jobs/test_breaker.py raises in the first.
ONLY_WITHOUT_STORE = {"store_probe", "batch_drop"}

PARTS = (
    *("supervisor", "sweep", "decay", "hub", "consumer", "janitor"),
    *("owner_beat", "engines_on_demand", "log_reader"),
)


def test_the_parts_that_are_tried_are_all_there_are() -> None:
    watched = {
        name
        for path in (ROOT / "server").rglob("*.py")
        for name in re.findall(r'keep_running\(\s*"(\w+)"', path.read_text())
    }
    watched |= set(re.findall(r'"(\w+)": self\._\w+\.run\b', (ROOT / "server/jobs/service.py").read_text()))
    assert watched == {*PARTS, *ONLY_WITHOUT_STORE}


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    """The service with jobs, and a directory for files that ask for an exception."""
    root = tmp_path_factory.mktemp("faulty")
    environ = {**faulty_environ(root), "FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(root / "data")}
    with LiveServer(environ={"WEB_CONCURRENCY": "2", **environ}) as server:
        yield server, root


def job_state(server: LiveServer) -> str:
    """Submit a job, wait for its end, and return its state."""
    job = httpx.post(f"{server.url}/flip", headers=ASYNC, timeout=DEADLINE_S).headers["Location"]
    found = httpx.get(server.url + job, headers={"Prefer": "wait=15"}, timeout=DEADLINE_S).json()
    return str(found["state"])


@contextmanager
def watched_batch(server: LiveServer) -> Iterator[None]:
    """Have the events of a batch watched that ends only after the block, and see that its end is told."""
    httpx.post(f"{server.url}/queues/default/pause").raise_for_status()
    body = (ROOT / "images" / "landscape.jpg").read_bytes()
    files = [("image", (f"{number}.jpg", body)) for number in range(2)]
    batch = httpx.post(f"{server.url}/batches?operation=flip", files=files, timeout=DEADLINE_S)
    with ThreadPoolExecutor(1) as threads:
        events = threads.submit(curl, f"{server.url}{batch.headers['Location']}/events", "-N")
        try:
            yield
        finally:
            httpx.post(f"{server.url}/queues/default/resume").raise_for_status()
        assert events.result().stdout.count(b"event: completed") == 2
        assert events.result().stdout.count(b"event: ended") == 1


@pytest.mark.parametrize("part", PARTS)
def test_an_exception_in_a_part_costs_nothing_that_lasts(faulty: tuple[LiveServer, Path], part: str) -> None:
    server, root = faulty
    assert job_state(server) == "completed"  # some parts run only then
    workers = {worker["pid"] for worker in server.workers()}
    before = len(server.events)
    with (
        Load(partial(ask_once, server.port), clients=4) as load,
        watched_batch(server) if part == "log_reader" else nullcontext(),
    ):
        load.wait_for_more(10)
        (root / f"fault.{part}").touch()
        failed = server.wait_for("part_failed", after=before, part=part)
        assert until(lambda: is_whole(server), DEADLINE_S)
        load.wait_for_more()
    assert load.failures == []  # not even a connection is lost
    assert "injected" in str(failed)
    assert {worker["pid"] for worker in server.workers()} == workers
    assert job_state(server) == "completed"
    assert [event["part"] for event in server.events[before:] if event["event"] == "part_failed"] == [part]


# --- no threads and no processes --------------------------------------------------------------------------

#: The kernel's limit on processes is not for root.
AS_ANOTHER = AS_A_USER if os.geteuid() == 0 else ()


def limit_processes(pids: list[int], most: int | None) -> None:
    """Limit how many processes and threads there may be of their user for one of these to start another.

    None lifts the limit. Those that have ended meanwhile are left out.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if most is None:
        most = hard
    soft = "unlimited" if most == resource.RLIM_INFINITY else str(most)
    each = f"for pid in {' '.join(map(str, pids))}; do prlimit --pid $pid --nproc={soft}: 2>&-; done; true"
    subprocess.run([*AS_ANOTHER, "sh", "-c", each], check=True, timeout=DEADLINE_S)


#: What follows the end of an engine or a worker.
OUTCOMES = {"engine_online", "engine_spawn_failed", "worker_spawn_failed", "worker_exiting"}


def has_outcome(server: LiveServer, after: int) -> bool:
    return any(event["event"] in OUTCOMES for event in server.events[after:])


def test_a_service_that_may_start_no_process_now_and_then_is_whole_again() -> None:
    chance, cut = random.Random(7), list[OSError]()
    with (
        PlacedServer(wrapper=AS_ANOTHER, environ={"PYTHONDONTWRITEBYTECODE": "1"}, workers=2) as server,
        Load(partial(ask_again, server.port, cut), clients=4) as load,
    ):
        assert Path(f"/proc/{server.pid}").stat().st_uid != 0 or os.geteuid() != 0
        workers_killed = 0
        threads = sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in server.processes())
        refused = 0
        for _ in range(8):
            before = len(server.events)
            limit_processes(server.processes(), chance.choice([1, threads - 5, threads - 1]))
            roles = server.roles()
            victim = chance.choice(roles[WORKER] + roles[ENGINE])
            workers_killed += victim in roles[WORKER]
            os.kill(victim, signal.SIGKILL)
            # The process that replaces it is refused, or gets along with what there is.
            server.wait_for("engine_died" if victim in roles[ENGINE] else "worker_died", after=before)
            assert until(partial(has_outcome, server, before), DEADLINE_S)
            limit_processes(server.processes(), None)
            assert until(lambda: is_whole(server), DEADLINE_S), server.log
            load.wait_for_more()
            assert len(cut) <= 4 * workers_killed  # the connections of those
            refused += sum(
                event["event"] in {"engine_spawn_failed", "worker_spawn_failed"}
                or event.get("exit_code") == 1
                for event in server.events[before:]
            )
        assert refused
    assert load.failures == []


# --- stopped processes ------------------------------------------------------------------------------------


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A control group whose processes can be frozen (version 2)."""
    mounted = Path("/sys/fs/cgroup/unified")  # next to groups of version 1
    group = (mounted if mounted.is_dir() else mounted.parent) / f"flipcluster-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(str(error))
    try:
        yield group
    finally:
        group.rmdir()


def test_a_frozen_engine_is_killed_and_replaced(freezer: Path) -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        engine = server.workers()[0]["engine_pid"]
        (freezer / "cgroup.procs").write_text(str(engine))
        (freezer / "cgroup.freeze").write_text("1")
        server.wait_for("engine_hung", pid=engine)
        server.wait_for("engine_died", pid=engine, signal="SIGKILL")
        assert until(lambda: is_whole(server), DEADLINE_S)
        assert engine not in {worker["engine_pid"] for worker in server.workers()}
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200


def test_under_load_a_stopped_process_costs_no_more_than_the_connections_of_a_worker() -> None:
    cut: list[OSError] = []
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        with Load(partial(ask_again, server.port, cut), clients=4) as load:
            for _ in range(2):
                before = len(server.events)
                engine = server.workers()[0]["engine_pid"]
                assert engine, [event for event in server.events if event["event"] != "request"]
                os.kill(engine, signal.SIGSTOP)
                server.wait_for("engine_hung", after=before, pid=engine, state="T")
                assert until(lambda: is_whole(server), DEADLINE_S)
                load.wait_for_more()
            assert cut == []  # its task was tried again
            for times in (1, 2):
                before = len(server.events)
                worker = server.workers()[0]["pid"]
                os.kill(worker, signal.SIGSTOP)
                server.wait_for("worker_hung", after=before, pid=worker)
                server.wait_for("worker_online", after=before)
                assert until(lambda: is_whole(server), DEADLINE_S)
                assert len(cut) <= 4 * times
                load.wait_for_more()
        assert load.failures == []
        hung = [event for event in server.events if event["event"] in {"engine_hung", "worker_hung"}]
        assert len(hung) == 4
