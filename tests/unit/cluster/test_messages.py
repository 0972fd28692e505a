"""What workers and engines say to each other arrives as it was sent, and a lying engine is not believed."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server import errors
from server.cluster.messages import Done, Refused, Spent, Task, decode_outcome
from server.cluster.work_socket import MESSAGE_BYTES
from server.imaging.codecs import CODECS, OUTPUT_FORMATS, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.recipe import Recipe, Result

counts = st.integers(min_value=0, max_value=2**62)
positive = st.integers(min_value=1, max_value=2**62)
recipes = st.builds(
    Recipe,
    turn=st.sampled_from(Turn),
    format=st.none() | st.sampled_from(sorted(OUTPUT_FORMATS)),
    quality=st.none() | st.integers(min_value=1, max_value=100),
    strip=st.booleans(),
)
tasks = st.builds(
    Task,
    recipes,
    st.builds(Limits, positive, positive, positive),
    number=positive,
    sent_us=counts,
    deadline_us=counts,
)
results = st.sampled_from(Format).flatmap(
    lambda form: st.builds(
        Result,
        format=st.just(form),
        media_type=st.just(CODECS[form].media_type),
        width=positive,
        height=positive,
        frames=positive,
        path=st.sampled_from(["lossless", "pixels"]),
    )
)
dones = st.builds(Done, results, st.builds(Spent, counts, counts, counts, counts), engine_pid=positive)
refusals = st.sampled_from(
    [errors.UnsupportedImage, errors.DamagedImage, errors.TooManyPixels, errors.TooManyFrames]
).flatmap(lambda cls: st.builds(cls, st.text(max_size=200)))

#: What JSON can say, so what an engine that a hostile picture has taken over can say.
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

DONE = Done(Result(Format.PNG, "image/png", 3, 2, 1, "pixels"), Spent(1, 2, 3, 4), engine_pid=70)


def spoken(outcome: Done | Refused) -> dict[str, Any]:
    """Return an outcome's message as the JSON that it is."""
    fields: dict[str, Any] = json.loads(outcome.encode())
    return fields


def is_sound(outcome: Done | Refused) -> bool:
    """Say whether everything in an outcome is what its type promises."""
    if isinstance(outcome, Refused):
        detail = outcome.error.detail if outcome.error else ""
        return (
            type(outcome.engine_pid) is int
            and isinstance(outcome.traceback, str | None)
            and isinstance(outcome.error, errors.ImageError | None)
            and isinstance(detail, str)
        )
    result = outcome.result
    figures = [
        outcome.engine_pid,
        *asdict(outcome.spent).values(),
        result.width,
        result.height,
        result.frames,
    ]
    return (
        all(type(figure) is int and 0 <= figure < 2**63 for figure in figures)
        and result.media_type == CODECS[result.format].media_type
        and result.path in {"lossless", "pixels"}
    )


def is_believed_or_refused(message: bytes) -> bool:
    """Say whether a message gives a sound outcome or the one error for a message that makes no sense."""
    try:
        return is_sound(decode_outcome(message))
    except ValueError:
        return True


@settings(deadline=None)
@given(tasks)
def test_a_job_arrives_as_it_was_sent(task: Task) -> None:
    arrived = Task.decode(task.encode())
    assert arrived == task
    assert isinstance(arrived.recipe.turn, Turn)
    assert isinstance(arrived.recipe.format, Format | None)


@settings(deadline=None)
@given(dones)
def test_a_picture_that_is_done_arrives_as_it_was_sent(done: Done) -> None:
    arrived = decode_outcome(done.encode())
    assert arrived == done
    assert isinstance(arrived, Done)
    assert isinstance(arrived.result.format, Format)


@settings(deadline=None)
@given(refusals, positive)
def test_a_refusal_arrives_with_its_kind_and_its_sentence(error: errors.ImageError, engine_pid: int) -> None:
    arrived = decode_outcome(Refused(engine_pid, error=error).encode())
    assert isinstance(arrived, Refused)
    assert (type(arrived.error), arrived.error and arrived.error.detail) == (type(error), error.detail)
    assert (arrived.engine_pid, arrived.traceback) == (engine_pid, None)


