"""Images turned in a jail, each in a process of its own: a server for `specimens.processed`.

Runs when `FLIP_TESTS_JAILED` is set (`make jailed`). The server has loaded what an engine has loaded before
its first task and nothing else, so that a module which is imported too late is noticed.
"""

import atexit
import os
import pickle
import subprocess
import sys
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from support.mapped import mapped

_ROOT = Path(__file__).parents[2]
_HEAD_BYTES = 8


def process_in_jail(data: bytes, held: bytes, *arguments: Any) -> tuple[Any, bytes]:  # noqa: ANN401
    """Run `server.imaging.pipeline.process` in a jail.

    Args:
        data: the file.
        held: what the sink holds before.
        arguments: recipe and limits.

    Returns:
        Its result, and what it wrote.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    _send(server.stdin, (data, held, arguments))
    answer = _receive(server.stdout)
    if isinstance(answer, BaseException):
        raise answer
    result: tuple[Any, bytes] = answer
    return result


@cache
def _server() -> subprocess.Popen[bytes]:
    environ = os.environ | {"PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "support.jailed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ
    )
    atexit.register(server.kill)
    return server


def _send(pipe: Any, message: object) -> None:  # noqa: ANN401
    body = pickle.dumps(message)
    pipe.write(len(body).to_bytes(_HEAD_BYTES, "big") + body)
    pipe.flush()


def _receive(pipe: Any) -> Any:  # noqa: ANN401
    body = pipe.read(int.from_bytes(pipe.read(_HEAD_BYTES), "big"))
    if not body:
        raise AssertionError("the jail ended a process: see what it would have called with FLIP_SANDBOX=off")
    return pickle.loads(body)  # noqa: S301  from ourselves


def _serve() -> None:
    """Answer requests until there are no more, each in a child that enters the jail."""
    from server.cluster import jail  # noqa: PLC0415  the tests' own process needs none of it
    from server.cluster.sandbox import enter_jail  # noqa: PLC0415
    from server.operations.turn_image import prepare  # noqa: PLC0415

    prepare()
    jail.REPORT = jail.KILL  # type: ignore[misc]  # there is no worker that would get a report
    head = sys.stdin.buffer
    while length := head.read(_HEAD_BYTES):
        request = head.read(int.from_bytes(length, "big"))
        child_end, parent_end = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(child_end)
            enter_jail()
            try:
                answer = pickle.dumps(_outcome(request))
            except BaseException as error:  # noqa: BLE001  to print it would open its source
                answer = pickle.dumps(AssertionError(f"in the jail: {error!r}"))
            _write_whole(parent_end, answer)
            os._exit(0)
        os.close(parent_end)
        with os.fdopen(child_end, "rb") as pipe:
            body = pipe.read()
        os.waitpid(pid, 0)
        sys.stdout.buffer.write(len(body).to_bytes(_HEAD_BYTES, "big") + body)
        sys.stdout.buffer.flush()


def _outcome(request: bytes) -> object:
    from server.imaging import pipeline  # noqa: PLC0415  loaded long since

    data, held, arguments = pickle.loads(request)  # noqa: S301
    sink = BytesIO(held)
    try:
        result = pipeline.process(mapped(data), sink, *arguments)
    except Exception as error:  # noqa: BLE001  whatever it is, the test wants it
        return error.with_traceback(None)
    return result, sink.getvalue()


def _write_whole(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


if __name__ == "__main__":
    _serve()
