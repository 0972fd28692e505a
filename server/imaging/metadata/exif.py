"""EXIF, kept byte for byte except where the turn makes it wrong, or where something is to be left out."""

import struct
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace

from server.imaging.metadata import ifd
from server.imaging.metadata.photoshop import kept_iptc, kept_photoshop
from server.imaging.metadata.policy import Policy, Strip
from server.imaging.metadata.xmp import kept_xmp

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
_BYTE, _SHORT, _LONG, _UNDEFINED = 1, 3, 4, 7
#: Whole numbers, by type: what to read them with. Writers of an orientation use all of these.
_WHOLE = {_BYTE: "B", _SHORT: "H", _LONG: "L", 6: "b", 8: "h", 9: "l"}

#: Fields that state the width and the height: ImageWidth and ImageLength, PixelXDimension and
#: PixelYDimension, RelatedImageWidth and RelatedImageLength (EXIF 2.32, 4.6.4, 4.6.5 and 4.6.7).
_PIXEL_SIDES = (0xA002, 0xA003)
_SIDES = ((0x0100, 0x0101), _PIXEL_SIDES, (0x1001, 0x1002))
#: Fields of the two directions: resolutions of the image and of the focal plane.
_PAIRS = ((0x011A, 0x011B), (0xA20E, 0xA20F))
_UNIT = 0x0128
_RESOLUTION = frozenset({*_PAIRS[0], _UNIT})
#: SubjectArea and SubjectLocation.
_AREAS = (0x9214, 0xA214)
#: SpatialFrequencyResponse, a table with a column for each direction.
_OF_DIRECTIONS = 0xA20C

_XMP, _PHOTOSHOP, _IPTC = 0x02BC, 0x8649, 0x83BB
#: Fields that contain metadata of another kind.
_EMBEDDED = {_XMP: kept_xmp, _PHOTOSHOP: kept_photoshop, _IPTC: kept_iptc}

#: Fields that say where, or that may and cannot be read: GPS and GeoTIFF; the notes of a camera's maker
#: and the like, which can hold anything; directories that are not followed.
_PLACES = frozenset(
    {ifd.GPS, 0x927C, 0xC634, 0x014A, 0x830E, 0x8482, 0x8480, 0x85D8, 0x87AF, 0x87B0, 0x87B1, 0xA480}
)
#: Fields that stay when all that is private goes: artist and copyright, and how colours are meant
#: (transfer function, white point, primaries, YCbCr coefficients and positioning, reference black and white,
#: colour space, gamma, and the index that tells Adobe RGB).
_PUBLIC = frozenset(
    {
        *(0x013B, 0x8298, 0x012D, 0x013E, 0x013F, 0x0211, 0x0213, 0x0214, 0xA001, 0xA500, 0x0001),
        *(_XMP, _PHOTOSHOP, _IPTC, ifd.EXIF, ifd.INTEROPERABILITY),
    }
)


