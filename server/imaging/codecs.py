"""The image formats we know: how each is recognised by its bytes, how it is opened, and what it can hold."""

import logging
import mmap
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from io import SEEK_CUR, SEEK_END, SEEK_SET
from typing import BinaryIO

# Imported one by one: these plugins are the allow-list. Nothing here ever calls Image.init(), which would
# load every decoder Pillow has.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,  # noqa: F401 - it writes them
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from server.errors import DamagedImage, ServiceError, TooManyPixels, UnsupportedImage
from server.imaging.foreign import name_of
from server.imaging.formats.bmp_file import BmpFile
from server.imaging.formats.qoi_file import QoiFile
from server.imaging.formats.tiff_file import TiffFile

# Nothing that Pillow logs about odd files is of use; without a handler Python would print it into our log.
logging.getLogger("PIL").addHandler(logging.NullHandler())

# We check the pixels ourselves, from the header and against the caller's limits.
Image.MAX_IMAGE_PIXELS = None

# One image is one core's work: the other cores have images of their own.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1

#: Segments, chunks or blocks of a file. No sound one has so many, and each costs a walk in Python.
MAX_PARTS = 100_000

#: What only a mistake of ours raises.
_OUR_MISTAKES = (AssertionError, AttributeError, ImportError, NameError, TypeError)

#: What a codec may need for each pixel, without the pixels that it takes or gives, in bytes: two images of
#: four channels, or the coefficients of a progressive JPEG.
_CODEC_BYTES = 8

#: A zlib stream without content.
_NOTHING = zlib.compress(b"")

#: What encoders say only when they find no memory: libavif (avifResultToString), libwebp (WebPEncodingError:
#: 1 and 2 are memory, 8 is its writer, and that writes to memory) and Pillow itself.
_NO_MEMORY = re.compile(
    r"out of memory|encoding of (color|alpha) planes? failed|encoding error [128]$|encoder returned none"
    r"|could not create (encoder|mux) object|image creation failed|quantization error|encoder error -9\b",
    re.IGNORECASE,
)

#: A whole file in memory, sliceable and searchable without copying it.
Data = bytes | mmap.mmap


class DataFile:
    """The file that decoders read: our data, with a position.

    An `mmap` is a file too, but its `seek` refuses positions behind the end, where a file's own takes any and
    reads nothing there; Pillow's readers count on that. Data of either type is read through this, so that the
    same file is opened or refused wherever it is held.

    Args:
        data: the whole file.
    """

    def __init__(self, data: Data) -> None:
        self._data = data
        self._position = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to `size` bytes from the current position; all that is left for None or less than 0."""
        start = self._position
        end = len(self._data) if size is None or size < 0 else start + _whole(size)
        piece = bytes(self._data[start:end])
        self._position += len(piece)
        return piece

    def seek(self, position: int, whence: int = SEEK_SET, /) -> int:
        """Move the current position, and return it.

        Raises:
            ValueError: it would be negative.
        """
        position = (
            _whole(position) + {SEEK_SET: 0, SEEK_CUR: self._position, SEEK_END: len(self._data)}[whence]
        )
        if position < 0:
            raise ValueError(f"negative seek position {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def getvalue(self) -> Data:
        """Return all of it, as Pillow asks for: libtiff then reads it where it is."""
        return self._data


def _whole(number: object) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is something else, which a damaged file gives to a decoder, and that to us.
    """
    if isinstance(number, int):
        return number
    raise ValueError(f"{number!r} is not a whole number")


#: An empty, writable, seekable binary file.
Sink = BinaryIO


class Format(StrEnum):
    """Every format that may come in. What may be asked for is `OUTPUT_FORMATS`."""

    JPEG = "jpeg"
    PNG = "png"
    WEBP = "webp"
    GIF = "gif"
    TIFF = "tiff"
    BMP = "bmp"
    AVIF = "avif"
    PPM = "ppm"
    QOI = "qoi"


#: What a caller may ask for. The others come out as themselves when nothing is asked for.
OUTPUT_FORMATS = frozenset(
    {Format.JPEG, Format.PNG, Format.WEBP, Format.GIF, Format.TIFF, Format.BMP, Format.AVIF},
)

#: Formats whose encoders need little memory.
_FRUGAL = frozenset({Format.JPEG, Format.PNG})


