"""What we write is what Prometheus reads."""

from collections.abc import Sequence
from math import inf

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.cluster.scoreboard import Snapshot, State, WorkerSnapshot
from server.jobs.model import JobState, Queue
from server.web.metrics import MEDIA_TYPE, render


def worker(state: State, engine_pid: int, background_pid: int = 0) -> WorkerSnapshot:
    return WorkerSnapshot(70, state, engine_pid, background_pid, 0, 0, 0, 0, 0)


SNAPSHOT = Snapshot(
    workers=(worker(State.ONLINE, 71, 72), worker(State.ONLINE, 0, 73), worker(State.STARTING, 0)),
    in_flight=3,
    predicted_s=0.75,
    held_bytes=99,
    requests={"200": 40, "422": 2, "5xx": 0},
    duration_bounds_s=(0.1, 1.0, 10.0),
    durations=(30, 10, 0, 2),
    duration_s=12.5,
    bytes_in=2**40 + 1,
    bytes_out=5,
    tasks=38,
    engine_s=9.75,
    background_tasks=6,
    background_engine_s=1.25,
    engine_starts=4,
    engine_deaths=3,
)


@pytest.fixture
def families() -> dict[str, Metric]:
    text = render(SNAPSHOT).decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("flip_workers", "gauge", 2),
        ("flip_engines", "gauge", 1),
        ("flip_background_engines", "gauge", 2),
        ("flip_tasks_in_flight", "gauge", 3),
        ("flip_predicted_engine_seconds", "gauge", 0.75),
        ("flip_held_bytes", "gauge", 99),
        ("flip_received_bytes", "counter", 2**40 + 1),
        ("flip_sent_bytes", "counter", 5),
        ("flip_tasks", "counter", 38),
        ("flip_engine_seconds", "counter", 9.75),
        ("flip_background_tasks", "counter", 6),
        ("flip_background_engine_seconds", "counter", 1.25),
        ("flip_engine_starts", "counter", 4),
        ("flip_engine_deaths", "counter", 3),
    ],
)
def test_a_figure_arrives_with_its_name_kind_and_value(
    families: dict[str, Metric], name: str, kind: str, value: float
) -> None:
    family = families[name]
    assert family.type == kind
    assert [(sample.name, sample.value) for sample in family.samples] == [
        (f"{name}_total" if kind == "counter" else name, value)
    ]


def test_requests_arrive_by_status_those_that_never_came_too(families: dict[str, Metric]) -> None:
    samples = families["flip_requests"].samples
    assert {sample.labels["status"]: sample.value for sample in samples} == {"200": 40, "422": 2, "5xx": 0}
    assert {sample.name for sample in samples} == {"flip_requests_total"}


def test_the_buckets_of_the_histogram_are_cumulated_and_the_last_one_holds_all(
    families: dict[str, Metric],
) -> None:
    family = families["flip_response_time_seconds"]
    samples = [(s.name.removeprefix(family.name), s.labels.get("le"), s.value) for s in family.samples]
    assert family.type == "histogram"
    assert [(float(le), value) for name, le, value in samples if name == "_bucket" and le] == [
        (0.1, 30),
        (1.0, 40),
        (10.0, 40),
        (inf, 42),
    ]
    assert ("_count", None, 42) in samples
    assert ("_sum", None, 12.5) in samples


def test_every_figure_says_what_it_is(families: dict[str, Metric]) -> None:
    assert all(family.documentation.endswith(".") for family in families.values())
    assert len(families) == 16


def queue_figures(queues: Sequence[Queue] | None) -> dict[str, dict[tuple[str, ...], float]]:
    """The figures of the queues alone: by name, and by the values of their labels."""
    text, text_without = (render(SNAPSHOT, those).decode() for those in (queues, None))
    assert text.startswith(text_without)
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(text.removeprefix(text_without))
    }


def test_the_queues_arrive_with_their_jobs_by_state() -> None:
    jobs = {state: number for number, state in enumerate(JobState)}
    queues = [
        Queue("default", is_paused=False, jobs=jobs, ended=41),
        Queue("slow", is_paused=True, jobs=dict.fromkeys(JobState, 7), ended=0),
    ]
    assert queue_figures(queues) == {
        "flip_store_up": {(): 1},
        "flip_jobs": {
            **{("default", state.value): count for state, count in jobs.items()},
            **{("slow", state.value): 7 for state in JobState},
        },
        "flip_jobs_ended": {("default",): 41, ("slow",): 0},
        "flip_queue_paused": {("default",): 0, ("slow",): 1},
    }


def test_a_store_that_is_away_is_down_and_has_no_figures() -> None:
    assert {name: of for name, of in queue_figures(()).items() if of} == {"flip_store_up": {(): 0}}


def test_a_service_without_jobs_says_nothing_of_a_store() -> None:
    assert queue_figures(None) == {}


def test_the_media_type_is_that_of_the_format() -> None:
    assert MEDIA_TYPE == "text/plain; version=0.0.4; charset=utf-8"


def test_rendering_again_gives_the_same_text_and_no_figure_of_the_process_itself() -> None:
    text = render(SNAPSHOT)
    assert render(SNAPSHOT) == text
    assert b"python_info" not in text
    assert b"_created" not in text
