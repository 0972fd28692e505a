"""Metrics: the cluster's counts in Prometheus' format; the only module that knows the Prometheus client.

The counts are in shared memory, so any worker can answer for all of them, none is lost when a worker dies,
and no files are left behind (the client's own multiprocess mode keeps some for each process).
"""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from server.cluster.scoreboard import Snapshot

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


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
        yield GaugeMetricFamily("flip_workers", "Workers that accept requests.", now.online_workers)
        yield GaugeMetricFamily("flip_engines", "Engines that can take work.", now.engines)
        yield GaugeMetricFamily(
            "flip_background_engines", "Engines that can take background work.", now.background_engines
        )
        yield GaugeMetricFamily(
            "flip_tasks_in_flight", "Tasks that are queued or in an engine.", now.in_flight
        )
        yield GaugeMetricFamily(
            "flip_predicted_engine_seconds",
            "Predicted engine time that the admitted requests still need.",
            now.predicted_s,
        )
        yield GaugeMetricFamily("flip_held_bytes", "Bytes of images being received or sent.", now.held_bytes)
        requests = CounterMetricFamily("flip_requests", "Requests answered.", labels=["status"])
        for status, count in now.requests.items():
            requests.add_metric([status], count)
        yield requests
        yield HistogramMetricFamily(
            "flip_response_time_seconds",
            "From the headers of a request to the last byte of its response.",
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
            ("flip_tasks", "Tasks that engines have done.", now.tasks),
            ("flip_engine_seconds", "Time that engines spent on tasks.", now.engine_s),
            ("flip_background_tasks", "Tasks that background engines have done.", now.background_tasks),
            (
                "flip_background_engine_seconds",
                "Time that background engines spent on tasks.",
                now.background_engine_s,
            ),
            ("flip_engine_starts", "Engines started, background engines included.", now.engine_starts),
            ("flip_engine_deaths", "Engines that died, background engines included.", now.engine_deaths),
        ):
            yield CounterMetricFamily(name, text, value)
