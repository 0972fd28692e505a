"""Run a program that may not call memfd_create(2): `no_memfd.py ERRNO PROGRAM ARGUMENT...` (seccomp(2))."""

import ctypes
import os
import platform
import sys

NUMBERS = {"x86_64": 319, "aarch64": 279}

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
BPF_LOAD, BPF_JUMP_IF_EQUAL, BPF_RETURN = 0x20, 0x15, 0x06
RETURN_ERRNO, ALLOW = 0x00050000, 0x7FFF0000


class Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def filter_of(*instructions: Instruction) -> Program:
    """Return a filter for the kernel."""
    return Program(len(instructions), (Instruction * len(instructions))(*instructions))


def deny(number: int, error: int) -> None:
    """Have a system call fail in this process and all that it starts."""
    denial = filter_of(
        Instruction(BPF_LOAD, 0, 0, 0),  # the number of the call
        Instruction(BPF_JUMP_IF_EQUAL, 0, 1, number),
        Instruction(BPF_RETURN, 0, 0, RETURN_ERRNO | error),
        Instruction(BPF_RETURN, 0, 0, ALLOW),
    )
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(
        PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(denial), 0, 0
    ):
        raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    deny(NUMBERS[platform.machine()], int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 a wrapper becomes what it wraps
