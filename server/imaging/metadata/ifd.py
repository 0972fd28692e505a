"""Image file directories (IFD), which TIFF and EXIF are made of: read, and written again elsewhere."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from server.imaging.codecs import Data

EXIF, GPS, INTEROPERABILITY = 0x8769, 0x8825, 0xA005

#: Fields whose value is the place of another directory (EXIF 2.32, 4.6.3).
_POINTERS = frozenset({EXIF, GPS, INTEROPERABILITY})

#: Bytes of one value, by type (TIFF 6.0, section 2; BigTIFF; EXIF 3.0, 4.6.2).
SIZES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
    17: 8,
    18: 8,
    129: 1,
}

#: Bytes that change places between the byte orders: a rational is two numbers.
_SWAPPED_BYTES = SIZES | {5: 4, 10: 4}
_LONG = 4
#: How long an entry is, except in a BigTIFF.
ENTRY_BYTES = 12
#: An entry, by whether the file is big-endian and whether it is a BigTIFF: tag, type, count, and the values
#: or their position.
_ENTRIES = {
    (False, False): struct.Struct("<HHLL"),
    (False, True): struct.Struct("<HHQQ"),
    (True, False): struct.Struct(">HHLL"),
    (True, True): struct.Struct(">HHQQ"),
}
_HEADERS = {False: b"II*\0\x08\0\0\0", True: b"MM\0*\0\0\0\x08"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field, apart from any file.

    Args:
        tag, kind, count: as in its entry.
        data: its values, in little-endian order.
        inner: the fields of the directory it points to; empty for any other field.
    """

    tag: int
    kind: int
    count: int
    data: bytes
    inner: tuple["Field", ...] = ()


class Entry(NamedTuple):
    """One field of a directory.

    Attributes:
        place: where the entry starts.
        tag, kind: what the field is, and the type of its values.
        values: how many there are.
        position: where they start.
    """

    place: int
    tag: int
    kind: int
    values: int
    position: int

    @property
    def end(self) -> int:
        """Return the position after the values."""
        return self.position + SIZES.get(self.kind, 0) * self.values


def _in_order(data: bytes, kind: int, *, is_big_endian: bool) -> bytes:
    """Convert values between little-endian order and the order asked for, in either direction."""
    size = _SWAPPED_BYTES[kind]
    if not is_big_endian or size == 1:
        return data
    swapped = bytearray(len(data))
    for index in range(size):
        swapped[index::size] = data[size - 1 - index :: size]
    return bytes(swapped)


@dataclass(slots=True)
class Reader:
    """A reader of the directories of a TIFF, BigTIFF or EXIF structure.

    Every method raises `struct.error` where the structure leaves the data.

    Args:
        data: the whole structure.
    """

    data: Data | bytearray
    is_big_endian: bool = field(init=False)
    is_big_tiff: bool = field(init=False)
    #: How many bytes may still be copied: fields that overlap must not multiply the file.
    _budget: int = field(init=False)
    #: How many entries may still be read: directories that point at each other must not multiply either.
    _entries_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.is_big_endian = self.data[:2] == b"MM"
        self.is_big_tiff = 43 in self.data[2:4]  # noqa: PLR2004 - the version of BigTIFF
        self._budget = len(self.data)
        self._entries_left = len(self.data) // ENTRY_BYTES

    @property
    def _word(self) -> str:
        return "Q" if self.is_big_tiff else "L"

    def numbers(self, form: str, position: int) -> tuple[Any, ...]:
        """Read numbers in the byte order of the file."""
        return struct.unpack_from((">" if self.is_big_endian else "<") + form, self.data, position)

    @property
    def first(self) -> int:
        """Read where the first directory is."""
        (position,) = self.numbers(self._word, 8 if self.is_big_tiff else 4)
        return int(position)

    def values(self, entry: Entry, form: str) -> tuple[Any, ...]:
        """Read the numbers of an entry; together all entries may read no more bytes than the file has."""
        self._budget -= entry.end - entry.position
        if self._budget < 0:
            raise struct.error("its values overlap")
        return self.numbers(f"{entry.values}{form}", entry.position)

    def directory(self, start: int) -> tuple[list[Entry], int]:
        """Read the entries of the directory at `start`.

        Returns:
            The entries, and where the position of the next directory is stored. Some writers of EXIF end the
            data before that.
        """
        (count,) = self.numbers("Q" if self.is_big_tiff else "H", start)
        self._entries_left -= count
        if self._entries_left < 0:
            raise struct.error("its directories overlap")
        start += 8 if self.is_big_tiff else 2
        entry = _ENTRIES[self.is_big_endian, self.is_big_tiff]
        end = start + count * entry.size
        if end > len(self.data):
            raise struct.error("a directory leaves the data")
        word_bytes = entry.size // 2 - 2
        found: list[Entry] = []
        fields = entry.iter_unpack(self.data[start:end])
        for place, (tag, kind, length, value) in zip(range(start, end, entry.size), fields, strict=True):
            is_inside = SIZES.get(kind, 0) * length <= word_bytes
            found.append(Entry(place, tag, kind, length, place + 4 + word_bytes if is_inside else value))
        return found, end

    def entries(self, start: int) -> tuple[list[Entry], int]:
        """Read the entries of the directory at `start`, and where the next directory is, 0 for nowhere.

        The data may end right behind the last entry: some writers leave out the link to nowhere.
        """
        found, link = self.directory(start)
        if link == len(self.data):
            return found, 0
        (following,) = self.numbers(self._word, link)
        return found, int(following)

    def fields(self, start: int, wanted: frozenset[int] | None = None, depth: int = 0) -> tuple[Field, ...]:
        """Read the fields of a directory and of those below it, as far as they can be read.

        Args:
            start: where it is.
            wanted: the tags to take, None for all.
            depth: how many directories are above it.
        """
        found: dict[int, Field] = {}
        for entry in self.entries(start)[0]:
            if entry.tag in found or (wanted is not None and entry.tag not in wanted):
                continue
            if copied := self._copied(entry, depth):
                found[entry.tag] = copied
        return tuple(found.values())

    def _copied(self, entry: Entry, depth: int) -> Field | None:
        length = entry.end - entry.position
        if not 0 < length <= self._budget or entry.end > len(self.data):
            return None
        self._budget -= length
        if entry.tag in _POINTERS:
            return self._followed(entry, depth)
        data = _in_order(
            bytes(self.data[entry.position : entry.end]), entry.kind, is_big_endian=self.is_big_endian
        )
        return Field(entry.tag, entry.kind, entry.values, data)

    def _followed(self, entry: Entry, depth: int) -> Field | None:
        if depth > 1 or entry.values != 1 or entry.kind not in (_LONG, 13, 18):
            return None
        (start,) = self.numbers("Q" if SIZES[entry.kind] == 8 else "L", entry.position)  # noqa: PLR2004
        try:
            inner = self.fields(start, depth=depth + 1)
        except struct.error:
            return None
        return Field(entry.tag, _LONG, 1, b"", inner) if inner else None


