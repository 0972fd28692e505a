"""Scenarios of crashes: engines and workers killed or stopped, poison images, clients that leave, and leaks.

Each scenario starts a cluster of its own and returns its findings. The defaults are the full size; tests pass
smaller values.
"""

import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from pathlib import Path
from statistics import median

from benchmarks.harness import processes
from benchmarks.harness.clients import Clients
from benchmarks.harness.exchanges import Exchange, ask, drive, outcome
from benchmarks.harness.findings import Finding
from benchmarks.harness.messages import post
from benchmarks.harness.server import ROOT, LiveServer, faulty_environ
from benchmarks.harness.waiting import at_intervals, until
from benchmarks.survival.cluster import (
    OK,
    clients,
    cluster,
    count,
    image,
    in_flight,
    listed,
    living_engines,
    right_answer,
    summary,
)

#: What poison images do to an engine, and whether it crashes: only then the image is quarantined.
SABOTAGES = {"segfault": True, "abort": True, "exit": True, "hang": True, "memory": False}


#: How soon a stopped process must be replaced.
_BACK_S = 5.0


def engine_kills(
    kills: int = 60, every_s: float = 1.0, at_once: int = 10, body: str = "big"
) -> list[Finding]:
    """Kill engines repeatedly under load; every request is still answered."""
    replaced_s = []
    with cluster() as server:
        with clients(server, body, at_once=at_once) as others:
            for number in at_intervals(kills, every_s):
                # On a busy machine the same task could lose four engines in a row, and would be refused.
                engines = _let_all_work(server, others)
                replaced_s.append(_kill_engine(server, engines[number % len(engines)]))
        living_engines(server)
        died = count(server, "engine_died")
    return [
        Finding("every request is answered 200 with the right pixels", summary(others), not others.failed),
        Finding("every engine killed is replaced", f"{kills} killed, {died} died", died == kills),
        _replaced("engine", replaced_s),
    ]


def _kill_engine(server: LiveServer, engine_pid: int) -> float:
    """Kill an engine, wait for its replacement, and return how many seconds that took."""
    before, killed_s = len(server.events), time.monotonic()
    os.kill(engine_pid, signal.SIGKILL)
    server.wait_for("engine_died", after=before, pid=engine_pid, signal="SIGKILL")
    server.wait_for("engine_online", after=before)
    return time.monotonic() - killed_s


def worker_kills(
    kills: int = 10, every_s: float = 6.0, at_once: int = 10, body: str = "big"
) -> list[Finding]:
    """Kill the oldest worker repeatedly; only the requests on its own connections fail."""
    replaced_s = []
    victims = set()
    with cluster() as server:
        workers = len(server.workers())
        with clients(server, body, at_once=at_once, keep_alive=True) as others:
            for _ in at_intervals(kills, every_s):
                victim = _oldest_worker(server)
                victims.add(victim)
                others.wait_until(lambda exchange: exchange.status == OK)
                replaced_s.append(_kill_worker(server, victim))
        left = len(living_engines(server))
        unrelated = [exchange for exchange in others.failed if exchange.worker not in victims]
    return [
        _own_failures("killed", others, unrelated),
        Finding("worker and engine are replaced", f"{kills} killed, {left} left", left == workers),
        _replaced("worker", replaced_s),
    ]


def _oldest_worker(server: LiveServer) -> int:
    # Not the youngest: one that crashes soon after its start is restarted with backoff.
    alive = {worker["pid"] for worker in server.workers()}
    born: Iterator[int] = (event["pid"] for event in server.events if event["event"] == "worker_online")
    return next(pid for pid in born if pid in alive)


def _kill_worker(server: LiveServer, pid: int) -> float:
    """Kill a worker; wait until it has died, has been replaced, and its engine has ended, in any order."""
    (engine_pid,) = (worker["engine_pid"] for worker in server.workers() if worker["pid"] == pid)
    before, killed_s = len(server.events), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    server.wait_for("worker_died", after=before, pid=pid, signal="SIGKILL")
    server.wait_for("worker_online", after=before)
    replaced_s = time.monotonic() - killed_s
    if engine_pid:
        server.wait_until_gone(engine_pid)
    return replaced_s


