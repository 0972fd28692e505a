"""Results that explode are bounded, to the byte, and told early where that can be known."""

from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from support.mapped import mapped
from support.oracle import Grid, Patch
from support.specimens import GENEROUS, apng, encoded, noise, processed, webp_animation

from server.errors import ResultTooLarge
from server.imaging.codecs import OUTPUT_FORMATS, Format
from server.imaging.geometry import Turn
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

SIZE = (40, 30)


def patches(count: int) -> list[Patch]:
    return [
        Patch(Grid(*SIZE, tuple((*noise(3, (at, seed)), 255) for at in range(SIZE[0] * SIZE[1]))))
        for seed in range(count)
    ]


def sources() -> dict[str, bytes]:
    """Files of one colour, which every format makes small, and animations of noise."""
    flat, other = Image.new("RGB", SIZE, (200, 30, 30)), Image.new("RGB", SIZE, (30, 200, 30))
    return {
        **{form: encoded(flat, form) for form in ("JPEG", "PNG", "GIF", "BMP", "AVIF", "PPM", "QOI")},
        "WEBP": encoded(flat, "WEBP", lossless=True),
        "TIFF": encoded(flat, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF pages": encoded(flat, "TIFF", save_all=True, append_images=[other]),
        "GIF animation": encoded(flat, "GIF", save_all=True, append_images=[other], duration=50),
        "APNG": apng(SIZE, patches(3)),
        "WEBP animation": webp_animation(SIZE, patches(3)),
    }


SOURCES = sources()


@pytest.mark.parametrize("target", [None, *sorted(OUTPUT_FORMATS)])
@pytest.mark.parametrize("source", SOURCES)
def test_the_limit_of_the_result_is_the_last_size_that_passes(source: str, target: Format | None) -> None:
    whole_bytes = len(processed(SOURCES[source], "rotate-90", output=target).data)
    passes = replace(GENEROUS, max_result_bytes=whole_bytes)
    again = processed(SOURCES[source], "rotate-90", output=target, limits=passes)
    assert len(again.data) == whole_bytes
    refuses = replace(GENEROUS, max_result_bytes=whole_bytes - 1)
    with pytest.raises(ResultTooLarge, match=f"limit is {whole_bytes - 1}"):
        processed(SOURCES[source], "rotate-90", output=target, limits=refuses)


@pytest.mark.parametrize(("mode", "stride"), [("1", 8), ("L", 40), ("P", 40), ("RGB", 120), ("RGBA", 120)])
def test_a_bmp_is_refused_before_it_is_encoded(mode: str, stride: int) -> None:
    """The rows alone are larger than the limit."""
    source = encoded(Image.new(mode, SIZE), "PNG")
    limits = replace(GENEROUS, max_result_bytes=stride * SIZE[1] - 1)
    with BytesIO() as sink:
        with pytest.raises(ResultTooLarge):
            process(mapped(source), sink, Recipe(Turn.FLIP, format=Format.BMP), limits)
        assert sink.getvalue() == b""


@pytest.mark.parametrize("source", ["APNG", "WEBP"])
@pytest.mark.parametrize("target", [Format.PNG, Format.WEBP, Format.GIF])
def test_an_animation_is_refused_with_the_frame_that_is_too_much(source: str, target: Format) -> None:
    data = apng(SIZE, patches(20)) if source == "APNG" else webp_animation(SIZE, patches(20))
    whole = processed(data, output=target).data
    stages: list[str] = []
    limits = replace(GENEROUS, max_result_bytes=len(whole) // 4)
    with BytesIO() as sink:
        with pytest.raises(ResultTooLarge):
            process(mapped(data), sink, Recipe(Turn.FLIP, format=target), limits, stages.append)
        assert sink.getvalue() == b""
    assert 2 <= stages.count("transform") <= 10
