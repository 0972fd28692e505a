"""Metrics: the cluster's counts in Prometheus' words; the only module that knows the Prometheus client.

The counts live in shared memory, so any worker can answer for all of them, a worker that dies takes
nothing away, and no files are left behind (the client's own multiprocess mode keeps some per process).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the whole cluster has counted so far, and how it stands.

    Attributes:
        requests: answered requests by status; a class such as `4xx` stands for its rarer statuses.
        duration_bounds_s: upper bounds of the response time histogram, in seconds, rising.
        durations: requests per bucket, not cumulated, and one more for those above the last bound.
        duration_s: summed response time, in seconds.
        engine_s: summed time that engines spent on tasks, in seconds.
        predicted_s: engine time that the admitted requests are thought to need still, in seconds.
        held_bytes: of the pictures that come in or go out.
    """

    workers: int
    engines: int
    in_flight: int
    predicted_s: float
    held_bytes: int
    requests: Mapping[str, int]
    duration_bounds_s: Sequence[float]
    durations: Sequence[int]
    duration_s: float
    bytes_in: int
    bytes_out: int
    tasks: int
    engine_s: float
    engine_starts: int
    engine_deaths: int


def render(snapshot: Snapshot) -> bytes:
    """Write a snapshot in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot
        yield GaugeMetricFamily("flip_workers", "Workers that accept requests.", now.workers)
        yield GaugeMetricFamily("flip_engines", "Engines that can take work.", now.engines)
        yield GaugeMetricFamily("flip_tasks_in_flight", "Tasks waiting or worked on.", now.in_flight)
        yield GaugeMetricFamily(
            "flip_predicted_engine_seconds", "What the admitted requests need still.", now.predicted_s
        )
        yield GaugeMetricFamily(
            "flip_held_bytes", "Bytes of pictures that come in or go out.", now.held_bytes
        )
        requests = CounterMetricFamily("flip_requests", "Requests answered.", labels=["status"])
        for status, count in now.requests.items():
            requests.add_metric([status], count)
        yield requests
        yield HistogramMetricFamily(
            "flip_response_time_seconds",
            "From the headers of a request to the last byte of its answer.",
            buckets=list(
                zip(
                    [*map(str, now.duration_bounds_s), "+Inf"],
                    [float(count) for count in accumulate(now.durations)],
                    strict=True,
                )
            ),
            sum_value=now.duration_s,
        )
        for name, text, value in (
            ("flip_received_bytes", "Bytes of request bodies.", now.bytes_in),
            ("flip_sent_bytes", "Bytes of response bodies.", now.bytes_out),
            ("flip_tasks", "Pictures that engines have turned.", now.tasks),
            ("flip_engine_seconds", "Time that engines spent on tasks.", now.engine_s),
            ("flip_engine_starts", "Engines started.", now.engine_starts),
            ("flip_engine_deaths", "Engines that died.", now.engine_deaths),
        ):
            yield CounterMetricFamily(name, text, value)
