"""Animation frames as a person sees them: composed on one canvas, and how long each shows."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from PIL import Image

from server.imaging.geometry import Rect

_CLEAR = (0, 0, 0, 0)
_OPAQUE = (255, 255)

#: Browsers show a frame that is said to last no longer than this for a tenth of a second.
_NOT_HONOURED_MS = 10


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


class Clock:
    """Durations in the ticks of a format; what rounding leaves over is carried to the next frame.

    Args:
        tick_ms: how long a tick is, in milliseconds.
        most: the highest number of ticks that the format can store.
    """

    def __init__(self, tick_ms: int, most: int) -> None:
        self._tick_ms = tick_ms
        self._most = most
        self._rest = 0.0

    def ticks(self, duration_ms: float) -> int:
        """Return how many ticks the next frame shows, so that it ends within half a tick of its time.

        A duration above 0 never becomes 0, and one that browsers honour stays one that they honour: at the
        price of exact sums, a frame of 16 ms takes two hundredths of a second, because one would be shown for
        ten.
        """
        if duration_ms <= 0:
            return 0
        due = duration_ms / self._tick_ms + self._rest
        least = _NOT_HONOURED_MS // self._tick_ms + 1 if duration_ms > _NOT_HONOURED_MS else 1
        nearest = math.ceil(due - 0.5)
        ticks = min(self._most, max(least, nearest))
        self._rest = due - ticks if ticks == nearest else 0.0  # what a limit changes is not made up for
        return ticks


class Canvas:
    """What browsers show of an animation: nothing at first, then one frame after the other.

    Pillow fills what no frame covers with a background colour or with black, and forgets to take back an APNG
    frame that was laid over others.

    Args:
        size: in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.image = Image.new("RGBA", size)
        self._before = self.image

    def show(self, layer: Layer) -> None:
        """Draw a frame."""
        self._before = self.image.copy() if layer.disposal is Disposal.RESTORE else self.image
        if layer.is_laid_over:
            self.image.alpha_composite(layer.image, layer.place)
        else:
            self.image.paste(layer.image, layer.place)

    def dispose(self, layer: Layer) -> None:
        """Take away the frame that was drawn last, if that is what becomes of it."""
        if layer.disposal is Disposal.CLEAR:
            x, y = layer.place
            self.image.paste(_CLEAR, (x, y, x + layer.image.width, y + layer.image.height))
        self.image = self._before

    def cut(self, rect: Rect) -> Image.Image:
        """Return a part of what is shown."""
        x, y, width, height = rect
        return self.image.crop((x, y, x + width, y + height))

    def is_bare_around(self, inner: Rect, outer: Rect) -> bool:
        """Tell whether the canvas is transparent wherever `outer` reaches beyond `inner`."""
        if inner == outer:
            return True
        alpha = self.cut(outer).getchannel("A")
        x, y = inner.x - outer.x, inner.y - outer.y
        alpha.paste(0, (x, y, x + inner.width, y + inner.height))
        return alpha.getbbox() is None


def composed(size: tuple[int, int], layers: Iterable[Layer]) -> Iterator[tuple[Image.Image, float]]:
    """Lay the frames over each other.

    Args:
        size: of the canvas, in pixels.
        layers: the frames in order; decoded one by one.

    Yields:
        The whole canvas, in mode RGB when nothing is transparent and in mode RGBA otherwise, and how long it
        shows, in milliseconds.
    """
    canvas = Canvas(size)
    for layer in layers:
        canvas.show(layer)
        is_opaque = canvas.image.getchannel("A").getextrema() == _OPAQUE
        yield canvas.image.convert("RGB") if is_opaque else canvas.image.copy(), layer.duration_ms
        canvas.dispose(layer)