def engine_stops(stops: int = 10, at_once: int = 10, body: str = "big") -> list[Finding]:
    """Stop engines (SIGSTOP) under load: each is replaced, and every request is still answered."""
    back_s = []
    with cluster() as server:
        with clients(server, body, at_once=at_once) as others:
            for number in range(stops):
                engines = _let_all_work(server, others)
                back_s.append(_stop_until_replaced(server, engines[number % len(engines)], "engine_online"))
        living_engines(server)
        zombies = until(lambda: not processes.zombies_of_session(server.pid))
    return [
        Finding("every request is answered 200 with the right pixels", summary(others), not others.failed),
        *_back("engine", back_s),
        Finding("no zombie is left", "none" if zombies else "some", zombies),
    ]


def worker_stops(stops: int = 5, at_once: int = 10, body: str = "big") -> list[Finding]:
    """Stop workers (SIGSTOP) under load: each is replaced, and only its own connections are lost."""
    back_s = []
    victims = set()
    with cluster() as server:
        workers = len(server.workers())
        with clients(server, body, at_once=at_once, keep_alive=True) as others:
            for _ in range(stops):
                others.wait_until(lambda exchange: exchange.status == OK)
                victims.add(victim := _oldest_worker(server))
                back_s.append(_stop_until_replaced(server, victim, "worker_online"))
        left = len(living_engines(server))
        zombies = until(lambda: not processes.zombies_of_session(server.pid))
        unrelated = [exchange for exchange in others.failed if exchange.worker not in victims]
    return [
        _own_failures("stopped", others, unrelated),
        *_back("worker", back_s),
        Finding("their engines are replaced too", f"{left} engines", left == workers),
        Finding("no zombie is left", "none" if zombies else "some", zombies),
    ]


def _stop_until_replaced(server: LiveServer, pid: int, online: str) -> float:
    """Stop a process, and return how many seconds it takes until it is killed and another one is online.

    One that is not replaced goes on, and took infinitely long.
    """
    before, stopped_s = len(server.events), time.monotonic()
    os.kill(pid, signal.SIGSTOP)

    def is_replaced() -> bool:
        return not processes.is_alive(pid) and any(each["event"] == online for each in server.events[before:])

    if until(is_replaced):
        return time.monotonic() - stopped_s
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    return inf


def _own_failures(kind: str, others: Clients, unrelated: Sequence[object]) -> Finding:
    return Finding(
        f"only requests on the {kind} workers' own connections fail",
        f"{summary(others)}; failed on others: {len(unrelated)}",
        not unrelated,
    )


def _back(kind: str, back_s: Sequence[float]) -> list[Finding]:
    replaced = sum(took_s < inf for took_s in back_s)
    return [
        Finding(
            f"every {kind} stopped is killed and replaced",
            f"{len(back_s)} stopped, {replaced} replaced",
            replaced == len(back_s),
        ),
        Finding(
            f"a new {kind} is there within {_BACK_S:.0f} s",
            f"median {median(back_s):.2f} s, maximum {max(back_s):.2f} s",
            max(back_s) <= _BACK_S,
            is_figure=True,
        ),
    ]


#: The parts of a worker that run for as long as it does, without jobs.
_PARTS = ("supervisor", "sweep", "decay")


def part_failures(failures: int = 10, at_once: int = 10, body: str = "big") -> list[Finding]:
    """Raise an exception in parts of workers under load: each part starts again, and nothing is lost."""
    back_s = []
    with (
        tempfile.TemporaryDirectory(prefix="flip-faults-") as directory,
        cluster(**faulty_environ(Path(directory))) as server,
    ):
        workers = {worker["pid"] for worker in server.workers()}
        with clients(server, body, at_once=at_once) as others:
            for number in range(failures):
                _let_all_work(server, others)
                part = _PARTS[number % len(_PARTS)]
                before, failed_s = len(server.events), time.monotonic()
                (Path(directory) / f"fault.{part}").touch()
                server.wait_for("part_failed", after=before, part=part)
                living_engines(server)
                back_s.append(time.monotonic() - failed_s)
        left = {worker["pid"] for worker in server.workers()}
        failed = count(server, "part_failed")
        is_clean = until(lambda: not processes.zombies_of_session(server.pid))
    return [
        Finding("every request is answered 200 with the right pixels", summary(others), not others.failed),
        Finding("each failure is logged once", f"{failures} caused, {failed} logged", failed == failures),
        Finding("no worker ends", f"{len(workers - left)} of {len(workers)} have ended", workers == left),
        Finding("no zombie is left", "none" if is_clean else "some", is_clean),
        Finding(
            f"all engines are there within {_BACK_S:.0f} s",
            f"median {median(back_s):.2f} s, maximum {max(back_s):.2f} s",
            max(back_s) <= _BACK_S,
            is_figure=True,
        ),
    ]


