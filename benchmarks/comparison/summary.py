"""Raw data in, figures out: the same rows always give the same summary.

Ratios are taken within a repetition, where other load on the machine has affected both sides; the median over
the repetitions is the result, least and most are its spread.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import median
from typing import Any, Protocol, TypeVar

from benchmarks.comparison.recordings import (
    AS_SHIPPED,
    BURST,
    CLUSTER,
    FAILED,
    OK,
    REFUSED,
    SINGLE,
    WRONG,
    Key,
    Raw,
    Request,
    Run,
    Topology,
    Window,
)
from benchmarks.comparison.scaling import Law, TooFewPoints, fit
from benchmarks.harness.ranks import percentile

_DIGITS = 5
_USERS_PER_CORE = 2
_USUAL = "10"


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the repetitions."""

    median: float
    least: float
    most: float
    repetitions: int


@dataclass(frozen=True, slots=True)
class Health:
    """The health checks under load, in milliseconds."""

    asked: int
    unwell: int
    p50_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One image, one topology, one scenario; None is what was not measured.

    Attributes:
        window_s: how long it was measured each time.
        requests_per_s: right answers that ended in the window.
        p50_ms: of the right answers of all repetitions, as are the other two.
        first_ms: of the burst: from its first request to its first right answer.
        last_ms: of the burst: from its first request to its last right answer.
        cores_used: CPU seconds of the whole server per second.
        cpu_ms: CPU time of the whole server per right answer.
        generator_share: of the CPU of all cores, what the load generator took.
    """

    image: str
    topology: str
    scenario: str
    repetitions: int
    ok: int
    refused: int
    failed: int
    wrong: int
    window_s: float | None = None
    requests_per_s: Spread | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    first_ms: Spread | None = None
    last_ms: Spread | None = None
    cores_used: Spread | None = None
    cpu_ms: float | None = None
    peak_memory_mb: float | None = None
    generator_share: float | None = None
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class Gain:
    """The cluster over the single process.

    Attributes:
        ideal: what the cores, and the users at once, allow at most.
        efficiency: the median over the ideal.
    """

    image: str
    scenario: str
    times: Spread | None
    ideal: int
    efficiency: float | None


@dataclass(frozen=True, slots=True)
class BurstGain:
    """How many times as soon the cluster gave the first and the last answer as its single process."""

    image: str
    single: str
    cluster: str
    first: Spread | None
    last: Spread | None


@dataclass(frozen=True, slots=True)
class PeerRatio:
    """Requests per second of ours over those of a peer with as many processes.

    Attributes:
        ours: decodes every image as the peer does, or is the cluster as shipped.
    """

    image: str
    scenario: str
    peer: str
    ours: str
    quality: str
    times: Spread | None


@dataclass(frozen=True, slots=True)
class Point:
    """Throughput of a number of workers, and how many times that of one."""

    workers: int
    requests_per_s: Spread
    times: Spread | None


@dataclass(frozen=True, slots=True)
class Scaling:
    """Throughput over workers; the law is None with too few points to fit one."""

    image: str
    scenario: str
    points: tuple[Point, ...]
    law: Law | None
    knee: float | None


@dataclass(frozen=True, slots=True)
class Checked:
    """One answer compared with what was sent; its PSNR is infinite where nothing was lost."""

    image: str
    topology: str
    answer_bytes: int
    over_sent: float
    psnr_db: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that the report says.

    Attributes:
        totals: all requests, within the windows and outside, by outcome.
        wrong_by: wrong answers by topology, within the windows and outside.
        faults: why requests failed, and how many, by topology.
        kinds: all requests by kind.
        headline: the scenario that the verdict speaks of, by image.
    """

    run: Run
    totals: Mapping[str, int]
    wrong_by: Mapping[str, int]
    faults: Mapping[str, Mapping[str, int]]
    kinds: Mapping[str, int]
    unreadable: int
    headline: Mapping[str, str]
    cells: tuple[Cell, ...]
    gains: tuple[Gain, ...]
    bursts: tuple[BurstGain, ...]
    peers: tuple[PeerRatio, ...]
    scaling: tuple[Scaling, ...]
    answers: tuple[Checked, ...]

    def cell(self, image: str, topology: str, scenario: str) -> Cell | None:
        """Return the cell, if it was to be measured."""
        wanted = (image, topology, scenario)
        return next((c for c in self.cells if (c.image, c.topology, c.scenario) == wanted), None)


