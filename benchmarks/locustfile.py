"""Users who have images flipped: raw, as a form, and the bundled sample (an empty body).

::

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8000              its web page on port 8089
    locust -f benchmarks/locustfile.py --host ... --headless -u 10 -t 30s RawUser
    locust -f benchmarks/locustfile.py --host ... --master                       and --worker elsewhere

Every answer is verified. Services give the same bytes for the same image, so an answer that was not seen
before is decoded and compared with the flipped image, and others are compared with those byte by byte.
A 503 with `Retry-After` is load shedding and no failure: it is counted apart, and the user retries after that
time.
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
_BOUNDARY = "a-boundary-that-is-in-no-image"

#: The wait in seconds when `Retry-After` is no number.
_RETRY_S = 1.0
_LONGEST_RETRY_S = 60.0

COLUMNS = ("kind", "started_s", "response_ms", "outcome", "status", "bytes", "fault")

#: How much is read at once: with its own 4 kB, reading is most of what an image costs the client.
_BLOCK_BYTES = 1 << 16

#: How many characters are kept of what was wrong with an answer.
_FAULT_LENGTH = 200


@events.init_command_line_parser.add_listener
def _add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--image", default=str(_SAMPLE), help="the file to send")
    parser.add_argument(
        "--sample", default=str(_SAMPLE), help="what the service flips for an empty body, to compare with"
    )
    parser.add_argument("--query", default="", help="parameters, such as path=pixels")
    # For `python -m benchmarks`; the web page must not offer options that write files.
    ours = partial(parser.add_argument, include_in_web_ui=False)
    ours("--answer", default="", help="a file with an answer that is known to be right")
    ours("--burst", action="store_true", help="one request each, all at once, then stop")
    ours("--window", type=float, default=0.0, help="stop so many seconds after the first request")
    ours("--record", default="", help="write every request into this CSV file")


class _State:
    """The state that all users of this process share.

    Attributes:
        go: set when all users are ready; in a burst they wait for it.
        ready: how many users are.
        has_begun: whether a request was sent.
        answered: how many users of a burst have their answer.
        flipped: knows right answers, by the path of the image.
    """

    def __init__(self) -> None:
        self.go = Event()
        self.ready = 0
        self.has_begun = False
        self.answered = 0
        self.flipped: dict[str, Flipped] = {}
        self.rows: list[tuple[object, ...]] = []


_state = _State()


@events.init.add_listener
def _look_for_files(environment: Environment, **_: object) -> None:
    options = environment.parsed_options
    if options and options.master and (options.burst or options.window or options.record):
        sys.exit("--burst, --window and --record are for a locust without workers")
    for path in (options.image, options.sample) if options else ():
        if not Path(path).is_file():
            sys.exit(f"{path}: no such file")


@events.user_error.add_listener
def _give_up(user_instance: FastHttpUser, **_: object) -> None:
    """End the run: locust would log the exception and go on. 70 is EX_SOFTWARE of sysexits.h."""
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


class _ImageUser(FastHttpUser):
    """A user who sends an image, waits for the answer, and sends it again."""

    abstract = True
    kind: ClassVar[str]
    connection_timeout = 60.0
    network_timeout = 300.0  # the tenth of a burst waits for nine others, and some services take long

    def on_start(self) -> None:
        """Prepare the request, once."""
        self.client.client.clientpool.client_args["block_size"] = _BLOCK_BYTES
        self._options: Any = self.environment.parsed_options
        path = self._image()
        if path not in _state.flipped:
            known = [Path(self._options.answer).read_bytes()] if self._options.answer else []
            _state.flipped[path] = Flipped(Path(path).read_bytes(), known)
        self._flipped = _state.flipped[path]
        self._headers, self._body = self._request(self._flipped.image)
        _state.ready += 1
        if _state.ready == getattr(self.environment.runner, "target_user_count", 0):
            _state.go.set()
        self._target = f"/flip?{self._options.query}" if self._options.query else "/flip"

    def _image(self) -> str:
        return str(self._options.image)

    def _request(self, image: bytes) -> tuple[Mapping[str, str], bytes]:
        raise NotImplementedError

    @task
    def flip(self) -> None:
        """Have the image flipped, and check the answer."""
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
                response.request_meta["name"] = f"flip, {self.kind}: 503, retry later"
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
        """Send no more; the last user ends the run."""
        _state.answered += 1
        runner = self.environment.runner
        if runner is not None and _state.answered >= runner.target_user_count:
            gevent.spawn(runner.quit)  # it ends all users, and this one must not end itself
        gevent.sleep(3600)  # until the run ends


def _detail(content: bytes) -> str:
    """Return the detail of a problem (RFC 9457)."""
    try:
        return f": {json.loads(content)['detail']}"
    except (ValueError, LookupError, TypeError):
        return ""


def _seconds(retry_after: str) -> float:
    try:
        return min(_LONGEST_RETRY_S, max(0.0, float(retry_after)))
    except ValueError:  # a date
        return _RETRY_S


class RawUser(_ImageUser):
    """The image is the body."""

    kind = "raw"
    weight = 8

    def _request(self, image: bytes) -> tuple[Mapping[str, str], bytes]:
        return {"Content-Type": "application/octet-stream"}, image


class MultipartUser(_ImageUser):
    """The image is a file in a form, as a browser sends it (RFC 7578)."""

    kind = "multipart"
    weight = 1

    def _request(self, image: bytes) -> tuple[Mapping[str, str], bytes]:
        head = (
            f"--{_BOUNDARY}\r\n"
            'Content-Disposition: form-data; name="image"; filename="image"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + image + f"\r\n--{_BOUNDARY}--\r\n".encode()
        return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}, body


class EmptyUser(_ImageUser):
    """No body: the service flips its sample."""

    kind = "empty"
    weight = 1

    def _image(self) -> str:
        return str(self._options.sample)

    def _request(self, _image: bytes) -> tuple[Mapping[str, str], bytes]:
        return {}, b""
