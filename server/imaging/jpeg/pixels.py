"""The pixels of a JPEG: refuse those that libjpeg made up, and encode new ones as the source was encoded."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any

from PIL import Image, ImageChops
from PIL.Image import Transpose
from PIL.JpegImagePlugin import JpegImageFile

from server.imaging.codecs import Data, Format, Sink, damaged
from server.imaging.geometry import swaps_axes
from server.imaging.jpeg.markers import Jpeg

_APP12 = 0xEC

#: Where unit and densities lie in what libjpeg writes: after SOI, APP0, length, identifier and version (JFIF
#: 1.02).
_DENSITY_POSITION = 13
_FIRST_MARKER_POSITION = 2
#: Sampling that Pillow can be told to write, by how much wider and higher the luma planes are than chroma.
_SUBSAMPLING = {(1, 1): 0, (2, 1): 1, (2, 2): 2}
_FULL_CHROMA = 0

_CELL = 8
_MID_GRAY: dict[str, list[Any]] = {
    "L": [128],
    "RGB": [(128, 128, 128)],
    "CMYK": [(127,) * 4, (127, 127, 127, 128)],
}

#: Long Huffman codes, so that they make few blocks; enough bytes for what libjpeg reads ahead.
_NONSENSE = b"\xfe" * 16
_UNLIKELY: dict[str, Any] = {"L": 1, "RGB": (1, 2, 3), "CMYK": (1, 2, 3, 4)}


def check_complete(jpeg: Jpeg, image: Image.Image, data: Data) -> None:
    """Refuse pixels that libjpeg made up.

    When a scan ends early, for instance because a file was cut off and closed with an EOI, libjpeg fills the
    rest with zero coefficients: the last pixel is then exactly mid-gray. A complete image may end in that
    gray too, so only these are decoded again, with a few meaningless bytes in place of the EOI: a complete
    image has its last row before these are used up.

    An image of several scans has no such last row: cut off, it is a coarse version of itself.

    Args:
        jpeg: its markers.
        image: its pixels.
        data: the file.

    Raises:
        DamagedImage: the scan ends before the image does.
    """
    corner = image.getpixel((image.width - 1, image.height - 1))
    if jpeg.scans > 1 or jpeg.is_progressive or corner not in _MID_GRAY[image.mode]:
        return
    if not _has_last_row(data[: jpeg.last_scan] + _NONSENSE, image):
        raise damaged(Format.JPEG, "its pixels end early")


def _has_last_row(torn: bytes, like: Image.Image) -> bool:
    """Tell whether data without an EOI is enough for the last row.

    Args:
        torn: the data.
        like: an image of the same mode and size.
    """
    image = JpegImageFile(BytesIO(torn))
    blank = Image.new(like.mode, like.size, _UNLIKELY[like.mode])
    image.im = blank.copy().im
    with suppress(OSError):  # the data always ends early: the question is where
        image.load()
    image.tile = []
    box = ImageChops.difference(image, blank).getbbox(alpha_only=False)
    return box is not None and box[3] == image.height


def _component_tables(image: JpegImageFile, *, is_turned: bool) -> list[list[int]]:
    """Return one quantization table per component, in component order, without repetitions at the end.

    Pillow gives the first component the first table and so on, and the last table to all that are left; the
    source may number its tables in any way. When rows become columns, those of the tables do too.
    """
    tables = [list(image.quantization[number]) for *_, number in image.layer]
    while len(tables) > 1 and tables[-1] == tables[-2]:
        tables.pop()
    if is_turned:
        return [
            [table[column * _CELL + row] for row in range(_CELL) for column in range(_CELL)]
            for table in tables
        ]
    return tables


def _subsampling(image: JpegImageFile, *, is_turned: bool) -> int:
    """Return the source's subsampling if Pillow can write it for the turned image, else full chroma."""
    if image.layers != 3:  # noqa: PLR2004 - only colour has chroma
        return -1
    (_, luma_h, luma_v, _), (_, *first), (_, *second) = image.layer
    chroma_h, chroma_v = first[:2]
    if second[:2] != first[:2] or luma_h % chroma_h or luma_v % chroma_v:
        return _FULL_CHROMA
    ratio = (luma_h // chroma_h, luma_v // chroma_v)
    return _SUBSAMPLING.get(ratio[::-1] if is_turned else ratio, _FULL_CHROMA)


def _is_rgb(jpeg: Jpeg, image: JpegImageFile) -> bool:
    """Tell whether the components are red, green and blue themselves, by libjpeg's rules."""
    if image.layers != 3 or jpeg.jfif:  # noqa: PLR2004 - colours
        return False
    if jpeg.adobe_transform is not None:
        return jpeg.adobe_transform == 0
    return bytes(layer[0] for layer in image.layer) == b"RGB"


def encoder_settings(
    jpeg: Jpeg, image: JpegImageFile, transpose: Transpose | None, quality: int | None
) -> dict[str, Any]:
    """Return settings for `save` that encode the result as the source was encoded.

    With the same quantization tables an image loses next to nothing, and its size stays nearly the same.
    Huffman tables are optimised only where the source has its own, for the same size.

    Args:
        jpeg: the source's markers.
        image: the source as Pillow opened it.
        transpose: the turn between the two.
        quality: 1 to 100 for libjpeg's own tables; None for the source's.
    """
    is_turned = swaps_axes(transpose)
    settings: dict[str, Any] = {
        "progressive": jpeg.is_progressive,
        "optimize": jpeg.has_own_huffman_tables and not jpeg.is_progressive,
        "keep_rgb": _is_rgb(jpeg, image),
    }
    if quality is not None:
        return settings | {"quality": quality, "keep_rgb": False}
    # Green and blue may be stored coarser than red, and Pillow cannot write that.
    subsampling = _FULL_CHROMA if settings["keep_rgb"] else _subsampling(image, is_turned=is_turned)
    return settings | {
        "qtables": _component_tables(image, is_turned=is_turned),
        "subsampling": subsampling,
    }


def write_density(sink: Sink, jfif: bytes, transpose: Transpose | None) -> None:
    """Write the source's unit and densities, its axes turned, into the JFIF segment that libjpeg wrote.

    Pillow can write dots per inch only, but the unit may be centimetres or a mere aspect ratio.
    """
    unit, horizontal, vertical = jfif[7:8], jfif[8:10], jfif[10:12]
    end = sink.tell()
    sink.seek(_DENSITY_POSITION)
    sink.write(unit + (vertical + horizontal if swaps_axes(transpose) else horizontal + vertical))
    sink.seek(end)


def disown_adobe(sink: Sink) -> None:
    """Disable the Adobe segment that libjpeg wrote, by giving it a marker that decoders ignore.

    In a CMYK image it says that the inks are inverted. The samples are the source's own, so the result may
    not say so where the source does not.
    """
    end = sink.tell()
    sink.seek(_FIRST_MARKER_POSITION)
    sink.write(bytes([0xFF, _APP12]))
    sink.seek(end)


@cache
def _typical_tables(quality: int) -> tuple[int, ...]:
    """Return the luminance table that libjpeg uses for a quality (K.1, scaled), sorted."""
    plain = BytesIO()
    Image.new("L", (_CELL, _CELL)).save(plain, "JPEG", quality=quality)
    plain.seek(0)
    return tuple(sorted(JpegImageFile(plain).quantization[0]))


def estimated_quality(table: Sequence[int]) -> int:
    """Return the quality, 1 to 100, whose luminance table is nearest to this one, in any order of entries."""
    return min(
        range(1, 101),
        key=lambda quality: sum(
            abs(a - b) for a, b in zip(sorted(table), _typical_tables(quality), strict=True)
        ),
    )
