"""What the metadata of a result may say: which pixels it is about, and how much of it stays."""

from dataclasses import dataclass
from enum import StrEnum

from PIL.Image import Transpose

from server.imaging.geometry import Rect, mirrored_axes, swaps_axes, turned_rect, turned_size


class Strip(StrEnum):
    """How much metadata to leave out."""

    #: None: everything stays that is still true.
    NOTHING = "nothing"
    #: Where the image was taken or what place it shows, and what may say so and cannot be read.
    LOCATION = "location"
    #: All but who made it, who is to be credited, who has the rights, and how its colours are meant.
    PRIVATE = "private"
    #: All but the colours, and of these too what a viewer assumes anyway.
    ALL = "all"


@dataclass(frozen=True, slots=True)
class Policy:
    """How to adapt metadata.

    Args:
        transpose: the turn from the stored pixels to those of the result, None for the same pixels.
        size: width and height of the stored pixels. Coordinates in EXIF are about these, whatever the
            orientation (EXIF 2.32, 4.6.5), and so are the face regions that digiKam and Lightroom write.
        strip: what to leave out.
    """

    transpose: Transpose | None = None
    size: tuple[int, int] = (0, 0)
    strip: Strip = Strip.NOTHING

    @property
    def is_turned(self) -> bool:
        """Tell whether the pixels change places."""
        return self.transpose is not None

    @property
    def swaps_axes(self) -> bool:
        """Tell whether width and height change places."""
        return swaps_axes(self.transpose)

    @property
    def is_mirrored(self) -> bool:
        """Tell whether right and left hand change places, as in a mirror."""
        rows, columns = mirrored_axes(self.transpose)
        return rows ^ columns ^ self.swaps_axes

    @property
    def is_all_stripped(self) -> bool:
        """Tell whether only the colours stay."""
        return self.strip is Strip.ALL

    @property
    def has_resolution(self) -> bool:
        """Tell whether the result says how large its pixels are."""
        return self.strip in (Strip.NOTHING, Strip.LOCATION)

    @property
    def result_size(self) -> tuple[int, int]:
        """Return width and height of the result, in pixels."""
        return turned_size(self.transpose, self.size)

    def turned_area(self, area: tuple[int, ...]) -> tuple[int, ...]:
        """Return where an area of the stored pixels lies in the result (EXIF 2.32, tag 0x9214).

        Args:
            area: of its centre the column and the row; for a circle also its diameter, and for a rectangle
                width and height.

        Raises:
            ValueError: it is none of these, or its centre lies outside the image.
        """
        if not 2 <= len(area) <= 4:  # noqa: PLR2004 - a point, a circle, a rectangle
            raise ValueError("it is no area")
        x, y, *extent = area
        if not (0 <= x < self.size[0] and 0 <= y < self.size[1]):
            raise ValueError("it lies outside the image")
        centre = turned_rect(self.transpose, Rect(x, y, 1, 1), self.size)
        return (centre.x, centre.y, *(reversed(extent) if self.swaps_axes else extent))
