"""What Pillow's AVIF reader and writer leave out: a check of the end, depth, subsampling and colours."""

import re

from server.imaging.codecs import Data, Format, Sink, damaged

_HIGH_BIT_DEPTH, _MONOCHROME, _SUBSAMPLED_X, _SUBSAMPLED_Y = 0x40, 0x10, 0x08, 0x04
_BYTE = 8

_NCLX = b"colrnclx"
_SRGB = b"\0\1\0\x0d"
_AVIF_HEAD_BYTES = 1 << 16


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
