"""How an AV1 image is coded, from its headers (AV1 Bitstream & Decoding Process Specification)."""

from collections.abc import Iterator
from dataclasses import dataclass

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # 6.2.2
_KEY_FRAME, _INTRA_ONLY_FRAME = 0, 2
_SELECTED = 2  # in each frame, rather than for all of them
_ALL_FRAMES = 0xFF
_PROFESSIONAL = 2  # the profile of 4:2:2 and of 12 bits (6.4.1)

#: What headers may have up to the quantizer, in bytes.
_HEADER_BYTES = 256

_MAX_TILE_WIDTH = 4096  # 3
_MAX_TILE_AREA = 4096 * 2304
_MAX_TILES_LOG2 = 64


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence header (5.5).

    Args:
        size: width and height of the largest frame, in pixels.
        depth: bits per sample.
        is_monochrome: whether there is luma alone.
        subsampling: whether chroma has half the columns, and half the rows.
        codes: primaries, transfer function and matrix (ISO/IEC 23091-2); 2 is unspecified.
        is_full_range: whether samples use all their values.
    """

    size: tuple[int, int]
    depth: int
    is_monochrome: bool
    subsampling: tuple[bool, bool]
    codes: tuple[int, int, int]
    is_full_range: bool


@dataclass(slots=True)
class _State:
    """What a frame header needs of its sequence header."""

    is_reduced: bool = False
    has_decoder_model: bool = False
    width_bits: int = 0
    height_bits: int = 0
    size: tuple[int, int] = (0, 0)
    frame_id_bits: int = 0
    large_blocks: bool = False
    screen_content: int = _SELECTED
    integer_vectors: int = _SELECTED
    order_hint_bits: int = 0
    has_superres: bool = False


class _Bits:
    """Numbers of so many bits each, highest bit first (4.10).

    Args:
        data: the bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        """Read an unsigned number.

        Raises:
            ValueError: there are too few bits.
        """
        self._left -= count
        if self._left < 0:
            raise ValueError("a header ends too early")
        return self._value >> self._left & (1 << count) - 1

    def flag(self) -> bool:
        """Read one bit."""
        return bool(self.take(1))

    def below(self, limit: int) -> int:
        """Read a number less than `limit` (4.10.7)."""
        width = limit.bit_length()
        short = (1 << width) - limit
        value = self.take(width - 1)
        return value if value < short else (value << 1) - short + self.take(1)

    def increment(self, value: int, most: int) -> int:
        """Add one for each bit that is set, up to a limit."""
        while value < most and self.flag():
            value += 1
        return value


def read_headers(data: bytes) -> tuple[Sequence, int | None]:
    """Read the first sequence header, and the quantizer of the first frame.

    Args:
        data: what the coded image begins with.

    Returns:
        The header, and `base_q_idx`, 0 finest to 255 (5.9.12); None where that cannot be told.

    Raises:
        ValueError, IndexError: the headers are damaged, or not there.
    """
    sequence: tuple[Sequence, _State] | None = None
    for kind, body in _units(data):
        if kind == _SEQUENCE_HEADER and sequence is None:
            sequence = _sequence(_Bits(body))
        elif kind in {_FRAME_HEADER, _FRAME} and sequence is not None:
            return sequence[0], _quantizer(_Bits(body), sequence[1])
    if sequence is None:
        raise ValueError("there is no sequence header")
    return sequence[0], None


