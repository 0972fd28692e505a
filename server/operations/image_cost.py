"""What an image will cost before anything is decoded: a look at its header, without any decoder.

Nothing here decides what an image is: the engine reads the header again and is right. But what an engine may
accept must not cost more than is told here: a header that is not understood counts as the largest image there
may be.
"""

import re
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from mmap import ALLOCATIONGRANULARITY
from typing import Any

from server.operations.registry import Cost, Piece, Read, unknown_cost

#: How long a look may take, in steps of about a microsecond: a part that is read, such as a segment, a box, a
#: chunk or a block, and a value or a hit in it. The event loop stands still meanwhile.
MAX_STEPS = 4096

#: How much a step searches, in bytes: with a regular expression, for three strings, and among tags of a TIFF.
_SKIPPED_BYTES = 64
_SEARCHED_BYTES = 256
_TAGS = 8

#: How much is read at once, in bytes: to recognise the format, where the next part is nearby, and for blocks
#: that lie in a row, which are mapped rather than copied. To read takes two steps more, and another for so
#: many bytes.
_HEAD_BYTES = 1 << 12
_NEAR_BYTES = 1 << 9
_ROW_BYTES = 1 << 20
_READ_BYTES = 1 << 14

#: As long as the header of a PPM may be.
_PPM_HEAD_BYTES = 1 << 16

#: What a pixel has at most: four samples of 16 bits.
_MOST_PIXEL_BYTES = 8

#: Formats that are decoded in Python, or may be.
_PYTHON_DECODERS = frozenset({"bmp", "ppm", "qoi"})

#: More than any limit, and small enough to be multiplied.
_UNKNOWN = 1 << 40


class _Refused(Exception):
    """Every engine refuses a file like this, unless more of it follows."""


class _TooLong(Exception):
    """A look at this header would take too long."""


@dataclass(slots=True)
class Header:
    """What a header says; what it does not say, or not yet, is more than any limit.

    Attributes:
        form: as in `server.imaging.codecs.Format`; None for a file that no engine accepts.
        pixels: of the largest frame or page.
        side: the longer side of the largest frame or page.
        frames: of the animation, or pages; never fewer than the engine will see.
        pixel_bytes: of one pixel, as the same format would store it without compression.
        total_pixels: of pages that differ in size; 0 when all frames are as large as the canvas.
        python_steps: of a decoder that is written in Python, a sample or a run each, and two for a pixel of a
            QOI.
        is_refused: whether every engine refuses the file, unless more of it follows; then `frames` are those
            that are there.
        is_known: whether it was read to its end.
    """

    form: str | None
    pixels: int = _UNKNOWN
    side: int = _UNKNOWN
    frames: int = 1
    pixel_bytes: int = 4
    total_pixels: int = 0
    python_steps: int = 0
    is_refused: bool = False
    is_known: bool = False

    def measure(self, width: int, height: int) -> None:
        """Note how large a frame is."""
        self.pixels, self.side = width * height, max(width, height)