@dataclass(slots=True)
class _Directory:
    """One directory: where it starts, its entries, and where the position of the next one is stored."""

    start: int
    entries: list[ifd.Entry]
    link: int


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
        self._reader = ifd.Reader(self.raw)
        self.first = self._directory(self._reader, self._reader.first)

    @staticmethod
    def _directory(reader: ifd.Reader, start: int) -> _Directory:
        """Read a directory."""
        if start < _HEADER_BYTES:
            raise struct.error("a directory lies in the header")
        return _Directory(start, *reader.directory(start))

    def value(self, entry: ifd.Entry) -> int:
        """Read the value of a field that holds one SHORT or LONG; 0 for any other field."""
        if entry.values != 1 or entry.kind not in (_SHORT, _LONG):
            return 0
        return self._number(_WHOLE[entry.kind], entry.position)

    def _number(self, form: str, position: int) -> int:
        number: int = struct.unpack_from(self._order + form, self.raw, position)[0]
        return number

    @property
    def orientation(self) -> int:
        """Return the orientation, whatever whole type it has and however many values; 1 for a wrong one."""
        for entry in self.first.entries:
            if entry.tag == _ORIENTATION and entry.kind in _WHOLE:
                with suppress(struct.error):
                    value = self._number(_WHOLE[entry.kind], entry.position)
                    return value if 1 <= value <= 8 else _UPRIGHT  # noqa: PLR2004 - the range of the tag
                break
        return _UPRIGHT

    def make_upright(self) -> None:
        """Reset the orientation; a field of another type or count than it should be becomes a right one."""
        for entry in self.first.entries:
            if entry.tag != _ORIENTATION:
                continue
            if entry.values == 1 and entry.kind in (_SHORT, _LONG):
                struct.pack_into(self._order + _WHOLE[entry.kind], self.raw, entry.place + 8, _UPRIGHT)
            else:
                struct.pack_into(self._order + "HLHH", self.raw, entry.place + 2, _SHORT, 1, _UPRIGHT, 0)

    def drop_thumbnail(self) -> None:
        """Unlink IFD1 and remove the thumbnail's bytes, which show the image before the turn."""
        link = self.first.link
        if link + 4 > len(self.raw):
            return  # some writers end the data right after the entries
        second = self._number("L", link)
        struct.pack_into(self._order + "L", self.raw, link, 0)
        if not second:
            return
        try:
            # Another reader, because one refuses directories that overlap.
            directory = self._directory(ifd.Reader(self.raw), second)
        except struct.error:
            return
        values = {entry.tag: self.value(entry) for entry in directory.entries}
        for offset_tag, length_tag in _THUMBNAIL_TAGS.items():
            start, length = values.get(offset_tag, 0), values.get(length_tag, 0)
            self._blank(start, start + length)

    def _blank(self, start: int, end: int) -> None:
        overlaps = start < self.first.link + 4 and end > self.first.start
        if not _HEADER_BYTES <= start < end <= len(self.raw) or overlaps:
            return
        if end == len(self.raw):
            del self.raw[start:]
        else:
            self.raw[start:end] = bytes(end - start)

    def drop(self, directory: _Directory, tags: Collection[int]) -> None:
        """Take fields out of a directory. What lies outside the directory keeps its place."""
        start, link = directory.start + 2, directory.link
        kept = [entry.place for entry in directory.entries if entry.tag not in tags]
        fields = b"".join(self.raw[place : place + ifd.ENTRY_BYTES] for place in kept)
        behind = self.raw[link : link + 4]
        self.raw[start : link + 4] = fields + behind + bytes(link - start - len(fields))
        struct.pack_into(self._order + "H", self.raw, directory.start, len(kept))

    def turn(self, policy: Policy) -> None:
        """Make what depends on the axes right for the result; what cannot be, is taken out."""
        directories = [self.first]
        for pointer in (ifd.EXIF, ifd.INTEROPERABILITY):
            found = [self.value(entry) for entry in directories[-1].entries if entry.tag == pointer]
            if not found:
                break
            try:
                directories.append(self._directory(self._reader, found[0]))
            except struct.error:
                break  # nobody can read it
        for directory in directories:
            if wrong := self._turn_fields(directory, policy):
                self.drop(directory, wrong)

    def _turn_fields(self, directory: _Directory, policy: Policy) -> set[int]:
        """Turn the fields of one directory, and return the tags of those that cannot be turned."""
        fields = {entry.tag: entry for entry in reversed(directory.entries)}  # the first of a tag counts
        wrong = {_OF_DIRECTIONS} & fields.keys() if policy.swaps_axes else set()
        sides = [self.value(fields[tag]) for tag in _PIXEL_SIDES if tag in fields]
        is_about_these = sides in ([], list(policy.size))
        for tag in _AREAS:
            if tag in fields and not (is_about_these and self._turn_area(fields[tag], policy)):
                wrong.add(tag)
        for pair in _SIDES:
            for tag, side in zip(pair, policy.result_size, strict=True):
                if tag in fields and not self._set(fields[tag], side):
                    wrong.add(tag)
        for pair in _PAIRS if policy.swaps_axes else ():
            self._exchange([fields[tag] for tag in pair if tag in fields], pair)
        for tag, keep in _EMBEDDED.items():
            if tag in fields and not self._replace(fields[tag], keep(self._bytes(fields[tag]), policy)):
                wrong.add(tag)
        return wrong

    def _turn_area(self, entry: ifd.Entry, policy: Policy) -> bool:
        if entry.kind not in (_SHORT, _LONG) or not 2 <= entry.values <= 4:  # noqa: PLR2004 - as for turned_area
            return False
        form = f"{self._order}{entry.values}{_WHOLE[entry.kind]}"
        try:
            area = struct.unpack_from(form, self.raw, entry.position)
            struct.pack_into(form, self.raw, entry.position, *policy.turned_area(area))
        except (ValueError, struct.error):
            return False
        return True

    def _set(self, entry: ifd.Entry, number: int) -> bool:
        if entry.values != 1 or entry.kind not in (_SHORT, _LONG):
            return False
        try:
            struct.pack_into(self._order + _WHOLE[entry.kind], self.raw, entry.place + 8, number)
        except struct.error:  # too large for a SHORT
            return False
        return True

    def _exchange(self, entries: list[ifd.Entry], pair: tuple[int, int]) -> None:
        """Exchange all but the tags of two entries; one alone gets the other's tag, which is next to it."""
        if len(entries) == 2:  # noqa: PLR2004
            one, other = (slice(entry.place + 2, entry.place + ifd.ENTRY_BYTES) for entry in entries)
            self.raw[one], self.raw[other] = self.raw[other], self.raw[one]
        for entry in entries if len(entries) == 1 else ():
            struct.pack_into(self._order + "H", self.raw, entry.place, sum(pair) - entry.tag)

    def _bytes(self, entry: ifd.Entry) -> bytes:
        return bytes(self.raw[entry.position : entry.end])

    def _replace(self, entry: ifd.Entry, content: bytes) -> bool:
        """Replace bytes by others of the same length; say whether they fit."""
        if len(content) != entry.end - entry.position:
            return False
        self.raw[entry.position : entry.end] = content
        return True


