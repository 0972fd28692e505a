"""PNG and APNG as stored: all chunks are kept; only pixels and what depends on the axes are replaced."""

import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any, NamedTuple

from PIL import Image, ImageChops, PngImagePlugin
from zlib_ng import zlib_ng

from server.errors import UnsupportedImage
from server.imaging.animation import Disposal, Layer
from server.imaging.codecs import MAX_PARTS, Data, Effort, Format, Sink, damaged
from server.imaging.formats import png_texts
from server.imaging.formats.png_texts import Kind
from server.imaging.geometry import Rect, turned_rect
from server.imaging.limits import Limits
from server.imaging.metadata.colour import Colours, from_codes, from_gamma
from server.imaging.metadata.exif import kept_exif
from server.imaging.metadata.icc import is_srgb
from server.imaging.metadata.photoshop import kept_iptc, kept_photoshop, photoshop_with
from server.imaging.metadata.policy import Policy, Strip
from server.imaging.metadata.xmp import kept_xmp

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHUNK_OVERHEAD = 12  # length, type and checksum (PNG 3rd edition, 5.3)
_MAX_PROFILE_BYTES = 1 << 24
_OPAQUE = 255

# Pillow refuses a file for a colour profile of more than a megabyte. It gets no texts from us.
PngImagePlugin.MAX_TEXT_CHUNK = _MAX_PROFILE_BYTES

#: Depth and colour type to the Pillow mode and raw mode whose bits lie the same way. Samples pass through as
#: numbers, so a palette index serves for 1 to 4 bits of gray, LA for 16 bits of gray, RGBA for 16 bits of LA.
_LAYOUTS: dict[tuple[int, int], tuple[str, str]] = {
    (1, 0): ("P", "P;1"),
    (2, 0): ("P", "P;2"),
    (4, 0): ("P", "P;4"),
    (8, 0): ("L", "L"),
    (16, 0): ("LA", "LA"),
    (8, 2): ("RGB", "RGB"),
    (1, 3): ("P", "P;1"),
    (2, 3): ("P", "P;2"),
    (4, 3): ("P", "P;4"),
    (8, 3): ("P", "P"),
    (8, 4): ("LA", "LA"),
    (16, 4): ("RGBA", "RGBA"),
    (8, 6): ("RGBA", "RGBA"),
}

#: Pixels wider than four bytes fit no Pillow mode: the stream is unpacked twice, once for the high byte of
#: each sample and once for the low one ("L" reads the big-endian samples the wrong way round).
_DEEP_LAYOUTS: dict[tuple[int, int], tuple[str, tuple[str, str]]] = {
    (16, 2): ("RGB", ("RGB;16B", "RGB;16L")),
    (16, 6): ("RGBA", ("RGBA;16B", "RGBA;16L")),
}

#: How Pillow packs the modes that are in no layout, because they do not come from `unpack`.
_RAW_MODES = {"1": "1", "I;16": "I;16B"}

#: Samples of a pixel, by colour type; and the one whose samples are indices.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
INDEXED = 3

#: The filter that takes the row above from each (9.2).
_UP = 2

#: How much is filtered at once: about what fits into a core's cache.
_BYTES_AT_ONCE = 1 << 18

#: Levels of zlib-ng, chosen with `python -m benchmarks.cost.encoders` (ADR 14).
_LEVELS = {Effort.LOW: 3, Effort.NORMAL: 6, Effort.HIGH: 7}

#: Ancillary chunks that say how the samples look: they stay even when metadata is dropped.
_COLOUR_CHUNKS = frozenset(
    {
        b"tRNS",
        b"gAMA",
        b"cHRM",
        b"sRGB",
        b"sBIT",
        b"cICP",
        b"mDCV",
        b"cLLI",
        b"iCCP",
        b"bKGD",
        b"hIST",
        b"sPLT",
    },
)
_METADATA_CHUNKS = png_texts.KINDS | {b"eXIf", b"tIME", b"pHYs"}
#: Those without which an animation would be another one.
_ANIMATION_CHUNKS = frozenset({b"acTL", b"fcTL", b"fdAT"})
#: Those of which there may be one, and which must come before the pixels (5.6).
_ONCE = (_COLOUR_CHUNKS - {b"sPLT"}) | {b"eXIf", b"tIME", b"pHYs"}
_BEFORE_PIXELS = _COLOUR_CHUNKS | {b"pHYs"}
#: Texts that other formats have a place for (11.3.3.2), and how much of one is read.
_KEYWORDS = frozenset({b"Title", b"Author", b"Description", b"Copyright", b"Software", b"Comment"})
_MAX_TEXT_BYTES = 1 << 16

