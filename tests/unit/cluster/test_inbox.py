"""One message wakes one engine, and none stays behind when that engine does not take it."""

import os
import re
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from server.cluster.roles import BACKGROUND, INTERACTIVE, READERS
from server.cluster.work_socket import Inbox, Lane, WorkSocket, send

#: How long anything may take, in seconds.
DEADLINE_S = 60.0

#: So rarely that no test sees it.
NEVER_S = 3600.0

WAITERS = 8


class Waiters:
    """Processes that wait at one work socket, as engines do, and report what they take.

    Args:
        work: the work socket.
        number: of processes.
        look_every_s: as in Inbox.
    """

    def __init__(self, work: WorkSocket, number: int, look_every_s: float = NEVER_S) -> None:
        self._reports, self._reporting = os.pipe()
        self.controls, self.pids = [], []
        for index in range(number):
            ours, theirs = socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._wait(work, theirs, index, look_every_s)
            theirs.close()
            self.controls.append(ours)
            self.pids.append(pid)

    def _wait(self, work: WorkSocket, control: socket.socket, index: int, look_every_s: float) -> None:
        status = 1
        try:
            for other in self.controls:
                other.close()
            inbox = Inbox(work.engine_ends, control, look_every_s=look_every_s)
            while taken := inbox.take(0):
                os.write(self._reporting, struct.pack("qq", index, int(taken[0])))
            status = 0
        finally:
            os._exit(status)

    def next_report(self) -> tuple[int, int]:
        """Return who took a message, and which."""
        assert select.select([self._reports], [], [], DEADLINE_S)[0], "the message is not taken"
        index, message = struct.unpack("qq", os.read(self._reports, 16))
        return index, message

    def wake_ups(self) -> int:
        """Return how often they have fallen asleep, which is once more than they were woken."""
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in self.pids]
        return sum(
            int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)[0]) for text in statuses
        )

    def close(self) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for control in self.controls:
            control.close()
        os.close(self._reports)
        os.close(self._reporting)


def until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        assert time.monotonic() < deadline_s


def is_asleep(pid: int) -> bool:
    """Say whether a process sleeps; these do so in epoll_wait(2) alone."""
    return state(pid) == "S"


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T")


@pytest.fixture
def work() -> Iterator[WorkSocket]:
    with WorkSocket() as pair:
        yield pair


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def waiting(
    stack: ExitStack, work: WorkSocket, number: int = WAITERS, look_every_s: float = NEVER_S
) -> Waiters:
    """Return waiters that are all asleep."""
    waiters = Waiters(work, number, look_every_s)
    stack.callback(waiters.close)
    until(lambda: all(map(is_asleep, waiters.pids)))
    return waiters


def put(work: WorkSocket, message: int, lane: Lane = Lane.INTERACTIVE) -> None:
    send(work.worker_ends[lane], b"%d" % message)


@pytest.mark.parametrize("lane", Lane)
def test_a_message_wakes_one_of_many(stack: ExitStack, work: WorkSocket, lane: Lane) -> None:
    waiters = waiting(stack, work)
    before = waiters.wake_ups()
    for message in range(20):
        put(work, message, lane)
        assert waiters.next_report()[1] == message
        until(lambda: all(map(is_asleep, waiters.pids)))
    # Asked of the kernel, which counts a page fault too; a herd would make it 160.
    assert 20 <= waiters.wake_ups() - before < 40


def test_as_many_messages_wake_as_many(stack: ExitStack, work: WorkSocket) -> None:
    waiters = waiting(stack, work)
    for message in range(1, WAITERS + 1):
        put(work, message, Lane(message % len(Lane)))
    taken = [waiters.next_report()[1] for _ in range(WAITERS)]
    assert sorted(taken) == list(range(1, WAITERS + 1))


def test_a_message_wakes_another_while_one_is_busy(stack: ExitStack, work: WorkSocket) -> None:
    waiters = waiting(stack, work)
    put(work, 1)
    first, _ = waiters.next_report()
    until(lambda: all(map(is_asleep, waiters.pids)))
    stop(waiters.pids[first])  # the one that would be woken next
    put(work, 2)
    second, message = waiters.next_report()
    assert (message, second != first) == (2, True)


def test_a_message_whose_engine_died_before_it_took_it_is_taken_by_another(
    stack: ExitStack, work: WorkSocket
) -> None:
    # A stand-in is the first in the queue of waiting processes: it is woken and exits.
    pid = os.fork()
    if pid == 0:
        epoll = select.epoll()
        epoll.register(work.engine_ends[Lane.INTERACTIVE], select.EPOLLIN | select.EPOLLEXCLUSIVE)
        epoll.poll(DEADLINE_S)
        os._exit(0)
    until(lambda: is_asleep(pid))
    waiters = waiting(stack, work, 2, look_every_s=0.2)
    put(work, 7)
    os.waitpid(pid, 0)
    assert waiters.next_report()[1] == 7


