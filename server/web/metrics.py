"""Metrics: the cluster's counts in Prometheus' format; the only module that knows the Prometheus client.

The counts are in shared memory, so any worker can answer for all of them, none is lost when a worker dies,
and no files are left behind (the client's own multiprocess mode keeps some for each process).
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from server.cluster.scoreboard import Snapshot
from server.jobs.model import Queue

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4


def render(snapshot: Snapshot, queues: Sequence[Queue] | None = None) -> bytes:
    """Write a snapshot in Prometheus' text format.

    Args:
        snapshot: of the scoreboard.
        queues: of the store, none while it is away; None when there are no jobs.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(snapshot))
    if queues is not None:
        registry.register(_Queues(queues))
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
        yield GaugeMetricFamily(
            "flip_held_bytes",
            "Bytes of images being received or sent, and booked for results to come.",
            now.held_bytes,
        )
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


class _Queues(Collector):
    def __init__(self, queues: Sequence[Queue]) -> None:
        self._queues = queues

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("flip_store_up", "Whether the store of the jobs answers.", bool(self._queues))
        jobs = GaugeMetricFamily("flip_jobs", "Jobs that are kept, by state.", labels=["queue", "state"])
        ended = CounterMetricFamily("flip_jobs_ended", "Jobs that have ended.", labels=["queue"])
        paused = GaugeMetricFamily("flip_queue_paused", "Whether the queue is paused.", labels=["queue"])
        for queue in self._queues:
            for state, count in queue.jobs.items():
                jobs.add_metric([queue.name, state], count)
            ended.add_metric([queue.name], queue.ended)
            paused.add_metric([queue.name], queue.is_paused)
        yield from (jobs, ended, paused)
