"""What is refused, how, and when: only an `ImageError` is ever raised, and it says what to do."""

from __future__ import annotations

import io
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import specimens
from support.oracle import TURNS, Grid, Patch, seen_frames
from support.specimens import (
    Limits,
    apng,
    encoded,
    gif,
    gif_palette,
    natural,
    noise_image,
    processed,
    webp_animation,
)

from server.errors import DamagedImage, ImageError, TooManyFrames, TooManyPixels, UnsupportedImage
from server.imaging.codecs import Format, decoding, sniff

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = (24, 18)
#: Hypothesis finds the same examples in every run: a red test stays red until it is fixed.
THOROUGH = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
MAGICS = {
    "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0",
    "jpeg frame": b"\xff\xd8\xff\xc0\0\x11\x08\0\x08\0\x08\x03\x01\x22\0\x02\x11\x01\x03\x11\x01",
    "png": b"\x89PNG\r\n\x1a\n",
    "png header": b"\x89PNG\r\n\x1a\n" + specimens.header_chunk((5, 4), 8, 2),
    "gif": b"GIF89a",
    "gif header": b"GIF89a\x05\0\x04\0\x80\0\0\0\0\0\xff\xff\xff",
    "webp": b"RIFF\x40\0\0\0WEBP",
    "webp lossless": b"RIFF\x40\0\0\0WEBPVP8L",
    "tiff little": b"II*\0\x08\0\0\0",
    "tiff big": b"MM\0*\0\0\0\x08",
    "tiff 64 bits": b"II+\0\x08\0\0\0",
    "bmp": b"BM",
    "bmp header": struct.pack("<2sIHHIIiiHH", b"BM", 100, 0, 0, 54, 40, 5, 4, 1, 24),
    "avif": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "ppm": b"P6\n5 4\n255\n",
    "pbm text": b"P1\n5 4\n",
    "qoi": b"qoif\0\0\0\x05\0\0\0\x04\x03\0",
    "jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "j2k": b"\xff\x4f\xff\x51",
}


def animated_gif() -> bytes:
    frames = [
        specimens.GifFrame(Grid(*SIZE, tuple(byte % 16 for byte in specimens.noise(SIZE[0] * SIZE[1], seed))))
        for seed in range(3)
    ]
    return gif(SIZE, gif_palette(1), frames, loops=0)


def patches(size: tuple[int, int] = SIZE, count: int = 3) -> list[Patch]:
    return [
        Patch(Grid(*size, tuple((*specimens.noise(3, (at, seed)), 255) for at in range(size[0] * size[1]))))
        for seed in range(count)
    ]


