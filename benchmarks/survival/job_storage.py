"""Scenarios of jobs whose storage fails: full, read-only, locked by another process, damaged.

Each scenario starts services of its own in a directory of its own, and returns its findings. The defaults are
the full size; tests pass smaller values. File systems of a given size are mounted, which only root may.
"""

import fcntl
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
from redis.exceptions import ConnectionError  # noqa: A004 that of the store

from benchmarks.harness.findings import Finding
from benchmarks.harness.server import ROOT, LiveServer, clean_environ
from benchmarks.harness.waiting import DEADLINE_S, until
from benchmarks.survival.batches import (
    ACCEPTED,
    BATCH_S,
    data_directory,
    fetch,
    flipped,
    get,
    job_cluster,
    store,
    submit_job,
    wait_until_ended,
)
from benchmarks.survival.cluster import OK, UNAVAILABLE, image
from server.jobs.embedded import find_program

_FILE_SYSTEM_MB = 64

#: A service that does not start says so within this time, in seconds.
_START_S = 60.0

#: Half of a command, as a crash in the middle of a write leaves it.
_HALF_A_COMMAND = b"*3\r\n$4\r\nHSE"


def full_disk() -> list[Finding]:
    """Fill the disk: submissions are refused, requests are answered, and all works again with room."""
    if os.geteuid():
        return [_left_out()]
    findings = []
    with _mounted() as data, job_cluster(data) as server:
        kept = submit_job(server, image("small"))
        wait_until_ended(server, kept)
        for what, fill_store, reason in (
            ("no room for files", _nothing, "no_room_for_submission: [Errno 28]"),
            ("no room for the store", _fill_store, "No space left on device"),
        ):
            before = len(server.events)
            with _filled(data):
                fill_store(server, data)
                findings += _on_full_disk(server, what)
            freed_s = time.monotonic()
            back = until(lambda: _accepted(server), BATCH_S)
            back_s = time.monotonic() - freed_s
            all_noticed = until(partial(_all_noticed, server, before))
            noticed_s = time.monotonic() - freed_s
            by_all = f"by all workers after {noticed_s:.1f} s" if all_noticed else "not by all workers"
            said = _said(server, before)
            findings += [
                Finding(f"{what}: the operator sees why", said, reason in said),
                Finding(
                    f"{what}: with room, it works again by itself",
                    f"accepted after {back_s:.1f} s, {by_all}",
                    bool(back and all_noticed) and wait_until_ended(server, back)["state"] == "completed",
                ),
                Finding(
                    f"{what}: what was accepted before is there",
                    get(server, kept)["state"],
                    not flipped(image("small")).fault_of(fetch(server, f"{kept}/result")),
                ),
            ]
    return findings


def _nothing(_server: LiveServer, _data: Path) -> None:
    """Leave the store as it is: its file has some room left."""


def _fill_store(server: LiveServer, data: Path) -> None:
    """Have the store write more than there is room for: it ends."""
    before = len(server.events)
    with store(data) as client, suppress(ConnectionError):
        client.set("filler", bytes(1 << 20))
    server.wait_for("store_not_started", after=before)


def _on_full_disk(server: LiveServer, what: str) -> list[Finding]:
    headers = {"Prefer": "respond-async"}
    body, url = image("medium"), f"{server.url}/flip"
    job = httpx.post(url, content=body, headers=headers, timeout=DEADLINE_S)
    files = [("image", (f"{index}.jpg", body)) for index in range(3)]
    batch = httpx.post(f"{server.url}/batches?operation=flip", files=files, timeout=DEADLINE_S)
    request = httpx.post(url, content=body, timeout=DEADLINE_S)
    return [
        *(
            Finding(
                f"{what}: a {kind} is refused with a problem",
                f"{answer.status_code} {answer.text[:200]}",
                answer.status_code == UNAVAILABLE and "retry-after" in answer.headers,
            )
            for kind, answer in (("job", job), ("batch", batch))
        ),
        Finding(
            f"{what}: a request is answered as ever",
            str(request.status_code),
            request.status_code == OK,
        ),
    ]


def _accepted(server: LiveServer) -> str:
    answer = httpx.post(
        f"{server.url}/flip",
        content=image("small"),
        headers={"Prefer": "respond-async"},
        timeout=DEADLINE_S,
    )
    return answer.headers["location"] if answer.status_code == ACCEPTED else ""


