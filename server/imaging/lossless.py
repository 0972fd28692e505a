"""JPEGs turned without being decoded: the same coefficients in another order, bit for bit as good.

What a sequential Huffman JPEG holds is moved block by block, and nothing is rounded. jpegtran calls such a
turn perfect. Where the edge of the picture is within a block of the colours, and only there, these are
decoded to coefficients, mixed and coded anew; the luma is moved all the same.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from PIL.Image import Transpose

from server.imaging import jpeg
from server.imaging.codec import Data, Sink
from server.imaging.jpeg import Jpeg
from server.imaging.mirroring import NUMBER_OF, Plane, axes_of
from server.imaging.operations import mirrored_axes, swaps_axes
from server.imaging.sequential import (
    CELL,
    ROOM_BYTES,
    SIZE_OF,
    ZIGZAG,
    Component,
    Impossible,
    Scan,
    Table,
    check_blocks,
    check_result,
    joined,
    kernel,
    read_structure,
)

#: What the kernel returns when there is no room for more bits.
_NO_ROOM = -2

#: And when a table has no code for a symbol.
_NO_CODE = -1

#: That the data has come to its end is seen at the end of an MCU: ten blocks of 64 codes with 27 bits.
_WORDS_OF_AN_MCU = 10 * 64


@dataclass(slots=True)
class _Walked:
    """A scan that the kernel has walked over.

    Attributes:
        tables: those to write with; some may be others than they were.
        dc, firsts, lasts: of each block, its DC coefficient, and where its bits are in `ac`.
        ac: the bits of all AC coefficients, and how many there are.
        places: where each block of an MCU comes from, as the kernel wants it.
        differences: the DC coefficients in their new order, as the kernel has made them.
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
    """A component that is made anew.

    Attributes:
        coefficients, used: as in a `Plane`.
        geometry: of its plane in the scan, as the kernel wants it.
        table: which of the scan's tables codes it.
    """

    coefficients: "array[int]"
    used: "array[int]"
    geometry: "array[int]"
    table: int


class NotInBlocks(Impossible):
    """Blocks cannot just change places; their coefficients may."""