#: Keywords of texts that say where, or that contain metadata of another kind.
_PRIVATE_KEYWORD = re.compile(
    rb"(?i)^raw profile type|gps|latitude|longitude|altitude|location|place|\b(?:geo|city|country|state)"
)
#: Keywords of texts that say who made the image and who has the rights (11.3.3.2).
_PUBLIC_KEYWORD = re.compile(rb"(?i)^(?:author|artist|creator|copyright|credit)$")

#: Lengths that are fixed (11.3).
_LENGTHS = {b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"pHYs": 9, b"tIME": 7}
#: Of a transparent colour, of a background, and of the significant bits, by colour type.
_KEY_LENGTHS = {0: 2, 2: 6}
_BACKGROUND_LENGTHS = {0: 2, 2: 6, 3: 1, 4: 2, 6: 6}
_SIGNIFICANT_BITS_LENGTHS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
#: Chunks that name a compression method after their keyword; there is one method, 0 (11.3.2.3, 11.3.3.3).
_COMPRESSED_CHUNKS = frozenset({b"iCCP", b"zTXt"})
#: What Pillow needs to know of a file besides its pixels.
_CHUNKS_FOR_PILLOW = _COLOUR_CHUNKS | {b"PLTE", b"pHYs"}
#: How Apple's tools mark files for their devices, whose pixels are stored in another way.
_APPLE = b"CgBI"


class Chunk(NamedTuple):
    """One chunk without length and checksum (PNG 3rd edition, 5.3)."""

    kind: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class PngFrame:
    """One frame of an animation (PNG 3rd edition, 11.3.6.2).

    Args:
        rect: where it lies on the canvas.
        control: delay numerator and denominator, dispose and blend operation, as stored: six bytes.
        stream: the zlib stream of its pixels.
    """

    rect: Rect
    control: bytes
    stream: bytes


@dataclass(frozen=True, slots=True)
class Png:
    """A whole file.

    Args:
        size: of the canvas, in pixels.
        depth: bits per sample.
        colour_type: 0 gray, 2 RGB, 3 palette, 4 gray and alpha, 6 RGBA (11.2.1).
        is_interlaced: whether the pixel streams are in Adam7 order.
        before, after: the chunks on either side of the pixels, in order; PLTE is among them.
        still: the pixels that are no frame of an animation, as a zlib stream; None in an animation whose
            first frame serves as the still.
        frames: of the animation; empty for a still.
        plays: how often the animation runs, 0 for ever.
    """

    size: tuple[int, int]
    depth: int
    colour_type: int
    is_interlaced: bool
    before: tuple[Chunk, ...]
    after: tuple[Chunk, ...]
    still: bytes | None
    frames: tuple[PngFrame, ...] = ()
    plays: int = 0

    @property
    def has_own_key(self) -> bool:
        """Tell whether there is a transparent colour that Pillow would compare at the wrong depth."""
        return self.depth in (2, 4, 16) and self.colour_type in _KEY_LENGTHS and bool(self.find(b"tRNS"))

    @property
    def exif(self) -> bytes:
        """Return the EXIF, from its chunk or else from a text; empty for none.

        Viewers know the one in the chunk only: the orientation of the image is that of the `eXIf` chunk.
        """
        return self.find(b"eXIf") or self._metadata(Kind.EXIF)

    @property
    def xmp(self) -> bytes:
        """Return the XMP packet, in UTF-8; empty for none."""
        return self._metadata(Kind.XMP)

    @property
    def iptc(self) -> bytes:
        """Return the Photoshop resources with IPTC in them; empty for none."""
        return png_texts.photoshop_resources(self._metadata(Kind.IPTC))

    def find(self, kind: bytes) -> bytes:
        """Return the data of the first chunk of a kind; empty when there is none."""
        return next((chunk.data for chunk in self.before + self.after if chunk.kind == kind), b"")

    def _metadata(self, kind: Kind) -> bytes:
        """Return the first metadata of a kind that a text holds; empty for none."""
        texts = (chunk for chunk in self.before + self.after if chunk.kind in png_texts.KINDS)
        found = (png_texts.metadata_in(*chunk) for chunk in texts if kind in png_texts.kinds_in(chunk.data))
        return next((one.content for one in found if one and one.kind is kind and one.content), b"")


