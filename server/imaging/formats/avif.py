"""What Pillow's AVIF reader and writer leave out: crop, orientation, depth, colours, quality, loop count."""

import ctypes
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from typing import Any

from PIL import Image, _avif

from server.errors import UnsupportedImage
from server.imaging.codecs import MAX_PARTS, Data, Format, check_memory, damaged
from server.imaging.formats import av1, bmff
from server.imaging.formats.bmff import Box, Picture
from server.imaging.geometry import Rect, oriented

_BYTE = 8

#: Turns of `irot` in quarters against the clock, and the two mirrors of `imir`, as orientations of EXIF.
_ROTATIONS = (1, 8, 3, 6)
_MIRRORS = (4, 2)

#: By every fourth `base_q_idx`, the quality for which Pillow's encoder (libavif 1.4, libaom) chooses it for a
#: still; measured, and held by a test.
_QUALITIES = (
    *(100, 99, 98, 97, 95, 94, 93, 91, 90, 89, 87, 86, 85, 83, 82, 81),
    *(79, 78, 77, 75, 74, 73, 71, 70, 69, 67, 66, 65, 63, 62, 61, 59),
    *(58, 57, 55, 54, 53, 51, 49, 48, 46, 44, 43, 41, 39, 38, 36, 34),
    *(33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 4, 2),
)
_WORST_STEP = 63

#: How much finer than the others the first frame of a sequence is, about, in the same steps.
_FINER_STEPS = 3

#: Properties of an image that is coded in layers (AV1 Image File Format, 2.3.2).
_LAYERS = frozenset({b"a1op", b"a1lx", b"lsel"})

_TIFF_HEADERS = (b"II*\0", b"MM\0*")

_CROP_YOURSELF = "Crop it before you send it."

#: What `AvifEncoder` of Pillow's _avif.c has behind the head of an object: encoder, image and a flag.
_ENCODER = struct.Struct("PPi4x")

#: `avifImage` of libavif's avif.h up to its colour codes: sides, depth, format and range; then planes and ICC
#: profile; primaries, transfer function and matrix.
_IMAGE = struct.Struct("5I84x3H")
_MATRIX_AT = _IMAGE.size - 2
_YUV444, _FULL_RANGE, _BT601 = 1, 1, 6
_LOSSLESS = 100

_IDENTITY = 0
_UNSPECIFIED = 2

#: For each pixel, to decode it: planes at full resolution with alpha, the same as RGBA, and a copy of that.
_DECODER_BYTES = 12

#: To encode it, measured at all speeds that we use, with alpha; what does not depend on the size comes first.
_ENCODER_BASE_BYTES = 24 << 20
_ENCODER_BYTES = 33
_FULL_ENCODER_BYTES = 53


def check_end(data: Data) -> None:
    """Check that every top-level box ends inside the file (ISO/IEC 14496-12, 4.2).

    Raises:
        DamagedImage: one does not.
    """
    position = 0
    for _ in range(MAX_PARTS):
        if position == len(data):
            return
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:
            return  # the last box reaches to the end of the file
        position += size
        if size < _BYTE or position > len(data):
            raise damaged(Format.AVIF, "it is cut off")
    raise damaged(Format.AVIF, "it has too many boxes")


def check_memory_to_decode(size: tuple[int, int]) -> None:
    """Check beforehand that there is memory for a frame of this size.

    Pillow's reader uses the bytes of a frame without looking whether it got any (_avif.c,
    _decoder_get_frame), which would crash the engine and count against the image.

    Raises:
        MemoryError: there is not.
    """
    check_memory(size[0] * size[1] * _DECODER_BYTES)


def check_memory_to_encode(size: tuple[int, int], subsampling: str) -> None:
    """Check beforehand that there is memory to encode a frame of this size.

    libaom uses some of its tables without looking whether it got memory for them.

    Raises:
        MemoryError: there is not.
    """
    pixel_bytes = _ENCODER_BYTES if subsampling == "4:2:0" else _FULL_ENCODER_BYTES
    check_memory(_ENCODER_BASE_BYTES + size[0] * size[1] * pixel_bytes)


@dataclass(frozen=True, slots=True)
class Codes:
    """Colour codes (ISO/IEC 23091-2).

    Args:
        primaries, transfer, matrix: 2 where they are unspecified.
        is_full_range: whether samples use all their values.
    """

    primaries: int
    transfer: int
    matrix: int
    is_full_range: bool


