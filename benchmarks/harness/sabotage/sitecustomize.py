"""Poison images: an engine that finds a mark in an upload crashes in the way that the mark names.

Python imports this module at its start when its directory is in PYTHONPATH. The service does not know it, and
it changes engines only.
"""

import ctypes
import os
import re
import sys
from collections.abc import Callable
from typing import Any

_MARK = re.compile(rb"sabotage:([a-z]+)")

#: More than any limit on an engine's memory in a test, and less than a machine has.
_ENOUGH_BLOCKS = 64
_BLOCK_BYTES = 64 << 20


def _segfault() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    # A PyDLL call keeps the interpreter's lock: no Python code, no handler and no thread ever runs again.
    ctypes.PyDLL(None).sleep(600)


def _eat() -> None:
    blocks = [bytearray(b"\1") * _BLOCK_BYTES for _ in range(_ENOUGH_BLOCKS)]
    raise AssertionError(f"{len(blocks)} blocks of memory were not refused")


def _exit() -> None:
    os._exit(3)


SABOTAGES: dict[str, Callable[[], None]] = {
    "segfault": _segfault,
    "abort": os.abort,
    "exit": _exit,
    "hang": _hang,
    "memory": _eat,
}


def _install() -> None:
    from server.imaging import pipeline  # noqa: PLC0415 only an engine may pay for it

    process = pipeline.process

    def sabotaged(source: Any, *arguments: Any) -> Any:  # noqa: ANN401 whatever the engine hands over
        if mark := _MARK.search(source, 0, 1024):
            SABOTAGES[mark[1].decode()]()
        return process(source, *arguments)

    pipeline.process = sabotaged  # type: ignore[assignment]


if "server.cluster.engine" in sys.orig_argv:
    _install()
