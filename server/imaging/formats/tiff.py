"""TIFF as stored: what is kept of each page's directory, and how to write a page as it was compressed."""

import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

from server.errors import UnsupportedImage
from server.imaging.codecs import Data, DataFile, Format, damaged
from server.imaging.formats.tiff_file import TiffFile
from server.imaging.jpeg.pixels import estimated_quality
from server.imaging.limits import Limits
from server.imaging.metadata import ifd
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.photoshop import iptc_in as iptc_of

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER = 266
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 322, 323, 324, 325
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_ORIENTATION = 274
_SUBFILE_TYPE, _SUB_DIRECTORIES, _IS_REDUCED = 254, 330, 1
_WHITE_IS_ZERO, _BLACK_IS_ZERO = 0, 1
_SAMPLES, _PLANES, _SEPARATE = 277, 284, 2
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _COLOUR_MAP = 338, 339, 320
_SIGNED = 2
_PREDICTOR, _JPEG_TABLES = 317, 347
XMP, IPTC, PHOTOSHOP = 700, 33723, 34377

#: Fields that describe the image and not how it is stored (TIFF 6.0, section 8; EXIF 2.32, 4.6.4):
#: type, names, description, make, model, page number, software, date, artist, host, copyright, rating,
#: IPTC and Photoshop resources, XMP, EXIF and GPS.
_DESCRIPTIVE = frozenset(
    {
        *(254, 269, 270, 271, 272, 285, 297, 305, 306, 315, 316, 18246, 18249, 33432, IPTC),
        *(_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, PHOTOSHOP, XMP, ifd.EXIF, ifd.GPS),
    },
)

#: Fields that contain metadata of another kind.
EMBEDDED = frozenset({XMP, IPTC, PHOTOSHOP})

#: What libtiff writes for a compression that Pillow only reads.
_WRITTEN_AS = {"tiff_deflate": "tiff_adobe_deflate", "tiff_jpeg": "jpeg", "webp": "tiff_adobe_deflate"}
_WRITABLE = frozenset({"raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd", "jpeg"})
_BILEVEL = frozenset({"tiff_ccitt", "group3", "group4"})
_PREDICTABLE = frozenset({"tiff_lzw", "tiff_adobe_deflate", "zstd"})
_JPEG_MODES = frozenset({"L", "RGB", "CMYK", "YCbCr"})

_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q", 17: "q"}
_ABOUT = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _SUBFILE_TYPE, _SUB_DIRECTORIES),
        *(_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS),
    },
)
#: What the decoding of a plane depends on; the others are set for each.
_STORAGE = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _FILL_ORDER, _PREDICTOR, _JPEG_TABLES),
        *(_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_COUNTS),
        *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS),
    },
)
_WITH_PALETTE = frozenset({"P", "PA"})
_WITH_ALPHA = frozenset({"LA", "PA", "RGBA"})
_PLACES = frozenset({_STRIP_OFFSETS, _STRIP_COUNTS, _TILE_OFFSETS, _TILE_COUNTS})

#: Modes of which Pillow puts planes into the wrong channels.
_MISREAD_PLANES = frozenset({"LA", "La", "PA", "RGBA", "LAB"})
_PREMULTIPLIED = 1

#: Compressions that libtiff may have been built without, as in Pillow's wheels.
_OFTEN_LEFT_OUT = frozenset({"webp", "lzma", "zstd"})
_WITHOUT_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_OLD_JPEG = 6
_SHORT, _LONG, _BYTES = 3, 4, 7
#: What each dataset of IPTC data begins with (IPTC IIM 4.2, 1.5).
_DATASET = b"\x1c"


