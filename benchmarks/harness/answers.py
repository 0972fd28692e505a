"""Whether an answer is the flipped image: decoded the first time, and compared byte by byte from then on."""

from collections.abc import Iterable
from functools import cached_property
from io import BytesIO
from math import inf, log10

from PIL import Image, ImageChops, ImageOps, ImageStat

#: What an image that is encoded again at a common quality keeps, and one that is not flipped does not.
LEAST_DB = 28.0

#: A service whose answers differ every time must not fill the memory.
_MOST_KNOWN = 16


class Flipped:
    """The right answers to one image.

    Args:
        image: the file that is sent.
        known: answers that were found right before; with them the image is decoded only when it has to be.

    Raises:
        ValueError: it looks nearly the same upside down, so that a wrong answer could not be noticed; not
            checked where there are known ones.
    """

    def __init__(self, image: bytes, known: Iterable[bytes] = ()) -> None:
        self.image = image
        self._known = list(known)
        if not self._known and psnr_db(_upside_down(self._expected), self._expected) >= LEAST_DB:
            raise ValueError("this image looks the same upside down; choose another one")

    @cached_property
    def _expected(self) -> Image.Image:
        return _upside_down(_opened(self.image))

    def fault_of(self, answer: bytes) -> str | None:
        """Return what is wrong with an answer, or None if it is the flipped image."""
        if answer in self._known:
            return None
        try:
            image = _opened(answer)
        except Exception as error:  # noqa: BLE001 whatever the decoder raises, it is no image
            return f"it is no image ({error})"
        if image.size != self._expected.size:
            return (
                f"it is {image.width} x {image.height}, not {self._expected.width} x {self._expected.height}"
            )
        if (fidelity := psnr_db(image, self._expected)) < LEAST_DB:
            return f"it is not the flipped image ({fidelity:.1f} dB)"
        if len(self._known) < _MOST_KNOWN:
            self._known.append(answer)
        return None


def fidelity_db(image: bytes, answer: bytes) -> float:
    """Compare an answer with Pillow's flip: the peak signal-to-noise ratio in decibels."""
    return psnr_db(_opened(answer), _upside_down(_opened(image)))


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    """Return the peak signal-to-noise ratio of two images of one size, in decibels; infinite if equal."""
    errors = ImageStat.Stat(ImageChops.difference(one, other))
    mean_squared_error = sum(errors.sum2) / sum(errors.count)
    return 10 * log10(255**2 / mean_squared_error) if mean_squared_error else inf


def _upside_down(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
