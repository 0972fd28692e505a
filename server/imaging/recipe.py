"""What to do with an image, what the result is, and the run that leads from one to the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from PIL import Image
from PIL.Image import Transpose

from server.imaging.codecs import CODECS, Data, Effort, Format, Sink
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.metadata.policy import Policy, Strip

#: How the result is made: "pixels" are decoded and encoded again; the coefficients of a JPEG only change
#: places ("lossless"), or some of them are mixed and quantized again ("coefficients").
ImagePath = Literal["lossless", "coefficients", "pixels"]

#: What `lap` is called with: the stage that has just ended.
Stage = Literal["decode", "transform", "encode"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to do with an image.

    Args:
        turn: applied to what a person sees.
        format: of the result; None for the source's own.
        quality: 1 to 100; None keeps a JPEG's own tables and a WebP's or AVIF's estimated quality, and
            elsewhere means a good default.
        strip: which metadata to leave out: EXIF, XMP, IPTC, texts, comments and resolution. A colour profile
            goes only with all of it, and only if it is sRGB: without any other the colours would change.
        path: None for lossless where that is possible, and pixels otherwise.
        effort: how long to look for a smaller file, where the encoder has a choice: PNG, WebP and AVIF.
    """

    turn: Turn
    format: Format | None = None
    quality: int | None = None
    strip: Strip = Strip.NOTHING
    path: ImagePath | None = None
    effort: Effort = Effort.NORMAL


@dataclass(frozen=True, slots=True)
class Result:
    """Facts about the image that was written.

    Args:
        format: of the bytes in the sink.
        media_type: for `Content-Type`.
        width, height: of the canvas, in pixels.
        frames: how many there are; pages, for a TIFF.
        path: how it was made.
    """

    format: Format
    media_type: str
    width: int
    height: int
    frames: int
    path: ImagePath


@dataclass(frozen=True, slots=True)
class Run:
    """One call of `process`: what it is given, and what both routes do with it."""

    data: Data
    form: Format
    sink: Sink
    recipe: Recipe
    limits: Limits
    lap: Callable[[Stage], None]

    @property
    def target(self) -> Format:
        """Return the format of the result."""
        return self.recipe.format or self.form

    def result(self, size: tuple[int, int], frames: int = 1, path: ImagePath = "pixels") -> Result:
        """Describe what was written."""
        return Result(self.target, CODECS[self.target].media_type, *size, frames, path)

    def policy(self, transpose: Transpose | None, size: tuple[int, int]) -> Policy:
        """Return how to adapt metadata.

        Args:
            transpose: the turn from the stored pixels to the result.
            size: of the stored pixels.
        """
        return Policy(transpose, size, self.recipe.strip)

    def turn(self, image: Image.Image, transpose: Transpose | None) -> Image.Image:
        """Turn an image, and end the stage."""
        turned = image if transpose is None else image.transpose(transpose)
        self.lap("transform")
        return turned
