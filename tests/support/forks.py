"""Forked processes, with a deadline."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess

#: How long a forked process may take to end, in seconds.
DEADLINE_S = 20.0


def fork(act: Callable[[], object]) -> BaseProcess:
    """Start a function in a forked process."""
    process = multiprocessing.get_context("fork").Process(target=act)
    process.start()
    return process


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of a forked process, and return its exit code."""
    process.join(DEADLINE_S)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the forked process did not end")
    return process.exitcode
