"""Users who have pictures flipped: raw, as a form, and the bundled sample (an empty body).

::

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000              its web page on port 8089
    locust -f benchmarks/locustfile.py --host ... --headless -u 10 -t 30s RawUser
    locust -f benchmarks/locustfile.py --host ... --master                       and --worker elsewhere

Every answer is verified. Services give the same bytes for the same picture, so an answer that nobody has seen
yet is decoded and compared with the flipped picture, and others are compared with those byte by byte.
A 503 with `Retry-After` is no failure but a service that knows its limit: it is counted apart, and the user
comes back when told to.
"""

import csv
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gevent
from gevent.event import Event
from locust import events, task
from locust.contrib.fasthttp import FastHttpUser
from locust.env import Environment

from benchmarks.harness.answers import Flipped

_SAMPLE = Path(__file__).parents[1] / "images" / "landscape.jpg"
_BOUNDARY = "a-boundary-that-is-in-no-picture"

#: A service that says nothing sensible in `Retry-After` is asked again after so many seconds.
_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0

COLUMNS = ("kind", "started_s", "response_ms", "outcome", "status", "bytes", "fault")

#: How much is read at once. The client's own 4 kB make most of its cost of a picture.
_BLOCK_BYTES = 1 << 16

#: So much is kept of what was wrong with an answer, in characters.
_FAULT_LENGTH = 200


@events.init_command_line_parser.add_listener
def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--picture", default=str(_SAMPLE), help="the file to send")
    parser.add_argument(
        "--sample", default=str(_SAMPLE), help="what the service flips for an empty body, to compare with"
    )
    parser.add_argument("--query", default="", help="parameters, such as path=pixels")
    # For `python -m benchmarks`; whoever reaches the web page must not write files with it.
    ours = partial(parser.add_argument, include_in_web_ui=False)
    ours("--answer", default="", help="a file with an answer that is known to be right")
    ours("--burst", action="store_true", help="one request each, all at once, then stop")
    ours("--window", type=float, default=0.0, help="stop so many seconds after the first request")
    ours("--record", default="", help="write every request into this CSV file")


class _State:
    """What all users of this process share.

    Attributes:
        go: set when all users are ready, who in a burst wait for each other.
        ready: how many are.
        has_begun: whether a request was sent.
        asked: how many have had their answer in a burst.
        flipped: knows right answers, by the path of the picture.
    """

    def __init__(self) -> None:
        self.go = Event()
        self.ready = 0
        self.has_begun = False
        self.asked = 0
        self.flipped: dict[str, Flipped] = {}
        self.rows: list[tuple[object, ...]] = []


_state = _State()


