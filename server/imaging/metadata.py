"""EXIF and XMP: kept byte for byte, except where turning the picture makes them wrong."""

import re
import struct
from typing import NamedTuple
from xml.parsers import expat

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
_PHOTOSHOP_THUMBNAILS = {0x0409, 0x040C}
_SHORT, _LONG = 3, 4

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")

#: What speaks of more than the picture, by namespace or by name: gain maps, depth maps, videos.
_COMPANION = re.compile(
    rb"http://ns\.adobe\.com/hdr-gain-map/"  # Ultra HDR 1.1, ISO 21496-1
    rb"|http://ns\.apple\.com/HDRGainMap/"
    rb"|http://ns\.google\.com/photos/1\.0/(?:container|depthmap|image)/"  # GContainer, GDepth
    rb"|http://ns\.google\.com/photos/dd/"  # Dynamic Depth 1.0
    rb"|:\w*(?:MotionPhoto|MicroVideo)"  # Motion Photo 1.0, and what phones add in namespaces of their own
)
#: The same, and what names an extended packet that is left out (XMP part 3, 1.1.3.1).
_COMPANION_OR_EXTENSION = re.compile(_COMPANION.pattern + rb"|:HasExtendedXMP\b")
#: A parser repeats the whole name of a namespace for each element in it. The longest in use are below 100.
_MAX_NAMESPACE = 256
_TAG_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"\s+([^\s=<>/]+)\s*=\s*(\"[^\"]*\"|'[^']*')")


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


def without_thumbnails(photoshop: bytes) -> bytes:
    """Photoshop's resources without its thumbnails, which show the picture before the turn.

    Args:
        photoshop: the resource blocks (Adobe Photoshop file formats, "Image resource blocks").

    Returns:
        The same blocks, byte for byte, but for the thumbnails. What cannot be read is kept as it is.
    """
    kept = bytearray()
    position = 0
    while photoshop[position : position + 4] == b"8BIM":
        name_end = position + 6 + (photoshop[position + 6] + 2 & ~1) if position + 6 < len(photoshop) else 0
        if not name_end or name_end + 4 > len(photoshop):
            break
        length = int.from_bytes(photoshop[name_end : name_end + 4], "big")
        end = name_end + 4 + length + length % 2
        if int.from_bytes(photoshop[position + 4 : position + 6], "big") not in _PHOTOSHOP_THUMBNAILS:
            kept += photoshop[position:end]
        position = end
    return bytes(kept) + photoshop[position:]


def upright_xmp(xmp: bytes) -> bytes:
    """XMP with `tiff:Orientation` reset to 1; its length never changes (XMP part 2, 3.6)."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


class _OddXmpError(Exception):
    """The packet is not the plain UTF-8 without a document type that XMP is (XMP part 1, 7.2).

    Or one of its namespaces has a name that nobody would give it.
    """


class _LonePacket:
    """An XMP packet in which blanks stand for whatever speaks of companions.

    Args:
        xmp: the packet.
        gone: how to tell what speaks of them.

    Raises:
        ExpatError, _OddXmpError: it cannot be read.
    """

    def __init__(self, xmp: bytes, gone: re.Pattern[bytes]) -> None:
        self._gone = gone
        self.blanked = bytearray(xmp)
        self._xmp = xmp
        self._open = 0  # how many elements are, from the one that goes
        self._gone_start = self._gone_tag_end = 0
        self._parser = expat.ParserCreate("utf-8", namespace_separator=":")
        self._parser.ordered_attributes = True
        self._parser.StartNamespaceDeclHandler = self._namespace
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.Parse(xmp.rstrip(b"\0"), True)  # noqa: FBT003 - takes no keywords

    def _start(self, name: str, attributes: list[str]) -> None:
        position = self._parser.CurrentByteIndex
        if self._open:
            self._open += 1
            return
        stored, tag_end = self._tag(position)
        if self._gone.search(name.encode()):
            self._open, self._gone_start, self._gone_tag_end = 1, position, tag_end
            return
        names = iter(attributes[::2])
        for attribute in stored:
            is_declaration = attribute[1].partition(b":")[0] == b"xmlns"
            if self._gone.search(attribute[2] if is_declaration else next(names).encode()):
                self._blank(*attribute.span())

    def _end(self, _: str) -> None:
        if not self._open:
            return
        self._open -= 1
        if not self._open:
            is_empty = self._xmp[self._gone_tag_end - 1 : self._gone_tag_end + 1] == b"/>"
            start = self._gone_tag_end if is_empty else self._parser.CurrentByteIndex
            self._blank(self._gone_start, self._xmp.index(b">", start) + 1)

    def _namespace(self, _: str | None, name: str | None) -> None:
        if len(name or "") > _MAX_NAMESPACE:
            raise _OddXmpError

    def _doctype(self, *_: object) -> None:
        raise _OddXmpError

    def _tag(self, position: int) -> tuple[list[re.Match[bytes]], int]:
        """The attributes of a start tag as stored, and where its `>` is."""
        found = _TAG_NAME.match(self._xmp, position)
        attributes = []
        while found is not None:
            position = found.end()
            found = _ATTRIBUTE.match(self._xmp, position)
            if found is not None:
                attributes.append(found)
        return attributes, self._xmp.index(b">", position)

    def _blank(self, start: int, end: int) -> None:
        self.blanked[start:end] = b" " * (end - start)


def speaks_of_companions(xmp: bytes) -> bool:
    """Whether XMP speaks of a gain map, a depth map or a video, in UTF-16 and UTF-32 too."""
    return _speaks_of(_COMPANION, xmp)


def _speaks_of(gone: re.Pattern[bytes], xmp: bytes) -> bool:
    return gone.search(xmp.replace(b"\0", b"")) is not None


def without_companions(xmp: bytes, *, is_alone: bool = False) -> bytes:
    """XMP that promises no gain map, depth map or video, for a picture that comes without.

    Args:
        xmp: the packet.
        is_alone: whether a packet that extends it is left out too.

    Returns:
        The packet, as long as before, with blanks for what spoke of them and every other byte as it was.
        Empty when it speaks of them and cannot be read: a viewer would look for them at a wrong place.
    """
    gone = _COMPANION_OR_EXTENSION if is_alone else _COMPANION
    if not _speaks_of(gone, xmp):
        return xmp
    try:
        blanked = bytes(_LonePacket(xmp, gone).blanked)
    except (expat.ExpatError, _OddXmpError):
        return b""
    return b"" if _speaks_of(gone, blanked) else blanked
