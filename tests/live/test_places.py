"""Bad places to run: the service works in each, or its start says in one line what is missing.

The names of the places are those of the table in docs/runbook.md.
"""

import errno
import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, Event, LiveServer, LiveWorker, run
from support.places import (
    AS_A_USER,
    WITHOUT_MEMFD,
    PlacedServer,
    control_group,
    in_place,
    with_clock,
    within,
    without_threads,
)
from support.store import binaries, store_server

from benchmarks.harness import processes
from benchmarks.harness.server import ENGINE, WORKER, Server
from benchmarks.harness.waiting import until

GUNICORN = [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0"]

#: A worker without a web server. It needs a store, which a start that is refused never looks for.
JOB_WORKER = [sys.executable, "-m", "server.worker"]
FOR_JOB_WORKER = {"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": "unix:///nonexistent"}

needs_mounts = pytest.mark.needs("mounts")
needs_user = pytest.mark.needs("user")

#: Events of a cluster in which something went wrong, and lines that are no events.
BAD_LEVELS = {"warning", "error", "critical", "none"}


def bad_events(server: LiveServer) -> list[Event]:
    """What is worse than news in the log."""
    return [event for event in server.events if event.get("level", "none") in BAD_LEVELS]


def assert_works(server: LiveServer, *expected: str) -> None:
    """The service answers, and nothing in its log is worse than news, not even at its end.

    Args:
        server: is stopped.
        expected: the events that are, in their order.
    """
    assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
    assert server.stop() == 0
    found = bad_events(server)
    assert tuple(event["event"] for event in found) == expected, found


def refusal(command: list[str], **environ: str) -> str:
    """Return the line with which a start ends."""
    result = run(command, **{"WEB_CONCURRENCY": "1", **environ})
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("flipcluster: ")
    return line


# --- directories ------------------------------------------------------------------------------------------

#: Of /dev, only what every container has.
NO_SHM = (
    "mkdir $TMPDIR/dev",
    *(
        f"touch $TMPDIR/dev/{name}; mount --bind /dev/{name} $TMPDIR/dev/{name}"
        for name in ("null", "zero", "urandom")
    ),
    "mount --rbind $TMPDIR/dev /dev",
)


@needs_mounts
@pytest.mark.parametrize(
    "mounts",
    [
        pytest.param(NO_SHM, marks=pytest.mark.place("`/dev/shm` is missing")),
        pytest.param(
            ("mount -t tmpfs -o ro tmpfs /dev/shm",), marks=pytest.mark.place("`/dev/shm` is read-only")
        ),
        pytest.param(
            ("mount -t tmpfs -o size=4k tmpfs /dev/shm", "head -c 4096 /dev/zero >/dev/shm/filler"),
            marks=pytest.mark.place("`/dev/shm` is full"),
        ),
        pytest.param(
            ("mount -t tmpfs -o nr_inodes=1 tmpfs /dev/shm",),
            marks=pytest.mark.place("`/dev/shm` has no inodes left"),
        ),
        pytest.param(
            ("mount -t tmpfs -o size=64m tmpfs /dev/shm",), marks=pytest.mark.place("`/dev/shm` has 64 MB")
        ),
        pytest.param(
            (
                "mount -t tmpfs -o ro tmpfs /dev/shm",
                "mount -t tmpfs -o ro tmpfs $TMPDIR",
                "mount -o remount,ro,bind /",
            ),
            marks=pytest.mark.place("the root is read-only"),
        ),
    ],
    ids=["missing", "read-only", "full", "no inodes", "64 MB", "root"],
)
def test_directories_that_cannot_be_written_to_make_no_difference(
    mounts: tuple[str, ...], tmp_path: Path
) -> None:
    with PlacedServer(mounts=mounts, environ={"TMPDIR": str(tmp_path)}) as server:
        assert_works(server)


@needs_mounts
@pytest.mark.place("the root is read-only")
def test_a_root_that_is_read_only_leaves_no_place_for_jobs() -> None:
    command = in_place(GUNICORN, ["mount -o remount,ro,bind /"])
    said = refusal(command, FLIP_JOBS="embedded", FLIP_DATA_DIR="/var/lib/flipcluster-test")
    assert "FLIP_DATA_DIR" in said
    assert "Read-only file system" in said


# --- system calls that are forbidden ----------------------------------------------------------------------


@pytest.mark.place("`memfd_create` is forbidden")
@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS])
def test_without_memory_files_unnamed_files_do(error: int) -> None:
    with PlacedServer(wrapper=[*WITHOUT_MEMFD, str(error)]) as server:
        server.wait_for("memfd_unavailable", directory="/dev/shm")  # noqa: S108
        for _ in range(2):
            assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        assert_works(server, "memfd_unavailable")