def _damage(what: str) -> Exception:
    return damaged(Format.PNG, what)


def _chunks(data: Data) -> Iterator[Chunk]:
    """Yield all chunks between the signature and IEND, but those with a wrong checksum.

    Decoders leave these out, if they are ancillary (13.2). Without the one that says how an animation runs
    there would be another animation.
    """
    position = len(SIGNATURE)
    for _ in range(MAX_PARTS):
        head = data[position : position + 8]
        if len(head) < 8:  # noqa: PLR2004 - length and type
            raise _damage("it ends before its IEND chunk")
        length, kind = struct.unpack(">I4s", head)
        end = position + length + _CHUNK_OVERHEAD
        if end > len(data):
            raise _damage("its last chunk is cut off")
        body = data[position + 8 : end - 4]
        is_sound = zlib_ng.crc32(body, zlib_ng.crc32(kind)) == int.from_bytes(data[end - 4 : end], "big")
        if not is_sound and not _can_be_left_out(kind):
            raise _damage("a chunk has a wrong checksum")
        if kind == b"IEND":
            return
        if is_sound:
            yield Chunk(kind, body)
        position = end
    raise _damage(f"it has more than {MAX_PARTS} chunks")


def _can_be_left_out(kind: bytes) -> bool:
    return kind.isalpha() and bool(kind[0] & 0x20) and kind not in _ANIMATION_CHUNKS


