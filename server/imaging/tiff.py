"""TIFF: what is kept of each page's directory, and how to write a page as it was compressed."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from server.imaging.codec import Data, Format, damaged
from server.imaging.icc import kept_icc
from server.imaging.jpeg import estimated_quality
from server.imaging.limits import Limits
from server.imaging.metadata import upright_xmp
from server.imaging.operations import swaps_axes

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS = 273, 279, 324, 325
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_PREDICTOR, _JPEG_TABLES, _XMP, _ICC = 317, 347, 700, 34675
_EXIF, _GPS = 34665, 34853

#: Fields that describe the picture and not how it is stored (TIFF 6.0, section 8; EXIF 2.32, 4.6.4):
#: description, make, model, page name, page number, software, date, artist, host, copyright, rating, IPTC,
#: Photoshop resources, and the like.
_DESCRIPTIVE = frozenset(
    {254, 269, 270, 271, 272, 285, 297, 305, 306, 315, 316, 18246, 18249, 33432, 33723, 34377},
)

#: What libtiff writes for a compression that Pillow only reads.
_WRITTEN_AS = {"tiff_deflate": "tiff_adobe_deflate", "tiff_jpeg": "jpeg", "webp": "tiff_adobe_deflate"}
_WRITABLE = frozenset({"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg"})
_BILEVEL = frozenset({"tiff_ccitt", "group3", "group4"})
_PREDICTABLE = frozenset({"tiff_lzw", "tiff_adobe_deflate", "zstd"})
_JPEG_MODES = frozenset({"L", "RGB", "CMYK", "YCbCr"})
_DEEP_RAW_MODES = (";16B", ";16L", ";16N")

_SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_NUMBERS = {1: "B", 3: "H", 4: "L", 13: "L", 16: "Q"}
_OLD_JPEG = 6


@dataclass(frozen=True, slots=True)
class Page:
    """The fields of one page that say how much it costs.

    Args:
        size: in pixels, as stored.
        ends: where each strip or tile ends in the file, by its own fields.
        compression: TIFF's number for it.
    """

    size: tuple[int, int]
    ends: tuple[int, ...]
    compression: int


class _Directories:
    """Walks the directories of a file without Pillow, which would read their data first (TIFF 6.0, 2)."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self._order = "<" if data[:2] == b"II" else ">"
        self._is_big = 43 in data[2:4]  # noqa: PLR2004 - the version of BigTIFF
        self._word = "Q" if self._is_big else "L"
        self._word_bytes = 8 if self._is_big else 4

    def _read(self, form: str, position: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._order + form, self._data, position)

    def pages(self) -> Iterator[Page]:
        """Every page once, even where the chain of directories bites its tail."""
        (position,) = self._read(self._word, 8 if self._is_big else 4)
        seen: set[int] = set()
        while position and position not in seen:
            seen.add(position)
            fields, position = self._directory(position)
            yield self._page(fields)

    def _directory(self, start: int) -> tuple[dict[int, tuple[int, ...]], int]:
        (count,) = self._read("Q" if self._is_big else "H", start)
        start += 8 if self._is_big else 2
        entry_bytes = 20 if self._is_big else 12
        if start + count * entry_bytes + self._word_bytes > len(self._data):
            raise damaged(Format.TIFF, "it is cut off")
        fields: dict[int, tuple[int, ...]] = {}
        wanted = {_WIDTH, _HEIGHT, _COMPRESSION, _STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS}
        for position in range(start, start + count * entry_bytes, entry_bytes):
            tag, kind, length = self._read("HH" + self._word, position)
            value = position + 4 + self._word_bytes
            if _SIZES.get(kind, 0) * length > self._word_bytes:
                (value,) = self._read(self._word, value)
                if value + _SIZES[kind] * length > len(self._data):
                    raise damaged(Format.TIFF, "it is cut off")
            if tag in wanted and kind in _NUMBERS and tag not in fields:
                fields[tag] = self._read(f"{length}{_NUMBERS[kind]}", value)
        (following,) = self._read(self._word, start + count * entry_bytes)
        return fields, following

    def _page(self, fields: dict[int, tuple[int, ...]]) -> Page:
        if not fields.get(_WIDTH) or not fields.get(_HEIGHT):
            raise damaged(Format.TIFF, "a page has no size")
        offsets = fields.get(_STRIP_OFFSETS) or fields.get(_TILE_OFFSETS) or ()
        counts = fields.get(_STRIP_COUNTS) or fields.get(_TILE_COUNTS) or ()
        return Page(
            size=(fields[_WIDTH][0], fields[_HEIGHT][0]),
            ends=tuple(offset + count for offset, count in zip(offsets, counts, strict=False)),
            compression=fields.get(_COMPRESSION, (1,))[0],
        )


