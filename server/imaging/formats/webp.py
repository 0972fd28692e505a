"""WebP as stored: a RIFF file of one image or of the frames of an animation (RFC 9649)."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image, WebPImagePlugin

from server.imaging.animation import Disposal, Layer
from server.imaging.codecs import Data, Effort, Format, Sink, damaged
from server.imaging.geometry import Rect
from server.imaging.limits import Limits

_HAS_ICC, _HAS_ALPHA, _HAS_EXIF, _HAS_XMP, _IS_ANIMATED = 0x20, 0x10, 0x08, 0x04, 0x02

#: The flags of a frame that is laid over what is there, and of one that replaces it; both stay afterwards.
BLEND, NO_BLEND = 0x00, 0x02
_CLEAR_AFTER = 0x01
_LOSSY, _LOSSLESS = b"VP8 ", b"VP8L"
_OPAQUE = 255

#: Of a VP8X chunk; libwebp accepts no other.
_HEADER_BYTES = 10

#: Methods of libwebp, and for lossless also how deep each looks: 0 to 6 and 0 to 100. Chosen with
#: `python -m benchmarks.cost.encoders` (ADR 14).
_METHODS = {Effort.LOW: 2, Effort.NORMAL: 2, Effort.HIGH: 6}
_LOSSLESS_METHODS = {Effort.LOW: (2, 20), Effort.NORMAL: (2, 40), Effort.HIGH: (6, 90)}


@dataclass(frozen=True, slots=True)
class Bitstream:
    """The pixels of one frame (RFC 9649, 2.5 and 3).

    Args:
        kind: the chunk type, lossy or lossless.
        data: the chunk's payload.
        alpha: the payload of the ALPH chunk of a lossy frame; empty for none.
    """

    kind: bytes
    data: bytes
    alpha: bytes = b""

    @property
    def is_lossless(self) -> bool:
        """Tell whether decoding gives back exactly what was encoded."""
        return self.kind == _LOSSLESS

    @property
    def size(self) -> tuple[int, int]:
        """Read width and height in pixels from the frame header (RFC 6386, 9.1; RFC 9649, 3.4).

        Raises:
            DamagedImage: the header is cut off or has no signature.
        """
        if self.is_lossless and self.data[:1] == b"\x2f" and len(self.data) >= 5:  # noqa: PLR2004
            bits = int.from_bytes(self.data[1:5], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if not self.is_lossless and self.data[3:6] == b"\x9d\x01\x2a" and len(self.data) >= 10:  # noqa: PLR2004
            width, height = struct.unpack_from("<HH", self.data, 6)
            return width & 0x3FFF, height & 0x3FFF
        raise _damage("a frame has no valid header")

    @property
    def has_alpha(self) -> bool:
        """Tell whether any pixel may be transparent."""
        return bool(self.alpha) or (self.is_lossless and bool(self.data[4] & 0x10))


@dataclass(frozen=True, slots=True)
class WebpFrame:
    """One frame (RFC 9649, 2.7.1.1).

    Args:
        rect: where it lies on the canvas; both offsets are even.
        duration_ms: how long it shows.
        flags: blending and disposal as stored.
        pixels: what it shows.
    """

    rect: Rect
    duration_ms: int
    flags: int
    pixels: Bitstream


@dataclass(frozen=True, slots=True)
class Webp:
    """A whole file.

    Args:
        size: of the canvas, in pixels.
        frames: one for a still.
        loops: how often an animation runs, 0 for ever; None for a still.
        background: the canvas colour as stored, four bytes.
        icc, exif, xmp: the metadata chunks, empty for none.
    """

    size: tuple[int, int]
    frames: tuple[WebpFrame, ...]
    loops: int | None = None
    background: bytes = bytes(4)
    icc: bytes = b""
    exif: bytes = b""
    xmp: bytes = b""


def _damage(what: str) -> Exception:
    return damaged(Format.WEBP, what)


def _chunks(data: Data, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield type, start and end of each chunk in a range (RFC 9649, 2.3)."""
    while start + 8 <= end:
        kind, length = struct.unpack_from("<4sI", data, start)
        start += 8
        if start + length > end:
            raise _damage("a chunk is cut off")
        yield kind, start, start + length
        start += length + length % 2


def _read_bitstream(data: Data, start: int, end: int) -> Bitstream:
    """Read the first image in a range of chunks."""
    alpha = b""
    for kind, begin, stop in _chunks(data, start, end):
        if kind == b"ALPH":
            alpha = data[begin:stop]
        elif kind in (_LOSSY, _LOSSLESS):
            return Bitstream(kind, data[begin:stop], alpha if kind == _LOSSY else b"")
    raise _damage("a frame has no pixels")


