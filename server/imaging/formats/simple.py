"""Formats that Pillow reads and writes whole: what to check before it decodes, and what to pass on."""

from collections.abc import Callable
from typing import Any

from PIL import ImageFile

from server.imaging.codecs import Data, Format, damaged
from server.imaging.formats import avif, bmp

_QOI_END = b"\0\0\0\0\0\0\0\1"


def _check_qoi(data: Data) -> None:
    """Check that the end marker is there (QOI 1.0)."""
    if data[-len(_QOI_END) :] != _QOI_END:
        raise damaged(Format.QOI, "it is cut off")


def _check_ppm(data: Data) -> None:
    """Check that a blank follows the last number of a plain file: otherwise digits may be missing."""
    if data[:2] in (b"P2", b"P3") and data[-1:].isdigit():
        raise damaged(Format.PPM, "it is cut off")


_CHECKS: dict[Format, Callable[[Data], None]] = {
    Format.AVIF: avif.check_end,
    Format.QOI: _check_qoi,
    Format.PPM: _check_ppm,
}


def check_end(form: Format, data: Data) -> None:
    """Refuse a file whose end is missing, where its decoder would not.

    Raises:
        DamagedImage: it is cut off.
    """
    if form in _CHECKS:
        _CHECKS[form](data)


def kept_settings(form: Format, data: Data) -> dict[str, Any]:
    """Return settings for `save` that keep what Pillow does not carry over, for a format that stays."""
    if form is Format.QOI:
        return {"colorspace": "sRGB"} if data[13] == 0 else {}  # the only name the writer knows
    if form is Format.AVIF:
        return {"subsampling": avif.subsampling(data)}
    return {}


def check_rows(form: Format, image: ImageFile.ImageFile, data: Data) -> None:
    """Refuse a file whose last row is cut off, where its decoder would not.

    Raises:
        DamagedImage: it is cut off.
    """
    if form is Format.BMP:
        bmp.check_rows(image, data)


def is_deep(form: Format, image: ImageFile.ImageFile, data: Data) -> bool:
    """Tell whether Pillow would silently decode more than 8 bits per channel to 8."""
    if form is Format.AVIF:
        return avif.is_deep(data)
    if form is Format.PPM:
        arguments = image.tile[0].args
        return image.mode == "RGB" and isinstance(arguments, tuple) and arguments[-1] > 255  # noqa: PLR2004
    return False
