"""A campaign: specimens are sent to a live server, several at once, and every answer is checked."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from io import BytesIO
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

from PIL import Image, ImageSequence
from support.live_server import DEADLINE_S, LiveServer

from benchmarks.harness import processes
from fuzz.images import Specimen, specimen

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CLIENTS = 6
PATHS = ("/flip", "/flop", "/rotate", "/transpose", "/transverse", "/orient")
PROBLEM = {"type", "title", "status", "detail", "request_id"}
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}


class Request(NamedTuple):
    """One request of the campaign, reproducible from its number and the campaign's seed."""

    number: int
    target: str
    headers: dict[str, str]
    body: bytes | Iterable[bytes]
    image: Specimen


@dataclass(frozen=True, slots=True)
class Weight:
    """Memory that a process holds: resident memory, and files in memory."""

    resident_bytes: int
    memory_files: int

    @classmethod
    def of(cls, pid: int) -> Weight:
        status = Path(f"/proc/{pid}/status").read_text()
        resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
        files = processes.descriptors(pid).values()
        return cls(resident, sum(file.startswith("/memfd:image") for file in files))


class Campaign:
    """A series of specimens, sent by number.

    Args:
        server: where to.
        seed: of all specimens.
        directory: where the specimens that were answered wrongly are written to.
    """

    def __init__(self, server: LiveServer, seed: int, directory: Path) -> None:
        self._server = server
        self._seed = seed
        self._directory = directory
        self.statuses: Counter[int] = Counter()
        self.findings: list[str] = []

    def run(self, numbers: range) -> None:
        """Send the specimens with these numbers; `findings` and `statuses` grow."""
        with ThreadPoolExecutor(CLIENTS) as pool:
            for statuses in pool.map(self._send_all, (numbers[client::CLIENTS] for client in range(CLIENTS))):
                self.statuses += statuses
        self.read_log()

    def read_log(self) -> None:
        """Read what the server has logged: every warning or error is a finding, a dead engine above all."""
        while self._server.events:
            event = self._server.events.pop(0)
            if event.get("level") != "info":
                self.findings.append(f"SEED={self._seed}, in the log: {event}")

    def weights(self) -> dict[tuple[str, int], Weight]:
        """Return the weight of every worker and engine, by what `/status` calls their pids, and the pids."""
        workers = self._server.workers()
        return {(role, row[role]): Weight.of(row[role]) for row in workers for role in ("pid", "engine_pid")}

    def _send_all(self, numbers: Iterable[int]) -> Counter[int]:
        statuses: Counter[int] = Counter()
        with closing(HTTPConnection("127.0.0.1", self._server.port, timeout=DEADLINE_S)) as connection:
            for number in numbers:
                request = self.request(number)
                try:
                    connection.request(
                        "POST", request.target, request.body, request.headers, encode_chunked=True
                    )
                    answer = connection.getresponse()
                    body = answer.read()
                    statuses[answer.status] += 1
                    wrong = _what_is_wrong(request, answer, body)
                except (HTTPException, OSError) as error:
                    connection.close()  # the next request opens it again
                    wrong = f"no answer: {error!r}"
                if wrong:
                    self._report(request, wrong)
        return statuses

    def request(self, number: int) -> Request:
        """Make the request with this number."""
        random = Random(f"{self._seed}:{number}")
        image = specimen(random)
        path = random.choice(PATHS)
        query = {
            "angle": random.choice((90, 180, 270)) if path == "/rotate" else None,
            "format": random.choice((None,) * 8 + ("jpeg", "png", "webp", "gif", "tiff", "bmp", "avif")),
            "quality": random.choice((None, None, 1, 50, 100)),
            "strip": random.choice((None, None, "true", "location", "private")),
            "path": random.choice((None, None, None, "lossless", "pixels")),
        }
        target = f"{path}?{urlencode({name: value for name, value in query.items() if value is not None})}"
        headers, body = random.choice((_plain, _plain, _plain, _chunked, _form))(image.data)
        headers |= {"X-Request-ID": f"{self._seed}/{number}"}
        return Request(number, target, headers, body, image)

    def _report(self, request: Request, wrong: str) -> None:
        file = self._directory / f"seed-{self._seed}-number-{request.number}.bin"
        file.write_bytes(request.image.data)
        self.findings.append(
            f"SEED={self._seed} number {request.number}: {wrong}\n"
            f"    POST {request.target} with {request.image.story}\n    {file}"
        )


def _plain(data: bytes) -> tuple[dict[str, str], bytes]:
    return {}, data


def _chunked(data: bytes) -> tuple[dict[str, str], Iterator[bytes]]:
    return {"Transfer-Encoding": "chunked"}, iter([data[:100], data[100:]] if data[100:] else [data])


def _form(data: bytes) -> tuple[dict[str, str], bytes]:
    head = b'--cut\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return dict(FORM), head + data + b"\r\n--cut--\r\n"


def _what_is_wrong(request: Request, answer: HTTPResponse, body: bytes) -> str | None:
    """Check one answer against what is promised of all."""
    if answer.status == 200:
        if request.image.is_cut_off:
            return "an image that is cut off was answered with 200"
        return _what_is_wrong_with_image(body)
    if not 400 <= answer.status < 500:
        return f"answered with {answer.status}: {body[:200]!r}"
    if answer.headers["Content-Type"] != "application/problem+json":
        return f"a refusal of type {answer.headers['Content-Type']}"
    problem = json.loads(body)
    if set(problem) != PROBLEM or problem["status"] != answer.status:
        return f"a refusal without the fields of a problem: {problem}"
    return "engines died of it" if problem["type"].endswith(":poison-image") else None


def _what_is_wrong_with_image(body: bytes) -> str | None:
    try:
        with Image.open(BytesIO(body)) as image:
            for frame in ImageSequence.Iterator(image):
                frame.load()
    except Exception as error:  # noqa: BLE001 whatever a decoder says of it
        return f"the answered image cannot be read: {error!r}"
    return None