class _Look:
    """A file of which at least the beginning is there, and how many steps a look at it may still take.

    Args:
        read: returns up to so many bytes from a position.
        body_bytes: how long the file is or will be.
    """

    def __init__(self, read: Read, body_bytes: int) -> None:
        self._read = read
        self._piece: Piece = b""
        self._start = 0
        self.body_bytes = body_bytes
        self.steps = MAX_STEPS

    def spend(self, steps: int) -> None:
        """Count so many steps.

        Raises:
            _TooLong: there are no more.
        """
        self.steps -= steps
        if self.steps < 0:
            raise _TooLong

    def piece(self, at: int, least: int = 1, size: int = _ROW_BYTES) -> tuple[Piece, int]:
        """Return a piece of the file with what is at a position, and where that is in it.

        Args:
            at: the position.
            least: how many bytes must be there.
            size: how many to read when they are not.

        Raises:
            _Refused: the file ends before them.
        """
        if at + least > self.body_bytes:
            raise _Refused
        self.spend(1)
        if not 0 <= at - self._start <= len(self._piece) - least:
            self._start = at - at % ALLOCATIONGRANULARITY if size == _ROW_BYTES else at
            self._piece = self._read(self._start, max(at - self._start + least, size))
            self.spend(2 + len(self._piece) // _READ_BYTES)
            if at - self._start > len(self._piece) - least:
                raise _Refused
        return self._piece, at - self._start

    def part(self, at: int, size: int) -> bytes:
        """Return exactly so many bytes from a position.

        Raises:
            _Refused: the file ends before.
        """
        piece, begin = self.piece(at, size, _NEAR_BYTES)
        return piece[begin : begin + size]

    def numbers(self, form: str, at: int) -> tuple[Any, ...]:
        """Read numbers, as `struct.unpack` does."""
        return struct.unpack(form, self.part(at, struct.calcsize(form)))


_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    *((prefix, "tiff") for prefix in (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")),
    (b"BM", "bmp"),
    (b"qoif", "qoi"),
    *((b"P" + kind, "ppm") for kind in (b"1", b"2", b"3", b"4", b"5", b"6", b"f")),
)


def sniffed(head: bytes) -> str | None:
    """Recognise the format as engines do, by the first 4096 bytes; None when they would refuse it."""
    for signature, form in _SIGNATURES:
        if head.startswith(signature):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        brands = _brands(head)
        if b"avif" in brands or b"avis" in brands:
            return "avif"
    return None


def _brands(head: bytes) -> bytes:
    return head[8 : max(16, int.from_bytes(head[:4], "big"))]


def header(read: Read, body_bytes: int) -> Header:
    """Read the header of an image of which at least the beginning is there. Never raises.

    Args:
        read: returns up to so many bytes from a position.
        body_bytes: how long the file is or will be.
    """
    found = Header(None)
    try:
        head = bytes(read(0, _HEAD_BYTES))
        found.form = sniffed(head)
        if found.form is not None:
            _HEADERS[found.form](found, _Look(read, body_bytes), head)
            found.is_known = True
    except _Refused:
        found.is_refused = True
    except (_TooLong, LookupError, struct.error, ValueError, OverflowError, OSError):
        found.frames, found.total_pixels = _UNKNOWN, 0
        found.pixel_bytes = max(found.pixel_bytes, _MOST_PIXEL_BYTES)
        found.python_steps = body_bytes if found.form in _PYTHON_DECODERS else 0
    found.is_refused |= found.form is None
    return found


#: What starts a segment of a JPEG: no stuffed byte, fill byte, TEM, restart marker or SOI, which stand alone.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd8]")
_SOS, _EOI = 0xDA, 0xD9
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # ITU-T T.81, table B.1


def _jpeg(found: Header, look: _Look, _head: bytes) -> None:
    """Find the largest frame header before the first scan (ITU-T T.81, B.2.2)."""
    frames: list[tuple[int, int, int]] = []
    at = 2
    while True:
        segment = look.part(at, 4)
        if not _MARKER.match(segment):
            at = _next_marker(look, at)
            continue
        marker, length = struct.unpack(">xBH", segment)
        if marker in {_SOS, _EOI}:
            break
        if marker in _FRAME_HEADERS:
            frames.append(look.numbers(">HHB", at + 5))
        at += 2 + length
    height, width, _ = max(frames, key=lambda frame: frame[0] * frame[1], default=(0, 0, 0))
    if not height * width:
        raise _Refused
    found.measure(width, height)
    found.pixel_bytes = max(1, *(components for _, _, components in frames))


def _next_marker(look: _Look, at: int) -> int:
    """Skip what the engine skips between segments: fill bytes, and what means nothing."""
    while True:
        piece, begin = look.piece(at, 2, _NEAR_BYTES)
        marker = _MARKER.search(piece, begin)
        end = len(piece) - 1 if marker is None else marker.start()
        look.spend((end - begin) // _SKIPPED_BYTES)
        at += end - begin
        if marker is not None:
            return at


def _png(found: Header, look: _Look, head: bytes) -> None:
    """Read IHDR, and acTL, which is there before the pixels or not at all (PNG 3rd edition, 11.3.6.1)."""
    width, height, depth, colour = look.numbers(">IIBB", 16)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(colour)
    if head[12:16] != b"IHDR" or samples is None:
        raise _Refused
    found.measure(width, height)
    found.pixel_bytes = (samples * depth + 7) // 8
    at = 8
    while True:
        length, kind = look.numbers(">I4s", at)
        if kind == b"acTL":
            found.frames = max(found.frames, *look.numbers(">I", at + 8))
        if kind in {b"IDAT", b"IEND"}:
            return
        at += length + 12


_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B

#: An image descriptor, and the graphic control extension that most have.
_DESCRIPTOR = re.compile(rb"(?:!\xf9\x04.{4}\x00)?,(.{9})", re.DOTALL)
_DESCRIPTOR_BYTES = 18

#: Of how much at once the lengths of sub-blocks are looked at, in bytes, and how long those must be.
_RUN_BYTES = 1 << 16
_LONG_BLOCK_BYTES = 64


def _gif(found: Header, look: _Look, _head: bytes) -> None:
    """Read the logical screen, and walk over the blocks (GIF89a, appendix B)."""
    width, height, flags = look.numbers("<HHB", 6)
    found.measure(width, height)
    frames, at = 0, 13 + _table_bytes(flags)
    while not frames or at < look.body_bytes:  # many have no trailer
        piece, begin = look.piece(at, max(1, min(_DESCRIPTOR_BYTES, look.body_bytes - at)))
        kind = piece[begin]
        if descriptor := _DESCRIPTOR.match(piece, begin):
            x, y, frame_width, frame_height, flags = struct.unpack("<4HB", descriptor[1])
            if not frames:  # the canvas is enlarged by it
                found.measure(max(width, x + frame_width), max(height, y + frame_height))
            elif frame_width * frame_height > found.pixels:  # of which only a part is seen
                found.measure(frame_width, frame_height)
            frames += 1
            found.frames = frames
            table_bytes = _table_bytes(flags)
            at = _after_sub_blocks(look, at + len(descriptor[0]) + table_bytes + 1)
        elif kind == _EXTENSION:
            at = _after_sub_blocks(look, at + 2)
        elif kind == 0:
            at += 1
        elif kind == _TRAILER or frames:
            return
        else:
            raise _Refused


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_sub_blocks(look: _Look, at: int) -> int:
    """Skip a chain of sub-blocks; nearly all are equally long, and skipped together (section 15)."""
    while at != look.body_bytes:  # the engine's decoder tells whether pixels are missing
        piece, begin = look.piece(at)
        size, count = piece[begin], 1
        if not size:
            return at + 1
        if size >= _LONG_BLOCK_BYTES:
            lengths = piece[begin : begin + _RUN_BYTES : size + 1]
            count = len(lengths) - len(lengths.lstrip(lengths[:1]))
        end = begin + count * (size + 1)
        at += end - begin
        if end < len(piece) and not piece[end]:
            return at + 1
    return at


def _webp(found: Header, look: _Look, head: bytes) -> None:
    """Read the first chunk, and walk over the frames (RFC 9649, 2.5 to 2.7)."""
    if head[12:16] != b"VP8X":
        found.measure(*_webp_size(look, 12))
        return
    size = look.part(24, 6)
    found.measure(*(int.from_bytes(size[at : at + 3], "little") + 1 for at in (0, 3)))
    frames, at, end = 0, 12, min(look.body_bytes, 8 + int.from_bytes(head[4:8], "little"))
    while at + 8 <= end:
        kind, length = look.numbers("<4sI", at)
        if kind == b"ANMF":
            frames += 1
            found.frames = frames
        at += 8 + length + length % 2


def _webp_size(look: _Look, at: int) -> tuple[int, int]:
    while True:
        kind, length = look.numbers("<4sI", at)
        if kind == b"VP8L":
            (bits,) = look.numbers("<I", at + 9)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = look.numbers("<HH", at + 14)
            return width & 0x3FFF, height & 0x3FFF
        at += 8 + length + length % 2


_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}
_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277
_ABOUT = frozenset({_WIDTH, _HEIGHT, _BITS, _SAMPLES})


def _tiff(found: Header, look: _Look, head: bytes) -> None:
    """Walk over the directories (TIFF 6.0, section 2; BigTIFF)."""
    order = "<" if head[:2] == b"II" else ">"
    count_form, entry_form, link_form = ("Q", "HHQ8s", "Q") if b"+" in head[2:4] else ("H", "HHI4s", "I")
    count_bytes, entry_bytes, link_bytes = (8, 20, 8) if link_form == "Q" else (2, 12, 4)
    (at,) = look.numbers(order + link_form, link_bytes)
    seen: set[int] = set()
    largest = total = side = 0
    while at and at not in seen:
        seen.add(at)
        (count,) = look.numbers(order + count_form, at)
        if at + count_bytes + count * entry_bytes > look.body_bytes:
            raise _Refused
        look.spend(count // _TAGS)
        entries = look.part(at + count_bytes, count * entry_bytes + link_bytes)
        values = {_WIDTH: 0, _HEIGHT: 0, _BITS: 1, _SAMPLES: 1}
        tags = struct.unpack_from(f"{order}{count * entry_bytes // 2}H", entries)[:: entry_bytes // 2]
        for number in (number for number, tag in enumerate(tags) if tag in _ABOUT):
            look.spend(1)
            tag, kind, many, value = struct.unpack_from(order + entry_form, entries, number * entry_bytes)
            size = _TIFF_SIZES[kind]
            if size * many > len(value):  # it is elsewhere
                (place,) = struct.unpack(order + link_form, value)
                value = look.part(place, size)
            first = int.from_bytes(value[:size], "little" if order == "<" else "big")
            values[tag] = max(values[tag], first)
        pixels = values[_WIDTH] * values[_HEIGHT]
        largest, total = max(largest, pixels), total + pixels
        side = max(side, values[_WIDTH], values[_HEIGHT])
        # Premultiplied alpha, and samples of 16 bits that become 32, take no more than four bytes.
        found.pixel_bytes = max(found.pixel_bytes, values[_SAMPLES] * ((values[_BITS] + 7) // 8))
        (at,) = struct.unpack_from(order + link_form, entries, count * entry_bytes)
    found.pixels, found.side, found.frames, found.total_pixels = largest, side, len(seen), total


def _bmp(found: Header, look: _Look, head: bytes) -> None:
    """Read the information header (Windows, BITMAPINFOHEADER, or the older core header)."""
    (size,) = look.numbers("<I", 14)
    if size == 12:  # noqa: PLR2004 the core header
        width, height = look.numbers("<HH", 18)
    else:
        width, height, compression = look.numbers("<II4xI", 18)
        if head[25] == 0xFF:  # noqa: PLR2004 negative: from the top down
            height = 2**32 - height
        if compression in {1, 2}:  # run lengths
            found.python_steps = look.body_bytes // 2
    found.measure(width, height)


def _avif(found: Header, look: _Look, head: bytes) -> None:
    """Find the largest size that a property or a track has, and the longest track (ISO/IEC 14496-12)."""
    width = height = at = 0
    frames = 1
    while at < look.body_bytes:
        box = look.part(at, min(16, look.body_bytes - at)).ljust(16, b"\0")
        look.spend(1)
        length, kind, long_length = struct.unpack(">I4sQ", box)
        length = long_length if length == 1 else length or look.body_bytes - at
        if length < 8 or at + length > look.body_bytes:  # noqa: PLR2004 length and type
            raise _Refused
        if kind in {b"meta", b"moov"}:
            look.spend(length // _SEARCHED_BYTES)
            inside = look.part(at, length)
            sizes = [struct.unpack_from(">II", inside, place + 8) for place in _found(look, inside, b"ispe")]
            for place in _found(look, inside, b"tkhd"):  # whose numbers have 16 bits after the point
                size = struct.unpack_from(">HxxHxx", inside, place + (92 if inside[place + 4] else 80))
                sizes.append(size)
            for place in _found(look, inside, b"stsz"):
                each_bytes, count = struct.unpack_from(">II", inside, place + 8)
                # Where all samples have one size, libavif does not look at their number.
                frames = max(frames, _UNKNOWN if each_bytes else count)
            width, height = (max(sides) for sides in zip((width, height), *sizes, strict=True))
        at += length
    if b"avis" in _brands(head) and frames == 1:
        frames = _UNKNOWN
    if not width * height:
        raise ValueError("it has no size, or in another place")
    found.measure(width, height)
    found.frames = frames


def _found(look: _Look, data: bytes, kind: bytes) -> list[int]:
    found: list[int] = []
    at = data.find(kind)
    while at >= 0:
        look.spend(1)
        found.append(at)
        at = data.find(kind, at + 4)
    return found


_COMMENT = re.compile(rb"#[^\r\n]*[\r\n]?")

#: Signature, width and height.
_PPM_WORDS = 3


def _ppm(found: Header, look: _Look, head: bytes) -> None:
    """Read width, height and the highest value, between blanks and comments (netpbm's ppm(5))."""
    words = _words(look, head)
    if not _are_complete(words):
        words = _words(look, look.part(0, min(_PPM_HEAD_BYTES, look.body_bytes)))
    _, width, height, rest = words
    sides = int(width), int(height)
    if min(sides) < 0:
        raise _Refused
    found.measure(*sides)
    is_fast = (
        head[:2] in {b"P4", b"Pf"}
        or (head[:2] in {b"P5", b"P6"} and re.match(rb"255\s", rest[:4]) is not None)
        or (head[:2] == b"P5" and re.match(rb"65535\s", rest[:6]) is not None)
    )
    found.python_steps = 0 if is_fast else min(3 * found.pixels, look.body_bytes)


def _words(look: _Look, text: bytes) -> list[bytes]:
    """Split the header of a PPM as Pillow does, which joins what is on both sides of a comment."""
    text, comments = _COMMENT.subn(b"", text, look.steps + 1)
    look.spend(comments)
    return text.split(None, _PPM_WORDS)


def _are_complete(words: list[bytes]) -> bool:
    """Tell whether a blank follows the highest value, which bitmaps do not have."""
    return len(words) > _PPM_WORDS and (words[0] in {b"P1", b"P4"} or len(words[-1].split(None, 1)) > 1)


def _qoi(found: Header, look: _Look, _head: bytes) -> None:
    width, height = look.numbers(">II", 4)
    found.measure(width, height)
    found.python_steps = 2 * min(found.pixels, look.body_bytes)


_HEADERS: Mapping[str, Callable[[Header, _Look, bytes], None]] = {
    "jpeg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "tiff": _tiff,
    "bmp": _bmp,
    "avif": _avif,
    "ppm": _ppm,
    "qoi": _qoi,
}


# --- What it costs ------------------------------------------------------------------------------------------

#: Formats that hold several frames; the others get the first one.
_MANY_FRAMES = frozenset({"png", "webp", "gif", "tiff", "avif"})

#: What a result has without its pixels, in bytes: the metadata are no larger than the upload, and for each
#: frame there is a header, with a palette in a GIF.
_FRAME_BYTES = 1024
_HEAD_ROOM_BYTES = 1 << 16

#: Profile and XMP of a PNG are compressed; Pillow unpacks at most a mebibyte of either.
_UNPACKED_BYTES = 2 << 20
_DEFLATE_RATIO = 1032

#: Bytes per pixel of a lossy result, measured with noise of two and of all values and rounded up, for
#: qualities up to 80, up to 90, and above. JPEG: per component, where three that are subsampled are 1.5.
_LOSSY_BYTES = {
    "jpeg": (0.6, 0.8, 1.65),
    "webp": (1.7, 2.25, 3.2),
    "avif": (1.0, 1.2, 2.2),
    "avif 4:4:4": (1.8, 2.2, 4.5),
    "avif alpha": (0.7, 0.9, 1.5),
}

_DEFAULT_QUALITY = {"jpeg": 90, "webp": 90, "avif": 80}

#: How much the bytes of a format say of an image, compared with those of a PNG.
_DENSITY = {"jpeg": 3, "avif": 4, "webp": 2}

#: Engine time to decode and to encode: nanoseconds per pixel of an image of one colour, and what each byte of
#: detail adds to that, up to one byte per pixel. Only their ratios matter: admission corrects them by what it
#: measures.
_DECODE_NS = {
    "jpeg": (5, 5),
    "png": (8, 26),
    "webp": (10, 30),
    "gif": (4, 13),
    "tiff": (8, 17),
    "bmp": (4, 1),
    "avif": (6, 28),
    "ppm": (4, 1),
    "qoi": (5, 0),
}
_ENCODE_NS = {
    "jpeg": (6, 3),
    "png low": (8, 58),
    "png normal": (9, 82),
    "png high": (16, 143),
    "webp low": (26, 46),
    "webp normal": (31, 43),
    "webp high": (49, 381),
    "webp low lossless": (7, 160),
    "webp normal lossless": (9, 290),
    "webp high lossless": (13, 760),
    "gif": (43, 75),
    "tiff": (10, 87),
    "bmp": (5, 0),
    "avif low": (27, 90),
    "avif normal": (61, 620),
    "avif high": (90, 865),
    "ppm": (4, 0),
    "qoi": (1300, 0),  # two steps in Python
}
#: A step of a decoder that is written in Python, in nanoseconds (ADR 8).
_PYTHON_STEP_NS = 650

#: For a JPEG whose coefficients only change places: per pixel, and per byte of the file.
_MOVED_NS = (1, 10)


def cost(read: Read, body_bytes: int, /, parameters: Mapping[str, Any], limits: Mapping[str, int]) -> Cost:
    """Tell what a run will cost at most, and about how long it takes. Never raises.

    Args:
        read: returns up to so many bytes of the upload from a position.
        body_bytes: how long the upload is or will be.
        parameters: of the run, checked.
        limits: of the engines.
    """
    found = header(read, body_bytes)
    if found.is_refused:
        if _is_whole(read, body_bytes):
            return Cost(0, 0)
        if found.pixels == _UNKNOWN:  # what says more has not arrived
            return unknown_cost(read, body_bytes, parameters, limits)
    assert found.form is not None  # noqa: S101 it would be refused
    target = parameters["format"] or found.form
    # A size above the limit may be one that the engine does not believe, so it counts as the limit.
    most = limits["max_pixels"]
    if _is_moved(found.form, target, parameters["quality"]) and parameters["path"] != "pixels":
        most = max(most, limits["max_lossless_pixels"])
    is_known = found.is_known and found.pixels <= most
    found.pixels, found.side = (min(number, most) for number in (found.pixels, found.side))
    frames = min(max(1, found.frames), limits["max_frames"]) if target in _MANY_FRAMES else 1
    total = found.pixels * frames
    if target in _MANY_FRAMES:
        total = min(found.total_pixels or total, limits["max_total_pixels"])
    plan = _Plan(found, target, frames, total, parameters["quality"], body_bytes)
    return Cost(
        min(limits["max_result_bytes"], _result_bytes(plan)), _engine_us(plan, parameters), is_known=is_known
    )


def _is_whole(read: Read, body_bytes: int) -> bool:
    with suppress(OSError):
        return not body_bytes or bool(read(body_bytes - 1, 1))
    return False


def _is_moved(form: str | None, target: str, quality: int | None) -> bool:
    """Tell whether it is a JPEG that is written as it was encoded."""
    return form == target == "jpeg" and quality is None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be written, from what.

    Attributes:
        pixels: of all frames that are written.
        quality: as asked for; None when it was not.
    """

    source: Header
    target: str
    frames: int
    pixels: int
    quality: int | None
    body_bytes: int

    @property
    def stays(self) -> bool:
        """Whether the format stays."""
        return self.target == self.source.form

    @property
    def is_moved(self) -> bool:
        """Whether it is a JPEG that is written as it was encoded."""
        return _is_moved(self.source.form, self.target, self.quality)

    @property
    def may_be_lossless(self) -> bool:
        """Whether a WebP may be: one that was, a drawing, and an animation that was none."""
        return self.quality is None and self.source.form not in {"jpeg", "qoi"}


def _result_bytes(plan: _Plan) -> int:
    metadata = plan.body_bytes
    if plan.source.form == "png":
        metadata += min(_UNPACKED_BYTES, _DEFLATE_RATIO * plan.body_bytes)
    if plan.is_moved:  # other Huffman tables may take more, and a block takes some bits at least
        return 2 * plan.body_bytes + plan.pixels // 8 + _HEAD_ROOM_BYTES
    return int(plan.pixels * _pixel_bytes(plan)) + plan.frames * _frame_bytes(plan) + metadata


def _frame_bytes(plan: _Plan) -> int:
    return _HEAD_ROOM_BYTES if plan.frames == 1 else _FRAME_BYTES + 8 * plan.source.side


def _pixel_bytes(plan: _Plan) -> float:
    """Return the most bytes that a pixel of the result takes, with what compression may add."""
    source = plan.source
    channels = source.pixel_bytes if source.form == "jpeg" else 4
    stored = source.pixel_bytes if plan.stays else channels
    may_have_alpha = source.form != "jpeg"
    may_be_cmyk = source.form == "tiff" or channels > 3  # noqa: PLR2004 red, green and blue
    avif = "avif 4:4:4" if plan.stays else "avif"
    return {
        "bmp": 4 if plan.stays else 3,
        "gif": 1.6,
        "png": 1.02 * (max(4, stored) if plan.frames > 1 else stored),
        "tiff": 1.5 * stored if plan.stays else 1.02 * channels,  # LZW makes noise larger
        "webp": 4.1 if plan.may_be_lossless else _lossy("webp", plan) + 1.1 * may_have_alpha,
        "avif": _lossy(avif, plan) + may_have_alpha * _lossy("avif alpha", plan),
        "jpeg": _lossy("jpeg", plan) * (channels if plan.stays else 4 if may_be_cmyk else 1.5),
        "qoi": 5,
        "ppm": 4,
    }[plan.target]


def _lossy(kind: str, plan: _Plan) -> float:
    form = kind.partition(" ")[0]
    # An AVIF that stays one keeps its quality, up to lossless.
    quality = plan.quality or (100 if form == "avif" and plan.stays else _DEFAULT_QUALITY[form])
    return _LOSSY_BYTES[kind][(quality > 80) + (quality > 90)]  # noqa: PLR2004 its columns


def _engine_us(plan: _Plan, parameters: Mapping[str, Any]) -> int:
    source = plan.source
    assert source.form is not None  # noqa: S101 it was looked at
    if plan.is_moved and parameters["path"] != "pixels":
        flat_ns, detail_ns = _MOVED_NS
        return (plan.pixels * flat_ns + plan.body_bytes * detail_ns) // 1000
    writer = plan.target
    if writer in {"png", "webp", "avif"}:
        writer += f" {parameters['effort']}"
    if plan.target == "webp" and plan.may_be_lossless and source.form != "avif":
        writer += " lossless"
    detail = min(plan.pixels, plan.body_bytes * _DENSITY.get(source.form, 1))
    flat_ns, detail_ns = map(sum, zip(_DECODE_NS[source.form], _ENCODE_NS[writer], strict=True))
    steps_ns = source.python_steps * _PYTHON_STEP_NS
    return (plan.pixels * flat_ns + detail * detail_ns + steps_ns) // 1000