def check_tiff(data: Data, limits: Limits) -> int:
    """Read the directories and check every page; decodes no pixels.

    Returns:
        The number of pages.

    Raises:
        DamagedImage: a directory, a field or a strip lies past the end.
        TooManyPixels, TooManyFrames: outside the limits, each page for itself and all together.
    """
    pages = total = 0
    for page in _Directories(data).pages():
        pages += 1
        limits.check_frames(pages)
        limits.check_size(*page.size)
        total += page.size[0] * page.size[1]
        limits.check_total(total)
        # Old-style JPEG keeps its data in fields of its own, so its strips are often nonsense.
        if page.compression != _OLD_JPEG and any(end > len(data) for end in page.ends):
            raise damaged(Format.TIFF, "it is cut off")
    if not pages:
        raise damaged(Format.TIFF, "it has no page")
    return pages


def is_deep(image: TiffImageFile) -> bool:
    """Whether Pillow halves the depth of this page when it decodes it."""
    bits = image.tag_v2.get(_BITS, (1,))
    return len(bits) > 1 and max(bits) > 8  # noqa: PLR2004 - bits of a channel


def page_settings(
    image: TiffImageFile,
    turned: Image.Image,
    transpose: Transpose | None,
    *,
    strip: bool,
    quality: int | None,
) -> dict[str, Any]:
    """What to pass to `save` so that a page is stored as it was.

    Args:
        image: the page as Pillow opened it, already decoded.
        turned: what will be written.
        transpose: the turn between the two as seen; Pillow has applied the page's own orientation.
        strip: drop what describes the picture.
        quality: 1 to 100 for JPEG-compressed pages; None for the source's own.
    """
    compression = str(image.info.get("compression", "raw"))
    compression = _WRITTEN_AS.get(compression, compression)
    if not (compression in _WRITABLE or (compression in _BILEVEL and turned.mode == "1")):
        compression = "tiff_adobe_deflate"
    if compression == "jpeg" and turned.mode not in _JPEG_MODES:
        compression = "tiff_adobe_deflate"
    tags = ImageFileDirectory_v2(prefix=b"MM" if turned.mode == "I;16B" else b"II")
    if compression in _PREDICTABLE and image.tag_v2.get(_PREDICTOR, 1) == 2 and turned.mode != "F":  # noqa: PLR2004
        tags[_PREDICTOR] = 2
    _copy_resolution(image, tags, is_turned=swaps_axes(transpose))
    if not strip:
        _copy_description(image, tags)
    settings: dict[str, Any] = {"tiffinfo": tags, "compression": compression, "icc_profile": b""}
    if icc := kept_icc(image.info.get("icc_profile") or b"", strip=strip):
        settings["icc_profile"] = icc
    if compression == "jpeg":
        settings["quality"] = quality or _jpeg_quality(image)
    return settings


def _copy_resolution(image: TiffImageFile, tags: ImageFileDirectory_v2, *, is_turned: bool) -> None:
    source = image.tag_v2
    fields = [_X_RESOLUTION, _Y_RESOLUTION]
    if all(field in source for field in fields):
        for field, other in zip(fields, reversed(fields) if is_turned else fields, strict=True):
            tags[field] = source[other]
        tags[_RESOLUTION_UNIT] = source.get(_RESOLUTION_UNIT, 2)


def _copy_description(image: TiffImageFile, tags: ImageFileDirectory_v2) -> None:
    source = image.tag_v2
    for field in _DESCRIPTIVE:
        if field in source:
            tags.tagtype[field] = source.tagtype[field]
            tags[field] = source[field]
    if isinstance(xmp := image.info.get("xmp"), bytes):
        tags.tagtype[_XMP] = 1
        tags[_XMP] = upright_xmp(xmp)
    exif = image.getexif()
    for field in (_EXIF, _GPS):
        if inner := exif.get_ifd(field):
            tags.tagtype[field] = 4
            tags[field] = dict(inner)


def _jpeg_quality(image: TiffImageFile) -> int:
    """The quality whose table is nearest to the first one of the shared tables (TIFF technical note 2)."""
    tables = image.tag_v2.get(_JPEG_TABLES)
    if isinstance(tables, bytes):
        start = tables.find(b"\xff\xdb")
        table = tables[start + 5 : start + 69]
        if start >= 0 and len(table) == 64:  # noqa: PLR2004 - eight by eight
            return estimated_quality(table)
    return 90


def described(exif: bytes, xmp: bytes) -> ImageFileDirectory_v2:
    """The fields for a page made from another format.

    Args:
        exif: the TIFF structure of its EXIF, empty for none.
        xmp: its XMP, empty for none.
    """
    tags = ImageFileDirectory_v2()
    if xmp:
        tags.tagtype[_XMP] = 1
        tags[_XMP] = xmp
    source = Image.Exif()
    source.load(exif)
    for field in _DESCRIPTIVE:
        if field in source:
            tags[field] = source[field]
    for field in (_EXIF, _GPS):
        if inner := source.get_ifd(field):
            tags.tagtype[field] = 4
            tags[field] = dict(inner)
    return tags


def exif_of(image: TiffImageFile) -> bytes:
    """The descriptive fields of a page as an EXIF structure, for another format."""
    source, exif = image.getexif(), Image.Exif()
    for field in _DESCRIPTIVE:
        if field in source:
            exif[field] = source[field]
    for field in (_EXIF, _GPS):
        if inner := source.get_ifd(field):
            exif[field] = dict(inner)
    return exif.tobytes() if len(exif) else b""
