"""Composition of animation frames on one canvas, as a person sees them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from PIL import Image

_CLEAR = (0, 0, 0, 0)
_OPAQUE = (255, 255)


class Disposal(Enum):
    """What happens to a frame after it was shown."""

    KEEP = auto()
    CLEAR = auto()
    RESTORE = auto()


@dataclass(frozen=True, slots=True)
class Layer:
    """One stored frame.

    Args:
        image: its pixels, in mode RGBA.
        place: its left and top edge on the canvas.
        duration_ms: how long it shows.
        is_laid_over: False when it replaces what is under it, transparent pixels and all.
        disposal: what becomes of it.
    """

    image: Image.Image
    place: tuple[int, int]
    duration_ms: float
    is_laid_over: bool
    disposal: Disposal


def composed(size: tuple[int, int], layers: Iterable[Layer]) -> Iterator[tuple[Image.Image, float]]:
    """Lay the frames over each other on a canvas that starts out transparent, as browsers do.

    Pillow fills what no frame covers with a background colour or with black, and forgets to take back an APNG
    frame that was laid over others.

    Args:
        size: of the canvas, in pixels.
        layers: the frames in order; decoded one by one.

    Yields:
        The whole canvas, in mode RGB when nothing is transparent and in mode RGBA otherwise, and how long it
        shows, in milliseconds.
    """
    canvas = Image.new("RGBA", size)
    for layer in layers:
        before = canvas.copy() if layer.disposal is Disposal.RESTORE else canvas
        if layer.is_laid_over:
            canvas.alpha_composite(layer.image, layer.place)
        else:
            canvas.paste(layer.image, layer.place)
        is_opaque = canvas.getchannel("A").getextrema() == _OPAQUE
        yield canvas.convert("RGB") if is_opaque else canvas.copy(), layer.duration_ms
        if layer.disposal is Disposal.CLEAR:
            x, y = layer.place
            canvas.paste(_CLEAR, (x, y, x + layer.image.width, y + layer.image.height))
        canvas = before