class _Reader:
    """A collector of chunks, which makes a `Png` of them; one method per chunk type that matters."""

    def __init__(self, header: bytes, limits: Limits) -> None:
        if len(header) != 13:  # noqa: PLR2004 - the size of IHDR
            raise _damage("its header has a wrong length")
        width, height, depth, colour_type, compression, filtering, interlace = struct.unpack(
            ">IIBBBBB", header
        )
        layout = (depth, colour_type)
        if not width or not height or compression or filtering or interlace > 1:
            raise _damage("its header makes no sense")
        if layout not in _LAYOUTS and layout not in _DEEP_LAYOUTS:
            raise _damage("its header has an impossible colour type")
        limits.check_size(width, height)
        self._limits = limits
        self._size = (width, height)
        self._depth, self._colour_type, self._interlace = depth, colour_type, interlace
        self._before: list[Chunk] = []
        self._after: list[Chunk] = []
        self._still: list[bytes] = []
        self._frames: list[tuple[Rect, bytes, list[bytes]]] = []
        self._has_pixels = False
        self._last = b""
        self._colours = 0
        self._seen: set[bytes] = set()
        self._animation: tuple[int, int] | None = None
        self._sequence = 0

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk, or leave it out where decoders do."""
        last, self._last = self._last, chunk.kind
        if chunk.kind == b"IDAT":
            if not self._has_pixels or last == b"IDAT":  # they come one after the other (5.6)
                (self._frames[0][2] if self._frames else self._still).append(chunk.data)
            self._has_pixels = True
        elif chunk.kind in _ANIMATION_CHUNKS:
            self._add_to_animation(chunk)
        elif chunk.kind == b"PLTE":
            self._add_palette(chunk)
        elif not chunk.kind.isalpha():
            raise _damage("a chunk has a type that is no word")
        elif not chunk.kind[0] & 0x20:
            raise _damage("it has an unknown critical chunk")
        elif self._is_sound(chunk) and not self._is_repeated(chunk):
            if chunk.kind == b"tRNS" and self._colour_type != INDEXED:
                chunk = self._masked(chunk)
            (self._after if self._has_pixels else self._before).append(chunk)

    def _add_to_animation(self, chunk: Chunk) -> None:
        if chunk.kind == b"acTL":
            if self._animation is None and not self._has_pixels and len(chunk.data) == 8:  # noqa: PLR2004
                self._animation = struct.unpack(">II", chunk.data)
        elif self._animation is not None:  # otherwise they belong to no animation and mean nothing
            self._take_sequence(chunk.data)
            (self._add_control if chunk.kind == b"fcTL" else self._add_frame_data)(chunk.data)

    def _add_palette(self, chunk: Chunk) -> None:
        """Take a palette, or a mere proposal of one (11.2.2)."""
        if self._colours:
            raise _damage("it has two palettes")
        colours, rest = divmod(len(chunk.data), 3)
        is_sound = not rest and 1 <= colours <= 256  # noqa: PLR2004
        if self._colour_type in (0, 4) or self._has_pixels or not (is_sound or self._colour_type == INDEXED):
            return
        if not is_sound:
            raise _damage("it has no palette")
        self._colours = colours
        self._before.append(chunk)

    def _is_sound(self, chunk: Chunk) -> bool:
        """Tell whether an ancillary chunk has the place and the form in which decoders accept it (11.3)."""
        kind, size = chunk.kind, len(chunk.data)
        if self._has_pixels and kind in _BEFORE_PIXELS:
            return False
        if kind in _COMPRESSED_CHUNKS:
            _keyword, end, rest = chunk.data.partition(b"\0")
            return bool(end) and rest[:1] == b"\0"
        if kind == b"tRNS":
            if self._colour_type == INDEXED:
                return 0 < size <= self._colours
            return size == _KEY_LENGTHS.get(self._colour_type)
        if kind == b"hIST":
            return size == 2 * self._colours > 0
        needed = {
            b"bKGD": _BACKGROUND_LENGTHS[self._colour_type],
            b"sBIT": _SIGNIFICANT_BITS_LENGTHS[self._colour_type],
        }.get(kind, _LENGTHS.get(kind, size))
        return size == needed

    def _is_repeated(self, chunk: Chunk) -> bool:
        """Tell whether it is a second one of what there may be one of (5.6; XMP part 3, 1.1.5).

        Decoders use the first, and unpacking any number of them could take any time.
        """
        key = chunk.kind
        if key in png_texts.KINDS:
            key = png_texts.keyword_of(chunk.data) if png_texts.kinds_in(chunk.data) else b""
        elif key not in _ONCE:
            key = b""
        is_repeated = key in self._seen
        if key:
            self._seen.add(key)
        return is_repeated

    def _masked(self, chunk: Chunk) -> Chunk:
        """Clear the bits of a transparent colour that its samples do not have (11.3.1.1)."""
        samples = struct.unpack(f">{len(chunk.data) // 2}H", chunk.data)
        mask = (1 << self._depth) - 1
        return Chunk(chunk.kind, struct.pack(f">{len(samples)}H", *(sample & mask for sample in samples)))

    def _take_sequence(self, data: bytes) -> None:
        if data[:4] != self._sequence.to_bytes(4, "big"):
            raise _damage("its frames are out of sequence")
        self._sequence += 1

    def _add_control(self, data: bytes) -> None:
        self._limits.check_frames(len(self._frames) + 1)
        if len(data) != 26:  # noqa: PLR2004 - the size of fcTL
            raise _damage("a frame header has a wrong length")
        width, height, x, y = struct.unpack_from(">4I", data, 4)
        if not width or not height or x + width > self._size[0] or y + height > self._size[1]:
            raise _damage("a frame lies outside the canvas")
        if not self._has_pixels and (self._frames or (width, height) != self._size):
            raise _damage("its first frame does not fill the canvas")
        self._frames.append((Rect(x, y, width, height), data[20:], []))

    def _add_frame_data(self, data: bytes) -> None:
        if not self._frames or not self._has_pixels:
            raise _damage("it has frame data without a frame header")
        self._frames[-1][2].append(data[4:])

    def finish(self) -> Png:
        """Return the whole file after every chunk was added."""
        frames = tuple(PngFrame(rect, control, b"".join(parts)) for rect, control, parts in self._frames)
        declared, plays = self._animation or (0, 0)
        still = b"".join(self._still) or None
        if not self._has_pixels or not (still or frames) or not all(frame.stream for frame in frames):
            raise _damage("it has no pixels")
        if len(frames) != declared:
            raise _damage(f"it has {len(frames)} of its {declared} frames")
        if self._colour_type == INDEXED and not self._colours:
            raise _damage("it has no palette")
        width, height = self._size
        self._limits.check_total(width * height * max(1, len(frames)))
        return Png(
            size=self._size,
            depth=self._depth,
            colour_type=self._colour_type,
            is_interlaced=bool(self._interlace),
            before=tuple(self._before),
            after=tuple(self._after),
            still=still,
            frames=frames,
            plays=plays,
        )


def read_png(data: Data, limits: Limits) -> Png:
    """Read the structure and check it to the last byte; decodes no pixels (PNG 3rd edition, 5 and 11).

    Raises:
        DamagedImage: cut off, a wrong checksum, or frames that do not fit together.
        TooManyPixels, TooManyFrames: outside the limits.
    """
    chunks = _chunks(data)
    first = next(chunks, Chunk(b"", b""))
    if first.kind == _APPLE:
        raise UnsupportedImage(
            "This PNG was made for Apple's devices (CgBI), and its pixels are stored in another way. "
            "Convert it with `pngcrush -revert-iphone-optimizations`, and send that.",
        )
    if first.kind != b"IHDR":
        raise _damage("it does not begin with a header")
    reader = _Reader(first.data, limits)
    for chunk in chunks:
        reader.add(chunk)
    return reader.finish()


def unpack(png: Png, stream: bytes, size: tuple[int, int]) -> tuple[Image.Image, ...]:
    """Decode one pixel stream into one plane, or into two (high and low bytes) for deep colour.

    Raises:
        ValueError: the stream is damaged or too short; call it inside `decoding`.
    """
    layout = (png.depth, png.colour_type)
    if layout in _DEEP_LAYOUTS:
        mode, raw_modes = _DEEP_LAYOUTS[layout]
    else:
        mode, raw_mode = _LAYOUTS[layout]
        raw_modes = (raw_mode,)  # type: ignore[assignment]
    return tuple(
        Image.frombytes(mode, size, stream, "zip", (raw, int(png.is_interlaced))) for raw in raw_modes
    )


def pack(png: Png, planes: tuple[Image.Image, ...], effort: Effort) -> bytes:
    """Encode the planes of `unpack` into a pixel stream, not interlaced."""
    deflater = zlib_ng.compressobj(_LEVELS[effort])
    parts = [deflater.compress(rows) for rows in _filtered(png, planes, is_adaptive=effort is Effort.HIGH)]
    return b"".join((*parts, deflater.flush()))


def _filtered(png: Png, planes: tuple[Image.Image, ...], *, is_adaptive: bool) -> Iterator[bytes]:
    """Yield the rows of a pixel stream, some at a time, each with its filter type in front (9.2).

    Args:
        png: the file that the planes belong to.
        planes: as for `pack`.
        is_adaptive: choose the filter row by row, by the least sum of differences (12.7); that takes ten
            times as long as to subtract the row above everywhere.
    """
    width, height = planes[0].size
    rows_at_once = max(1, _BYTES_AT_ONCE // (width * _SAMPLES[png.colour_type] * 2))
    is_filtered = png.depth >= 8 and png.colour_type != INDEXED  # noqa: PLR2004 - bits; 12.7 advises so
    raw_mode = _RAW_MODES.get(planes[0].mode) or _LAYOUTS.get((png.depth, png.colour_type), ("", ""))[1]
    above = b""
    for top in range(0, height, rows_at_once):
        bottom = min(height, top + rows_at_once)
        if is_filtered and is_adaptive and len(planes) == 1:
            # Pillow filters only while it compresses: level 0 leaves the bytes as they are. It must see the
            # row above.
            context = min(top, 1)
            part = planes[0].crop((0, top - context, width, bottom))
            stored = zlib.decompress(part.tobytes("zip", (raw_mode, False, 0)))
            yield stored[context * len(stored) // part.height :]
            continue
        samples = _samples([plane.crop((0, top, width, bottom)) for plane in planes], raw_mode)
        stride = len(samples) // (bottom - top)
        rows = Image.frombytes("L", (stride, bottom - top), samples)
        if is_filtered:
            shifted = (above or bytes(stride)) + samples[:-stride]
            rows = ImageChops.subtract_modulo(rows, Image.frombytes("L", rows.size, shifted))
            above = samples[-stride:]
        behind_types = Image.new("L", (stride + 1, rows.height), _UP if is_filtered else 0)
        behind_types.paste(rows, (1, 0))
        yield behind_types.tobytes()


def _samples(planes: list[Image.Image], raw_mode: str) -> bytes:
    """Return the samples of some rows as they are stored; two planes are the two bytes of 16-bit samples."""
    if len(planes) == 1:
        return planes[0].tobytes("raw", raw_mode)
    high, low = planes
    samples = bytearray(2 * high.width * high.height * len(high.getbands()))
    samples[0::2] = high.tobytes()
    samples[1::2] = low.tobytes()
    return bytes(samples)


def _turned_chunk(chunk: Chunk, policy: Policy) -> Chunk:
    """Adapt a chunk to the result; it becomes empty where that cannot be done, or nothing is left of it."""
    if chunk.kind == b"pHYs" and policy.swaps_axes:
        return Chunk(b"pHYs", chunk.data[4:8] + chunk.data[:4] + chunk.data[8:])  # 11.3.4.3
    if chunk.kind == b"eXIf":
        return Chunk(b"eXIf", kept_exif(chunk.data, policy))
    if chunk.kind in png_texts.KINDS:
        return _turned_text(chunk, policy)
    return chunk


def _kept_profile(content: bytes, policy: Policy) -> bytes:
    """Adapt Photoshop's resources, or IPTC data alone, to the result."""
    return (kept_photoshop if content.startswith(b"8BIM") else kept_iptc)(content, policy)


