"""Small images that cost much: a header that promises millions of pixels, and next to nothing behind it."""

import struct
import zlib
from collections.abc import Iterator

_OPAQUE = 255

#: QOI: a pixel with its three values written out (The Quite OK Image Format, version 1.0, "QOI_OP_RGB").
_QOI_RGB = b"\xfe"
_QOI_END = bytes(7) + b"\x01"

_MILLISECONDS = (40).to_bytes(3, "little")


def plain_webp(width: int, height: int) -> bytes:
    """Write a lossless WebP of one colour, in 32 bytes whatever its size."""
    return _riff(_vp8l(width, height, (0, 128, 0)))


def plain_animation(width: int, height: int, frames: int) -> bytes:
    """Write an animated lossless WebP, each frame of one colour, and no two in a row of the same."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    head = b"\x02" + bytes(3) + size
    return _riff(
        _chunk(b"VP8X", head),
        _chunk(b"ANIM", bytes(6)),
        *(
            _chunk(b"ANMF", bytes(6) + size + _MILLISECONDS + b"\0" + _vp8l(width, height, colour))
            for colour in ((number % 256, number // 256, 255 - number % 256) for number in range(frames))
        ),
    )


def plain_png(side: int) -> bytes:
    """Write a square PNG of one grey, which deflate makes a thousand times smaller."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(side + 1)) for _ in range(side)), packer.flush()])
    parts = ((b"IHDR", header), (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def commented_ppm(comment_bytes: int) -> bytes:
    """Write a PPM of one pixel with a long comment in its header."""
    return b"P6\n#" + b"x" * comment_bytes + b"\n1 1\n255\n\x10\x20\x30"


def long_qoi(side: int) -> bytes:
    """Write a square QOI without any compression: four bytes for each pixel."""
    pixels = b"".join(_QOI_RGB + bytes((number % 251, number % 241, 7)) for number in range(side * side))
    return b"qoif" + struct.pack(">IIBB", side, side, 3, 0) + pixels + _QOI_END


def _vp8l(width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """Write the bitstream of a lossless WebP whose five Huffman codes have one symbol each.

    Such a code takes no bits, so that the pixels take none.

    Source: RFC 9649, 3.4 to 3.7.
    """
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (0, 3)]
    fields += [(0, 1)] * 3  # no transform, no colour cache, one group of codes
    red, green, blue = colour
    for symbol in (green, red, blue, _OPAQUE):
        fields += [(1, 1), (0, 1), (1, 1), (symbol, 8)]
    fields += [(1, 1), (0, 1), (0, 1), (0, 1)]  # distances, of which there are none
    bits, length = 0, 0
    for value, width_bits in fields:
        bits |= value << length
        length += width_bits
    return _chunk(b"VP8L", bits.to_bytes((length + 7) // 8, "little"))


def _riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def one_byte_chunks(body: bytes) -> Iterator[bytes]:
    """Yield a body in the chunked coding, one byte in each chunk."""
    yield from (b"1\r\n" + body[place : place + 1] + b"\r\n" for place in range(len(body)))
    yield b"0\r\n\r\n"