def bare_exif(exif: bytes) -> bytes:
    """Remove the prefix that JPEG needs and some writers put into other formats."""
    return exif.removeprefix(EXIF_PREFIX)


def orientation_of(exif: bytes) -> int:
    """Read the EXIF orientation, 1 to 8; 1 when there is none or it makes no sense.

    Args:
        exif: with or without the `Exif` prefix.
    """
    try:
        return _Structure(bare_exif(exif)).orientation
    except struct.error:
        return _UPRIGHT


def resolution_of(exif: bytes) -> tuple[float, float] | None:
    """Read the resolution across and down, in dots per inch; None when there is none (EXIF 2.32, 4.6.4).

    Args:
        exif: without the prefix.
    """
    try:
        reader = ifd.Reader(exif)
        fields = {one.tag: one for one in reader.fields(reader.first, _RESOLUTION)}
        across, down = (fields[tag].data for tag in _PAIRS[0])
        unit = fields[_UNIT].data[:2] if _UNIT in fields else b"\2\0"
        inches = {b"\2\0": 1, b"\3\0": 2.54}[unit]
        found = [struct.unpack_from("<LL", data) for data in (across, down)]
        return found[0][0] / found[0][1] * inches, found[1][0] / found[1][1] * inches
    except (struct.error, KeyError, ZeroDivisionError):
        return None


def kept_exif(exif: bytes, policy: Policy) -> bytes:
    """Adapt EXIF to the result: orientation 1, no stale thumbnail, sides, areas and resolutions turned.

    Every other byte stays as it was, unless something is to be left out: then the structure is written
    again, so that nothing stays between its fields.

    Args:
        exif: with or without the `Exif` prefix.
        policy: what to make of it.

    Returns:
        The TIFF structure without the prefix; empty when it was malformed, because an image is worth more
        than its EXIF, and when nothing is left.
    """
    if policy.is_all_stripped:
        return b""
    try:
        structure = _Structure(bare_exif(exif))
        structure.make_upright()
        structure.drop_thumbnail()
        if policy.is_turned:
            structure.turn(policy)
        raw = bytes(structure.raw)
        if policy.strip is Strip.NOTHING:
            return raw
        reader = ifd.Reader(raw)
        fields = kept_fields(reader.fields(reader.first), policy)
    except struct.error:
        return b""
    return ifd.exif_from(fields, is_big_endian=reader.is_big_endian)


def kept_fields(fields: Iterable[ifd.Field], policy: Policy) -> tuple[ifd.Field, ...]:
    """Leave out fields as the policy says, and adapt the metadata of another kind that is in them.

    Nothing else is turned; see `turned_fields`.
    """
    if policy.is_all_stripped:
        return ()
    kept: list[ifd.Field] = []
    for field in fields:
        if policy.strip is Strip.LOCATION and field.tag in _PLACES:
            continue
        if policy.strip is Strip.PRIVATE and field.tag not in _PUBLIC:
            continue
        if field.tag in _EMBEDDED:
            data = _EMBEDDED[field.tag](field.data, policy)
            if data:
                kept.append(ifd.Field(field.tag, _UNDEFINED, len(data), data))
        elif field.inner:
            if inner := kept_fields(field.inner, policy):
                kept.append(replace(field, inner=inner))
        else:
            kept.append(field)
    return tuple(kept)


def turned_fields(fields: Iterable[ifd.Field], policy: Policy) -> tuple[ifd.Field, ...]:
    """Adapt the fields of a directory to the result: turn them, and leave out what the policy says."""
    embedded = tuple(field for field in fields if field.tag in _EMBEDDED)
    others = tuple(field for field in fields if field.tag not in _EMBEDDED)
    if policy.is_turned and others:
        turned = kept_exif(ifd.exif_from(others), replace(policy, strip=Strip.NOTHING))
        reader = ifd.Reader(turned)
        others = reader.fields(reader.first)
    return kept_fields((*others, *embedded), policy)


def without_orientation(exif: bytes) -> bytes:
    """Remove the orientation field, for containers that have their own (AVIF).

    Returns:
        The TIFF structure without the prefix; empty when it was malformed.
    """
    try:
        structure = _Structure(bare_exif(exif))
        structure.drop(structure.first, {_ORIENTATION})
    except struct.error:
        return b""
    return bytes(structure.raw)
