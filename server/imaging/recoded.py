"""JPEGs whose rows become columns: decoded to coefficients, transposed, and coded anew.

Nothing is rounded, unless the edge of the picture is within a block of the colours (see `mirroring`).

Source: ITU-T T.81, annexes A and F.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from PIL.Image import Transpose

from server.imaging import jpeg
from server.imaging.codec import Data, Sink
from server.imaging.jpeg import Jpeg
from server.imaging.mirroring import NUMBER_OF, Axes, Plane, axes_of
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

_BLOCK = CELL * CELL
_SIGN = 64

#: What the kernel returns for a symbol that a table cannot code.
_NO_CODE = -1


class _Plane(NamedTuple):
    """The coefficients of one component among those of all.

    Attributes:
        start: where its first is.
        rows, columns: its blocks, with those that only fill an MCU.
        axes: its two directions.
    """

    component: Component
    start: int
    rows: int
    columns: int
    axes: Axes

    def place(self, row: int, column: int) -> int:
        """Where the first coefficient of a block is."""
        return self.start + (row * self.columns + column) * _BLOCK

    def source(self, row: int, column: int) -> int:
        """Where that of the block is that comes to this row and column, before these change places."""
        return self.place(self.axes.down.source(row), self.axes.across.source(column))


class _NoCodeError(Exception):
    """A Huffman table lacks a symbol."""


class Recoding:
    """One picture on its way: decoded to coefficients and coded when it is made, written when it is asked to.

    Args:
        data: the file.
        markers: of it.
        transpose: the turn.
        must_be_exact: whether rounding is not allowed.

    Attributes:
        is_exact: whether nothing was rounded.
        size: width and height of the result.

    Raises:
        Impossible: this file and this turn need pixels.
        DamagedImage: its data ends before the picture does.
    """

    def __init__(
        self, data: Data, markers: Jpeg, transpose: Transpose | None, *, must_be_exact: bool
    ) -> None:
        self._data = data
        self._markers = markers
        self._is_turned = swaps_axes(transpose)
        structure = read_structure(data, markers)
        frame, self._quantization = structure.frame, structure.quantization
        if len(structure.scans) > 1:
            raise Impossible("its components come one after the other")
        self._scan = structure.scans[0]
        self.size = (frame.height, frame.width) if self._is_turned else (frame.width, frame.height)
        is_flipped, is_flopped = mirrored_axes(transpose)
        axes = axes_of(frame, is_flipped=is_flipped, is_flopped=is_flopped, must_be_exact=must_be_exact)
        self.is_exact = all(both.is_exact for both in axes.values())
        self._planes = list(_planes(self._scan, axes))
        last = self._planes[-1]
        self._coefficients = array("h", [0]) * last.place(last.rows, 0)
        self._used = array("Q", [0]) * (len(self._coefficients) // _BLOCK)
        self._decode()
        for plane in self._planes:
            if not plane.axes.is_exact:
                self._mirror(plane)
        self._tables = self._scan.tables
        try:
            self._coded = list(self._encoded())
        except _NoCodeError:
            self._tables = [Table.for_everything(key) for key in self._scan.keys]
            self._coded = list(self._encoded())

    def _decode(self) -> None:
        """Fetch all coefficients, plane by plane, each block in its new order of coding."""
        scan = self._scan
        check_blocks(scan)
        places = array("q")
        for plane in self._planes:
            component = plane.component
            for row, column in product(range(component.down), range(component.across)):
                first = plane.place(row, column)
                right, below = (
                    plane.place(row, column + component.across),
                    plane.place(row + component.down, column),
                )
                places.extend((first, right - first, below - first))
        by_number = sorted(self._planes, key=lambda plane: plane.component.number)
        targets = bytes(target for plane in by_number for target in self._targets(plane))
        tables = scan.tables
        result = kernel().decode(
            self._data, scan.segment.end, scan.segment.stop, scan.across, scan.down, scan.interval,
            scan.layout, joined([table.short for table in tables]),
            joined([table.limits for table in tables]), b"".join(table.symbols for table in tables),
            targets, places, self._coefficients, self._used,
        )  # fmt: skip
        check_result(result)

    def _targets(self, plane: _Plane) -> Iterator[int]:
        """Which coefficient of a new block each of an old one becomes, and whether its sign changes."""
        for position in ZIGZAG:
            row, column = divmod(position, CELL)
            is_negated = (row * plane.axes.down.is_reversed + column * plane.axes.across.is_reversed) % 2
            yield ZIGZAG.index(self._new_position(position)) + _SIGN * is_negated

    def _new_position(self, position: int) -> int:
        """Where in a new block a coefficient is that was here in an old one, and the other way round."""
        return position % CELL * CELL + position // CELL if self._is_turned else position

    def _mirror(self, plane: _Plane) -> None:
        """Mirror one plane whose edge is within its last block."""
        positions = [self._new_position(position) for position in ZIGZAG]
        by_position = dict(zip(ZIGZAG, self._quantization[plane.component.quantization], strict=True))
        first, end = plane.start, plane.place(plane.rows, 0)
        with (
            memoryview(self._coefficients)[first:end] as coefficients,
            memoryview(self._used)[first // _BLOCK : end // _BLOCK] as used,
        ):
            Plane(coefficients, used, plane.rows, plane.columns).mirror(
                plane.axes, [by_position[position] for position in positions], positions, is_negated=False
            )

    def _encoded(self) -> Iterator[bytes]:
        """Code all coefficients in their new order (A.2.3).

        Raises:
            _NoCodeError: a table cannot code them.
        """
        scan = self._scan
        across, down = (scan.down, scan.across) if self._is_turned else (scan.across, scan.down)
        places, real = array("q"), array("q")
        for plane in self._planes:
            for first, right, below, *holds in self._blocks_of_an_mcu(plane):
                places.extend((first, right - first, below - first))
                real.extend(holds)
        codes = joined([table.codes for table in self._tables])
        state, room = array("q", [0]) * 7, bytearray(ROOM_BYTES)
        while state[0] < across * down:
            written = kernel().encode(
                state, across, down, scan.interval, scan.layout, codes, places, real, SIZE_OF,
                self._coefficients, self._used, NUMBER_OF, room,
            )  # fmt: skip
            if written == _NO_CODE:
                raise _NoCodeError
            if written < 0:
                raise Impossible("one of its coefficients is too large")
            yield bytes(memoryview(room)[:written])

    def _blocks_of_an_mcu(self, plane: _Plane) -> Iterator[tuple[int, ...]]:
        """For each block of a new MCU: where it, its like to the right and below are, and what is real."""
        rows, columns = plane.component.down, plane.component.across
        if self._is_turned:
            for y, x in product(range(columns), range(rows)):
                yield (
                    *(plane.source(x, y), plane.source(x + rows, y), plane.source(x, y + columns)),
                    *(y, columns, plane.axes.across.blocks, x, rows, plane.axes.down.blocks),
                )
        else:
            for y, x in product(range(rows), range(columns)):
                yield (
                    *(plane.source(y, x), plane.source(y, x + columns), plane.source(y + rows, x)),
                    *(y, rows, plane.axes.down.blocks, x, columns, plane.axes.across.blocks),
                )

    def write(self, sink: Sink, *, strip: bool) -> None:
        """Write the picture, turned, with its metadata as it shall be."""
        sink.write(b"\xff\xd8" + jpeg.kept_headers(self._markers, strip=strip, is_turned=self._is_turned))
        for key, steps in self._quantization.items():
            sink.write(_quantization_segment(key, self._turned(steps)))
        for segment in self._markers.segments:
            if segment.marker in (jpeg.SOF0, jpeg.SOF1):
                header = bytearray(self._data[segment.start : segment.end])
                if self._is_turned:
                    header[1:5] = header[3:5] + header[1:3]
                    for at in range(7, len(header), 3):
                        header[at] = header[at] >> 4 | header[at] << 4 & 0xF0
                sink.write(jpeg.written_segment(segment.marker, bytes(header)))
        for key, table in zip(self._scan.keys, self._tables, strict=True):
            sink.write(jpeg.written_segment(jpeg.DHT, bytes([key]) + table.raw))
        if self._scan.interval:
            sink.write(jpeg.written_segment(jpeg.DRI, self._scan.interval.to_bytes(2, "big")))
        chosen = bytes(self._data[self._scan.segment.start : self._scan.segment.end])
        sink.write(jpeg.written_segment(jpeg.SOS, chosen))
        sink.writelines(self._coded)
        sink.write(b"\xff\xd9")

    def _turned(self, steps: Sequence[int]) -> Sequence[int]:
        """A quantization table for blocks whose rows became columns."""
        by_position = dict(zip(ZIGZAG, steps, strict=True))
        return [by_position[self._new_position(position)] for position in ZIGZAG]


def _planes(scan: Scan, axes: Mapping[int, Axes]) -> Iterator[_Plane]:
    start = 0
    for component in scan.components:
        rows, columns = scan.down * component.down, scan.across * component.across
        yield _Plane(component, start, rows, columns, axes[component.number])
        start += rows * columns * _BLOCK


def _quantization_segment(number: int, steps: Sequence[int]) -> bytes:
    is_wide = max(steps) > 255  # noqa: PLR2004 what a byte holds
    size = 2 if is_wide else 1
    return jpeg.written_segment(
        jpeg.DQT, bytes([is_wide << 4 | number]) + b"".join(step.to_bytes(size, "big") for step in steps)
    )