def summarise(raw: Raw) -> Summary:
    """Compute all figures from the raw data."""
    run = raw.run
    windows = {window.key: window for window in raw.windows}
    rows = _Rows(raw)
    cells = tuple(_cell(key, run, windows, rows) for key in _measured(run, windows))
    rates = _rates(windows, rows)
    scenarios = _closed(windows)
    headline = {image: _headline(image, scenarios, run, rates) for image in run.images}
    outcomes = _counted(request.outcome for request in raw.requests)
    return Summary(
        run=run,
        totals={outcome: outcomes.get(outcome, 0) for outcome in (OK, REFUSED, FAILED, WRONG)},
        wrong_by=_counted(r.topology for r in raw.requests if r.outcome == WRONG),
        faults={
            key: _counted(r.fault for r in raw.requests if (r.topology, r.outcome) == (key, FAILED))
            for key in sorted({r.topology for r in raw.requests if r.outcome == FAILED})
        },
        kinds=_counted(r.kind for r in raw.requests),
        unreadable=raw.unreadable,
        headline=headline,
        cells=cells,
        gains=tuple(_gain(p, s, run.cores, rates) for p in run.images for s in _closed(windows, p)),
        bursts=tuple(
            _burst_gain(p, single, cluster, windows, rows)
            for p in run.images
            if _has(windows, p, BURST)
            for single, cluster in _pairs(run)
        ),
        peers=tuple(_peers(run, [*scenarios, BURST], rates | _burst_rates(windows, rows))),
        scaling=tuple(_scaling(p, headline[p], run, rates) for p in run.images),
        answers=tuple(
            Checked(p, a.topology, a.answer_bytes, a.answer_bytes / image.bytes, a.psnr_db)
            for p, image in run.images.items()
            for t in topologies_in_order(run)
            for a in raw.answers
            if (a.image, a.topology) == (p, t)
        ),
    )