@events.init.add_listener
def _look_for_files(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options and options.master and (options.burst or options.window or options.record):
        sys.exit("--burst, --window and --record are for a locust without workers")
    for path in (options.picture, options.sample) if options else ():
        if not Path(path).is_file():
            sys.exit(f"{path}: no such file")


@events.user_error.add_listener
def _give_up(user_instance: FastHttpUser, **_: object) -> None:
    """End the run: locust would log that our code is wrong, and go on. 70 is EX_SOFTWARE of sysexits.h."""
    environment = user_instance.environment
    environment.process_exit_code = 70
    gevent.spawn(environment.runner.quit)


@events.quitting.add_listener
def _write_record(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options is not None and options.record:
        with Path(options.record).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_state.rows)


class _Visitor(FastHttpUser):
    """Sends a picture, waits for the answer, and sends it again."""

    abstract = True
    kind: ClassVar[str]
    connection_timeout = 60.0
    network_timeout = 300.0  # the tenth of a burst waits for nine others, and some services take long

    def on_start(self) -> None:
        """Prepare the request, once."""
        self.client.client.clientpool.client_args["block_size"] = _BLOCK_BYTES
        self._options: Any = self.environment.parsed_options
        path = self._picture()
        if path not in _state.flipped:
            known = [Path(self._options.answer).read_bytes()] if self._options.answer else []
            _state.flipped[path] = Flipped(Path(path).read_bytes(), known)
        self._flipped = _state.flipped[path]
        self._headers, self._body = self._request(self._flipped.picture)
        _state.ready += 1
        if _state.ready == getattr(self.environment.runner, "target_user_count", 0):
            _state.go.set()
        self._target = f"/flip?{self._options.query}" if self._options.query else "/flip"

    def _picture(self) -> str:
        return str(self._options.picture)

    def _request(self, picture: bytes) -> tuple[Mapping[str, str], bytes]:
        raise NotImplementedError

    @task
    def flip(self) -> None:
        """Have the picture flipped, and look at what comes back."""
        if self._options.burst:
            _state.go.wait()
        if self._options.window and not _state.has_begun:
            _state.has_begun = True
            gevent.spawn_later(self._options.window, self.environment.runner.quit)
        started_s = time.time()
        wait_s = 0.0
        with self.client.post(
            self._target,
            data=self._body,
            headers=self._headers,
            name=f"flip, {self.kind}",
            catch_response=True,
        ) as response:
            took_ms = response.request_meta["response_time"]
            content = response.content or b""
            if response.status_code == 200:  # noqa: PLR2004
                fault = self._flipped.fault_of(content) or ""
                outcome = "wrong" if fault else "ok"
                if fault:
                    response.failure(f"a wrong answer: {fault}")
            elif response.status_code == 503 and "Retry-After" in (response.headers or {}):  # noqa: PLR2004
                outcome, fault = "refused", ""
                wait_s = _seconds(response.headers["Retry-After"])
                response.request_meta["name"] = f"flip, {self.kind}: 503, come back later"
                response.success()
            else:
                # Where there was no answer, locust's response has the exception instead.
                reason = getattr(response, "error", None) or f"status {response.status_code}"
                outcome, fault = "failed", f"{reason}{_detail(content)}"
                response.failure(fault)
            seen = outcome, response.status_code, len(content), fault[:_FAULT_LENGTH]
            _state.rows.append((self.kind, f"{started_s:.6f}", f"{took_ms:.3f}", *seen))
        if self._options.burst:
            self._leave()
        gevent.sleep(wait_s)

    def _leave(self) -> None:
        """One request was all; the last user ends the run."""
        _state.asked += 1
        runner = self.environment.runner
        if runner is not None and _state.asked >= runner.target_user_count:
            gevent.spawn(runner.quit)  # it ends all users, and this one must not end itself
        gevent.sleep(3600)  # until the run ends


def _detail(content: bytes) -> str:
    """What a problem says of itself (RFC 9457)."""
    try:
        return f": {json.loads(content)['detail']}"
    except (ValueError, LookupError, TypeError):
        return ""


def _seconds(retry_after: str) -> float:
    try:
        return min(_LONGEST_RETRY_S, max(0.0, float(retry_after)))
    except ValueError:  # a date
        return _RETRY_S


class RawUser(_Visitor):
    """The picture is the body."""

    kind = "raw"
    weight = 8

    def _request(self, picture: bytes) -> tuple[Mapping[str, str], bytes]:
        return {"Content-Type": "application/octet-stream"}, picture


class MultipartUser(_Visitor):
    """The picture is a file in a form, as a browser sends it (RFC 7578)."""

    kind = "multipart"
    weight = 1

    def _request(self, picture: bytes) -> tuple[Mapping[str, str], bytes]:
        head = (
            f"--{_BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="image"; filename="picture"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + picture + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


class EmptyUser(_Visitor):
    """No body: the service flips its sample."""

    kind = "empty"
    weight = 1

    def _picture(self) -> str:
        return str(self._options.sample)

    def _request(self, _picture: bytes) -> tuple[Mapping[str, str], bytes]:
        return {}, b""