def _all_noticed(server: LiveServer, after: int) -> bool:
    """Say whether each worker that saw the store go has seen it come back: until then it answers 503."""
    told = Counter(event["event"] for event in server.events[after:])
    return told["store_away"] == told["store_back"] and told["store_read_only"] == told["store_writable"]


def _said(server: LiveServer, after: int) -> str:
    told = {
        f"{event['event']}: {event.get('error') or event.get('reason')}"
        for event in server.events[after:]
        if event.get("level") in {"error", "warning"}
    }
    return "; ".join(sorted(told)) or "nothing"


@contextmanager
def _mounted() -> Iterator[Path]:
    """Mount a small file system in memory."""
    with data_directory() as data:
        data.mkdir(0o700)
        _mount("-t", "tmpfs", "-o", f"size={_FILE_SYSTEM_MB}m,mode=700", "tmpfs", str(data))
        try:
            yield data
        finally:
            subprocess.run(["umount", str(data)], check=True)  # noqa: S607 wherever it is


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)  # noqa: S607 wherever it is


@contextmanager
def _filled(directory: Path) -> Iterator[None]:
    """Use up all of a file system."""
    filler = directory / "filler"
    with filler.open("wb", 0) as file, suppress(OSError):  # full
        while True:
            file.write(bytes(1 << 12))
    try:
        yield
    finally:
        filler.unlink()


def _left_out() -> Finding:
    return Finding("left out: only root may mount", f"user {os.geteuid()}", is_kept=True)


def unusable_directory(kinds: tuple[str, ...] = ("read-only", "locked")) -> list[Finding]:
    """Start a service on a directory that it cannot use: it ends with a line that says why."""
    return [_UNUSABLE[kind]() for kind in kinds]


def _read_only() -> Finding:
    if os.geteuid():
        return _left_out()
    with _mounted() as data:
        _mount("-o", "remount,ro", str(data))
        return _refusal("on a read-only directory", data, "Read-only file system")


def _locked() -> Finding:
    with data_directory() as data:
        (data / "store").mkdir(parents=True)
        with (data / "store" / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _refusal("on a directory whose lock another process holds", data, "has not answered")


_UNUSABLE: dict[str, Callable[[], Finding]] = {"read-only": _read_only, "locked": _locked}


def damaged_store(jobs: int = 20) -> list[Finding]:
    """Damage the data of the store: half a command at its end costs nothing, more is never passed over."""
    with data_directory() as data:
        with job_cluster(data) as server:
            locations = [submit_job(server, image("small")) for _ in range(jobs)]
            server.kill()
        (changes,) = (data / "store" / "appendonlydir").glob("*.incr.aof")
        with changes.open("ab") as file:
            file.write(_HALF_A_COMMAND)
        with job_cluster(data) as server:
            states = {wait_until_ended(server, location)["state"] for location in locations}
            server.kill()
        whole = changes.read_bytes()
        middle = whole.index(b"\r\n*", len(whole) // 2) + 2
        changes.write_bytes(whole[:middle] + b"damage" + whole[middle + 6 :])
        refusal = _refusal("with damage in the middle of its data", data, "appendonlydir")
        repaired = subprocess.run(
            ["bash", "-c", f"exec -a valkey-check-aof {find_program(None)} --fix {changes}"],  # noqa: S607 as docs/runbook.md says
            input="y\n",
            capture_output=True,
            text=True,
            check=False,
        )
        with job_cluster(data) as server:
            found = sum(httpx.get(server.url + each).status_code == OK for each in locations)
    return [
        Finding(
            "half a command at the end of the data costs no job",
            f"{jobs} jobs: {', '.join(sorted(states))}",
            states == {"completed"},
        ),
        refusal,
        Finding(
            "repaired as the runbook says, it starts with all that is before the damage",
            f"{repaired.stdout.splitlines()[-1:]}; {found} of {jobs} jobs are there",
            found > 0,
        ),
    ]


def _refusal(what: str, data: Path, reason: str) -> Finding:
    """Start a service that cannot start, and see that its last line says why."""
    started_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0"],
        cwd=ROOT,
        env=clean_environ() | {"FLIP_JOBS": "embedded", "FLIP_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        timeout=_START_S,
        check=False,
    )
    took_s = time.monotonic() - started_s
    last_line = ended.stderr.splitlines()[-1]
    return Finding(
        f"{what} the start ends with a line that says why",
        f"exit code {ended.returncode} after {took_s:.1f} s: {last_line}",
        ended.returncode == 1
        and last_line.startswith("flipcluster: ")
        and reason in last_line
        and "Traceback" not in ended.stderr,
    )
