"""Is an answer the flipped picture? Decoded once, and told by its bytes from then on."""

from collections.abc import Iterable
from functools import cached_property
from io import BytesIO
from math import inf, log10

from PIL import Image, ImageChops, ImageOps, ImageStat

#: What a picture that is encoded again at a common quality keeps, and one that is not flipped does not.
LEAST_DB = 28.0

#: A service that gives ever new bytes would fill the memory.
_MOST_KNOWN = 16


class Flipped:
    """Knows right answers to one picture.

    Args:
        picture: the file that is sent.
        known: answers that were found right before; with them the picture is not decoded before it must be.

    Raises:
        ValueError: it is nearly the same upside down, so that no answer could be told from no answer; not
            looked at where there are known ones.
    """

    def __init__(self, picture: bytes, known: Iterable[bytes] = ()) -> None:
        self.picture = picture
        self._known = list(known)
        if not self._known and psnr_db(_upside_down(self._expected), self._expected) >= LEAST_DB:
            raise ValueError("this picture looks the same upside down; choose another one")

    @cached_property
    def _expected(self) -> Image.Image:
        return _upside_down(_opened(self.picture))

    def fault_of(self, answer: bytes) -> str | None:
        """What is wrong with an answer; None if it is the flipped picture."""
        if answer in self._known:
            return None
        try:
            image = _opened(answer)
        except Exception as error:  # noqa: BLE001 whatever the decoder says of it, it is no picture
            return f"it is no picture ({error})"
        if image.size != self._expected.size:
            return (
                f"it is {image.width} x {image.height}, not {self._expected.width} x {self._expected.height}"
            )
        if (fidelity_db := psnr_db(image, self._expected)) < LEAST_DB:
            return f"it is not the flipped picture ({fidelity_db:.1f} dB)"
        if len(self._known) < _MOST_KNOWN:
            self._known.append(answer)
        return None

    def fidelity_db(self, answer: bytes) -> float:
        """How near an answer comes to the flipped picture: peak signal-to-noise ratio in decibels."""
        return psnr_db(_opened(answer), self._expected)


def psnr_db(one: Image.Image, other: Image.Image) -> float:
    """The peak signal-to-noise ratio of two pictures of one size, in decibels; infinite for equal ones."""
    errors = ImageStat.Stat(ImageChops.difference(one, other))
    mean_squared_error = sum(errors.sum2) / sum(errors.count)
    return 10 * log10(255**2 / mean_squared_error) if mean_squared_error else inf


def _upside_down(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def _opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