def _laid_out(
    fields: Iterable[Field], start: int, *, is_big_endian: bool, others: dict[int, bytes], following: int = 0
) -> bytes:
    """Encode a directory and its values for the position `start`, entries sorted by tag (TIFF 6.0, 2).

    Args:
        fields: what goes in.
        start: the position in the file.
        is_big_endian: the byte order of the file.
        others: entries that are in the file already, by tag.
        following: where the next directory is.
    """
    order = ">" if is_big_endian else "<"
    entries, area = dict(others), bytearray()
    fresh = [one for one in fields if one.tag not in others]
    values = start + 2 + ENTRY_BYTES * (len(entries) + len(fresh)) + 4
    for one in fresh:
        place = values + len(area)
        data = _in_order(one.data, one.kind, is_big_endian=is_big_endian)
        if one.inner:
            area += _laid_out(one.inner, place, is_big_endian=is_big_endian, others={})
        elif len(data) > 4:  # noqa: PLR2004 - the room in an entry
            area += data
        else:
            place = -1
        value = data.ljust(4, b"\0") if place < 0 else struct.pack(order + "L", place)
        entries[one.tag] = struct.pack(order + "HHL", one.tag, one.kind, one.count) + value
        area += bytes(len(area) % 2)
    body = b"".join(entries[tag] for tag in sorted(entries))
    return struct.pack(order + "H", len(entries)) + body + struct.pack(order + "L", following) + bytes(area)


def exif_from(fields: tuple[Field, ...], *, is_big_endian: bool = False) -> bytes:
    """Make an EXIF structure of these fields; empty when there are none.

    Args:
        fields: of the first directory.
        is_big_endian: the byte order. Some fields of type UNDEFINED contain numbers in the order of the
            structure that they come from.
    """
    if not fields:
        return b""
    header = _HEADERS[is_big_endian]
    return header + _laid_out(fields, len(header), is_big_endian=is_big_endian, others={})


def with_directory(tiff: Data, fields: Iterable[Field]) -> bytes:
    """Return a TIFF whose only directory has these fields; their positions in the old one stay right.

    Args:
        tiff: a file of any kind, BigTIFF too.
        fields: of the new directory.
    """
    is_big_endian = tiff[:2] == b"MM"
    start = len(tiff) + len(tiff) % 2
    head = struct.pack(">2sHL" if is_big_endian else "<2sHL", tiff[:2], 42, start)
    directory = _laid_out(fields, start, is_big_endian=is_big_endian, others={})
    return b"".join((head, tiff[len(head) :], bytes(len(tiff) % 2), directory))


def with_fields(tiff: bytes, pages: list[tuple[Field, ...]]) -> bytearray:
    """Add fields to the directories of a TIFF's pages, which are written again at its end.

    Args:
        tiff: a file that we wrote, not a BigTIFF.
        pages: for each page the fields to add.
    """
    file = bytearray(tiff)
    reader = Reader(tiff)
    order = ">" if reader.is_big_endian else "<"
    link, start = 4, reader.first
    for fields in pages:
        entries, following = reader.entries(start)
        others = {entry.tag: tiff[entry.place : entry.place + ENTRY_BYTES] for entry in entries}
        file += bytes(len(file) % 2)
        fresh = len(file)
        file += _laid_out(
            fields, fresh, is_big_endian=reader.is_big_endian, others=others, following=following
        )
        struct.pack_into(order + "L", file, link, fresh)
        link = fresh + 2 + ENTRY_BYTES * len(others.keys() | {one.tag for one in fields})
        start = following
    return file
