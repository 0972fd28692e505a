"""Small files that ask for much work: refused or processed, with work in proportion to their size."""

import struct
import time
import tracemalloc
import zlib
from io import BytesIO

import pytest
from PIL import Image
from support.mapped import mapped

from server.errors import DamagedImage, TooManyPixels, UnsupportedImage
from server.imaging.codecs import Format
from server.imaging.geometry import Turn
from server.imaging.jpeg.markers import read_jpeg
from server.imaging.limits import Limits
from server.imaging.metadata import ifd
from server.imaging.metadata.exif import without_orientation
from server.imaging.metadata.xmp import without_companions
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

LIMITS = Limits(max_pixels=10**6, max_frames=1000, max_total_pixels=10**7)


def flip(data: bytes, form: Format | None = None) -> bytes:
    with BytesIO() as sink:
        process(mapped(data), sink, Recipe(Turn.FLIP, format=form), LIMITS)
        return sink.getvalue()


def png_with_palette(palette: bytes, transparency: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", 2, 2, 8, 3, 0, 0, 0)
    chunks = [
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"tRNS", transparency),
        (b"IDAT", zlib.compress(bytes(6))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.parametrize("form", [None, *Format])
@pytest.mark.parametrize(
    ("palette", "transparency"),
    [(b"", b""), (b"abcd", b""), (b"abc" * 257, b"")],
)
def test_a_palette_that_does_not_fit_is_damage_in_every_direction(
    palette: bytes, transparency: bytes, form: Format | None
) -> None:
    with pytest.raises(DamagedImage):
        flip(png_with_palette(palette, transparency), form)


@pytest.mark.parametrize("alphas", [256, 257])
def test_a_palette_that_fits_is_taken_with_the_transparency_that_fits(alphas: int) -> None:
    with Image.open(BytesIO(flip(png_with_palette(b"abc" * 256, bytes(alphas))))) as image:
        assert image.mode == "P"
        assert ("transparency" in image.info) == (alphas == 256)


def directory(entries: list[tuple[int, int, int, int]], following: int = 0) -> bytes:
    body = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return struct.pack("<H", len(entries)) + body + struct.pack("<L", following)


def test_directories_that_point_at_each_other_are_read_once_each() -> None:
    """Followed naively, these hundred kilobytes are eight hundred million entries."""
    fan = 1000
    first = 8
    second = first + 2 + 12 * fan + 4
    third = second + 2 + 12 * fan + 4
    data = (
        struct.pack("<2sHL", b"II", 42, first)
        + directory([(0x8769, 4, 1, second)] * fan)
        + directory([(0x8769, 4, 1, third)] * fan)
        + directory([(1, 0, 1, 0)] * 800 * 8)
    )
    assert ifd.Reader(data).fields(first) == ()


def test_pages_that_share_their_values_cost_no_more_than_the_file_is_long() -> None:
    shared = bytes(10_000)
    position = 8 + len(shared)
    pages = b""
    for _ in range(500):
        size = 2 + 12 * 4 + 4
        values = [(256, 4, 1, 1), (257, 4, 1, 1), (273, 1, len(shared), 8), (279, 1, len(shared), 8)]
        pages += directory(values, position + size)
        position += size
    data = struct.pack("<2sHL", b"II", 42, 8 + len(shared)) + shared + pages
    with pytest.raises(DamagedImage):
        flip(data)


def test_an_endless_namespace_is_not_repeated_for_each_of_many_elements() -> None:
    companion = b"xmlns:h='http://ns.adobe.com/hdr-gain-map/1.0/'"
    xmp = b"<a %s xmlns:b='%s'>%s</a>" % (companion, b"b" * 200_000, b"<b:c/>" * 50_000)
    start = time.process_time()
    assert without_companions(xmp) == b""
    assert time.process_time() - start < 1


def test_any_number_of_orientations_is_taken_out_at_once() -> None:
    exif = b"II*\0\x08\0\0\0" + directory([(0x0112, 3, 1, 1)] * 65534 + [(0x0100, 3, 1, 7)])
    start = time.process_time()
    left = without_orientation(exif)
    assert time.process_time() - start < 1
    assert left.rstrip(b"\0") == (exif[:8] + directory([(0x0100, 3, 1, 7)])).rstrip(b"\0")
    assert len(left) == len(exif)


def test_restart_markers_take_no_memory() -> None:
    with BytesIO() as file:
        Image.new("L", (8, 8)).save(file, "JPEG", restart_marker_blocks=1)
        data = file.getvalue()
    markers = b"".join(bytes([0xFF, number]) for number in range(0xD0, 0xD8)) * 20_000
    data = data[:-2] + markers + data[-2:]
    tracemalloc.start()
    try:
        read_jpeg(data, LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * len(data)


def png_with(*chunks: tuple[bytes, bytes]) -> bytes:
    with BytesIO() as file:
        Image.new("L", (1, 1)).save(file, "PNG")
        data = file.getvalue()
    more = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return data[:33] + more + data[33:]


@pytest.mark.parametrize(("kind", "before"), [(b"iCCP", b"a\0\0"), (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0")])
def test_of_compressed_chunks_that_a_png_may_have_once_the_first_counts(kind: bytes, before: bytes) -> None:
    first, second = (before + zlib.compress(text) for text in (b"first", b"second"))
    turned = flip(png_with((kind, first), (kind, second), (b"iTXt", b"a\0\0\0\0\0b")))
    assert first in turned
    assert second not in turned
    assert b"iTXta" in turned


def test_jpeg_2000_is_not_read() -> None:
    with BytesIO() as file:
        Image.new("RGB", (4, 4)).save(file, "JPEG2000")
        data = file.getvalue()
    with pytest.raises(UnsupportedImage):
        flip(data)


#: For images that are large and hold next to nothing.
ROOMY = Limits(max_pixels=10**8, max_frames=1, max_total_pixels=10**8)

#: More pixels than are decoded or encoded in Python.
SIDE = 3200


def qoi(side: int, pixels: bytes) -> bytes:
    return struct.pack(">4sIIBB", b"qoif", side, side, 3, 0) + pixels + b"\0\0\0\0\0\0\0\1"


def all_black_qoi(side: int) -> bytes:
    """Encode runs of 62 pixels, the longest there are, and a last one of the rest (QOI_OP_RUN)."""
    runs, rest = divmod(side * side, 62)
    return qoi(side, b"\xfd" * runs + bytes([0xC0 | rest - 1]))


def rle_bmp(pixels: bytes) -> bytes:
    """Encode a BMP of two by two pixels in 8-bit runs, with a palette of two colours."""
    info = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 8, 1, len(pixels), 0, 0, 2, 2)
    palette = bytes((0, 0, 200, 0, 0, 200, 0, 0))
    offset = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + info + palette + pixels


def to_png(data: bytes) -> None:
    with BytesIO() as sink:
        process(mapped(data), sink, Recipe(Turn.FLIP, format=Format.PNG), ROOMY)


@pytest.mark.parametrize(
    ("head", "pixel"),
    [
        (b"P6 %d %d 254\n" % (SIDE, SIDE), b"\0\0\0"),  # an odd maximum
        (b"P2 %d %d 255\n" % (SIDE, SIDE), b"0 "),
        (b"P1 %d %d\n" % (SIDE, SIDE), b"0\n"),
    ],
)
def test_a_ppm_that_would_be_decoded_in_python_for_long_is_refused(head: bytes, pixel: bytes) -> None:
    with pytest.raises(TooManyPixels, match="Convert it to PNG"):
        to_png(head + pixel * (SIDE * SIDE))


def test_a_qoi_that_would_be_decoded_in_python_for_long_is_refused() -> None:
    with pytest.raises(TooManyPixels, match="Convert it to PNG"):
        to_png(qoi(SIDE, bytes(SIDE * SIDE)))


def test_a_bmp_of_runs_that_give_nothing_is_refused() -> None:
    with pytest.raises(TooManyPixels, match="Convert it to PNG"):
        to_png(rle_bmp(b"\0\0" * 10_000_001))


def test_many_pixels_in_few_steps_are_decoded() -> None:
    to_png(all_black_qoi(SIDE))
    to_png(b"P6 %d %d 255\n" % (SIDE, SIDE) + bytes(3 * SIDE * SIDE))
    to_png(rle_bmp(b"\2\0\0\0\2\1\0\1"))


def test_a_qoi_that_would_be_encoded_in_python_for_long_is_refused() -> None:
    with BytesIO() as sink, pytest.raises(TooManyPixels, match="format=png"):
        process(mapped(all_black_qoi(SIDE)), sink, Recipe(Turn.FLIP), ROOMY)


@pytest.mark.parametrize("line_end", [b"\n", b"\r"])
def test_a_comment_in_the_header_of_a_ppm_may_be_long_but_not_endless(line_end: bytes) -> None:
    rest = b"2 2 255\n" + bytes(range(12))
    flipped = flip(b"P6\n" + rest).removeprefix(b"P6\n")
    assert flip(b"P6\n#" + b"#" * 65_000 + line_end + rest).endswith(b"#\n" + flipped)
    assert flip(b"P6\n#" + b"#" * 65_000 + line_end + rest + bytes(10_000)).endswith(b"#\n" + flipped)
    with pytest.raises(DamagedImage, match="header does not end"):
        flip(b"P6\n#" + b"#" * 66_000 + line_end + rest)
    with pytest.raises(DamagedImage, match="header does not end"):
        flip(b"P6 2 2 255#" + b"#" * 66_000 + line_end + b"\n" + bytes(range(12)))
    with pytest.raises(DamagedImage, match="header does not end"):
        flip(b"P5 2 2#" + b"#" * 66_000)


def test_a_large_ppm_without_comments_has_a_header_all_the_same() -> None:
    for kind, sample_bytes in ((b"P5", 1), (b"P6", 3)):
        flip(kind + b" 300 300 255\n" + b"#" * (300 * 300 * sample_bytes))
    flip(b"P4 1000 1000\n" + b"#" * (125 * 1000))


@pytest.mark.parametrize("kind", [b"P2", b"P3"])
def test_a_plain_ppm_has_so_many_comments_and_no_more(kind: bytes) -> None:
    pixels = b"0 " * 12
    flip(kind + b" 2 2 255\n" + b"#\n" * 1000 + pixels)
    with pytest.raises(DamagedImage, match="comments"):
        flip(kind + b" 2 2 255\n" + b"#\n" * 1001 + pixels)