@dataclass(frozen=True, slots=True)
class Page:
    """The fields of one page that say how much it costs.

    Args:
        size: in pixels, as stored.
        end: where the last strip or tile ends in the file, by its own fields.
        compression: TIFF's number for it.
        orientation: as in EXIF, 1 to 8, of the stored pixels, whichever whole numbers it is stored as.
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
            compression=_only(fields.get(_COMPRESSION)),
            orientation=_only(fields.get(_ORIENTATION)),
            is_preview=_SUB_DIRECTORIES in fields and fields.get(_SUBFILE_TYPE) == (_IS_REDUCED,),
        )


def _only(numbers: tuple[int, ...] | None) -> int:
    """Return the value of a field that has one; 1, the default of several, for any other, as libtiff does."""
    return numbers[0] if numbers is not None and len(numbers) == 1 else 1


def check_tiff(data: Data, limits: Limits) -> tuple[Page, ...]:
    """Read the directories and check every page; decodes no pixels.

    Returns:
        The pages.

    Raises:
        DamagedImage: a directory, a field or a strip lies past the end.
        TooManyPixels, TooManyFrames: outside the limits, each page for itself and all together.
        UnsupportedImage: a camera's raw file, of which only the preview would come out, or a big-endian
            BigTIFF.
    """
    if data[:4] == b"MM\0+":  # Pillow does not know it
        raise UnsupportedImage("This is a BigTIFF in big-endian order. Send it in little-endian order.")
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
    return len(image.getbands()) > 1 and max(bits) > 8  # noqa: PLR2004 - bits of a channel


def as_meant(image: Image.Image, tags: ImageFileDirectory_v2) -> Image.Image:
    """Normalise the samples of a decoded page, which Pillow does not do for more than 8 bits.

    White becomes the highest number, and 12 bits are scaled to 16. Samples come in one byte order, since all
    pages of a file must have the same, and are not premultiplied by alpha, which cannot be written.

    Args:
        image: the page.
        tags: its fields.

    Raises:
        UnsupportedImage: white is zero, and black is any number.
    """
    bits, is_inverted = tags.get(_BITS), tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if image.mode == "F" and is_inverted:
        raise UnsupportedImage(
            "White is zero in this TIFF, and its samples are floating. Make white the highest."
        )
    if image.mode == "I;16B":
        image = image.convert("I").convert("I;16")
    if image.mode in _WITHOUT_PREMULTIPLIED:
        return image.convert(_WITHOUT_PREMULTIPLIED[image.mode])
    if image.mode == "I;16" and bits == (12,):
        return image.point(lambda sample: sample * (65535 / 4095))
    if image.mode == "I;16" and is_inverted:
        return image.point(lambda sample: sample * -1 + 65535)
    return image


def loaded_page(image: TiffImageFile, data: Data) -> Image.Image:
    """Decode a page, without turning it.

    Args:
        image: at this page.
        data: the file.

    Raises:
        UnsupportedImage: its compression or its samples cannot be decoded.
    """
    if image.tag_v2.get(_PLANES) == _SEPARATE and (
        image.mode in _MISREAD_PLANES or _EXTRA_SAMPLES in image.tag_v2
    ):
        return _merged_planes(image, data)
    try:
        image.load()
    except OSError as error:
        if image.info.get("compression") in _OFTEN_LEFT_OUT:
            raise UnsupportedImage(
                "This TIFF is compressed in a way that cannot be decoded. Compress it with LZW or deflate.",
            ) from error
        raise
    return as_meant(image, image.tag_v2)


def _merged_planes(image: TiffImageFile, data: Data) -> Image.Image:
    """Decode a page that has each channel in a plane of its own (TIFF 6.0, section 8, PlanarConfiguration).

    Pillow loses or refuses alpha there. So each plane is decoded as an image of its own, from a file with a
    directory that names no other. Channels that come after alpha are left out.

    Raises:
        UnsupportedImage: its samples do not have 8 bits.
    """
    if set(image.tag_v2.get(_BITS, (1,))) != {8}:
        raise UnsupportedImage(
            "This TIFF has alpha in a plane of its own, and not 8 bits per channel. "
            "Store its channels pixel by pixel (PlanarConfiguration 1), and send that.",
        )
    fields = {field.tag: field for field in ifd.Reader(data).fields(image.tag_v2.offset, _STORAGE)}
    for tag, number in ((_PHOTOMETRIC, _BLACK_IS_ZERO), (_BITS, 8), (_SAMPLES, 1)):
        fields[tag] = ifd.Field(tag, _SHORT, 1, struct.pack("<H", number))
    planes = image.tag_v2.get(_SAMPLES, 1)
    extra = image.tag_v2.get(_EXTRA_SAMPLES, ())
    bands: list[Image.Image] = []
    for index in range(len(image.getbands())):
        plane = [_part(one, index, planes) if one.tag in _PLACES else one for one in fields.values()]
        band = TiffFile(DataFile(ifd.with_directory(data, plane)))  # type: ignore[arg-type]
        band.load()
        bands.append(band)
    if image.mode == "LAB":  # in which Pillow has no negative numbers
        bands[1:] = [band.point(lambda number: number ^ 128) for band in bands[1:]]
    mode = "RGBa" if image.mode == "RGBA" and extra[:1] == (_PREMULTIPLIED,) else image.mode
    merged = Image.merge(mode, bands)
    if mode == "PA":
        merged.palette = image.palette
        merged.load()
    if mode in _WITHOUT_PREMULTIPLIED:
        merged = merged.convert(_WITHOUT_PREMULTIPLIED[mode])
    merged.info = image.info
    return merged


def _part(field: ifd.Field, index: int, parts: int) -> ifd.Field:
    """Return one of so many parts of the values of a field."""
    count = field.count // parts
    length = len(field.data) // field.count * count
    return replace(field, count=count, data=field.data[index * length : (index + 1) * length])


def as_narrow(image: TiffImageFile, pixels: Image.Image) -> Image.Image:
    """Return signed samples of 16 bits as such, of which Pillow makes 32, for a page that stays one.

    They are called unsigned, since Pillow has no other mode of 16 bits; `page_settings` tells what they are.

    Args:
        image: the page, decoded.
        pixels: its pixels.
    """
    if pixels.mode != "I" or image.tag_v2.get(_BITS) != (16,):
        return pixels
    wide = pixels.tobytes()  # little-endian, as all machines are that Pillow has wheels for
    narrow = bytearray(len(wide) // 2)
    narrow[0::2], narrow[1::2] = wide[0::4], wide[1::4]
    return Image.frombytes("I;16", pixels.size, bytes(narrow))


def shorts_of(image: TiffFile, turned: Image.Image) -> dict[int, tuple[int, ...]]:
    """Return what to write into fields where Pillow writes something else, for a page that stays one.

    Args:
        image: the page, decoded.
        turned: what will be written.
    """
    shorts: dict[int, tuple[int, ...]] = {}
    if turned.mode in _WITH_PALETTE:
        levels = image.colour_map
        colours = len(levels) // 3
        padding = (0,) * (256 - colours)
        shorts[_COLOUR_MAP] = tuple(
            level
            for start in range(0, len(levels), colours)
            for level in (*levels[start : start + colours], *padding)
        )
    if turned.mode in _WITH_ALPHA and not any(image.extra[:1]):
        shorts[_EXTRA_SAMPLES] = (0,)  # not described
    if turned.mode == "I":
        shorts[_SAMPLE_FORMAT] = (int(image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0]),)
    return shorts


def colour_map(image: Image.Image) -> dict[int, tuple[int, ...]]:
    """Return the colour map of an image, in 16 bits. Pillow would multiply by 256, which gives no white."""
    if image.mode not in _WITH_PALETTE:
        return {}
    levels = bytes(image.getpalette() or ()).ljust(3 * 256, b"\0")
    return {_COLOUR_MAP: tuple(level * 257 for channel in range(3) for level in levels[channel::3])}


def with_shorts(tiff: bytes, shorts: Mapping[int, tuple[int, ...]]) -> bytes:
    """Overwrite the numbers of fields in the first directory.

    Args:
        tiff: a file that we wrote.
        shorts: new numbers, so many as are there, by tag.
    """
    if not shorts:
        return tiff
    file = bytearray(tiff)
    reader = ifd.Reader(tiff)
    order = ">" if reader.is_big_endian else "<"
    for entry in reader.entries(reader.first)[0]:
        if entry.kind == _SHORT and entry.values == len(shorts.get(entry.tag, ())):
            struct.pack_into(f"{order}{entry.values}H", file, entry.position, *shorts[entry.tag])
    return bytes(file)


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
    if turned.mode in ("L", "I;16") and image.tag_v2.get(_SAMPLE_FORMAT) == (_SIGNED,):
        tags[_SAMPLE_FORMAT] = _SIGNED
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
            found.append(tuple(map(_as_bytes, reader.fields(position, _DESCRIPTIVE))))
            _, position = reader.entries(position)
    return found + [()] * (pages - len(found))


def _as_bytes(field: ifd.Field) -> ifd.Field:
    """Make bytes of IPTC data, which many writers declare as LONG (TIFF/EP, 5.2.2; XMP part 3, 3.3.3)."""
    if field.tag != IPTC or field.kind != _LONG:
        return field
    data = field.data
    if data[:1] != _DATASET:  # the reader has taken them for numbers in another byte order
        data = b"".join(data[start : start + 4][::-1] for start in range(0, len(data), 4))
    return ifd.Field(IPTC, _BYTES, len(data), data)


def iptc_in(fields: tuple[ifd.Field, ...]) -> bytes:
    """Return the IPTC data in the fields of a page, from the field of its own or from Photoshop's."""
    found = {field.tag: field.data for field in fields}
    return found.get(IPTC) or iptc_of(found.get(PHOTOSHOP, b""))


def iptc_field(iptc: bytes) -> ifd.Field:
    """Make the field that holds IPTC data (XMP part 3, 3.3.3)."""
    return ifd.Field(IPTC, _BYTES, len(iptc), iptc)


def xmp_field(xmp: bytes) -> ifd.Field:
    """Make the field that holds an XMP packet (XMP part 3, 3.3.3)."""
    return ifd.Field(XMP, _BYTES, len(xmp), xmp)
