"""GIF as stored: all blocks are kept; only pixels and what depends on the axes are replaced."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from server.imaging.animation import Disposal, Layer
from server.imaging.codecs import MAX_PARTS, Data, Format, Sink, damaged
from server.imaging.geometry import Rect, turned_rect
from server.imaging.limits import Limits
from server.imaging.metadata.policy import Policy, Strip
from server.imaging.metadata.xmp import kept_xmp

_IMAGE, _EXTENSION, _TRAILER = 0x2C, 0x21, 0x3B
_COMMENT, _APPLICATION = 0xFE, 0xFF
#: How long the first part of an extension is, by its label (sections 23, 25 and 26).
_EXTENSION_BYTES = {0xF9: 4, 0x01: 12, _APPLICATION: 11}
_HAS_TABLE, _IS_INTERLACED = 0x80, 0x40
_CONTROL_START = b"!\xf9\x04"
_OPAQUE = 255
_COLOURS = 256

_STRAY_TERMINATORS = re.compile(rb"\0+")
#: A control extension and the separator of its frame (sections 20 and 23).
_CONTROLLED_FRAME = re.compile(rb"!\xf9\x04.{4}\0,", re.DOTALL)

_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
_ICC, _XMP = b"ICCRGBG1012", b"XMP DataXMP"
#: Applications whose blocks change what a person sees: they stay even when metadata is dropped.
_VISIBLE_APPLICATIONS = (*_LOOPS, _ICC)
_NAME = slice(3, 14)

#: What follows an XMP packet, which is not divided into sub-blocks: readers that take its bytes for lengths
#: land in here, and are led to the terminator (XMP part 3, 1.1.2).
_XMP_TRAILER = bytes([1, *range(255, -1, -1), 0])


@dataclass(frozen=True, slots=True)
class GifFrame:
    """One stored image (GIF89a, sections 20 to 22).

    Args:
        rect: where it lies on the canvas.
        flags: the packed field of its descriptor.
        palette: its own colour table as stored; empty when it uses the global one.
        code_size: the LZW minimum code size, 2 to 8 bits; readers also accept 0, and 1 for one pixel.
        lzw: its pixels, as sub-blocks with their terminator.
        beyond: how many more columns and rows of pixels there are, which lie outside the canvas.
    """

    rect: Rect
    flags: int
    palette: bytes
    code_size: int
    lzw: bytes
    beyond: tuple[int, int] = (0, 0)

    @property
    def stored_size(self) -> tuple[int, int]:
        """Return width and height of its pixels."""
        return self.rect.width + self.beyond[0], self.rect.height + self.beyond[1]

    @property
    def is_interlaced(self) -> bool:
        """Tell whether its rows are stored in four passes (appendix E)."""
        return bool(self.flags & _IS_INTERLACED)


@dataclass(frozen=True, slots=True)
class Gif:
    """A whole file.

    Args:
        version: `GIF87a` or `GIF89a`.
        size: of the canvas, in pixels: the logical screen and the whole first frame, as browsers take it.
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
    """Return the position after the terminator of a chain of sub-blocks (section 15).

    A file may end where the terminator should be: whether pixels are missing is for their decoder to tell.
    """
    while position != len(data):
        length = data[position]  # IndexError at the end, which the caller translates
        position += length + 1
        if not length:
            break
    return position


def _table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & _HAS_TABLE else 0


def _read_frame(data: Data, position: int) -> tuple[GifFrame, int]:
    """Read the image whose separator is at `position`, and return the position after it too."""
    x, y, width, height, flags = struct.unpack_from("<4HB", data, position + 1)
    if not width or not height:
        raise _damage("a frame has no size")
    table = position + 10
    pixels = table + _table_bytes(flags)
    code_size = data[pixels]
    end = _skip_sub_blocks(data, pixels + 1)
    # Readers disagree when codes grow longer from a code size of 1 on, and so about all pixels but the first.
    # From 0 on they disagree too, but then there is one colour only.
    if code_size > 8 or (code_size == 1 and width * height > 1):  # noqa: PLR2004 - bits of a pixel
        raise _damage("a frame has an impossible code size")
    palette, lzw = data[table:pixels], data[pixels + 1 : end]
    return GifFrame(Rect(x, y, width, height), flags, palette, code_size, lzw), end


