"""QOIs by the specification, chunk by chunk; ImageMagick of today's distributions reads none."""

import struct

import pytest
from support.oracle import Grid, expected, grid_of
from support.specimens import encoded, noise_image, processed

from server.errors import DamagedImage
from server.imaging.codecs import Format

END = b"\0\0\0\0\0\0\0\1"
BLACK, CLEAR = (0, 0, 0, 255), (0, 0, 0, 0)


def qoi(chunks: bytes, width: int, channels: int = 4) -> bytes:
    return struct.pack(">4sIIBB", b"qoif", width, 1, channels, 0) + chunks + END


#: Chunks of a row, and its pixels.
ROWS = {
    "a run first, then what it left": (b"\xc1\xfe\x01\x02\x03\x35", [BLACK, BLACK, (1, 2, 3, 255), BLACK]),
    "an index that was never seen": (b"\x35\xfe\x01\x02\x03", [CLEAR, (1, 2, 3, 0)]),
    "the zero pixel by its index": (b"\xfe\x01\x02\x03\x00", [(1, 2, 3, 255), CLEAR]),
    "differences around zero": (
        b"\x40\x7f\x6a",
        [(254, 254, 254, 255), (255, 255, 255, 255), (255, 255, 255, 255)],
    ),
    "luma around zero": (b"\x80\x00\xbf\xff", [(216, 224, 216, 255), (254, 255, 254, 255)]),
    "the longest run": (b"\xff\x01\x02\x03\x04\xfd", [(1, 2, 3, 4)] * 63),
    "a run beyond the end": (b"\xc5", [BLACK] * 3),
    # 3 * 1 + 5 * 2 + 7 * 3 + 11 * 4 = 78
    "an index of all four": (
        b"\xff\x01\x02\x03\x04\xff\x09\x09\x09\x09\x0e",
        [(1, 2, 3, 4), (9, 9, 9, 9), (1, 2, 3, 4)],
    ),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("channels", [3, 4])
def test_every_chunk_is_what_it_says(name: str, channels: int) -> None:
    chunks, row = ROWS[name]
    stored = Grid(len(row), 1, tuple(pixel[:channels] for pixel in row))
    for output in (None, Format.PNG):
        ours = processed(qoi(chunks, len(row), channels), "flop", output=output)
        assert grid_of(ours.image.convert("RGBA" if channels == 4 else "RGB")) == expected(stored, "flop")


def test_the_end_is_no_pixel() -> None:
    with pytest.raises(DamagedImage):
        processed(qoi(b"\xfe\x01\x02\x03", 2))


@pytest.mark.parametrize("kind", ["RGB", "RGBA"])
def test_noise_is_noise(kind: str) -> None:
    image = noise_image(kind, (40, 30))
    ours = processed(encoded(image, "QOI"), "flip", output=Format.PNG)
    assert grid_of(ours.image) == expected(grid_of(image), "flip")
