"""JPEGs turned without being decoded: the same coefficients in another order, bit for bit as good.

What a sequential Huffman JPEG holds is moved block by block, and nothing is rounded. That needs dimensions
that are whole numbers of MCUs, in each direction in which the picture is mirrored: what hangs over the far
edge cannot hang over the near one. jpegtran calls such a turn perfect.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from PIL.Image import Transpose

from server.imaging import jpeg
from server.imaging.codec import Data, Sink
from server.imaging.jpeg import Jpeg
from server.imaging.operations import mirrored_axes, swaps_axes
from server.imaging.sequential import (
    CELL,
    ROOM_BYTES,
    SIZE_OF,
    ZIGZAG,
    Frame,
    Impossible,
    Scan,
    Table,
    check_blocks,
    check_result,
    joined,
    kernel,
    read_structure,
)

#: That the data has come to its end is seen at the end of an MCU: ten blocks of 64 codes with 27 bits.
_WORDS_OF_AN_MCU = 10 * 64


@dataclass(frozen=True, slots=True)
class _Walked:
    """A scan that the kernel has walked over.

    Attributes:
        sources: which block of an old MCU each block of a new one is.
        starts, ac, differences: as the kernel has made them.
        tables: those to write with; a DC table may be another than it was.
    """

    scan: Scan
    sources: "array[int]"
    starts: "array[int]"
    ac: "array[int]"
    differences: "array[int]"
    tables: Sequence[Table]


class Moving:
    """One picture on its way: walked over when it is made, written when it is asked to.

    Args:
        data: the file.
        markers: of it.
        transpose: the turn.

    Raises:
        Impossible: this file and this turn need pixels.
        DamagedImage: a scan ends before the picture does.
    """

    is_exact = True

    def __init__(self, data: Data, markers: Jpeg, transpose: Transpose | None) -> None:
        if swaps_axes(transpose):
            raise Impossible("rows become columns in this turn")
        self._data = data
        self._markers = markers
        self._is_flipped, self._is_flopped = mirrored_axes(transpose)
        structure = read_structure(data, markers)
        self._check_edges(structure.frame)
        self._walked = [self._walk(scan) for scan in structure.scans]

    def _check_edges(self, frame: Frame) -> None:
        width, height = frame.mcu
        if self._is_flipped and frame.height % height:
            raise Impossible(f"its height of {frame.height} is no whole number of {height}")
        if self._is_flopped and frame.width % width:
            raise Impossible(f"its width of {frame.width} is no whole number of {width}")

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
        sources, differences = self._sources(scan), array("I", [0]) * scan.blocks
        sizes = array("I", [0]) * len(scan.tables)
        if not kernel().predict(
            dc, scan.across, scan.down, scan.interval, scan.layout, sources, self._is_flipped,
            self._is_flopped, SIZE_OF, differences, sizes,
        ):  # fmt: skip
            raise Impossible("two of its blocks differ too much")
        tables = [
            table if table.has_codes_for(needed) else Table.for_everything(key)
            for key, table, needed in zip(scan.keys, tables, sizes, strict=True)
        ]
        return _Walked(scan, sources, starts, ac, differences, tables)

    def _inverted(self) -> int:
        """Which coefficients change their sign, a bit for each, as the kernel wants it."""
        inverted = 0
        for number, position in enumerate(ZIGZAG, 1):
            row, column = divmod(position, CELL)
            inverted |= (row * self._is_flipped + column * self._is_flopped) % 2 << number % 64
        return inverted

    def _sources(self, scan: Scan) -> "array[int]":
        """Which block of an old MCU each block of a new one is."""
        sources = array("i")
        for component in scan.components:
            first = len(sources)
            for y, x in product(range(component.down), range(component.across)):
                row = component.down - 1 - y if self._is_flipped else y
                column = component.across - 1 - x if self._is_flopped else x
                sources.append(first + row * component.across + column)
        return sources

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
        while state[0] < scan.down:
            written = kernel().write(
                state, scan.across, scan.down, scan.interval, scan.layout, walked.sources, self._is_flipped,
                self._is_flopped, walked.differences, codes, walked.starts, walked.ac, room,
            )  # fmt: skip
            if written:
                sink.write(memoryview(room)[:written])
            else:
                room = bytearray(2 * len(room))
