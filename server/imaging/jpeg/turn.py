"""What both turns of a JPEG by its coefficients share: how blocks change places, and how edges are mirrored.

Source for moving samples against the blocks without decoding these: S.-F. Chang and D. G. Messerschmitt,
"Manipulation and compositing of MC-DCT compressed video", IEEE JSAC 13(1), 1995, section III.
"""

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from itertools import product
from math import cos, pi, sqrt
from typing import NamedTuple

from PIL.Image import Transpose

from server.imaging.codecs import Data, Format, damaged
from server.imaging.geometry import mirrored_axes
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.jpeg.markers import Jpeg
from server.imaging.jpeg.structure import BLOCK, CELL, Component, Frame, Scan, read_structure
from server.imaging.metadata.policy import Policy

#: How much is coded at once, in bytes.
_ROOM_BYTES = 1 << 18


class Axis(NamedTuple):
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
        """Tell whether blocks only change places."""
        return not (self.is_mirrored and self.rest)

    @property
    def is_reversed(self) -> bool:
        """Tell whether blocks are written in reverse."""
        return self.is_mirrored and not self.rest

    def source(self, block: int) -> int:
        """Return which old block comes to this place."""
        return self.blocks - 1 - block if self.is_reversed else block

    def real(self, block: int, step: int) -> int:
        """Count the blocks that hold samples, from `block` on in steps of `step`."""
        return max(0, -(-(self.blocks - block) // step))


class Axes(NamedTuple):
    """Both directions of one component."""

    down: Axis
    across: Axis

    @property
    def is_exact(self) -> bool:
        """Tell whether blocks only change places."""
        return self.down.is_exact and self.across.is_exact

    @property
    def still(self) -> "Axes":
        """Return the same axes, not mirrored."""
        return Axes(*(axis._replace(is_mirrored=False) for axis in self))

    def way(
        self, component: Component, place: Callable[[int, int], int], row: int, column: int
    ) -> tuple[int, int, int, int, int]:
        """Return where the blocks at one place in all MCUs come from, as the kernel expects it.

        Args:
            component: the component.
            place: returns where the block of a row and a column is.
            row: of the block in the first MCU.
            column: of it.
        """
        across, down = component.across, component.down
        first = place(self.down.source(row), self.across.source(column))
        right = place(self.down.source(row), self.across.source(column + across))
        below = place(self.down.source(row + down), self.across.source(column))
        return (
            first,
            right - first,
            below - first,
            self.across.real(column, across),
            self.down.real(row, down),
        )


def _axes_of(frame: Frame, transpose: Transpose | None, *, must_be_exact: bool) -> Mapping[int, Axes]:
    """Return the axes of all components, by their numbers.

    Raises:
        Impossible: pixels give a better result, or nothing may be rounded and something would be.
    """
    is_flipped, is_flopped = mirrored_axes(transpose)
    width, height = frame.mcu
    axes = {}
    for component in frame.components.values():
        if height % (CELL * component.down) or width % (CELL * component.across):
            raise Impossible("its colours are coarser by a fraction")
        down = _axis("height", frame.height, component.down, height // CELL, is_mirrored=is_flipped)
        across = _axis("width", frame.width, component.across, width // CELL, is_mirrored=is_flopped)
        both = axes[component.number] = Axes(down, across)
        # For luma this would cost more than pixels and be no better; in both directions it would be worse.
        if not both.is_exact and (must_be_exact or component.number == 0):
            side = f"height of {frame.height}" if across.is_exact else f"width of {frame.width}"
            raise Impossible(f"its stored {side} is no multiple of {height if across.is_exact else width}")
        if not (down.is_exact or across.is_exact):
            raise Impossible("its colours would have to be quantized again twice")
    return axes


def _axis(name: str, pixels: int, factor: int, greatest: int, *, is_mirrored: bool) -> Axis:
    samples, part = divmod(pixels * factor, greatest)
    if part and is_mirrored:
        raise Impossible(f"its {name} of {pixels} ends within a sample of its colours")
    samples += part > 0
    return Axis(-(-samples // CELL), samples % CELL, is_mirrored)


class Plane(NamedTuple):
    """The coefficients of one component, among those of several.

    Attributes:
        component: the component.
        axes: its directions.
        rows, columns: its blocks, including those that only fill an MCU.
        start: where its first coefficient is.
        coefficients: of all components, 64 for each block, row by row of blocks.
        used: for each block a bit for each coefficient that is not 0.
    """

    component: Component
    axes: Axes
    rows: int
    columns: int
    start: int
    coefficients: "array[int]"
    used: "array[int]"

    def place(self, row: int, column: int) -> int:
        """Return where the first coefficient of a block is."""
        return self.start + (row * self.columns + column) * BLOCK

    def places(self) -> Iterator[int]:
        """Yield where the blocks of each MCU are before they are turned, as the kernel expects it."""
        still = self.axes.still
        for row, column in product(range(self.component.down), range(self.component.across)):
            yield from still.way(self.component, self.place, row, column)

    def mirror(self, steps: Sequence[int], positions: Sequence[int], *, is_negated: bool) -> None:
        """Mirror the plane in the direction in which its edge is within its last block.

        Args:
            steps: what each coefficient is multiplied with (quantization).
            positions: which frequency each is of, 8 * down + across.
            is_negated: whether those of odd frequency already have the opposite sign.

        Raises:
            Impossible: a coefficient becomes too large.
        """
        is_across = not self.axes.across.is_exact
        row = self.columns * BLOCK
        if is_across:
            axis, lines = self.axes.across, (self.rows, row, self.axes.across.blocks, BLOCK)
        else:
            axis, lines = self.axes.down, (self.columns, BLOCK, self.axes.down.blocks, row)
        size = self.rows * row
        new, now_used = array("h", [0]) * size, array("Q", [0]) * (size // BLOCK)
        with memoryview(self.coefficients) as all_of_them, memoryview(self.used) as which:
            old = all_of_them[self.start : self.start + size]
            used = which[self.start // BLOCK : (self.start + size) // BLOCK]
            if not kernel().mirror(
                old, new, used, now_used, *lines, is_across, bytes(positions), array("H", steps),
                _mixtures(axis.rest, is_negated=is_negated),
            ):  # fmt: skip
                raise Impossible("it has a coefficient that becomes too large")
            old[:], used[:] = memoryview(new), memoryview(now_used)


def planes_of(scan: Scan, axes: Mapping[int, Axes], components: Sequence[Component]) -> list[Plane]:
    """Allocate planes of zeros for components of a scan, one after the other in the same arrays."""
    sizes = [(scan.down * component.down, scan.across * component.across) for component in components]
    blocks = sum(rows * columns for rows, columns in sizes)
    coefficients, used = array("h", [0]) * (blocks * BLOCK), array("Q", [0]) * blocks
    planes, start = [], 0
    for component, (rows, columns) in zip(components, sizes, strict=True):
        planes.append(Plane(component, axes[component.number], rows, columns, start, coefficients, used))
        start += rows * columns * BLOCK
    return planes


class CoefficientTurn(ABC):
    """A JPEG to be turned: read by the constructor, written piece by piece.

    Args:
        data: the file.
        markers: its markers.
        transpose: the turn.
        must_be_exact: whether rounding is not allowed.

    Attributes:
        is_exact: whether nothing was rounded.

    Raises:
        Impossible: this file and this turn need pixels.
        DamagedImage: its data ends before the image does.
    """

    def __init__(
        self, data: Data, markers: Jpeg, transpose: Transpose | None, *, must_be_exact: bool
    ) -> None:
        self._data = data
        self._markers = markers
        self._structure = read_structure(data, markers.segments)
        self._axes = _axes_of(self._structure.frame, transpose, must_be_exact=must_be_exact)
        self.is_exact = all(axes.is_exact for axes in self._axes.values())

    @abstractmethod
    def pieces(self, policy: Policy) -> Iterator[bytes | memoryview]:
        """Yield the file of the turned image.

        Each piece is valid until the next one is asked for.
        """


class NoCodeError(Exception):
    """A Huffman table has no code for a symbol."""


def check_result(result: int) -> int:
    """Return what the kernel returned, unless it is an error.

    Raises:
        DamagedImage: the data ends before the image does.
        NoCodeError: a table has no code for a symbol.
        Impossible: there is another fault, which a decoder may tolerate.
    """
    if result == kernel().ENDS_EARLY:
        raise damaged(Format.JPEG, "its pixels end early")
    if result == kernel().NO_CODE:
        raise NoCodeError
    if result < 0:
        raise Impossible(f"it has {kernel().FAULTS[result]}")
    return result


def coded(code: Callable[..., int], across: int, down: int, *more: object) -> Iterator[memoryview]:
    """Encode a scan, piece by piece; each piece is valid until the next one is asked for.

    Args:
        code: the function of the kernel that encodes it.
        across: MCUs in a row.
        down: how many rows.
        more: the function's other arguments.

    Raises:
        NoCodeError, Impossible: as `check_result`.
    """
    state, room = array("q", [0]) * 7, bytearray(_ROOM_BYTES)
    while state[0] < across * down:
        yield memoryview(room)[: check_result(code(state, room, across, down, *more))]


@cache
def _mixtures(rest: int, *, is_negated: bool) -> "array[float]":
    """Return what frequencies of old blocks add to those of a new one.

    Args:
        rest: how many samples the last old block holds.
        is_negated: whether old coefficients of odd frequency already have the opposite sign.

    Sample r of a new block is sample rest - 1 - r of the old one in the mirrored place, or, from `rest` on,
    sample 8 + rest - 1 - r of the one before that. For the last new block there is none before; the first old
    row is repeated, as encoders do.
    """
    signs = [-1 if is_negated and frequency % 2 else 1 for frequency in range(CELL)]
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
            signs[old] * sum(cosines[new][r] * cosines[old][y] for r, y in pairs)
            for pairs in (here, before, here + repeated)
            for old in range(CELL)
            for new in range(CELL)
        ],
    )
