"""TIFF as stored: what is kept of each page's directory, and how to write a page as it was compressed."""

import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from server.errors import UnsupportedImage
from server.imaging.codecs import Data, Format, damaged
from server.imaging.geometry import swaps_axes
from server.imaging.jpeg.pixels import estimated_quality
from server.imaging.limits import Limits
from server.imaging.metadata import ifd
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.photoshop import without_thumbnails
from server.imaging.metadata.xmp import upright_xmp

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_ORIENTATION = 274
_SUBFILE_TYPE, _SUB_DIRECTORIES, _IS_REDUCED = 254, 330, 1
_WHITE_IS_ZERO = 0
_PREDICTOR, _JPEG_TABLES, _XMP, _PHOTOSHOP = 317, 347, 700, 34377

#: Fields that describe the image and not how it is stored (TIFF 6.0, section 8; EXIF 2.32, 4.6.4):
#: type, names, description, make, model, page number, software, date, artist, host, copyright, rating,
#: IPTC and Photoshop resources, XMP, EXIF and GPS.
_DESCRIPTIVE = frozenset(
    {
        *(254, 269, 270, 271, 272, 285, 297, 305, 306, 315, 316, 18246, 18249, 33432, 33723),
        *(_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _PHOTOSHOP, _XMP, ifd.EXIF, ifd.GPS),
    },
)

#: What libtiff writes for a compression that Pillow only reads.
_WRITTEN_AS = {"tiff_deflate": "tiff_adobe_deflate", "tiff_jpeg": "jpeg", "webp": "tiff_adobe_deflate"}
_WRITABLE = frozenset({"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg"})
_BILEVEL = frozenset({"tiff_ccitt", "group3", "group4"})
_PREDICTABLE = frozenset({"tiff_lzw", "tiff_adobe_deflate", "zstd"})
_JPEG_MODES = frozenset({"L", "RGB", "CMYK", "YCbCr"})

_NUMBERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q"}
_ABOUT = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _SUBFILE_TYPE, _SUB_DIRECTORIES),
        *(_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS),
    },
)
_OLD_JPEG = 6
_BYTES = 7


@dataclass(frozen=True, slots=True)
class Page:
    """The fields of one page that say how much it costs.

    Args:
        size: in pixels, as stored.
        end: where the last strip or tile ends in the file, by its own fields.
        compression: TIFF's number for it.
        orientation: as in EXIF, 1 to 8; Pillow applies it when it decodes.
        is_preview: whether it is a small version of an image that lies in a directory below it.
    """

    size: tuple[int, int]
    end: int
    compression: int
    orientation: int
    is_preview: bool


def _pages(data: Data) -> Iterator[Page]:
    """Yield every page once, even where the chain of directories is a loop (TIFF 6.0, section 2).

    Pillow would read the values of all fields first.
    """
    reader = ifd.Reader(data)
    position = reader.first
    seen: set[int] = set()
    while position and position not in seen:
        seen.add(position)
        entries, position = reader.entries(position)
        if any(entry.end > len(data) for entry in entries):
            raise damaged(Format.TIFF, "it is cut off")
        fields = {
            entry.tag: reader.values(entry, _NUMBERS[entry.kind])
            for entry in reversed(entries)  # of several fields with one tag the first counts
            if entry.tag in _ABOUT and entry.kind in _NUMBERS
        }
        if not fields.get(_WIDTH) or not fields.get(_HEIGHT):
            raise damaged(Format.TIFF, "a page has no size")
        offsets = fields.get(_STRIP_OFFSETS) or fields.get(_TILE_OFFSETS) or ()
        counts = fields.get(_STRIP_COUNTS) or fields.get(_TILE_COUNTS) or ()
        yield Page(
            size=(fields[_WIDTH][0], fields[_HEIGHT][0]),
            end=max((offset + count for offset, count in zip(offsets, counts, strict=False)), default=0),
            compression=fields.get(_COMPRESSION, (1,))[0],
            orientation=fields.get(_ORIENTATION, (1,))[0],
            is_preview=_SUB_DIRECTORIES in fields and fields.get(_SUBFILE_TYPE) == (_IS_REDUCED,),
        )


def check_tiff(data: Data, limits: Limits) -> tuple[Page, ...]:
    """Read the directories and check every page; decodes no pixels.

    Returns:
        The pages.

    Raises:
        DamagedImage: a directory, a field or a strip lies past the end.
        TooManyPixels, TooManyFrames: outside the limits, each page for itself and all together.
        UnsupportedImage: a camera's raw file, of which only the preview would come out.
    """
    pages: list[Page] = []
    total = 0
    for page in _pages(data):
        pages.append(page)
        limits.check_frames(len(pages))
        limits.check_size(*page.size)
        total += page.size[0] * page.size[1]
        limits.check_total(total)
        # Old-style JPEG keeps its data in fields of its own, so its strips are often nonsense.
        if page.compression != _OLD_JPEG and page.end > len(data):
            raise damaged(Format.TIFF, "it is cut off")
    if not pages:
        raise damaged(Format.TIFF, "it has no page")
    if pages[0].is_preview or data[8:10] == b"CR":
        raise UnsupportedImage("This is a camera's raw file. Develop it, and send the JPEG or TIFF.")
    return tuple(pages)


