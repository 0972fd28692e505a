"""Our reader of BMP files: Pillow's takes some palettes, bit fields and runs for others (ADR 26)."""

import struct
from dataclasses import dataclass
from functools import reduce

from PIL import Image, ImageChops, ImageFile, ImagePalette

_FILE_HEADER = struct.Struct("<2sIHHI")
_CORE_INFO = struct.Struct("<HHHH")
_INFO = struct.Struct("<iiHHIIIIII")
_MASKS = struct.Struct("<4I")

#: How long the header behind the file header is: BITMAPCOREHEADER, which OS/2 wrote first; those of Windows,
#: of which the longer ones have bit fields; those of OS/2 2 may end behind any field between 16 and 64 bytes.
_CORE_BYTES, _INFO_BYTES, _MOST_BYTES = 12, 40, 124
_WINDOWS_BYTES = frozenset({_INFO_BYTES, 52, 56, 108, _MOST_BYTES})
_OS2_BYTES = range(16, 65)
_WITH_MASKS_BYTES, _WITH_ALPHA_MASK_BYTES = 52, 56

_RAW, _RUNS_OF_BYTES, _RUNS_OF_NIBBLES, _BIT_FIELDS, _ALPHA_BIT_FIELDS = 0, 1, 2, 3, 6
_BITS_OF_RUNS = {_RUNS_OF_BYTES: 8, _RUNS_OF_NIBBLES: 4}
_MOST_INDEX_BITS, _SHORT_BITS, _PLAIN_BITS, _LONG_BITS = 8, 16, 24, 32

#: Red, green, blue and alpha of a pixel without bit fields of its own.
_SHORT_MASKS = (0x7C00, 0x03E0, 0x001F, 0)
#: The ones that Pillow decodes, in C, by its name; but it rounds their levels down.
_PILLOWS_SHORT_MASKS = {_SHORT_MASKS: "BGR;15", (0xF800, 0x07E0, 0x001F, 0): "BGR;16"}
_LONG_MASKS = (0xFF0000, 0xFF00, 0xFF, 0)
_LONG_MASKS_WITH_ALPHA = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)

_INCHES_PER_METRE = 39.3701
_BLACK_AND_WHITE = bytes(4) + b"\xff\xff\xff\0"
_GRAYS = b"".join(bytes((level, level, level, 0)) for level in range(256))

#: What the second byte of an escape means, as long as it is no number of indices; 0 ends the row.
_END, _SKIP = 1, 2
_NIBBLES = bytes.maketrans(b"0123456789abcdef", bytes(range(16)))

_Masks = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class _Header:
    """What the headers say.

    Args:
        size: in pixels.
        is_top_down: whether the first row is the topmost one.
        bits: of a pixel.
        compression: as in the file.
        masks: where red, green, blue and alpha are in a pixel of 16 or 32 bits; 0 for one that is absent.
        dpi: horizontal and vertical resolution.
        palette: blue, green, red and a byte without meaning for each colour.
        pixels_at: where the pixels start in the file.
    """

    size: tuple[int, int]
    is_top_down: bool
    bits: int
    compression: int
    masks: _Masks
    dpi: tuple[float, float]
    palette: bytes
    pixels_at: int


def _unsupported(what: str) -> OSError:
    return OSError(f"unsupported {what}")


