"""Threads that cannot be started, as where the limit on processes is reached."""

import threading


def no_thread(_: threading.Thread) -> None:
    """Be `threading.Thread.start` there."""
    raise RuntimeError("can't start new thread")