_EDITS: dict[Kind, Callable[[bytes, Policy], bytes]] = {
    Kind.XMP: kept_xmp,
    Kind.EXIF: kept_exif,
    Kind.IPTC: _kept_profile,
}


def _turned_text(chunk: Chunk, policy: Policy) -> Chunk:
    """Adapt metadata in a text; it is left out as a whole where it cannot be read."""
    if png_texts.is_of_the_old_axes(chunk.data):
        return Chunk(chunk.kind, b"")
    metadata = png_texts.metadata_in(*chunk)
    if metadata is None:
        return chunk
    edited = _EDITS[metadata.kind](metadata.content, policy)
    if edited == metadata.content and edited:
        return chunk
    if not edited:
        return Chunk(chunk.kind, b"")
    return Chunk(chunk.kind, png_texts.with_metadata(*chunk, replace(metadata, content=edited)))


def profile_in(data: bytes) -> bytes:
    """Return the ICC profile of an iCCP chunk; empty when it cannot be read (11.3.2.3)."""
    _, _, compressed = data.partition(b"\0")
    try:
        return zlib.decompressobj().decompress(compressed[1:], _MAX_PROFILE_BYTES)
    except zlib.error:
        return b""


def colours(png: Png) -> Colours | None:
    """Return the colours that are named without a profile; None where there is one, or nothing (4.4)."""
    codes = png.find(b"cICP")
    if len(codes) == 4:  # noqa: PLR2004 - primaries, transfer function, matrix, range
        return from_codes(codes[0], codes[1], is_full_range=bool(codes[3]))
    if profile_in(png.find(b"iCCP")) or png.find(b"sRGB"):
        return None
    gamma, places = png.find(b"gAMA"), png.find(b"cHRM")
    if not gamma:
        return None
    primaries = None
    if places:
        xw, yw, *others = (number / 100_000 for number in struct.unpack(">8I", places))
        primaries = (*others, xw, yw)
    return from_gamma(int.from_bytes(gamma, "big"), primaries)


