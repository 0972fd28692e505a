"""Formats that are read and written whole, by Pillow: what must be checked before it may decode them."""

import re
import struct
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageFile

from server.imaging.codecs import Data, Format, Sink, damaged

_QOI_END = b"\0\0\0\0\0\0\0\1"
_HIGH_BIT_DEPTH, _MONOCHROME, _SUBSAMPLED_X, _SUBSAMPLED_Y = 0x40, 0x10, 0x08, 0x04
_BYTE = 8

_NCLX = b"colrnclx"
_SRGB = b"\0\1\0\x0d"
_AVIF_HEAD_BYTES = 1 << 16

_BMP_HEADER = struct.Struct("<2sIHHI")
_BMP_V4_INFO = struct.Struct("<IiiHHIIiiII4I4s36s3I")
_BITFIELDS = 3


def _check_avif(data: Data) -> None:
    """Every top-level box must end inside the file (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:
            return  # the last box reaches to the end, wherever that is
        position += size
        if size < _BYTE or position > len(data):
            raise damaged(Format.AVIF, "it is cut off")


def _check_qoi(data: Data) -> None:
    """The end marker must be there (QOI 1.0)."""
    if data[-len(_QOI_END) :] != _QOI_END:
        raise damaged(Format.QOI, "it is cut off")


def _check_ppm(data: Data) -> None:
    """The last number of a plain file must be followed by a blank, or it may be the half of a number."""
    if data[:2] in (b"P2", b"P3") and data[-1:].isdigit():
        raise damaged(Format.PPM, "it is cut off")


_CHECKS: dict[Format, Callable[[Data], None]] = {
    Format.AVIF: _check_avif,
    Format.QOI: _check_qoi,
    Format.PPM: _check_ppm,
}


def _av1_flags(data: Data) -> int:
    """How the first picture is coded: tier, depth, monochrome, subsampling (AV1 in ISO BMFF, 2.3.3)."""
    box = data.find(b"av1C", 0)
    return data[box + 6] if 0 <= box < len(data) - 6 else _SUBSAMPLED_X | _SUBSAMPLED_Y


def _avif_subsampling(data: Data) -> str:
    """The chroma sampling to write; 4:2:2 becomes 4:4:4, for on its side it cannot be said."""
    flags = _av1_flags(data)
    if flags & _MONOCHROME:
        return "4:0:0"
    return "4:2:0" if flags & _SUBSAMPLED_Y else "4:4:4"


def keep_avif_colours(sink: Sink, data: Data) -> None:
    """Call the primaries and the transfer what the source calls them (ISO/IEC 14496-12, 12.1.5).

    The numbers are the source's own, and Pillow's writer calls them all sRGB.
    """
    start = data.find(_NCLX, 0)  # an mmap would begin at its current position
    codes = data[start + len(_NCLX) : start + len(_NCLX) + 4]
    if start < 0 or codes == _SRGB:
        return
    sink.seek(0)
    head, _, _ = sink.read(_AVIF_HEAD_BYTES).partition(b"mdat")
    for found in re.finditer(_NCLX, head):
        sink.seek(found.end())
        sink.write(codes)
    sink.seek(0, 2)


def check_end(form: Format, data: Data) -> None:
    """Refuse a file whose end is missing, where its decoder would not.

    Raises:
        DamagedImage: it is cut off.
    """
    if form in _CHECKS:
        _CHECKS[form](data)


def kept_settings(form: Format, data: Data) -> dict[str, Any]:
    """What to pass to `save` of a format that comes out as it came in: Pillow does not carry it over."""
    if form is Format.QOI:
        return {"colorspace": "sRGB"} if data[13] == 0 else {}  # the only name the writer knows
    if form is Format.AVIF:
        return {"subsampling": _avif_subsampling(data)}
    return {}


def check_rows(form: Format, image: ImageFile.ImageFile, data: Data) -> None:
    """Refuse a BMP whose last row is cut, if only in its padding.

    Raises:
        DamagedImage: it is cut off.
    """
    tile = image.tile[0]
    if form is Format.BMP and tile.codec_name == "raw" and isinstance(tile.args, tuple):
        stride = tile.args[1]
        if tile.offset + stride * image.height > len(data):
            raise damaged(form, "it is cut off")


def is_deep(form: Format, image: ImageFile.ImageFile, data: Data) -> bool:
    """Whether Pillow would decode more than 8 bits per channel to 8, without a word."""
    if form is Format.AVIF:
        return bool(_av1_flags(data) & _HIGH_BIT_DEPTH)
    if form is Format.PPM:
        arguments = image.tile[0].args
        return image.mode == "RGB" and isinstance(arguments, tuple) and arguments[-1] > 255  # noqa: PLR2004
    return False


def write_bmp_with_alpha(sink: Sink, image: Image.Image, dpi: tuple[float, float]) -> None:
    """A BMP whose alpha readers see: with a version 4 header and bit fields (Windows, BITMAPV4HEADER).

    Pillow's own writer puts alpha into a field that every reader must ignore.
    """
    pixels = image.tobytes("raw", ("BGRA", 0, -1))
    per_metre = [round(number / 0.0254) for number in dpi]
    offset = _BMP_HEADER.size + _BMP_V4_INFO.size
    sink.write(_BMP_HEADER.pack(b"BM", offset + len(pixels), 0, 0, offset))
    masks = (0x00FF0000, 0x0000FF00, 0x000000FF, 0xFF000000)
    sink.write(
        _BMP_V4_INFO.pack(
            _BMP_V4_INFO.size,
            *image.size,
            1,
            32,
            _BITFIELDS,
            len(pixels),
            *per_metre,
            0,
            0,
            *masks,
            b"BGRs",
            bytes(36),
            0,
            0,
            0,
        ),
    )
    sink.write(pixels)