def every_container() -> dict[str, bytes]:
    still = noise_image("RGB", SIZE)
    return {
        "JPEG": encoded(natural(SIZE), "JPEG", quality=90),
        "JPEG progressive": encoded(natural(SIZE), "JPEG", quality=90, progressive=True),
        "PNG": encoded(still, "PNG"),
        "PNG palette": encoded(noise_image("P/bytes", SIZE), "PNG"),
        "APNG": apng(SIZE, patches()),
        "WEBP lossy": encoded(natural(SIZE), "WEBP"),
        "WEBP lossless": encoded(still, "WEBP", lossless=True),
        "WEBP animation": webp_animation(SIZE, patches()),
        "GIF": encoded(noise_image("P", SIZE), "GIF"),
        "GIF animation": animated_gif(),
        "TIFF": encoded(still, "TIFF"),
        "TIFF lzw": encoded(still, "TIFF", compression="tiff_lzw"),
        "TIFF deflate": encoded(still, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF pages": encoded(still, "TIFF", save_all=True, append_images=[noise_image("L", SIZE)]),
        "BMP": encoded(still, "BMP"),
        "BMP palette": encoded(noise_image("P", SIZE), "BMP"),
        "AVIF": encoded(natural(SIZE), "AVIF"),
        "PPM": encoded(still, "PPM"),
        "QOI": encoded(still, "QOI"),
    }


CONTAINERS = every_container()


def refusal(data: bytes, turn: str = "flip", limits: Limits = specimens.GENEROUS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        processed(data, turn, limits=limits)
    return caught.value


def assert_helpful(error: ImageError) -> None:
    """Check for one or two sentences that end like one and contain no Python error."""
    assert error.detail == error.detail.strip()
    assert len(error.detail.split()) >= 5, error.detail
    assert error.detail.endswith("."), error.detail
    assert error.detail[0].isupper() or not error.detail[0].isalpha(), error.detail
    for leak in ("Traceback", "Error(", "BytesIO", "0x", "PIL", "<", "memfd"):
        assert leak not in error.detail, error.detail


def tells_what_to_do(error: ImageError) -> bool:
    words = set(error.detail.lower().replace(",", " ").replace(".", " ").split())
    return bool(
        words
        & {"send", "check", "try", "reduce", "split", "save", "export", "use", "scale", "make", "convert"}
    )


def frames_of(data: bytes) -> list[Grid]:
    return seen_frames(Image.open(io.BytesIO(data)))


def test_nothing_at_all_is_no_image() -> None:
    error = refusal(b"")
    assert isinstance(error, UnsupportedImage)
    assert_helpful(error)


@pytest.mark.parametrize(
    "data",
    [b"hello", b"\0", b"\xff", b"{}" * 500, b"<html></html>", b"\0" * 10_000, specimens.noise(5_000)],
    ids=repr,
)
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    error = refusal(data)
    assert isinstance(error, UnsupportedImage)
    assert_helpful(error)
    assert tells_what_to_do(error), error.detail


def outside_the_allow_list() -> Iterator[tuple[str, bytes]]:
    still = noise_image("RGB", (16, 16))
    for container in ("EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "IM", "ICNS", "DDS", "MSP", "SPIDER", "XBM"):
        mode = {"MSP": "1", "XBM": "1", "SPIDER": "F", "ICNS": "RGBA"}.get(container, "RGB")
        if container != "IM":  # its writer is on its way out of Pillow
            yield container, encoded(still.convert(mode), container)
    psd = b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(12) + b"\0\0" + bytes(48)
    yield "PSD", psd
    yield (
        "SVG",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="5" height="4"><rect width="5" height="4"/></svg>',
    )
    yield "FLI", struct.pack("<IHHHHH", 200, 0xAF11, 1, 5, 4, 8) + bytes(186)
    yield "WMF", b"\xd7\xcd\xc6\x9a\0\0" + bytes(60)
    yield "FITS", b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800)


@pytest.mark.parametrize(
    ("container", "data"), list(outside_the_allow_list()), ids=lambda value: str(value)[:6]
)
def test_a_format_outside_the_allow_list_is_unsupported(container: str, data: bytes) -> None:
    error = refusal(data)
    assert isinstance(error, UnsupportedImage), container
    assert_helpful(error)
    assert "JPEG" in error.detail, "it says what to send instead"


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_never_half_an_image(container: str) -> None:
    data = CONTAINERS[container]
    whole = frames_of(processed(data, "flip").data)
    cuts = {len(data) * percent // 100 for percent in range(100)} | {len(data) - n for n in range(1, 17)}
    refused = 0
    for cut in sorted(cuts):
        try:
            ours = processed(data[:cut], "flip")
        except (DamagedImage, UnsupportedImage) as error:
            assert_helpful(error)
            refused += 1
        else:
            assert frames_of(ours.data) == whole, (
                f"{container}: {cut} of {len(data)} bytes gave another image"
            )
    assert refused >= 90, f"{container}: only {refused} of {len(cuts)} cuts were refused"


@pytest.mark.parametrize("container", CONTAINERS)
def test_damaged_bytes_give_an_image_or_a_refusal(container: str) -> None:
    data = CONTAINERS[container]
    for at in range(0, len(data), max(1, len(data) // 150)):
        for value in (0x00, 0xFF, data[at] ^ 0x01, data[at] ^ 0x80):
            damaged = data[:at] + bytes((value,)) + data[at + 1 :]
            try:
                processed(damaged, "rotate-90")
            except ImageError as error:
                assert_helpful(error)


@pytest.mark.parametrize("beginning", MAGICS)
@THOROUGH
@example(tail=b"")
@given(tail=st.binary(max_size=200))
def test_random_bytes_behind_a_valid_beginning_give_an_image_or_a_refusal(
    beginning: str, tail: bytes
) -> None:
    try:
        processed(MAGICS[beginning] + tail, "flip")
    except ImageError as error:
        assert_helpful(error)


@THOROUGH
@given(
    container=st.sampled_from(sorted(CONTAINERS)),
    turn=st.sampled_from(sorted(TURNS)),
    output=st.sampled_from([None, Format.PNG, Format.JPEG, Format.GIF]),
    edits=st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=6), st.integers(0, 6)), max_size=6),
)
def test_an_edited_file_gives_an_image_or_a_refusal(
    container: str, turn: str, output: Format | None, edits: list[tuple[int, bytes, int]]
) -> None:
    data = CONTAINERS[container]
    for at, replacement, dropped in edits:
        at %= max(1, len(data))  # noqa: PLW2901
        data = data[:at] + replacement + data[at + dropped :]
    try:
        processed(data, turn, output=output)
    except ImageError as error:
        assert_helpful(error)


# --- Limits ---------------------------------------------------------------------------------------

HUGE = 65_500


def huge_headers() -> Iterator[tuple[str, bytes]]:
    """Yield files whose header announces very many pixels and which hold next to none."""
    yield "PNG", specimens.png((65_535, 65_535), 8, 2, [b"\0"])
    yield "PNG of 16 bits", specimens.png((65_535, 65_535), 16, 6, [b"\0"])
    yield (
        "PNG header only",
        b"\x89PNG\r\n\x1a\n" + specimens.header_chunk((HUGE, HUGE), 8, 2) + specimens.chunk(b"IDAT", b""),
    )
    yield "GIF", b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + animated_gif()[10:]
    bmp = bytearray(CONTAINERS["BMP"])
    struct.pack_into("<ii", bmp, 18, HUGE, HUGE)
    yield "BMP", bytes(bmp)
    yield "PPM", b"P6\n65500 65500\n255\n" + bytes(12)
    yield "QOI", struct.pack(">4sIIBB", b"qoif", HUGE, HUGE, 3, 0) + bytes(20)
    # Gray, and not the largest: a decoder fills what is missing, so a mistake must still fit into memory.
    jpeg = bytearray(encoded(natural(SIZE, "L"), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 20_000, 20_000)
    yield "JPEG", bytes(jpeg)
    yield "JPEG cut off", bytes(jpeg[: jpeg.index(b"\xff\xda") + 20])
    webp = CONTAINERS["WEBP animation"]
    yield "WEBP", webp[:24] + (16_382).to_bytes(3, "little") * 2 + webp[30:]
    tiff = CONTAINERS["TIFF"]
    for tag, side in zip((256, 257), SIZE, strict=True):
        width = struct.pack("<HHII", tag, 4, 1, side)
        assert width in tiff
        tiff = tiff.replace(width, struct.pack("<HHII", tag, 4, 1, HUGE))
    yield "TIFF", tiff


@pytest.mark.parametrize(
    ("name", "data"), list(huge_headers()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_bomb_is_refused_before_it_is_decoded(name: str, data: bytes) -> None:
    """These have nothing to decode: if it were tried, they would be refused as damaged."""
    for limit in (1_000_000, 100_000_000):
        limits = Limits(max_pixels=limit, max_frames=100, max_total_pixels=10 * limit)
        error = refusal(data, limits=limits)
        assert isinstance(error, TooManyPixels), (name, limit, error)
        assert_helpful(error)
        assert tells_what_to_do(error), error.detail


def test_a_bomb_that_decodes_is_refused() -> None:
    """In one bit for each pixel: 25 kB that would become 196 MB, more than Pillow itself decodes."""
    with pytest.raises(TooManyPixels):
        processed(specimens.png((14_000, 14_000), 1, 0, [bytes(1_750)] * 14_000), "flip")


def test_a_large_image_within_generous_limits_is_no_bomb() -> None:
    """Only our limit counts: Pillow's own, which warns at 89 million pixels, must not apply."""
    size = (10_000, 9_500)
    data = specimens.png(size, 1, 0, [bytes(1_250)] * size[1])
    limits = Limits(max_pixels=95_000_000, max_frames=1, max_total_pixels=95_000_000)
    assert processed(data, "flip", limits=limits).result.width == 10_000


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_pixel_limit_is_the_last_number_that_passes(container: str) -> None:
    data = CONTAINERS[container]
    pixels = SIZE[0] * SIZE[1]
    passes = Limits(max_pixels=pixels, max_frames=10, max_total_pixels=10 * pixels)
    assert processed(data, "rotate-90", limits=passes).result.width == SIZE[1]
    error = refusal(data, limits=Limits(max_pixels=pixels - 1, max_frames=10, max_total_pixels=10 * pixels))
    assert isinstance(error, TooManyPixels)
    assert_helpful(error)
    assert tells_what_to_do(error), error.detail


@pytest.mark.parametrize("container", ["APNG", "GIF animation", "WEBP animation"])
def test_the_total_pixel_limit_is_the_last_number_that_passes(container: str) -> None:
    data = CONTAINERS[container]
    pixels = SIZE[0] * SIZE[1]
    passes = Limits(max_pixels=pixels, max_frames=3, max_total_pixels=3 * pixels)
    assert processed(data, "flip", limits=passes).result.frames == 3
    error = refusal(data, limits=Limits(max_pixels=pixels, max_frames=3, max_total_pixels=3 * pixels - 1))
    assert isinstance(error, TooManyPixels | TooManyFrames)
    assert_helpful(error)
    assert tells_what_to_do(error), error.detail


@pytest.mark.parametrize("container", ["APNG", "GIF animation", "WEBP animation", "TIFF pages"])
def test_the_frame_limit_is_the_last_number_that_passes(container: str) -> None:
    data, pixels = CONTAINERS[container], SIZE[0] * SIZE[1]
    frames = 2 if container == "TIFF pages" else 3
    passes = Limits(max_pixels=pixels, max_frames=frames, max_total_pixels=9 * pixels)
    assert processed(data, "flip", limits=passes).result.frames == frames
    error = refusal(
        data, limits=Limits(max_pixels=pixels, max_frames=frames - 1, max_total_pixels=9 * pixels)
    )
    assert isinstance(error, TooManyFrames)
    assert_helpful(error)
    assert tells_what_to_do(error), error.detail


def test_a_later_page_of_a_tiff_is_measured_too() -> None:
    """A small first page must not smuggle in a large second one."""
    data = encoded(
        noise_image("L", (4, 4)), "TIFF", save_all=True, append_images=[Image.new("L", (200, 200))]
    )
    error = refusal(data, limits=Limits(max_pixels=1_000, max_frames=10, max_total_pixels=1_000_000))
    assert isinstance(error, TooManyPixels)


def test_frames_are_counted_before_pixels_are_decoded() -> None:
    """The pixels are garbage: if they were decoded first, the file would be refused as damaged."""
    frame = b"\x21\xf9\x04\0\x05\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + b"\x02\x01\xff\0"
    data = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + frame * 2_000 + b"\x3b"
    error = refusal(data)
    assert isinstance(error, TooManyFrames)
    assert_helpful(error)
    assert tells_what_to_do(error), error.detail


def test_a_wrong_checksum_is_damage() -> None:
    data = bytearray(CONTAINERS["PNG"])
    data[data.index(b"IDAT") + 10] ^= 0xFF
    assert isinstance(refusal(bytes(data)), DamagedImage)


def test_a_refusal_leaves_the_sink_for_the_next_answer() -> None:
    """After any number of refusals the package still works: no global state is left."""
    before = processed(CONTAINERS["PNG"], "flip").data
    for data in (b"", b"x", CONTAINERS["JPEG"][:300], specimens.png((65_535, 65_535), 8, 2, [b"\0"])):
        assert_helpful(refusal(data))
    assert processed(CONTAINERS["PNG"], "flip").data == before


def test_many_parts_that_hold_nothing_are_refused_before_they_cost_anything() -> None:
    jpeg, png = encoded(natural(SIZE), "JPEG"), encoded(natural(SIZE), "PNG")
    scan = jpeg.index(b"\xff\xda")
    for data, what in (
        (jpeg[:2] + b"\xff\xfe\0\2" * 100_001 + jpeg[2:], "segments"),
        (jpeg[:-2] + b"\xff\xfe\0\2" * 100_001 + jpeg[-2:], "segments"),
        (jpeg[:2] + b"\xff" * 2_000_000 + jpeg[2:], "between"),
        (jpeg[:2] + b"\xff\x01" * 1_000_000 + jpeg[2:], "between"),
        (jpeg[:-2] + jpeg[scan:-2] * 500 + jpeg[-2:], "scans"),
        (png[:33] + specimens.chunk(b"teXt", b"") * 100_001 + png[33:], "chunks"),
    ):
        with pytest.raises(DamagedImage, match=what):
            processed(data)


def test_a_mistake_of_ours_does_not_look_like_a_damaged_image() -> None:
    with pytest.raises(TypeError), decoding(Format.PNG):
        sniff(None)  # raises in our own code
    with pytest.raises(DamagedImage), decoding(Format.PNG):
        Image.Image.convert(None, "L")  # raises in Pillow's


def test_a_jpeg_that_is_not_decoded_may_be_larger() -> None:
    size = (64, 48)
    data = specimens.encoded(specimens.natural(size), "JPEG")
    tight = Limits(max_pixels=3_071, max_frames=1, max_total_pixels=3_071)
    roomy = replace(tight, max_lossless_pixels=3_072)
    assert isinstance(refusal(data, limits=tight), TooManyPixels)
    for turn in ("flip", "rotate-90", "orient"):
        assert processed(data, turn, limits=roomy).result.path == "lossless"
    for more in ({"path": "pixels"}, {"quality": 80}, {"output": Format.PNG}, {"output": Format.WEBP}):
        with pytest.raises(TooManyPixels):
            processed(data, "flip", limits=roomy, **more)  # type: ignore[arg-type]
    odd = specimens.encoded(specimens.natural((63, 49)), "JPEG")
    error = refusal(odd, limits=replace(roomy, max_pixels=3_000, max_lossless_pixels=10**6))
    assert isinstance(error, TooManyPixels)
    assert "has to be decoded, as its stored height of 49 is no multiple of 16" in error.detail
    assert_helpful(error)
