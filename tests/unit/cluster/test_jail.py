"""The filter allows what it should, on both kinds of machine; run by a small interpreter of BPF."""

import re
import struct
from pathlib import Path

import pytest

from server.cluster.jail import (
    KILL,
    MACHINES,
    NUMBERS,
    REPORT,
    filter_program,
    landlock_ruleset,
    syscall_name,
)

ALLOW = 0x7FFF_0000
PID = 1234
ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}  # AUDIT_ARCH_ of linux/audit.h

#: Where Debian has the numbers, and how they are named there.
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}

#: What an engine needs, without arguments that matter.
NEEDED = [
    *("read", "write", "pread64", "pwrite64", "lseek", "ftruncate", "close", "fstat"),
    *("recvmsg", "sendmsg", "sendto", "getsockname", "ppoll", "epoll_pwait"),
    *("munmap", "mremap", "brk", "futex", "getcwd"),
    *("clock_gettime", "setitimer", "getrandom", "sysinfo", "getpid", "exit_group", "rt_sigreturn"),
    *("readv", "writev", "nanosleep", "clock_nanosleep", "gettimeofday", "gettid", "sched_yield"),
    *("restart_syscall", "rt_sigprocmask", "exit"),
]

#: Allowed with some arguments, zeros among them.
HARMLESS = ["mmap", "mprotect", "madvise", "sched_getaffinity"]

#: Only x86-64 has them.
OLD = ["poll", "epoll_wait"]

DENIED = sorted(NUMBERS.keys() - {*NEEDED, *HARMLESS, *OLD})


def verdict(program: bytes, number: int, architecture: int, *arguments: int) -> int:
    """Run a filter on a system call, as the kernel does (struct seccomp_data of seccomp(2))."""
    data = struct.pack("=iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", program))
    accumulator = position = 0
    while True:
        code, if_true, if_false, constant = steps[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x15:
                position += if_true if accumulator == constant else if_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(code)


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def judged(machine: str, name: str, *arguments: int) -> int:
    number = NUMBERS[name][MACHINES[machine].column]
    assert number is not None
    return verdict(filter_program(machine, PID, REPORT), number, ARCHITECTURES[machine], *arguments)


def test_the_numbers_are_those_of_the_kernel(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("the headers of the kernel are not installed")
    text = HEADERS[machine].read_text()
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, flags=re.MULTILINE)
    numbers = {{"fstatat": "newfstatat"}.get(name, name): int(number) for name, number in defined}
    column = MACHINES[machine].column
    ours = {name: row[column] for name, row in NUMBERS.items()}
    assert ours == {name: numbers.get(name) for name in NUMBERS}


@pytest.mark.parametrize("name", NEEDED)
def test_what_an_engine_needs_is_allowed(machine: str, name: str) -> None:
    assert judged(machine, name) == ALLOW


@pytest.mark.parametrize("name", DENIED)
def test_everything_else_is_denied(machine: str, name: str) -> None:
    if NUMBERS[name][MACHINES[machine].column] is not None:
        assert judged(machine, name) == REPORT


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("mmap", (0, 4096, 3), (0, 4096, 4)),
        ("mprotect", (0, 4096, 1), (0, 4096, 7)),
        *(("madvise", (0, 4096, good), (0, 4096, 100)) for good in (0, 4, 8, 14, 15)),  # MADV_HWPOISON
        *(("madvise", (0, 4096, 4), (0, 4096, bad)) for bad in (9, 12, 21, 101)),
        ("newfstatat", (5, 1, 2, 0x1000), (5, 1, 2, 0)),
        ("fcntl", (5, 1030, 0), (5, 4, 0)),
        ("fcntl", (5, 3, 0), (5, 1033, 0)),
        ("getsockopt", (5, 1, 3), (5, 1, 77)),
        ("getsockopt", (5, 1, 39), (5, 6, 39)),
        ("kill", (PID, 11), (PID + 1, 11)),
        ("tgkill", (PID, PID, 6), (1, 1, 6)),
        ("tkill", (PID, 6), (1, 6)),
        ("kill", (PID, 11), (0xFFFF_FFFF, 9)),
        ("sched_getaffinity", (0, 8), (1, 8)),
        ("sched_getaffinity", (PID, 8), (1, 8)),
        ("rt_sigaction", (6,), (14,)),
    ],
)
def test_arguments_matter(machine: str, name: str, good: tuple[int, ...], bad: tuple[int, ...]) -> None:
    assert (judged(machine, name, *good), judged(machine, name, *bad)) == (ALLOW, REPORT)


def test_a_number_of_another_machine_is_no_way_out(machine: str) -> None:
    program = filter_program(machine, PID, REPORT)
    for architecture in (0x4000_0003, *ARCHITECTURES.values()):  # AUDIT_ARCH_I386
        if architecture != ARCHITECTURES[machine]:
            assert {verdict(program, number, architecture) for number in range(500)} == {KILL}


def test_a_number_of_the_x32_abi_is_denied() -> None:
    program = filter_program("x86_64", PID, REPORT)
    bit = 0x4000_0000  # __X32_SYSCALL_BIT
    assert {verdict(program, bit | number, ARCHITECTURES["x86_64"]) for number in range(600)} == {REPORT}


def test_without_a_listener_a_denied_call_ends_the_process(machine: str) -> None:
    program = filter_program(machine, PID, KILL)
    assert verdict(program, 435, ARCHITECTURES[machine]) == KILL


def test_a_system_call_has_a_name_or_a_number() -> None:
    assert [syscall_name(machine, number) for machine, number in (("x86_64", 257), ("aarch64", 56))] == [
        "openat",
        "openat",
    ]
    assert (syscall_name("x86_64", 9999), syscall_name("riscv64", 56)) == ("syscall_9999", "syscall_56")


@pytest.mark.parametrize(
    ("version", "files", "tcp", "scopes"),
    [(1, 0x1FFF, 0, 0), (2, 0x3FFF, 0, 0), (3, 0x7FFF, 0, 0), (4, 0x7FFF, 3, 0), (5, 0xFFFF, 3, 0)]
    + [(version, 0xFFFF, 3, 3) for version in (6, 7)],
)
def test_a_ruleset_has_the_rights_that_the_kernel_knows(
    version: int, files: int, tcp: int, scopes: int
) -> None:
    assert struct.unpack("=QQQ", landlock_ruleset(version)) == (files, tcp, scopes)