def codes_chunk(primaries: int, transfer: int) -> Chunk:
    """Make the chunk that names colours by their codes, for RGB of full range (11.3.2.6)."""
    return Chunk(b"cICP", bytes([primaries, transfer, 0, 1]))


def texts_in(png: Png) -> dict[str, str]:
    """Return the texts with the keywords of the specification, the first of each (11.3.3)."""
    found: dict[str, str] = {}
    for kind, data in png.before + png.after:
        keyword = data.partition(b"\0")[0].capitalize()  # ImageMagick writes `comment`
        if kind not in png_texts.KINDS or keyword not in _KEYWORDS or keyword.decode() in found:
            continue
        coding = "utf-8" if kind == b"iTXt" else "latin-1"
        found[keyword.decode()] = png_texts.text_of(kind, data)[:_MAX_TEXT_BYTES].decode(coding, "replace")
    return found


def text_chunks(*, xmp: bytes, iptc: bytes, comment: str) -> tuple[Chunk, ...]:
    """Make chunks for metadata from another format; empty for none.

    There is no chunk for IPTC data. It gets a text of hexadecimal digits, as ImageMagick writes it and other
    programs read it.
    """
    chunks: list[Chunk] = []
    if xmp:
        chunks.append(Chunk(b"iTXt", b"XML:com.adobe.xmp" + bytes(5) + xmp))
    if iptc:
        chunks.append(Chunk(b"zTXt", png_texts.raw_profile("iptc", photoshop_with(iptc))))
    try:
        plain = comment.encode("latin-1")
        chunks += [Chunk(b"tEXt", b"Comment\0" + plain)] if plain else []
    except UnicodeEncodeError:
        chunks.append(Chunk(b"iTXt", b"Comment" + bytes(5) + comment.encode()))
    return tuple(chunks)


