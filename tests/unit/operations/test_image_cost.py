"""What a header tells of an image's cost, judged by Pillow and by the operations themselves."""

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

import pytest
from fuzz.images import sound_files, specimen
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from support import specimens
from support.oracle import Grid, Patch
from support.specimens import GENEROUS, encoded, natural, noise, noise_image, processed

from server.errors import ServiceError
from server.imaging.codecs import CODECS, OUTPUT_FORMATS, Effort, Format, sniff
from server.operations.image_cost import Header, cost, header, sniffed
from server.operations.images import OPERATIONS, ImageParameters
from server.operations.registry import Cost, unknown_cost

if TYPE_CHECKING:
    from server.operations.registry import Read

LIMITS = {
    "max_pixels": GENEROUS.max_pixels,
    "max_frames": GENEROUS.max_frames,
    "max_total_pixels": GENEROUS.max_total_pixels,
    "max_result_bytes": 1 << 40,
}

SIZE = (61, 43)


def reading(data: bytes) -> "Read":
    return lambda position, size: data[position : position + size]


def look(data: bytes) -> Header:
    return header(reading(data), len(data))


def cost_of(data: bytes, limits: dict[str, int] | None = None, **parameters: object) -> Cost:
    chosen = ImageParameters.model_validate(parameters).model_dump()
    return cost(reading(data), len(data), chosen, limits or LIMITS)


def noise_patches(count: int) -> list[Patch]:
    return [
        Patch(Grid(*SIZE, tuple(tuple(noise(4, (at, seed))) for at in range(SIZE[0] * SIZE[1]))))
        for seed in range(count)
    ]


@cache
def corpus() -> dict[str, bytes]:
    """The sound files of the fuzz tests, and larger files of noise, of one colour and like photos."""
    files = {name: sound.data for name, sound in sound_files().items()}
    flat = Image.new("RGB", (120, 80), (200, 30, 30))
    for name, image in (("noise", noise_image("RGB", SIZE)), ("flat", flat), ("natural", natural((96, 72)))):
        for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "AVIF", "PPM", "QOI", "WEBP"):
            files[f"{form} {name}"] = encoded(image, form)
        files[f"WEBP lossless {name}"] = encoded(image, "WEBP", lossless=True)
        files[f"JPEG 100 {name}"] = encoded(image, "JPEG", quality=100, subsampling=0)
        files[f"JPEG progressive {name}"] = encoded(image, "JPEG", quality=60, progressive=True)
        files[f"JPEG optimized {name}"] = encoded(image, "JPEG", optimize=True)
        files[f"TIFF LZW {name}"] = encoded(image, "TIFF", compression="tiff_lzw")
        files[f"TIFF big {name}"] = encoded(image, "TIFF", big_tiff=True)
    files["JPEG CMYK noise"] = encoded(noise_image("CMYK", SIZE), "JPEG", quality=100)
    files["TIFF CMYK noise"] = encoded(noise_image("CMYK", SIZE), "TIFF")
    files["TIFF pages"] = encoded(
        noise_image("RGB", (30, 90)), "TIFF", save_all=True, append_images=[noise_image("L", (80, 20))]
    )
    files["PNG RGBA noise"] = encoded(noise_image("RGBA", SIZE), "PNG")
    rows = [noise(SIZE[0] * 8, row) for row in range(SIZE[1])]
    files["PNG 16 bits noise"] = specimens.png(SIZE, 16, 6, rows)
    files["APNG noise"] = specimens.apng(SIZE, noise_patches(4))
    files["WEBP animation noise"] = specimens.webp_animation(SIZE, noise_patches(4))
    files["GIF animation noise"] = encoded(
        noise_image("P", SIZE, 0),
        "GIF",
        save_all=True,
        append_images=[noise_image("P", SIZE, seed) for seed in range(1, 5)],
    )
    files["AVIF RGBA noise"] = encoded(noise_image("RGBA", SIZE), "AVIF", quality=100)
    files["AVIF 4:4:4 noise"] = encoded(noise_image("RGB", SIZE), "AVIF", quality=100, subsampling="4:4:4")
    files["AVIF sequence"] = encoded(
        noise_image("RGB", SIZE, 0), "AVIF", save_all=True, append_images=[noise_image("RGB", SIZE, 1)] * 3
    )
    files["PPM with comments"] = b"P6 # a\n1#b\n7 # c\n3 255\n" + noise(17 * 3 * 3)
    files["JPEG with EXIF"] = specimens.with_exif(files["JPEG noise"], specimens.exif_block(6).data)
    files["JPEG with more behind it"] = specimens.ultra_hdr(files["JPEG natural"])
    return files


