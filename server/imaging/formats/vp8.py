"""The quality of a lossy WebP, estimated from the header of its VP8 frame (RFC 6386)."""

_MAX_QUANTIZER = 127
_SEGMENTS = 4


class _BoolDecoder:
    """The arithmetic decoder of VP8, for header bits only (RFC 6386, 7.3)."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 2
        self._value = int.from_bytes(data[:2].ljust(2, b"\0"), "big")
        self._range = 255
        self._shifted = 0

    def flag(self) -> bool:
        """Read one bit that is as likely to be set as not."""
        split = 1 + ((self._range - 1) * 128 >> 8)
        is_set = self._value >= split << 8
        if is_set:
            self._range -= split
            self._value -= split << 8
        else:
            self._range = split
        while self._range < 128:  # noqa: PLR2004 - the range is kept in eight bits
            self._value <<= 1
            self._range <<= 1
            self._shifted += 1
            if self._shifted == 8:  # noqa: PLR2004 - a byte is used up
                self._shifted = 0
                if self._position < len(self._data):
                    self._value |= self._data[self._position]
                self._position += 1
        return is_set

    def number(self, bits: int) -> int:
        """Read an unsigned number, highest bit first."""
        value = 0
        for _ in range(bits):
            value = value << 1 | self.flag()
        return value

    def optional(self, bits: int) -> int:
        """Read a signed number that may be left out, which means 0."""
        if not self.flag():
            return 0
        value = self.number(bits)
        return -value if self.flag() else value


def _quantizers(frame: bytes) -> list[int]:
    """Read the quantizers of a key frame, one per segment, 0 finest to 127 (RFC 6386, 9.2 to 9.6, 19.2)."""
    bits = _BoolDecoder(frame[10:])
    bits.number(2)  # colour space and clamping
    steps: list[int] = []
    is_absolute = False
    if bits.flag():
        has_map, has_data = bits.flag(), bits.flag()
        if has_data:
            is_absolute = bits.flag()
            steps = [bits.optional(7) for _ in range(_SEGMENTS)]
            for _ in range(_SEGMENTS):
                bits.optional(6)  # loop filter
        if has_map:
            for _ in range(_SEGMENTS - 1):
                if bits.flag():
                    bits.number(8)
    bits.number(1 + 6 + 3)  # loop filter: type, level, sharpness
    if bits.flag() and bits.flag():
        for _ in range(8):
            bits.optional(6)  # loop filter adjustments
    bits.number(2)  # number of partitions
    base = bits.number(7)
    if not steps:
        return [base]
    return [min(_MAX_QUANTIZER, max(0, step if is_absolute else base + step)) for step in steps]


def estimated_quality(frame: bytes) -> int:
    """Return the quality, 1 to 100, at which libwebp uses these quantizers, by the inverse of its formula.

    Args:
        frame: the payload of a VP8 chunk.
    """
    quantizers = _quantizers(frame)
    # The encoder spreads its segments around the wanted quantizer, most of them on the coarse side.
    wanted = (sum(quantizers) / len(quantizers) + min(quantizers)) / 2
    fineness = 1 - wanted / _MAX_QUANTIZER
    linear = fineness**3
    quality = linear * 1.5 if linear < 0.5 else (linear + 1) / 2  # noqa: PLR2004 - where its two slopes meet
    return min(100, max(1, round(100 * quality)))
