"""What is sent in attacks, and how their table is made of what was seen."""

from collections import Counter
from io import BytesIO
from math import inf

import pytest
from PIL import Image

from benchmarks.harness.tables import markdown_table
from benchmarks.survival import specimens
from benchmarks.survival.attacks import Deeds, Round, Run, ceiling_mb, findings, table
from benchmarks.survival.cluster import worker_count
from benchmarks.survival.polite import Seen, one_megapixel

DEEDS = Deeds(planned=10, requests=10, answers=Counter({"200": 8, "503": 2}))


def seen(
    outcomes: dict[str, int], took_ms: float = 10.0, health_ms: float = 5.0, memory_mb: float = 100.0
) -> Run:
    times_ms = [took_ms if outcome == "200" else inf for outcome in Counter(outcomes).elements()]
    polite = Seen(Counter(outcomes), times_ms, 60 if "503" in outcomes else 0)
    return Run(polite, Seen(Counter({"200": 100}), [health_ms] * 100), [memory_mb / 2, memory_mb])


def verdicts(attacked: Run, deeds: Deeds = DEEDS) -> list[bool]:
    found = findings([Round(seen({"200": 100}), attacked, deeds)] * 3)
    return [finding.is_kept for finding in found if finding.is_figure]


@pytest.mark.parametrize(
    ("attacked", "broken"),
    [
        (seen({"200": 1000, "503": 9}, 15.0, 24.9), None),
        (seen({"200": 98, "503": 1, "wrong pixels": 1}), 0),
        (seen({"200": 100}, took_ms=15.1), 1),
        (seen({"200": 100}, health_ms=25.0), 2),
        (seen({"200": 100}, memory_mb=ceiling_mb() + 1), 4),
    ],
)
def test_each_promise_has_its_bound(attacked: Run, broken: int | None) -> None:
    assert verdicts(attacked) == [number != broken for number in range(5)]


def test_the_ceiling_is_the_sum_that_is_documented() -> None:
    """With the defaults: 2 GiB, or 256 MiB for each engine, and for each worker two engines and 120 MB."""
    workers = worker_count()
    held_mb = max(2147.5, workers * 268.4)
    assert ceiling_mb() == pytest.approx(held_mb + workers * (2 * 2147.5 + 120), abs=workers)


def test_one_bad_round_of_three_is_outvoted_but_not_its_refusals_and_its_memory() -> None:
    good = Round(seen({"200": 100}), seen({"200": 100}), DEEDS)
    bad = seen({"200": 50, "503": 50}, took_ms=99.0, health_ms=99.0, memory_mb=ceiling_mb() + 1)
    found = findings([good, Round(seen({"200": 100}), bad, DEEDS), good])
    assert [finding.is_kept for finding in found if finding.is_figure] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "deeds",
    [
        Deeds(failure="it did not start"),
        Deeds(planned=10, requests=7, answers=Counter({"200": 7})),
        Deeds(planned=10, requests=10, answers=Counter({"200": 7, "no connection": 3})),
        Deeds(planned=10, requests=10, answers=Counter({"200": 9})),
        Deeds(),
    ],
)
def test_without_an_attack_no_promise_is_kept(deeds: Deeds) -> None:
    attacked = seen({"200": 100})
    assert verdicts(attacked) == [True] * 5
    assert verdicts(attacked, deeds) == [False] * 5
    text = "\n".join(markdown_table(table({"some": {"after": [Round(attacked, attacked, deeds)]}}), "##"))
    assert text.count("no attack !") == 5


def test_nothing_asked_and_nothing_answered_keeps_no_promise() -> None:
    nothing = Run(Seen(), Seen(), [0.0])
    found = findings([Round(nothing, nothing, DEEDS)])
    assert [finding.is_kept for finding in found][:5] == [True, False, False, False, False]


def test_the_table_has_both_revisions_side_by_side() -> None:
    old, new = seen({"200": 30, "503": 70}, took_ms=40.0), seen({"200": 100})
    made = table(
        {"some": {which: [Round(new, each, DEEDS)] for which, each in (("before", old), ("after", new))}}
    )
    assert made.columns[:5] == (
        "attack",
        "refused or failed, before",
        "refused or failed, after",
        "p95 with / without, before",
        "p95 with / without, after",
    )
    assert made.rows[0][:5] == ("some", "70.0 % !", "0.0 %", "inf !", "1.00")


@pytest.mark.parametrize(
    ("data", "form", "size", "frames"),
    [
        (specimens.plain_webp(300, 200), "WEBP", (300, 200), 1),
        (specimens.plain_animation(70, 50, 5), "WEBP", (70, 50), 5),
        (specimens.plain_png(100), "PNG", (100, 100), 1),
        (specimens.commented_ppm(10_000), "PPM", (1, 1), 1),
        (specimens.long_qoi(20), "QOI", (20, 20), 1),
    ],
)
def test_what_attackers_send_are_images(data: bytes, form: str, size: tuple[int, int], frames: int) -> None:
    with Image.open(BytesIO(data)) as image:
        assert (image.format, image.size, getattr(image, "n_frames", 1)) == (form, size, frames)
        for number in range(frames):
            image.seek(number)
            image.load()


def test_the_large_one_is_as_small_as_the_small_one() -> None:
    assert len(specimens.plain_webp(10_000, 10_000)) == len(specimens.plain_webp(1, 1)) < 41


def test_chunks_of_one_byte_are_the_body() -> None:
    assert b"".join(specimens.one_byte_chunks(b"ab")) == b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


def test_the_polite_send_an_ordinary_image() -> None:
    with Image.open(BytesIO(one_megapixel())) as image:
        assert image.format == "JPEG"
        assert image.size == (1280, 800)