def _uint24(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 3], "little")


def _read_frame(data: Data, start: int, end: int, canvas: tuple[int, int]) -> WebpFrame:
    head = data[start : start + 16]
    if end - start < 16:  # noqa: PLR2004 - the frame header
        raise _damage("a frame header is cut off")
    rect = Rect(_uint24(head, 0) * 2, _uint24(head, 3) * 2, _uint24(head, 6) + 1, _uint24(head, 9) + 1)
    if rect.x + rect.width > canvas[0] or rect.y + rect.height > canvas[1]:
        raise _damage("a frame lies outside the canvas")
    pixels = _read_bitstream(data, start + 16, end)
    if pixels.size != (rect.width, rect.height):
        raise _damage("a frame contradicts its header")
    return WebpFrame(rect, _uint24(head, 12), head[15] & 3, pixels)


def _read_extended(data: Data, end: int, limits: Limits) -> Webp:
    """Read a file that begins with a VP8X chunk."""
    head = data[20:30]
    if int.from_bytes(data[16:20], "little") != _HEADER_BYTES or end < 20 + _HEADER_BYTES:
        raise _damage("its header has a wrong length")
    size = (_uint24(head, 4) + 1, _uint24(head, 7) + 1)
    limits.check_size(*size)
    is_animated = bool(head[0] & _IS_ANIMATED)
    found: dict[bytes, bytes] = {}
    frames: list[WebpFrame] = []
    for kind, begin, stop in _chunks(data, 12, end):
        if kind == b"ANMF" and is_animated:
            limits.check_frames(len(frames) + 1)
            limits.check_total((len(frames) + 1) * size[0] * size[1])
            frames.append(_read_frame(data, begin, stop, size))
        elif kind in (b"ICCP", b"EXIF", b"XMP ", b"ANIM"):
            found.setdefault(kind, data[begin:stop])
    if not is_animated:
        pixels = _read_bitstream(data, 12, end)
        if pixels.size != size:
            raise _damage("its image contradicts its header")
        frames = [WebpFrame(Rect(0, 0, *size), 0, 0, pixels)]
    animation = found.get(b"ANIM", bytes(6))
    if not frames or len(animation) < 6:  # noqa: PLR2004 - the ANIM chunk
        raise _damage("it has no frames")
    return Webp(
        size=size,
        frames=tuple(frames),
        loops=int.from_bytes(animation[4:6], "little") if is_animated else None,
        background=animation[:4],
        icc=found.get(b"ICCP", b"") if head[0] & _HAS_ICC else b"",  # browsers go by the flag
        exif=found.get(b"EXIF", b""),
        xmp=found.get(b"XMP ", b""),
    )


def read_webp(data: Data, limits: Limits) -> Webp:
    """Read the structure and check it to its declared end; decodes no pixels.

    Raises:
        DamagedImage: cut off, or sizes that contradict each other.
        TooManyPixels, TooManyFrames: outside the limits.
    """
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) + 1:  # the last chunk may lack its padding, which libwebp does not miss either
        raise _damage("it is cut off")
    end = min(end, len(data))
    if data[12:16] == b"VP8X":
        return _read_extended(data, end, limits)
    pixels = _read_bitstream(data, 12, end)
    limits.check_size(*pixels.size)
    limits.check_total(pixels.size[0] * pixels.size[1])
    return Webp(size=pixels.size, frames=(WebpFrame(Rect(0, 0, *pixels.size), 0, 0, pixels),))


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return kind + len(payload).to_bytes(4, "little") + payload + bytes(len(payload) % 2)


def _image_chunks(pixels: Bitstream) -> bytes:
    alpha = _chunk(b"ALPH", pixels.alpha) if pixels.alpha else b""
    return alpha + _chunk(pixels.kind, pixels.data)


def _header(size: tuple[int, int], flags: int) -> bytes:
    extent = b"".join((side - 1).to_bytes(3, "little") for side in size)
    return _chunk(b"VP8X", bytes([flags, 0, 0, 0]) + extent)