@settings(deadline=None)
@given(st.text(max_size=2000), positive)
def test_a_bug_of_the_engine_arrives_with_its_traceback(traceback: str, engine_pid: int) -> None:
    refused = Refused(engine_pid, traceback=traceback)
    assert decode_outcome(refused.encode()) == refused


@pytest.mark.parametrize("character", ["x", "\n", "\N{GRINNING FACE}"])
def test_a_traceback_that_is_too_long_for_a_message_arrives_with_its_end(character: str) -> None:
    message = Refused(70, traceback=character * 100_000 + "ValueError: the cause").encode()
    assert len(message) <= MESSAGE_BYTES
    arrived = decode_outcome(message)
    assert isinstance(arrived, Refused)
    assert arrived.traceback
    assert arrived.traceback.endswith(character + "ValueError: the cause")


def test_the_service_time_is_what_the_engine_spent_and_not_the_wait_for_it() -> None:
    assert Spent(queue=1000, decode=200, transform=30, encode=4).service_us == 234


@pytest.mark.parametrize("name", ["SystemExit", "ServiceError", "PoisonImage", "UploadTooSlow", "no such"])
def test_an_engine_cannot_raise_an_error_that_is_not_on_the_list(name: str) -> None:
    message = json.dumps(
        {"refused": {"engine_pid": 70, "is_late": False, "traceback": None, "error": name, "detail": "text"}}
    )
    arrived = decode_outcome(message.encode())
    assert isinstance(arrived, Refused)
    assert arrived.error is None


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"nonsense",
        b'{"refused": {"engine_pid": ' + b"9" * 5000 + b', "is_late": false, "traceback": null}}',
        b"null",
        b"[]",
        b"{}",
        b'{"done": 1}',
        b'{"done": {}}',
        b'{"refused": null}',
        b'{"refused": {}}',
        b'{"refused": {"engine_pid": [], "is_late": false, "traceback": null}}',
        b'{"refused": {"engine_pid": Infinity, "is_late": false, "traceback": null}}',
        b'{"refused": {"engine_pid": 70, "is_late": false, "traceback": 1}}',
        b'{"refused": {"engine_pid": 70, "is_late": false, "traceback": null, "error": []}}',
        b'{"refused": {"engine_pid": 70, "is_late": false, "traceback": null, "error": "DamagedImage"}}',
        json.dumps(spoken(Refused(70, errors.DamagedImage("text")))).replace('"text"', "1").encode(),
        b"[" * (MESSAGE_BYTES - 1),
    ],
)
def test_a_message_that_makes_no_sense_is_a_value_error(message: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 that it is this and no other is the point
        decode_outcome(message)


@settings(deadline=None)
@given(st.sampled_from(sorted(asdict(DONE.result))), anything)
def test_no_lie_about_the_result_passes_for_the_truth(name: str, value: object) -> None:
    fields = spoken(DONE)
    fields["done"]["result"][name] = value
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(st.sampled_from(sorted(asdict(DONE.spent))), anything)
def test_no_lie_about_the_time_spent_spoils_the_counts(name: str, value: object) -> None:
    fields = spoken(DONE)
    fields["done"]["spent"][name] = value
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(st.sampled_from(["engine_pid", "traceback", "error", "detail"]), anything)
def test_no_lie_in_a_refusal_surprises_the_worker(name: str, value: object) -> None:
    fields = spoken(Refused(70, error=errors.DamagedImage("Send an intact copy.")))
    fields["refused"][name] = value
    assert is_believed_or_refused(json.dumps(fields).encode())


@settings(deadline=None)
@given(st.binary(max_size=100) | anything.map(lambda value: json.dumps(value).encode()))
def test_no_message_at_all_surprises_the_worker(message: bytes) -> None:
    assert is_believed_or_refused(message)


def test_a_picture_cannot_choose_its_own_content_type() -> None:
    fields = spoken(DONE)
    fields["done"]["result"]["media_type"] = "text/html\r\nSet-Cookie: a=b"
    assert is_believed_or_refused(json.dumps(fields).encode())