@dataclass(frozen=True, slots=True)
class Avif:
    """What the structure of a file says of the image that Pillow decodes.

    Args:
        size: width and height as stored.
        crop: the clean aperture in the stored pixels; None for all of them.
        orientation: by EXIF's numbers, what makes the cropped pixels upright.
        is_deep: whether samples have more than 8 bits.
        subsampling: of chroma, as it is called.
        codes: of its colours; None where the file gives none.
        quality: for libavif, as the source was written; None where that cannot be told.
        is_lossless: whether its samples are red, green and blue, or gray, without loss.
        exif: without the offset before it; empty for none.
        plays: how often a sequence runs, 0 for ever.
        ticks_per_second: of its time.
        runs: of frames that show equally long: how many, and how many ticks, one after the other.
    """

    size: tuple[int, int]
    crop: Rect | None
    orientation: int
    is_deep: bool
    subsampling: str
    codes: Codes | None
    quality: int | None
    is_lossless: bool
    exif: bytes
    plays: int
    ticks_per_second: int
    runs: tuple[int, ...]

    def durations_ms(self) -> Iterator[float]:
        """Yield how long each frame shows; Pillow rounds that to milliseconds."""
        for count, ticks in zip(self.runs[::2], self.runs[1::2], strict=True):
            yield from repeat(1000 * ticks / self.ticks_per_second, count)

    @property
    def codes_of_colours(self) -> tuple[int, int] | None:
        """Return the codes without that of the matrix, which pixels do not need."""
        return None if self.codes is None else (self.codes.primaries, self.codes.transfer)


def read_avif(data: Data) -> Avif:
    """Read the structure of a file that Pillow has opened, and the headers of its first coded image.

    Raises:
        UnsupportedImage: its crop or its transformations cannot be applied exactly.
        ValueError, LookupError, struct.error: it is damaged.
    """
    picture = _picture(data)
    sequence, quantizer = _coding(data, picture)
    _check_scale(data, picture, sequence)
    found = _codes(data, picture.properties) or _codes(data, picture.coding)
    if found is None and sequence.codes != (_UNSPECIFIED,) * 3:
        found = Codes(*sequence.codes, sequence.is_full_range)
    is_exact = quantizer == 0 and (
        sequence.is_monochrome
        or (found is not None and found.matrix == _IDENTITY and not any(sequence.subsampling))
    )
    crop, orientation = _transformations(data, picture)
    return Avif(
        size=picture.size,
        crop=crop,
        orientation=orientation,
        is_deep=sequence.depth > _BYTE,
        subsampling=_subsampling(sequence),
        codes=found,
        quality=None if quantizer is None else _quality(quantizer, is_sequence=picture.is_sequence),
        is_lossless=is_exact,
        exif=_bare_exif(picture.exif),
        plays=picture.plays,
        ticks_per_second=picture.ticks_per_second,
        runs=picture.runs,
    )


def _picture(data: Data) -> Picture:
    """Return what libavif decodes: the brand tells, and where it does not, a track goes before an item."""
    brand = data[8:12]
    if brand == b"avis":
        return bmff.sequence(data)
    has_track = any(box.kind == b"moov" for box in bmff.top_level(data))
    return bmff.sequence(data) if brand != b"avif" and has_track else bmff.still(data)


def _coding(data: Data, picture: Picture) -> tuple[av1.Sequence, int | None]:
    """Read the headers: the sequence header rules, and `av1C` repeats it, perhaps wrongly."""
    box = bmff.first(picture.coding, b"av1C")
    sequence, quantizer = av1.read_headers(data[box.start + 4 : box.end] + picture.payload)
    # Of several layers the first is the coarsest.
    is_layered = any(box.kind in _LAYERS for box in picture.coding)
    return sequence, None if is_layered else quantizer


def _check_scale(data: Data, picture: Picture, sequence: av1.Sequence) -> None:
    """Refuse a still whose coded image has another size, to which libavif would stretch it.

    An older libheif wrote so what is rotated by a quarter: with width and height in each other's place.

    Raises:
        DamagedImage: it has.
    """
    if picture.is_sequence or any(box.kind in _LAYERS for box in picture.coding):
        return
    extent = bmff.first(picture.coding, b"ispe")
    if struct.unpack_from(">II", data, extent.start + 4) != sequence.size:
        raise damaged(Format.AVIF, "it is not as large as it says")