#: One transparent pixel in place of a frame that shows nothing.
_NOTHING = GifFrame(Rect(0, 0, 1, 1), _HAS_TABLE, bytes(6), 2, b"\x02\x44\x01\0")


class _Reader:
    """The blocks of a file, read one by one.

    Args:
        screen: width and height of the logical screen, in pixels.
        limits: of the image.
    """

    def __init__(self, screen: tuple[int, int], limits: Limits) -> None:
        self.size = screen
        self.blocks: list[GifFrame | bytes] = []
        self._limits = limits
        self._frames = self._pixels = 0
        self._control: int | None = None  # the block that is about the next frame

    def read(self, data: Data, position: int) -> None:
        """Read up to the trailer, or to where it should be.

        Many files end without one. After whole frames, browsers also take anything that is no block for it.

        Raises:
            DamagedImage: a frame is cut off, or announced and missing.
        """
        while position < len(data) and data[position] != _TRAILER:
            kind = data[position]
            if kind == _IMAGE:
                position = self._read_image(data, position)
            elif kind == _EXTENSION:
                position = self._read_extension(data, position)
            elif stray := _STRAY_TERMINATORS.match(data, position):
                position = stray.end()  # they are common, and harmless
            elif not self._frames or _CONTROLLED_FRAME.search(data, position):
                raise _damage("it has an unknown block")
            else:
                break
            if len(self.blocks) > MAX_PARTS:
                raise _damage("it has too many blocks")
        if self._control is not None and data[position : position + 1] != bytes([_TRAILER]):
            raise _damage("it ends before a frame that it announces")

    def _read_image(self, data: Data, position: int) -> int:
        self._limits.check_frames(self._frames + 1)
        frame, end = _read_frame(data, position)
        x, y, width, height = frame.rect
        if not self._frames:
            self.size = (max(self.size[0], x + width), max(self.size[1], y + height))
            self._limits.check_size(*self.size)
        self._limits.check_size(width, height)
        self._frames += 1
        self._pixels += max(self.size[0] * self.size[1], width * height)
        self._limits.check_total(self._pixels)
        seen = (min(width, self.size[0] - x), min(height, self.size[1] - y))
        if min(seen) > 0:
            beyond = (width - seen[0], height - seen[1])
            self.blocks.append(replace(frame, rect=Rect(x, y, *seen), beyond=beyond))
        else:
            self._add_nothing()
        self._control = None
        return end

    def _add_nothing(self) -> None:
        """Keep the time of a frame that lies outside the canvas."""
        if self._control is None:
            self._control = len(self.blocks)
            self.blocks.append(control(delay=0, disposal=1, transparent=0))
        else:
            _, delay, _ = _read_control(self.blocks[self._control])  # type: ignore[arg-type]
            self.blocks[self._control] = control(delay=delay, disposal=1, transparent=0)
        self.blocks.append(_NOTHING)

    def _read_extension(self, data: Data, position: int) -> int:
        end = _skip_sub_blocks(data, position + 2)
        label, length = data[position + 1], data[position + 2]
        if length != _EXTENSION_BYTES.get(label, length):
            raise _damage("an extension has a wrong length")  # decoders fail on it
        name_bytes = 1 + length if label == _APPLICATION else 0
        if data[position + 2 + name_bytes]:  # and on one that is empty
            block = data[position:end]
            if block.startswith(_CONTROL_START):
                self._control = len(self.blocks)
            self.blocks.append(block)
        return end


def read_gif(data: Data, limits: Limits) -> Gif:
    """Read the structure up to the trailer; decodes no pixels (GIF89a, appendix B).

    A frame that reaches beyond the canvas is cut at its edge, as browsers do; the first one enlarges it.

    Raises:
        DamagedImage: cut off.
        TooManyPixels, TooManyFrames: outside the limits.
    """
    try:
        width, height, flags, background, aspect = struct.unpack_from("<HHBBB", data, 6)
        limits.check_size(width, height)
        start = 13 + _table_bytes(flags)
        reader = _Reader((width, height), limits)
        reader.read(data, start)
    except (IndexError, struct.error) as error:
        raise _damage("it ends in the middle of a block") from error
    gif = Gif(
        version=data[:6],
        size=reader.size,
        flags=flags,
        background=background,
        aspect=aspect,
        palette=data[13:start],
        blocks=tuple(reader.blocks),
    )
    if not gif.frames:
        raise _damage("it has no image")
    return gif


