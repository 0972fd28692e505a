"""JPEG as stored: what its markers say, and the segments to write."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import NamedTuple

from PIL import Image

from server.imaging.codecs import MAX_PARTS, Data, Format, damaged
from server.imaging.limits import Limits
from server.imaging.metadata.exif import EXIF_PREFIX, kept_exif, orientation_of
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.photoshop import kept_photoshop, photoshop_with
from server.imaging.metadata.policy import Policy, Strip
from server.imaging.metadata.xmp import is_changed, kept_xmp, refers_to_companion, without_companions

SOF0, SOF1, DHT, SOS, DRI = 0xC0, 0xC1, 0xC4, 0xDA, 0xDD
EOI, DQT, _COM = 0xD9, 0xDB, 0xFE
_APP0, _APP1, _APP2 = 0xE0, 0xE1, 0xE2
_APP13, _APP14, _APP15 = 0xED, 0xEE, 0xEF
_RST0, _SOI = 0xD0, 0xD8
#: Markers that have no influence on the pixels: metadata, and the one that ends the file.
METADATA = frozenset({*range(_APP0, _APP15 + 1), _COM, EOI})
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}  # ITU-T T.81, table B.1
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})

#: Where libjpeg's own fuzzers stop: each scan may cost as much as a whole image.
_MAX_SCANS = 500
_MAX_PADDING_BYTES = 1 << 20

#: The first marker that is no stuffed byte, no fill byte and no restart marker ends a scan (B.1.1.5).
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
#: What starts a segment: no stuffed byte, fill byte, TEM or restart marker, which stand alone.
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")

_JFIF, _ICC, _XMP, _MPF = b"JFIF\0", b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0", b"MPF\0"
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
#: Each part has a digest, the length of the whole and its own offset in front (XMP part 3, 1.1.3.1).
_XMP_EXTENSION_HEADER_BYTES = len(_XMP_EXTENSION) + 40
_PHOTOSHOP = b"Photoshop 3.0\0"
#: How segments begin whose content is adapted, by marker.
_EDITED = {_APP1: (EXIF_PREFIX, _XMP), _APP13: (_PHOTOSHOP,)}
#: How segments begin that refer to other images in the file: the index of CIPA DC-007, a gain map's version.
_OF_OTHER_IMAGES = (_MPF, b"urn:iso:std:iso:ts:21496:-1\0")

#: Square pixels, and nothing said of their size (JFIF 1.02).
_NO_DENSITY = b"\0\0\1\0\1"
_MAX_SEGMENT_BYTES = 65533
_CELL = 8
_ALL = frozenset(range(_CELL * _CELL))


class Segment(NamedTuple):
    """One marker segment.

    Attributes:
        marker: the second byte of its marker.
        start, end: where its parameters are (B.1.1.4).
        stop: where the entropy-coded data after them ends; the same as `end` without any.
    """

    marker: int
    start: int
    end: int
    stop: int


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Everything that the markers of a file say.

    Args:
        size: width and height in pixels, before the EXIF orientation.
        process: the marker of its frame header.
        exif: the TIFF structure of the first EXIF segment, empty for none.
        icc: the colour profile, empty for none.
        jfif: the parameters of its JFIF segment, empty for none.
        texts: the APPn and COM segments that can go along with new pixels, marker and parameters.
        adobe: the parameters of its Adobe segment, empty for none.
        has_own_huffman_tables: False when all are the typical ones of K.3.
        scans: how many it has.
        last_scan: where the entropy-coded data of the last scan ends: the position of its EOI.
        is_closed: whether its EOI comes right behind the scan with which its pixels are complete.
        segments: all of them, in their order.
    """

    size: tuple[int, int]
    process: int
    exif: bytes
    icc: bytes
    jfif: bytes
    texts: tuple[tuple[int, bytes], ...]
    adobe: bytes
    has_own_huffman_tables: bool
    scans: int
    last_scan: int
    is_closed: bool
    segments: tuple[Segment, ...]

    @property
    def adobe_transform(self) -> int | None:
        """Return the colour transform that its Adobe segment names; None for no such segment."""
        return self.adobe[11] if self.adobe else None

    @property
    def is_progressive(self) -> bool:
        """Tell whether it is refined scan by scan."""
        return self.process in _PROGRESSIVE

    @property
    def orientation(self) -> int:
        """Return the EXIF orientation, 1 to 8."""
        return orientation_of(self.exif)

    @property
    def comment(self) -> bytes:
        """Return its comments, one on each line; empty for none."""
        return b"\n".join(text for marker, text in self.texts if marker == _COM)

    @property
    def photoshop(self) -> bytes:
        """Return Photoshop's resources, which may be spread over segments; empty for none."""
        return b"".join(
            text[len(_PHOTOSHOP) :]
            for marker, text in self.texts
            if marker == _APP13 and text.startswith(_PHOTOSHOP)
        )


