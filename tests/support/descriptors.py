"""Descriptors that are on their way between processes, of which a user may have so many (unix(7))."""

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from server.cluster.memory_files import memory_file
from server.cluster.work_socket import send


@contextmanager
def descriptors_on_their_way(end: socket.socket) -> Iterator[int]:
    """Send messages until this user may have no more descriptors on their way, and count the messages."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    user = os.geteuid()
    highest = max(map(int, os.listdir("/proc/self/fd")))  # noqa: PTH208 names are numbers
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 32, hard))
    if user == 0:  # which has no such limit; a user of this process alone, because tests run side by side
        os.seteuid(1_000_000 + os.getpid())
    try:
        with memory_file("filling") as file:
            sent = 0
            with pytest.raises(OSError) as raised:  # noqa: PT011, PT012 the kernel decides how many fit
                while True:
                    send(end, b"filling", [file.fileno()] * 50)
                    sent += 1
            assert raised.value.errno == errno.ETOOMANYREFS
            yield sent
    finally:
        os.seteuid(user)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
