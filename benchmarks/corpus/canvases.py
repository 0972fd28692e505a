"""Decoded images as bytes, and how they are turned and compared: no decoder, and no numbers of our own.

A canvas is turned by copying whole rows and columns, and compared as a whole; ImageMagick measures the
difference of two that are not equal.
"""

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.corpus.programs import run

#: Samples of red, green, blue and alpha.
_SAMPLES = 4

#: Type codes of `array` for a pixel, by bits per sample.
_PIXEL = {8: "I", 16: "Q"}

_ALPHA_TO_MASK = bytes([0]) + bytes([255]) * 255


@dataclass(frozen=True, slots=True)
class Canvas:
    """One frame or page as a viewer shows it.

    Attributes:
        depth: bits per sample, 8 or 16; those of 16 are little-endian.
        rgba: the samples, row by row, alpha not multiplied.
    """

    width: int
    height: int
    depth: int
    rgba: bytes

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in pixels."""
        return self.width, self.height

    @property
    def is_opaque(self) -> bool:
        """Whether every pixel hides what is behind it."""
        width = self.depth // 8
        alphas = (self.rgba[3 * width + byte :: _SAMPLES * width] for byte in range(width))
        return all(alpha.count(0xFF) == len(alpha) for alpha in alphas)

    def visible(self) -> "Canvas":
        """Return it with black for the colours of transparent pixels, which nobody sees."""
        width = self.depth // 8
        step = _SAMPLES * width
        alphas = [self.rgba[3 * width + byte :: step] for byte in range(width)]
        masks = [int.from_bytes(alpha.translate(_ALPHA_TO_MASK)) for alpha in alphas]
        mask = masks[0] | masks[-1]
        count = self.width * self.height
        samples = bytearray(self.rgba)
        for position in range(3 * width):
            channel = int.from_bytes(self.rgba[position::step])
            samples[position::step] = (channel & mask).to_bytes(count)
        return replace(self, rgba=bytes(samples))


def flip(canvas: Canvas) -> Canvas:
    """Mirror top to bottom."""
    row = len(canvas.rgba) // canvas.height
    rows = (canvas.rgba[y * row : (y + 1) * row] for y in reversed(range(canvas.height)))
    return replace(canvas, rgba=b"".join(rows))


def half_turn(canvas: Canvas) -> Canvas:
    """Turn by 180 degrees."""
    return replace(canvas, rgba=array(_PIXEL[canvas.depth], canvas.rgba)[::-1].tobytes())


def transpose(canvas: Canvas) -> Canvas:
    """Mirror at the diagonal from top left to bottom right."""
    pixels = array(_PIXEL[canvas.depth], canvas.rgba)
    columns = (pixels[x :: canvas.width].tobytes() for x in range(canvas.width))
    return Canvas(canvas.height, canvas.width, canvas.depth, b"".join(columns))


def flop(canvas: Canvas) -> Canvas:
    """Mirror left to right."""
    return flip(half_turn(canvas))


def same(canvas: Canvas) -> Canvas:
    """Leave it as it is."""
    return canvas


def rotate_90(canvas: Canvas) -> Canvas:
    """Turn clockwise by a quarter."""
    return flop(transpose(canvas))


def rotate_270(canvas: Canvas) -> Canvas:
    """Turn anticlockwise by a quarter."""
    return flip(transpose(canvas))


def transverse(canvas: Canvas) -> Canvas:
    """Mirror at the diagonal from top right to bottom left."""
    return half_turn(transpose(canvas))


#: What makes a stored image upright, by the value of its EXIF orientation (EXIF 2.32, tag 0112).
UPRIGHT = {
    1: same,
    2: flop,
    3: half_turn,
    4: flip,
    5: transpose,
    6: rotate_90,
    7: transverse,
    8: rotate_270,
}

#: The operations, by their path and query.
TURNS = {
    "flip": flip,
    "flop": flop,
    "rotate?angle=90": rotate_90,
    "rotate?angle=180": half_turn,
    "rotate?angle=270": rotate_270,
    "transpose": transpose,
    "transverse": transverse,
    "orient": same,
}

#: What jpegtran calls them.
_JPEGTRAN = {
    "flip": ("-flip", "vertical"),
    "flop": ("-flip", "horizontal"),
    "rotate?angle=90": ("-rotate", "90"),
    "rotate?angle=180": ("-rotate", "180"),
    "rotate?angle=270": ("-rotate", "270"),
    "transpose": ("-transpose",),
    "transverse": ("-transverse",),
    "orient": (),
}


def jpegtran_arguments(orientation: int, turn: str) -> tuple[str, ...]:
    """Return what tells jpegtran to make an image upright and to turn it, in one step."""
    sample = Canvas(3, 2, 8, bytes(range(24)))
    wanted = TURNS[turn](UPRIGHT[orientation](sample))
    return next(_JPEGTRAN[name] for name, turned in TURNS.items() if turned(sample) == wanted)


def difference_db(one: Canvas, other: Canvas) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite if nobody sees a difference.

    Where there is transparency, it is the least of three: over black, over white, and of the alpha alone.
    """
    assert (one.size, one.depth) == (other.size, other.depth)
    if one.rgba == other.rgba:
        return math.inf
    is_opaque = one.is_opaque and other.is_opaque
    if not is_opaque and one.visible().rgba == other.visible().rgba:
        return math.inf
    views: Sequence[Sequence[str]] = [["-alpha", "off"]]
    if not is_opaque:
        over = [["-background", colour, "-alpha", "remove", "-alpha", "off"] for colour in ("black", "white")]
        views = [*over, ["-alpha", "extract"]]
    with TemporaryDirectory() as directory:
        files = [_written(canvas, Path(directory, name)) for canvas, name in ((one, "a"), (other, "b"))]
        return min(_psnr_db(files, view) for view in views)


