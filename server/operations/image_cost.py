"""What an image will cost before anything is decoded: a look at its header, without any decoder.

Nothing here decides what an image is: the engine reads the header again and is right. A file that lies can
only make its own booking wrong, and that is noticed when its result is there.
"""

import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from server.operations.registry import US_PER_BYTE, Cost, Read

#: How much of a file is looked at: one step is a segment, box, directory or frame.
_HEAD_BYTES = 1 << 16
_MAX_STEPS = 1024
_GIF_BYTES = 1 << 24

#: More than any limit, and small enough to be multiplied.
_UNKNOWN = 1 << 40


@dataclass(frozen=True, slots=True)
class Header:
    """What a header says; where it cannot be read, more than any limit.

    Attributes:
        form: as in `server.imaging.codecs.Format`; None for a file that no engine accepts.
        pixels: of the largest frame or page.
        side: the longer side of the largest frame or page.
        frames: of the animation, or pages; never fewer than the engine will see.
        pixel_bytes: of one pixel, as the same format would store it without compression.
        total_pixels: of pages that differ in size; 0 when all frames are as large as the canvas.
        python_steps: of a decoder that is written in Python, a pixel, sample or byte each.
    """

    form: str | None
    pixels: int = 0
    side: int = 0
    frames: int = 1
    pixel_bytes: int = 4
    total_pixels: int = 0
    python_steps: int = 0

    @property
    def is_known(self) -> bool:
        """Whether the header could be read."""
        return self.pixels != _UNKNOWN


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
        brands = head[8 : max(16, int.from_bytes(head[:4], "big"))]
        if b"avif" in brands or b"avis" in brands:
            return "avif"
    return None


def header(read: Read, body_bytes: int) -> Header:
    """Read the header of an image of which at least the beginning is there. Never raises.

    Args:
        read: returns up to so many bytes from a position.
        body_bytes: how long the file is or will be.
    """
    head = read(0, 4096)
    form = sniffed(head)
    if form is None:
        return Header(None)
    with suppress(LookupError, struct.error, ValueError, OverflowError):
        found = _HEADERS[form](read, head, body_bytes)
        if found.pixels > 0:
            return found
    return Header(form, _UNKNOWN, _UNKNOWN, _UNKNOWN)


def _jpeg(read: Read, _head: bytes, _body_bytes: int) -> Header:
    """Find the largest frame header (ITU-T T.81, B.2.2): damaged files may have several."""
    largest = Header("jpeg")
    at = 2
    for _ in range(_MAX_STEPS):
        marker = read(at, 10)
        if marker[0] != 0xFF:  # noqa: PLR2004 what begins a marker
            break
        if marker[1] == 0xFF:  # noqa: PLR2004 fill bytes
            at += 1
            continue
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD8:  # noqa: PLR2004 they stand alone
            at += 2
            continue
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in {0xC4, 0xC8, 0xCC}:  # noqa: PLR2004 T.81, table B.1
            height, width, components = struct.unpack(">HHB", marker[5:10])
            if height * width > largest.pixels:
                largest = Header("jpeg", width * height, max(width, height), 1, max(1, components))
        if marker[1] in {0xDA, 0xD9}:
            return largest
        at += 2 + int.from_bytes(marker[2:4], "big")
    raise ValueError("no scan")


