"""What workers and engines send each other arrives as it was sent, and a lying engine is not believed."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import errors
from server.cluster.messages import Done, Progress, Refused, Spent, Task, decode_answer
from server.cluster.work_socket import MESSAGE_BYTES
from server.operations.images import (
    OPERATIONS,
    Effort,
    ImageParameters,
    ImagePath,
    MediaType,
    OutputFormat,
    TurnedImage,
    WantedPath,
)

FLIP = OPERATIONS["flip"]

counts = st.integers(min_value=0, max_value=2**62)
positive = st.integers(min_value=1, max_value=2**62)
parameters = st.builds(
    ImageParameters,
    format=st.none() | st.sampled_from(get_args(OutputFormat)),
    quality=st.none() | st.integers(min_value=1, max_value=100),
    strip=st.booleans(),
    path=st.none() | st.sampled_from(get_args(WantedPath)),
    effort=st.sampled_from(get_args(Effort)),
)
tasks = st.builds(
    Task,
    st.sampled_from(sorted(OPERATIONS)),
    positive,
    parameters.map(ImageParameters.model_dump),
    number=positive,
    sent_us=counts,
    deadline_us=counts,
)
outcomes = st.fixed_dictionaries(
    {
        "media_type": st.sampled_from(get_args(MediaType)),
        "width": positive,
        "height": positive,
        "frames": positive,
        "path": st.sampled_from(get_args(ImagePath)),
    }
)
stages = st.fixed_dictionaries(dict.fromkeys(FLIP.stages, counts))
dones = st.builds(Done, outcomes, st.builds(Spent, counts, counts, stages), engine_pid=positive)
refusals = st.sampled_from(FLIP.refusals).flatmap(lambda cls: st.builds(cls, st.text(max_size=200)))

#: What JSON can express, so what an engine that a hostile image has taken over can send.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

DONE = Done(
    {"media_type": "image/png", "width": 3, "height": 2, "frames": 1, "path": "pixels"},
    Spent(1, 9, {"decode": 2, "transform": 3, "encode": 4}),
    engine_pid=70,
)


def sent(answer: Done | Refused) -> dict[str, Any]:
    """Return the fields of an answer's message."""
    fields: dict[str, Any] = json.loads(answer.encode())
    return fields


def is_sound(answer: Done | Refused | Progress) -> bool:
    """Say whether everything in an answer is what its type promises."""
    if isinstance(answer, Progress):
        return type(answer.stages) is int and 0 < answer.stages < len(FLIP.stages)
    if isinstance(answer, Refused):
        detail = answer.error.detail if answer.error else ""
        return (
            type(answer.engine_pid) is int
            and isinstance(answer.traceback, str | None)
            and (answer.error is None or type(answer.error) in FLIP.refusals)
            and isinstance(detail, str)
        )
    outcome, spent = answer.outcome, answer.spent
    assert outcome.keys() == TurnedImage.model_fields.keys()
    figures = [answer.engine_pid, spent.queue_us, spent.service_us, *spent.stages_us.values()]
    figures += [outcome["width"], outcome["height"], outcome["frames"]]
    return (
        all(type(figure) is int and 0 <= figure < 2**63 for figure in figures)
        and tuple(spent.stages_us) == FLIP.stages
        and outcome["media_type"] in get_args(MediaType)
        and outcome["path"] in get_args(ImagePath)
    )


def is_believed_or_refused(message: bytes) -> bool:
    """Say whether a message gives a sound answer or the one error for a message that makes no sense."""
    try:
        return is_sound(decode_answer(message, FLIP))
    except ValueError:
        return True


@settings(deadline=None)
@given(tasks)
def test_a_task_arrives_as_it_was_sent(task: Task) -> None:
    assert Task.decode(task.encode()) == task


@settings(deadline=None)
@given(dones)
def test_what_was_done_arrives_as_it_was_sent(done: Done) -> None:
    assert decode_answer(done.encode(), FLIP) == done


def test_progress_arrives_as_it_was_sent() -> None:
    for stages in range(1, len(FLIP.stages)):
        assert decode_answer(Progress(stages).encode(), FLIP) == Progress(stages)


@settings(deadline=None)
@given(refusals, positive)
def test_a_refusal_arrives_with_its_kind_and_its_sentence(
    error: errors.OperationRefused, engine_pid: int
) -> None:
    arrived = decode_answer(Refused(engine_pid, error=error).encode(), FLIP)
    assert isinstance(arrived, Refused)
    assert (type(arrived.error), arrived.error and arrived.error.detail) == (type(error), error.detail)
    assert (arrived.engine_pid, arrived.traceback) == (engine_pid, None)


