"""JPEGs turned by coefficients where moving coded blocks is not enough: these are decoded and coded anew.

Rows that become columns are still exact: a block is transposed, and nothing is rounded. Where the edge of the
picture is not that of a block, every sample of a component moves by some rows against the blocks; then the
coefficients are mixed in that direction and quantized again, with the same tables. No pixel is clamped, no
chroma is sampled anew, and what is aligned stays exact: in a picture 1080 pixels high, all of its luma.

Source: ITU-T T.81; moving blocks in the DCT domain: S.-F. Chang and D. G. Messerschmitt, "Manipulation and
compositing of MC-DCT compressed video", IEEE JSAC 13(1), 1995, section III.
"""

from array import array
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from math import cos, pi, sqrt
from typing import NamedTuple

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
    Component,
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

_BLOCK = CELL * CELL
_SIGN = 64

#: Which bit is set in a power of two, as the kernel looks it up.
_NUMBER_OF = bytes(
    number for _, number in sorted(((1 << n) * 0x03F79D71B4CB0A89 % 2**64 >> 58, n) for n in range(64))
)

#: What the kernel returns for a symbol that a table cannot code.
_NO_CODE = -1


class _Axis(NamedTuple):
    """One direction of one component.

    Attributes:
        blocks: how many blocks hold samples.
        rest: how many samples the last of them holds, 0 for all.
        is_mirrored: whether they come in reverse.
    """

    blocks: int
    rest: int
    is_mirrored: bool

    @property
    def is_exact(self) -> bool:
        """Whether blocks only change places."""
        return not (self.is_mirrored and self.rest)

    @property
    def is_reversed(self) -> bool:
        """Whether they do so when they are written."""
        return self.is_mirrored and not self.rest