def _animated_frame(frame: WebpFrame) -> bytes:
    x, y, width, height = frame.rect
    numbers = (x // 2, y // 2, width - 1, height - 1, frame.duration_ms)
    head = b"".join(number.to_bytes(3, "little") for number in numbers)
    return _chunk(b"ANMF", head + bytes([frame.flags]) + _image_chunks(frame.pixels))


def write_webp(sink: Sink, webp: Webp) -> None:
    """Write a whole file; the opposite of `read_webp`. Plain stills get the short form."""
    has_alpha = any(frame.pixels.has_alpha for frame in webp.frames)
    flags = (
        _HAS_ICC * bool(webp.icc)
        | _HAS_ALPHA * has_alpha
        | _HAS_EXIF * bool(webp.exif)
        | _HAS_XMP * bool(webp.xmp)
        | _IS_ANIMATED * (webp.loops is not None)
    )
    parts: list[bytes] = []
    if flags & ~_HAS_ALPHA or webp.frames[0].pixels.alpha:
        parts.append(_header(webp.size, flags))
    if webp.icc:
        parts.append(_chunk(b"ICCP", webp.icc))
    if webp.loops is None:
        parts.append(_image_chunks(webp.frames[0].pixels))
    else:
        parts.append(_chunk(b"ANIM", webp.background + webp.loops.to_bytes(2, "little")))
        parts.extend(map(_animated_frame, webp.frames))
    parts.extend(_chunk(kind, data) for kind, data in ((b"EXIF", webp.exif), (b"XMP ", webp.xmp)) if data)
    sink.write(b"RIFF" + (4 + sum(map(len, parts))).to_bytes(4, "little") + b"WEBP")
    for part in parts:
        sink.write(part)


def unpack(pixels: Bitstream) -> Image.Image:
    """Decode one frame, with alpha when it has any; call it inside `decoding`."""
    alone = BytesIO()
    write_webp(alone, Webp(pixels.size, (WebpFrame(Rect(0, 0, *pixels.size), 0, 0, pixels),)))
    alone.seek(0)
    image = WebPImagePlugin.WebPImageFile(alone)
    image.load()
    return image


def pack(image: Image.Image, effort: Effort, *, quality: int | None) -> Bitstream:
    """Encode one frame.

    Args:
        image: in mode RGB or RGBA.
        effort: of the encoder.
        quality: 1 to 100; None for lossless, which keeps the colour of transparent pixels too.
    """
    alone = BytesIO()
    if quality is None:
        method, depth = _LOSSLESS_METHODS[effort]
        image.save(alone, "WEBP", lossless=True, exact=True, method=method, quality=depth)
    else:
        image.save(alone, "WEBP", quality=quality, method=_METHODS[effort])
    data = alone.getvalue()
    return _read_bitstream(data, 12, len(data))


def turned_frames(webp: Webp, rects: list[Rect], pixels: list[Bitstream]) -> tuple[WebpFrame, ...]:
    """Give the frames new places and new pixels, and keep everything else."""
    return tuple(
        replace(frame, rect=rect, pixels=new)
        for frame, rect, new in zip(webp.frames, rects, pixels, strict=True)
    )


def layers(webp: Webp) -> Iterator[Layer]:
    """Yield the frames with their places and times; call it inside `decoding`."""
    for frame in webp.frames:
        yield layer(frame, unpack(frame.pixels), frame.rect)


def stills(webp: Webp) -> Iterator[tuple[Image.Image, float]]:
    """Yield the only image; call it inside `decoding`.

    Pillow drops alpha that is there without a flag in the header, which libwebp's own decoder shows.
    """
    yield unpack(webp.frames[0].pixels), 0


def layer(frame: WebpFrame, image: Image.Image, rect: Rect) -> Layer:
    """Tell what a frame means (RFC 9649, 2.7.1.1).

    Args:
        frame: its times and flags.
        image: its pixels, turned or not.
        rect: where these lie.
    """
    return Layer(
        image.convert("RGBA"),
        rect[:2],
        frame.duration_ms,
        is_laid_over=not frame.flags & NO_BLEND,
        disposal=Disposal.CLEAR if frame.flags & _CLEAR_AFTER else Disposal.KEEP,
    )


def grown(rect: Rect) -> Rect:
    """Add a column to the left and a row to the top, where needed: offsets are even."""
    x, y, width, height = rect
    return Rect(x - x % 2, y - y % 2, width + x % 2, height + y % 2)


def padded(image: Image.Image, rect: Rect, wide: Rect) -> Image.Image:
    """Add transparent pixels around an image in `rect`, so that it fills `wide`."""
    if rect == wide:
        return image
    x, y = wide.x - rect.x, wide.y - rect.y
    return image.convert("RGBA").crop((x, y, x + wide.width, y + wide.height))


def is_opaque(image: Image.Image) -> bool:
    """Tell whether no pixel of an image is transparent."""
    return image.mode == "RGB" or image.getchannel("A").getextrema() == (_OPAQUE, _OPAQUE)