def _read_header(data: bytes) -> _Header:
    """Read the headers and the palette.

    Args:
        data: the file, at least as far as a palette of 256 colours may reach.

    Raises:
        OSError: "unsupported" and what.
        SyntaxError, struct.error: the file is damaged.
    """
    _, _, _, _, offset = _FILE_HEADER.unpack_from(data)
    (length,) = struct.unpack_from("<I", data, _FILE_HEADER.size)
    at = _FILE_HEADER.size + 4
    colours, compression, masks = 0, _RAW, (0, 0, 0, 0)
    across, down = 0, 0  # pixels per metre
    palette_at = _FILE_HEADER.size + length
    if length == _CORE_BYTES:
        width, height, _, bits = _CORE_INFO.unpack_from(data, at)
    elif length in _WINDOWS_BYTES or length in _OS2_BYTES:
        if palette_at > len(data):
            raise SyntaxError("the header is cut off")
        info = data[at:palette_at].ljust(_INFO.size, b"\0")
        width, height, _, bits, compression, _, across, down, colours, _ = _INFO.unpack_from(info)
        if compression in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
            if length not in _WINDOWS_BYTES:
                raise _unsupported("compression of OS/2")
            masks = _read_masks(data, length, compression)
            if length == _INFO_BYTES:
                palette_at += 12 if compression == _BIT_FIELDS else 16
    else:
        raise _unsupported(f"header of {length} bytes")
    if width <= 0 or height == 0:
        raise SyntaxError("it has no size")
    palette, pixels_at = b"", max(offset, palette_at)
    if bits <= _MOST_INDEX_BITS:
        colours = min(colours or 1 << bits, 1 << bits)
        # Readers of OS/2 2 do not agree on the length of an entry; that of the writer left room for them.
        is_short = length == _CORE_BYTES or (
            length not in _WINDOWS_BYTES and offset == palette_at + 3 * colours
        )
        palette, pixels_at = _read_palette(data, palette_at, offset, colours, 3 if is_short else 4)
    return _Header(
        size=(width, abs(height)),
        is_top_down=height < 0,
        bits=bits,
        compression=compression,
        masks=masks,
        dpi=(across / _INCHES_PER_METRE, down / _INCHES_PER_METRE),
        palette=palette,
        pixels_at=pixels_at,
    )


def _read_masks(data: bytes, length: int, compression: int) -> _Masks:
    """Read the masks of bit fields, which are in the header or, when that is short, behind it."""
    red, green, blue, alpha = _MASKS.unpack_from(data, _FILE_HEADER.size + _INFO_BYTES)
    has_alpha = length >= _WITH_ALPHA_MASK_BYTES or compression == _ALPHA_BIT_FIELDS
    return red, green, blue, alpha if has_alpha else 0