@needs_mounts
@pytest.mark.place("`memfd_create` is forbidden")
def test_without_memory_files_and_shared_memory_the_temporary_directory_does(tmp_path: Path) -> None:
    with PlacedServer(
        mounts=["mount -t tmpfs -o ro tmpfs /dev/shm"],
        wrapper=[*WITHOUT_MEMFD, str(errno.EPERM)],
        environ={"TMPDIR": str(tmp_path)},
    ) as server:
        server.wait_for("memfd_unavailable", directory=str(tmp_path))
        assert_works(server, "memfd_unavailable")
    assert list(tmp_path.iterdir()) == []


@needs_mounts
@pytest.mark.place("`memfd_create` is forbidden")
def test_without_any_place_for_files_the_start_says_so() -> None:
    mounts = [
        "mount -t tmpfs -o ro tmpfs /dev/shm",
        "for mounted in / /tmp /var/tmp; do mount -o remount,ro,bind $mounted || true; done",
    ]
    said = refusal(in_place(GUNICORN, mounts, [*WITHOUT_MEMFD, str(errno.EPERM)]))
    assert "memfd_create is forbidden" in said


# --- users and limits -------------------------------------------------------------------------------------


@needs_user
@pytest.mark.place("not root, and no capabilities")
def test_a_user_without_capabilities_is_enough() -> None:
    with PlacedServer(wrapper=AS_A_USER) as server:
        assert_works(server)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        pytest.param("nofile=64", "RLIMIT_NOFILE", marks=pytest.mark.place("RLIMIT_NOFILE is low")),
        pytest.param("as=200000000", "RLIMIT_AS", marks=pytest.mark.place("RLIMIT_AS is low")),
        pytest.param("fsize=1000000", "FLIP_MAX_BODY_BYTES", marks=pytest.mark.place("RLIMIT_FSIZE is low")),
        pytest.param("nproc=8", "RLIMIT_NPROC", marks=[pytest.mark.place("RLIMIT_NPROC is low"), needs_user]),
    ],
)
@pytest.mark.parametrize("command", [GUNICORN, JOB_WORKER], ids=["gunicorn", "job worker"])
def test_a_limit_that_is_too_low_stops_the_start(command: list[str], limit: str, says: str) -> None:
    wrapper = [*(AS_A_USER if "nproc" in limit else ()), "prlimit", f"--{limit}"]
    assert says in refusal(in_place(command, wrapper=wrapper), **FOR_JOB_WORKER)


@pytest.mark.place("RLIMIT_NOFILE is low")
def test_a_job_worker_uses_all_descriptors_that_it_may_have(tmp_path: Path) -> None:
    with store_server(binaries()["redis-server"], tmp_path) as store:
        environ = {"FLIP_JOBS": "remote", "FLIP_QUEUE_URL": store.url, "FLIP_DATA_DIR": f"{tmp_path}/data"}
        with LiveWorker(environ, wrapper=["prlimit", "--nofile=64:1000"]) as worker:
            pid = worker.wait_for("job_worker_online")["pid"]
            assert resource.prlimit(pid, resource.RLIMIT_NOFILE) == (1000, 1000)
            assert worker.stop() == 0


@pytest.fixture
def group_of_pids() -> Iterator[Path]:
    """A control group that may limit its processes."""
    with control_group("pids") as group:
        yield group


@pytest.mark.needs("pids")
@pytest.mark.place("`pids.max` of the control group is low")
@pytest.mark.parametrize("command", [GUNICORN, JOB_WORKER], ids=["gunicorn", "job worker"])
def test_too_few_processes_in_the_control_group_stop_the_start(
    group_of_pids: Path, command: list[str]
) -> None:
    (group_of_pids / "pids.max").write_text("9")
    said = refusal(in_place(command, wrapper=within(group_of_pids)), **FOR_JOB_WORKER)
    assert "pids.max" in said


@pytest.mark.needs("pids")
@pytest.mark.place("`pids.max` of the control group is low")
def test_just_enough_processes_in_the_control_group_are_enough(group_of_pids: Path) -> None:
    (group_of_pids / "pids.max").write_text("10")
    with PlacedServer(wrapper=within(group_of_pids)) as server:
        assert_works(server)


