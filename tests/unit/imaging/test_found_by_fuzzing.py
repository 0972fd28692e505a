"""Files that tests/fuzz has found: we failed on them, or answered with an image that no reader accepts."""

from __future__ import annotations

import io
import struct

import pytest
from support import specimens
from support.oracle import grid_of, psnr
from support.specimens import encoded, natural, noise_image, processed, with_chunk, with_segment

from server.errors import DamagedImage
from server.imaging.codecs import Format

SIZE = (16, 8)
FRAME = specimens.GifFrame(grid_of(noise_image("L", (2, 2)).point(lambda sample: sample % 16)))


@pytest.mark.parametrize("output", [None, Format.JPEG])
@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (b"pHYs", b""),
        (b"gAMA", b"\0\0\0"),
        (b"cHRM", bytes(31)),
        (b"sRGB", b""),
        (b"tRNS", bytes(5)),
        (b"iCCP", b"name\0\1"),
        (b"iCCP", b"name"),
        (b"zTXt", b"name\0\1"),
    ],
)
def test_a_chunk_that_decoders_stumble_over_is_left_out(
    kind: bytes, body: bytes, output: Format | None
) -> None:
    plain = encoded(noise_image("RGB", SIZE), "PNG")
    ours = processed(with_chunk(plain, kind, body), "flip", output=output)
    assert ours.data == processed(plain, "flip", output=output).data


def test_a_chunk_whose_type_is_no_word_is_damage() -> None:
    data = with_chunk(encoded(noise_image("RGB", SIZE), "PNG"), b"p\x80Ys", bytes(9))
    with pytest.raises(DamagedImage):
        processed(data, "flip")


def test_a_png_whose_pixel_chunks_are_empty_has_no_pixels() -> None:
    data = b"\x89PNG\r\n\x1a\n" + specimens.header_chunk(SIZE, 8, 2) + specimens.chunk(b"IDAT", b"")
    with pytest.raises(DamagedImage):
        processed(data + specimens.chunk(b"IEND", b""), "flip")


def gif_with(extension: bytes) -> bytes:
    data = specimens.gif((2, 2), specimens.gif_palette(0), [FRAME])
    return data[:-1].replace(b"\x21\xf9", extension + b"\x21\xf9", 1) + data[-1:]


@pytest.mark.parametrize(
    "extension", [b"\x21\xff\x0fNETSCAPE2.0\x03\x01\0\0\0", b"\x21\xf9\x01\0\0", b"\x21\x01\x01\0\0"]
)
def test_an_extension_that_decoders_stumble_over_is_damage(extension: bytes) -> None:
    with pytest.raises(DamagedImage):
        processed(gif_with(extension), "flip")


@pytest.mark.parametrize("extension", [b"\x21\0\0", b"\x21\xff\x0bNETSCAPE2.0\0"])
def test_an_empty_extension_is_left_out(extension: bytes) -> None:
    outcome = processed(gif_with(extension), "flip")
    outcome.image.load()
    assert outcome.data == processed(gif_with(b""), "flip").data


def test_a_jpeg_of_red_and_coarser_green_and_blue_comes_back() -> None:
    plain = encoded(natural((64, 48)), "JPEG", subsampling="4:2:0", quality=95)
    without_jfif = plain[:2] + plain[4 + int.from_bytes(plain[4:6], "big") :]
    stored = with_segment(without_jfif, 0xEE, b"Adobe\0\x64\0\0\0\0\0")
    before = specimens.Image.open(io.BytesIO(stored))
    assert psnr(grid_of(before), grid_of(processed(stored, "orient").image)) > 40


def tiff(order: str, *pages: tuple[int, int, int | None]) -> bytes:
    """Return a TIFF whose pages are two by two pixels of noise.

    Args:
        order: of bytes, as for `struct`.
        pages: bits of a sample, samples, and what the last sample is.
    """
    data, link = bytearray(struct.pack(order + "2sHL", b"II" if order == "<" else b"MM", 42, 0)), 4
    for bits, samples, extra in pages:
        pixels = specimens.noise(4 * samples * bits // 8, bits)
        width = struct.pack(order + "HH", bits, bits if samples > 1 else 0)
        tags = [(256, 2), (257, 2), (259, 1), (262, 1), (277, samples), (278, 2)]
        tags += [] if extra is None else [(338, extra)]
        entries = [struct.pack(order + "HHLHH", tag, 3, 1, value, 0) for tag, value in tags]
        entries.append(struct.pack(order + "HHL", 258, 3, samples) + width)
        entries += [
            struct.pack(order + "HHLL", tag, 4, 1, value)
            for tag, value in ((273, len(data)), (279, len(pixels)))
        ]
        data += pixels
        struct.pack_into(order + "L", data, link, len(data))
        data += (
            struct.pack(order + "H", len(entries))
            + b"".join(sorted(entries, key=lambda entry: entry[:2][:: 1 if order == ">" else -1]))
            + bytes(4)
        )
        link = len(data) - 4
    return bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
def test_gray_that_is_multiplied_by_its_alpha_comes_back_as_it_is_meant(order: str) -> None:
    outcome = processed(tiff(order, (8, 2, 1)), "flip")
    assert outcome.image.mode == "LA"


@pytest.mark.parametrize("order", ["<", ">"])
def test_pages_of_all_depths_go_into_one_file(order: str) -> None:
    given = tiff(order, (16, 1, None), (8, 1, None), (16, 1, None))
    with specimens.Image.open(io.BytesIO(given)) as before, processed(given, "orient").image as after:
        for page in range(3):
            before.seek(page)
            after.seek(page)
            assert grid_of(after) == grid_of(before)


def bmp_with_alpha(across: int, down: int) -> bytes:
    """Return a BMP of four by two pixels, with a version 3 header and a resolution in pixels per metre."""
    size = struct.pack("<IiiHHIIII", 56, 4, 2, 1, 32, 3, 0, across, down)
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = size + bytes(8) + masks
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + 32, 0, 0, 14 + len(head)) + head + specimens.noise(32)
    )


def test_a_resolution_without_measure_is_left_out_of_a_bmp_with_alpha() -> None:
    outcome = processed(bmp_with_alpha(0xFEFEFEFE, 2835), "flip")
    assert outcome.image.mode == "RGBA"
    assert outcome.image.info["dpi"] == pytest.approx((96, 96), abs=0.1)


def test_the_resolutions_of_a_bmp_with_alpha_change_places_with_its_sides() -> None:
    outcome = processed(bmp_with_alpha(11811, 3780), "transpose")
    assert outcome.image.info["dpi"] == pytest.approx((96, 300), abs=0.1)