def _written(canvas: Canvas, file: Path) -> list[str]:
    file.write_bytes(canvas.rgba)
    return raw_arguments(canvas, file)


def raw_arguments(canvas: Canvas, file: Path) -> list[str]:
    """Return what makes ImageMagick read the samples of a canvas from a file."""
    size = f"{canvas.width}x{canvas.height}"
    return ["-size", size, "-depth", str(canvas.depth), "-endian", "LSB", f"rgba:{file}"]


def _psnr_db(files: Sequence[Sequence[str]], view: Sequence[str]) -> float:
    operands = [word for file in files for word in ("(", *file, *view, ")")]
    done = run("convert", *operands, "-metric", "RMSE", "-compare", "-format", "%[distortion]", "info:-")
    error = float(done.output)
    return math.inf if error == 0 else -20 * math.log10(error)


def over_white(canvas: Canvas) -> Canvas:
    """Return it as it looks on white."""
    with TemporaryDirectory() as directory:
        source = _written(canvas, Path(directory, "a"))
        flat = ["-background", "white", "-alpha", "remove", "-alpha", "opaque"]
        done = run("convert", *source, *flat, "-depth", str(canvas.depth), "-endian", "LSB", "rgba:-")
    return replace(canvas, rgba=done.output)


def with_hard_edges(canvas: Canvas, undecided: Canvas | None = None) -> Canvas:
    """Return it with no partial transparency, as a GIF holds it: half of alpha and less is transparent.

    Args:
        canvas: of 8 bits per sample.
        undecided: what decides for pixels at the limit, where the alpha of `canvas` was rounded.
    """
    assert canvas.depth == 8  # noqa: PLR2004 as every GIF
    alpha = canvas.rgba[3::4]
    hard = int.from_bytes(alpha.translate(bytes(128) + bytes([255]) * 128))
    if undecided is not None:
        limit = int.from_bytes(alpha.translate(bytes(127) + bytes([255, 255]) + bytes(127)))
        hard = hard & ~limit | int.from_bytes(undecided.rgba[3::4]) & limit
    samples = bytearray(canvas.rgba)
    samples[3::4] = hard.to_bytes(len(alpha))
    return replace(canvas, rgba=bytes(samples))


def colours(canvas: Canvas) -> int:
    """Return how many colours it has that can be seen."""
    visible = canvas.visible()
    return len(set(array(_PIXEL[canvas.depth], visible.rgba)))
