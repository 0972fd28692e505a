"""Polite clients and a health probe: what an attack must not harm.

Both are processes of their own, so that neither delays the other: `python -m benchmarks.survival.polite HOST
PORT SECONDS`, and the same with `--probe`. Each prints `ready`, waits for a line, asks for that many seconds,
and prints what came of it, as JSON.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from itertools import cycle, islice
from math import inf

from PIL import Image

from benchmarks.harness.answers import Flipped
from benchmarks.harness.exchanges import Exchange, ask, drive, outcome
from benchmarks.harness.messages import get, post
from benchmarks.harness.server import Address
from benchmarks.survival.cluster import OK, image

#: Where they come from: one address each.
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5")
PROBE_ADDRESS = "127.0.0.6"

#: Of ten requests; so p95 is the middle of the larger image's response times.
_MIX = ("medium", "one", "one", "health", "one", "one", "one", "one", "one", "one")

#: How long a client that was refused waits: not its `Retry-After`, or it would ask once in a run.
_PAUSE_S = 0.25

_PROBES_PER_S = 20
_HEALTH = get("/healthz")

#: How long after the end of a run an answer may come.
_PATIENCE_S = 20.0

_ONE_MEGAPIXEL = (1280, 800)
_QUALITY = 88
_WARM_UP = 8


@cache
def one_megapixel() -> bytes:
    """Return a JPEG of one megapixel that can be flipped without loss."""
    with Image.open(BytesIO(image("medium"))) as sample, BytesIO() as file:
        sample.resize(_ONE_MEGAPIXEL).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


@dataclass
class Seen:
    """What came of the requests of one run.

    Attributes:
        took_ms: the response time of each, infinite where it was not answered right; that of a probe begins
            when it was due.
        retry_after_s: the largest `Retry-After`.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    took_ms: list[float] = field(default_factory=list)
    retry_after_s: int = 0


class Polite:
    """Clients that each send their next request when they have their answer, until the time is up.

    Every answer is compared with the right one, which they ask for before they begin.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        images = {"one": one_megapixel(), "medium": image("medium")}
        self._requests = {name: post(body, target="/flip") for name, body in images.items()}
        self._answers = {name: self._right_answer(name, body) for name, body in images.items()}
        self._requests["health"] = _HEALTH
        self._under_way: dict[Exchange, tuple[str, Iterator[str]]] = {}
        self._seen = Seen()

    def run(self, seconds: float) -> Seen:
        """Ask for that long."""
        self._until_s = time.monotonic() + seconds
        # Not all four send the larger image at the same time.
        mixes = [islice(cycle(_MIX), 2 * number, None) for number in range(len(ADDRESSES))]
        first = [self._new(source, mix) for source, mix in zip(ADDRESSES, mixes, strict=True)]
        drive(first, self._next, seconds + _PATIENCE_S)
        return self._seen

    def _right_answer(self, name: str, body: bytes) -> bytes:
        request = self._requests[name]
        answers = [ask(self._address, request) for _ in range(_WARM_UP)]
        assert answers[0].status == OK, answers[0]
        assert Flipped(body).fault_of(answers[0].body) is None
        return answers[0].body

    def _new(self, source: str, mix: Iterator[str]) -> Exchange:
        name = next(mix)
        exchange = Exchange(self._address, self._requests[name], source=source)
        self._under_way[exchange] = (name, mix)
        return exchange

    def _next(self, exchange: Exchange) -> Exchange | None:
        exchange.close()
        name, mix = self._under_way.pop(exchange)
        self._record(name, exchange)
        if time.monotonic() >= self._until_s:
            return None
        successor = self._new(exchange.source, mix)
        if outcome(exchange) != str(OK):
            successor.not_before_s = time.monotonic() + _PAUSE_S
        return successor

    def _record(self, name: str, exchange: Exchange) -> None:
        if exchange.status == OK and self._answers.get(name, exchange.body) != exchange.body:
            exchange.failure = exchange.failure or "wrong pixels"
        seen = self._seen
        seen.outcomes[outcome(exchange)] += 1
        is_well = outcome(exchange) == str(OK)
        seen.took_ms.append((exchange.connecting_s + exchange.took_s) * 1e3 if is_well else inf)
        wait_s = exchange.headers.get("retry-after", "")
        seen.retry_after_s = max(seen.retry_after_s, int(wait_s) if wait_s.isdigit() else 0)


def probe(address: Address, seconds: float) -> Seen:
    """Ask for the service's health at a fixed rate, whatever became of the probes before."""
    seen = Seen()

    def then(exchange: Exchange) -> None:
        exchange.close()
        seen.outcomes[outcome(exchange)] += 1
        is_well = outcome(exchange) == str(OK)
        seen.took_ms.append((exchange.ended_s - exchange.not_before_s) * 1e3 if is_well else inf)

    began_s = time.monotonic()
    due_s = (began_s + number / _PROBES_PER_S for number in range(int(seconds * _PROBES_PER_S)))
    drive(
        [Exchange(address, _HEALTH, not_before_s=each, source=PROBE_ADDRESS) for each in due_s],
        then,
        seconds + _PATIENCE_S,
    )
    return seen


def main() -> None:
    """Be polite, or probe; the arguments are those that `attacks` gives."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("host")
    options.add_argument("port", type=int)
    options.add_argument("seconds", type=float)
    options.add_argument("--probe", action="store_true")
    given = options.parse_args()
    address = given.host, given.port
    run = partial(probe, address) if given.probe else Polite(address).run
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(vars(run(given.seconds))), flush=True)


if __name__ == "__main__":
    main()
