"""EXIF: kept byte for byte, except where turning the picture makes it wrong."""

import struct
from typing import NamedTuple

#: What JPEG puts before the TIFF structure (EXIF 2.32, 4.7.2).
EXIF_PREFIX = b"Exif\0\0"

_ORIENTATION = 0x0112
_THUMBNAIL_TAGS = {
    0x0201: 0x0202,
    0x0111: 0x0117,
}  # offset tag: length tag; JPEG and uncompressed (4.6.3, 4.6.4)
_HEADER_BYTES = 8
_ENTRY_BYTES = 12
_UPRIGHT = 1
_SHORT, _LONG = 3, 4


class _Entry(NamedTuple):
    """One field of a directory. `position` is where its twelve bytes start."""

    position: int
    tag: int
    kind: int
    length: int


class _MalformedExifError(Exception):
    """The TIFF structure does not hold together."""


class _Tiff:
    """The TIFF structure inside EXIF, edited in place (TIFF 6.0, section 2; EXIF 2.32, 4.5.2).

    Args:
        raw: the structure without the `Exif` prefix.

    Raises:
        _MalformedExifError: no TIFF header, or the first directory leaves the data.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = bytearray(raw)
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(raw[:4])
        if order is None or len(raw) < _HEADER_BYTES:
            raise _MalformedExifError
        self._order = order
        self.first = self.read_long(4)
        self.entries = self._directory(self.first)

    def read_long(self, position: int) -> int:
        """Four bytes as a number."""
        try:
            number: int = struct.unpack_from(self._order + "L", self.raw, position)[0]
        except struct.error as error:
            raise _MalformedExifError from error
        return number

    def read_short(self, position: int) -> int:
        """Two bytes as a number."""
        try:
            number: int = struct.unpack_from(self._order + "H", self.raw, position)[0]
        except struct.error as error:
            raise _MalformedExifError from error
        return number

    def value(self, entry: _Entry) -> int:
        """The first value of a SHORT or LONG field that fits into the entry; 0 for anything else."""
        if entry.length != 1 or entry.kind not in (_SHORT, _LONG):
            return 0
        position = entry.position + 8
        return self.read_short(position) if entry.kind == _SHORT else self.read_long(position)

    def write(self, entry: _Entry, number: int) -> None:
        """Replace the value of a SHORT or LONG field, leaving its type as it is."""
        form = "H" if entry.kind == _SHORT else "L"
        struct.pack_into(self._order + form, self.raw, entry.position + 8, number)

    def _directory(self, start: int) -> list[_Entry]:
        count = self.read_short(start)
        end = start + 2 + count * _ENTRY_BYTES
        if start < _HEADER_BYTES or end > len(self.raw):
            raise _MalformedExifError
        return [
            _Entry(position, *struct.unpack_from(self._order + "HHL", self.raw, position))
            for position in range(start + 2, end, _ENTRY_BYTES)
        ]

    def drop_thumbnail(self) -> None:
        """Unlink IFD1 and remove the thumbnail's bytes, which show the picture before the turn."""
        link = self.first + 2 + len(self.entries) * _ENTRY_BYTES
        if link + 4 > len(self.raw):
            return  # some writers end the data right after the entries
        second = self.read_long(link)
        struct.pack_into(self._order + "L", self.raw, link, 0)
        if not second:
            return
        try:
            entries = self._directory(second)
        except _MalformedExifError:
            return
        values = {entry.tag: self.value(entry) for entry in entries}
        for offset_tag, length_tag in _THUMBNAIL_TAGS.items():
            start, length = values.get(offset_tag, 0), values.get(length_tag, 0)
            self._blank(start, start + length)

    def _blank(self, start: int, end: int) -> None:
        first_end = self.first + 2 + len(self.entries) * _ENTRY_BYTES + 4
        overlaps = start < first_end and end > self.first
        if not _HEADER_BYTES <= start < end <= len(self.raw) or overlaps:
            return
        if end == len(self.raw):
            del self.raw[start:]
        else:
            self.raw[start:end] = bytes(end - start)

    def drop(self, tag: int) -> None:
        """Take a field out of the first directory. What lies outside the directory keeps its place."""
        start = self.first + 2
        link = start + len(self.entries) * _ENTRY_BYTES
        kept = [entry.position for entry in self.entries if entry.tag != tag]
        fields = b"".join(self.raw[position : position + _ENTRY_BYTES] for position in kept)
        behind = self.raw[link : link + 4]
        self.raw[start : link + 4] = fields + behind + bytes(link - start - len(fields))
        struct.pack_into(self._order + "H", self.raw, self.first, len(kept))
        self.entries = self._directory(self.first)


def bare_exif(exif: bytes) -> bytes:
    """EXIF without the prefix that JPEG needs and some writers put into other formats."""
    return exif.removeprefix(EXIF_PREFIX)


def orientation_of(exif: bytes) -> int:
    """The EXIF orientation, 1 to 8; 1 when there is none or it makes no sense.

    Args:
        exif: with or without the `Exif` prefix.
    """
    try:
        tiff = _Tiff(bare_exif(exif))
    except _MalformedExifError:
        return _UPRIGHT
    for entry in tiff.entries:
        if entry.tag == _ORIENTATION:
            value = tiff.value(entry)
            return value if 1 <= value <= 8 else _UPRIGHT  # noqa: PLR2004 - the range of the tag
    return _UPRIGHT


def upright_exif(exif: bytes) -> bytes:
    """EXIF for the turned picture: orientation 1, no stale thumbnail, every other byte as it was.

    Args:
        exif: with or without the `Exif` prefix.

    Returns:
        The TIFF structure without the prefix; empty when it was malformed, because a picture is worth more
        than its EXIF.
    """
    try:
        tiff = _Tiff(bare_exif(exif))
        for entry in tiff.entries:
            if entry.tag == _ORIENTATION and entry.kind in (_SHORT, _LONG):
                tiff.write(entry, _UPRIGHT)
        tiff.drop_thumbnail()
    except _MalformedExifError:
        return b""
    return bytes(tiff.raw)


def without_orientation(exif: bytes) -> bytes:
    """EXIF with the orientation field taken out, for containers that say it in their own words (AVIF).

    Returns:
        The TIFF structure without the prefix; empty when it was malformed.
    """
    try:
        tiff = _Tiff(bare_exif(exif))
        tiff.drop(_ORIENTATION)
    except _MalformedExifError:
        return b""
    return bytes(tiff.raw)
