"""Denials: what the filter of an engine reports to its worker."""

import asyncio
import fcntl
import os
import select
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from server.cluster.jail import syscall_name

#: SECCOMP_IOCTL_NOTIF_RECV of seccomp_unotify(2), the size of its `struct seccomp_notif`, and where in it the
#: number of the system call is, in bytes.
_RECEIVE = 0xC050_2100
_NOTIFICATION_BYTES = 80
_NUMBER_AT = 16


class Denials:
    """Waits for the first system call that an engine's filter denies.

    A denied call waits in the kernel for an answer, which it never gets. So the call is not carried out, and
    nothing that the engine could change meanwhile is looked at: its arguments stay unread.

    Args:
        listener: the descriptor that the kernel gave to the engine; closed with this.
        on_denial: called with the name of the call; kills the engine.

    Attributes:
        syscall: the name of the denied call; None while there is none.
    """

    def __init__(self, listener: int, on_denial: Callable[[str], None]) -> None:
        self.syscall: str | None = None
        self._listener = listener
        self._on_denial = on_denial

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._listener, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)
        os.close(self._listener)  # a call that waits in the kernel fails now (ENOSYS)

    def _read(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)  # one is enough
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        # The end of an engine makes the listener ready too, and reading it then blocks (before Linux 6.11).
        if any(events & select.POLLIN for _, events in poll.poll(0)):
            notification = bytearray(_NOTIFICATION_BYTES)
            with suppress(OSError):  # it has died meanwhile, of something else
                fcntl.ioctl(self._listener, _RECEIVE, notification)
                (number,) = struct.unpack_from("=i", notification, _NUMBER_AT)
                self.syscall = syscall_name(os.uname().machine, number)
                self._on_denial(self.syscall)