class NoEndError(Exception):
    """The segments do not lead to an EOI; the text says why, as a clause."""


def _damage(what: str) -> Exception:
    return damaged(Format.JPEG, what)


def segments_of(data: Data) -> Iterator[Segment]:
    """Yield all segments up to EOI, which comes as an empty one. Entropy-coded data is skipped at C speed.

    A decoder silently fills what is missing with gray, so the end is looked for here: a file that was cut
    off anywhere has no EOI after its last scan.

    Raises:
        NoEndError: there is none.
        DamagedImage: there are too many parts.
    """
    position, size = 2, len(data)
    interval = scans = padding = 0
    for _ in range(MAX_PARTS):
        padding -= position
        position = _next_marker(data, position)
        padding += position
        if padding > _MAX_PADDING_BYTES:  # Pillow reads them one by one
            raise _damage("there is too much between its segments")
        marker = data[position + 1]
        if marker == EOI:
            if not scans:
                raise _damage("it has no pixels")
            yield Segment(EOI, position, position, position)
            return
        start = position + 4
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if position < start or position > size:
            raise NoEndError("it is cut off")
        end = position
        if marker == SOS:
            scans += 1
            if scans > _MAX_SCANS:
                raise _damage(f"it has more than {_MAX_SCANS} scans")
            position = _end_of_scan(data, end)
        yield Segment(marker, start, end, position)
        if marker == SOS and interval:
            _check_restarts(data, end, position)
        if marker == DRI:
            interval = int.from_bytes(data[start : start + 2], "big")
    raise _damage(f"it has more than {MAX_PARTS} segments")


def _next_marker(data: Data, start: int) -> int:
    """Find the next marker, after fill bytes (B.1.1.2) and after what libjpeg skips as extraneous."""
    found = _MARKER.search(data, start)
    if found is None:
        raise NoEndError("it is cut off")
    if data[found.start() + 1] == _SOI:
        raise NoEndError("another image begins before its end")
    return found.start()


def _end_of_scan(data: Data, start: int) -> int:
    found = _END_OF_SCAN.search(data, start)
    return len(data) if found is None else found.start()


def _check_restarts(data: Data, start: int, end: int) -> None:
    """Check that restart markers count from 0 to 7 and again from 0 (B.2.1); a gap means missing data."""
    for number, found in enumerate(_RESTART.finditer(data, start, end)):
        if data[found.start() + 1] != _RST0 | number & 7:
            raise NoEndError("a part of its pixels is missing")


def huffman_tables(dht: bytes) -> dict[int, bytes]:
    """Read the tables of one DHT segment by class and number: sixteen counts and the symbols (B.2.4.2)."""
    tables = {}
    while len(dht) >= 17:  # noqa: PLR2004 - class and number, and sixteen counts
        length = 17 + sum(dht[1:17])
        tables[dht[0]] = dht[1:length]
        dht = dht[length:]
    return tables


