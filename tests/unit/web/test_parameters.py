"""A query is read against the schema of its operation, and every mistake in it is named."""

import pytest

from server.errors import BadParameter
from server.operations.images import OPERATIONS
from server.web.parameters import Query, read_start
from server.web.submissions import OPTIONS

DEFAULTS = {"format": None, "quality": None, "strip": False, "path": None, "effort": "normal"}

FLIP, ROTATE = Query(OPERATIONS["flip"].parameters), Query(OPERATIONS["rotate"].parameters)


def complaint(query: Query, text: str) -> str:
    with pytest.raises(BadParameter) as raised:
        query.read(text)
    return raised.value.detail


@pytest.mark.parametrize(
    ("text", "given"),
    [
        ("", {}),
        ("format=png", {"format": "png"}),
        ("quality=1&strip=true", {"quality": 1, "strip": True}),
        ("quality=100&strip=false", {"quality": 100, "strip": False}),
        ("strip=location", {"strip": "location"}),
        ("strip=private", {"strip": "private"}),
        ("path=lossless&effort=high", {"path": "lossless", "effort": "high"}),
    ],
)
def test_what_is_given_is_read_and_the_rest_is_the_default(text: str, given: dict[str, object]) -> None:
    values = FLIP.read(text)
    assert values == DEFAULTS | given
    assert OPERATIONS["flip"].parameters.model_validate(values).model_dump() == values


def test_a_required_parameter_is_read_as_a_number() -> None:
    assert ROTATE.read("angle=270") == DEFAULTS | {"angle": 270}


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("format=ppm", "The parameter `format` is `ppm`. Give one of jpeg, png, webp, gif, tiff, bmp, avif."),
        ("format=", "The parameter `format` is ``. Give one of jpeg, png, webp, gif, tiff, bmp, avif."),
        ("quality=0", "The parameter `quality` is `0`. Give a whole number from 1 to 100."),
        ("quality=090", "The parameter `quality` is `090`. Give a whole number from 1 to 100."),
        ("quality=1.5", "The parameter `quality` is `1.5`. Give a whole number from 1 to 100."),
        ("strip=1", "The parameter `strip` is `1`. Give one of true, false, location, private."),
        ("strip=True", "The parameter `strip` is `True`. Give one of true, false, location, private."),
        ("strip=gps", "The parameter `strip` is `gps`. Give one of true, false, location, private."),
        ("path=coefficients", "The parameter `path` is `coefficients`. Give lossless or pixels."),
        ("effort=max", "The parameter `effort` is `max`. Give one of low, normal, high."),
        ("format=png&format=png", "The parameter `format` is there more than once. Give it once."),
        ("angle=90", "There is no parameter `angle` here. Leave it out; /openapi.json lists what there is."),
        ("a=1&b=2", "There is no parameter `a`, `b` here. Leave it out; /openapi.json lists what there is."),
        (
            f"quality={'9' * 50}",
            f"The parameter `quality` is `{'9' * 40}...`. Give a whole number from 1 to 100.",
        ),
    ],
)
def test_a_mistake_is_named_with_what_to_do(text: str, detail: str) -> None:
    assert complaint(FLIP, text) == detail


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        ("", "The parameter `angle` is missing. Give 90, 180 or 270, clockwise."),
        ("format=ppm", "The parameter `angle` is missing. Give 90, 180 or 270, clockwise."),
        ("angle=45", "The parameter `angle` is `45`. Give 90, 180 or 270, clockwise."),
        (
            "angle=90&size=1",
            "There is no parameter `size` here. Leave it out; /openapi.json lists what there is.",
        ),
    ],
)
def test_a_mistake_in_a_rotation_is_named_with_what_to_do(text: str, detail: str) -> None:
    assert complaint(ROTATE, text) == detail


@pytest.mark.parametrize("text", ["priority=1", "delay=9&format=png"])
def test_an_option_of_a_job_is_told_from_what_there_is_not(text: str) -> None:
    name = text.partition("=")[0]
    assert complaint(Query(OPERATIONS["flip"].parameters, OPTIONS), text) == (
        f"Only a job takes `{name}`. Send `Prefer: respond-async` too, or leave it out."
    )


@pytest.mark.parametrize(("text", "start"), [("", 0), ("start=0", 0), ("start=1000", 1000)])
def test_a_list_starts_where_it_is_told_to(text: str, start: int) -> None:
    assert read_start(text) == start


@pytest.mark.parametrize(
    ("text", "detail"),
    [
        *(
            (f"start={value}", "The parameter `start` is wrong. Give a whole number, 0 or more.")
            for value in ("", "-1", "1.5", "a", "1" * 10, "\u0661")
        ),
        ("start=1&start=1", "The parameter `start` is there more than once. Give it once."),
        (
            "start=1&count=5",
            "There is no parameter `count` here. Leave it out; /openapi.json lists what there is.",
        ),
    ],
)
def test_a_mistake_in_the_query_of_a_list_is_named(text: str, detail: str) -> None:
    with pytest.raises(BadParameter) as raised:
        read_start(text)
    assert raised.value.detail == detail
