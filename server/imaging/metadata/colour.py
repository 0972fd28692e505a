"""Colours that are named without a profile: code points, or a gamma and primaries; and profiles of them.

Source: ITU-T H.273, 8.1 and 8.2 (code points); ICC.1:2022 (profiles); PNG 3rd edition, 4.4 and 11.3.2;
B. Lindbloom, "Chromatic adaptation" (Bradford) and "RGB/XYZ matrices".
"""

import struct
from dataclasses import dataclass
from functools import cache

#: A matrix, row by row.
_Matrix = tuple[tuple[float, float, float], ...]
#: Chromaticities x and y of red, green, blue and white.
Primaries = tuple[float, float, float, float, float, float, float, float]

_D65 = (0.3127, 0.3290)
_C = (0.310, 0.316)

#: Primaries by their code (H.273, table 2).
_PRIMARIES: dict[int, Primaries] = {
    1: (0.64, 0.33, 0.30, 0.60, 0.15, 0.06, *_D65),
    4: (0.67, 0.33, 0.21, 0.71, 0.14, 0.08, *_C),
    5: (0.64, 0.33, 0.29, 0.60, 0.15, 0.06, *_D65),
    6: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *_D65),
    7: (0.63, 0.34, 0.31, 0.595, 0.155, 0.07, *_D65),
    8: (0.681, 0.319, 0.243, 0.692, 0.145, 0.049, *_C),
    9: (0.708, 0.292, 0.17, 0.797, 0.131, 0.046, *_D65),
    11: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.314, 0.351),
    12: (0.68, 0.32, 0.265, 0.69, 0.15, 0.06, *_D65),
    22: (0.63, 0.34, 0.295, 0.605, 0.155, 0.077, *_D65),
}

#: How light follows from a signal, by the code of the transfer function (H.273, table 3): the numbers of a
#: parametric curve (ICC.1:2022, 10.18), one or five. Those of video (BT.709) tell how a camera made the
#: signal, and stills with them are shown like sRGB.
_SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CURVES: dict[int, tuple[float, ...]] = {
    **dict.fromkeys((1, 6, 13, 14, 15), _SRGB),
    4: (2.2,),
    5: (2.8,),
    8: (1.0,),
}
#: Transfer functions that no matrix profile describes: logarithmic, of wide gamuts, of film, and of HDR.
_OTHER_CURVES = {
    7: "SMPTE 240M",
    9: "logarithmic",
    10: "logarithmic",
    11: "xvYCC",
    12: "BT.1361",
    16: "HDR (PQ)",
    17: "SMPTE 428",
    18: "HDR (HLG)",
}

#: Of PNG, in hundred thousandths: the gamma that stands for sRGB (11.3.2.2), and how near another may be.
_SRGB_GAMMA, _GAMMA_TOLERANCE = 45455, 500
_PRIMARY_TOLERANCE = 0.002

_BRADFORD: _Matrix = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_D50 = (0.9642, 1.0, 0.8249)


@dataclass(frozen=True, slots=True)
class Colours:
    """What the samples of an image mean.

    Args:
        primaries: of red, green, blue and white.
        curve: how light follows from a signal, as in a profile; empty when no profile can say it.
        codes: of the primaries and the transfer function; None when there are none for them.
        oddity: what no profile can say, for a sentence; empty for none.
    """

    primaries: Primaries
    curve: tuple[float, ...]
    codes: tuple[int, int] | None = None
    oddity: str = ""

    @property
    def is_srgb(self) -> bool:
        """Tell whether they are what viewers assume anyway."""
        return not self.oddity and (self.primaries, self.curve) == (_PRIMARIES[1], _SRGB)

    def profile(self, *, is_gray: bool) -> bytes:
        """Make a profile of them, in which nothing else is said; it needs a curve."""
        return _profile(self.primaries, self.curve, is_gray=is_gray)


def from_codes(primaries: int, transfer: int, *, is_full_range: bool = True) -> Colours:
    """Return what two codes mean. Those that are not specified, or not known, count as those of sRGB.

    Args:
        primaries: a code.
        transfer: a code.
        is_full_range: whether black is 0 and white the highest number.
    """
    oddity = _OTHER_CURVES.get(transfer, "") if is_full_range else "of narrow range"
    curve = () if oddity else _CURVES.get(transfer, _SRGB)
    return Colours(_PRIMARIES.get(primaries, _PRIMARIES[1]), curve, (primaries, transfer), oddity)


