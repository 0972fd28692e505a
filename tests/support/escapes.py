"""What an engine that an image has taken over may try: an operation that does what its source names.

Most calls would fail for other reasons as well, so that they do no harm where there is no jail: the filter
looks at them first.
"""

import _thread
import ctypes
import mmap
import os
import resource
import signal
import socket
import struct
from collections.abc import Callable, Mapping
from errno import ENOSYS
from io import FileIO
from typing import Any

from support.no_memfd import ALLOW, BPF_RETURN, PR_SET_NO_NEW_PRIVS, Instruction, deny, filter_of

LIBC = ctypes.CDLL(None)
IS_ARM = os.uname().machine == "aarch64"

#: Descriptors of an earlier task.
KEPT: list[int] = []

#: Asked for now: in the jail the question alone is a violation.
WORKER = os.getppid()

ESCAPES: Mapping[str, Callable[[], object]] = {
    "read a file": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "read its own memory map": lambda: os.open("/proc/self/maps", os.O_RDONLY),
    "open what it may only read for writing": lambda: os.open("/proc/self/fd/0", os.O_RDWR),
    "list the processes": lambda: os.listdir("/proc"),  # noqa: PTH208 as few calls as possible
    "look whether a file exists": lambda: os.stat("/etc/passwd"),  # noqa: PTH116 as above
    "remove a file": lambda: os.unlink("/nowhere/at/all"),  # noqa: PTH108 as above
    "make a memory file": lambda: os.memfd_create("more"),
    "open a socket": socket.socket,
    "connect a socket": lambda: LIBC.connect(-1, None, 0),
    "bind a socket": lambda: LIBC.bind(-1, None, 0),
    "shut the work socket down": lambda: LIBC.shutdown(-1, 2),
    "make the work socket block": lambda: LIBC.fcntl(-1, 4, 0),
    "shrink the work socket": lambda: LIBC.setsockopt(-1, 1, 7, None, 0),
    "control a device": lambda: LIBC.ioctl(-1, 0x5421, None),
    "fork": os.fork,
    "start a thread": lambda: _thread.start_new_thread(int, ()),
    "run a program": lambda: os.execv("/nowhere/at/all", ["all"]),  # noqa: S606 that is what it tries
    "signal its worker": lambda: os.kill(WORKER, 0),
    "signal everything": lambda: os.kill(-1, 0),
    "signal by descriptor": lambda: LIBC.syscall(434, WORKER, 0),
    "trace a process": lambda: LIBC.ptrace(2, 0, None, None),
    "read the memory of its worker": lambda: LIBC.process_vm_readv(WORKER, None, 0, None, 0, 0),
    "use io_uring": lambda: LIBC.syscall(425, 0, None),
    "load a program into the kernel": lambda: LIBC.syscall(280 if IS_ARM else 321, -1, None, 0),
    "leave a namespace": lambda: LIBC.unshare(0),
    "enter a namespace": lambda: LIBC.setns(-1, 0),
    "mount": lambda: LIBC.mount(None, None, None, 0, None),
    "change the root": lambda: os.chroot("/nowhere/at/all"),
    "change a limit": lambda: resource.setrlimit(resource.RLIMIT_CORE, (0, 0)),
    "change its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 19),
    "choose its cores": lambda: os.sched_setaffinity(0, {0}),
    "become another user": lambda: os.setuid(0),
    "rename itself": lambda: LIBC.prctl(15, b"another", 0, 0, 0),
    "ignore the time limit": lambda: signal.signal(signal.SIGALRM, signal.SIG_IGN),
    "map memory for code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "make memory executable": lambda: LIBC.mprotect(None, 4096, 5),
    "poison a page": lambda: LIBC.madvise(None, 0, 100),  # MADV_HWPOISON, for CAP_SYS_ADMIN
    "take a page offline": lambda: LIBC.madvise(None, 0, 101),  # MADV_SOFT_OFFLINE, as above
    "merge its pages with those of others": lambda: LIBC.madvise(None, 0, 12),  # MADV_MERGEABLE
    # what it may do
    "abort": os.abort,
    "ask for a module": lambda: __import__("wave"),
}


def attempt(
    source: FileIO,
    sink: FileIO,
    parameters: Mapping[str, Any],  # noqa: ARG001 the signature of a run
    limits: Mapping[str, int],  # noqa: ARG001 as above
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    """Do what the source names, and write that nothing has happened."""
    name = os.pread(source.fileno(), 4096, 0).decode()
    answer = b"still here"
    if name == "change the source":
        os.pwrite(source.fileno(), b"another", 0)
    elif name == "keep the files":
        KEPT.extend(os.dup(file.fileno()) for file in (source, sink))
    elif name == "read what was kept":
        answer = b",".join(os.pread(file, 4096, 0) for file in KEPT)
    elif name in ESCAPES:
        ESCAPES[name]()
    progress("try")
    if name != "leave the sink as it is":
        sink.write(answer)
        sink.truncate()
    return {"media_type": "text/plain"}


def lose_privileges() -> None:
    """Be an ordinary user's process as far as the kernel's limits are concerned."""
    header = struct.pack("=Ii", 0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    assert LIBC.capset(header, bytes(24)) == 0


def lose_landlock() -> None:
    """Be on a kernel without Landlock, to be called before the jail."""
    deny(444, ENOSYS)  # landlock_create_ruleset


def lose_listener() -> None:
    """Be in a filter that has a listener already: there can be no other one."""
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    everything = filter_of(Instruction(BPF_RETURN, 0, 0, ALLOW))
    assert LIBC.syscall(277 if IS_ARM else 317, 1, 8, ctypes.byref(everything)) >= 0
