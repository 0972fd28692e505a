"""The eight ways to turn an image, and how an EXIF orientation and a turn combine into one."""

from enum import StrEnum
from typing import NamedTuple

from PIL.Image import Transpose


class Turn(StrEnum):
    """What to do with the image as a person sees it. Rotations are clockwise."""

    FLIP = "flip"
    FLOP = "flop"
    ROTATE_90 = "rotate-90"
    ROTATE_180 = "rotate-180"
    ROTATE_270 = "rotate-270"
    TRANSPOSE = "transpose"
    TRANSVERSE = "transverse"
    ORIENT = "orient"


class Rect(NamedTuple):
    """A rectangle inside a canvas, in pixels, from the top left."""

    x: int
    y: int
    width: int
    height: int


#: Row-major 2x2 matrix that takes a vector in the source (x to the right, y down) to the result.
_Matrix = tuple[int, int, int, int]

_IDENTITY: _Matrix = (1, 0, 0, 1)

_MATRIX_OF: dict[Transpose | None, _Matrix] = {
    None: _IDENTITY,
    Transpose.FLIP_LEFT_RIGHT: (-1, 0, 0, 1),
    Transpose.FLIP_TOP_BOTTOM: (1, 0, 0, -1),
    Transpose.ROTATE_180: (-1, 0, 0, -1),
    Transpose.TRANSPOSE: (0, 1, 1, 0),
    Transpose.TRANSVERSE: (0, -1, -1, 0),
    Transpose.ROTATE_270: (0, -1, 1, 0),  # Pillow counts against the clock: this is a quarter turn with it
    Transpose.ROTATE_90: (0, 1, -1, 0),
}
_TRANSPOSE_OF = {matrix: transpose for transpose, matrix in _MATRIX_OF.items()}

_TRANSPOSE_FOR: dict[Turn, Transpose | None] = {
    Turn.FLIP: Transpose.FLIP_TOP_BOTTOM,
    Turn.FLOP: Transpose.FLIP_LEFT_RIGHT,
    Turn.ROTATE_90: Transpose.ROTATE_270,  # ours is clockwise, Pillow's is not
    Turn.ROTATE_180: Transpose.ROTATE_180,
    Turn.ROTATE_270: Transpose.ROTATE_90,
    Turn.TRANSPOSE: Transpose.TRANSPOSE,
    Turn.TRANSVERSE: Transpose.TRANSVERSE,
    Turn.ORIENT: None,
}

#: What brings stored pixels into view, by EXIF orientation (EXIF 2.32, 4.6.4 A, tag 0x0112).
_UPRIGHT: dict[int, Transpose | None] = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


def compose(orientation: int, turn: Turn) -> Transpose | None:
    """Combine two steps into one: make the stored image upright, then turn it.

    Args:
        orientation: the EXIF orientation, 1 to 8; any other number counts as 1, as in browsers.
        turn: what to do with the image as it is seen.

    Returns:
        Pillow's name for it, or None when the stored pixels are right as they are.
    """
    a, b, c, d = _MATRIX_OF[_TRANSPOSE_FOR[turn]]
    e, f, g, h = _MATRIX_OF[_UPRIGHT.get(orientation)]
    return _TRANSPOSE_OF[(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)]


def oriented(first: int, second: int) -> int:
    """Combine two EXIF orientations into the one that has the effect of both, one after the other."""
    a, b, c, d = _MATRIX_OF[_UPRIGHT[second]]
    e, f, g, h = _MATRIX_OF[_UPRIGHT[first]]
    both = _TRANSPOSE_OF[(a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h)]
    return next(orientation for orientation, transpose in _UPRIGHT.items() if transpose is both)


def swaps_axes(transpose: Transpose | None) -> bool:
    """Tell whether width and height change places."""
    return _MATRIX_OF[transpose][0] == 0


def mirrored_axes(transpose: Transpose | None) -> tuple[bool, bool]:
    """Tell whether rows are reversed and whether columns are, before they change places if they do."""
    a, b, c, d = _MATRIX_OF[transpose]
    return -1 in (b, d), -1 in (a, c)


def turned_size(transpose: Transpose | None, size: tuple[int, int]) -> tuple[int, int]:
    """Return width and height after the turn, in pixels."""
    return (size[1], size[0]) if swaps_axes(transpose) else size


def turned_rect(transpose: Transpose | None, rect: Rect, canvas: tuple[int, int]) -> Rect:
    """Return where a rectangle of the canvas lies after the whole canvas is turned.

    Args:
        transpose: the turn.
        rect: the rectangle before the turn, inside the canvas.
        canvas: width and height of the canvas before the turn, in pixels.
    """
    # How far the rectangle is from each side of the canvas, by the direction from that side inwards.
    distance = {
        (1, 0): rect.x,
        (-1, 0): canvas[0] - rect.x - rect.width,
        (0, 1): rect.y,
        (0, -1): canvas[1] - rect.y - rect.height,
    }
    a, b, c, d = _MATRIX_OF[transpose]
    return Rect(distance[a, b], distance[c, d], *turned_size(transpose, (rect.width, rect.height)))


def enclosing(one: Rect, other: Rect) -> Rect:
    """Return the smallest rectangle that contains both."""
    x, y = min(one.x, other.x), min(one.y, other.y)
    right = max(one.x + one.width, other.x + other.width)
    bottom = max(one.y + one.height, other.y + other.height)
    return Rect(x, y, right - x, bottom - y)