@pytest.mark.needs("pids")
@pytest.mark.place("`pids.max` of the control group is low")
def test_the_embedded_store_needs_processes_too(group_of_pids: Path, tmp_path: Path) -> None:
    environ = {"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(tmp_path)}
    (group_of_pids / "pids.max").write_text("16")
    assert "pids.max" in refusal(in_place(GUNICORN, wrapper=within(group_of_pids)), **environ)
    (group_of_pids / "pids.max").write_text("17")
    with PlacedServer(wrapper=within(group_of_pids), environ=environ) as server:
        taken = httpx.post(f"{server.url}/flip", headers={"Prefer": "respond-async"}, timeout=DEADLINE_S)
        assert taken.status_code == 202
        result = f"{server.url}{taken.headers['location']}/result"
        assert until(lambda: httpx.get(result, timeout=DEADLINE_S).status_code == 200)
        assert_works(server)


@needs_mounts
@pytest.mark.place("`/proc` is missing")
@pytest.mark.parametrize("command", [GUNICORN, JOB_WORKER], ids=["gunicorn", "job worker"])
def test_without_proc_the_start_says_so(command: list[str]) -> None:
    said = refusal(in_place(command, ["mount -t tmpfs tmpfs /proc"]), **FOR_JOB_WORKER)
    assert "/proc is missing" in said


@pytest.mark.place("RLIMIT_NPROC is low")
def test_a_job_worker_that_cannot_start_its_threads_says_so(tmp_path: Path) -> None:
    environ = {**FOR_JOB_WORKER, **without_threads(tmp_path)}
    assert "can't start new thread" in refusal(JOB_WORKER, **environ)


@pytest.mark.parametrize(
    ("limit", "warnings"),
    [
        pytest.param("nofile=160", ["connections_limited"], marks=pytest.mark.place("RLIMIT_NOFILE is low")),
        pytest.param("as=402653184", [], marks=pytest.mark.place("RLIMIT_AS is low")),
        pytest.param("fsize=67108864", [], marks=pytest.mark.place("RLIMIT_FSIZE is low")),
        pytest.param("nproc=10", [], marks=[pytest.mark.place("RLIMIT_NPROC is low"), needs_user]),
    ],
)
def test_a_limit_that_is_just_high_enough_is_enough(limit: str, warnings: list[str]) -> None:
    wrapper = [*(AS_A_USER if "nproc" in limit else ()), "prlimit", f"--{limit}"]
    with PlacedServer(wrapper=wrapper) as server:
        assert_works(server, *warnings)


@pytest.mark.parametrize(
    ("limit", "status", "problem"),
    [
        pytest.param("as=402653184", 422, "too-many-pixels", marks=pytest.mark.place("RLIMIT_AS is low")),
        pytest.param(
            "fsize=67108864", 503, "service-unavailable", marks=pytest.mark.place("RLIMIT_FSIZE is low")
        ),
    ],
)
def test_what_does_not_fit_into_a_low_limit_is_answered_and_the_rest_is_served(
    limit: str, status: int, problem: str
) -> None:
    with Image.new("RGB", (9_000, 9_000)) as plain, BytesIO() as file:  # 243 MB as pixels, and as BMP
        plain.save(file, "PNG")
        image = file.getvalue()
    with PlacedServer(wrapper=["prlimit", f"--{limit}"]) as server:
        answer = httpx.post(f"{server.url}/flip?format=bmp", content=image, timeout=DEADLINE_S)
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, problem)
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:  # it is the limit
        answer = httpx.post(f"{server.url}/flip?format=bmp", content=image, timeout=DEADLINE_S)
        assert answer.status_code == 200


@pytest.mark.place("RLIMIT_NOFILE is low")
def test_connections_never_use_up_the_descriptors() -> None:
    with PlacedServer(wrapper=["prlimit", "--nofile=160"]) as server:
        most = server.wait_for("connections_limited", wanted=2048)["worker_connections"]
        host, port = server.address[0], server.port
        connections = [socket.create_connection((host, port), timeout=DEADLINE_S) for _ in range(most + 20)]
        with httpx.Client(timeout=DEADLINE_S) as client:
            assert client.get(f"{server.url}/healthz").status_code == 503  # said, and not left to wait
            for connection in connections:
                connection.close()

            def answer() -> bool:
                return client.post(f"{server.url}/flip").status_code == 200

            assert until(answer)
        assert [event["event"] for event in bad_events(server)] == ["connections_limited"]


