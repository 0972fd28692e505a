"""Scenarios of sudden death: engines, workers, pictures that kill, clients that leave; and what is left over.

Each scenario starts a cluster of its own and returns its findings. The arguments are the full size; tests
give smaller ones.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from benchmarks.harness import processes
from benchmarks.harness.clients import Exchange, Visitors, ask, drive, outcome, post
from benchmarks.harness.findings import (
    Finding,
    address,
    cluster,
    count,
    in_flight,
    listed,
    living_engines,
    paced,
    picture,
    right_answer,
    summary,
    until,
    visitors,
)
from benchmarks.harness.server import ROOT, LiveServer

#: What pictures do to an engine, and whether it ends it: only then there is something to remember.
SABOTAGES = {"segfault": True, "abort": True, "exit": True, "hang": True, "memory": False}


def engine_kills(
    kills: int = 60, every_s: float = 1.0, at_once: int = 10, body: str = "big"
) -> list[Finding]:
    """Kill an engine again and again; every request is answered all the same."""
    replaced_s = []
    with cluster() as server:
        with visitors(server, body, at_once=at_once) as others:
            for number in paced(kills, every_s):
                engines = living_engines(server)
                replaced_s.append(_kill_engine(server, engines[number % len(engines)]))
        living_engines(server)
        died = count(server, "engine_died")
    return [
        Finding("every request is answered 200 with the right pixels", summary(others), not others.failed),
        Finding("every engine killed is replaced", f"{kills} killed, {died} died", died == kills),
        _replaced("engine", replaced_s),
    ]


def _kill_engine(server: LiveServer, engine_pid: int) -> float:
    """Kill an engine and wait for the next one; return the seconds between."""
    before, killed_s = len(server.events), time.monotonic()
    os.kill(engine_pid, signal.SIGKILL)
    server.wait_for("engine_died", after=before, pid=engine_pid, signal="SIGKILL")
    server.wait_for("engine_online", after=before)
    return time.monotonic() - killed_s


def worker_kills(
    kills: int = 10, every_s: float = 6.0, at_once: int = 10, body: str = "big"
) -> list[Finding]:
    """Kill the oldest worker again and again; nobody suffers but those connected to it."""
    replaced_s = []
    victims = set()
    with cluster() as server:
        workers = len(server.workers())
        with visitors(server, body, at_once=at_once, is_loyal=True) as others:
            for _ in paced(kills, every_s):
                victim = _oldest_worker(server)
                victims.add(victim)
                others.wait_until(lambda exchange: exchange.status == 200)  # noqa: PLR2004 HTTP's
                replaced_s.append(_kill_worker(server, victim))
        left = len(living_engines(server))
        strangers = [exchange for exchange in others.failed if exchange.worker not in victims]
    return [
        Finding(
            "only requests on the killed workers' own connections fail",
            f"{summary(others)}; failed on others: {len(strangers)}",
            not strangers,
        ),
        Finding("worker and engine are replaced", f"{kills} killed, {left} left", left == workers),
        _replaced("worker", replaced_s),
    ]


def _oldest_worker(server: LiveServer) -> int:
    # The one that has lived longest: a cluster that loses the same place again and again waits longer.
    alive = {worker["pid"] for worker in server.workers()}
    born = (event["pid"] for event in server.events if event["event"] == "worker_online")
    return next(pid for pid in born if pid in alive)


def _kill_worker(server: LiveServer, pid: int) -> float:
    """Kill a worker; wait for its death, its successor, and the end of its engine, in any order."""
    (engine_pid,) = (worker["engine_pid"] for worker in server.workers() if worker["pid"] == pid)
    before, killed_s = len(server.events), time.monotonic()
    os.kill(pid, signal.SIGKILL)
    server.wait_for("worker_died", after=before, pid=pid, signal="SIGKILL")
    server.wait_for("worker_online", after=before)
    replaced_s = time.monotonic() - killed_s
    if engine_pid:
        server.wait_until_gone(engine_pid)
    return replaced_s


def sabotage(
    at_once: int = 8, body: str = "big", timeout_s: float = 5.0, memory_bytes: int = 1 << 30
) -> list[Finding]:
    """Send pictures that kill their engine, beside others; they are refused, and then not even tried."""
    path = f"{ROOT / 'tests' / 'support' / 'sabotage'}:{ROOT}"
    findings = []
    limits = {"FLIP_ENGINE_TIMEOUT_S": str(timeout_s), "FLIP_ENGINE_MEMORY_BYTES": str(memory_bytes)}
    with cluster(PYTHONPATH=path, **limits) as server:
        with visitors(server, body, at_once=at_once) as others:
            for kind, is_fatal in SABOTAGES.items():
                findings += _sabotage(server, kind, is_fatal=is_fatal)
        findings.append(Finding("all other requests are answered 200", summary(others), not others.failed))
    return findings


def _sabotage(server: LiveServer, kind: str, *, is_fatal: bool) -> list[Finding]:
    request = post(marked(kind))
    before = len(server.events)
    answers = [ask(address(server), request, deadline_s=60) for _ in range(2)]
    living_engines(server)  # the deaths so far are in the log
    cost = Counter(_exits(server, before))
    third = ask(address(server), request)
    living_engines(server)
    cost_of_third = Counter(_exits(server, before)) - cost
    statuses = [outcome(answer) for answer in [*answers, third]]
    took_ms = (third.ended_s - third.started_s) * 1e3
    refused = Finding(
        f"{kind}: refused (422), at the price of two engines at most",
        f"answered {', '.join(statuses)}; died: {listed(cost)}",
        statuses == ["422"] * 3 and cost.total() <= 2,  # noqa: PLR2004 an attempt and a retry
    )
    if not is_fatal:
        return [refused]
    return [
        refused,
        Finding(
            f"{kind}: tried again, it costs no engine", f"died: {listed(cost_of_third)}", not cost_of_third
        ),
        Finding(f"{kind}: tried again, it is refused in 20 ms", f"{took_ms:.1f} ms", took_ms < 20, True),  # noqa: FBT003, PLR2004
    ]


def _exits(server: LiveServer, after: int) -> list[str]:
    deaths = (event for event in server.events[after:] if event["event"] == "engine_died")
    return [str(death.get("signal", death.get("exit_code"))) for death in deaths]


def marked(kind: str) -> bytes:
    """Return a picture with a comment that tells an engine how to die."""
    mark = f"sabotage:{kind} {time.monotonic_ns()}".encode()  # no two are the same
    start, rest = picture("small")[:2], picture("small")[2:]
    return start + b"\xff\xfe" + (len(mark) + 2).to_bytes(2, "big") + mark + rest


def client_gone(leavers: int = 50, body: str = "big") -> list[Finding]:
    """Let clients leave while their pictures wait; no engine works on them."""
    request = post(picture(body))
    with cluster(FLIP_MAX_WAIT_S="600") as server:
        right_answer(server, picture(body))
        engines = living_engines(server)
        started_s = sum(map(processes.cpu_s, engines))
        for _ in range(_SINGLE_JOBS):
            ask(address(server), request)
        one_job_s = (sum(map(processes.cpu_s, engines)) - started_s) / _SINGLE_JOBS
        queued = _queue_and_leave(server, engines, request, leavers)
        before_s, tasks_before = sum(map(processes.cpu_s, engines)), _tasks(server)
        for engine in engines:
            os.kill(engine, signal.SIGCONT)
        next_one = ask(address(server), request)
        worked = (sum(map(processes.cpu_s, engines)) - before_s) / one_job_s
        tasks = _tasks(server) - tasks_before
    return [
        Finding(f"{leavers} pictures wait, then their clients leave", f"{queued} waited", queued == leavers),
        Finding(
            "no engine works on them",
            f"{tasks} task done, engines spent the CPU of {worked:.1f}",
            tasks == 1 and worked < 2 + leavers / 4,
        ),
        Finding(
            "the next request is answered as if they had not been",
            f"{outcome(next_one)} after {(next_one.ended_s - next_one.started_s) * 1e3:.0f} ms, "
            f"{one_job_s * 1e3:.0f} ms of CPU is one picture",
            next_one.status == 200,  # noqa: PLR2004 HTTP's
        ),
    ]


_SINGLE_JOBS = 5


def _queue_and_leave(server: LiveServer, engines: Sequence[int], request: bytes, leavers: int) -> int:
    """Fill the queue while no engine moves, then hang up on all; return how many were in it."""
    for engine in engines:
        os.kill(engine, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        all_wait = thread.submit(until, lambda: in_flight(server) == leavers)
        drive([Exchange(address(server), request) for _ in range(leavers)], is_over=all_wait.done)
        queued = leavers if all_wait.result() else in_flight(server)
    until(lambda: in_flight(server) == 0)
    return queued


def _tasks(server: LiveServer) -> int:
    return sum(worker["tasks"] for worker in server.workers())


def leaks(
    engine_kills: int = 200, worker_kills: int = 50, every_s: float = 5.2, body: str = "small"
) -> list[Finding]:
    """Kill very many, and compare what the cluster holds with what it held."""
    with cluster() as server:
        with visitors(server, body, at_once=4) as before:
            _let_all_work(server, before)
        held = _holdings(server)
        with visitors(server, body, at_once=4) as meanwhile:
            for number in range(engine_kills):
                engines = _let_all_work(server, meanwhile)
                _kill_engine(server, engines[number % len(engines)])
            for _ in paced(worker_kills, every_s):
                _kill_worker(server, _oldest_worker(server))
                _let_all_work(server, meanwhile)
        left = until(lambda: _same(_holdings(server), held)) or _holdings(server)
        spare = sum(len(processes.memory_files(pid)) for pid in server.processes())
    most_spare = (SPARES + FLIGHT_RECORDERS) * len(engines)
    return [
        *(Finding(f"as many {name} as before", f"{held[name]}, then {left[name]}", left[name] == held[name])
          for name in held),
        Finding("files in memory are kept in bounds", f"{spare}, at most {most_spare}", spare <= most_spare),
    ]  # fmt: skip


#: How many files in memory a worker may keep for its next pictures.
SPARES = 8

#: A worker and its engine hold their flight recorder once each.
FLIGHT_RECORDERS = 2


def _let_all_work(server: LiveServer, others: Visitors) -> list[int]:
    """Wait until each engine has done something: one that dies before is taken for broken."""
    engines = living_engines(server)
    for engine in engines:
        others.wait_until(lambda exchange, pid=str(engine): exchange.headers.get("x-engine-pid") == pid)
    return engines


def _holdings(server: LiveServer) -> dict[str, object]:
    """Everything that could grow, as it is on a service that has nothing to do."""
    workers = [worker["pid"] for worker in server.workers()]
    engines = living_engines(server)
    pids = server.processes()
    until(lambda: not processes.accepted_from(server.port))  # it learns a little later that we have left
    shared = sum(map(processes.shared_mappings_bytes, pids))
    return {
        "processes": len(pids),
        "descriptors of the arbiter": len(processes.descriptors(server.pid)),
        "descriptors of each worker": sorted(len(_lasting(pid)) for pid in workers),
        "descriptors of each engine": sorted(len(_lasting(pid)) for pid in engines),
        "bytes of shared memory": shared,
        "files in /dev/shm": len(list(Path("/dev/shm").iterdir())),  # noqa: S108 looked at only
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