@pytest.fixture(params=sorted(corpus()))
def file(request: pytest.FixtureRequest) -> bytes:
    return corpus()[request.param]


# --- The header ---------------------------------------------------------------------------------------------


def assert_no_less_than_pillow_sees(data: bytes) -> Header:
    """Compare with Pillow's readers, as engines call them."""
    found = look(data)
    try:
        form = sniff(data)
    except ServiceError:
        assert found.form is None
        return found
    assert found.form == form
    try:
        image = CODECS[form].plugin(BytesIO(data))
        frames = getattr(image, "n_frames", 1)
        sizes = [image.size]
        if form is Format.GIF:  # Pillow makes the canvas as large as its first frame; we refuse such a frame
            sizes = [struct.unpack("<HH", data[6:10])]
        if form is Format.TIFF:
            sizes = [page.size for page in ImageSequence.Iterator(image)]
    except Exception:  # noqa: BLE001 no engine decodes it either
        return found
    assert found.pixels >= max(width * height for width, height in sizes)
    assert found.frames >= frames
    if found.total_pixels:
        assert found.total_pixels >= sum(width * height for width, height in sizes)
    return found


def test_a_header_says_no_less_than_pillow_sees(file: bytes) -> None:
    found = assert_no_less_than_pillow_sees(file)
    assert found.is_known
    with Image.open(BytesIO(file)) as image:
        assert found.pixels <= 2 * image.width * image.height  # and no nonsense
        assert found.frames <= getattr(image, "n_frames", 1) + 3


@pytest.mark.parametrize("seed", range(10))
def test_neither_do_bent_headers(seed: int) -> None:
    random = Random(seed)
    for _ in range(150):
        assert_no_less_than_pillow_sees(specimen(random).data)


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
@example(b"")
@example(b"RIFF\0\0\0\0WEBPVP8X")
@example(b"II*\0\x08\0\0\0" + b"\xff" * 100)
@example(b"P6 " + b"9" * 5000 + b" 1 255\n")
def test_no_bytes_raise(data: bytes) -> None:
    for beginning in (b"", *(prefix for prefix, _ in beginnings())):
        found = cost_of(beginning + data)
        assert 0 <= found.result_bytes <= LIMITS["max_result_bytes"]
        assert found.engine_us >= 0


def beginnings() -> Iterator[tuple[bytes, str]]:
    for name in ("JPEG baseline", "PNG RGB", "GIF P", "TIFF RGB raw", "BMP RGB", "AVIF RGB", "QOI RGB"):
        for length in (8, 12, 20, 40):
            yield sound_files()[name].data[:length], name
    for name in ("WEBP lossy", "WEBP animated"):
        for length in (16, 30, 50):
            yield sound_files()[name].data[:length], name


@pytest.mark.parametrize("name", sorted(sound_files()))
def test_of_a_file_that_is_there_in_part_nothing_raises(name: str) -> None:
    data = corpus()[name]
    for end in range(0, len(data), 7):
        found = header(reading(data[:end]), len(data))
        assert found.form in {None, look(data).form}


@pytest.mark.parametrize(
    "make", [lambda n: b"\xff\xd8\xff" + b"\xe1\0\2\xff" * n, lambda n: b"GIF89a" + b"\0," * n]
)
def test_how_much_is_read_is_bounded(make: Callable[[int], bytes]) -> None:
    data = make(20_000_000)
    seen_bytes = steps = 0

    def read(position: int, size: int) -> bytes:
        nonlocal seen_bytes, steps
        piece = data[position : position + size]
        seen_bytes, steps = seen_bytes + len(piece), steps + 1
        return piece

    header(read, len(data))
    assert seen_bytes <= 17 << 20
    assert steps <= 2000


def test_the_formats_are_recognised_as_engines_do(file: bytes) -> None:
    assert sniffed(file[:4096]) == sniff(file).value