def _units(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and beginning of each open bitstream unit (5.3)."""
    at = 0
    while at < len(data):
        head = data[at]
        at += 2 if head & 4 else 1  # with an extension
        size = len(data) - at
        if head & 2:
            size, at = _leb128(data, at)
        yield head >> 3 & 15, data[at : at + min(size, _HEADER_BYTES)]
        at += size


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    """Read a number of up to eight bytes, and return where it ends (4.10.5)."""
    value = 0
    for index in range(8):
        value |= (data[at + index] & 0x7F) << 7 * index
        if not data[at + index] & 0x80:
            return value, at + index + 1
    raise ValueError("a size is too long")


def _sequence(bits: _Bits) -> tuple[Sequence, _State]:
    """Read a sequence header (5.5.1)."""
    state = _State()
    profile = bits.take(3)
    bits.take(1)  # a still picture
    state.is_reduced = bits.flag()
    if state.is_reduced:
        bits.take(5)  # level
    else:
        _operating_points(bits, state)
    state.width_bits, state.height_bits = bits.take(4) + 1, bits.take(4) + 1
    state.size = (bits.take(state.width_bits) + 1, bits.take(state.height_bits) + 1)
    if not state.is_reduced and bits.flag():
        state.frame_id_bits = bits.take(4) + bits.take(3) + 3
    state.large_blocks = bits.flag()
    bits.take(2)  # tools of intra prediction
    if not state.is_reduced:
        _inter_tools(bits, state)
    state.has_superres = bits.flag()
    bits.take(2)  # filters
    return _colours(bits, state.size, profile), state


def _operating_points(bits: _Bits, state: _State) -> None:
    """Pass over timing and operating points (5.5.1 to 5.5.4)."""
    delay_bits = 0
    if bits.flag():
        bits.take(64)
        if bits.flag():  # equal pictures
            zeros = 0
            while not bits.flag():
                zeros += 1
            bits.take(zeros)
        state.has_decoder_model = bits.flag()
        if state.has_decoder_model:
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_display_delay = bits.flag()
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # noqa: PLR2004 levels from 4.0 on have a tier
            bits.take(1)
        if state.has_decoder_model and bits.flag():
            bits.take(2 * delay_bits + 1)
        if has_display_delay and bits.flag():
            bits.take(4)


def _inter_tools(bits: _Bits, state: _State) -> None:
    """Read what frames that refer to others may use (5.5.1)."""
    bits.take(4)
    has_order_hint = bits.flag()
    if has_order_hint:
        bits.take(2)
    state.screen_content = _SELECTED if bits.flag() else bits.take(1)
    if state.screen_content:
        state.integer_vectors = _SELECTED if bits.flag() else bits.take(1)
    if has_order_hint:
        state.order_hint_bits = bits.take(3) + 1


def _colours(bits: _Bits, size: tuple[int, int], profile: int) -> Sequence:
    """Read depth, subsampling and colour codes (5.5.2)."""
    depth = 8
    if bits.flag():
        depth = 12 if profile == _PROFESSIONAL and bits.flag() else 10
    is_monochrome = profile != 1 and bits.flag()
    codes = (bits.take(8), bits.take(8), bits.take(8)) if bits.flag() else (2, 2, 2)
    is_rgb = codes == (1, 13, 0) and not is_monochrome  # sRGB as red, green and blue
    is_full_range = is_rgb or bits.flag()
    if is_monochrome:
        subsampling = (True, True)
    elif is_rgb or profile != _PROFESSIONAL:
        subsampling = (profile == 0 and not is_rgb,) * 2
    elif depth == 12:  # noqa: PLR2004
        columns = bits.flag()
        subsampling = (columns, columns and bits.flag())
    else:
        subsampling = (True, False)
    return Sequence(size, depth, is_monochrome, subsampling, codes, is_full_range)


def _quantizer(bits: _Bits, state: _State) -> int | None:
    """Read the header of a frame up to `base_q_idx` (5.9.2); None for one that refers to others."""
    refreshes_all = is_resilient = True
    if state.has_decoder_model:
        return None
    if not state.is_reduced:
        is_there = bits.flag()
        kind = _KEY_FRAME if is_there else bits.take(2)
        if is_there or kind not in {_KEY_FRAME, _INTRA_ONLY_FRAME}:
            return None
        is_shown = bits.flag()
        if not is_shown:
            bits.take(1)
        refreshes_all = kind == _KEY_FRAME and is_shown
        is_resilient = refreshes_all or bits.flag()
    keeps_probabilities = bits.flag()
    has_screen_content = bits.flag() if state.screen_content == _SELECTED else bool(state.screen_content)
    if has_screen_content and state.integer_vectors == _SELECTED:
        bits.take(1)
    bits.take(state.frame_id_bits)
    has_own_size = not state.is_reduced and bits.flag()
    bits.take(state.order_hint_bits)
    if not refreshes_all and bits.take(8) != _ALL_FRAMES and is_resilient:
        bits.take(8 * state.order_hint_bits)
    size, is_scaled = _frame_size(bits, state, has_own_size=has_own_size)
    if has_screen_content and not is_scaled:
        bits.take(1)
    if not state.is_reduced and not keeps_probabilities:
        bits.take(1)
    _tiles(bits, size, large_blocks=state.large_blocks)
    return bits.take(8)


def _frame_size(bits: _Bits, state: _State, *, has_own_size: bool) -> tuple[tuple[int, int], bool]:
    """Return the size as it is coded, and whether columns are to be interpolated (5.9.5 to 5.9.8)."""
    width, height = state.size
    if has_own_size:
        width, height = bits.take(state.width_bits) + 1, bits.take(state.height_bits) + 1
    is_scaled = state.has_superres and bits.flag()
    if is_scaled:
        denominator = bits.take(3) + 9
        width = (width * 8 + denominator // 2) // denominator
    if bits.flag():  # another size to show it
        bits.take(32)
    return (width, height), is_scaled


def _tiles(bits: _Bits, size: tuple[int, int], *, large_blocks: bool) -> None:
    """Pass over how a frame is divided into tiles (5.9.15)."""
    block_log2 = 7 if large_blocks else 6
    columns, rows = (-(-side // (1 << block_log2)) for side in size)
    widest = _MAX_TILE_WIDTH >> block_log2
    largest = _MAX_TILE_AREA >> 2 * block_log2
    fewest_columns = _log2(widest, columns)
    fewest = max(fewest_columns, _log2(largest, columns * rows))
    if bits.flag():  # tiles of one size
        columns_log2 = bits.increment(fewest_columns, _log2(1, min(columns, _MAX_TILES_LOG2)))
        rows_log2 = bits.increment(max(fewest - columns_log2, 0), _log2(1, min(rows, _MAX_TILES_LOG2)))
    else:
        widths = _own_sizes(bits, columns, widest)
        area = columns * rows >> fewest + 1 if fewest else columns * rows
        heights = _own_sizes(bits, rows, max(area // max(widths), 1))
        columns_log2, rows_log2 = _log2(1, len(widths)), _log2(1, len(heights))
    if columns_log2 or rows_log2:
        bits.take(columns_log2 + rows_log2 + 2)


def _own_sizes(bits: _Bits, total: int, most: int) -> list[int]:
    """Read sizes one by one until they fill the side."""
    found: list[int] = []
    while total:
        found.append(bits.below(min(total, most)) + 1)
        total -= found[-1]
        if len(found) > _MAX_TILES_LOG2:
            raise ValueError("there are too many tiles")
    return found


def _log2(unit: int, target: int) -> int:
    """Return how often a unit must be doubled until it is as large as the target (5.9.16)."""
    power = 0
    while unit << power < target:
        power += 1
    return power