def _read_palette(data: bytes, start: int, offset: int, colours: int, entry_bytes: int) -> tuple[bytes, int]:
    """Read the palette, which may be shorter than the header says: it ends where the pixels start.

    Returns:
        Four bytes for each colour, and where the pixels start. Some writers give the place of the palette.
    """
    if offset > start:
        colours = min(colours, (offset - start) // entry_bytes)
    else:
        offset = start + colours * entry_bytes
    stored = data[start : start + colours * entry_bytes]
    if not stored or len(stored) < colours * entry_bytes:
        raise SyntaxError("the palette is cut off")
    if entry_bytes == 4:  # noqa: PLR2004 - with a byte without meaning
        return stored, offset
    return b"".join(stored[at : at + 3] + b"\0" for at in range(0, len(stored), 3)), offset


class BmpFile(ImageFile.ImageFile):
    """A BMP of Windows or OS/2.

    Colours without a palette entry are black. Pixels that runs skip have the first colour of the palette. The
    fourth byte of a pixel of 32 bits is alpha only if a mask says so.

    Attributes:
        channel_bits: the most bits that a channel has in the file; all of them are decoded to 8.
    """

    format = "BMP"
    format_description = "Windows Bitmap"
    channel_bits = 8
    _rounded: tuple[int, ...] = ()

    def _open(self) -> None:
        assert self.fp is not None  # noqa: S101 - open until it is loaded
        header = _read_header(self.fp.read(_FILE_HEADER.size + _MOST_BYTES + 16 + 4 * 256))
        self._size = header.size
        if any(header.dpi):
            self.info["dpi"] = header.dpi
        direction = 1 if header.is_top_down else -1
        stride = (header.size[0] * header.bits + 31) // 32 * 4
        runs_bits = _BITS_OF_RUNS.get(header.compression)
        if header.compression not in (_RAW, _BIT_FIELDS, _ALPHA_BIT_FIELDS) and runs_bits != header.bits:
            raise _unsupported(f"compression {header.compression} of {header.bits} bits")
        codec = "raw"
        args: tuple[object, ...]
        if header.bits in (1, 2, 4, 8):
            rawmode = self._with_palette(header)
            args = (rawmode, stride, direction)
            if runs_bits is not None:
                codec, args = RunsDecoder.name, (header.bits, direction)
        else:
            rawmode = self._with_masks(header)
            args = (rawmode, stride, direction)
            if not rawmode:
                codec, args = FieldsDecoder.name, (header.bits, self._masks, stride, direction)
        self.tile = [ImageFile._Tile(codec, (0, 0, *header.size), header.pixels_at, args)]  # noqa: SLF001

    def _with_palette(self, header: _Header) -> str:
        """Choose mode and palette, and return how Pillow calls rows of such indices."""
        if header.compression in (_BIT_FIELDS, _ALPHA_BIT_FIELDS):
            raise _unsupported("bit fields of a palette")
        if header.bits == 1 and header.palette == _BLACK_AND_WHITE:
            self._mode = "1"
            return "1"
        if header.bits == _MOST_INDEX_BITS and header.palette == _GRAYS:
            self._mode = "L"
            return "L"
        self._mode = "P"
        self._colours = header.palette
        self.palette = ImagePalette.raw("BGRX", header.palette)
        return "P" if header.bits == _MOST_INDEX_BITS else f"P;{header.bits}"

    def _with_masks(self, header: _Header) -> str:
        """Choose the mode, and return how Pillow calls rows of such pixels; empty for a decoder of ours."""
        masks = header.masks
        if header.compression == _RAW:
            masks = {_SHORT_BITS: _SHORT_MASKS}.get(header.bits, _LONG_MASKS)
        if header.bits not in (_SHORT_BITS, _PLAIN_BITS, _LONG_BITS):
            raise _unsupported(f"depth of {header.bits} bits")
        self._mode = "RGBA" if masks[3] else "RGB"
        if header.bits == _PLAIN_BITS:
            if masks[:3] != _LONG_MASKS[:3] or masks[3]:
                raise _unsupported("bit fields of 24 bits")
            return "BGR"
        if header.bits == _LONG_BITS and not any(masks):  # some writers leave them out
            masks = _LONG_MASKS_WITH_ALPHA
            self._mode = "RGBA"
        if header.bits == _LONG_BITS and masks in (_LONG_MASKS, _LONG_MASKS_WITH_ALPHA):
            return "BGRX" if masks == _LONG_MASKS else "BGRA"
        if header.bits == _SHORT_BITS and masks in _PILLOWS_SHORT_MASKS:
            self._rounded = masks[:3]
            return _PILLOWS_SHORT_MASKS[masks]
        _check_masks(masks, header.bits)
        self._masks = masks
        self.channel_bits = max(mask.bit_count() for mask in masks)
        return ""

    def load_end(self) -> None:
        """Correct levels that Pillow has rounded, and colours without an entry, of which it makes grays."""
        if self._rounded:
            self.im = self.im.point([level for mask in self._rounded for level in _exact(mask)], None)
        if self.mode == "P":
            _, highest = self.im.getextrema()
            if highest >= len(self._colours) // 4:
                self.palette = ImagePalette.raw("BGRX", self._colours.ljust(4 * 256, b"\0"))


def _check_masks(masks: _Masks, bits: int) -> None:
    """Check that bit fields are inside the pixel, in one piece each, and do not overlap.

    Raises:
        OSError: "unsupported".
    """
    seen = 0
    for mask in masks:
        lowest = mask & -mask
        in_pieces = mask and (mask + lowest) & mask
        if in_pieces or mask & seen or mask >> bits:
            raise _unsupported("bit fields")
        seen |= mask
    if not any(masks[:3]):
        raise _unsupported("bit fields without colours")


def _levels(bits: int) -> bytes:
    """Return the level of 8 bits for each number of up to 8 bits: its bits are repeated to the end."""
    found = bytearray()
    for number in range(1 << bits):
        level = number << 8 - bits
        filled = bits
        while filled < 8:  # noqa: PLR2004 - bits of a level
            level |= level >> filled
            filled *= 2
        found.append(level)
    return bytes(found)


def _exact(mask: int) -> bytes:
    """Return what to make of levels that Pillow has rounded down, of a channel with so many bits."""
    levels = _levels(mask.bit_count())
    exact = bytearray(256)
    for number, level in enumerate(levels):
        exact[number * 255 // (len(levels) - 1)] = level
    return bytes(exact)


class FieldsDecoder(ImageFile.PyDecoder):
    """A decoder of pixels of 16 or 32 bits in any bit fields. It decodes by channels, not by pixels."""

    name = "bmp_fields"
    _pulls_fd = True

    def decode(self, _buffer: Image.DecoderInput) -> tuple[int, int]:
        """Decode the image, from the current position of the file (see `ImageFile.PyDecoder`)."""
        assert self.fd is not None  # noqa: S101 - set by Pillow
        bits, masks, stride, direction = self.args
        size = self.state.xsize, self.state.ysize
        data = self.fd.read(stride * size[1])
        mode = "LA" if bits == _SHORT_BITS else "RGBA"  # only to have a band for each byte of a pixel
        stored = Image.frombytes(mode, size, data, "raw", mode, stride, direction).split()
        assert self.im is not None  # noqa: S101 - set by Pillow
        for index, mask in enumerate(masks[: len(self.mode)]):
            self.im.putband(_channel(stored, mask).im, index)
        return -1, 0


def _channel(stored: tuple[Image.Image, ...], mask: int) -> Image.Image:
    """Take a channel out of pixels.

    Args:
        stored: the bytes of the pixels, the lowest first.
        mask: where the channel is. Of more than 8 bits only the highest count.
    """
    bits = mask.bit_count()
    shift = (mask & -mask).bit_length() - 1 + max(0, bits - 8)
    parts = [
        image.point([(value << 8 * index & mask) >> shift for value in range(256)])
        for index, image in enumerate(stored)
        if mask >> 8 * index & 0xFF
    ]
    numbers = reduce(ImageChops.add, parts, Image.new("L", stored[0].size)) if len(parts) != 1 else parts[0]
    return numbers.point(list(_levels(min(bits, 8)).ljust(256, b"\0")))


class RunsDecoder(ImageFile.PyDecoder):
    """A decoder of run-length encoding (Windows, BI_RLE8 and BI_RLE4)."""

    name = "bmp_runs"
    _pulls_fd = True

    def decode(self, _buffer: Image.DecoderInput) -> tuple[int, int]:
        """Decode the image, from the current position of the file (see `ImageFile.PyDecoder`)."""
        assert self.fd is not None  # noqa: S101 - set by Pillow
        bits, direction = self.args
        indices = _unpacked(self.fd.read(), (self.state.xsize, self.state.ysize), bits)
        self.set_as_raw(indices, "L" if self.mode == "L" else "P", (0, direction))
        return -1, 0


def _unpacked(data: bytes, size: tuple[int, int], bits: int) -> bytearray:
    """Decode runs to an index for each pixel.

    What a run has beyond the end of its row is dropped, as browsers do. The end of the image need not be
    marked behind its last pixel.

    Args:
        data: from the first run on.
        size: in pixels.
        bits: of an index, 4 or 8.

    Raises:
        ValueError, IndexError: the runs end before the image.
    """
    width, height = size
    indices = bytearray(width * height)
    last = len(data) - 2
    at = x = y = row = 0
    while y < height:
        if at > last:
            if y == height - 1 and x >= width:
                break
            raise ValueError("the runs end before the image")
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            run = bytes((value >> 4, value & 15)) * 128 if bits == 4 else data[at - 1 : at] * count  # noqa: PLR2004
        elif value > _SKIP:  # so many indices as they are
            count = value
            run, at = _as_they_are(data, at, count, bits)
        elif value == _END:
            break
        else:
            right, up = (data[at], data[at + 1]) if value == _SKIP else (-x, 1)
            at += value  # two bytes that say how far, or none
            x, y = x + right, y + up
            row = y * width
            continue
        after = min(x + count, width)
        if x < after:
            indices[row + x : row + after] = run[: after - x]
        x += count
    return indices


def _as_they_are(data: bytes, at: int, count: int, bits: int) -> tuple[bytes, int]:
    """Return indices that are stored as they are, and where they end, padded to an even number of bytes.

    Raises:
        ValueError: they are cut off.
    """
    length = (count * bits + 7) // 8
    stored = data[at : at + length]
    if len(stored) < length:
        raise ValueError("the runs end before the image")
    if bits == 4:  # noqa: PLR2004
        stored = stored.hex().encode().translate(_NIBBLES)
    return stored, at + length + length % 2


Image.register_decoder(RunsDecoder.name, RunsDecoder)
Image.register_decoder(FieldsDecoder.name, FieldsDecoder)