def _subsampling(sequence: av1.Sequence) -> str:
    """Return the chroma subsampling to write. 4:2:2 becomes 4:4:4: rotated, AVIF could not express it."""
    if sequence.is_monochrome:
        return "4:0:0"
    return "4:2:0" if all(sequence.subsampling) else "4:4:4"


def _codes(data: Data, properties: tuple[Box, ...]) -> Codes | None:
    """Return colour codes among properties (ISO/IEC 14496-12, 12.1.5)."""
    for box in _nclx(data, properties):
        primaries, transfer, matrix, flags = struct.unpack_from(">3HB", data, box.start + 4)
        return Codes(primaries, transfer, matrix, bool(flags & 0x80))
    return None


def _nclx(data: bmff.Data, properties: tuple[Box, ...]) -> Iterator[Box]:
    return (box for box in properties if box.kind == b"colr" and data[box.start : box.start + 4] == b"nclx")


def _quality(quantizer: int, *, is_sequence: bool) -> int:
    """Return the quality for which Pillow's encoder chooses this `base_q_idx`.

    The first frame of a sequence is coded finer than the others, how much depends on what follows.
    """
    step = min(_WORST_STEP, (quantizer + 2) // 4)
    if is_sequence:
        return max(1, 100 - round((step + _FINER_STEPS) * 100 / _WORST_STEP))
    return _QUALITIES[step]


def _transformations(data: Data, picture: Picture) -> tuple[Rect | None, int]:
    """Return what is to be cropped, and how to turn the rest (ISO/IEC 23008-12, 6.5.9, 6.5.10 and 6.5.12).

    They apply in the order of the properties, and Pillow knows `irot` before `imir` only.
    """
    crop: Rect | None = None
    orientation = 1
    for box in picture.properties:
        if box.kind == b"irot":
            orientation = oriented(orientation, _ROTATIONS[data[box.start] & 3])
        elif box.kind == b"imir":
            orientation = oriented(orientation, _MIRRORS[data[box.start] & 1])
        elif box.kind == b"clap":
            if crop is not None or orientation != 1:
                raise UnsupportedImage(f"The image is cropped after it is turned. {_CROP_YOURSELF}")
            crop = _clean_aperture(data, box, picture.size)
    return crop, orientation


def _clean_aperture(data: Data, box: Box, size: tuple[int, int]) -> Rect:
    """Return the pixels that are to be shown (ISO/IEC 14496-12, 12.1.4).

    Raises:
        UnsupportedImage: they are no whole pixels of the image.
        ZeroDivisionError: the box is damaged.
    """
    numbers = struct.unpack_from(">IIIIiIiI", data, box.start)
    width, height, right, down = (Fraction(*numbers[at : at + 2]) for at in range(0, 8, 2))
    x, y = right + (size[0] - width) / 2, down + (size[1] - height) / 2
    is_inside = x >= 0 and y >= 0 and x + width <= size[0] and y + height <= size[1]
    if not (
        is_inside and width and height and all(number.denominator == 1 for number in (x, y, width, height))
    ):
        raise UnsupportedImage(
            f"The image is cropped to a part that is no whole pixels of it. {_CROP_YOURSELF}"
        )
    return Rect(int(x), int(y), int(width), int(height))


def _bare_exif(item: bytes) -> bytes:
    """Return the TIFF structure in an EXIF item, which an offset leads to (ISO/IEC 23008-12, A.2.1).

    Where it does not, or is missing, as some writers have it, the structure is found by its beginning.
    """
    start = 4 + int.from_bytes(item[:4], "big")
    if item[start : start + 4] not in _TIFF_HEADERS:
        start = min((at for at in map(item.find, _TIFF_HEADERS) if at >= 0), default=len(item))
    return item[start:]


def without_exif(data: Data) -> Data:
    """Return the file as Pillow should read it, with its EXIF under a type that no reader knows.

    libavif refuses a whole file for odd EXIF, and Pillow for EXIF that it cannot parse. We read it ourselves.

    Raises:
        ValueError, LookupError, struct.error: the structure is damaged.
    """
    places = bmff.exif_kinds(data)
    if not places:
        return data
    file = bytearray(data)
    for at in places:
        file[at : at + 4] = b"skip"
    return bytes(file)


def cropped(stored: Avif, image: Image.Image) -> Image.Image:
    """Return the pixels that are to be shown, which Pillow does not know.

    Raises:
        ValueError: the crop is of an image of another size.
    """
    if stored.crop is None:
        return image
    if stored.size != image.size:
        raise ValueError("an image has two sizes")
    x, y, width, height = stored.crop
    return image.crop((x, y, x + width, y + height))


def encoded_exactly(  # noqa: PLR0913 each is a part of the file
    images: Sequence[Image.Image],
    durations_ms: Sequence[int],
    *,
    speed: int,
    icc: bytes,
    exif: bytes,
    xmp: bytes,
) -> bytes:
    """Encode RGB or RGBA without loss.

    Raises:
        UnsupportedImage: this version of Pillow cannot.
    """
    first = images[0]
    encoder = _exact_encoder(first.size, speed, icc, exif, xmp)
    for image, duration_ms in zip(images, durations_ms, strict=True):
        encoder.add(image.tobytes(), duration_ms, image.size, image.mode, len(images) == 1)
    file: bytes = encoder.finish()
    return file


def _exact_encoder(size: tuple[int, int], speed: int, icc: bytes, exif: bytes, xmp: bytes) -> Any:  # noqa: ANN401
    """Make an encoder of Pillow's that stores red, green and blue as they are (ISO/IEC 23091-2, matrix 0).

    Pillow always has them converted to YCbCr, which rounds, and offers no choice. So the matrix is changed
    where its object keeps it, before the first image comes; where it does not stand there, nothing is.

    Raises:
        UnsupportedImage: this version of Pillow keeps it elsewhere.
    """
    threads, tiles, is_premultiplied, makes_tiles, orientation = 1, (0, 0), False, True, 1
    encoder = _avif.AvifEncoder(
        *(size, "4:4:4", _LOSSLESS, speed, threads, "auto", "full", *tiles),
        *(is_premultiplied, makes_tiles, icc, exif, orientation, xmp, None),
    )
    head_bytes = object.__basicsize__
    if type(encoder).__basicsize__ == head_bytes + _ENCODER.size:
        _, image, _ = _ENCODER.unpack(ctypes.string_at(id(encoder) + head_bytes, _ENCODER.size))
        *fields, _, _, matrix = _IMAGE.unpack(ctypes.string_at(image, _IMAGE.size))
        if fields == [*size, _BYTE, _YUV444, _FULL_RANGE] and matrix == _BT601:
            ctypes.c_uint16.from_address(image + _MATRIX_AT).value = _IDENTITY
            return encoder
    raise UnsupportedImage(
        "This AVIF is lossless, and would not be afterwards. Ask for format=png, or for a quality."
    )


def with_codes(file: bytearray, codes: tuple[int, int]) -> None:
    """Name primaries and transfer function in a file of Pillow's, whose writer says sRGB of all samples."""
    properties = list(_written_properties(file))
    for box in _nclx(file, tuple(properties)):
        struct.pack_into(">HH", file, box.start + 4, *codes)


def _written_properties(file: bytearray) -> Iterator[Box]:
    """Yield all properties of items and tracks in a file of Pillow's."""
    for box in bmff.top_level(file):
        if box.kind == b"meta":
            ipco = bmff.inside(file, Box(b"meta", box.start + 4, box.end), b"iprp", b"ipco")
            yield from bmff.boxes(file, ipco.start, ipco.end)
        if box.kind == b"moov":
            for trak in bmff.tracks(file):
                yield from bmff.sample_properties(file, trak)


def with_plays(file: bytearray, plays: int) -> None:
    """Say in a sequence of Pillow's, which would run for ever, how often it runs (ISO/IEC 23008-12, 9.6.1).

    Args:
        file: to be changed.
        plays: 0 for ever.
    """
    if not plays:
        return
    longest = 0
    for trak in bmff.tracks(file):
        edit = bmff.inside(file, trak, b"edts", b"elst")
        struct.pack_into(">I", file, edit.start, file[edit.start] << 24 | (plays > 1))
        duration = plays * bmff.times(file, edit).read(file)
        longest = max(longest, duration)
        _write_duration(file, bmff.inside(file, trak, b"tkhd"), duration)
    moov = bmff.first(bmff.top_level(file), b"moov")
    _write_duration(file, bmff.inside(file, moov, b"mvhd"), longest)


def _write_duration(file: bytearray, box: Box, duration: int) -> None:
    place = bmff.times(file, box)
    most = (1 << 8 * place.nbytes) - 1  # for ever, which this is
    file[place.at : place.at + place.nbytes] = min(duration, most).to_bytes(place.nbytes, "big")
