"""Photoshop's image resources and the IPTC data in them, kept byte for byte except where that is wrong."""

import struct
from collections.abc import Iterator

from server.imaging.metadata.policy import Policy, Strip

_SIGNATURE = b"8BIM"
_RESOLUTION, _IPTC, _COPYRIGHT_FLAG, _URL = 0x03ED, 0x0404, 0x040A, 0x040B
_THUMBNAILS = frozenset({0x0409, 0x040C})
#: A digest of the IPTC data, by which Photoshop tells whether it was changed.
_IPTC_DIGEST = 0x0425
#: EXIF and XMP, which have a place of their own in every file.
_OTHER_METADATA = frozenset({0x0422, 0x0423, 0x0424})
#: What has coordinates: guides, slices, paths and the name of the clipping path.
_COORDINATES = frozenset({0x0408, 0x041A, *range(0x07D0, 0x0BB8)})
#: What stays of a file without what is private, apart from IPTC data.
_RIGHTS = frozenset({_COPYRIGHT_FLAG, _URL})

#: More resources or datasets than any sound file has: each costs a step in Python.
_MAX_PARTS = 10_000

_DATASET = 0x1C
#: Datasets by record and number (IPTC IIM 4.2): code and name of a place, city, sublocation, province,
#: country code and name.
_PLACES = frozenset({(2, 26), (2, 27), (2, 90), (2, 92), (2, 95), (2, 100), (2, 101)})
#: The character set, the versions of the records, by-line, credit and copyright notice.
_CREDITS = frozenset({(1, 0), (1, 90), (2, 0), (2, 80), (2, 110), (2, 116)})


def _resources(photoshop: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, start, start of the content and its length, of each resource that can be read."""
    position = 0
    for _ in range(_MAX_PARTS):
        if photoshop[position : position + 4] != _SIGNATURE or position + 6 >= len(photoshop):
            return
        name_end = position + 6 + (photoshop[position + 6] + 2 & ~1)
        if name_end + 4 > len(photoshop):
            return
        length = int.from_bytes(photoshop[name_end : name_end + 4], "big")
        yield int.from_bytes(photoshop[position + 4 : position + 6], "big"), position, name_end + 4, length
        position = name_end + 4 + length + length % 2


def kept_photoshop(photoshop: bytes, policy: Policy) -> bytes:
    """Adapt Photoshop's resources to the result (Adobe Photoshop file formats, "Image resource blocks").

    Thumbnails go, which show the image before the turn, and after a turn whatever has coordinates.

    Returns:
        The other blocks, byte for byte where nothing has to change. What cannot be read is kept as it is,
        unless something has to be left out.
    """
    if policy.is_all_stripped:
        return b""
    kept = bytearray()
    end = 0
    for number, start, content, length in _resources(photoshop):
        end = content + length + length % 2
        whole = photoshop[start:end]
        if number in _THUMBNAILS or (policy.is_turned and number in _COORDINATES | _OTHER_METADATA):
            continue
        if number == _RESOLUTION and policy.swaps_axes:
            # Horizontal and vertical resolution, each with its units, of eight bytes.
            across, down = (photoshop[content + at : content + at + 8] for at in (0, 8))
            whole = photoshop[start:content] + down + across + photoshop[content + 16 : end]
        if policy.strip is not Strip.NOTHING:
            whole = _stripped(number, whole, photoshop[content : content + length], policy)
        kept += whole
    return bytes(kept) + (photoshop[end:] if policy.strip is Strip.NOTHING else b"")


def _stripped(number: int, whole: bytes, content: bytes, policy: Policy) -> bytes:
    if number == _IPTC:
        iptc = kept_iptc(content, policy)
        return photoshop_with(iptc) if iptc else b""
    if number in _OTHER_METADATA or number == _IPTC_DIGEST:
        return b""
    return whole if policy.strip is Strip.LOCATION or number in _RIGHTS else b""


def iptc_in(photoshop: bytes) -> bytes:
    """Return the IPTC data among the resources; empty for none."""
    for number, _, content, length in _resources(photoshop):
        if number == _IPTC:
            return photoshop[content : content + length]
    return b""


def photoshop_with(iptc: bytes) -> bytes:
    """Make a resource of IPTC data."""
    return _SIGNATURE + struct.pack(">HHL", _IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)


def kept_iptc(iptc: bytes, policy: Policy) -> bytes:
    """Leave out datasets as the policy says (IPTC IIM 4.2, 1.5 and 1.6).

    Returns:
        The others, byte for byte; nothing when they cannot be read and something has to be left out.
    """
    if policy.strip is Strip.NOTHING:
        return iptc
    if policy.is_all_stripped:
        return b""
    kept = bytearray()
    found: set[tuple[int, int]] = set()
    position, size = 0, len(iptc.rstrip(b"\0"))
    for _ in range(_MAX_PARTS):
        if position >= size:
            return bytes(kept) if found - {(1, 0), (1, 90), (2, 0)} else b""
        head = iptc[position : position + 5]
        end = position + 5 + int.from_bytes(head[3:], "big")
        if len(head) < 5 or head[0] != _DATASET or head[3] & 0x80 or end > len(iptc):  # noqa: PLR2004
            return b""  # among them datasets of more than 32767 bytes, which only pictures have
        dataset = (head[1], head[2])
        if dataset not in _PLACES if policy.strip is Strip.LOCATION else dataset in _CREDITS:
            found.add(dataset)
            kept += iptc[position:end]
        position = end
    return b""