@cache
def typical_huffman_tables() -> dict[int, bytes]:
    """Return the tables of K.3, which libjpeg writes unless it optimises them; they can code everything."""
    plain = BytesIO()
    Image.new("RGB", (_CELL, _CELL)).save(plain, "JPEG")
    data = plain.getvalue()
    tables: dict[int, bytes] = {}
    for marker, start, end, _ in segments_of(data):
        if marker == DHT:
            tables |= huffman_tables(data[start:end])
    return tables


def _joined_profile(parts: list[bytes]) -> bytes:
    """Join a profile from its numbered parts (ICC.1:2022, B.4); empty when one is missing."""
    numbered = sorted((part[12], part[14:]) for part in parts if len(part) > 14)  # noqa: PLR2004
    complete = [number for number, _ in numbered] == list(range(1, len(parts) + 1))
    return b"".join(part for _, part in numbered) if complete else b""


def _checked_size(frame: bytes, limits: Limits) -> tuple[int, int]:
    """Read width and height from a frame header, and check the limits (B.2.2)."""
    if len(frame) < 6:  # noqa: PLR2004 - precision, height, width, number of components
        raise _damage("its frame header is cut off")
    height, width = struct.unpack_from(">HH", frame, 1)
    limits.check_lossless_size(width, height)
    return width, height


class _Coverage:
    """The coefficients that the scans have brought so far to the last bit (G.1.1.1).

    A progressive file that was cut off and closed with an EOI would show as a coarse image.

    Args:
        frame: the parameters of the frame header.
        is_progressive: by its process; in the others a scan brings all of a component at once.

    Attributes:
        complete_at: where the scan ends with which nothing is missing; None before that.
    """

    def __init__(self, frame: bytes, *, is_progressive: bool) -> None:
        self._is_progressive = is_progressive
        self._missing = {component: set(_ALL) for component in frame[6 : 6 + 3 * frame[5] : 3]}
        self.complete_at: int | None = None

    def add(self, scan: bytes, stop: int) -> None:
        """Count what a scan brings, by the parameters of its header (B.2.3), and note where it ends."""
        count = scan[0]
        first, last, bits = scan[1 + 2 * count : 4 + 2 * count]
        if bits & 0x0F and self._is_progressive:
            return  # its low bits are still to come
        for component in scan[1 : 1 + 2 * count : 2]:
            if component in self._missing:
                self._missing[component] -= set(range(first, last + 1)) if self._is_progressive else _ALL
        if self.complete_at is None and not any(self._missing.values()):
            self.complete_at = stop


def read_jpeg(data: Data, limits: Limits) -> Jpeg:
    """Read the markers to the end of the image and check that it is there; decodes no pixels.

    What follows the first EOI (other images of an MPO, a gain map) is not looked at.

    Raises:
        NoEndError: cut off, or restart markers out of order.
        DamagedImage: scans left out.
        TooManyPixels: above the limit even without decoding, which is reported before a missing end.
    """
    found: dict[int, bytes] = {}
    texts: list[tuple[int, bytes]] = []
    segments: list[Segment] = []
    tables: set[tuple[int, bytes]] = set()
    process, frame, size, scans, end = 0, b"", (0, 0), 0, 0
    coverage = _Coverage(bytes(6), is_progressive=False)
    for segment in segments_of(data):
        segments.append(segment)
        marker, start, stop, _ = segment
        if marker in _FRAME_HEADERS and not frame:
            process, frame = marker, data[start:stop]
            size = _checked_size(frame, limits)
            coverage = _Coverage(frame, is_progressive=process in _PROGRESSIVE)
        elif marker == DHT:
            tables |= huffman_tables(data[start:stop]).items()
        elif marker in (_APP0, _APP14):
            # Only those that libjpeg uses, because the colours depend on them: complete, and before any scan.
            prefix, least = (_JFIF, 14) if marker == _APP0 else (b"Adobe", 12)
            is_whole = stop - start >= least and data[start : start + len(prefix)] == prefix
            found |= {marker: data[start:stop]} if is_whole and not scans else {}
        elif _APP1 <= marker <= _APP15 or marker == _COM:
            texts.append((marker, data[start:stop]))
        elif marker == SOS:
            scans += 1
            coverage.add(data[start:stop], segment.stop)
        elif marker == EOI:
            end = start
    if not frame:
        raise _damage("it has no frame header")
    if coverage.complete_at is None:
        raise _damage("some of its scans are missing")
    exif = next((text for marker, text in texts if marker == _APP1 and text.startswith(EXIF_PREFIX)), b"")
    icc = [text for marker, text in texts if marker == _APP2 and text.startswith(_ICC)]
    return Jpeg(
        size=size,
        process=process,
        exif=exif.removeprefix(EXIF_PREFIX),
        icc=_joined_profile(icc),
        jfif=found.get(_APP0, b""),
        texts=tuple(texts),
        adobe=found.get(_APP14, b""),
        has_own_huffman_tables=not tables <= typical_huffman_tables().items(),
        scans=scans,
        last_scan=end,
        is_closed=end == coverage.complete_at,
        segments=tuple(segments),
    )


