"""Turns in which rows become columns: a JPEG is decoded to coefficients, transposed, and encoded again.

Nothing is rounded, unless the edge of the image is within a block of the chroma (see `turn`).

Source: ITU-T T.81, annexes A and F.
"""

from array import array
from collections.abc import Iterator, Sequence
from itertools import product

from PIL.Image import Transpose

from server.imaging.codecs import Data
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.jpeg.markers import DHT, DQT, DRI, SOF0, SOF1, SOS, Jpeg, kept_headers, written_segment
from server.imaging.jpeg.structure import CELL, ZIGZAG, Table, check_blocks, joined
from server.imaging.jpeg.turn import CoefficientTurn, NoCodeError, Plane, check_result, coded, planes_of
from server.imaging.metadata.policy import Policy

_SIGN = 64

#: Where in an old block each coefficient of a new one is, in the order of coding.
_TRANSPOSED = tuple(position % CELL * CELL + position // CELL for position in ZIGZAG)


class Transposition(CoefficientTurn):
    """A turn in which rows become columns."""

    def __init__(
        self, data: Data, markers: Jpeg, transpose: Transpose | None, *, must_be_exact: bool
    ) -> None:
        super().__init__(data, markers, transpose, must_be_exact=must_be_exact)
        if len(self._structure.scans) > 1:
            raise Impossible("its components come one after the other")
        self._scan = self._structure.scans[0]
        check_blocks(self._scan)
        self._planes = planes_of(self._scan, self._axes, self._scan.components)
        self._coefficients, self._used = self._planes[0].coefficients, self._planes[0].used
        self._decode()
        for plane in self._planes:
            if not plane.axes.is_exact:
                steps = self._structure.quantization[plane.component.quantization]
                plane.mirror(_transposed(steps), _TRANSPOSED, is_negated=False)
        self._tables = self._scan.tables
        try:
            self._coded = self._encoded()
        except NoCodeError:
            self._tables = [Table.for_everything(key) for key in self._scan.keys]
            self._coded = self._encoded()

    def _decode(self) -> None:
        """Decode all coefficients, plane by plane, each block in its new order of coding."""
        places = array("q", [place for plane in self._planes for place in plane.places()])
        by_number = sorted(self._planes, key=lambda plane: plane.component.number)
        targets = bytes(target for plane in by_number for target in _targets(plane))
        result = kernel().decode(
            *self._scan.coded(self._data), targets, places, self._coefficients, self._used
        )
        check_result(result)

    def _encoded(self) -> list[bytes]:
        """Encode all coefficients in their new order (A.2.3).

        Raises:
            NoCodeError: a table cannot code them.
        """
        scan = self._scan
        places = array("q")
        for plane in self._planes:
            for column, row in product(range(plane.component.across), range(plane.component.down)):
                first, right, below, across, down = plane.axes.way(plane.component, plane.place, row, column)
                places.extend((first, below, right, down, across))
        pieces = coded(
            kernel().encode, scan.down, scan.across, scan.interval, scan.layout,
            joined(table.codes for table in self._tables), places, self._coefficients, self._used,
        )  # fmt: skip
        return [bytes(piece) for piece in pieces]

    def pieces(self, policy: Policy) -> Iterator[bytes | memoryview]:
        """Yield all segments: the frame header and the tables transposed, and the scan."""
        yield b"\xff\xd8" + kept_headers(self._markers, policy)
        for number, steps in self._structure.quantization.items():
            yield _quantization_segment(number, _transposed(steps))
        for segment in self._markers.segments:
            if segment.marker in (SOF0, SOF1):
                header = bytearray(self._data[segment.start : segment.end])
                header[1:5] = header[3:5] + header[1:3]
                for at in range(7, len(header), 3):
                    header[at] = header[at] >> 4 | header[at] << 4 & 0xF0
                yield written_segment(segment.marker, bytes(header))
        for key, table in zip(self._scan.keys, self._tables, strict=True):
            yield written_segment(DHT, bytes([key]) + table.raw)
        if self._scan.interval:
            yield written_segment(DRI, self._scan.interval.to_bytes(2, "big"))
        chosen = bytes(self._data[self._scan.segment.start : self._scan.segment.end])
        yield written_segment(SOS, chosen)
        yield from self._coded
        yield b"\xff\xd9"


def _targets(plane: Plane) -> Iterator[int]:
    """Yield which coefficient of a new block each of an old one becomes, and whether its sign changes."""
    for old, new in zip(ZIGZAG, _TRANSPOSED, strict=True):
        row, column = divmod(old, CELL)
        is_negated = (row * plane.axes.down.is_reversed + column * plane.axes.across.is_reversed) % 2
        yield ZIGZAG.index(new) + _SIGN * is_negated


def _transposed(steps: Sequence[int]) -> Sequence[int]:
    """Transpose a quantization table, for blocks whose rows became columns."""
    by_position = dict(zip(ZIGZAG, steps, strict=True))
    return [by_position[position] for position in _TRANSPOSED]


def _quantization_segment(number: int, steps: Sequence[int]) -> bytes:
    is_wide = max(steps) > 255  # noqa: PLR2004 what a byte holds
    size = 2 if is_wide else 1
    return written_segment(
        DQT, bytes([is_wide << 4 | number]) + b"".join(step.to_bytes(size, "big") for step in steps)
    )