def from_gamma(gamma: int, primaries: Primaries | None) -> Colours | None:
    """Return what a PNG says with a gamma and primaries; None for sRGB, and for what no profile can express.

    Primaries without a gamma mean nothing, as in browsers.

    Args:
        gamma: times 100,000; 0 for none.
        primaries: None for those of sRGB.
    """
    if not gamma:
        return None
    where = primaries or _PRIMARIES[1]
    if not all(0 < y <= 1 for y in where[1::2]) or _area(where) < _PRIMARY_TOLERANCE:
        return None
    is_near = all(abs(a - b) <= _PRIMARY_TOLERANCE for a, b in zip(where, _PRIMARIES[1], strict=True))
    if is_near and abs(gamma - _SRGB_GAMMA) <= _GAMMA_TOLERANCE:
        return None
    colours = Colours(where, (100_000 / gamma,))
    try:
        colours.profile(is_gray=False)
    except (struct.error, ArithmeticError):  # a number that a profile cannot hold, or a division by 0
        return None
    return colours


def _area(primaries: Primaries) -> float:
    """Return the area of the triangle of the primaries; without any there are no colours."""
    xr, yr, xg, yg, xb, yb, *_ = primaries
    return abs((xg - xr) * (yb - yr) - (xb - xr) * (yg - yr)) / 2


def _times(matrix: _Matrix, vector: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)


def _product(one: _Matrix, other: _Matrix) -> _Matrix:
    columns = [_times(one, column) for column in zip(*other, strict=True)]
    return tuple(zip(*columns, strict=True))


def _inverse(matrix: _Matrix) -> _Matrix:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    rows = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    determinant = a * rows[0][0] + b * rows[1][0] + c * rows[2][0]
    return tuple((x / determinant, y / determinant, z / determinant) for x, y, z in rows)


def _xyz(x: float, y: float) -> tuple[float, float, float]:
    return x / y, 1.0, (1 - x - y) / y


def _adaptation(white: tuple[float, float, float]) -> _Matrix:
    """Return the matrix that takes colours under a white to those under D50 (Bradford)."""
    cones = zip(_times(_BRADFORD, _D50), _times(_BRADFORD, white), strict=True)
    gains = [wanted / given for wanted, given in cones]
    scaled: _Matrix = tuple(
        (x * gain, y * gain, z * gain) for (x, y, z), gain in zip(_BRADFORD, gains, strict=True)
    )
    return _product(_inverse(_BRADFORD), scaled)


def _fixed(*numbers: float) -> bytes:
    """Encode numbers with sixteen fractional bits (ICC.1:2022, 4.6)."""
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _text(text: str) -> bytes:
    """Encode ASCII in one language (ICC.1:2022, 10.15)."""
    # UTF-16 by hand: its codec is a module, which an engine in the jail cannot load.
    encoded = bytes(half for code in text.encode("ascii") for half in (0, code))
    return b"mluc" + struct.pack(">4xII4sII", 1, 12, b"enUS", len(encoded), 28) + encoded


@cache
def _profile(primaries: Primaries, curve: tuple[float, ...], *, is_gray: bool) -> bytes:
    """Make a profile of a gray level or of three primaries (ICC.1:2022, 7 and 8.3)."""
    xr, yr, xg, yg, xb, yb, xw, yw = primaries
    white = _xyz(xw, yw)
    to_d50 = _adaptation(white)
    kind = {1: 0, 5: 3}[len(curve)]
    trc = b"para" + struct.pack(">4xHxx", kind) + _fixed(*curve)
    tags = {
        b"desc": _text("Gray" if is_gray else "RGB"),
        b"cprt": _text("CC0"),
        b"wtpt": b"XYZ \0\0\0\0" + _fixed(*_D50),
        b"chad": b"sf32\0\0\0\0" + b"".join(_fixed(*row) for row in to_d50),
    }
    if is_gray:
        tags[b"kTRC"] = trc
    else:
        columns: _Matrix = tuple(zip(_xyz(xr, yr), _xyz(xg, yg), _xyz(xb, yb), strict=True))
        gains = _times(_inverse(columns), white)
        for name, xyz, gain in zip((b"r", b"g", b"b"), zip(*columns, strict=True), gains, strict=True):
            tags[name + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(
                *_times(to_d50, tuple(gain * value for value in xyz))
            )
            tags[name + b"TRC"] = trc
    return _laid_out(tags, b"GRAY" if is_gray else b"RGB ")


def _laid_out(tags: dict[bytes, bytes], space: bytes) -> bytes:
    """Encode the header, the table and the elements, each of which stands there once."""
    start = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    places: dict[bytes, int] = {}
    for name, data in tags.items():
        if data not in places:
            places[data] = start + len(body)
            body += data + bytes(-len(data) % 4)
        table += name + struct.pack(">II", places[data], len(data))
    head = struct.pack(">I4sI4s4s4s", start + len(body), b"", 0x0430_0000, b"mntr", space, b"XYZ ")
    head += struct.pack(">6H4s", 2000, 1, 1, 0, 0, 0, b"acsp") + bytes(28) + _fixed(*_D50)
    return head.ljust(128, b"\0") + table + body