class Effort(StrEnum):
    """How long an encoder looks for a smaller file. Each codec has its own table of what that means."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


@dataclass(frozen=True, slots=True)
class Codec:
    """One row of the table of formats.

    Args:
        name: for sentences.
        pillow: Pillow's name, for saving.
        media_type: what goes into `Content-Type`.
        plugin: Pillow's reader. It is called directly, so that nothing but it can open the file; for a JPEG
            that also means that an MPO opens as what its first image is, a JPEG.
        modes: the pixel modes its writer takes as they are, best first.
        max_side: the largest width or height its writer takes, in pixels.
    """

    name: str
    pillow: str
    media_type: str
    plugin: type[ImageFile.ImageFile]
    modes: tuple[str, ...]
    max_side: int = 2**31 - 1


CODECS: dict[Format, Codec] = {
    Format.JPEG: Codec(
        "JPEG",
        "JPEG",
        "image/jpeg",
        JpegImagePlugin.JpegImageFile,
        ("RGB", "L", "CMYK"),
        65500,
    ),
    Format.PNG: Codec(
        "PNG",
        "PNG",
        "image/png",
        PngImagePlugin.PngImageFile,
        ("RGBA", "RGB", "LA", "L", "I;16", "P", "1"),
    ),
    Format.WEBP: Codec("WebP", "WEBP", "image/webp", WebPImagePlugin.WebPImageFile, ("RGBA", "RGB"), 16383),
    Format.GIF: Codec("GIF", "GIF", "image/gif", GifImagePlugin.GifImageFile, ("P",), 65535),
    Format.TIFF: Codec(
        "TIFF",
        "TIFF",
        "image/tiff",
        TiffFile,
        ("RGBA", "RGB", "LA", "L", "CMYK", "P", "PA", "I;16", "I;16B", "F", "1", "YCbCr", "LAB"),
    ),
    Format.BMP: Codec("BMP", "BMP", "image/bmp", BmpFile, ("RGB", "L", "P", "1")),
    Format.AVIF: Codec(
        "AVIF", "AVIF", "image/avif", AvifImagePlugin.AvifImageFile, ("RGBA", "RGB", "L"), 16384
    ),
    Format.PPM: Codec(
        "PPM",
        "PPM",
        "image/x-portable-anymap",
        PpmImagePlugin.PpmImageFile,
        ("RGB", "L", "I;16", "I", "F", "1"),
    ),
    Format.QOI: Codec("QOI", "QOI", "image/qoi", QoiFile, ("RGBA", "RGB")),
}

_SIGNATURES: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", Format.JPEG),
    (b"\x89PNG\r\n\x1a\n", Format.PNG),
    (b"GIF87a", Format.GIF),
    (b"GIF89a", Format.GIF),
    *((prefix, Format.TIFF) for prefix in TiffImagePlugin.PREFIXES),
    (b"BM", Format.BMP),
    (b"qoif", Format.QOI),
    *((b"P" + kind, Format.PPM) for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")),
)

_ACCEPTED = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, PPM or QOI"

#: What Pillow says of a sound file that it cannot decode, as opposed to a damaged one.
_UNSUPPORTED_PHRASES = ("cannot handle", "unsupported", "not yet supported", "unknown pixel mode")


def write_whole(sink: Sink, piece: bytes | memoryview) -> None:
    """Write all of it, or raise: a raw file takes only a part when space runs out, and returns how much."""
    rest = memoryview(piece)
    while rest:
        rest = rest[sink.write(rest) :]


def sniff(data: Data) -> Format:
    """Recognise the format by the first bytes; names and headers are never looked at.

    Raises:
        UnsupportedImage: not an image, or outside the allow-list.
    """
    head = bytes(data[:4096])
    for signature, form in _SIGNATURES:
        if head.startswith(signature):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Format.WEBP
    if head[4:8] == b"ftyp":
        brands = head[8 : max(16, int.from_bytes(head[:4], "big"))]
        if b"avif" in brands or b"avis" in brands:
            return Format.AVIF
    if not head:
        what = "The body is empty"
    elif name := name_of(head):
        what = f"This is {name}, which is not accepted"
    else:
        what = "This is not an image in a format we accept"
    raise UnsupportedImage(f"{what}. Send a {_ACCEPTED} file.")


def open_image(form: Format, data: Data) -> ImageFile.ImageFile:
    """Read the header with the one plugin of this format; decodes nothing. Call it inside `decoding`.

    Raises:
        UnsupportedImage: a sound file of a kind that Pillow cannot decode.
    """
    codec = CODECS[form]
    try:
        return codec.plugin(DataFile(data))  # type: ignore[arg-type]  # all that Pillow uses of a file
    except (SyntaxError, OSError, ValueError) as error:
        if any(phrase in str(error).lower() for phrase in _UNSUPPORTED_PHRASES):
            raise UnsupportedImage(
                f"This kind of {codec.name} cannot be decoded ({error}). Convert it to 8 bits per channel, "
                "without rare compression, and send that.",
            ) from error
        raise


def damaged(form: Format, what: str) -> DamagedImage:
    """Make the error for a damaged file, to be raised.

    Args:
        form: what it claims to be.
        what: what is wrong, as a clause.
    """
    return DamagedImage(f"The {CODECS[form].name} file is damaged: {what}. Send an intact copy.")


def too_deep(form: Format) -> UnsupportedImage:
    """Make the error for a file that would lose bits per channel, to be raised."""
    return UnsupportedImage(
        f"This {CODECS[form].name} has more than 8 bits per channel, which would be lost. "
        f"Convert it to 8 bits, or ask for them with format={form if form in OUTPUT_FORMATS else 'png'}.",
    )


@contextmanager
def decoding(form: Format, size: tuple[int, int] = (0, 0)) -> Iterator[None]:
    """Translate what decoders raise into one of our errors; nothing else does so.

    On hostile bytes decoders raise any exception there is, and they warn of what they tolerate. The first
    means a damaged file; for the second we have our own checks. Nothing that encodes belongs in this block,
    or a bug of ours would look like a damaged image. A mistake in our own code is raised as it is.

    Args:
        form: what the file claims to be.
        size: of what is decoded, in pixels; leave it out where only the structure is read.

    Raises:
        DamagedImage: the decoder failed.
        TooManyPixels: the decoder found no memory.
        ServiceError: the block raised one of our own errors.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ServiceError:
        raise
    except Exception as error:
        if isinstance(error, _OUR_MISTAKES) and _is_from_here(error):
            raise
        if isinstance(error, MemoryError) or not _has_memory(size):
            raise TooManyPixels(
                "The image needs more memory than an engine may have. Send a smaller one."
            ) from MemoryError(str(error))
        raise damaged(form, "it cannot be decoded to the end") from error