def test_the_image_of_forty_bytes_counts_as_what_it_is() -> None:
    data = encoded(Image.new("RGB", (1500, 1500)), "WEBP", lossless=True)
    assert len(data) < 200
    found = cost_of(data, format="bmp")
    assert found.result_bytes >= 1500 * 1500 * 3
    assert found.engine_us > 100 * cost_of(encoded(Image.new("RGB", (100, 100)), "BMP")).engine_us


# --- The result ---------------------------------------------------------------------------------------------


LOSSY = (Format.JPEG, Format.WEBP, Format.AVIF)


@pytest.mark.parametrize(
    ("target", "quality"),
    [(None, None), *((form, None) for form in sorted(OUTPUT_FORMATS)), *((form, 100) for form in LOSSY)],
)
def test_no_result_is_larger_than_its_bound(file: bytes, target: Format | None, quality: int | None) -> None:
    for path in (None, "pixels") if (quality, target) == (None, Format.JPEG) else (None,):
        bound = cost_of(file, format=target, quality=quality, effort="low", path=path).result_bytes
        try:
            outcome = processed(
                file, "rotate-90", output=target, quality=quality, effort=Effort.LOW, path=path
            )
        except ServiceError:
            return
        assert len(outcome.data) <= bound


def test_a_bound_is_never_above_the_limit_of_results(file: bytes) -> None:
    assert cost_of(file, LIMITS | {"max_result_bytes": 99}, format="bmp").result_bytes == 99


def test_an_ordinary_photo_books_no_more_than_a_few_times_its_size() -> None:
    photo = encoded(natural((800, 600)), "JPEG", quality=90)
    assert cost_of(photo).result_bytes <= 3 * len(photo) + (1 << 18)


def test_what_the_engine_refuses_from_the_header_costs_nothing() -> None:
    for data in (b"no image", struct.pack(">4sIIBB", b"qoif", 60_000, 60_000, 3, 0)):
        assert cost_of(data) == Cost(0, 0)


def test_of_what_cannot_be_read_only_the_size_counts() -> None:
    """Such a file is damaged, nearly always: it must not book what the largest result takes."""
    small, large = (cost_of(b"\x89PNG\r\n\x1a\n" + bytes(size)) for size in (1000, 100_000))
    assert 1000 < small.result_bytes < large.result_bytes < 10_000_000
    assert 0 < small.engine_us < large.engine_us < 10_000


def test_the_first_frame_is_all_that_a_still_takes() -> None:
    data = corpus()["GIF animation noise"]
    assert cost_of(data, format="bmp").result_bytes < cost_of(data, format="png").result_bytes


def test_pixels_and_effort_and_format_decide_how_long_it_takes() -> None:
    small, large = (encoded(natural(size), "PNG") for size in ((100, 75), (400, 300)))
    assert 8 < cost_of(large).engine_us / cost_of(small).engine_us < 32
    assert cost_of(large, format="avif").engine_us > 3 * cost_of(large, format="jpeg").engine_us
    assert cost_of(large, format="avif", effort="high").engine_us > cost_of(large, format="avif").engine_us
    photo = encoded(natural((400, 300)), "JPEG")
    assert cost_of(photo).engine_us < cost_of(photo, path="pixels").engine_us


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        (b"P3 99 99 255\n" + b"7 " * 3 * 99 * 99, b"P6 99 99 255\n" + bytes(3 * 99 * 99)),
        (b"P6 99 99 254\n" + bytes(3 * 99 * 99), b"P6 99 99 255\n" + bytes(3 * 99 * 99)),
        (encoded(noise_image("RGB", (99, 99)), "QOI"), encoded(noise_image("RGB", (99, 99)), "BMP")),
    ],
    ids=["plain", "odd highest value", "QOI"],
)
def test_decoders_in_python_count_as_what_they_take(slow: bytes, fast: bytes) -> None:
    assert cost_of(slow, format="jpeg").engine_us > 20 * cost_of(fast, format="jpeg").engine_us


def test_every_operation_on_images_has_this_cost() -> None:
    assert {operation.cost for operation in OPERATIONS.values()} == {cost}
    assert replace(OPERATIONS["flip"], cost=unknown_cost).cost is unknown_cost