def summary_json(summary: Summary) -> str:
    """Write the summary for other programs, with five digits, so that every machine writes the same."""
    return json.dumps(_plain(asdict(summary)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def topologies_in_order(run: Run) -> list[str]:
    """Order: single process, cluster, ours by workers, peers at matched quality, peers at their defaults."""

    def rank(key: str) -> tuple[bool, bool, int, int, str, str]:
        topology = run.topologies[key]
        is_default = topology.is_peer and topology.quality == "default"
        place = {SINGLE: 0, CLUSTER: 1}.get(key, 2)
        return topology.is_peer, is_default, place, topology.workers, topology.design, key

    return sorted(run.topologies, key=rank)


def spread(values: Sequence[float]) -> Spread | None:
    """Return median, least and most, or None for no values."""
    return Spread(median(values), min(values), max(values), len(values)) if values else None


def answered(requests: Sequence[Request], window: Window) -> list[Request]:
    """Return the requests that ended within the window; those of a burst always count."""
    if window.scenario == BURST:
        return list(requests)
    return [r for r in requests if window.began_s <= r.ended_s < window.ended_s]


def right_ms(raw: Raw, image: str, topology: str, scenario: str) -> list[float]:
    """Return the response times of all right answers of one cell."""
    cell = (image, topology, scenario)
    windows = {window.key: window for window in raw.windows if window.key[:3] == cell}
    mine = _grouped(request for request in raw.requests if request.key in windows)
    return [r.response_ms for key, rs in mine.items() for r in answered(rs, windows[key]) if r.outcome == OK]


class _HasKey(Protocol):
    @property
    def key(self) -> Key: ...


K = TypeVar("K", bound=_HasKey)


def _grouped(rows: Iterable[K]) -> Mapping[Key, list[K]]:
    groups: defaultdict[Key, list[K]] = defaultdict(list)
    for row in rows:
        groups[row.key].append(row)
    return groups


class _Rows:
    """The raw rows by what they belong to."""

    def __init__(self, raw: Raw) -> None:
        self.requests = _grouped(raw.requests)
        self.processes = _grouped(raw.processes)
        self.generator = _grouped(raw.generator)
        self.health = _grouped(raw.health)

    def answered(self, window: Window) -> list[Request]:
        return answered(self.requests.get(window.key, []), window)

    def right(self, window: Window) -> list[Request]:
        return [request for request in self.answered(window) if request.outcome == OK]


_Rates = dict[Key, float]


def _rates(windows: Mapping[Key, Window], rows: _Rows) -> _Rates:
    """Count right answers per second of each repetition."""
    return {
        key: len(rows.right(window)) / (window.ended_s - window.began_s)
        for key, window in windows.items()
        if window.ended_s > window.began_s and key.scenario != BURST
    }


def _closed(windows: Iterable[Key], image: str = "") -> list[str]:
    """Return the scenarios with users, few first: those of one image, if any has been measured."""
    closed = [key for key in windows if key.scenario != BURST]
    mine = [key for key in closed if key.image == image]
    return sorted({key.scenario for key in mine or closed}, key=int)


def _has(windows: Iterable[Key], image: str, scenario: str) -> bool:
    return any((key.image, key.scenario) == (image, scenario) for key in windows)


def _measured(run: Run, windows: Iterable[Key]) -> Iterable[Key]:
    """Yield which topology has a cell for which image and scenario, with or without data."""
    seen = {key[:3] for key in windows}
    bursts = [BURST] if any(scenario == BURST for *_, scenario in seen) else []
    elsewhere = {topology for _, topology, _ in seen}
    for image, topology in product(run.images, topologies_in_order(run)):
        scenarios = [*_closed(windows, image), *bursts] or [_USUAL]
        usual = _USUAL if _USUAL in scenarios else scenarios[0]
        own = [s for s in scenarios if topology in {SINGLE, CLUSTER} or (image, topology, s) in seen]
        if not own and topology not in elsewhere:
            own = [usual]
        yield from (Key(image, topology, scenario, 0) for scenario in own)


def _cell(of: Key, run: Run, windows: Mapping[Key, Window], rows: _Rows) -> Cell:
    mine = [window for key, window in windows.items() if key[:3] == of[:3]]
    answers = [request for window in mine for request in rows.answered(window)]
    right_ms = [request.response_ms for request in answers if request.outcome == OK]
    outcomes = _counted(request.outcome for request in answers)
    rates = _rates({window.key: window for window in mine}, rows)
    used = {
        window.key: cores for window in mine if (cores := _cores_used(rows.processes, window)) is not None
    }
    generated = [cores for window in mine if (cores := _cores_used(rows.generator, window)) is not None]
    bursts = [window for window in mine if window.scenario == BURST]
    return Cell(
        *of[:3],
        repetitions=len(mine),
        ok=outcomes.get(OK, 0),
        refused=outcomes.get(REFUSED, 0),
        failed=outcomes.get(FAILED, 0),
        wrong=outcomes.get(WRONG, 0),
        window_s=_median(window.ended_s - window.began_s for window in mine),
        requests_per_s=spread(list(rates.values())),
        p50_ms=percentile(right_ms, 50),
        p95_ms=percentile(right_ms, 95),
        p99_ms=percentile(right_ms, 99),
        first_ms=spread([min(times) for window in bursts if (times := _since_burst_ms(rows, window))]),
        last_ms=spread([max(times) for window in bursts if (times := _since_burst_ms(rows, window))]),
        cores_used=spread(list(used.values())),
        cpu_ms=_median(cores / rates[key] * 1e3 for key, cores in used.items() if rates.get(key)),
        peak_memory_mb=max(
            (sample.memory_mb for window in mine for sample in rows.processes.get(window.key, ())),
            default=None,
        ),
        generator_share=_median(cores / run.cores for cores in generated),
        health=_health(rows, mine),
    )


def _since_burst_ms(rows: _Rows, window: Window) -> list[float]:
    """Return when each answer to the burst had come; nothing if one was not right."""
    answers = rows.answered(window)
    if any(request.outcome != OK for request in answers):
        return []  # the last of fewer answers is there sooner
    began_s = min((request.started_s for request in answers), default=0.0)
    return [(request.ended_s - began_s) * 1e3 for request in answers]


class _Spent(Protocol):
    @property
    def at_s(self) -> float: ...
    @property
    def cpu_s(self) -> float: ...


def _cores_used(rows: Mapping[Key, Sequence[_Spent]], window: Window) -> float | None:
    samples = sorted(
        (s for s in rows.get(window.key, ()) if window.began_s <= s.at_s <= window.ended_s),
        key=lambda sample: sample.at_s,
    )
    if not samples or samples[0].at_s == samples[-1].at_s:
        return None
    return (samples[-1].cpu_s - samples[0].cpu_s) / (samples[-1].at_s - samples[0].at_s)


def _health(rows: _Rows, windows: Iterable[Window]) -> Health | None:
    probes = [
        probe
        for window in windows
        for probe in rows.health.get(window.key, ())
        if window.began_s <= probe.at_s <= window.ended_s
    ]
    taken_ms = [probe.response_ms for probe in probes]
    p50_ms, p99_ms = percentile(taken_ms, 50), percentile(taken_ms, 99)
    if p50_ms is None or p99_ms is None:
        return None
    return Health(len(probes), sum(p.status != "200" for p in probes), p50_ms, p99_ms, max(taken_ms))


def _over(rates: _Rates, image: str, scenario: str, ours: str, theirs: str) -> Spread | None:
    """Divide ours by theirs, within each repetition that has both."""
    repetitions = sorted({key.repetition for key in rates})
    pairs = [
        (rates.get(Key(image, ours, scenario, n)), rates.get(Key(image, theirs, scenario, n)))
        for n in repetitions
    ]
    return spread([mine / other for mine, other in pairs if mine is not None and other])


def _headline(image: str, scenarios: Sequence[str], run: Run, rates: _Rates) -> str:
    """Choose the article's ten users, more if ten do not keep all cores busy, or else what was measured."""
    busy = [s for s in scenarios if int(s) >= max(int(_USUAL), _USERS_PER_CORE * run.cores)]
    idle = [s for s in reversed(scenarios) if s not in busy]
    candidates = [*busy, *idle]
    paired = (s for s in candidates if _over(rates, image, s, CLUSTER, SINGLE))
    return next(paired, candidates[0] if candidates else _USUAL)


def _gain(image: str, scenario: str, cores: int, rates: _Rates) -> Gain:
    times = _over(rates, image, scenario, CLUSTER, SINGLE)
    ideal = min(cores, int(scenario))
    return Gain(image, scenario, times, ideal, times.median / ideal if times else None)


def _pairs(run: Run) -> Iterable[tuple[str, str]]:
    """Yield each single process with the cluster of the same design."""
    yield SINGLE, CLUSTER
    for key in topologies_in_order(run):
        if run.topologies[key].is_peer and f"{key}-{CLUSTER}" in run.topologies:
            yield key, f"{key}-{CLUSTER}"


def _burst_rates(windows: Mapping[Key, Window], rows: _Rows) -> dict[Key, float]:
    """Count right answers per second until the last of each burst."""
    return {
        key: len(ended_ms) / max(ended_ms) * 1e3
        for key, window in windows.items()
        if key.scenario == BURST and (ended_ms := _since_burst_ms(rows, window))
    }


def _burst_gain(
    image: str, single: str, cluster: str, windows: Mapping[Key, Window], rows: _Rows
) -> BurstGain:
    def times(pick: Callable[[list[float]], float]) -> Spread | None:
        taken = {
            key: pick(ended)
            for key, window in windows.items()
            if (key.image, key.scenario) == (image, BURST) and (ended := _since_burst_ms(rows, window))
        }
        return _over(taken, image, BURST, single, cluster)

    return BurstGain(image, single, cluster, first=times(min), last=times(max))


def _peers(run: Run, scenarios: Iterable[str], rates: _Rates) -> Iterable[PeerRatio]:
    measured = {key[:3] for key in rates}
    order = topologies_in_order(run)
    for image, scenario, key in product(run.images, scenarios, order):
        peer = run.topologies[key]
        if peer.is_peer and (image, key, scenario) in measured:
            for ours in _ours_like(peer, run):
                times = _over(rates, image, scenario, ours, key)
                yield PeerRatio(image, scenario, key, ours, peer.quality, times)


def _ours_like(peer: Topology, run: Run) -> list[str]:
    """Return what to compare a peer with: our single process if the peer is one process."""
    cluster = run.topologies.get(CLUSTER)
    if cluster and peer.workers < cluster.workers:
        return [SINGLE]
    return [CLUSTER, *([AS_SHIPPED] if AS_SHIPPED in run.topologies else [])]


def _scaling(image: str, headline: str, run: Run, rates: _Rates) -> Scaling:
    ours: dict[int, str] = {}
    for key in topologies_in_order(run):
        topology = run.topologies[key]
        if not topology.is_peer and any(k[:3] == (image, key, headline) for k in rates):
            ours.setdefault(topology.workers, key)
    points = tuple(
        Point(
            workers,
            requests_per_s,
            _over(rates, image, headline, key, ours[1]) if 1 in ours else None,
        )
        for workers, key in sorted(ours.items())
        if (requests_per_s := spread([v for k, v in rates.items() if k[:3] == (image, key, headline)]))
    )
    working = [point for point in points if point.requests_per_s.median > 0]
    try:
        law = fit([p.workers for p in working], [p.requests_per_s.median for p in working])
    except TooFewPoints:
        return Scaling(image, headline, points, None, None)
    return Scaling(image, headline, points, law, law.knee)


def _counted(values: Iterable[str]) -> dict[str, int]:
    counts: defaultdict[str, int] = defaultdict(int)
    for value in values:
        counts[value] += 1
    return dict(sorted(counts.items()))


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return median(found) if found else None


def _plain(value: Any) -> Any:  # noqa: ANN401 whatever JSON can hold
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)
    return value
