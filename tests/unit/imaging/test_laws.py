"""Laws of the eight turns, on generated images."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.oracle import ORIENTATIONS, TURNS, Grid, expected, grid_of
from support.specimens import KINDS, encoded, noise_image, orientation_only, processed

LAWFUL = settings(max_examples=60, deadline=None, derandomize=True)

#: A container that keeps the kind exactly.
STORED_AS = {
    kind: [container for container in containers if not (container == "TIFF" and "/" in kind)]
    for kind, containers in {
        **{kind: ["PNG", "TIFF"] for kind in KINDS},
        "CMYK": ["TIFF"],
        "L": ["PNG", "TIFF", "BMP", "PPM"],
        "1": ["PNG", "TIFF", "BMP", "PPM"],
        "RGB": ["PNG", "TIFF", "BMP", "PPM", "QOI", "WEBP"],
        "RGBA": ["PNG", "TIFF", "QOI", "WEBP"],
        "P": ["PNG", "TIFF", "BMP", "GIF"],
        "P/index": ["PNG", "GIF"],
    }.items()
}
EXACT = {"WEBP": {"lossless": True, "exact": True}}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Return a small image of any kind in a container that loses nothing."""
    kind = draw(st.sampled_from(KINDS))
    container = draw(st.sampled_from(STORED_AS[kind]))
    size = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    return encoded(noise_image(kind, size, draw(st.integers(0, 999))), container, **EXACT.get(container, {}))


def look(data: bytes) -> tuple[str | None, Grid]:
    """Return the container and what is seen, transparency included."""
    image = Image.open(io.BytesIO(data))
    if image.mode == "P" or "transparency" in image.info:
        return image.format, grid_of(image.convert("RGBA"))
    return image.format, grid_of(image)


def after(data: bytes, *turns: str) -> tuple[str | None, Grid]:
    """Apply one turn to the answer of the other."""
    for turn in turns:
        data = processed(data, turn).data
    return look(data)


@LAWFUL
@given(files())
def test_flip_twice_is_the_original(data: bytes) -> None:
    assert after(data, "flip", "flip") == look(data)


@LAWFUL
@given(files())
def test_flop_twice_is_the_original(data: bytes) -> None:
    assert after(data, "flop", "flop") == look(data)


@LAWFUL
@given(files())
def test_each_diagonal_twice_is_the_original(data: bytes) -> None:
    assert after(data, "transpose", "transpose") == look(data)
    assert after(data, "transverse", "transverse") == look(data)


@LAWFUL
@given(files())
def test_four_quarter_turns_are_none(data: bytes) -> None:
    assert after(data, *["rotate-90"] * 4) == look(data)
    assert after(data, *["rotate-270"] * 4) == look(data)


@LAWFUL
@given(files())
def test_a_quarter_turn_back_undoes_a_quarter_turn(data: bytes) -> None:
    assert after(data, "rotate-90", "rotate-270") == look(data)


@LAWFUL
@given(files())
def test_a_half_turn_is_a_flip_and_a_flop_in_any_order(data: bytes) -> None:
    half = after(data, "rotate-180")
    assert after(data, "flip", "flop") == half
    assert after(data, "flop", "flip") == half
    assert after(data, "rotate-90", "rotate-90") == half


@LAWFUL
@given(files())
def test_a_transpose_and_a_mirror_are_a_quarter_turn(data: bytes) -> None:
    assert after(data, "transpose", "flop") == after(data, "rotate-90")
    assert after(data, "transpose", "flip") == after(data, "rotate-270")
    assert after(data, "transpose", "rotate-180") == after(data, "transverse")


@LAWFUL
@given(files())
def test_orienting_an_upright_image_changes_nothing(data: bytes) -> None:
    assert after(data, "orient") == look(data)


@LAWFUL
@given(files(), st.sampled_from(sorted(TURNS)))
def test_any_turn_is_what_the_oracle_says(data: bytes, turn: str) -> None:
    container, grid = look(data)
    assert after(data, turn) == (container, expected(grid, turn))


@LAWFUL
@given(
    st.sampled_from([kind for kind in KINDS if kind != "CMYK"]),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.sampled_from(sorted(ORIENTATIONS)),
    st.sampled_from(sorted(TURNS)),
)
def test_orienting_first_makes_no_difference(
    kind: str, size: tuple[int, int], orientation: int, turn: str
) -> None:
    data = encoded(noise_image(kind, size), "PNG", exif=orientation_only(orientation))
    assert after(data, "orient", turn) == after(data, turn)


@LAWFUL
@given(files(), st.sampled_from(sorted(TURNS)))
def test_the_same_request_gives_the_same_bytes(data: bytes, turn: str) -> None:
    assert processed(data, turn).data == processed(data, turn).data


@LAWFUL
@given(files(), st.sampled_from(sorted(TURNS)))
def test_stripping_changes_no_pixel(data: bytes, turn: str) -> None:
    assert look(processed(data, turn, strip=True).data) == after(data, turn)
