"""The structure of a sequential JPEG: its frame, its components, its scans and their Huffman tables.

Source: ITU-T T.81, annexes A (how samples become MCUs) and B (markers).
"""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import calcsize, unpack_from
from typing import NamedTuple, Self

from server.imaging.codecs import Data, Format, damaged
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.jpeg.markers import (
    DHT,
    DQT,
    DRI,
    EOI,
    METADATA,
    SOF0,
    SOF1,
    SOS,
    Segment,
    huffman_tables,
    typical_huffman_tables,
)

_FRAMES = frozenset({SOF0, SOF1})
_COMPONENTS = frozenset({1, 3, 4})
_MAX_SAMPLING = 4
_MAX_BLOCKS_OF_AN_MCU = 10  # B.2.3

#: Width and height of a block, in samples, and how many coefficients it has.
CELL = 8
BLOCK = CELL * CELL

#: The order in which coefficients are coded, by their position in the block (figure A.6).
ZIGZAG = (
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,
    7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31,
    39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
)  # fmt: skip

#: A block takes two bits at least, one for DC and one for its end.
_BLOCKS_OF_A_BYTE = 4

#: The kernel counts bits with 32 bits.
_MOST_BYTES = 1 << 29

#: How many words the kernel reads ahead: few enough for the first cache.
_WORDS = 1024

#: How many Huffman tables of a class there may be, and quantization tables.
_TABLES = 4

#: AC tables have this bit in their class and number (B.2.4.2).
_AC = 0x10


@dataclass(frozen=True, slots=True)
class Table:
    """One Huffman table: sixteen counts and the symbols as they are stored, and what the kernel needs."""

    raw: bytes
    symbols: bytes
    short: "array[int]"
    pairs: "array[int]"
    limits: "array[int]"
    codes: "array[int]"

    @classmethod
    @lru_cache(maxsize=32)  # nearly all cameras write the same four
    def of(cls, raw: bytes) -> Self:
        """Prepare a table.

        Raises:
            Impossible: it makes no sense.
        """
        symbols = raw[16:].ljust(256, b"\0")
        short, pairs = array("H", [0]) * 2048, array("Q", [0]) * 2048
        limits, codes = array("I", [0]) * 34, array("I", [0]) * 256
        if len(raw) < 16 or not kernel().build(raw[:16], symbols, short, limits, codes):  # noqa: PLR2004
            raise Impossible("one of its Huffman tables makes no sense")
        kernel().pair(short, pairs)
        return cls(raw, symbols, short, pairs, limits, codes)

    @classmethod
    def for_everything(cls, key: int) -> Self:
        """Return a table that has a code for every symbol, to replace another.

        Args:
            key: class and number of the table to replace.
        """
        typical = typical_huffman_tables()
        return cls.of(typical.get(key) or typical[key & _AC])

    def has_codes_for(self, symbols: int) -> bool:
        """Tell whether all of a set of symbols, a bit for each, have a code."""
        return all(self.codes[symbol] for symbol in range(symbols.bit_length()) if symbols >> symbol & 1)


