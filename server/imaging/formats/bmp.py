"""What Pillow's BMP writer leaves out, alpha, and a check of the last row."""

import struct

from PIL import Image, ImageFile

from server.imaging.codecs import Data, Format, Sink, damaged

_BMP_HEADER = struct.Struct("<2sIHHI")
_BMP_V4_INFO = struct.Struct("<IiiHHIIiiII4I4s36s3I")
_BITFIELDS = 3
_SAFE_COLOURS = 3


def check_rows(image: ImageFile.ImageFile, data: Data) -> None:
    """Refuse a BMP whose last row is cut, if only in its padding.

    Raises:
        DamagedImage: it is cut off.
    """
    tile = image.tile[0]
    if tile.codec_name == "raw" and isinstance(tile.args, tuple):
        stride = tile.args[1]
        if tile.offset + stride * image.height > len(data):
            raise damaged(Format.BMP, "it is cut off")


def pixel_bytes(image: Image.Image) -> int:
    """Return how many bytes the rows of an image take as a BMP, each padded to a multiple of four."""
    bits = {"1": 1, "RGB": 24, "RGBA": 32}.get(image.mode, 8)
    return (image.width * bits + 31) // 32 * 4 * image.height


def writable(image: Image.Image) -> Image.Image:
    """Return the image with a palette that Pillow reads too: it takes indices to black and white for bits."""
    palette = image.getpalette() if image.mode == "P" else None
    if palette is not None and len(palette) < _SAFE_COLOURS * 3:
        image.putpalette(palette + [0] * (_SAFE_COLOURS * 3 - len(palette)))
    return image


def write_with_alpha(sink: Sink, image: Image.Image, dpi: tuple[float, float]) -> None:
    """Write a BMP whose alpha readers see, with a version 4 header and bit fields (Windows, BITMAPV4HEADER).

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
