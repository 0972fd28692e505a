"""Formats that Pillow reads and writes whole: what to check before it decodes, and what to pass on."""

import re
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageFile

from server.errors import TooManyPixels
from server.imaging.codecs import CODECS, Data, Format, Sink, damaged, write_whole
from server.imaging.formats import bmp
from server.imaging.formats.bmp_file import BmpFile, RunsDecoder

_QOI_END = b"\0\0\0\0\0\0\0\1"
_PLAIN = (b"P1", b"P2", b"P3")

#: How many steps Pillow's decoders and encoders that are written in Python may take, about 0.65 microseconds
#: of an engine each: a sample of a PPM, a run of a BMP. What QOI does for a pixel takes twice as long.
_MAX_STEPS = 10_000_000
_QOI_STEPS = 2

#: In the header of a PPM, and in the pixels of a plain one.
_MAX_HEAD_BYTES = 1 << 16
_MAX_COMMENTS = 1000

#: A comment or a number in the header of a PPM.
_HEADER_PART = re.compile(rb"\s*(?:#([^\r\n]*)[\r\n]|[-+.\d]+)")

_PYTHON_PPM_DECODERS = frozenset({"ppm", "ppm_plain"})


def check_head(form: Format, data: Data) -> None:
    """Refuse a PPM whose comments would cost Pillow's reader any time; call it before the file is opened.

    Pillow reads the header byte by byte, and copies the pixels of a plain file once for each comment in them.

    Raises:
        DamagedImage: its header is too long, or it has too many comments.
    """
    if form is not Format.PPM:
        return
    if len(data) > _MAX_HEAD_BYTES:
        head = re.sub(rb"#[^\r\n]*[\r\n]?", b"", bytes(data[:_MAX_HEAD_BYTES]))
        numbers = 3 if data[:2] in (b"P1", b"P4") else 4  # with the signature; a bitmap has no highest value
        whole = len(head.split()) - (not head[-1:].isspace())
        if whole < numbers:
            raise damaged(Format.PPM, f"its header does not end within {_MAX_HEAD_BYTES} bytes")
    if data[:2] in _PLAIN:
        at = -1
        for _ in range(_MAX_COMMENTS + 1):
            at = data.find(b"#", at + 1)
            if at < 0:
                return
        raise damaged(Format.PPM, f"it has more than {_MAX_COMMENTS} comments")


def comment_in(data: Data) -> bytes:
    """Return the comments in the header of a PPM, one on each line; empty for none (netpbm's ppm(5))."""
    head = bytes(data[:_MAX_HEAD_BYTES])
    at, numbers, comments = 2, 2 if head[:2] in (b"P1", b"P4") else 3, []
    while numbers and (found := _HEADER_PART.match(head, at)):
        at = found.end()
        if found[1] is None:
            numbers -= 1
        else:
            comments.append(found[1].strip())
    return b"\n".join(filter(None, comments))


class Commented:
    """A file into which Pillow writes a PPM, and which puts a comment behind the signature.

    Args:
        sink: the file.
        comment: one or more lines.
    """

    def __init__(self, sink: Sink, comment: str) -> None:
        self._sink = sink
        self._comment = b"".join(b"# %s\n" % line.encode() for line in comment.splitlines())

    def write(self, piece: bytes) -> int:
        """Write a piece, and the comment in the first one."""
        comment, self._comment = self._comment, b""
        write_whole(self._sink, piece[:3] + comment + piece[3:] if comment else piece)
        return len(piece)


def check_steps(form: Format, target: Format, image: ImageFile.ImageFile, data: Data) -> None:
    """Refuse an image that Pillow would decode or encode in Python for too long.

    Args:
        form: of the file.
        target: of the result.
        image: as Pillow opened it.
        data: the file.

    Raises:
        TooManyPixels: with what to do instead.
    """
    pixels = image.width * image.height
    name = CODECS[form].name
    steps = _steps(form, image, data)
    if steps > _MAX_STEPS:
        raise TooManyPixels(
            f"A {name} of this kind and size takes too long to decode. Convert it to PNG and send that.",
        )
    if target is Format.QOI and steps + _QOI_STEPS * pixels > _MAX_STEPS:
        raise TooManyPixels(
            f"A {name} of this size takes too long to write. Send a smaller one, or ask for format=png.",
        )


def _steps(form: Format, image: ImageFile.ImageFile, data: Data) -> int:
    """Return the most steps in Python that decoding may take; 0 for a decoder in C."""
    pixels = image.width * image.height
    if form is Format.QOI:
        return _QOI_STEPS * min(pixels, len(data))  # a chunk takes a byte or more, and gives a pixel or more
    if form is Format.PPM and image.tile[0].codec_name in _PYTHON_PPM_DECODERS:
        return min(pixels * len(image.getbands()), len(data))
    if form is Format.BMP and image.tile[0].codec_name == RunsDecoder.name:
        return len(data) // 2  # a step may give nothing
    return 0


def _check_qoi(data: Data) -> None:
    """Check that the end marker is there (QOI 1.0)."""
    if data[-len(_QOI_END) :] != _QOI_END:
        raise damaged(Format.QOI, "it is cut off")


def _check_ppm(data: Data) -> None:
    """Check that a blank follows the last number of a plain file: otherwise digits may be missing."""
    if data[:2] in (b"P2", b"P3") and data[-1:].isdigit():
        raise damaged(Format.PPM, "it is cut off")


_CHECKS: dict[Format, Callable[[Data], None]] = {
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
    return {}


def write_pfm(sink: Sink, image: Image.Image) -> None:
    """Write a PFM with the scale that it had, by which readers multiply; Pillow would leave it out."""
    scale = image.info.get("scale", 1.0)
    sink.write(b"Pf\n%d %d\n-%s\n" % (*image.size, repr(scale).encode()))  # negative for little-endian
    sink.write(image.tobytes("raw", ("F;32F", 0, -1)))


def check_rows(form: Format, image: ImageFile.ImageFile, data: Data) -> None:
    """Refuse a file whose last row is cut off, where its decoder would not.

    Raises:
        DamagedImage: it is cut off.
    """
    if form is Format.BMP:
        bmp.check_rows(image, data)


def is_deep(form: Format, image: ImageFile.ImageFile) -> bool:
    """Tell whether Pillow would silently decode more than 8 bits per channel to 8."""
    if isinstance(image, BmpFile):
        return image.channel_bits > 8  # noqa: PLR2004
    if form is Format.PPM:
        arguments = image.tile[0].args
        return image.mode == "RGB" and isinstance(arguments, tuple) and arguments[-1] > 255  # noqa: PLR2004
    return False
