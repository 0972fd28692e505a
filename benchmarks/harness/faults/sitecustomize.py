"""Faults: an exception in the middle of a watched part of the service, when a file asks for it.

Python imports this module at its start when its directory is in PYTHONPATH. The service does not know it. The
file is `fault.PART` in the directory that the environment variable FAULTS names. One process finds it, and
raises where the part waits at that moment.
"""

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

_LOOK_EVERY_S = 0.05


class Faulty:
    """The work of a part, with a fault when it is due.

    Args:
        part: as in `keep_running`.
        work: of the part.
    """

    def __init__(self, part: str, work: Callable[[], Awaitable[None]]) -> None:
        self._file = Path(os.environ["FAULTS"]) / f"fault.{part}"
        self._work = work
        self._is_due = False

    def __await__(self) -> Generator[Any, Any, None]:
        """Do the work step by step, as an event loop does."""
        task = asyncio.current_task()
        assert task is not None
        looking = asyncio.create_task(self._look(task))
        steps = self._work().__await__()
        step: Callable[[], Any] = partial(next, steps)
        try:
            while True:
                try:
                    awaited = step()
                except StopIteration:
                    return
                try:
                    step = partial(steps.send, (yield awaited))
                except BaseException as error:  # noqa: BLE001 it belongs to the work
                    step = partial(steps.throw, self._fault(task) or error)
        finally:
            looking.cancel()

    async def _look(self, task: "asyncio.Task[Any]") -> None:
        while not self._is_due:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                self._file.unlink()
            except FileNotFoundError:
                continue
            self._is_due = task.cancel()

    def _fault(self, task: "asyncio.Task[Any]") -> Exception | None:
        if not self._is_due:
            return None
        self._is_due = False
        task.uncancel()
        return ZeroDivisionError("injected")


class _Finder(MetaPathFinder):
    """Changes the module whenever it is imported: gunicorn.conf.py does so again."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module as Python does, and change it once it is loaded."""
        if name != "server.cluster.watched":
            return None
        spec = PathFinder.find_spec(name, path, target)
        assert spec is not None
        loader: Any = spec.loader
        load = loader.exec_module

        def load_and_change(module: Any) -> None:  # noqa: ANN401 a module
            load(module)
            keep_running = module.keep_running
            module.keep_running = lambda part, work: keep_running(part, partial(Faulty, part, work))

        loader.exec_module = load_and_change
        return spec


if "FAULTS" in os.environ:
    sys.meta_path.insert(0, _Finder())
