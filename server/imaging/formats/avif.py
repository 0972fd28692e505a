"""What Pillow's AVIF reader and writer leave out: a check of the end, depth, subsampling and colours."""

import re

from server.imaging.codecs import Data, Format, Sink, check_memory, damaged

_HIGH_BIT_DEPTH, _MONOCHROME, _SUBSAMPLED_X, _SUBSAMPLED_Y = 0x40, 0x10, 0x08, 0x04
_BYTE = 8

_NCLX = b"colrnclx"
_SRGB = b"\0\1\0\x0d"
_AVIF_HEAD_BYTES = 1 << 16

#: For each pixel, to decode it: planes at full resolution with alpha, the same as RGBA, and a copy of that.
_DECODER_BYTES = 12

#: To encode it, measured at all speeds that we use, with alpha; what does not depend on the size comes first.
_ENCODER_BASE_BYTES = 24 << 20
_ENCODER_BYTES = 33
_FULL_ENCODER_BYTES = 53


def check_end(data: Data) -> None:
    """Check that every top-level box ends inside the file (ISO/IEC 14496-12, 4.2).

    Raises:
        DamagedImage: one does not.
    """
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        if size == 0:
            return  # the last box reaches to the end of the file
        position += size
        if size < _BYTE or position > len(data):
            raise damaged(Format.AVIF, "it is cut off")


def check_memory_to_decode(size: tuple[int, int]) -> None:
    """Check beforehand that there is memory for a frame of this size.

    Pillow's reader uses the bytes of a frame without looking whether it got any (_avif.c,
    _decoder_get_frame), which would crash the engine and count against the image.

    Raises:
        MemoryError: there is not.
    """
    check_memory(size[0] * size[1] * _DECODER_BYTES)


def check_memory_to_encode(size: tuple[int, int], subsampling: str) -> None:
    """Check beforehand that there is memory to encode a frame of this size.

    libaom uses some of its tables without looking whether it got memory for them.

    Raises:
        MemoryError: there is not.
    """
    pixel_bytes = _ENCODER_BYTES if subsampling == "4:2:0" else _FULL_ENCODER_BYTES
    check_memory(_ENCODER_BASE_BYTES + size[0] * size[1] * pixel_bytes)


def _av1_flags(data: Data) -> int:
    """Return how the first image is coded: tier, depth, monochrome, subsampling (AV1 in ISO BMFF, 2.3.3)."""
    box = data.find(b"av1C", 0)
    return data[box + 6] if 0 <= box < len(data) - 6 else _SUBSAMPLED_X | _SUBSAMPLED_Y


def subsampling(data: Data) -> str:
    """Return the chroma subsampling to write. 4:2:2 becomes 4:4:4: rotated, AVIF could not express it."""
    flags = _av1_flags(data)
    if flags & _MONOCHROME:
        return "4:0:0"
    return "4:2:0" if flags & _SUBSAMPLED_Y else "4:4:4"


def keep_colours(sink: Sink, data: Data) -> None:
    """Label primaries and transfer function as the source does (ISO/IEC 14496-12, 12.1.5).

    The samples are the source's own, and Pillow's writer labels them all as sRGB.
    """
    start = data.find(_NCLX, 0)  # an mmap would begin at its current position
    codes = data[start + len(_NCLX) : start + len(_NCLX) + 4]
    if start < 0 or codes == _SRGB:
        return
    sink.seek(0)
    head, _, _ = sink.read(_AVIF_HEAD_BYTES).partition(b"mdat")
    for found in re.finditer(_NCLX, head):
        sink.seek(found.end())
        sink.write(codes)
    sink.seek(0, 2)


def is_deep(data: Data) -> bool:
    """Tell whether it has more than 8 bits per channel."""
    return bool(_av1_flags(data) & _HIGH_BIT_DEPTH)