class Moving:
    """One picture on its way: walked over when it is made, written when it is asked to.

    Args:
        data: the file.
        markers: of it.
        transpose: the turn.
        must_be_exact: whether rounding is not allowed.

    Attributes:
        is_exact: whether nothing was rounded.

    Raises:
        NotInBlocks: this file and this turn need more than that.
        Impossible: they need pixels.
        DamagedImage: a scan ends before the picture does.
    """

    def __init__(
        self, data: Data, markers: Jpeg, transpose: Transpose | None, *, must_be_exact: bool
    ) -> None:
        if swaps_axes(transpose):
            raise NotInBlocks("rows become columns in this turn")
        self._data = data
        self._markers = markers
        self._is_flipped, self._is_flopped = mirrored_axes(transpose)
        structure = read_structure(data, markers)
        self._axes = axes_of(
            structure.frame,
            is_flipped=self._is_flipped,
            is_flopped=self._is_flopped,
            must_be_exact=must_be_exact,
        )
        self.is_exact = all(axes.is_exact for axes in self._axes.values())
        self._quantization = structure.quantization
        self._walked = [self._walk(scan) for scan in structure.scans]

    def _walk(self, scan: Scan) -> _Walked:
        check_blocks(scan)
        dc, starts = array("h", [0]) * scan.blocks, array("I", [0]) * (scan.blocks + 1)
        ac = array("I", [0]) * ((scan.segment.stop - scan.segment.end) // 4 + _WORDS_OF_AN_MCU)
        tables = scan.tables
        result = kernel().walk(
            self._data, scan.segment.end, scan.segment.stop, scan.across * scan.down, scan.interval,
            scan.layout, joined([table.short for table in tables]),
            joined([table.pairs for table in tables]), joined([table.limits for table in tables]),
            b"".join(table.symbols for table in tables), self._inverted(), dc, starts, ac,
        )  # fmt: skip
        check_result(result)
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
            dc, scan.across, scan.down, scan.interval, scan.layout, walked.places, SIZE_OF,
            walked.differences, sizes,
        ):  # fmt: skip
            raise Impossible("two of its blocks differ too much")
        for number, needed in enumerate(sizes):
            if not walked.tables[number].has_codes_for(needed):
                walked.tables[number] = Table.for_everything(scan.keys[number])
        return walked

    def _inverted(self) -> int:
        """Which coefficients change their sign, a bit for each, as the kernel wants it."""
        inverted = 0
        for number, position in enumerate(ZIGZAG, 1):
            row, column = divmod(position, CELL)
            inverted |= (row * self._is_flipped + column * self._is_flopped) % 2 << number % 64
        return inverted

    def _places(self, scan: Scan, component: Component, unit: int) -> Iterator[int]:
        """Where the blocks of a component in each new MCU come from, as the kernel wants it.

        Args:
            scan: the scan.
            component: the component.
            unit: which of the blocks of an MCU is its first.
        """
        axes = self._axes[component.number]
        units = len(scan.layout) // 3
        right = -units if axes.across.is_reversed else units
        below = (-units if axes.down.is_reversed else units) * scan.across
        for y, x in product(range(component.down), range(component.across)):
            row, column = axes.down.source(y), axes.across.source(x)
            mcu = row // component.down * scan.across + column // component.across
            within = row % component.down * component.across + column % component.across
            real_across = max(0, -(-(axes.across.blocks - x) // component.across))
            real_down = max(0, -(-(axes.down.blocks - y) // component.down))
            if (real_across < scan.across or real_down < scan.down) and not scan.tables[
                scan.layout[3 * unit + 2]
            ].codes[0]:
                raise Impossible("it has no code for an empty block")
            yield from (mcu * units + unit + within, right, below, real_across, real_down)

    def _mirrored(self, walked: _Walked, component: Component, unit: int) -> _Made:
        """Decode and mirror a component whose edge is within its last block."""
        scan = walked.scan
        rows, columns = scan.down * component.down, scan.across * component.across
        coefficients, used = (
            array("h", [0]) * (rows * columns * CELL * CELL),
            array("Q", [0]) * (rows * columns),
        )
        geometry = array(
            "q",
            [rows, columns, component.down, component.across, scan.across, len(scan.layout) // 3, unit],
        )
        number = scan.layout[3 * unit + 2]
        table = scan.tables[number]
        kernel().unpack(
            walked.ac, walked.firsts, walked.dc, geometry, table.short, table.limits, table.symbols,
            coefficients, used,
        )  # fmt: skip
        with memoryview(coefficients) as all_of_them, memoryview(used) as which:
            Plane(all_of_them, which, rows, columns).mirror(
                self._axes[component.number],
                self._quantization[component.quantization],
                ZIGZAG,
                is_negated=True,
            )
        return _Made(coefficients, used, geometry, number)

    def _pack(self, walked: _Walked, made: Sequence[_Made]) -> None:
        """Code components anew; where a table has no code for them, all that it codes with another."""
        bits = walked.ac_bits
        for one in made:
            while True:
                packed = kernel().pack(
                    one.coefficients, one.used, one.geometry, walked.tables[one.table].codes, SIZE_OF,
                    NUMBER_OF, bits, walked.ac, walked.firsts, walked.lasts, walked.dc,
                )  # fmt: skip
                if packed != _NO_ROOM:
                    break
                walked.ac.extend(array("I", [0]) * (len(walked.ac) // 2))
            if packed < _NO_ROOM:
                raise Impossible("one of its coefficients becomes too large")
            if packed == _NO_CODE:
                self._replace(walked, one.table)
                self._pack(walked, made)
                return
            bits = packed
        walked.ac_bits = bits

    def _replace(self, walked: _Walked, number: int) -> None:
        """Take another AC table, if it codes no block that is copied."""
        layout = walked.scan.layout
        users = {layout[at] for at in range(0, len(layout), 3) if layout[at + 2] == number}
        if any(self._axes[user].is_exact for user in users):
            raise Impossible("its colours need codes that they do not have")
        complete = Table.for_everything(walked.scan.keys[number])
        if walked.tables[number] is complete:
            raise Impossible("its colours need a code that there is not")
        walked.tables[number] = complete

    def write(self, sink: Sink, *, strip: bool) -> None:
        """Write the picture, turned, with its metadata as it shall be."""
        sink.write(b"\xff\xd8" + jpeg.kept_headers(self._markers, strip=strip, is_turned=False))
        walked = iter(self._walked)
        defined: dict[int, bytes] = {}
        for segment in self._markers.segments:
            if segment.marker in jpeg.METADATA:
                continue
            parameters = bytes(self._data[segment.start : segment.end])
            if segment.marker == jpeg.DHT:
                defined |= jpeg.huffman_tables(parameters)
            if segment.marker != jpeg.SOS:
                sink.write(jpeg.written_segment(segment.marker, parameters))
                continue
            one = next(walked)
            for key, table in zip(one.scan.keys, one.tables, strict=True):
                if defined[key] != table.raw:
                    defined[key] = table.raw
                    sink.write(jpeg.written_segment(jpeg.DHT, bytes([key]) + table.raw))
            sink.write(jpeg.written_segment(jpeg.SOS, parameters))
            self._write_scan(one, sink)
        sink.write(b"\xff\xd9")

    def _write_scan(self, walked: _Walked, sink: Sink) -> None:
        scan = walked.scan
        state, room = array("q", [0, 0, 0]), bytearray(ROOM_BYTES)
        codes = joined([table.codes for table in walked.tables])
        while state[0] < scan.across * scan.down:
            written = kernel().write(
                state, scan.across, scan.down, scan.interval, scan.layout, walked.places, walked.differences,
                codes, walked.firsts, walked.lasts, walked.ac, room,
            )  # fmt: skip
            sink.write(memoryview(room)[:written])
