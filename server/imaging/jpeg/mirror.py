"""Turns in which rows stay rows: the blocks of a sequential Huffman JPEG change places, undecoded.

Nothing is rounded; jpegtran calls such a turn perfect. Only where the edge of the image is within a block of
the chroma, the chroma is decoded to coefficients, mixed and encoded again; the luma is moved all the same.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from PIL.Image import Transpose

from server.imaging.codecs import Data
from server.imaging.geometry import mirrored_axes
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.jpeg.markers import (
    DHT,
    METADATA,
    SOS,
    Jpeg,
    huffman_tables,
    kept_headers,
    written_segment,
)
from server.imaging.jpeg.structure import CELL, ZIGZAG, Component, Scan, Table, check_blocks, joined
from server.imaging.jpeg.turn import CoefficientTurn, NoCodeError, Plane, check_result, coded, planes_of
from server.imaging.metadata.policy import Policy

#: The kernel sees the end of the data only at the end of an MCU: ten blocks of 63 codes of 16 bits, with 15
#: more each, are 62 words a block.
_WORDS_OF_AN_MCU = 10 * 64


@dataclass(slots=True)
class _Walked:
    """A scan that the kernel has walked over.

    Attributes:
        tables: those to write with; some may differ from the scan's.
        dc, firsts, lasts: of each block, its DC coefficient, and where its bits are in `ac`.
        ac: the bits of all AC coefficients, and how many there are.
        places: where each block of an MCU comes from, as the kernel expects it.
        differences: the DC coefficients in their new order, as the kernel returned them.
    """

    scan: Scan
    tables: list[Table]
    dc: "array[int]"
    firsts: "array[int]"
    lasts: "array[int]"
    ac: "array[int]"
    ac_bits: int
    places: "array[int]"
    differences: "array[int]"


class _Made(NamedTuple):
    """A component that is encoded again.

    Attributes:
        plane: its coefficients.
        blocks, places: where its blocks are in the scan and in the plane, as the kernel expects it.
        table: which of the scan's tables codes it.
    """

    plane: Plane
    blocks: "array[int]"
    places: "array[int]"
    table: int


class Mirror(CoefficientTurn):
    """A turn in which rows stay rows."""

    def __init__(
        self, data: Data, markers: Jpeg, transpose: Transpose | None, *, must_be_exact: bool
    ) -> None:
        super().__init__(data, markers, transpose, must_be_exact=must_be_exact)
        self._is_flipped, self._is_flopped = mirrored_axes(transpose)
        self._walked = [self._walk(scan) for scan in self._structure.scans]

    def _walk(self, scan: Scan) -> _Walked:
        check_blocks(scan)
        dc, starts = array("h", [0]) * scan.blocks, array("I", [0]) * (scan.blocks + 1)
        ac = array("I", [0]) * ((scan.segment.stop - scan.segment.end) // 4 + _WORDS_OF_AN_MCU)
        tables = scan.tables
        pairs = joined(table.pairs for table in tables)
        result = check_result(kernel().walk(*scan.coded(self._data), pairs, self._inverted(), dc, starts, ac))
        walked = _Walked(
            scan, list(tables), dc, starts[:-1], starts[1:], ac, result, array("q"),
            array("I", [0]) * scan.blocks,
        )  # fmt: skip
        unit = 0
        made = []
        for component in scan.components:
            if not self._axes[component.number].is_exact:
                made.append(self._mirrored(walked, component, unit))
            walked.places.extend(self._places(scan, component, unit))
            unit += component.down * component.across
        self._pack(walked, made)
        sizes = array("I", [0]) * len(tables)
        if not kernel().predict(
            dc, scan.across, scan.down, scan.interval, scan.layout, walked.places, walked.differences,
            sizes,
        ):  # fmt: skip
            raise Impossible("two of its blocks differ too much")
        for number, needed in enumerate(sizes):
            if not walked.tables[number].has_codes_for(needed):
                walked.tables[number] = Table.for_everything(scan.keys[number])
        return walked

    def _inverted(self) -> int:
        """Return which coefficients change their sign, a bit for each, as the kernel expects it."""
        inverted = 0
        for number, position in enumerate(ZIGZAG, 1):
            row, column = divmod(position, CELL)
            inverted |= (row * self._is_flipped + column * self._is_flopped) % 2 << number % 64
        return inverted

    def _places(self, scan: Scan, component: Component, unit: int) -> Iterator[int]:
        """Yield where the blocks of a component in each new MCU come from, as the kernel expects it.

        Args:
            scan: the scan.
            component: the component.
            unit: which block of an MCU is its first.
        """

        def place(row: int, column: int) -> int:
            mcu = row // component.down * scan.across + column // component.across
            within = row % component.down * component.across + column % component.across
            return mcu * scan.units + unit + within

        can_be_empty = scan.tables[scan.layout[3 * unit + 2]].codes[0]
        for row, column in product(range(component.down), range(component.across)):
            way = self._axes[component.number].way(component, place, row, column)
            if (way[3] < scan.across or way[4] < scan.down) and not can_be_empty:
                raise Impossible("it has no code for an empty block")
            yield from way

    def _mirrored(self, walked: _Walked, component: Component, unit: int) -> _Made:
        """Decode and mirror a component whose edge is within its last block."""
        scan = walked.scan
        (plane,) = planes_of(scan, self._axes, [component])
        blocks = array("q", [scan.across, scan.down, scan.units, unit])
        number = scan.layout[3 * unit + 2]
        table = scan.tables[number]
        places = array("q", plane.places())
        kernel().unpack(
            walked.ac, walked.firsts, walked.dc, blocks, places, table.short, table.limits, table.symbols,
            plane.coefficients, plane.used,
        )  # fmt: skip
        plane.mirror(self._structure.quantization[component.quantization], ZIGZAG, is_negated=True)
        return _Made(plane, blocks, places, number)

    def _pack(self, walked: _Walked, made: Sequence[_Made]) -> None:
        """Encode components again; where a table has no code for them, use another for all that it codes."""
        bits = walked.ac_bits
        try:
            for one in made:
                bits = self._packed(walked, one, bits)
        except NoCodeError:
            self._replace(walked, one.table)
            self._pack(walked, made)
        else:
            walked.ac_bits = bits

    def _packed(self, walked: _Walked, one: _Made, bits: int) -> int:
        """Encode a component again, after `bits` bits, and return how many there are then."""
        while True:
            packed: int = kernel().pack(
                one.plane.coefficients, one.plane.used, one.blocks, one.places,
                walked.tables[one.table].codes, bits, walked.ac, walked.firsts, walked.lasts, walked.dc,
            )  # fmt: skip
            if packed != kernel().NO_ROOM:
                return check_result(packed)
            walked.ac.extend(array("I", [0]) * (len(walked.ac) // 2))

    def _replace(self, walked: _Walked, number: int) -> None:
        """Use another AC table, if the old one codes no block that is copied."""
        layout = walked.scan.layout
        users = {layout[at] for at in range(0, len(layout), 3) if layout[at + 2] == number}
        if any(self._axes[user].is_exact for user in users):
            raise Impossible("its colours need codes that they do not have")
        complete = Table.for_everything(walked.scan.keys[number])
        if walked.tables[number] is complete:
            raise Impossible("its colours need a code that there is not")
        walked.tables[number] = complete

    def pieces(self, policy: Policy) -> Iterator[bytes | memoryview]:
        """Yield all segments in their order, with the scans turned."""
        yield b"\xff\xd8" + kept_headers(self._markers, policy)
        walked = iter(self._walked)
        defined: dict[int, bytes] = {}
        for segment in self._markers.segments:
            if segment.marker in METADATA:
                continue
            parameters = bytes(self._data[segment.start : segment.end])
            if segment.marker == DHT:
                defined |= huffman_tables(parameters)
            if segment.marker != SOS:
                yield written_segment(segment.marker, parameters)
                continue
            one = next(walked)
            for key, table in zip(one.scan.keys, one.tables, strict=True):
                if defined[key] != table.raw:
                    defined[key] = table.raw
                    yield written_segment(DHT, bytes([key]) + table.raw)
            yield written_segment(SOS, parameters)
            yield from coded(
                kernel().write, one.scan.across, one.scan.down, one.scan.interval, one.scan.layout,
                joined(table.codes for table in one.tables), one.places, one.differences, one.firsts,
                one.lasts, one.ac,
            )  # fmt: skip
        yield b"\xff\xd9"
