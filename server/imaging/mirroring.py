"""Mirroring one direction of a component: how its blocks change places, and what to do when they do not fit.

Source for moving samples against the blocks without decoding these: S.-F. Chang and D. G. Messerschmitt,
"Manipulation and compositing of MC-DCT compressed video", IEEE JSAC 13(1), 1995, section III.
"""

from array import array
from collections.abc import Mapping, Sequence
from functools import cache
from math import cos, pi, sqrt
from typing import NamedTuple

from server.imaging.sequential import CELL, Frame, Impossible, kernel

#: Which bit is set in a power of two, as the kernel looks it up.
NUMBER_OF = bytes(
    number for _, number in sorted(((1 << n) * 0x03F79D71B4CB0A89 % 2**64 >> 58, n) for n in range(64))
)


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
        """Whether blocks only change places."""
        return not (self.is_mirrored and self.rest)

    @property
    def is_reversed(self) -> bool:
        """Whether they do so when they are written."""
        return self.is_mirrored and not self.rest

    def source(self, block: int) -> int:
        """Which old block comes to this place."""
        return self.blocks - 1 - block if self.is_reversed else block


class Axes(NamedTuple):
    """Both directions of one component."""

    down: Axis
    across: Axis

    @property
    def is_exact(self) -> bool:
        """Whether blocks only change places."""
        return self.down.is_exact and self.across.is_exact


def axes_of(frame: Frame, *, is_flipped: bool, is_flopped: bool, must_be_exact: bool) -> Mapping[int, Axes]:
    """The directions of all components, by their numbers.

    Raises:
        Impossible: pixels do it better, or nothing may be rounded and something would be.
    """
    width, height = frame.mcu
    edge = f"the edge of its {frame.width} x {frame.height} pixels is within a block"
    axes = {}
    for component in frame.components.values():
        if height % (CELL * component.down) or width % (CELL * component.across):
            raise Impossible("its colours are coarser by a fraction")
        down = _axis("height", frame.height, component.down, height // CELL, is_mirrored=is_flipped)
        across = _axis("width", frame.width, component.across, width // CELL, is_mirrored=is_flopped)
        both = axes[component.number] = Axes(down, across)
        # For luma it would cost more than pixels, and be no better; twice, it would be worse.
        if not both.is_exact and (must_be_exact or component.number == 0):
            raise Impossible(edge)
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
    """The coefficients of one component, row by row of blocks, each block in the order of coding.

    Attributes:
        coefficients: 64 for each block.
        used: for each block a bit for each coefficient that is not 0.
        rows, columns: how many blocks there are.
    """

    coefficients: memoryview
    used: memoryview
    rows: int
    columns: int

    def mirror(self, axes: Axes, steps: Sequence[int], positions: Sequence[int], *, is_negated: bool) -> None:
        """Mirror it in the direction in which its edge is within its last block.

        Args:
            axes: its directions.
            steps: what each coefficient is multiplied with (quantization).
            positions: which frequency each is of, 8 * down + across.
            is_negated: whether those of odd frequency have changed their sign already.

        Raises:
            Impossible: a coefficient becomes too large.
        """
        is_across = not axes.across.is_exact
        row = self.columns * CELL * CELL
        if is_across:
            axis, lines = axes.across, (self.rows, row, axes.across.blocks, CELL * CELL)
        else:
            axis, lines = axes.down, (self.columns, CELL * CELL, axes.down.blocks, row)
        new, now_used = array("h", [0]) * len(self.coefficients), array("Q", [0]) * len(self.used)
        if not kernel().mirror(
            self.coefficients, new, self.used, now_used, NUMBER_OF, *lines, is_across, bytes(positions),
            array("H", steps), _mixtures(axis.rest, is_negated=is_negated),
        ):  # fmt: skip
            raise Impossible("one of its coefficients becomes too large")
        self.coefficients[:], self.used[:] = memoryview(new), memoryview(now_used)


@cache
def _mixtures(rest: int, *, is_negated: bool) -> "array[float]":
    """What frequencies of old blocks add to those of a new one, when the last old one holds so many samples.

    Sample r of a new block is sample rest - 1 - r of the old one in the mirrored place, or, from `rest` on,
    sample 8 + rest - 1 - r of the one before that. The last new block has none before; its first old row is
    repeated, as encoders do.
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