class _Plane(NamedTuple):
    """The coefficients of one component among those of all.

    Attributes:
        start: where its first is.
        rows, columns: its blocks, with those that only fill an MCU.
        down, across: its two directions.
    """

    component: Component
    start: int
    rows: int
    columns: int
    down: _Axis
    across: _Axis

    def place(self, row: int, column: int) -> int:
        """Where the first coefficient of a block is."""
        return self.start + (row * self.columns + column) * _BLOCK

    def source(self, row: int, column: int) -> int:
        """Where that of the block is that comes to this row and column, before these change places."""
        return self.place(
            self.down.blocks - 1 - row if self.down.is_reversed else row,
            self.across.blocks - 1 - column if self.across.is_reversed else column,
        )


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
        self._planes = list(_planes(frame, self._scan, *mirrored_axes(transpose)))
        self.is_exact = all(plane.down.is_exact and plane.across.is_exact for plane in self._planes)
        if must_be_exact and not self.is_exact:
            raise Impossible(f"the edge of its {frame.width} x {frame.height} pixels is within a block")
        last = self._planes[-1]
        self._coefficients = array("h", [0]) * last.place(last.rows, 0)
        self._used = array("Q", [0]) * (len(self._coefficients) // _BLOCK)
        self._decode()
        for plane in self._planes:
            if not (plane.down.is_exact and plane.across.is_exact):
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
            is_negated = (row * plane.down.is_reversed + column * plane.across.is_reversed) % 2
            yield ZIGZAG.index(self._new_position(position)) + _SIGN * is_negated

    def _new_position(self, position: int) -> int:
        """Where in a new block a coefficient is that was here in an old one, and the other way round."""
        return position % CELL * CELL + position // CELL if self._is_turned else position

    def _mirror(self, plane: _Plane) -> None:
        """Mirror one plane in the direction in which its edge is within its last block."""
        is_across = not plane.across.is_exact
        axis = plane.across if is_across else plane.down
        row = plane.columns * _BLOCK
        lines = (
            (plane.rows, row, axis.blocks, _BLOCK) if is_across else (plane.columns, _BLOCK, axis.blocks, row)
        )
        positions = bytes(map(self._new_position, ZIGZAG))
        by_position = dict(zip(ZIGZAG, self._quantization[plane.component.quantization], strict=True))
        steps = array("H", [by_position[position] for position in positions])
        first, end = plane.start, plane.place(plane.rows, 0)
        with (
            memoryview(self._coefficients)[first:end] as old,
            memoryview(self._used)[first // _BLOCK : end // _BLOCK] as used,
        ):
            new, now_used = array("h", [0]) * len(old), array("Q", [0]) * len(used)
            if not kernel().mirror(
                old,
                new,
                used,
                now_used,
                _NUMBER_OF,
                *lines,
                is_across,
                positions,
                steps,
                _mixtures(axis.rest),
            ):
                raise Impossible("one of its coefficients becomes too large")
            old[:], used[:] = memoryview(new), memoryview(now_used)

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
                self._coefficients, self._used, _NUMBER_OF, room,
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
                    *(y, columns, plane.across.blocks, x, rows, plane.down.blocks),
                )
        else:
            for y, x in product(range(rows), range(columns)):
                yield (
                    *(plane.source(y, x), plane.source(y, x + columns), plane.source(y + rows, x)),
                    *(y, rows, plane.down.blocks, x, columns, plane.across.blocks),
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


def _planes(frame: Frame, scan: Scan, is_flipped: bool, is_flopped: bool) -> Iterator[_Plane]:  # noqa: FBT001
    start = 0
    width, height = frame.mcu
    for component in scan.components:
        rows, columns = scan.down * component.down, scan.across * component.across
        down = _axis("height", frame.height, component.down, height // CELL, is_mirrored=is_flipped)
        across = _axis("width", frame.width, component.across, width // CELL, is_mirrored=is_flopped)
        if component.number == 0 and not (down.is_exact and across.is_exact):
            raise Impossible(f"the edge of its {frame.width} x {frame.height} pixels is within a block")
        if not (down.is_exact or across.is_exact):
            raise Impossible("its colours would have to be quantized again twice")
        yield _Plane(component, start, rows, columns, down, across)
        start += rows * columns * _BLOCK


def _axis(name: str, pixels: int, factor: int, greatest: int, *, is_mirrored: bool) -> _Axis:
    samples, part = divmod(pixels * factor, greatest)
    if part and is_mirrored:
        raise Impossible(f"its {name} of {pixels} ends within a sample of its colours")
    samples += part > 0
    return _Axis(-(-samples // CELL), samples % CELL, is_mirrored)


@cache
def _mixtures(rest: int) -> "array[float]":
    """What frequencies of old blocks add to those of a new one, when the last old one holds so many samples.

    Sample r of a new block is sample rest - 1 - r of the old one in the mirrored place, or, from `rest` on,
    sample 8 + rest - 1 - r of the one before that. The last new block has none before; its first old row is
    repeated, as encoders do.
    """
    cosines = [
        [
            cos((2 * sample + 1) * frequency * pi / 16) / (2 if frequency else 2 * sqrt(2))
            for sample in range(CELL)
        ]
        for frequency in range(CELL)
    ]
    here = [(r, rest - 1 - r) for r in range(rest)]
    before = [(r, CELL + rest - 1 - r) for r in range(rest, CELL)]
    repeated = [(r, 0) for r in range(rest, CELL)]
    return array(
        "d",
        [
            sum(cosines[new][r] * cosines[old][y] for r, y in pairs)
            for pairs in (here, before, here + repeated)
            for old in range(CELL)
            for new in range(CELL)
        ],
    )


def _quantization_segment(number: int, steps: Sequence[int]) -> bytes:
    is_wide = max(steps) > 255  # noqa: PLR2004 what a byte holds
    size = 2 if is_wide else 1
    return jpeg.written_segment(
        jpeg.DQT, bytes([is_wide << 4 | number]) + b"".join(step.to_bytes(size, "big") for step in steps)
    )
