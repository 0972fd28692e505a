"""Limits of what an image may cost, told from its header before anything is decoded, and of its result."""

from dataclasses import dataclass

from server.errors import ResultTooLarge, TooManyFrames, TooManyPixels


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest image we decode, and the largest result.

    Args:
        max_pixels: width times height of one frame or page that is decoded.
        max_frames: frames of an animation, pages of a TIFF.
        max_total_pixels: canvas pixels times frames; for a TIFF, the sum over its pages.
        max_result_bytes: of the result, as it is sent.
        max_lossless_pixels: width times height of a JPEG that is turned without being decoded; it counts
            where it is more than `max_pixels`.
    """

    max_pixels: int
    max_frames: int
    max_total_pixels: int
    max_result_bytes: int = 2**63 - 1
    max_lossless_pixels: int = 0

    def check_size(self, width: int, height: int, why_decoded: str = "") -> None:
        """Refuse a frame that is too large to be decoded.

        Args:
            width: in pixels.
            height: in pixels.
            why_decoded: for a JPEG, why it cannot be turned without that.

        Raises:
            TooManyPixels: with the figures.
        """
        reason = f" for an image that has to be decoded, as {why_decoded}" if why_decoded else ""
        self._check(width, height, self.max_pixels, reason)

    def check_lossless_size(self, width: int, height: int) -> None:
        """Refuse a JPEG that is too large, even if it need not be decoded.

        Raises:
            TooManyPixels: with the figures.
        """
        self._check(width, height, max(self.max_pixels, self.max_lossless_pixels), "")

    @staticmethod
    def _check(width: int, height: int, most: int, reason: str) -> None:
        if width * height > most:
            raise TooManyPixels(
                f"The image is {width} x {height} = {width * height} pixels; "
                f"the limit is {most}{reason}. Send a smaller one.",
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

    def check_result(self, nbytes: int) -> None:
        """Refuse a result that is too large.

        Args:
            nbytes: that it has, or will have at least.

        Raises:
            ResultTooLarge: with the figures.
        """
        if nbytes > self.max_result_bytes:
            raise ResultTooLarge(
                f"The result would have {nbytes} bytes or more; the limit is {self.max_result_bytes}. "
                "Ask for another format, such as jpeg or webp, or send a smaller image.",
            )


class Tally:
    """The bytes of a result that is made in parts, which is refused as soon as they are too many."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0

    def add(self, nbytes: int) -> None:
        """Count another part, before the next one is made.

        Raises:
            ResultTooLarge: with the figures.
        """
        self._bytes += nbytes
        self._limits.check_result(self._bytes)