def sabotage(
    at_once: int = 8, body: str = "big", timeout_s: float = 5.0, memory_bytes: int = 1 << 30
) -> list[Finding]:
    """Send poison images along with others: they are refused, and refused without a try the next time."""
    path = f"{ROOT / 'benchmarks' / 'harness' / 'sabotage'}:{ROOT}"
    findings = []
    limits = {"FLIP_ENGINE_TIMEOUT_S": str(timeout_s), "FLIP_ENGINE_MEMORY_BYTES": str(memory_bytes)}
    with cluster(PYTHONPATH=path, **limits) as server:
        with clients(server, body, at_once=at_once) as others:
            for kind, is_fatal in SABOTAGES.items():
                findings += _sabotage(server, kind, is_fatal=is_fatal)
        findings.append(Finding("all other requests are answered 200", summary(others), not others.failed))
    return findings


def _sabotage(server: LiveServer, kind: str, *, is_fatal: bool) -> list[Finding]:
    request = post(marked(kind))
    before = len(server.events)
    answers = [ask(server.address, request, deadline_s=60) for _ in range(2)]
    living_engines(server)  # the crashes so far are in the log
    cost = Counter(_exits(server, before))
    third = ask(server.address, request)
    living_engines(server)
    cost_of_third = Counter(_exits(server, before)) - cost
    statuses = [outcome(answer) for answer in [*answers, third]]
    took_ms = third.took_s * 1e3
    refused = Finding(
        f"{kind}: refused (422) after two crashes at most",
        f"answered {', '.join(statuses)}; died: {listed(cost)}",
        statuses == ["422"] * 3 and cost.total() <= 2,  # noqa: PLR2004 an attempt and a retry
    )
    if not is_fatal:
        return [refused]
    return [
        refused,
        Finding(
            f"{kind}: sent again, it crashes no engine", f"died: {listed(cost_of_third)}", not cost_of_third
        ),
        Finding(f"{kind}: sent again, it is refused in 20 ms", f"{took_ms:.1f} ms", took_ms < 20, True),  # noqa: FBT003, PLR2004
    ]


def _exits(server: LiveServer, after: int) -> list[str]:
    deaths = (event for event in server.events[after:] if event["event"] == "engine_died")
    return [str(death.get("signal", death.get("exit_code"))) for death in deaths]


def marked(kind: str) -> bytes:
    """Return an image with a comment that tells a sabotaged engine how to crash."""
    mark = f"sabotage:{kind} {time.monotonic_ns()}".encode()  # no two are the same
    start, rest = image("small")[:2], image("small")[2:]
    return start + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + rest


def client_gone(leavers: int = 50, body: str = "big") -> list[Finding]:
    """Let clients leave while their images wait; no engine works on these."""
    request = post(image(body))
    with cluster(FLIP_MAX_WAIT_S="600", FLIP_HUNG_AFTER_S="0") as server:  # it stops engines itself
        right_answer(server, image(body))
        engines = living_engines(server)
        started_s = sum(map(processes.cpu_s, engines))
        for _ in range(_SINGLE_TASKS):
            ask(server.address, request)
        one_task_s = (sum(map(processes.cpu_s, engines)) - started_s) / _SINGLE_TASKS
        queued = _queue_and_leave(server, engines, request, leavers)
        before_s, tasks_before = sum(map(processes.cpu_s, engines)), _tasks(server)
        for engine in engines:
            os.kill(engine, signal.SIGCONT)
        next_one = ask(server.address, request)
        worked = (sum(map(processes.cpu_s, engines)) - before_s) / one_task_s
        tasks = _tasks(server) - tasks_before
    return [
        Finding(f"{leavers} images wait, then their clients leave", f"{queued} waited", queued == leavers),
        Finding(
            "no engine works on them",
            f"{tasks} task done, engines spent the CPU of {worked:.1f}",
            tasks == 1 and worked < 2 + leavers / 4,
        ),
        Finding(
            "the next request is answered as if they had not been sent",
            f"{outcome(next_one)} after {next_one.took_s * 1e3:.0f} ms, "
            f"{one_task_s * 1e3:.0f} ms of CPU is one image",
            next_one.status == OK,
        ),
    ]