@pytest.mark.place("RLIMIT_NOFILE is low")
def test_every_connection_that_is_accepted_has_descriptors_for_a_request() -> None:
    environ = {"FLIP_MAX_WAIT_S": "600", "FLIP_HUNG_AFTER_S": "0"}
    with ExitStack() as stack:
        server = stack.enter_context(PlacedServer(wrapper=["prlimit", "--nofile=400"], environ=environ))
        most = server.wait_for("connections_limited", wanted=2048)["worker_connections"]
        watcher = stack.enter_context(httpx.Client(timeout=DEADLINE_S))

        def in_flight() -> int:
            (worker,) = watcher.get(f"{server.url}/status").json()["workers"]
            return int(worker["in_flight"])

        assert in_flight() == 0
        (engine,) = server.roles()[ENGINE]
        os.kill(engine, signal.SIGSTOP)
        clients = [
            stack.enter_context(socket.create_connection(server.address, timeout=DEADLINE_S))
            for _ in range(most - 1)
        ]
        for client in clients:
            client.sendall(
                b"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        assert until(lambda: in_flight() == most - 1, DEADLINE_S), server.log
        os.kill(engine, signal.SIGCONT)
        assert [client.recv(12) for client in clients] == [b"HTTP/1.1 200"] * (most - 1)


@pytest.mark.place("RLIMIT_NPROC is low")
def test_workers_that_fail_together_end_the_start_without_a_traceback(tmp_path: Path) -> None:
    result = run(GUNICORN, WEB_CONCURRENCY="4", **without_threads(tmp_path))
    assert result.returncode == 3
    assert [line for line in result.stderr.splitlines() if not line.startswith("{")] == []
    assert json.loads(result.stderr.splitlines()[-1])["event"] == "Reason: Worker failed to boot."


# --- the standard streams and the log ---------------------------------------------------------------------


@pytest.mark.place("standard streams are closed")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_make_no_difference(closed: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [*GUNICORN[:-1], "127.0.0.1:{port}", "-w", "1", "--error-logfile", str(log)]
    with Server(["sh", "-c", f"exec {shlex.join(command)} {closed}".replace("'{port}'", "{port}")]) as server:
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        assert server.stop() == 0
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event for event in events if event["level"] in BAD_LEVELS] == []


@pytest.mark.place("the pipe of the log is closed")
def test_a_log_that_nothing_reads_makes_no_difference(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    command = f"exec {shlex.join(GUNICORN[:-1])} 127.0.0.1:{{port}} -w 2 2>{tmp_path}/log"
    with Server(["sh", "-c", command]) as server:
        os.close(reader)
        for _ in range(3):
            assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        before = {worker["pid"] for worker in status(server)}
        for pid in before:  # their successors find the pipe closed
            os.kill(pid, signal.SIGKILL)
        assert until(lambda: has_two_others(server, before))
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        assert server.stop() == 0


def status(server: Server) -> list[dict[str, int]]:
    """Return what `/status` has about every worker; nothing while none answers."""
    with suppress(httpx.TransportError):
        workers: list[dict[str, int]] = httpx.get(f"{server.url}/status", timeout=1).json()["workers"]
        return workers
    return []


def has_two_others(server: Server, before: set[int]) -> bool:
    """Whether two workers are online that were not there before."""
    now = {worker["pid"] for worker in status(server) if worker["engine_pid"]}
    return len(now - before) == 2


@needs_mounts
@pytest.mark.place("the disk of the log is full")
def test_a_full_disk_costs_the_lines_of_the_log_and_nothing_else(tmp_path: Path) -> None:
    command = [*GUNICORN[:-1], "127.0.0.1:{port}", "-w", "1", "--error-logfile", f"{tmp_path}/log"]
    mounts = [
        f"mount -t tmpfs -o size=4k tmpfs {tmp_path}",
        f"head -c 4096 /dev/zero >{tmp_path}/filler",
    ]
    with Server(in_place(command, mounts)) as server:
        for _ in range(3):
            assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        assert server.stop() == 0
        assert server.log == ""


# --- time -------------------------------------------------------------------------------------------------


@pytest.mark.place("the clock jumps")
def test_a_clock_that_jumps_ahead_cuts_no_stop_short(tmp_path: Path, landscape: Path) -> None:
    body = landscape.read_bytes()
    with (
        PlacedServer(environ=with_clock(tmp_path), workers=2) as server,
        socket.create_connection((server.address[0], server.port), timeout=DEADLINE_S) as client,
    ):
        client.sendall(f"POST /flip HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n".encode())
        client.sendall(body[:1000])
        assert until(lambda: any(worker["requests"] == 0 for worker in server.workers()))
        server.send_signal(signal.SIGTERM)
        server.wait_for("worker_stopping", count=2)
        (tmp_path / "clock").write_text("3600")
        server.wait_for("worker_exiting")  # the worker that has no request
        client.sendall(body[1000:])
        assert client.recv(12) == b"HTTP/1.1 200"
        while client.recv(1 << 16):
            pass
        assert server.wait() == 0


@pytest.mark.place("the clock jumps")
def test_a_clock_that_jumps_back_delays_no_stop(tmp_path: Path) -> None:
    environ = {**with_clock(tmp_path), "FLIP_HUNG_AFTER_S": "0"}
    with PlacedServer("--graceful-timeout", "1", environ=environ, workers=2) as server:
        stuck, _ = server.workers()
        os.kill(stuck["pid"], signal.SIGSTOP)
        server.send_signal(signal.SIGTERM)
        server.wait_for("worker_stopping")
        (tmp_path / "clock").write_text("-3600")
        assert server.wait() == 0


@pytest.mark.place("the clock jumps")
@pytest.mark.parametrize("seconds", ["86400", "-86400"])
def test_a_clock_that_jumps_makes_no_difference_to_requests(tmp_path: Path, seconds: str) -> None:
    with PlacedServer(environ=with_clock(tmp_path)) as server:
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        (tmp_path / "clock").write_text(seconds)
        assert_works(server)


@pytest.mark.place("the machine is suspended, or the container paused")
def test_a_pause_of_all_processes_costs_none_of_them() -> None:
    # Next to an arbiter that runs, a stopped worker is hung.
    with PlacedServer("--timeout", "5", environ={"FLIP_HUNG_AFTER_S": "0"}, workers=2) as server:
        arbiter, *others = server.processes()
        for pid in (arbiter, *others):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(7)  # longer than the timeout of workers: that time passes is what this is about
        before = len(server.events)
        os.kill(arbiter, signal.SIGCONT)
        for more in (1, 2):  # before the second one it has looked at its workers
            os.kill(arbiter, signal.SIGTTIN)
            server.wait_for("worker_booting", after=before, count=more)
        for pid in others:
            os.kill(pid, signal.SIGCONT)
        server.wait_for("worker_online", after=before, count=2)
        assert set(others) < set(server.processes())
        assert_works(server)


# --- processes --------------------------------------------------------------------------------------------


@needs_mounts
@pytest.mark.place("it is PID 1, without an init")
def test_as_the_first_process_it_reaps_orphans() -> None:
    wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc"]
    with PlacedServer(wrapper=wrapper) as server:
        _, arbiter, *_ = processes.tree(server.pid)
        subprocess.run(
            ["nsenter", "--target", str(arbiter), "--pid", "sh", "-c", "sleep 600 & exit"],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        (orphan,) = until(
            lambda: [pid for pid in children(arbiter) if processes.command(pid).startswith("sleep 600")]
        )
        os.kill(orphan, signal.SIGKILL)
        assert until(lambda: orphan not in children(arbiter))
        assert httpx.post(f"{server.url}/flip", timeout=DEADLINE_S).status_code == 200
        os.kill(arbiter, signal.SIGTERM)
        assert server.wait() == 0
        assert bad_events(server) == []


def children(pid: int) -> list[int]:
    """Return the children of a process, zombies too."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.place("a stop comes while it starts, after `arbiter_starting`")
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["arbiter", "group"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("role", [WORKER, ENGINE])
def test_a_stop_in_the_middle_of_a_start_leaves_no_traceback(
    role: str, number: signal.Signals, send: Callable[[int, int], None]
) -> None:
    with Starting() as server:
        server.wait_for("arbiter_listening")
        assert until(lambda: server.roles().get(role))  # a moment ago it was not there
        send(server.pid, number)  # a terminal sends it to the group
        assert server.wait() == 0
        assert bad_events(server) == []


class Starting(LiveServer):
    """The service, not waited for."""

    def __init__(self) -> None:
        super().__init__(environ={"WEB_CONCURRENCY": "2"})

    def _wait_until_ready(self) -> None:
        """Do nothing."""


# --- cores ------------------------------------------------------------------------------------------------


@pytest.fixture
def half_a_core() -> Iterator[Path]:
    """A control group with half a core."""
    with control_group("cpu") as group:
        if (group / "cpu.cfs_period_us").exists():
            (group / "cpu.cfs_period_us").write_text("100000")
            (group / "cpu.cfs_quota_us").write_text("50000")
        else:
            (group / "cpu.max").write_text("50000 100000")
        yield group


@pytest.mark.needs("cpu")
@pytest.mark.place("half a core")
def test_half_a_core_is_one_worker(half_a_core: Path) -> None:
    with PlacedServer(wrapper=within(half_a_core), workers=None) as server:
        assert len(server.workers()) == 1
        assert_works(server)
