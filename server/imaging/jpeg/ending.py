"""The end of a JPEG whose EOI is missing: found by its last MCU, whatever follows that.

Some cameras and tools leave the EOI out, and append zeros or blocks of their own. Decoders show such a file,
because every pixel is there. They also show one that was cut off, which must not be answered.
"""

import re
from collections.abc import Iterator

from server.errors import DamagedImage
from server.imaging.codecs import Data, Format, damaged
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.jpeg.markers import SOF0, SOF1, SOS, Jpeg, NoEndError, Segment, read_jpeg, segments_of
from server.imaging.jpeg.structure import Scan, check_blocks, read_structure
from server.imaging.jpeg.turn import check_result
from server.imaging.limits import Limits

_EOI = b"\xff\xd9"
_FIRST_OF_A_MARKER = 0xFF

#: How many zeros are padding and no entropy-coded data, unless the file ends with fewer.
_PADDING_BYTES = 16

#: How Samsung's phones begin what they append: the type of the block, and the length of its name.
_SAMSUNG_BLOCK = re.compile(rb"\0\0[^\0].([\x04-\x40])\0\0\0([!-~]+)", re.DOTALL)
_SAMSUNG_HEAD_BYTES = 8 + 0x40


def whole_jpeg(data: Data, limits: Limits) -> tuple[Data, Jpeg]:
    """Read a JPEG as `read_jpeg` does, but accept one that lacks nothing but its EOI.

    Returns:
        The file, and its markers. Where the EOI was missing, it stands in place of what follows the pixels.

    Raises:
        DamagedImage, TooManyPixels: as `read_jpeg`.
    """
    jpeg = None
    why = ""
    try:
        jpeg = read_jpeg(data, limits)
        if jpeg.is_closed:
            return data, jpeg
    except NoEndError as error:
        why = str(error)
    end = _end_of_pixels(data)
    if jpeg is not None and (end is None or data[end] == _FIRST_OF_A_MARKER):
        return data, jpeg
    if end is None:
        raise damaged(Format.JPEG, why)
    whole = data[:end] + _EOI
    return whole, read_jpeg(whole, limits)


def _end_of_pixels(data: Data) -> int | None:
    """Return where the pixels of a sequential JPEG end; None where it is not certain that all are there."""
    try:
        scans = read_structure(data, _up_to_last_component(data)).scans
        ends = [_end_of(data, scan) for scan in scans]
    except (DamagedImage, Impossible, NoEndError):
        return None
    are_whole = all(end == scan.segment.stop for end, scan in zip(ends[:-1], scans, strict=False))
    return ends[-1] if are_whole and _can_end(data, ends[-1]) else None


def _up_to_last_component(data: Data) -> Iterator[Segment]:
    """Yield the segments up to the scan with which all components are there; no more is looked at."""
    missing = 1
    for segment in segments_of(data):
        yield segment
        parameters = data[segment.start : segment.end]
        if segment.marker in (SOF0, SOF1):
            missing = parameters[5]
        elif segment.marker == SOS:
            missing -= parameters[0]
            if missing <= 0:
                return


def _end_of(data: Data, scan: Scan) -> int:
    """Return where the last MCU of a scan ends.

    Raises:
        DamagedImage, Impossible: it does not end.
    """
    check_blocks(scan)
    return check_result(kernel().measure(*scan.coded(data)))


def _can_end(data: Data, end: int) -> bool:
    """Tell whether what was decoded last was certainly no part of what follows the pixels.

    Nothing is decoded behind a marker or the end of the file. Behind a cut zeros are: then the last byte is
    one, and not the one that follows 0xFF (B.1.1.5).
    """
    if data[end - 1] == 0 and data[end - 2] != _FIRST_OF_A_MARKER:
        return False
    rest = bytes(data[end : end + _SAMSUNG_HEAD_BYTES])
    if rest[:1] == b"\xff":
        return rest[1:2] != b"\0"
    block = _SAMSUNG_BLOCK.match(rest)
    return not rest[:_PADDING_BYTES].strip(b"\0") or (block is not None and len(block[2]) >= block[1][0])
