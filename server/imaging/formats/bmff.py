"""Boxes, items and tracks of the ISO base media file format (ISO/IEC 14496-12, HEIF: ISO/IEC 23008-12).

What does not fit raises ValueError, LookupError or `struct.error`: the file is damaged.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from server.imaging.codecs import MAX_PARTS
from server.imaging.codecs import Data as File

#: A whole file, also one that is being written.
Data = File | bytearray

_ITEM_ID_BYTES = (2, 4)

#: What a walk in Python may cost: boxes inside another, tracks, and what all lists of items have, in bytes.
_MAX_BOXES = 4096
_MAX_TRACKS = 16
_MAX_LIST_BYTES = 1 << 19

#: How much of the coded image is read: what comes before its pixels, in bytes.
_PAYLOAD_BYTES = 1 << 12

#: More is for ever, as for libavif.
_MOST_PLAYS = (1 << 31) - 1

#: Before the boxes of a VisualSampleEntry, and before its width (ISO/IEC 14496-12, 12.1.3.2), in bytes.
_SAMPLE_ENTRY_BYTES = 78
_SAMPLE_SIZE_AT = 24


@dataclass(frozen=True, slots=True)
class Box:
    """One box, without its header.

    Args:
        kind: its type.
        start, end: of its content, in the file.
    """

    kind: bytes
    start: int
    end: int


def top_level(data: Data) -> Iterator[Box]:
    """Yield the boxes that lie in no other."""
    return boxes(data, 0, len(data), MAX_PARTS)


def boxes(data: Data, start: int, end: int, most: int = _MAX_BOXES) -> Iterator[Box]:
    """Yield the boxes that lie in a row (ISO/IEC 14496-12, 4.2).

    Args:
        data: the file.
        start: of the row.
        end: of the row.
        most: how many there may be.

    Raises:
        ValueError: one does not end where the row does or before, or there are too many.
    """
    for _ in range(most):
        if start == end:
            return
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + head)
            head = 16
        elif size == 0:
            size = end - start
        if size < head or start + size > end:
            raise ValueError("a box does not end inside what holds it")
        yield Box(kind, start + head, start + size)
        start += size
    raise ValueError("there are too many boxes")


class Fields:
    """The fields of a box, read one by one.

    Args:
        data: the file.
        box: whose they are.
    """

    def __init__(self, data: Data, box: Box) -> None:
        self._data = data
        self.at = box.start
        self.end = box.end

    def number(self, nbytes: int) -> int:
        """Read an unsigned number.

        Raises:
            ValueError: the box ends before.
        """
        start = self.skip(nbytes)
        return int.from_bytes(self._data[start : self.at], "big")

    def numbers(self, count: int, nbytes: int) -> tuple[int, ...]:
        """Read so many unsigned numbers of one, two or four bytes each.

        Raises:
            ValueError: the box ends before.
        """
        start = self.skip(count * nbytes)
        return struct.unpack(f">{count}{'_BH_I'[nbytes]}", self._data[start : self.at])

    def skip(self, nbytes: int) -> int:
        """Pass over so many bytes, and return where they begin.

        Raises:
            ValueError: the box ends before.
        """
        start = self.at
        self.at += nbytes
        if self.at > self.end:
            raise ValueError("a box ends before its fields do")
        return start

    def version_and_flags(self) -> tuple[int, int]:
        """Read what a FullBox begins with (ISO/IEC 14496-12, 4.2)."""
        both = self.number(4)
        return both >> 24, both & 0xFFFFFF


def first(found: Iterable[Box], kind: bytes) -> Box:
    """Return the first box of a type.

    Raises:
        LookupError: there is none.
    """
    for box in found:
        if box.kind == kind:
            return box
    raise LookupError(kind)


def inside(data: Data, box: Box, *path: bytes) -> Box:
    """Return the first box under `box` by the types that lead to it.

    Raises:
        LookupError: there is none.
    """
    for kind in path:
        box = first(boxes(data, box.start, box.end), kind)
    return box


@dataclass(frozen=True, slots=True)
class Picture:
    """A still or a sequence, as far as its first coded image tells.

    Args:
        size: width and height in pixels.
        properties: what belongs to it, in the order that its file gives.
        coding: what belongs to the first coded image: the same, unless the picture is derived from others.
        payload: what that image begins with.
        exif: the item with its EXIF, with the offset before it; empty for none.
        is_sequence: whether it comes from a track.
        plays: how often a sequence runs, 0 for ever; 1 for a still.
        ticks_per_second: of its time.
        runs: of frames that show equally long: how many, and how many ticks, one after the other.
    """

    size: tuple[int, int]
    properties: tuple[Box, ...]
    coding: tuple[Box, ...]
    payload: bytes
    exif: bytes = b""
    is_sequence: bool = False
    plays: int = 1
    ticks_per_second: int = 1
    runs: tuple[int, ...] = ()


@dataclass(slots=True)
class _Items:
    """What the boxes of a `meta` say of its items.

    Args:
        left: how many bytes its lists may still have.
        has_properties: whether the box of the properties was read.
        exif_kinds: where the types of EXIF items stand.
    """

    left: int = _MAX_LIST_BYTES
    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict)
    references: dict[tuple[bytes, int], tuple[int, ...]] = field(default_factory=dict)
    has_properties: bool = False
    properties: tuple[Box, ...] = ()
    associations: dict[int, tuple[int, ...]] = field(default_factory=dict)
    places: Box | None = None
    own_data: Box | None = None
    exif_kinds: list[int] = field(default_factory=list)

    def listed(self, data: Data, box: Box) -> Fields:
        """Return the fields of a box that lists items, and count its bytes.

        Raises:
            ValueError: there are too many.
        """
        self.left -= box.end - box.start
        if self.left < 0:
            raise ValueError("the lists of items are too long")
        return Fields(data, box)

    def of(self, item: int) -> tuple[Box, ...]:
        """Return the properties of an item; 0 stands for none (ISO/IEC 23008-12, 9.3)."""
        return tuple(self.properties[index - 1] for index in self.associations.get(item, ()) if index)


def still(data: Data) -> Picture:
    """Read the primary item.

    Raises:
        ValueError, LookupError, struct.error: the structure is damaged.
    """
    items = _items(data, first(top_level(data), b"meta"))
    primary = items.primary
    coded = items.references.get((b"dimg", primary), (primary,))[0]
    properties = items.of(primary)
    extent = first(properties, b"ispe")
    return Picture(
        size=struct.unpack_from(">II", data, extent.start + 4),
        properties=properties,
        coding=items.of(coded),
        payload=_content(data, items, coded, _PAYLOAD_BYTES),
        exif=_exif(data, items, primary),
    )


def _exif(data: Data, items: _Items, described: int | None = None) -> bytes:
    """Return the first EXIF item, or the first that describes another item; empty for none."""
    for item, kind in items.kinds.items():
        if kind == b"Exif" and (described is None or described in items.references.get((b"cdsc", item), ())):
            return _content(data, items, item, len(data))
    return b""


def exif_kinds(data: Data) -> list[int]:
    """Return where the types of all EXIF items stand.

    Raises:
        ValueError, LookupError, struct.error: the structure is damaged.
    """
    places: list[int] = []
    left = _MAX_LIST_BYTES
    kinds = [box.kind for box in top_level(data)]
    metas = [first(top_level(data), b"meta")] if b"meta" in kinds else []
    if b"moov" in kinds:
        metas += filter(None, (_own_meta(data, trak) for trak in tracks(data)))
    for meta in metas:
        items = _items(data, meta, left)
        left = items.left
        places += items.exif_kinds
    return places


def _own_meta(data: Data, trak: Box) -> Box | None:
    return next((box for box in boxes(data, trak.start, trak.end) if box.kind == b"meta"), None)


def _items(data: Data, meta: Box, left: int = _MAX_LIST_BYTES) -> _Items:
    items = _Items(left)
    for box in boxes(data, meta.start + 4, meta.end):
        if reader := _READERS.get(box.kind):
            reader(items, data, box)
    return items


def _pitm(items: _Items, data: Data, box: Box) -> None:
    """Read which item is the primary one (ISO/IEC 14496-12, 8.11.4)."""
    fields = Fields(data, box)
    version, _ = fields.version_and_flags()
    items.primary = fields.number(_ITEM_ID_BYTES[version > 0])


def _iinf(items: _Items, data: Data, box: Box) -> None:
    """Read the types of all items (ISO/IEC 14496-12, 8.11.6)."""
    fields = items.listed(data, box)
    version, _ = fields.version_and_flags()
    fields.skip(_ITEM_ID_BYTES[version > 0])  # how many there are
    for entry in boxes(data, fields.at, box.end, MAX_PARTS):
        entry_fields = Fields(data, entry)
        version, _ = entry_fields.version_and_flags()
        if entry.kind == b"infe" and version >= 2:  # noqa: PLR2004 earlier ones have no type
            item = entry_fields.number(_ITEM_ID_BYTES[version > 2])  # noqa: PLR2004
            start = entry_fields.skip(6) + 2  # after the index of protection
            kind = bytes(data[start : start + 4])
            items.kinds.setdefault(item, kind)
            if kind == b"Exif":
                items.exif_kinds.append(start)


def _iref(items: _Items, data: Data, box: Box) -> None:
    """Read which items refer to which (ISO/IEC 14496-12, 8.11.12)."""
    fields = items.listed(data, box)
    version, _ = fields.version_and_flags()
    id_bytes = _ITEM_ID_BYTES[version > 0]
    for reference in boxes(data, fields.at, box.end, MAX_PARTS):
        entry = Fields(data, reference)
        item, count = entry.number(id_bytes), entry.number(2)
        items.references.setdefault((reference.kind, item), entry.numbers(count, id_bytes))


def _iprp(items: _Items, data: Data, box: Box) -> None:
    """Read the properties, and to which items they belong (ISO/IEC 23008-12, 9.3).

    Raises:
        ValueError: there are several such boxes, which libavif refuses too; many would take long to walk.
    """
    if items.has_properties:
        raise ValueError("properties are listed twice")
    items.has_properties = True
    for part in boxes(data, box.start, box.end):
        if part.kind == b"ipco" and not items.properties:
            items.properties = tuple(boxes(data, part.start, part.end))
        elif part.kind == b"ipma":
            fields = items.listed(data, part)
            version, flags = fields.version_and_flags()
            index_bytes = 1 + (flags & 1)
            for _ in range(fields.number(4)):
                item, count = fields.number(_ITEM_ID_BYTES[version > 0]), fields.number(1)
                found = fields.numbers(count, index_bytes)
                mask = (1 << 8 * index_bytes - 1) - 1  # the highest bit says whether it is essential
                items.associations.setdefault(item, tuple(index & mask for index in found))


def _iloc(items: _Items, _data: Data, box: Box) -> None:
    items.places = box


def _idat(items: _Items, _data: Data, box: Box) -> None:
    items.own_data = box


_READERS: dict[bytes, Callable[[_Items, Data, Box], None]] = {
    b"pitm": _pitm,
    b"iinf": _iinf,
    b"iref": _iref,
    b"iprp": _iprp,
    b"iloc": _iloc,
    b"idat": _idat,
}


def _content(data: Data, items: _Items, wanted: int, most: int) -> bytes:
    """Return up to so many bytes of an item (ISO/IEC 14496-12, 8.11.3); empty where none are stored."""
    if items.places is None:
        return b""
    fields = items.listed(data, items.places)
    version, _ = fields.version_and_flags()
    sizes = fields.number(2)
    offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_bytes = sizes & 15 if version else 0
    extent_bytes = index_bytes + offset_bytes + length_bytes
    for _ in range(fields.number(_ITEM_ID_BYTES[version > 1])):
        item = fields.number(_ITEM_ID_BYTES[version > 1])
        method = fields.number(2) & 15 if version else 0
        fields.skip(2)
        base = fields.number(base_bytes)
        count = fields.number(2)
        if item != wanted:
            fields.skip(count * extent_bytes)
            continue
        held = Box(b"", 0, len(data)) if method == 0 else items.own_data
        if method > 1 or held is None:
            return b""
        found = []
        for _ in range(count):
            fields.skip(index_bytes)
            start = held.start + base + fields.number(offset_bytes)
            length = fields.number(length_bytes) or held.end - start
            if start + length > held.end:
                raise ValueError("an item does not end inside what holds it")
            found.append(bytes(data[start : start + min(length, most)]))
            most -= len(found[-1])
        return b"".join(found)
    return b""


def sequence(data: Data) -> Picture:
    """Read the first track of colour images.

    Raises:
        ValueError, LookupError, struct.error: the structure is damaged, or there is none.
    """
    for trak in tracks(data):
        mdia = inside(data, trak, b"mdia")
        (handler,) = struct.unpack_from(">8x4s", data, inside(data, mdia, b"hdlr").start)
        is_auxiliary = any(box.kind == b"auxl" for box in _references(data, trak))
        if handler in {b"pict", b"vide"} and not is_auxiliary:
            return _track(data, trak, inside(data, mdia, b"minf", b"stbl"))
    raise LookupError("there is no track of colour images")


def tracks(data: Data) -> Iterator[Box]:
    """Return the first tracks of the file (ISO/IEC 14496-12, 8.3.1)."""
    moov = first(top_level(data), b"moov")
    found = (box for box in boxes(data, moov.start, moov.end) if box.kind == b"trak")
    return islice(found, _MAX_TRACKS)


def _references(data: Data, trak: Box) -> Iterator[Box]:
    """Yield the references of a track (ISO/IEC 14496-12, 8.3.3)."""
    for box in boxes(data, trak.start, trak.end):
        if box.kind == b"tref":
            yield from boxes(data, box.start, box.end)


def _track(data: Data, trak: Box, table: Box) -> Picture:
    entry = _sample_entry(data, trak)
    meta = _own_meta(data, trak)
    properties = sample_properties(data, trak)
    return Picture(
        size=struct.unpack_from(">HH", data, entry.start + _SAMPLE_SIZE_AT),
        properties=properties,
        coding=properties,
        payload=_first_sample(data, table),
        exif=b"" if meta is None else _exif(data, _items(data, meta)),
        is_sequence=True,
        plays=_plays(data, trak),
        ticks_per_second=_ticks_per_second(data, trak),
        runs=_runs(data, inside(data, table, b"stts")),
    )


def _ticks_per_second(data: Data, trak: Box) -> int:
    """Read the time scale of a track (ISO/IEC 14496-12, 8.4.2)."""
    fields = Fields(data, inside(data, trak, b"mdia", b"mdhd"))
    version, _ = fields.version_and_flags()
    fields.skip(16 if version == 1 else 8)
    if ticks := fields.number(4):
        return ticks
    raise ValueError("time has no scale")


def _runs(data: Data, box: Box) -> tuple[int, ...]:
    """Read how long the frames of a track show (ISO/IEC 14496-12, 8.6.1.2)."""
    fields = Fields(data, box)
    fields.version_and_flags()
    count = fields.number(4)
    if 8 * count > _MAX_LIST_BYTES:
        raise ValueError("a list of durations is too long")
    return fields.numbers(2 * count, 4)


def sample_properties(data: Data, trak: Box) -> tuple[Box, ...]:
    """Return what the sample entry of a track holds (ISO/IEC 14496-12, 8.5.2 and 12.1.3)."""
    entry = _sample_entry(data, trak)
    return tuple(boxes(data, entry.start + _SAMPLE_ENTRY_BYTES, entry.end))


def _sample_entry(data: Data, trak: Box) -> Box:
    entries = inside(data, trak, b"mdia", b"minf", b"stbl", b"stsd")
    return first(boxes(data, entries.start + 8, entries.end), b"av01")


def _first_sample(data: Data, table: Box) -> bytes:
    """Return what the first sample begins with (ISO/IEC 14496-12, 8.7.3 and 8.7.5)."""
    places = {box.kind: box for box in boxes(data, table.start, table.end)}
    offset_bytes = 8 if b"co64" in places else 4
    offsets = Fields(data, places[b"co64" if b"co64" in places else b"stco"])
    offsets.skip(8)
    start = offsets.number(offset_bytes)
    sizes = Fields(data, places[b"stsz"])
    sizes.skip(4)
    size = sizes.number(4) or (sizes.number(4) and sizes.number(4))
    if start + size > len(data):
        raise ValueError("a sample does not end inside the file")
    return bytes(data[start : start + min(size, _PAYLOAD_BYTES)])


@dataclass(frozen=True, slots=True)
class Times:
    """Where a box that has a version keeps a duration.

    Args:
        at: of the duration, in the file.
        nbytes: 4 or 8, by the version.
        flags: of the box.
    """

    at: int
    nbytes: int
    flags: int

    def read(self, data: Data) -> int:
        """Return the duration; what is for ever has all bits set."""
        return int.from_bytes(data[self.at : self.at + self.nbytes], "big")


#: Before the duration in `tkhd`, `mvhd` and the first entry of `elst`, by the version, in bytes (ISO/IEC
#: 14496-12, 8.3.2, 8.2.2 and 8.6.6).
_DURATION_AT = {b"tkhd": (20, 28), b"mvhd": (16, 24), b"elst": (8, 8)}


def times(data: Data, box: Box) -> Times:
    """Find the duration in a `tkhd`, `mvhd` or `elst` box."""
    fields = Fields(data, box)
    version, flags = fields.version_and_flags()
    is_long = version == 1
    fields.at = box.start
    fields.skip(_DURATION_AT[box.kind][is_long])
    return Times(fields.skip(8 if is_long else 4), 8 if is_long else 4, flags)


def _plays(data: Data, trak: Box) -> int:
    """Return how often a track runs (ISO/IEC 23008-12, 9.6.1).

    Without an edit list nothing is told, as in files of old writers; browsers run those for ever.
    """
    try:
        edit = inside(data, trak, b"edts", b"elst")
    except LookupError:
        return 0
    once = times(data, edit)
    if not once.flags & 1:
        return 1
    whole = times(data, inside(data, trak, b"tkhd"))
    duration, total = once.read(data), whole.read(data)
    if total == (1 << 8 * whole.nbytes) - 1:
        return 0
    if not duration:
        raise ValueError("an edit list repeats nothing")
    plays = max(1, -(-total // duration))
    return 0 if plays > _MOST_PLAYS else plays