def test_an_engine_takes_what_it_was_woken_for_before_it_stops(stack: ExitStack, work: WorkSocket) -> None:
    waiters = waiting(stack, work, 1)
    stop(waiters.pids[0])
    waiters.controls[0].shutdown(socket.SHUT_WR)
    put(work, 7)
    os.kill(waiters.pids[0], signal.SIGCONT)
    assert waiters.next_report()[1] == 7
    done = os.waitid(os.P_PID, waiters.pids[0], os.WEXITED | os.WNOWAIT)  # close() reaps it
    assert done is not None
    assert (done.si_code, done.si_status) == (os.CLD_EXITED, 0)


def test_an_engine_that_is_stopped_leaves_what_came_while_it_was_busy(work: WorkSocket) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        inbox = Inbox(work.engine_ends, theirs)
        put(work, 7)
        ours.close()
        assert inbox.take(0) is None


def test_a_retry_goes_first(work: WorkSocket) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(work.engine_ends, theirs)
        put(work, 1)
        put(work, 2, Lane.RETRY)
        assert [inbox.take(0), inbox.take(0)] == [(b"2", []), (b"1", [])]


def test_a_background_engine_takes_what_yields_and_jobs_in_turn_and_nothing_else(
    work: WorkSocket,
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox([work.engine_ends[lane] for lane in BACKGROUND.lanes], theirs, takes_turns=True)
        put(work, 1, Lane.BACKGROUND)
        put(work, 2, Lane.INTERACTIVE)
        put(work, 3, Lane.YIELDING)
        put(work, 4, Lane.RETRY)
        put(work, 5, Lane.YIELDING)
        put(work, 6, Lane.YIELDING)
        assert [inbox.take(0) for _ in range(4)] == [(b"3", []), (b"1", []), (b"5", []), (b"6", [])]
        put(work, 7, Lane.BACKGROUND)
        put(work, 8, Lane.YIELDING)
        put(work, 9, Lane.YIELDING)
        assert [inbox.take(0) for _ in range(3)] == [(b"7", []), (b"8", []), (b"9", [])]
        ours.close()
        assert inbox.take(0) is None


def test_an_interactive_engine_takes_surplus_last_and_leaves_what_yields(work: WorkSocket) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox([work.engine_ends[lane] for lane in INTERACTIVE.lanes], theirs)
        put(work, 1, Lane.YIELDING)
        put(work, 2, Lane.SURPLUS)
        put(work, 3, Lane.INTERACTIVE)
        put(work, 4, Lane.SURPLUS)
        put(work, 5, Lane.RETRY)
        assert [inbox.take(0) for _ in range(4)] == [(b"5", []), (b"3", []), (b"2", []), (b"4", [])]
        ours.close()
        assert inbox.take(0) is None


@pytest.mark.parametrize("lane", Lane)
def test_engines_of_one_role_read_each_lane(lane: Lane) -> None:
    assert [role for role in (INTERACTIVE, BACKGROUND) if lane in role.lanes] == [READERS[lane]]


def test_one_that_was_woken_too_late_looks_into_the_other_lanes(work: WorkSocket) -> None:
    class Misled(Inbox):
        def poll(self, timeout_s: float) -> set[int]:
            super().poll(timeout_s)
            return {work.engine_ends[Lane.RETRY].fileno()}

    ours, theirs = socket.socketpair()
    with ours, theirs:
        put(work, 1)
        assert Misled(work.engine_ends, theirs).take(0) == (b"1", [])


def test_no_worker_is_left_to_send(work: WorkSocket) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(work.engine_ends, theirs)
        for end in work.worker_ends:
            end.close()
        assert inbox.take(0) is None


def test_without_exclusive_wake_ups_messages_arrive_all_the_same(
    work: WorkSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("select.EPOLLEXCLUSIVE")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        inbox = Inbox(work.engine_ends, theirs)
        put(work, 1)
        assert inbox.take(0) == (b"1", [])


def test_one_that_waits_shows_signs_of_life(work: WorkSocket) -> None:
    looks = 0
    ours, theirs = socket.socketpair()

    def count() -> None:
        nonlocal looks
        looks += 1
        if looks == 5:
            ours.close()

    with theirs:
        assert Inbox(work.engine_ends, theirs, look_every_s=0.01, on_look=count).take(0) is None
    assert looks >= 5
