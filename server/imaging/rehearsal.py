"""A rehearsal: every format is read and written once, before images of clients come."""

from contextlib import suppress
from io import BytesIO

from server.imaging.codecs import OUTPUT_FORMATS, Effort, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

_SIDE = 8
_LIMITS = Limits(max_pixels=_SIDE**2, max_frames=1, max_total_pixels=_SIDE**2)
_PPM = b"P6 %d %d 255\n" % (_SIDE, _SIDE) + bytes(3 * _SIDE**2)


def rehearse() -> None:
    """Turn a tiny image into each format, and that once more.

    Some libraries look at the machine with their first image (libjpeg-turbo on arm64 reads `/proc/cpuinfo`),
    and Pillow imports some modules that late. An engine cannot open files for either once it is jailed.
    """
    for form in OUTPUT_FORMATS:
        with suppress(Exception):  # the first image that needs this format will tell
            _turned(_turned(_PPM, form), None)


def _turned(data: bytes, form: Format | None) -> bytes:
    sink = BytesIO()
    process(data, sink, Recipe(Turn.FLIP, form, effort=Effort.LOW), _LIMITS)
    return sink.getvalue()