_SINGLE_TASKS = 5


def _queue_and_leave(server: LiveServer, engines: Sequence[int], request: bytes, leavers: int) -> int:
    """Fill the queue while all engines are stopped, then close all connections; return how many waited."""
    for engine in engines:
        os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        all_wait = thread.submit(until, lambda: in_flight(server) == leavers)
        drive([Exchange(server.address, request) for _ in range(leavers)], is_over=all_wait.done)
        queued = leavers if all_wait.result() else in_flight(server)
    until(lambda: in_flight(server) == 0)
    return queued


def _tasks(server: LiveServer) -> int:
    return sum(worker["tasks"] for worker in server.workers())


def leaks(
    engine_kills: int = 200, worker_kills: int = 50, every_s: float = 5.2, body: str = "small"
) -> list[Finding]:
    """Kill very many engines and workers, and compare what the cluster holds with what it held before."""
    with cluster() as server:
        with clients(server, body, at_once=4) as before:
            _let_all_work(server, before)
        held = _holdings(server)
        with clients(server, body, at_once=4) as meanwhile:
            for number in range(engine_kills):
                engines = _let_all_work(server, meanwhile)
                _kill_engine(server, engines[number % len(engines)])
            for _ in at_intervals(worker_kills, every_s):
                _kill_worker(server, _oldest_worker(server))
                _let_all_work(server, meanwhile)
        left = until(lambda: _same(_holdings(server), held)) or _holdings(server)
        files = sum(len(processes.memory_files(pid)) for pid in server.processes())
    most_files = (POOLED + FLIGHT_RECORDERS + HEARTBEATS) * len(engines)
    return [
        *(Finding(f"as many {name} as before", f"{held[name]}, then {left[name]}", left[name] == held[name])
          for name in held),
        Finding("memory files are bounded", f"{files}, at most {most_files}", files <= most_files),
    ]  # fmt: skip


#: The size of a worker's memory file pool.
POOLED = 8

#: A worker and its engine hold their flight recorder once each.
FLIGHT_RECORDERS = 2

#: For each worker: the file that shows its sign of life, open in the worker and in the arbiter.
HEARTBEATS = 2


def _let_all_work(server: LiveServer, others: Clients) -> list[int]:
    """Wait until each engine has done a task: one that crashes before that gets restart backoff."""
    engines = living_engines(server)
    for engine in map(str, engines):
        others.wait_until(partial(_is_by, engine))
    return engines


def _is_by(engine: str, exchange: Exchange) -> bool:
    return exchange.headers.get("x-engine-pid") == engine


def _holdings(server: LiveServer) -> dict[str, object]:
    """Return everything that could grow, of an idle service."""
    workers = [worker["pid"] for worker in server.workers()]
    engines = living_engines(server)
    pids = server.processes()
    until(lambda: not processes.accepted_from(server.port))  # it closes connections a little later than we
    shared = sum(map(processes.shared_mappings_bytes, pids))
    return {
        "processes": len(pids),
        "descriptors of the arbiter": len(processes.descriptors(server.pid)),
        "descriptors of each worker": sorted(len(_lasting(pid)) for pid in workers),
        "descriptors of each engine": sorted(len(_lasting(pid)) for pid in engines),
        "bytes of shared memory": shared,
        # Directories are not the service's; the stores of tests that run at the same time have some there.
        "files in /dev/shm": sum(path.is_file() for path in Path("/dev/shm").iterdir()),  # noqa: S108 looked at only
    }


def _lasting(pid: int) -> list[str]:
    targets = processes.descriptors(pid).values()
    return [target for target in targets if not target.startswith("/memfd:")]


def _same(left: dict[str, object], right: dict[str, object]) -> dict[str, object]:
    return left if left == right else {}


def _replaced(kind: str, replaced_s: Sequence[float]) -> Finding:
    return Finding(
        f"a new {kind} is there within a second",
        f"median {median(replaced_s):.2f} s, maximum {max(replaced_s):.2f} s",
        max(replaced_s) <= 1,
        is_figure=True,
    )
