"""The effort of an encoder changes the size of the file, and nothing that a lossless format keeps."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from support import specimens
from support.oracle import SAMPLES_PER_PIXEL, expected, read_png
from support.specimens import encoded, noise_image, processed

from server.imaging.codecs import Effort, Format
from server.imaging.formats import png

LANDSCAPE = Path(__file__).parents[3] / "images" / "landscape.jpg"
EVERY_LAYOUT = [(depth, 0) for depth in (1, 2, 4, 8, 16)] + [(depth, 3) for depth in (1, 2, 4, 8)]
EVERY_LAYOUT += [(depth, kind) for kind in (2, 4, 6) for depth in (8, 16)]


def stored(depth: int, colour_type: int, size: tuple[int, int]) -> bytes:
    """Return a PNG of noise, its rows unfiltered."""
    width, height = size
    stride = -(-width * SAMPLES_PER_PIXEL[colour_type] * depth // 8)
    rows = [specimens.noise(stride, (depth, colour_type, row)) for row in range(height)]
    palette = specimens.chunk(b"PLTE", specimens.noise(3 << depth)) if colour_type == png.INDEXED else b""
    return specimens.png(size, depth, colour_type, rows, palette)


def photo() -> Image.Image:
    with Image.open(LANDSCAPE) as image:
        return image.resize((384, 240)).convert("RGB")


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("at_once", [1, 100, 1 << 18])
@pytest.mark.parametrize(("depth", "colour_type"), EVERY_LAYOUT)
def test_png_is_exact_however_many_rows_are_filtered_at_once(
    depth: int, colour_type: int, at_once: int, effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(png, "_BYTES_AT_ONCE", at_once)
    data = stored(depth, colour_type, (9, 14))
    answer = read_png(processed(data, "flip", effort=effort).data)
    assert (answer.depth, answer.colour_type) == (depth, colour_type)
    assert answer.grid == expected(read_png(data).grid, "flip")


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("kind", [kind for kind in specimens.KINDS if kind != "CMYK"])
def test_an_image_becomes_the_png_that_pillow_would_write(kind: str, effort: Effort) -> None:
    """Apart from its compression: the same chunks around the same samples."""
    source = noise_image(kind, (9, 14))
    data = encoded(source, "TIFF") if kind in ("1", "LA", "RGB", "RGBA", "I;16") else encoded(source, "PNG")
    answer = read_png(processed(data, "orient", output=Format.PNG, effort=effort).data)
    wanted = read_png(encoded(Image.open(io.BytesIO(data)), "PNG"))
    assert (answer.depth, answer.colour_type, answer.grid) == (wanted.depth, wanted.colour_type, wanted.grid)
    for chunk in (b"PLTE", b"tRNS"):
        assert answer.chunk(chunk) == wanted.chunk(chunk)


@pytest.mark.parametrize("quality", [None, 75])
@pytest.mark.parametrize("form", [Format.PNG, Format.WEBP, Format.AVIF])
def test_more_effort_is_a_smaller_file(form: Format, quality: int | None) -> None:
    data = encoded(photo(), "PNG")
    sizes = [
        len(processed(data, "flip", output=form, quality=quality, effort=effort).data) for effort in Effort
    ]
    assert all(more <= less for less, more in pairwise(sizes)), sizes
    assert sizes[-1] < sizes[0]


def test_effort_counts_in_each_frame_of_an_animation() -> None:
    data = encoded(photo(), "WEBP", save_all=True, append_images=[photo().transpose(0)], lossless=True)
    low, high = (len(processed(data, "flip", effort=effort).data) for effort in (Effort.LOW, Effort.HIGH))
    assert high < low


@pytest.mark.parametrize("form", [Format.JPEG, Format.GIF, Format.TIFF, Format.BMP])
def test_formats_without_a_choice_take_any_effort(form: Format) -> None:
    data = encoded(photo(), "PNG")
    answers = {processed(data, "flip", output=form, effort=effort).data for effort in Effort}
    assert len(answers) == 1