class Component(NamedTuple):
    """One component.

    Args:
        number: its place in the frame.
        across, down: its blocks in an MCU of several components.
        quantization: the number of its quantization table.
    """

    number: int
    across: int
    down: int
    quantization: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Contents of the frame header (B.2.2).

    Args:
        width, height: in pixels.
        components: by their names, in their order.
    """

    width: int
    height: int
    components: Mapping[int, Component]

    @classmethod
    def read(cls, parameters: bytes) -> Self:
        """Read the parameters of a frame header.

        Raises:
            Impossible: it is of a kind that we do not turn.
        """
        count = parameters[5] if len(parameters) > 5 else 0  # noqa: PLR2004 where the number is
        if count not in _COMPONENTS or len(parameters) != 6 + 3 * count:
            raise Impossible("it has an unusual number of components")
        if parameters[0] != 8:  # noqa: PLR2004
            raise Impossible("its samples have other than 8 bits")
        components = {}
        for number in range(count):
            name, sampling, table = parameters[6 + 3 * number : 9 + 3 * number]
            across, down = divmod(sampling, 16)
            if not (0 < across <= _MAX_SAMPLING and 0 < down <= _MAX_SAMPLING):
                raise Impossible("its sampling factors are out of range")
            # With only one component, its sampling factors mean nothing (A.2.2).
            across, down = (across, down) if count > 1 else (1, 1)
            components[name] = Component(number, across, down, table)
        if len(components) != count:
            raise Impossible("two of its components have one name")
        height, width = (int.from_bytes(parameters[at : at + 2], "big") for at in (1, 3))
        if not (width and height):
            raise Impossible("its frame header says that it has no pixels")
        return cls(width, height, components)

    @property
    def mcu(self) -> tuple[int, int]:
        """Return width and height of an MCU of all components, in pixels."""
        return (
            CELL * max(component.across for component in self.components.values()),
            CELL * max(component.down for component in self.components.values()),
        )


@dataclass(frozen=True, slots=True)
class Scan:
    """One scan.

    Args:
        segment: its header, and where its entropy-coded data ends.
        components: those in it; alone, one has a single block in an MCU.
        across, down: MCUs in a row, and rows.
        interval: MCUs from one restart marker to the next, 0 for none.
        keys: class and number of each of its tables, as DHT segments name them.
        tables: the tables.
        layout: for the kernel: for each block of an MCU its component, and which its DC and AC table are.
    """

    segment: Segment
    components: Sequence[Component]
    across: int
    down: int
    interval: int
    keys: Sequence[int]
    tables: Sequence[Table]
    layout: "array[int]"

    @property
    def units(self) -> int:
        """Return how many blocks an MCU has."""
        return len(self.layout) // 3

    @property
    def blocks(self) -> int:
        """Return how many blocks it has."""
        return self.across * self.down * self.units

    def coded(self, data: Data) -> tuple[object, ...]:
        """Return the arguments that all of the kernel's readers take."""
        tables = self.tables
        return (
            data, self.segment.end, self.segment.stop, self.across, self.down, self.interval, self.layout,
            joined(table.short for table in tables), joined(table.limits for table in tables),
            b"".join(table.symbols for table in tables), array("I", [0]) * _WORDS,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Structure:
    """Structure of a file.

    Args:
        frame: its frame.
        scans: its scans.
        quantization: its quantization tables by number, in the order in which they are stored.
    """

    frame: Frame
    scans: Sequence[Scan]
    quantization: Mapping[int, Sequence[int]]


def read_structure(data: Data, segments: Iterable[Segment]) -> Structure:
    """Read the structure of a sequential Huffman JPEG of 8 bits.

    A file that decoders might refuse or read in different ways is left to the decoder.

    Raises:
        Impossible: it is of another kind, or there is something odd about it.
    """
    frame: Frame | None = None
    tables: dict[int, bytes] = {}
    quantization: dict[int, Sequence[int]] = {}
    interval = 0
    scans: list[Scan] = []
    for segment, parameters in _segments(data, segments):
        if segment.marker in _FRAMES and frame is None:
            frame = Frame.read(parameters)
        elif segment.marker == DHT:
            tables |= _huffman_tables(parameters)
        elif segment.marker == DQT and not scans:  # a later one would not apply to earlier scans
            quantization |= _quantization_tables(parameters)
        elif segment.marker == DRI and len(parameters) == 2:  # noqa: PLR2004 it is one number
            interval = int.from_bytes(parameters, "big")
        elif segment.marker == SOS and frame is not None:
            scans.append(_scan(segment, parameters, frame, tables, interval))
        elif segment.marker not in METADATA:
            raise Impossible("it is coded in another way, such as progressively")
    seen = [component.number for scan in scans for component in scan.components]
    if frame is None or sorted(seen) != list(range(len(frame.components))):
        raise Impossible("one of its components comes twice or not at all")
    if not {component.quantization for component in frame.components.values()} <= quantization.keys():
        raise Impossible("one of its quantization tables is missing")
    return Structure(frame, scans, quantization)


def _segments(data: Data, segments: Iterable[Segment]) -> Iterator[tuple[Segment, bytes]]:
    """Yield all segments with their parameters, and check that nothing lies between them."""
    end = 2
    for segment in segments:
        if segment.marker == EOI:
            return
        if segment.start != end + 4:
            raise Impossible("there is something between its segments")
        end = segment.stop
        yield segment, bytes(data[segment.start : segment.end])


def _huffman_tables(dht: bytes) -> dict[int, bytes]:
    """Read the tables of a DHT segment (B.2.4.2), and check them."""
    tables = huffman_tables(dht)
    used = sum(1 + len(raw) for raw in tables.values())
    is_sound = all(
        key & ~_AC < _TABLES
        and len(raw) == 16 + sum(raw[:16]) <= 16 + 256
        and (key & _AC or max(raw[16:], default=0) < 16)  # noqa: PLR2004 the size of a difference
        for key, raw in tables.items()
    )
    if used != len(dht) or not is_sound:
        raise Impossible("one of its Huffman tables makes no sense")
    return tables


def _quantization_tables(dqt: bytes) -> dict[int, Sequence[int]]:
    """Read the tables of a DQT segment (B.2.4.1)."""
    tables: dict[int, Sequence[int]] = {}
    while dqt:
        precision, number = divmod(dqt[0], 16)
        form = ">64H" if precision else ">64B"
        end = 1 + calcsize(form)
        is_sound = precision <= 1 and number < _TABLES and number not in tables and len(dqt) >= end
        if not is_sound or 0 in (steps := unpack_from(form, dqt, 1)):
            raise Impossible("one of its quantization tables makes no sense")
        tables[number] = steps
        dqt = dqt[end:]
    return tables


def _scan(
    segment: Segment, parameters: bytes, frame: Frame, known: Mapping[int, bytes], interval: int
) -> Scan:
    """Read the header of a scan (B.2.3) and lay its MCUs out (A.2)."""
    count = parameters[0] if parameters else 0
    chosen = {
        parameters[1 + 2 * i]: parameters[2 + 2 * i] for i in range(count) if len(parameters) == 4 + 2 * count
    }
    if not 0 < len(chosen) == count or chosen.keys() - frame.components.keys():
        raise Impossible("a scan has an unusual header")
    components = [frame.components[name] for name in chosen]
    width, height = frame.mcu
    across, down = -(-frame.width // width), -(-frame.height // height)
    if count == 1:
        # As many blocks as this component needs, and not whole MCUs of all components.
        (alone,) = components
        across, down = -(-frame.width * alone.across // width), -(-frame.height * alone.down // height)
        components = [alone._replace(across=1, down=1)]
    keys = list(dict.fromkeys(_keys(chosen.values())))
    if not set(keys) <= known.keys():
        raise Impossible("one of its Huffman tables is missing")
    layout = array("i")
    for component, choice in zip(components, chosen.values(), strict=True):
        numbers = [keys.index(key) for key in _keys([choice])]
        layout.extend([component.number, *numbers] * (component.across * component.down))
    if len(layout) > 3 * _MAX_BLOCKS_OF_AN_MCU:
        raise Impossible("its MCUs have too many blocks")
    return Scan(
        segment, components, across, down, interval, keys, [Table.of(known[key]) for key in keys], layout
    )


def _keys(choices: Iterable[int]) -> Iterator[int]:
    """Yield the keys of the DC and the AC table of each component, as its scan chooses them (B.2.3)."""
    for choice in choices:
        yield choice >> 4
        yield _AC | choice & 15


def check_blocks(scan: Scan) -> None:
    """Refuse a scan with fewer than two bits for each block, before memory is allocated for them.

    Raises:
        DamagedImage: it has fewer.
    """
    coded_bytes = scan.segment.stop - scan.segment.end
    if coded_bytes >= _MOST_BYTES:
        raise Impossible("it has too many bytes")
    if scan.blocks > _BLOCKS_OF_A_BYTE * coded_bytes:
        raise damaged(Format.JPEG, "its pixels end early")


def joined(arrays: Iterable["array[int]"]) -> "array[int]":
    """Concatenate arrays."""
    first, *others = arrays
    return sum(others, first)