def is_deep(image: TiffImageFile) -> bool:
    """Tell whether Pillow would decode more than 8 bits per channel of this page to 8."""
    bits = image.tag_v2.get(_BITS, (1,))
    return len(bits) > 1 and max(bits) > 8  # noqa: PLR2004 - bits of a channel


def as_meant(image: TiffImageFile) -> Image.Image:
    """Normalise the samples of a decoded page, which Pillow does not do for more than 8 bits.

    White becomes the highest number, and 12 bits are scaled to 16. Samples come in one byte order, since all
    pages of a file must have the same, and are not premultiplied by alpha, which cannot be written.

    Raises:
        UnsupportedImage: white is zero, and black is any number.
    """
    bits, is_inverted = image.tag_v2.get(_BITS), image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "F" and is_inverted:
        raise UnsupportedImage(
            "White is zero in this TIFF, and its samples are floating. Make white the highest."
        )
    if image.mode == "I;16B":
        return image.convert("I").convert("I;16")
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "I;16" and bits == (12,):
        return image.point(lambda sample: sample * (65535 / 4095))
    if image.mode == "I;16" and is_inverted:
        return image.point(lambda sample: sample * -1 + 65535)
    return image


def loaded_page(image: TiffImageFile) -> Image.Image:
    """Decode a page, turned by its orientation tag alone: Pillow would also use that of the XMP."""
    xmp = image.info.pop("xmp", None)
    image.load()
    if xmp is not None:
        image.info["xmp"] = xmp
    return as_meant(image)


def page_settings(
    image: TiffImageFile,
    turned: Image.Image,
    *,
    strip: bool,
    quality: int | None,
) -> dict[str, Any]:
    """Return settings for `save` that store a page as it was.

    Args:
        image: the page as Pillow opened it, already decoded.
        turned: what will be written.
        strip: drop the colour profile if it is sRGB.
        quality: 1 to 100 for JPEG-compressed pages; None for the source's own.
    """
    compression = str(image.info.get("compression", "raw"))
    compression = _WRITTEN_AS.get(compression, compression)
    if not (compression in _WRITABLE or (compression in _BILEVEL and turned.mode == "1")):
        compression = "tiff_adobe_deflate"
    if compression == "jpeg" and turned.mode not in _JPEG_MODES:
        compression = "tiff_adobe_deflate"
    tags = ImageFileDirectory_v2()
    if compression in _PREDICTABLE and image.tag_v2.get(_PREDICTOR, 1) == 2 and turned.mode != "F":  # noqa: PLR2004
        tags[_PREDICTOR] = 2
    settings: dict[str, Any] = {"tiffinfo": tags, "compression": compression, "icc_profile": b""}
    icc = image.info.get("icc_profile")
    if isinstance(icc, bytes):  # a file may give it any type
        settings["icc_profile"] = kept_icc(icc, strip=strip)
    if compression == "jpeg":
        settings["quality"] = quality or _jpeg_quality(image)
    return settings


def _jpeg_quality(image: TiffImageFile) -> int:
    """Return the quality whose table is nearest to the first of the shared tables (TIFF technical note 2)."""
    tables = image.tag_v2.get(_JPEG_TABLES)
    if isinstance(tables, bytes):
        start = tables.find(b"\xff\xdb")
        table = tables[start + 5 : start + 69]
        if start >= 0 and len(table) == 64:  # noqa: PLR2004 - eight by eight
            return estimated_quality(table)
    return 90


def descriptions(structure: Data, pages: int = 1) -> list[tuple[ifd.Field, ...]]:
    """Read the fields that describe each page, from a TIFF or from EXIF.

    Args:
        structure: the file, or the TIFF structure of EXIF.
        pages: how many; the list is as long.

    Returns:
        For each page its fields; none for a page that cannot be read.
    """
    found: list[tuple[ifd.Field, ...]] = []
    with suppress(struct.error):
        reader = ifd.Reader(structure)
        position = reader.first
        while len(found) < pages:
            found.append(tuple(_as_turned(field) for field in reader.fields(position, _DESCRIPTIVE)))
            _, position = reader.entries(position)
    return found + [()] * (pages - len(found))


def turned_fields(fields: tuple[ifd.Field, ...], transpose: Transpose | None) -> tuple[ifd.Field, ...]:
    """Adapt fields to the turned page: the two resolutions change places when the axes do.

    Args:
        fields: of the page as stored.
        transpose: the turn from the stored pixels to the result.
    """
    if not swaps_axes(transpose):
        return fields
    other = {_X_RESOLUTION: _Y_RESOLUTION, _Y_RESOLUTION: _X_RESOLUTION}
    return tuple(replace(field, tag=other.get(field.tag, field.tag)) for field in fields)


def _as_turned(field: ifd.Field) -> ifd.Field:
    """Adapt a field to turned pixels, whichever way they are turned."""
    if field.tag == _XMP:
        return replace(field, data=upright_xmp(field.data))
    if field.tag == _PHOTOSHOP:
        data = without_thumbnails(field.data)
        return ifd.Field(_PHOTOSHOP, _BYTES, len(data), data)
    return field


def xmp_field(xmp: bytes) -> ifd.Field:
    """Make the field that holds an XMP packet (XMP part 3, 3.3.3)."""
    return ifd.Field(_XMP, _BYTES, len(xmp), xmp)