@contextmanager
def encoding(form: Format, size: tuple[int, int]) -> Iterator[None]:
    """Tell an encoder that found no memory from a bug of ours, which is raised as it is.

    Args:
        form: what is written.
        size: of the image, in pixels.

    Raises:
        TooManyPixels: the encoder found no memory.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        is_from_sink = isinstance(error, OSError) and error.errno is not None
        is_told = isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))
        if is_from_sink or (not is_told and _has_memory(size)):
            raise
        advice = "" if form in _FRUGAL else ", or ask for format=jpeg or format=png, which need less"
        raise TooManyPixels(
            f"To write this image as {CODECS[form].name} needs more memory than an engine may have. "
            f"Send a smaller one{advice}.",
        ) from MemoryError(str(error))


def _has_memory(size: tuple[int, int]) -> bool:
    """Tell whether there is the memory that a codec may need for an image of this size.

    Asked after a failure: libjpeg, libtiff, libwebp and dav1d report a lack of memory as they report damage.
    """
    try:
        check_memory(size[0] * size[1] * _CODEC_BYTES)
    except MemoryError:
        return False
    return True


def check_memory(nbytes: int) -> None:
    """Check that there is so much memory, for code in C that does not look whether it got any.

    It is not touched, so no page of it becomes resident. As with what malloc(3) gives a codec, it may come
    from what earlier images have left free.

    Raises:
        MemoryError: there is not.
    """
    # A buffer into which nothing is written. bytes(nbytes) fills what has been in use with zeros.
    zlib.decompress(_NOTHING, bufsize=nbytes)


def _is_from_here(error: Exception) -> bool:
    """Tell whether the code that raised it is ours and not a decoder's."""
    step = error.__traceback__
    while step is not None and step.tb_next is not None:
        step = step.tb_next
    return step is not None and str(step.tb_frame.f_globals.get("__name__")).startswith("server.")
