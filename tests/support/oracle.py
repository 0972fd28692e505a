"""The expected answer, computed pixel by pixel: no Pillow transpose, no ImageOps.

An image is a `Grid`: its size and a flat tuple of pixels, row by row. The orientations are copied out of the
EXIF standard (tag 0112) and the turns are coordinates, so that a mistake in the service cannot repeat
itself here.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from PIL import Image, ImageChops

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable


@dataclass(frozen=True, slots=True)
class Grid:
    """An image as plain values."""

    width: int
    height: int
    pixels: tuple[Hashable, ...]

    def __post_init__(self) -> None:
        assert len(self.pixels) == self.width * self.height

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height

    def at(self, x: int, y: int) -> Hashable:
        return self.pixels[y * self.width + x]

    def map(self, change: Callable[[Hashable], Hashable]) -> Grid:
        """Apply the same change to every pixel, where it stands."""
        return Grid(self.width, self.height, tuple(change(pixel) for pixel in self.pixels))


#: EXIF 2.32, tag 0112: where the zeroth row and the zeroth column of the stored image are seen.
ORIENTATIONS: dict[int, tuple[str, str]] = {
    1: ("top", "left side"),
    2: ("top", "right side"),
    3: ("bottom", "right side"),
    4: ("bottom", "left side"),
    5: ("left side", "top"),
    6: ("right side", "top"),
    7: ("right side", "bottom"),
    8: ("left side", "bottom"),
}

#: For the output's (x, y) and the seen image's width and height: whether the sides swap, and where to look.
TURNS: dict[str, tuple[bool, Callable[[int, int, int, int], tuple[int, int]]]] = {
    "flip": (False, lambda x, y, _w, h: (x, h - 1 - y)),
    "flop": (False, lambda x, y, w, _h: (w - 1 - x, y)),
    "rotate-90": (True, lambda x, y, _w, h: (y, h - 1 - x)),
    "rotate-180": (False, lambda x, y, w, h: (w - 1 - x, h - 1 - y)),
    "rotate-270": (True, lambda x, y, w, _h: (w - 1 - y, x)),
    "transpose": (True, lambda x, y, _w, _h: (y, x)),
    "transverse": (True, lambda x, y, w, h: (w - 1 - y, h - 1 - x)),
    "orient": (False, lambda x, y, _w, _h: (x, y)),
}


def upright(stored: Grid, orientation: int) -> Grid:
    """Return what a person sees of a stored image with this EXIF orientation."""
    row_0, column_0 = ORIENTATIONS[orientation]
    rows_run_sideways = row_0.endswith("side")
    width, height = (stored.height, stored.width) if rows_run_sideways else stored.size
    seen: list[Hashable] = [None] * len(stored.pixels)
    for row in range(stored.height):
        from_row = row if row_0 in {"top", "left side"} else stored.height - 1 - row
        for column in range(stored.width):
            from_column = column if column_0 in {"top", "left side"} else stored.width - 1 - column
            x, y = (from_row, from_column) if rows_run_sideways else (from_column, from_row)
            seen[y * width + x] = stored.at(column, row)
    return Grid(width, height, tuple(seen))


def transformed(seen: Grid, turn: str) -> Grid:
    """Return the image, as a person sees it, after the turn."""
    sides_swap, look_at = TURNS[turn]
    width, height = (seen.height, seen.width) if sides_swap else seen.size
    return Grid(
        width,
        height,
        tuple(seen.at(*look_at(x, y, seen.width, seen.height)) for y in range(height) for x in range(width)),
    )


def expected(stored: Grid, turn: str, orientation: int = 1) -> Grid:
    """Return the expected answer to a stored image: what a person sees of it, after the turn."""
    return transformed(upright(stored, orientation), turn)


def grid_of(image: Image.Image) -> Grid:
    """Read a decoded Pillow image."""
    return Grid(image.width, image.height, tuple(image.get_flattened_data()))


def psnr(one: Grid, other: Grid) -> float:
    """Return the peak signal-to-noise ratio in dB of two 8-bit images; infinite when they are equal."""
    assert one.size == other.size
    ours, theirs = samples_of(one), samples_of(other)
    assert len(ours) == len(theirs)
    rows = [Image.frombytes("L", (len(ours), 1), samples) for samples in (ours, theirs)]
    counts = ImageChops.difference(*rows).histogram()
    squares = sum(count * difference**2 for difference, count in enumerate(counts))
    return math.inf if squares == 0 else 10 * math.log10(255**2 * len(ours) / squares)


def samples_of(grid: Grid) -> bytes:
    """Return the samples of an 8-bit image, pixel by pixel."""
    are_several = isinstance(grid.pixels[0], tuple)
    return bytes(chain.from_iterable(grid.pixels) if are_several else grid.pixels)


# --- Animations, put together without Pillow ------------------------------------------------------

Rgba = tuple[int, int, int, int]
CLEAR: Rgba = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Patch:
    """One frame of an animation as it is stored: a rectangle, how it is laid down and how it is taken away.

    Alpha is 0 or 255, so that laying down needs no arithmetic.
    """

    grid: Grid
    left: int = 0
    top: int = 0
    dispose: str = "keep"  # or "background", "previous"
    is_laid_over: bool = True  # or it replaces what was there, holes and all
    duration_ms: int = 100


def displayed(size: tuple[int, int], patches: list[Patch]) -> list[Grid]:
    """Return every frame as a person sees it, on a canvas that starts out clear."""
    width, height = size
    canvas: list[Hashable] = [CLEAR] * (width * height)
    frames = []
    for patch in patches:
        before = list(canvas)
        covered = {
            (patch.top + y) * width + patch.left + x: patch.grid.at(x, y)
            for y in range(patch.grid.height)
            for x in range(patch.grid.width)
        }
        for position, pixel in covered.items():
            if pixel != CLEAR or not patch.is_laid_over:
                canvas[position] = pixel
        frames.append(Grid(width, height, tuple(canvas)))
        if patch.dispose == "previous":
            canvas = before
        elif patch.dispose == "background":
            for position in covered:
                canvas[position] = CLEAR
    return frames


def seen_frames(image: Image.Image) -> list[Grid]:
    """Return every frame of a Pillow image as RGBA, without the colour of transparent pixels."""
    frames = []
    for index in range(getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(grid_of(image.convert("RGBA")).map(lambda pixel: pixel if pixel[3] else CLEAR))
    return frames


# --- JPEG, taken apart without Pillow -------------------------------------------------------------


def jpeg_segments(data: bytes) -> list[tuple[int, bytes]]:
    """Return the marker segments of a JPEG file up to and with the first start of scan."""
    assert data[:2] == b"\xff\xd8"
    segments, position = [], 2
    while not segments or segments[-1][0] != 0xDA:
        assert data[position] == 0xFF
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append((marker, data[position + 4 : position + 2 + length]))
        position += 2 + length
    return segments


# --- PNG, read without Pillow ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Png:
    """A decoded PNG file; samples keep their full depth."""

    depth: int
    colour_type: int
    grid: Grid
    chunks: tuple[tuple[bytes, bytes], ...]

    def chunk(self, name: bytes) -> bytes | None:
        return next((body for kind, body in self.chunks if kind == name), None)


SAMPLES_PER_PIXEL = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png_chunks(data: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """Split a PNG file into its chunks, checking the signature and every checksum."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, position = [], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        assert int.from_bytes(data[position + 8 + length : position + 12 + length], "big") == zlib.crc32(
            kind + body
        )
        chunks.append((kind, body))
        position += 12 + length
    assert chunks[-1][0] == b"IEND"
    return tuple(chunks)


