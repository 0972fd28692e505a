"""Every format in, every format out; and every kind of source and sink."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import struct

import pytest
from PIL import Image
from support import specimens
from support.mapped import mapped
from support.oracle import TURNS, expected, grid_of, psnr, seen_frames
from support.programs import pixels
from support.specimens import GENEROUS, encoded, natural, noise_image, processed

from server.errors import ImageError, UnsupportedImage
from server.imaging.codecs import OUTPUT_FORMATS, Format
from server.imaging.geometry import Turn
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

SIZE = (48, 32)
OPTIONS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}
SOURCES = {
    Format.JPEG: "JPEG",
    Format.PNG: "PNG",
    Format.WEBP: "WEBP",
    Format.GIF: "GIF",
    Format.TIFF: "TIFF",
    Format.BMP: "BMP",
    Format.AVIF: "AVIF",
    Format.PPM: "PPM",
    Format.QOI: "QOI",
}
MEDIA_TYPES = {
    Format.JPEG: "image/jpeg",
    Format.PNG: "image/png",
    Format.WEBP: "image/webp",
    Format.GIF: "image/gif",
    Format.TIFF: "image/tiff",
    Format.BMP: "image/bmp",
    Format.AVIF: "image/avif",
}
STAGES = {"decode", "transform", "encode"}


def source(container: str) -> bytes:
    return encoded(natural(SIZE), container, **OPTIONS.get(container, {}))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_every_format_is_among_these() -> None:
    assert SOURCES.keys() == set(Format)
    assert MEDIA_TYPES.keys() == set(OUTPUT_FORMATS)


@pytest.mark.parametrize("given", SOURCES)
@pytest.mark.parametrize("wanted", MEDIA_TYPES)
def test_every_format_becomes_every_other(given: Format, wanted: Format) -> None:
    data = source(SOURCES[given])
    before = grid_of(opened(data).convert("RGB"))
    for turn, (sides_swap, _) in TURNS.items():
        case = given, wanted, turn
        ours = processed(data, turn, output=wanted)
        assert ours.image.format == SOURCES[wanted], case
        assert ours.result.format is wanted, case
        assert ours.result.media_type == MEDIA_TYPES[wanted], case
        assert (ours.result.width, ours.result.height) == ours.image.size, case
        assert ours.image.size == (SIZE[::-1] if sides_swap else SIZE), case
        assert ours.result.frames == 1, case
        assert ours.result.path in {"lossless", "pixels"}, case
        seen = grid_of(ours.image.convert("RGB"))
        # A palette of 256 colours or a lossy encoder, at its default quality, still shows the image.
        assert psnr(seen, expected(before, turn)) > 24, case


@pytest.mark.parametrize("given", SOURCES)
def test_the_format_stays_unless_another_is_asked_for(given: Format) -> None:
    data = source(SOURCES[given])
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.result.format is given, (given, turn)
        assert ours.image.format == SOURCES[given], (given, turn)
        assert ours.result.media_type.startswith("image/"), (given, turn)


@pytest.mark.parametrize("wanted", MEDIA_TYPES)
def test_quality_is_accepted_for_every_output(wanted: Format) -> None:
    data = source("PNG")
    for quality in (1, 50, 100):
        ours = processed(data, "flip", output=wanted, quality=quality)
        assert ours.image.size == SIZE, (wanted, quality)
        ours.image.load()


@pytest.mark.parametrize("wanted", [Format.JPEG, Format.WEBP, Format.AVIF])
def test_a_higher_quality_is_a_larger_file(wanted: Format) -> None:
    data = source("PNG")
    sizes = [len(processed(data, "flip", output=wanted, quality=quality).data) for quality in (5, 40, 90)]
    assert sizes == sorted(set(sizes))


def three_blocks(mode: str, blocks: list[object], transparency: object = None) -> bytes:
    """Return a PNG of three squares in a row, large and flat enough for any encoder."""
    small = Image.new(mode, (3, 1))
    if mode == "P":
        small.putpalette([200, 0, 0, 100, 100, 100, 30, 60, 90])
    small.putdata(blocks)
    options = {} if transparency is None else {"transparency": transparency}
    return encoded(small.resize((96, 32), Image.Resampling.NEAREST), "PNG", **options)


CLEAR_RED, HALF_GRAY, BLUE = (200, 0, 0, 0), (100, 100, 100, 128), (30, 60, 90, 255)
SEEN_CLEAR, SEEN_HALF, SEEN_GRAY, SEEN_DARK = ((value, value, value) for value in (255, 177, 100, 60))
SEEN_BLUE = BLUE[:3]


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        pytest.param(data, wanted, id=name)
        for name, data, wanted in (
            ("RGBA", three_blocks("RGBA", [CLEAR_RED, HALF_GRAY, BLUE]), (SEEN_CLEAR, SEEN_HALF, SEEN_BLUE)),
            ("LA", three_blocks("LA", [(20, 0), (100, 128), (60, 255)]), (SEEN_CLEAR, SEEN_HALF, SEEN_DARK)),
            ("P/index", three_blocks("P", [0, 1, 2], 0), (SEEN_CLEAR, SEEN_GRAY, SEEN_BLUE)),
            (
                "P/bytes",
                three_blocks("P", [0, 1, 2], bytes((0, 128, 255))),
                (SEEN_CLEAR, SEEN_HALF, SEEN_BLUE),
            ),
            (
                "RGB/key",
                three_blocks("RGB", [CLEAR_RED[:3], HALF_GRAY[:3], BLUE[:3]], CLEAR_RED[:3]),
                (SEEN_CLEAR, SEEN_GRAY, SEEN_BLUE),
            ),
            ("L/key", three_blocks("L", [200, 100, 60], 200), (SEEN_CLEAR, SEEN_GRAY, SEEN_DARK)),
        )
    ],
)
def test_jpeg_shows_what_was_transparent_on_white(data: bytes, wanted: tuple[tuple[int, ...], ...]) -> None:
    for turn in ("orient", "flip"):
        ours = processed(data, turn, output=Format.JPEG).image.convert("RGB")
        for block, colour in enumerate(wanted):
            seen = ours.getpixel((16 + 32 * block, 16))
            assert max(abs(a - b) for a, b in zip(seen, colour, strict=True)) <= 6, (turn, block)


def test_transparency_survives_where_it_can() -> None:
    stored = noise_image("RGBA", (8, 6))
    before = grid_of(stored).map(lambda pixel: (*pixel[:3], 255 * (pixel[3] > 127)))
    stored.putdata(before.pixels)
    for output in (Format.PNG, Format.TIFF, Format.GIF, Format.WEBP, Format.AVIF):
        ours = grid_of(processed(encoded(stored, "QOI"), "flip", output=output).image.convert("RGBA"))
        alpha = ours.map(lambda pixel: 255 * (pixel[3] > 127))
        assert alpha == expected(before.map(lambda pixel: pixel[3]), "flip"), output


def test_cmyk_becomes_rgb_where_there_is_no_cmyk() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "TIFF")
    for output in (Format.PNG, Format.WEBP, Format.BMP, Format.AVIF):
        ours = processed(data, "flip", output=output).image
        assert ours.mode == "RGB", output
        assert max(abs(a - b) for a, b in zip(ours.getpixel((8, 8)), (255, 0, 0), strict=True)) < 12, output


@pytest.mark.parametrize("output", [Format.JPEG, Format.WEBP, Format.BMP, Format.GIF, Format.AVIF])
def test_sixteen_bits_become_eight_without_clipping(output: Format) -> None:
    rows = [b"\x80\0" * 16 + b"\x20\0" * 16] * 16
    deep_colour = specimens.png((16, 16), 16, 2, [b"\x80\0" * 48] * 16)
    for data in (specimens.png((32, 16), 16, 0, rows), b"P5\n32 16\n65535\n" + b"".join(rows), deep_colour):
        ours = processed(data, "flip", output=output).image.convert("L")
        assert abs(ours.getpixel((8, 8)) - 128) <= 3, output
        if ours.width == 32:
            assert abs(ours.getpixel((24, 8)) - 32) <= 3, output


@pytest.mark.parametrize("kind", ["I", "F"])
def test_scientific_modes_give_an_image_or_a_refusal(kind: str) -> None:
    data = encoded(noise_image("L", (5, 4)).convert(kind), "TIFF")
    stored = grid_of(opened(data))
    for turn in TURNS:
        assert grid_of(processed(data, turn).image) == expected(stored, turn), (kind, turn)
    for output in OUTPUT_FORMATS:
        with contextlib.suppress(ImageError):
            assert processed(data, "flip", output=output).image.size == (5, 4), (kind, output)


@pytest.mark.parametrize("given", SOURCES)
def test_memory_and_files_give_the_same_bytes(given: Format) -> None:
    data = source(SOURCES[given])
    for output in (None, *OUTPUT_FORMATS):
        recipe = Recipe(turn=Turn.ROTATE_90, format=output)
        in_memory = processed(data, "rotate-90", output=output)
        with (
            open(os.memfd_create("source"), "w+b", buffering=0) as upload,  # noqa: PTH123  a descriptor
            open(os.memfd_create("sink"), "w+b", buffering=0) as answer,  # noqa: PTH123
        ):
            upload.write(data)
            with mmap.mmap(upload.fileno(), 0, prot=mmap.PROT_READ) as memory:
                result = process(memory, answer, recipe, GENEROUS)
            assert result == in_memory.result, (given, output)
            length = os.fstat(answer.fileno()).st_size
            assert os.pread(answer.fileno(), length, 0) == in_memory.data, (given, output)


@pytest.mark.parametrize("given", SOURCES)
@pytest.mark.parametrize("held", [b"another client's", b"another client's" * 10_000])
def test_nothing_shows_of_what_the_sink_held_before(given: Format, held: bytes) -> None:
    density = {"dpi": (72, 72)} if given is Format.JPEG else {}  # is patched in behind the encoder
    data = encoded(natural(SIZE), SOURCES[given], **OPTIONS.get(SOURCES[given], {}), **density)
    for output in (None, *OUTPUT_FORMATS):
        fresh = processed(data, "flip", output=output)
        with os.fdopen(os.memfd_create("sink"), "r+b", buffering=0) as sink:
            sink.write(held)
            sink.seek(0)
            process(mapped(data), sink, Recipe(Turn.FLIP, output), GENEROUS)
            assert os.pread(sink.fileno(), 10**6, 0) == fresh.data
        assert processed(data, "flip", output=output, held=held).data == fresh.data


def test_an_animation_goes_into_a_raw_file_too() -> None:
    images = [Image.new("RGB", SIZE, colour) for colour in ("red", "lime", "blue")]
    for container in ("GIF", "WEBP", "PNG", "TIFF", "AVIF"):
        data = encoded(images[0], container, save_all=True, append_images=images[1:])
        with open(os.memfd_create("sink"), "w+b", buffering=0) as answer:  # noqa: PTH123
            result = process(mapped(data), answer, Recipe(turn=Turn.FLIP), GENEROUS)
            written = os.pread(answer.fileno(), os.fstat(answer.fileno()).st_size, 0)
        assert result.frames == 3, container
        if container == "AVIF":  # says in which second it was made
            again = processed(data, "flip").image
            assert seen_frames(opened(written)) == seen_frames(again), container
        else:
            assert written == processed(data, "flip").data, container


@pytest.mark.parametrize("given", SOURCES)
def test_each_stage_is_told_when_it_ends(given: Format) -> None:
    for output in (None, Format.PNG):
        laps: list[str] = []
        recipe = Recipe(turn=Turn.FLIP, format=output)
        process(mapped(source(SOURCES[given])), io.BytesIO(), recipe, GENEROUS, lap=laps.append)
        assert set(laps) == STAGES, (given, output)
        assert list(dict.fromkeys(laps)) == ["decode", "transform", "encode"], (given, output)


def test_the_source_is_left_as_it_was() -> None:
    for container in SOURCES.values():
        data = source(container)
        memory = mapped(data)
        process(memory, io.BytesIO(), Recipe(turn=Turn.FLIP), GENEROUS)
        assert memory[:] == data, container


def test_the_content_counts_and_no_name() -> None:
    """A PNG is a PNG under any name: the format is recognised by the first bytes alone."""
    for given, container in SOURCES.items():
        assert processed(source(container), "flip").result.format is given


@pytest.mark.parametrize(("depth", "colour_type"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_key_colour_is_compared_with_all_bits_of_a_sample(depth: int, colour_type: int) -> None:
    highest = (1 << depth) - 1
    keyed = {1: (1,), 2: (1,), 4: (5,), 8: (85,), 16: (0x1234,)}[depth] * (colour_type + 1)
    others = [
        (0,) * len(keyed),
        (highest - 1,) * len(keyed),
        *([(0x1235,) * len(keyed)] if depth == 16 else []),
    ]
    row = 0
    for sample in (sample for pixel in (keyed, *others) for sample in pixel):
        row = row << depth | sample
    bits = depth * len(keyed) * (1 + len(others))
    packed = (row << -bits % 8).to_bytes((bits + 7) // 8, "big")
    key = specimens.chunk(b"tRNS", struct.pack(f">{len(keyed)}H", *keyed))
    data = specimens.png((1 + len(others), 1), depth, colour_type, [packed], key)
    wanted = [
        (*(sample >> 8 if depth == 16 else sample * 255 // highest for sample in (pixel * 3)[:3]), 255)
        for pixel in others
    ]
    for output in (Format.TIFF, Format.GIF):
        first, *rest = grid_of(processed(data, output=output).image.convert("RGBA")).pixels
        assert first[3] == 0, output
        assert rest == wanted, output


def test_sixteen_bits_keep_all_of_them_in_either_byte_order() -> None:
    stored = noise_image("I;16", (5, 4))
    big_endian = Image.frombytes("I;16B", stored.size, stored.tobytes("raw", "I;16B"))
    for image in (stored, big_endian):
        ours = processed(encoded(image, "TIFF"), "flip", output=Format.PNG).image
        assert grid_of(ours) == expected(grid_of(stored), "flip")


def gray_tiff(samples: bytes, bits: int, photometric: int) -> bytes:
    """Return a row of gray samples, as a TIFF that Pillow would not write."""
    width = 8 * len(samples) // bits
    values = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 122,
        277: 1,
        278: 1,
        279: len(samples),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    return struct.pack("<2sHIH", b"II", 42, 8, len(values)) + entries + bytes(4) + samples


@pytest.mark.parametrize("output", [None, Format.PNG])
def test_gray_is_as_bright_as_it_is_meant(output: Format | None) -> None:
    white_is_zero = gray_tiff(struct.pack("<3H", 0, 1, 65535), 16, 0)
    assert grid_of(processed(white_is_zero, output=output).image).pixels == (65535, 65534, 0)
    twelve_bits = gray_tiff(bytes.fromhex("000fff800001"), 12, 1)
    black, white, middle, dark = grid_of(processed(twelve_bits, output=output).image).pixels
    assert (black, white, dark) == (0, 65535, 16)
    assert abs(middle - 0x8000) <= 8


def test_inverted_samples_of_unknown_range_are_refused() -> None:
    float_sample = struct.pack("<HHII", 339, 3, 1, 3)
    data = bytearray(gray_tiff(struct.pack("<f", 0.5), 32, 0))
    data[8:10], data[118:118] = struct.pack("<H", 10), float_sample
    data[10 + 12 * 5 + 8 : 10 + 12 * 5 + 12] = struct.pack("<I", 134)
    with pytest.raises(UnsupportedImage, match="White is zero"):
        processed(bytes(data))


def test_of_a_camera_s_raw_file_no_preview_comes_out() -> None:
    data = encoded(noise_image("RGB", (8, 6)), "TIFF", tiffinfo={254: 1, 330: 8})
    with pytest.raises(UnsupportedImage, match="raw"):
        processed(data)
    assert processed(encoded(noise_image("RGB", (8, 6)), "TIFF", tiffinfo={254: 0, 330: 8})).data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_gif_has_every_colour_of_an_image_of_few_colours(mode: str) -> None:
    stored = Image.frombytes(
        "RGB", (50, 5), bytes(value for level in range(250) for value in (level, 9, 250))
    )
    if mode == "RGBA":
        stored.putalpha(255)
        stored.putpixel((3, 2), (0, 0, 0, 0))
    ours = processed(encoded(stored, "PNG"), output=Format.GIF).image.convert(mode)
    assert grid_of(ours) == grid_of(stored)


@pytest.mark.parametrize("scale", [b"-1.0", b"1.0", b"-2.0", b"0.5", b"-255"])
def test_a_pfm_keeps_its_scale(scale: bytes) -> None:
    order = "<" if scale.startswith(b"-") else ">"
    data = b"Pf\n8 4\n%s\n" % scale + struct.pack(order + "32f", *(sample / 256 for sample in range(32)))
    ours = processed(data, "flip").data
    assert pixels(ours, "pfm") == pixels(data, "pfm", "-flip")
