"""The jail of an engine: which system calls it may make, as a filter that the kernel runs.

Computes bytes and touches nothing; `sandbox` hands them to the kernel. ADR 22 has the reasons.

Source: seccomp(2), landlock(7), and the kernel's userspace-api/seccomp_filter.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass

#: What the kernel does about a call that is not allowed (seccomp(2)): it reports it and waits for an answer,
#: or ends the process by SIGSYS.
REPORT = 0x7FC0_0000
KILL = 0x8000_0000
_ALLOW = 0x7FFF_0000

#: Numbers of system calls on x86-64 and on arm64; None where the machine has no such call. Those that are not
#: in the policy are here to be named in the log.
NUMBERS: Mapping[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "open": (2, None),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "poll": (7, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "ioctl": (16, 29),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "access": (21, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "shmget": (29, 194),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "setitimer": (38, 103),
    "getpid": (39, 172),
    "sendfile": (40, 71),
    "socket": (41, 198),
    "connect": (42, 203),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "shutdown": (48, 210),
    "bind": (49, 200),
    "listen": (50, 201),
    "getsockname": (51, 204),
    "getpeername": (52, 205),
    "socketpair": (53, 199),
    "setsockopt": (54, 208),
    "getsockopt": (55, 209),
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "exit": (60, 93),
    "kill": (62, 129),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "getcwd": (79, 17),
    "unlink": (87, None),
    "readlink": (89, None),
    "chmod": (90, None),
    "gettimeofday": (96, 169),
    "getrlimit": (97, 163),
    "sysinfo": (99, 179),
    "ptrace": (101, 117),
    "getuid": (102, 174),
    "setuid": (105, 146),
    "getppid": (110, 173),
    "capset": (126, 91),
    "rt_sigqueueinfo": (129, 138),
    "sigaltstack": (131, 132),
    "personality": (135, 92),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "prctl": (157, 167),
    "setrlimit": (160, 164),
    "chroot": (161, 51),
    "mount": (165, 40),
    "gettid": (186, 178),
    "tkill": (200, 130),
    "futex": (202, 98),
    "sched_setaffinity": (203, 122),
    "sched_getaffinity": (204, 123),
    "io_setup": (206, 0),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "timer_create": (222, 107),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "epoll_wait": (232, None),
    "epoll_ctl": (233, 21),
    "tgkill": (234, 131),
    "keyctl": (250, 219),
    "openat": (257, 56),
    "mkdirat": (258, 34),
    "newfstatat": (262, 79),
    "unlinkat": (263, 35),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "ppoll": (271, 73),
    "unshare": (272, 97),
    "splice": (275, 76),
    "epoll_pwait": (281, 22),
    "epoll_create1": (291, 20),
    "dup3": (292, 24),
    "pipe2": (293, 59),
    "perf_event_open": (298, 241),
    "prlimit64": (302, 261),
    "setns": (308, 268),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "seccomp": (317, 277),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "bpf": (321, 280),
    "execveat": (322, 281),
    "userfaultfd": (323, 282),
    "pkey_mprotect": (329, 288),
    "statx": (332, 291),
    "pidfd_send_signal": (424, 424),
    "io_uring_setup": (425, 425),
    "pidfd_open": (434, 434),
    "clone3": (435, 435),
    "openat2": (437, 437),
    "pidfd_getfd": (438, 438),
    "faccessat2": (439, 439),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
}


@dataclass(frozen=True, slots=True)
class _Machine:
    """A kind of machine.

    Attributes:
        audit_arch: what the kernel calls it when it runs the filter (linux/audit.h).
        column: of `NUMBERS`.
    """

    audit_arch: int
    column: int


#: By the names of uname(2). A call has another number on each of them.
MACHINES: Mapping[str, _Machine] = {"x86_64": _Machine(0xC000_003E, 0), "aarch64": _Machine(0xC000_00B7, 1)}


@dataclass(frozen=True, slots=True)
class _Check:
    """What an argument of a call must be.

    A filter sees arguments, but not what they point to. It compares the low half of one, which is all that
    the kernel itself uses of an `int`.

    Attributes:
        argument: its position, from 0.
        values: one of these.
        mask: the bits that count.
    """

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF


_PROT_EXEC = 0x4
_NOT_EXECUTABLE = (_Check(2, (0,), mask=_PROT_EXEC),)
_AT_EMPTY_PATH = 0x1000
_MADV_NORMAL, _MADV_RANDOM, _MADV_SEQUENTIAL, _MADV_WILLNEED, _MADV_DONTNEED = range(5)
_MADV_FREE, _MADV_HUGEPAGE, _MADV_NOHUGEPAGE = 8, 14, 15
#: What allocators use. Others poison pages (for CAP_SYS_ADMIN), or merge them with those of other processes.
_ADVICE = (
    *(_MADV_NORMAL, _MADV_RANDOM, _MADV_SEQUENTIAL, _MADV_WILLNEED, _MADV_DONTNEED),
    *(_MADV_FREE, _MADV_HUGEPAGE, _MADV_NOHUGEPAGE),
)
_F_GETFD, _F_GETFL, _F_DUPFD_CLOEXEC = 1, 3, 1030
_SOL_SOCKET = 1
_SO_TYPE, _SO_PROTOCOL, _SO_DOMAIN = 3, 38, 39
_SIGABRT = 6


def _allowed(pid: int) -> dict[str, tuple[_Check, ...]]:
    """Return the policy: the calls of an engine at work, each with what its arguments must be."""
    on_itself = (_Check(0, (pid,)),)
    return {
        # the descriptors it is given
        **dict.fromkeys(("read", "pread64", "readv", "write", "pwrite64", "writev"), ()),
        **dict.fromkeys(("lseek", "ftruncate", "close", "fstat"), ()),
        "newfstatat": (_Check(3, (_AT_EMPTY_PATH,)),),  # how the C library spells fstat
        # Flags belong to all processes that share the descriptor, so no F_SETFL, and nothing of the kind for
        # sockets: one engine could make the work socket useless for the others.
        "fcntl": (_Check(1, (_F_GETFD, _F_GETFL, _F_DUPFD_CLOEXEC)),),
        # its sockets
        **dict.fromkeys(("recvmsg", "sendmsg", "sendto", "getsockname"), ()),
        "getsockopt": (_Check(1, (_SOL_SOCKET,)), _Check(2, (_SO_TYPE, _SO_PROTOCOL, _SO_DOMAIN))),
        **dict.fromkeys(("poll", "ppoll", "epoll_wait", "epoll_pwait"), ()),
        # memory, but no new code
        **dict.fromkeys(("mmap", "mprotect"), _NOT_EXECUTABLE),
        **dict.fromkeys(("munmap", "mremap", "brk"), ()),
        "madvise": (_Check(2, _ADVICE),),
        # time, randomness, and what the C library asks about the machine before it sorts or counts cores
        **dict.fromkeys(("clock_gettime", "gettimeofday", "clock_nanosleep", "nanosleep"), ()),
        **dict.fromkeys(("setitimer", "getrandom", "sysinfo"), ()),
        "sched_getaffinity": (_Check(0, (0, pid)),),
        "getcwd": (),  # of Pillow, before it saves an image that it has not changed
        # itself; abort(3) takes a few
        **dict.fromkeys(("futex", "sched_yield", "getpid", "gettid", "restart_syscall"), ()),
        **dict.fromkeys(("kill", "tgkill", "tkill"), on_itself),
        "rt_sigaction": (_Check(0, (_SIGABRT,)),),  # not SIGALRM, or there would be no time limit
        **dict.fromkeys(("rt_sigprocmask", "rt_sigreturn", "exit", "exit_group"), ()),
    }


# Classic BPF: each instruction is an operation, two jumps (how many instructions to skip) and a constant.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06

#: Where `struct seccomp_data` has the number of the call, the machine, and the first argument, in bytes.
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_ARGUMENT_BYTES = 8


def filter_program(machine: str, pid: int, denial: int) -> bytes:
    """Assemble the policy for seccomp(2).

    Args:
        machine: one of `MACHINES`.
        pid: of the process that will enter it.
        denial: what happens to a call that is not allowed, `REPORT` or `KILL`.

    Returns:
        The instructions, eight bytes each.
    """
    kind = MACHINES[machine]
    code = [
        (_LOAD, 0, 0, _MACHINE_AT),
        (_JUMP_IF_EQUAL, 1, 0, kind.audit_arch),
        (_RETURN, 0, 0, KILL),  # a call of another machine, whose numbers mean something else
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for name, checks in _allowed(pid).items():
        number = NUMBERS[name][kind.column]
        if number is not None:
            block = [step for check in checks for step in _checked(check, denial)]
            block.append((_RETURN, 0, 0, _ALLOW))
            code += [(_JUMP_IF_EQUAL, 0, len(block), number), *block]
    code.append((_RETURN, 0, 0, denial))
    return b"".join(_INSTRUCTION.pack(*step) for step in code)


def _checked(check: _Check, denial: int) -> list[tuple[int, int, int, int]]:
    """Go on after the last of these instructions if the check holds, and deny the call otherwise."""
    left = range(len(check.values), 0, -1)
    return [
        (_LOAD, 0, 0, _ARGUMENTS_AT + check.argument * _ARGUMENT_BYTES),
        (_AND, 0, 0, check.mask),
        *((_JUMP_IF_EQUAL, skip, 0, value) for skip, value in zip(left, check.values, strict=True)),
        (_RETURN, 0, 0, denial),
    ]


def syscall_name(machine: str, number: int) -> str:
    """Name a system call for the log; one that is not in the table is `syscall_NUMBER`."""
    if kind := MACHINES.get(machine):
        for name, numbers in NUMBERS.items():
            if numbers[kind.column] == number:
                return name
    return f"syscall_{number}"


#: Rights on files that Landlock can take away, by the version from which it knows them (landlock(7)).
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15}
_TCP_SINCE, _TCP_RIGHTS = 4, 0b11
_SCOPES_SINCE, _SCOPES = 6, 0b11


def landlock_ruleset(version: int) -> bytes:
    """Return the attributes of a ruleset that takes away every right there is.

    Args:
        version: of Landlock, as the kernel reports it, at least 1.
    """
    files = sum(rights for since, rights in _FILE_RIGHTS.items() if since <= version)
    return struct.pack(
        "=QQQ",
        files,
        _TCP_RIGHTS if version >= _TCP_SINCE else 0,
        _SCOPES if version >= _SCOPES_SINCE else 0,
    )