def unpack(frame: GifFrame) -> Image.Image:
    """Decode the pixels of one frame into palette indices.

    Raises:
        ValueError: damaged or too short; call it inside `decoding`.
    """
    options = (frame.code_size, int(frame.is_interlaced))
    indices = Image.frombytes("P", frame.stored_size, frame.lzw, "gif", options)
    return indices.crop((0, 0, frame.rect.width, frame.rect.height)) if any(frame.beyond) else indices


def pack(indices: Image.Image, *, is_interlaced: bool, code_size: int = 8) -> tuple[int, bytes]:
    """Encode palette indices without loss.

    Returns:
        The minimum code size, raised when an index needs it, and the sub-blocks with their terminator.
    """
    _, highest = indices.getextrema()
    code_size = max(code_size, 2, int(highest).bit_length())  # type: ignore[arg-type]
    return code_size, indices.tobytes("gif", ("P", code_size, int(is_interlaced))) + b"\0"


def _kept_block(block: GifFrame | bytes, policy: Policy) -> GifFrame | bytes:
    """Adapt a block to the result; empty when it is left out."""
    if isinstance(block, GifFrame):
        return block
    if xmp := _xmp_in(block):
        kept = kept_xmp(xmp, policy)
        return packet(kept) if kept else b""
    is_kept = policy.strip is Strip.NOTHING or block[1] not in (_COMMENT, _APPLICATION)
    is_kept |= block[1] == _COMMENT and policy.strip is Strip.LOCATION
    return block if is_kept or block[_NAME] in _VISIBLE_APPLICATIONS else b""


def comment_in(gif: Gif) -> bytes:
    """Return its comments, one on each line and each once (section 24); empty for none."""
    comments: list[bytes] = []
    for block in gif.blocks:
        if isinstance(block, bytes) and block[1] == _COMMENT:
            text, at = b"", 2
            while block[at]:
                text += block[at + 1 : at + 1 + block[at]]
                at += 1 + block[at]
            comments.append(text)
    return b"\n".join(dict.fromkeys(comments))


def comment_block(comment: bytes) -> bytes:
    """Encode a comment."""
    pieces = (comment[start : start + 255] for start in range(0, len(comment), 255))
    return bytes([_EXTENSION, _COMMENT]) + b"".join(bytes([len(one)]) + one for one in pieces) + b"\0"


def _turned_aspect(aspect: int) -> int:
    """Invert a pixel aspect ratio of (n + 15) / 64 (section 18)."""
    return min(255, max(1, round(64 * 64 / (aspect + 15)) - 15)) if aspect else 0


def turned(gif: Gif, policy: Policy) -> Gif:
    """Make the structure for the turned canvas; its pixels are still the old ones."""
    kept = (_kept_block(block, policy) for block in gif.blocks)
    return replace(
        gif,
        size=policy.result_size,
        aspect=_turned_aspect(gif.aspect) if policy.swaps_axes else gif.aspect,
        blocks=tuple(
            replace(block, rect=turned_rect(policy.transpose, block.rect, gif.size))
            if isinstance(block, GifFrame)
            else block
            for block in kept
            if block
        ),
    )


def control(*, delay: int, disposal: int, transparent: int | None) -> bytes:
    """Encode a graphic control extension (section 23).

    Args:
        delay: in hundredths of a second.
        disposal: 0 unspecified, 1 leave, 2 clear to the background, 3 restore what was before.
        transparent: the index of transparent pixels, or None.
    """
    flags = disposal << 2 | (transparent is not None)
    return _CONTROL_START + struct.pack("<BHBB", flags, delay, transparent or 0, 0)


def _read_control(block: bytes) -> tuple[int, int, int | None]:
    """Return the stored disposal, the delay in hundredths of a second and the transparent index or None."""
    flags, delay, index = struct.unpack_from("<BHB", block, 3)
    return flags >> 2 & 7, delay, index if flags & 1 else None


def loop(times: int) -> bytes:
    """Encode the application extension that repeats an animation; 0 is for ever."""
    return _application(_LOOPS[0]) + b"\x03\x01" + struct.pack("<HB", min(65535, times), 0)