def check_decoded(jpeg: Jpeg, limits: Limits) -> None:
    """Check the limits of a JPEG that has to be decoded.

    Raises:
        TooManyPixels: outside of them.
    """
    width, height = jpeg.size
    limits.check_size(width, height)
    limits.check_total(width * height)


def written_segment(marker: int, parameters: bytes) -> bytes:
    """Encode a marker segment (B.1.1.4)."""
    return bytes([0xFF, marker]) + (len(parameters) + 2).to_bytes(2, "big") + parameters


def _left_out(jpeg: Jpeg, policy: Policy) -> tuple[bytes, ...]:
    """Return how the APP1 and APP2 segments begin that refer to other images and cannot be edited.

    An XMP extension contains a digest of itself, so it stays or goes as a whole.
    """
    extension = b"".join(
        text[_XMP_EXTENSION_HEADER_BYTES:]
        for marker, text in jpeg.texts
        if marker == _APP1 and text.startswith(_XMP_EXTENSION)
    )
    is_wrong = refers_to_companion(extension) or kept_xmp(extension, policy) != extension
    return (*_OF_OTHER_IMAGES, *([_XMP_EXTENSION] if is_wrong else []))


def _kept_packet(text: bytes, policy: Policy, *, is_first: bool, is_alone: bool) -> bytes:
    """Encode the segment of an XMP packet for the result; empty when nothing is left of it.

    There may be only one (XMP part 3, 1.1.3). Of several, the first is edited; the others stay or go as a
    whole, because editing any number of them could take any time.
    """
    xmp = text[len(_XMP) :]
    if not is_first and (refers_to_companion(xmp) or is_changed(xmp, policy)):
        return b""
    xmp = without_companions(xmp, is_alone=is_alone and is_first)
    return _fitting_segment(_APP1, _XMP, kept_xmp(xmp, policy))


def _fitting_segment(marker: int, prefix: bytes, content: bytes) -> bytes:
    """Encode a segment; empty when it would be, or would be too long."""
    is_fitting = content and len(prefix + content) <= _MAX_SEGMENT_BYTES
    return written_segment(marker, prefix + content) if is_fitting else b""


def _photoshop_segments(photoshop: bytes) -> bytes:
    """Encode Photoshop's resources, which may run on from one segment to the next."""
    room = _MAX_SEGMENT_BYTES - len(_PHOTOSHOP)
    return b"".join(
        written_segment(_APP13, _PHOTOSHOP + photoshop[start : start + room])
        for start in range(0, len(photoshop), room)
    )


