"""A message arrives whole, once and with its files; the death of a process is seen at the other end."""

import os
import select
import socket
from collections.abc import Iterator
from io import FileIO

import pytest

from server.cluster.memory_files import memory_file
from server.cluster.work_socket import MESSAGE_BYTES, WorkSocket, receive, send


@pytest.fixture
def work() -> Iterator[WorkSocket]:
    pair = WorkSocket()
    with pair:
        yield pair


def test_a_message_and_its_files_go_through_the_work_socket(work: WorkSocket) -> None:
    with memory_file("upload") as upload, memory_file("flipped") as reply:
        upload.write(b"an image")
        send(work.worker_ends[0], b"a task", [upload.fileno(), reply.fileno()])
    message, files = receive(work.engine_ends[0], 2)
    with FileIO(files[0]) as upload, FileIO(files[1]):
        assert message == b"a task"
        assert os.pread(upload.fileno(), 100, 0) == b"an image"


def test_a_file_that_was_received_is_not_passed_on_to_programs(work: WorkSocket) -> None:
    with memory_file("upload") as upload:
        send(work.worker_ends[0], b"a task", [upload.fileno()])
    _, files = receive(work.engine_ends[0], 1)
    with FileIO(files[0]) as received:
        assert not os.get_inheritable(received.fileno())


def test_messages_keep_their_bounds_and_their_order(work: WorkSocket) -> None:
    for message in (b"first", b"second"):
        send(work.worker_ends[0], message, [])
    assert [receive(work.engine_ends[0], 2) for _ in range(2)] == [(b"first", []), (b"second", [])]


def test_the_longest_message_arrives_whole(work: WorkSocket) -> None:
    send(work.worker_ends[0], b"x" * MESSAGE_BYTES, [])
    assert receive(work.engine_ends[0], 0) == (b"x" * MESSAGE_BYTES, [])


def test_an_engine_can_put_nothing_into_the_work_socket(work: WorkSocket) -> None:
    with memory_file("kept") as file:
        for end in work.engine_ends:
            with pytest.raises(BrokenPipeError):
                send(end, b"a file that would stay", [file.fileno()])
    # The other direction is none the worse, and a worker can still wait for room in it.
    ready = select.epoll()
    ready.register(work.worker_ends[0], select.EPOLLOUT)
    ready.register(work.engine_ends[0], select.EPOLLIN)
    with ready:
        assert dict(ready.poll(0)) == {work.worker_ends[0].fileno(): select.EPOLLOUT}
        send(work.worker_ends[0], b"a task", [])
        assert (work.engine_ends[0].fileno(), select.EPOLLIN) in ready.poll(0)
        assert receive(work.engine_ends[0], 0) == (b"a task", [])
        for end in work.worker_ends:
            end.close()
        assert receive(work.engine_ends[0], 0) == (b"", [])


def test_an_engine_that_finds_no_task_does_not_block(work: WorkSocket) -> None:
    send(work.worker_ends[0], b"the only task", [])
    assert receive(work.engine_ends[0], 2)[0] == b"the only task"
    with pytest.raises(BlockingIOError):
        receive(work.engine_ends[0], 2)


def test_a_full_queue_is_reported_at_once_and_takes_more_when_an_engine_has_taken_one(
    work: WorkSocket,
) -> None:
    sent = 0
    with pytest.raises(BlockingIOError):  # noqa: PT012 the kernel decides how many fit
        while True:
            send(work.worker_ends[0], b"%d" % sent, [])
            sent += 1
    taken = [receive(work.engine_ends[0], 2)[0] for _ in range(sent)]
    assert taken == [b"%d" % number for number in range(sent)]
    send(work.worker_ends[0], b"one more", [])
    assert receive(work.engine_ends[0], 2)[0] == b"one more"


def test_the_death_of_the_other_side_is_an_empty_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        theirs.close()
        assert receive(ours, 1) == (b"", [])


def test_a_reply_socket_that_only_a_lost_task_holds_closes_with_the_task() -> None:
    pair = WorkSocket()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            send(pair.worker_ends[0], b"a task that no engine takes", [theirs.fileno()])
        pair.__exit__()
        assert receive(ours, 1) == (b"", [])


def test_an_answer_that_was_sent_before_a_death_still_arrives() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            send(theirs, b"an answer", [])
        assert receive(ours, 1) == (b"an answer", [])
        assert receive(ours, 1) == (b"", [])