def _application(name: bytes) -> bytes:
    return bytes([_EXTENSION, _APPLICATION, len(name)]) + name


def packet(xmp: bytes) -> bytes:
    """Encode the application extension for XMP (XMP part 3, 1.1.2); empty for what it cannot hold."""
    return b"" if b"\0" in xmp else _application(_XMP) + xmp + _XMP_TRAILER


def _xmp_in(block: bytes) -> bytes:
    """Return the XMP packet of an extension; empty for none (XMP part 3, 1.1.2)."""
    is_xmp = block[1] == _APPLICATION and block[_NAME] == _XMP and block.endswith(_XMP_TRAILER)
    return block[_NAME.stop : -len(_XMP_TRAILER)] if is_xmp else b""


def _application_blocks(gif: Gif, *names: bytes) -> Iterator[bytes]:
    for block in gif.blocks:
        if not isinstance(block, GifFrame) and block[1] == _APPLICATION and block[_NAME] in names:
            yield block


def icc_of(gif: Gif) -> bytes:
    """Return the colour profile, empty for none."""
    for block in _application_blocks(gif, _ICC):
        parts, position = [], _NAME.stop
        while position < len(block) and block[position]:
            parts.append(block[position + 1 : position + 1 + block[position]])
            position += 1 + block[position]
        return b"".join(parts)
    return b""


def xmp_of(gif: Gif) -> bytes:
    """Return the XMP packet, empty for none."""
    return next(filter(None, map(_xmp_in, _application_blocks(gif, _XMP))), b"")


def plays_of(gif: Gif) -> int:
    """Return how often an animation runs, 0 for ever. The file counts repetitions; without a count: once."""
    plays = 1
    for block in _application_blocks(gif, *_LOOPS):
        if block[_NAME.stop : _NAME.stop + 2] == b"\x03\x01":
            (repetitions,) = struct.unpack_from("<H", block, _NAME.stop + 2)
            plays = repetitions and repetitions + 1
    return plays


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
    disposal, delay, transparent = 0, 0, None
    for block in gif.blocks:
        if isinstance(block, GifFrame):
            yield Layer(
                _coloured(block, block.palette or gif.palette, transparent),
                block.rect[:2],
                delay * 10,
                is_laid_over=True,
                disposal=_DISPOSALS.get(disposal, Disposal.KEEP),
            )
            disposal, delay, transparent = 0, 0, None
        elif block.startswith(_CONTROL_START):
            disposal, delay, transparent = _read_control(block)


def _coloured(frame: GifFrame, palette: bytes, transparent: int | None) -> Image.Image:
    """Decode one frame to mode RGBA."""
    indices = unpack(frame)
    alphas = bytearray([_OPAQUE]) * _COLOURS
    if transparent is not None:
        alphas[transparent] = 0
    indices.putpalette(_whole_palette(palette))
    image = indices.convert("RGB")
    image.putalpha(Image.frombytes("L", indices.size, indices.tobytes()).point(list(alphas)))
    return image


_GRAYS = bytes(level for level in range(_COLOURS) for _ in range(3))


def _whole_palette(palette: bytes) -> bytes:
    """Return 256 colours: those that a table lacks are black; without a table, indices are levels of gray."""
    return palette.ljust(3 * _COLOURS, b"\0") if palette else _GRAYS


def stills(gif: Gif) -> Iterator[tuple[Image.Image, float]]:
    """Yield the only image of a file, one that covers its canvas; call it inside `decoding`.

    It is in mode P, or in L where indices are levels of gray. Pillow gives gray to indices that the table
    lacks, where browsers show black, and loses their highest bits when it writes them to another file.
    """
    transparent = None
    for block in gif.blocks:
        if isinstance(block, GifFrame):
            break
        if block.startswith(_CONTROL_START):
            _, _, transparent = _read_control(block)
    (frame,) = gif.frames
    image = unpack(frame)
    palette = frame.palette or gif.palette
    used = 3 * (int(image.getextrema()[1]) + 1)  # type: ignore[arg-type]
    if not palette or (used <= len(palette) and _GRAYS.startswith(palette)):
        image = Image.frombytes("L", image.size, image.tobytes())
    else:
        image.putpalette(palette.ljust(used, b"\0"))
    if transparent is not None:
        image.info["transparency"] = transparent
    yield image, 0
