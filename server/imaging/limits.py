"""Limits of what an image may cost, checked against its header before anything is decoded."""

from dataclasses import dataclass

from server.errors import TooManyFrames, TooManyPixels


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image we decode.

    Args:
        max_pixels: width times height of one frame or page.
        max_frames: frames of an animation, pages of a TIFF.
        max_total_pixels: canvas pixels times frames; for a TIFF, the sum over its pages.
    """

    max_pixels: int
    max_frames: int
    max_total_pixels: int

    def check_size(self, width: int, height: int) -> None:
        """Refuse a frame that is too large.

        Raises:
            TooManyPixels: with the figures.
        """
        if width * height > self.max_pixels:
            raise TooManyPixels(
                f"The image is {width} x {height} = {width * height} pixels; "
                f"the limit is {self.max_pixels}. Send a smaller one.",
            )

    def check_frames(self, frames: int) -> None:
        """Refuse too many frames. Callers stop counting at one above the limit.

        Raises:
            TooManyFrames: with the figures.
        """
        if frames > self.max_frames:
            raise TooManyFrames(
                f"The image has more than {self.max_frames} frames, which is the limit. Send fewer frames.",
            )

    def check_total(self, pixels: int) -> None:
        """Refuse an animation that is too large as a whole.

        Args:
            pixels: of all frames together, each counted as a full canvas.

        Raises:
            TooManyPixels: with the figures.
        """
        if pixels > self.max_total_pixels:
            raise TooManyPixels(
                f"All frames of the image together have {pixels} pixels; "
                f"the limit is {self.max_total_pixels}. Send fewer or smaller frames.",
            )
