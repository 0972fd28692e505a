"""Scenarios of many clients that follow one batch at the same time, on all workers.

Each scenario starts a service of its own, with a store in a directory of its own, and returns its findings.
The defaults are the full size; tests pass smaller values.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager

import httpx

from benchmarks.harness import processes
from benchmarks.harness.findings import Finding
from benchmarks.harness.messages import get, parse_head
from benchmarks.harness.server import Address, LiveServer
from benchmarks.harness.waiting import DEADLINE_S
from benchmarks.survival.batches import (
    BATCH_S,
    bugs,
    data_directory,
    items,
    job_cluster,
    no_bugs,
    submit_batch,
)
from benchmarks.survival.cluster import OK, listed

_SIZE = 64, 48

#: How long a service with open streams may take to stop, in seconds, and how many cores silent ones may cost.
_STOP_S = 2.0
_SILENT_CORES = 0.1


class Watcher:
    """A client that follows the events of a batch, and connects again when its connection breaks.

    Args:
        address: of the service.
        location: of the batch.
        lines: what each event says, by its id: shared by all watchers of the batch.
        cut_after: after how many events its connection breaks, once; None for never.

    Attributes:
        is_open: set once it is connected, or has failed to.
        workers: who answered, for each of its connections.
        ids: of the events that it has seen.
        fault: why it has not followed to the end of the stream.
    """

    def __init__(
        self, address: Address, location: str, lines: dict[int, str], cut_after: int | None = None
    ) -> None:
        self._address = address
        self._path = f"{location}/events"
        self._lines = lines
        self._cut_after = cut_after
        self.is_open = asyncio.Event()
        self.workers: list[int] = []
        self.ids: list[int] = []
        self.fault = ""

    async def follow(self) -> None:
        """Read events until the stream ends as a response should."""
        try:
            while not await self._read():
                pass
        except (OSError, EOFError) as error:
            self.fault = repr(error)
        finally:
            self.is_open.set()

    async def _read(self) -> bool:
        """Connect, and read to the end of the stream; False: the connection was cut before."""
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            last = self.ids[-1] if self.ids else 0
            writer.write(get(self._path, f"Last-Event-ID: {last}\r\n"))
            head = parse_head(await reader.readuntil(b"\r\n\r\n"))
            if head["Status"] != str(OK):
                raise ConnectionError(f"answered with {head['Status']}")
            self.workers.append(int(head["X-Worker-PID"]))
            self.is_open.set()
            async with aclosing(_events(reader)) as events:
                async for id, line in events:
                    self.ids.append(id)
                    if self._lines.setdefault(id, line) != line:
                        raise ConnectionError(f"event {id} is {line!r} instead of {self._lines[id]!r}")
                    if len(self.ids) == self._cut_after:
                        return False
            return True
        finally:
            writer.transport.abort()

    def faults(self, total: int) -> Iterator[str]:
        """Say what it has not seen once and in order, of so many events."""
        if self.fault:
            yield self.fault
        elif self.ids != list(range(1, total + 1)):
            yield f"it saw {self.ids}"


async def _events(reader: asyncio.StreamReader) -> AsyncGenerator[tuple[int, str], None]:
    """Read a chunked body to its end, and yield the id and the rest of each event that has one.

    Raises:
        EOFError: the connection was closed before the end of the body.
    """
    text = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        text += (await reader.readexactly(size + 2))[:size]
        *events, text = text.split(b"\n\n")
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.decode().splitlines())
            if "id" in fields:
                yield int(fields.pop("id")), str(fields)
    await reader.readexactly(2)


@asynccontextmanager
async def _following(watchers: Sequence[Watcher]) -> AsyncIterator[None]:
    """Have clients follow their batch: the block begins when all are connected, and ends with all streams."""
    processes.raise_descriptor_limit()
    async with asyncio.timeout(BATCH_S), asyncio.TaskGroup() as group:
        for watcher in watchers:
            group.create_task(watcher.follow())
        for watcher in watchers:
            await watcher.is_open.wait()
        yield


def watchers(
    clients: int = 1000, batch_of: int = 120, grace_s: float = 1.0, seed: int = 1816
) -> list[Finding]:
    """Follow a batch with many clients, a third of which is cut off: each sees each event once, in order."""
    choice = random.Random(seed)  # noqa: S311 no secret
    events = batch_of + 1  # one is for the end of the batch
    cuts = {client: choice.randrange(1, events) for client in choice.sample(range(clients), clients // 3)}
    lines: dict[int, str] = {}
    with data_directory() as data, job_cluster(data, FLIP_STORE_GRACE_S=str(grace_s)) as server:
        _post(server, "/queues/default/pause")
        location = submit_batch(server, items(batch_of, 3, _SIZE))
        crowd = [Watcher(server.address, location, lines, cuts.get(number)) for number in range(clients)]
        took_s = asyncio.run(_resume_and_follow(server, crowd))
        spread = Counter(watcher.workers[0] for watcher in crowd if watcher.workers)
        workers = {worker["pid"] for worker in server.workers()}
    faults = Counter(fault for watcher in crowd for fault in watcher.faults(events))
    cut_off = sum(len(watcher.workers) > 1 for watcher in crowd)
    return [
        Finding("seed of the cuts", str(seed), is_kept=True),
        Finding(
            f"{clients} watchers see each of {events} events once and in order",
            f"{cut_off} were cut off; faults: {listed(faults)[:2000]}",
            not faults and cut_off == len(cuts) and "ended" in lines.get(events, ""),
        ),
        Finding(
            "each worker has some of them",
            ", ".join(f"{spread[pid]} on worker {pid}" for pid in sorted(workers)),
            spread.keys() == workers,
            is_figure=True,
        ),
        Finding(
            "seconds from the start of the batch until all watchers have seen its end",
            f"{took_s:.1f}",
            is_kept=True,
            is_figure=True,
        ),
        _store_is_calm(server),
        no_bugs(bugs(server)),
    ]


async def _resume_and_follow(server: LiveServer, crowd: Sequence[Watcher]) -> float:
    """Let a batch run while it is followed, and return after how many seconds all have seen its end."""
    async with _following(crowd):
        started_s = time.monotonic()
        await asyncio.to_thread(_post, server, "/queues/default/resume")
    return time.monotonic() - started_s


def stop_with_watchers(clients: int = 1000, measured_s: float = 30.0, grace_s: float = 1.0) -> list[Finding]:
    """Stop a service while many clients follow a batch that does not end."""
    with data_directory() as data, job_cluster(data, FLIP_STORE_GRACE_S=str(grace_s)) as server:
        location = submit_batch(server, items(1, 0, _SIZE), "delay=3600")
        crowd = [Watcher(server.address, location, {}) for _ in range(clients)]
        cores, code, took_s = asyncio.run(_stop_while_followed(server, crowd, measured_s))
    faults = Counter(fault for watcher in crowd for fault in watcher.faults(0))
    return [
        Finding(
            f"a stop (TERM) ends {clients} open streams as responses should end",
            f"exit code {code}; faults: {listed(faults)[:2000]}",
            not faults and code == 0,
        ),
        Finding(f"it takes less than {_STOP_S:.0f} s", f"{took_s:.2f} s", took_s < _STOP_S, is_figure=True),
        Finding(
            f"cores that {clients} silent watchers cost: less than {_SILENT_CORES}",
            f"{cores[1] - cores[0]:.3f} (with them {cores[1]:.3f}, without {cores[0]:.3f}, "
            f"each over {measured_s:.0f} s)",
            cores[1] - cores[0] < _SILENT_CORES,
            is_figure=True,
        ),
        _store_is_calm(server),
        no_bugs(bugs(server)),
    ]


async def _stop_while_followed(
    server: LiveServer, crowd: Sequence[Watcher], measured_s: float
) -> tuple[tuple[float, float], int, float]:
    """Stop a service while it is followed.

    Returns:
        How many cores it used before it was followed and while it was, its exit code, and how many seconds
        the stop took.
    """
    without = await _cores(server, measured_s)
    async with _following(crowd):
        with_them = await _cores(server, measured_s)
        started_s = time.monotonic()
        code = await asyncio.to_thread(server.stop)
        took_s = time.monotonic() - started_s
    return (without, with_them), code, took_s


async def _cores(server: LiveServer, measured_s: float) -> float:
    """Measure how many cores the processes of a service use."""
    pids, began_s = server.processes(), time.monotonic()
    used_s = processes.sum_cpu_s(pids)
    await asyncio.sleep(measured_s)
    return (processes.sum_cpu_s(pids) - used_s) / (time.monotonic() - began_s)


def _store_is_calm(server: LiveServer) -> Finding:
    """Say whether a service has taken its store, which was never stopped, for away."""
    away = sum(event["event"] == "store_away" for event in server.events)
    return Finding("the store is not taken for away", f"{away} times", not away, is_figure=True)


def _post(server: LiveServer, path: str) -> None:
    httpx.post(f"{server.url}{path}", timeout=DEADLINE_S).raise_for_status()