@settings(deadline=None)
@given(st.text(max_size=2000), positive)
def test_a_bug_of_the_engine_arrives_with_its_traceback(traceback: str, engine_pid: int) -> None:
    refused = Refused(engine_pid, traceback=traceback)
    assert decode_answer(refused.encode(), FLIP) == refused


@pytest.mark.parametrize("character", ["x", "\n", "\N{GRINNING FACE}"])
def test_a_traceback_that_is_too_long_for_a_message_arrives_with_its_end(character: str) -> None:
    message = Refused(70, traceback=character * 100_000 + "ValueError: the cause").encode()
    assert len(message) <= MESSAGE_BYTES
    arrived = decode_answer(message, FLIP)
    assert isinstance(arrived, Refused)
    assert arrived.traceback
    assert arrived.traceback.endswith(character + "ValueError: the cause")


@pytest.mark.parametrize(
    "name",
    [
        "SystemExit",
        "OperationRefused",
        "ImageError",
        "PoisonImage",
        "TooMuchWork",
        "UploadTooSlow",
        "no such",
    ],
)
def test_an_engine_cannot_raise_an_error_that_the_operation_does_not_have(name: str) -> None:
    fields = sent(Refused(70, error=errors.DamagedImage("text"))) | {"error": name}
    with pytest.raises(ValueError, match="makes no sense"):
        decode_answer(json.dumps(fields).encode(), FLIP)


NO_ANSWER = {
    "engine_pid": 70,
    "error": None,
    "detail": None,
    "is_late": False,
    "is_out_of_room": False,
    "traceback": None,
}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"nonsense",
        json.dumps(NO_ANSWER).replace("70", "9" * 5000).encode(),
        b"null",
        b"[]",
        b"{}",
        Progress(0).encode(),
        Progress(-1).encode(),
        Progress(3).encode(),  # the last stage ends with the answer
        b'{"progress": true}',
        b'{"progress": 1.5}',
        b'{"progress": null}',
        b'"progress"',
        b'["progress"]',
        b'{"done": 1}',
        b'{"done": {}}',
        json.dumps(sent(DONE) | {"done": None}).encode(),
        json.dumps(sent(DONE) | {"stages_us": {"decode": 1}}).encode(),
        json.dumps(sent(DONE) | {"service_us": True}).encode(),
        json.dumps(sent(DONE) | {"engine_pid": -1}).encode(),
        json.dumps(NO_ANSWER | {"engine_pid": []}).encode(),
        json.dumps(NO_ANSWER | {"engine_pid": float("inf")}).encode(),
        json.dumps(NO_ANSWER | {"traceback": 1}).encode(),
        json.dumps(NO_ANSWER | {"error": []}).encode(),
        json.dumps(NO_ANSWER | {"error": "DamagedImage"}).encode(),
        json.dumps(NO_ANSWER | {"error": "DamagedImage", "detail": 1}).encode(),
        b"[" * (MESSAGE_BYTES - 1),
    ],
)
def test_a_message_that_makes_no_sense_is_a_value_error(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 that it is this and no other is the point
        decode_answer(message, FLIP)


@settings(deadline=None)
@given(st.sampled_from(sorted(TurnedImage.model_fields)), anything)
def test_no_lie_about_the_outcome_passes_for_the_truth(name: str, value: object) -> None:
    fields = sent(DONE)
    fields["done"][name] = value
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(st.sampled_from(["queue_us", "service_us", "stages_us", "engine_pid"]), anything)
def test_no_lie_about_the_time_spent_spoils_the_counts(name: str, value: object) -> None:
    assert is_believed_or_refused(json.dumps(sent(DONE) | {name: value}).encode())


@settings(deadline=None)
@given(st.sampled_from(FLIP.stages), anything)
def test_no_lie_about_a_stage_spoils_the_counts(stage: str, value: object) -> None:
    fields = sent(DONE)
    fields["stages_us"][stage] = value
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(st.sampled_from(sorted(NO_ANSWER)), anything)
def test_no_lie_in_a_refusal_surprises_the_worker(name: str, value: object) -> None:
    fields = sent(Refused(70, error=errors.DamagedImage("Send an intact copy."))) | {name: value}
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(anything)
def test_no_lie_about_progress_surprises_the_worker(value: object) -> None:
    assert is_believed_or_refused(json.dumps({"progress": value}).encode())


@settings(deadline=None)
@given(st.binary(max_size=100) | anything.map(lambda value: json.dumps(value).encode()))
def test_no_message_at_all_surprises_the_worker(message: bytes) -> None:
    assert is_believed_or_refused(message)


def test_an_image_cannot_choose_its_own_content_type() -> None:
    fields = sent(DONE)
    fields["done"]["media_type"] = "text/html\r\nSet-Cookie: a=b"
    with pytest.raises(ValueError, match="media_type"):
        decode_answer(json.dumps(fields).encode(), FLIP)
