"""EXIF, kept byte for byte except where turning the image makes it wrong."""

import struct

from server.imaging.metadata import ifd

#: What JPEG puts before the TIFF structure (EXIF 2.32, 4.7.2).
EXIF_PREFIX = b"Exif\0\0"

_ORIENTATION = 0x0112
_THUMBNAIL_TAGS = {
    0x0201: 0x0202,
    0x0111: 0x0117,
}  # offset tag: length tag; JPEG and uncompressed (4.6.3, 4.6.4)
_HEADER_BYTES = 8
_HEADERS = frozenset({b"II*\0", b"MM\0*"})
_UPRIGHT = 1
_SHORT, _LONG = 3, 4


class _Structure:
    """The TIFF structure inside EXIF, edited in place (TIFF 6.0, section 2; EXIF 2.32, 4.5.2).

    Args:
        raw: the structure without the `Exif` prefix.

    Raises:
        struct.error: no TIFF header, or the first directory leaves the data.
    """

    def __init__(self, raw: bytes) -> None:
        self.raw = bytearray(raw)
        if raw[:4] not in _HEADERS:
            raise struct.error("it has no TIFF header")
        self._order = ">" if raw[:1] == b"M" else "<"
        reader = ifd.Reader(self.raw)
        self.first = reader.first
        self.entries, self._link = self._directory(reader, self.first)

    def _directory(self, reader: ifd.Reader, start: int) -> tuple[list[ifd.Entry], int]:
        """Read the entries of a directory, and where the position of the next one is stored."""
        if start < _HEADER_BYTES:
            raise struct.error("a directory lies in the header")
        return reader.directory(start)

    def value(self, entry: ifd.Entry) -> int:
        """Read the value of a field that holds one SHORT or LONG; 0 for any other field."""
        if entry.values != 1 or entry.kind not in (_SHORT, _LONG):
            return 0
        return self._number("H" if entry.kind == _SHORT else "L", entry.position)

    def _number(self, form: str, position: int) -> int:
        number: int = struct.unpack_from(self._order + form, self.raw, position)[0]
        return number

    def write(self, entry: ifd.Entry, number: int) -> None:
        """Replace the value of a SHORT or LONG field, leaving its type as it is."""
        form = "H" if entry.kind == _SHORT else "L"
        struct.pack_into(self._order + form, self.raw, entry.place + 8, number)

    def drop_thumbnail(self) -> None:
        """Unlink IFD1 and remove the thumbnail's bytes, which show the image before the turn."""
        if self._link + 4 > len(self.raw):
            return  # some writers end the data right after the entries
        second = self._number("L", self._link)
        struct.pack_into(self._order + "L", self.raw, self._link, 0)
        if not second:
            return
        try:
            # Another reader, because one refuses directories that overlap.
            entries, _ = self._directory(ifd.Reader(self.raw), second)
        except struct.error:
            return
        values = {entry.tag: self.value(entry) for entry in entries}
        for offset_tag, length_tag in _THUMBNAIL_TAGS.items():
            start, length = values.get(offset_tag, 0), values.get(length_tag, 0)
            self._blank(start, start + length)

    def _blank(self, start: int, end: int) -> None:
        overlaps = start < self._link + 4 and end > self.first
        if not _HEADER_BYTES <= start < end <= len(self.raw) or overlaps:
            return
        if end == len(self.raw):
            del self.raw[start:]
        else:
            self.raw[start:end] = bytes(end - start)

    def drop(self, tag: int) -> None:
        """Take a field out of the first directory. What lies outside the directory keeps its place."""
        start, link = self.first + 2, self._link
        kept = [entry.place for entry in self.entries if entry.tag != tag]
        fields = b"".join(self.raw[place : place + ifd.ENTRY_BYTES] for place in kept)
        behind = self.raw[link : link + 4]
        self.raw[start : link + 4] = fields + behind + bytes(link - start - len(fields))
        struct.pack_into(self._order + "H", self.raw, self.first, len(kept))
        self.entries, self._link = self._directory(ifd.Reader(self.raw), self.first)


def bare_exif(exif: bytes) -> bytes:
    """Remove the prefix that JPEG needs and some writers put into other formats."""
    return exif.removeprefix(EXIF_PREFIX)


def orientation_of(exif: bytes) -> int:
    """Read the EXIF orientation, 1 to 8; 1 when there is none or it makes no sense.

    Args:
        exif: with or without the `Exif` prefix.
    """
    try:
        structure = _Structure(bare_exif(exif))
    except struct.error:
        return _UPRIGHT
    for entry in structure.entries:
        if entry.tag == _ORIENTATION:
            value = structure.value(entry)
            return value if 1 <= value <= 8 else _UPRIGHT  # noqa: PLR2004 - the range of the tag
    return _UPRIGHT


def upright_exif(exif: bytes) -> bytes:
    """Adapt EXIF to the turned image: orientation 1, no stale thumbnail, every other byte as it was.

    Args:
        exif: with or without the `Exif` prefix.

    Returns:
        The TIFF structure without the prefix; empty when it was malformed, because an image is worth more
        than its EXIF.
    """
    try:
        structure = _Structure(bare_exif(exif))
        for entry in structure.entries:
            if entry.tag == _ORIENTATION and entry.kind in (_SHORT, _LONG):
                structure.write(entry, _UPRIGHT)
        structure.drop_thumbnail()
    except struct.error:
        return b""
    return bytes(structure.raw)


def without_orientation(exif: bytes) -> bytes:
    """Remove the orientation field, for containers that have their own (AVIF).

    Returns:
        The TIFF structure without the prefix; empty when it was malformed.
    """
    try:
        structure = _Structure(bare_exif(exif))
        structure.drop(_ORIENTATION)
    except struct.error:
        return b""
    return bytes(structure.raw)