def _png(read: Read, head: bytes, _body_bytes: int) -> Header:
    """Read IHDR, and acTL if it comes before the pixels (PNG 3rd edition, 11.2.1 and 11.3.6.1)."""
    if head[12:16] != b"IHDR":
        raise ValueError("no IHDR")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    pixel_bytes = ({0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth + 7) // 8
    frames, at = 1, 8
    for _ in range(_MAX_STEPS):
        length, kind, declared = struct.unpack(">I4sI", read(at, 12))
        if kind == b"IHDR":  # Pillow believes the last one
            size = struct.unpack(">II", read(at + 8, 8))
            width, height = max(width, size[0]), max(height, size[1])
        if kind == b"acTL":
            frames = max(frames, declared)
        if kind in {b"IDAT", b"IEND"}:
            return Header("png", width * height, max(width, height), frames, pixel_bytes)
        at += length + 12
    raise ValueError("too many chunks")


def _gif(read: Read, head: bytes, body_bytes: int) -> Header:
    """Read the logical screen, and count what may begin a frame: each follows a byte of 0 or a palette."""
    width, height = struct.unpack("<HH", head[6:10])
    seen_bytes = min(body_bytes, _GIF_BYTES)
    frames = 2 + (body_bytes - seen_bytes) // 15  # no frame is shorter
    carried = b""
    for start in range(0, seen_bytes, 1 << 20):
        piece = read(start, 1 << 20)
        frames += (carried + piece).count(b"\0,")
        carried = piece[-1:]
        if not piece:
            break
    return Header("gif", width * height, max(width, height), frames, 4)


def _webp(read: Read, head: bytes, body_bytes: int) -> Header:
    """Read the first chunk, and walk over the frames (RFC 9649, 2.5 to 2.7)."""
    if head[12:16] != b"VP8X":
        width, height = _webp_size(read, 12, body_bytes)
        return Header("webp", width * height, max(width, height))
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
    frames, at, end = 0, 12, min(body_bytes, 8 + int.from_bytes(head[4:8], "little"))
    for _ in range(_MAX_STEPS):
        if at + 8 > end:
            break
        kind, length = struct.unpack("<4sI", read(at, 8))
        frames += kind == b"ANMF"
        at += 8 + length + length % 2
    else:
        raise ValueError("too many chunks")
    return Header("webp", width * height, max(width, height), max(1, frames))


def _webp_size(read: Read, at: int, body_bytes: int) -> tuple[int, int]:
    for _ in range(_MAX_STEPS):
        if at + 8 > body_bytes:
            break
        chunk = read(at, 18)
        kind, length = struct.unpack("<4sI", chunk[:8])
        if kind == b"VP8L":
            bits = int.from_bytes(chunk[9:13], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == b"VP8 ":
            width, height = struct.unpack("<HH", chunk[14:18])
            return width & 0x3FFF, height & 0x3FFF
        at += 8 + length + length % 2
    raise ValueError("no bitstream")


_TIFF_SIZES = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}
_WIDTH, _HEIGHT, _BITS, _SAMPLES = 256, 257, 258, 277


def _tiff(read: Read, head: bytes, body_bytes: int) -> Header:
    """Walk over the directories (TIFF 6.0, section 2; BigTIFF)."""
    order = "<" if head[:2] == b"II" else ">"
    count_form, entry_form, link_form = ("Q", "HHQ8s", "Q") if b"+" in head[2:4] else ("H", "HHI4s", "I")
    count_bytes, entry_bytes, link_bytes = (8, 20, 8) if link_form == "Q" else (2, 12, 4)
    (at,) = struct.unpack_from(order + link_form, head, link_bytes)
    seen: set[int] = set()
    largest = total = side = pixel_bytes = 0
    while at and at not in seen:
        if len(seen) == _MAX_STEPS or at >= body_bytes:
            raise ValueError("too many pages")
        seen.add(at)
        (count,) = struct.unpack(order + count_form, read(at, count_bytes))
        entries = read(at + count_bytes, min(count, _MAX_STEPS) * entry_bytes + link_bytes)
        values = {_BITS: 1, _SAMPLES: 1}
        for number in range(count):
            tag, kind, many, value = struct.unpack_from(order + entry_form, entries, number * entry_bytes)
            if tag in {_WIDTH, _HEIGHT, _BITS, _SAMPLES}:
                size = _TIFF_SIZES[kind]
                if size * many > len(value):  # it is elsewhere
                    value = read(struct.unpack(order + link_form, value)[0], size)
                first = int.from_bytes(value[:size], "little" if order == "<" else "big")
                values[tag] = max(values.get(tag, 0), first)
        pixels = values[_WIDTH] * values[_HEIGHT]
        largest, total = max(largest, pixels), total + pixels
        side = max(side, values[_WIDTH], values[_HEIGHT])
        # Premultiplied alpha, and samples of 16 bits that become 32, take no more than four bytes.
        pixel_bytes = max(pixel_bytes, 4, values[_SAMPLES] * ((values[_BITS] + 7) // 8))
        (at,) = struct.unpack_from(order + link_form, entries, count * entry_bytes)
    return Header("tiff", largest, side, len(seen), pixel_bytes, total)


def _bmp(_read: Read, head: bytes, body_bytes: int) -> Header:
    """Read the information header (Windows, BITMAPINFOHEADER, or the older core header)."""
    (size,) = struct.unpack("<I", head[14:18])
    steps = 0
    if size == 12:  # noqa: PLR2004 the core header
        width, height = struct.unpack("<HH", head[18:22])
    else:
        width, height = struct.unpack("<II", head[18:26])
        if head[25] == 0xFF:  # noqa: PLR2004 negative: from the top down
            height = 2**32 - height
        if head[30] in {1, 2}:  # run lengths
            steps = body_bytes // 2
    return Header("bmp", width * height, max(width, height), python_steps=steps)


def _avif(read: Read, head: bytes, body_bytes: int) -> Header:
    """Find the largest size that a property or a track has, and the longest track (ISO/IEC 14496-12)."""
    width = height = at = 0
    frames = 1
    is_sequence = b"avis" in head[8 : max(16, int.from_bytes(head[:4], "big"))]
    for _ in range(_MAX_STEPS):
        length, kind, long_length = struct.unpack(">I4sQ", read(at, 16).ljust(16, b"\0"))
        length = long_length if length == 1 else length or body_bytes - at
        if kind in {b"meta", b"moov"}:
            inside = read(at, min(length, _HEAD_BYTES))
            if len(inside) < length:
                raise ValueError("it is too long, or not there yet")
            sizes = [struct.unpack_from(">II", inside, place + 8) for place in _found(inside, b"ispe")]
            for place in _found(inside, b"tkhd"):  # whose numbers have 16 bits after the point
                size = struct.unpack_from(">HxxHxx", inside, place + (92 if inside[place + 4] else 80))
                sizes.append(size)
            counts = [struct.unpack_from(">I", inside, place + 12)[0] for place in _found(inside, b"stsz")]
            width, height = (max(sides) for sides in zip((width, height), *sizes, strict=True))
            frames = max([frames, *counts])
        at += length
        if length < 8 or at >= body_bytes:  # noqa: PLR2004 length and type
            break
    if is_sequence and frames == 1:
        frames = _UNKNOWN
    return Header("avif", width * height, max(width, height), frames)


def _found(data: bytes, kind: bytes) -> Iterator[int]:
    at = data.find(kind)
    while at >= 0:
        yield at
        at = data.find(kind, at + 4)


def _ppm(read: Read, head: bytes, body_bytes: int) -> Header:
    """Read width, height and the highest value, between blanks and comments (netpbm's ppm(5))."""
    text = head if len(head) == body_bytes else read(0, _HEAD_BYTES)
    # As Pillow does, which joins what is on both sides of a comment.
    _, width, height, rest = re.sub(rb"#[^\r\n]*[\r\n]?", b"", text).split(None, 3)
    sides = int(width), int(height)
    pixels = sides[0] * sides[1]
    is_fast = head[:2] in {b"P4", b"Pf"} or (
        head[:2] in {b"P5", b"P6"} and re.match(rb"(255|65535)\s", rest[:6]) is not None
    )
    return Header("ppm", pixels, max(sides), python_steps=0 if is_fast else min(3 * pixels, body_bytes))


def _qoi(_read: Read, head: bytes, body_bytes: int) -> Header:
    width, height = struct.unpack(">II", head[4:12])
    pixels = width * height
    return Header("qoi", pixels, max(width, height), python_steps=min(pixels, body_bytes))


_HEADERS: Mapping[str, Callable[[Read, bytes, int], Header]] = {
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

#: What is booked for a file whose header cannot be read: so many times its size, and so many bytes more.
_UNKNOWN_RATIO = 32
_UNKNOWN_BYTES = 1 << 20

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
    "qoi": (1000, 0),
}
#: A step of a decoder that is written in Python, in nanoseconds.
_PYTHON_STEP_NS = 1000

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
    if found.form is None or (found.is_known and found.pixels > limits["max_pixels"]):
        return Cost(0, 0)  # refused from the header
    if not found.is_known:
        # Damaged, nearly always: to book the largest result there is would have all others wait for it.
        likely_bytes = _UNKNOWN_RATIO * body_bytes + _UNKNOWN_BYTES
        likely_us = int(body_bytes * US_PER_BYTE)
        return Cost(min(limits["max_result_bytes"], likely_bytes), likely_us, is_known=False)
    target = parameters["format"] or found.form
    frames = min(found.frames, limits["max_frames"]) if target in _MANY_FRAMES else 1
    total = found.pixels * frames
    if target in _MANY_FRAMES:
        total = min(found.total_pixels or total, limits["max_total_pixels"])
    plan = _Plan(found, target, frames, total, parameters["quality"], body_bytes)
    return Cost(min(limits["max_result_bytes"], _result_bytes(plan)), _engine_us(plan, parameters))


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
        return self.stays and self.target == "jpeg" and self.quality is None

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
    quality = plan.quality or _DEFAULT_QUALITY[kind.partition(" ")[0]]
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