def _stays(chunk: Chunk, strip: Strip) -> bool:
    """Tell whether a chunk goes into the result.

    A chunk that we do not know stays when its name marks it as safe to copy (14.2), unless something is to be
    left out, which it may contain.
    """
    if chunk.kind == b"PLTE" or chunk.kind in _COLOUR_CHUNKS:
        return not (strip is Strip.ALL and chunk.kind == b"iCCP" and is_srgb(profile_in(chunk.data)))
    if strip is Strip.NOTHING:
        return chunk.kind in _METADATA_CHUNKS or bool(chunk.kind[3] & 0x20)
    is_wanted = chunk.kind in _METADATA_CHUNKS and strip is not Strip.ALL
    if is_wanted and chunk.kind in png_texts.KINDS:
        if png_texts.kinds_in(chunk.data):
            return True  # it is edited
        found = _PRIVATE_KEYWORD if strip is Strip.LOCATION else _PUBLIC_KEYWORD
        return bool(found.search(chunk.data.partition(b"\0")[0])) is (strip is Strip.PRIVATE)
    return is_wanted and (strip is Strip.LOCATION or chunk.kind == b"eXIf")


def turned(png: Png, policy: Policy) -> Png:
    """The structure for the turned canvas; its pixel streams are still the old ones."""

    def turn(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
        fresh = (_turned_chunk(chunk, policy) for chunk in chunks if _stays(chunk, policy.strip))
        return tuple(chunk for chunk in fresh if chunk.data or chunk.kind not in _METADATA_CHUNKS)

    return replace(
        png,
        size=policy.result_size,
        is_interlaced=False,
        before=turn(png.before),
        after=turn(png.after),
        frames=tuple(
            replace(frame, rect=turned_rect(policy.transpose, frame.rect, png.size)) for frame in png.frames
        ),
    )


def _write_chunk(sink: Sink, kind: bytes, *parts: bytes) -> None:
    checksum = zlib_ng.crc32(kind)
    for part in parts:
        checksum = zlib_ng.crc32(part, checksum)
    sink.write(sum(map(len, parts)).to_bytes(4, "big") + kind)
    for part in parts:
        sink.write(part)
    sink.write(checksum.to_bytes(4, "big"))


def write_png(sink: Sink, png: Png) -> None:
    """Write a whole file; the opposite of `read_png`."""
    sink.write(SIGNATURE)
    header = struct.pack(">IIBBBBB", *png.size, png.depth, png.colour_type, 0, 0, png.is_interlaced)
    _write_chunk(sink, b"IHDR", header)
    for chunk in png.before:
        _write_chunk(sink, *chunk)
    if png.frames:
        _write_chunk(sink, b"acTL", struct.pack(">II", len(png.frames), png.plays))
    if png.still is not None:
        _write_chunk(sink, b"IDAT", png.still)
    sequence = 0
    for index, frame in enumerate(png.frames):
        x, y, width, height = frame.rect
        _write_chunk(sink, b"fcTL", struct.pack(">5I", sequence, width, height, x, y), frame.control)
        sequence += 1
        if index == 0 and png.still is None:
            _write_chunk(sink, b"IDAT", frame.stream)
        else:
            _write_chunk(sink, b"fdAT", sequence.to_bytes(4, "big"), frame.stream)
            sequence += 1
    for chunk in png.after:
        _write_chunk(sink, *chunk)
    _write_chunk(sink, b"IEND")


def for_pillow(png: Png) -> bytes:
    """Write a file for Pillow's reader: without animation, texts and whatever decoders leave out.

    Pillow refuses a file for one wrong checksum or much text, and of chunks that are repeated or stand in the
    wrong place it uses the wrong one. An animation has no pixels there, as we compose it.
    """
    file = BytesIO()
    before = tuple(chunk for chunk in png.before if chunk.kind in _CHUNKS_FOR_PILLOW)
    pixels = b"" if png.frames else png.still
    write_png(file, replace(png, before=before, after=(), still=pixels, frames=()))
    return file.getvalue()


def add_missing_colours(image: Image.Image) -> None:
    """Append black to a palette for indices that it does not have (11.2.2), as decoders show these.

    Other formats would be left with indices that their readers take for another colour, or refuse.
    """
    if image.mode != "P":
        return
    palette = bytes(image.getpalette() or b"")
    needed = 3 * (int(image.getextrema()[1]) + 1)  # type: ignore[arg-type]
    if len(palette) < needed:
        image.putpalette(palette.ljust(needed, b"\0"))


def still(image: Image.Image, effort: Effort, settings: Mapping[str, Any]) -> Png:
    """Make a PNG of one image.

    Args:
        image: its pixels, in one of the modes that Pillow writes.
        effort: of the encoder.
        settings: its metadata, as for Pillow's `save`.
    """
    # Pillow writes the chunks, for an image of one pixel; we write the pixels.
    file = BytesIO()
    image.crop((0, 0, 1, 1)).save(file, "PNG", **settings)
    pattern = replace(read_png(file.getvalue(), _ONE_PIXEL), size=image.size)
    return replace(pattern, still=pack(pattern, (image,), effort))


def animation(
    size: tuple[int, int], before: tuple[Chunk, ...], frames: tuple[PngFrame, ...], plays: int
) -> Png:
    """Make an RGBA animation of frames that were packed with `RGBA_PATTERN`."""
    return replace(RGBA_PATTERN, size=size, before=before, frames=frames, plays=plays)


_ONE_PIXEL = Limits(max_pixels=1, max_frames=1, max_total_pixels=1)

#: What `pack` needs to know for frames of an RGBA animation.
RGBA_PATTERN = Png((1, 1), 8, 6, is_interlaced=False, before=(), after=(), still=None)


_DISPOSALS = (Disposal.KEEP, Disposal.CLEAR, Disposal.RESTORE)
_LAY_OVER = 1


def layers(png: Png) -> Iterator[Layer]:
    """Yield the frames with their places and times (PNG 3rd edition, 11.3.6.2); call it inside `decoding`."""
    for frame in png.frames:
        numerator, denominator, disposal, blending = struct.unpack(">HHBB", frame.control)
        yield Layer(
            coloured(png, frame.stream, (frame.rect.width, frame.rect.height)),
            frame.rect[:2],
            1000 * numerator / (denominator or 100),
            is_laid_over=blending == _LAY_OVER,
            disposal=_DISPOSALS[disposal] if disposal < len(_DISPOSALS) else Disposal.KEEP,
        )


def coloured(png: Png, stream: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode one pixel stream to mode RGBA, 8 bits deep; call it inside `decoding`."""
    if png.has_own_key or (png.depth, png.colour_type) == (16, 0):
        return _keyed(png, stream, size)
    file = BytesIO()
    looks = tuple(chunk for chunk in png.before if chunk.kind in (b"PLTE", b"tRNS"))
    write_png(file, replace(png, size=size, before=looks, after=(), still=stream, frames=()))
    file.seek(0)
    return PngImagePlugin.PngImageFile(file).convert("RGBA")


def _keyed(png: Png, stream: bytes, size: tuple[int, int]) -> Image.Image:
    """Decode gray or RGB, comparing the key colour with all bits of the stored samples (11.3.1.1)."""
    bands = [
        Image.frombytes("L", size, band.tobytes())
        for plane in unpack(png, stream, size)
        for band in plane.split()
    ]
    key = png.find(b"tRNS")[: 6 if png.colour_type else 2]
    wanted = key[0::2] + key[1::2] if png.depth == 16 else key[1::2]  # noqa: PLR2004 - bits
    alpha = Image.new("L", size, 0 if wanted else _OPAQUE)
    for band, value in zip(bands, wanted, strict=False):
        alpha = ImageChops.lighter(alpha, band.point([_OPAQUE * (sample != value) for sample in range(256)]))
    if png.colour_type == 0:
        highest = min(_OPAQUE, (1 << png.depth) - 1)
        gray = bands[0].point([min(_OPAQUE, sample * _OPAQUE // highest) for sample in range(256)])
        bands = [gray] * 3
    return Image.merge("RGBA", (*bands[:3], alpha))