def read_png(data: bytes) -> Png:
    """Decode the still image of a PNG file of any depth and colour type that is not interlaced."""
    chunks = png_chunks(data)
    header = chunks[0][1]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    depth, colour_type, interlaced = header[8], header[9], header[12]
    assert not interlaced
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    return Png(depth, colour_type, _decoded(packed, (width, height), depth, colour_type), chunks)


def read_apng(data: bytes) -> list[Patch]:
    """Decode the frames of an animated PNG file as they are stored; Pillow shows some of them wrongly."""
    chunks = png_chunks(data)
    depth, colour_type = chunks[0][1][8:10]
    controls: list[bytes] = []
    packed: list[bytes] = []
    for kind, body in chunks:
        if kind == b"fcTL":
            controls.append(body)
            packed.append(b"")
        elif kind == b"IDAT" and packed:
            packed[-1] += body
        elif kind == b"fdAT":
            packed[-1] += body[4:]
    patches = []
    for control, body in zip(controls, packed, strict=True):
        _, width, height, left, top, numerator, denominator, dispose, blend = struct.unpack(
            ">IIIIIHHBB", control
        )
        grid = _decoded(body, (width, height), depth, colour_type)
        duration_ms = 1000 * numerator // (denominator or 100)
        disposal = ("keep", "background", "previous")[dispose]
        patches.append(Patch(grid, left, top, disposal, is_laid_over=blend == 1, duration_ms=duration_ms))
    return patches


def _decoded(packed: bytes, size: tuple[int, int], depth: int, colour_type: int) -> Grid:
    width, height = size
    per_pixel = SAMPLES_PER_PIXEL[colour_type]
    bits_per_pixel = depth * per_pixel
    rows = _unfiltered(
        zlib.decompress(packed), height, (width * bits_per_pixel + 7) // 8, max(1, bits_per_pixel // 8)
    )
    pixels: list[Hashable] = []
    for row in rows:
        samples = _samples(row, depth)
        for x in range(width):
            pixel = samples[x * per_pixel : (x + 1) * per_pixel]
            pixels.append(pixel[0] if per_pixel == 1 else pixel)
    return Grid(width, height, tuple(pixels))


def _unfiltered(raw: bytes, height: int, row_bytes: int, step: int) -> list[bytearray]:
    assert len(raw) == height * (row_bytes + 1)
    rows: list[bytearray] = []
    above = bytearray(row_bytes)
    for y in range(height):
        start = y * (row_bytes + 1)
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + row_bytes])
        for i in range(row_bytes):
            left = row[i - step] if i >= step else 0
            up_left = above[i - step] if i >= step else 0
            row[i] = (row[i] + _prediction(kind, left, above[i], up_left)) & 255
        rows.append(row)
        above = row
    return rows


def _prediction(kind: int, left: int, up: int, up_left: int) -> int:
    if kind == 4:
        estimate = left + up - up_left
        return min((left, up, up_left), key=lambda neighbour: abs(estimate - neighbour))
    return (0, left, up, (left + up) // 2)[kind]


def _samples(row: bytearray, depth: int) -> tuple[int, ...]:
    if depth == 16:
        return tuple(row[i] << 8 | row[i + 1] for i in range(0, len(row), 2))
    per_byte = 8 // depth
    mask = (1 << depth) - 1
    return tuple(byte >> (8 - depth * (n + 1)) & mask for byte in row for n in range(per_byte))