def kept_segments(jpeg: Jpeg, policy: Policy) -> bytes:
    """Encode those of the source's segments that the result keeps, EXIF first as its specification demands.

    Segments that refer to other images or a video in the file are left out, as these are. Where something is
    to be left out, segments of kinds that we do not know go too.
    """
    if policy.is_all_stripped:
        if not kept_icc(jpeg.icc, strip=True):
            return b""
        return b"".join(written_segment(marker, text) for marker, text in jpeg.texts if text.startswith(_ICC))
    left_out = _left_out(jpeg, policy)
    kept: list[bytes] = []
    seen: set[bytes] = set()
    for marker, text in jpeg.texts:
        prefix = next((one for one in _EDITED.get(marker, ()) if text.startswith(one)), b"")
        is_first = prefix not in seen
        seen.add(prefix)
        if prefix == EXIF_PREFIX:
            kept.insert(0 if is_first else len(kept), _kept_exif_segment(text, policy, is_first=is_first))
        elif prefix == _XMP:
            is_alone = _XMP_EXTENSION in left_out
            kept.append(_kept_packet(text, policy, is_first=is_first, is_alone=is_alone))
        elif prefix == _PHOTOSHOP:
            kept.append(_photoshop_segments(kept_photoshop(jpeg.photoshop, policy)) if is_first else b"")
        elif not (marker in (_APP1, _APP2) and text.startswith(left_out)) and _stays(marker, text, policy):
            kept.append(written_segment(marker, text))
    return b"".join(kept)


def _kept_exif_segment(text: bytes, policy: Policy, *, is_first: bool) -> bytes:
    """Encode an EXIF segment for the result. There may be only one; a second is not edited (4.5.4)."""
    if is_first:
        return _fitting_segment(_APP1, EXIF_PREFIX, kept_exif(text, policy))
    is_kept = not policy.is_turned and policy.strip is Strip.NOTHING
    return written_segment(_APP1, text) if is_kept else b""


def _stays(marker: int, text: bytes, policy: Policy) -> bool:
    """Tell whether a segment without a rule of its own stays."""
    if policy.strip is Strip.NOTHING or (marker == _APP2 and text.startswith(_ICC)):
        return True
    is_known = marker == _COM or (marker == _APP1 and text.startswith(_XMP_EXTENSION))
    return is_known and policy.strip is Strip.LOCATION


def kept_headers(jpeg: Jpeg, policy: Policy) -> bytes:
    """Encode the segments that go along with the source's coefficients: kept ones, JFIF and Adobe.

    JFIF and Adobe say what the samples mean. The thumbnail that a JFIF segment may hold is left out, and
    where the resolution does not stay, the densities.
    """
    jfif = jpeg.jfif
    if jfif:
        unit, horizontal, vertical = jfif[7:8], jfif[8:10], jfif[10:12]
        density = unit + (vertical + horizontal if policy.swaps_axes else horizontal + vertical)
        if not policy.has_resolution:
            density = _NO_DENSITY
        jfif = written_segment(_APP0, jfif[:7] + density + b"\0\0")
    adobe = written_segment(_APP14, jpeg.adobe) if jpeg.adobe else b""
    return jfif + kept_segments(jpeg, policy) + adobe


def segments_for(*, exif: bytes, icc: bytes, xmp: bytes, iptc: bytes = b"", comment: bytes = b"") -> bytes:
    """Encode segments for metadata from another format. What does not fit into segments is left out."""
    parts = [
        _fitting_segment(_APP1, EXIF_PREFIX, exif),
        _fitting_segment(_APP1, _XMP, xmp),
        _photoshop_segments(photoshop_with(iptc)) if iptc else b"",
        _fitting_segment(_COM, b"", comment),
    ]
    room = _MAX_SEGMENT_BYTES - len(_ICC) - 2
    pieces = [icc[start : start + room] for start in range(0, len(icc), room)]
    if len(pieces) <= 255:  # noqa: PLR2004 - the number is one byte
        for number, piece in enumerate(pieces, 1):
            parts.append(written_segment(_APP2, _ICC + bytes([number, len(pieces)]) + piece))
    return b"".join(parts)
