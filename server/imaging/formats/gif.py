"""GIF as stored: all blocks are kept; only pixels and what depends on the axes are replaced."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image
from PIL.Image import Transpose

from server.imaging.animation import Disposal, Layer
from server.imaging.codecs import Data, Format, Sink, damaged
from server.imaging.geometry import Rect, swaps_axes, turned_rect, turned_size
from server.imaging.limits import Limits

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_COMMENT, _APPLICATION = 0xFE, 0xFF
#: How long the first part of an extension is, by its label (sections 23, 25 and 26).
_EXTENSION_BYTES = {0xF9: 4, 0x01: 12, _APPLICATION: 11}
_HAS_TABLE, _IS_INTERLACED = 0x80, 0x40
_OPAQUE = 255

#: Applications whose blocks change what a person sees: they stay even when metadata is dropped.
_VISIBLE_APPLICATIONS = (b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012")


@dataclass(frozen=True, slots=True)
class GifFrame:
    """One stored image (GIF89a, sections 20 to 22).

    Args:
        rect: where it lies on the canvas.
        flags: the packed field of its descriptor.
        palette: its own colour table as stored; empty when it uses the global one.
        code_size: the LZW minimum code size, 2 to 8 bits.
        lzw: its pixels, as sub-blocks with their terminator.
    """

    rect: Rect
    flags: int
    palette: bytes
    code_size: int
    lzw: bytes

    @property
    def is_interlaced(self) -> bool:
        """Tell whether its rows are stored in four passes (appendix E)."""
        return bool(self.flags & _IS_INTERLACED)


@dataclass(frozen=True, slots=True)
class Gif:
    """A whole file.

    Args:
        version: `GIF87a` or `GIF89a`.
        size: of the canvas, in pixels.
        flags: the packed field of the screen descriptor (section 18).
        background: index into the global colour table.
        aspect: the pixel aspect ratio as stored, 0 for none.
        palette: the global colour table as stored, empty for none.
        blocks: frames, and between them extensions as stored (control, comment, application, text).
    """

    version: bytes
    size: tuple[int, int]
    flags: int
    background: int
    aspect: int
    palette: bytes
    blocks: tuple[GifFrame | bytes, ...]

    @property
    def frames(self) -> tuple[GifFrame, ...]:
        """Return the stored images in order."""
        return tuple(block for block in self.blocks if isinstance(block, GifFrame))


def _damage(what: str) -> Exception:
    return damaged(Format.GIF, what)


def _skip_sub_blocks(data: Data, position: int) -> int:
    """Return the position after the terminator of a chain of sub-blocks (section 15)."""
    while True:
        length = data[position]  # IndexError at the end, which the caller translates
        position += length + 1
        if not length:
            return position


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_TABLE else 0


def _read_frame(data: Data, position: int, canvas: tuple[int, int]) -> tuple[GifFrame, int]:
    """Read the image whose separator is at `position`, and return the position after it too."""
    x, y, width, height, flags = struct.unpack_from("<4HB", data, position + 1)
    if not width or not height or x + width > canvas[0] or y + height > canvas[1]:
        raise _damage("a frame lies outside the canvas")
    table = position + 10
    pixels = table + _table_bytes(flags)
    code_size = data[pixels]
    end = _skip_sub_blocks(data, pixels + 1)
    if not 1 <= code_size <= 8:  # noqa: PLR2004 - bits of a pixel
        raise _damage("a frame has an impossible code size")
    palette, lzw = data[table:pixels], data[pixels + 1 : end]
    return GifFrame(Rect(x, y, width, height), flags, palette, code_size, lzw), end


def _read_blocks(data: Data, position: int, size: tuple[int, int], limits: Limits) -> list[GifFrame | bytes]:
    blocks: list[GifFrame | bytes] = []
    frames = 0
    while (kind := data[position]) != _TRAILER:
        if kind == _IMAGE:
            frames += 1
            limits.check_frames(frames)
            limits.check_total(frames * size[0] * size[1])
            frame, position = _read_frame(data, position, size)
            blocks.append(frame)
        elif kind == _EXTENSION:
            end = _skip_sub_blocks(data, position + 2)
            label, length = data[position + 1], data[position + 2]
            if length != _EXTENSION_BYTES.get(label, length):
                raise _damage("an extension has a wrong length")  # decoders fail on it
            name_bytes = 1 + length if label == _APPLICATION else 0
            if data[position + 2 + name_bytes]:  # and on one that is empty
                blocks.append(data[position:end])
            position = end
        elif kind == 0:
            position += 1  # stray terminators are common, and harmless
        else:
            raise _damage("it has an unknown block")
    return blocks


def read_gif(data: Data, limits: Limits) -> Gif:
    """Read the structure up to the trailer; decodes no pixels (GIF89a, appendix B).

    Raises:
        DamagedImage: cut off, or a frame outside the canvas.
        TooManyPixels, TooManyFrames: outside the limits.
    """
    try:
        width, height, flags, background, aspect = struct.unpack_from("<HHBBB", data, 6)
        limits.check_size(width, height)
        start = 13 + _table_bytes(flags)
        blocks = _read_blocks(data, start, (width, height), limits)
    except (IndexError, struct.error) as error:
        raise _damage("it ends before its trailer") from error
    gif = Gif(
        version=data[:6],
        size=(width, height),
        flags=flags,
        background=background,
        aspect=aspect,
        palette=data[13:start],
        blocks=tuple(blocks),
    )
    if not gif.frames:
        raise _damage("it has no image")
    return gif


def unpack(frame: GifFrame) -> Image.Image:
    """Decode the pixels of one frame into palette indices.

    Raises:
        ValueError: damaged or too short; call it inside `decoding`.
    """
    size = (frame.rect.width, frame.rect.height)
    return Image.frombytes("P", size, frame.lzw, "gif", (frame.code_size, int(frame.is_interlaced)))


def pack(indices: Image.Image, *, is_interlaced: bool, code_size: int = 8) -> tuple[int, bytes]:
    """Encode palette indices without loss.

    Returns:
        The minimum code size, raised when an index needs it, and the sub-blocks with their terminator.
    """
    _, highest = indices.getextrema()
    code_size = max(code_size, 2, int(highest).bit_length())  # type: ignore[arg-type]
    return code_size, indices.tobytes("gif", ("P", code_size, int(is_interlaced))) + b"\0"


def _stays(block: GifFrame | bytes) -> bool:
    """Tell whether a block stays when metadata is dropped."""
    if isinstance(block, GifFrame) or block[1] not in (_COMMENT, _APPLICATION):
        return True
    return block[3:14] in _VISIBLE_APPLICATIONS


def _turned_aspect(aspect: int) -> int:
    """Invert a pixel aspect ratio of (n + 15) / 64 (section 18)."""
    return min(255, max(1, round(64 * 64 / (aspect + 15)) - 15)) if aspect else 0


def turned(gif: Gif, transpose: Transpose | None, *, strip: bool) -> Gif:
    """Make the structure for the turned canvas; its pixels are still the old ones."""
    return replace(
        gif,
        size=turned_size(transpose, gif.size),
        aspect=_turned_aspect(gif.aspect) if swaps_axes(transpose) else gif.aspect,
        blocks=tuple(
            replace(block, rect=turned_rect(transpose, block.rect, gif.size))
            if isinstance(block, GifFrame)
            else block
            for block in gif.blocks
            if not strip or _stays(block)
        ),
    )


def control(*, duration_ms: float, disposal: int, transparent: int | None) -> bytes:
    """Encode a graphic control extension (section 23).

    Args:
        duration_ms: rounded to hundredths of a second.
        disposal: 0 unspecified, 1 leave, 2 clear to the background, 3 restore what was before.
        transparent: the index of transparent pixels, or None.
    """
    flags = disposal << 2 | (transparent is not None)
    delay = min(65535, round(duration_ms / 10))
    return b"!\xf9\x04" + struct.pack("<BHBB", flags, delay, transparent or 0, 0)


def loop(times: int) -> bytes:
    """Encode the application extension that repeats an animation; 0 is for ever."""
    return b"!\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<HB", min(65535, times), 0)


def write_gif(sink: Sink, gif: Gif) -> None:
    """Write a whole file; the opposite of `read_gif`."""
    sink.write(gif.version + struct.pack("<HHBBB", *gif.size, gif.flags, gif.background, gif.aspect))
    sink.write(gif.palette)
    for block in gif.blocks:
        if isinstance(block, GifFrame):
            sink.write(struct.pack("<B4HB", _IMAGE, *block.rect, block.flags))
            sink.write(block.palette + bytes([block.code_size]) + block.lzw)
        else:
            sink.write(block)
    sink.write(bytes([_TRAILER]))


def whole_frame(indices: Image.Image, palette: bytes) -> GifFrame:
    """Make a frame that covers its canvas, with a colour table of its own.

    Args:
        indices: in mode P.
        palette: RGB bytes of at most 256 colours, padded here to the next power of two.
    """
    bits = max(1, (len(palette) // 3 - 1).bit_length())
    code_size, lzw = pack(indices, is_interlaced=False, code_size=bits)
    table = palette.ljust(3 << bits, b"\0")
    return GifFrame(Rect(0, 0, *indices.size), _HAS_TABLE | bits - 1, table, code_size, lzw)


_DISPOSALS = {2: Disposal.CLEAR, 3: Disposal.RESTORE}


def layers(gif: Gif) -> Iterator[Layer]:
    """Yield the frames with their places and times (GIF89a, section 23); call it inside `decoding`."""
    disposal, delay, transparent = Disposal.KEEP, 0, None
    for block in gif.blocks:
        if isinstance(block, GifFrame):
            patch = _coloured(block, block.palette or gif.palette, transparent)
            yield Layer(patch, block.rect[:2], delay * 10, is_laid_over=True, disposal=disposal)
            disposal, delay, transparent = Disposal.KEEP, 0, None
        elif block[:3] == b"!\xf9\x04":
            flags, delay, index = struct.unpack_from("<BHB", block, 3)
            disposal = _DISPOSALS.get(flags >> 2 & 7, Disposal.KEEP)
            transparent = index if flags & 1 else None


def _coloured(frame: GifFrame, palette: bytes, transparent: int | None) -> Image.Image:
    """Decode one frame to mode RGBA. Without any colour table the indices are levels of gray."""
    indices = unpack(frame)
    colours = palette or bytes(level for level in range(_OPAQUE + 1) for _ in range(3))
    alphas = bytearray([_OPAQUE]) * (_OPAQUE + 1)
    if transparent is not None:
        alphas[transparent] = 0
    indices.putpalette(colours)
    image = indices.convert("RGB")
    image.putalpha(Image.frombytes("L", indices.size, indices.tobytes()).point(list(alphas)))
    return image
