"""Colour profiles (ICC): whether one is sRGB, which a viewer assumes anyway."""

import struct
from collections.abc import Sequence

_HEADER_BYTES = 128
_MAX_TAGS = 100

#: The primaries of sRGB adapted to D50, as X, Y and Z (IEC 61966-2-1, ICC.1:2022 annex E).
_PRIMARIES: dict[bytes, tuple[float, float, float]] = {
    b"rXYZ": (0.4361, 0.2225, 0.0139),
    b"gXYZ": (0.3851, 0.7169, 0.0971),
    b"bXYZ": (0.1431, 0.0606, 0.7141),
}
_PRIMARY_TOLERANCE = 0.003

#: The light that sRGB gives for three levels of signal.
_LIGHT = {0.25: 0.0509, 0.5: 0.2140, 0.75: 0.5225}
_LIGHT_TOLERANCE = 0.004

#: How many numbers each type of parametric curve has (ICC.1:2022, 10.18).
_PARAMETERS = (1, 3, 4, 5, 7)


def _tags(icc: bytes) -> dict[bytes, bytes]:
    """Read the tagged elements of a profile (ICC.1:2022, 7.3)."""
    (count,) = struct.unpack_from(">L", icc, _HEADER_BYTES)
    entries = [
        struct.unpack_from(">4sLL", icc, _HEADER_BYTES + 4 + 12 * index)
        for index in range(min(count, _MAX_TAGS))
    ]
    return {signature: icc[offset : offset + length] for signature, offset, length in entries}


def _fixed(data: bytes, position: int, count: int) -> tuple[float, ...]:
    """Read numbers with sixteen fractional bits (ICC.1:2022, 4.6)."""
    return tuple(number / 65536 for number in struct.unpack_from(f">{count}l", data, position))


def _parametric(data: bytes, signal: float) -> float:
    (kind,) = struct.unpack_from(">H", data, 8)
    gamma, *more = _fixed(data, 12, _PARAMETERS[kind])
    a, b, c, d, e, f = (*more, 0, 0, 0, 0, 0, 0)[:6] if more else (1, 0, 0, 0, 0, 0)
    if kind in (0, 1, 2):
        return float((a * signal + b) ** gamma + (c if kind == 2 else 0))  # noqa: PLR2004 - the type number
    return float((a * signal + b) ** gamma + e if signal >= d else c * signal + f)


def _tabled(data: bytes, signal: float) -> float:
    (count,) = struct.unpack_from(">L", data, 8)
    if count == 0:
        return signal
    if count == 1:
        (gamma,) = struct.unpack_from(">H", data, 12)
        return float(signal ** (gamma / 256))
    (level,) = struct.unpack_from(">H", data, 12 + 2 * round(signal * (count - 1)))
    return float(level / 65535)


def _light(curve: bytes, signal: float) -> float:
    """Apply a tone curve: return the light for a signal, both from 0 to 1 (ICC.1:2022, 10.6 and 10.18)."""
    return _parametric(curve, signal) if curve[:4] == b"para" else _tabled(curve, signal)


def _near(numbers: Sequence[float], wanted: Sequence[float], tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(numbers, wanted, strict=True))


def is_srgb(icc: bytes) -> bool:
    """Tell whether a profile is sRGB by its numbers, so that dropping it changes nothing a person sees.

    Its name does not count: some profiles have the name and mean something else. A profile made of look-up
    tables, or one that cannot be read, is not sRGB.
    """
    try:
        tags = _tags(icc)
        if icc[16:20] != b"RGB " or b"A2B0" in tags:
            return False
        return all(
            _near(_fixed(tags[name], 8, 3), wanted, _PRIMARY_TOLERANCE) for name, wanted in _PRIMARIES.items()
        ) and all(
            _near([_light(tags[name], signal) for signal in _LIGHT], list(_LIGHT.values()), _LIGHT_TOLERANCE)
            for name in (b"rTRC", b"gTRC", b"bTRC")
        )
    except (struct.error, KeyError, IndexError, ArithmeticError, TypeError):
        return False


def kept_icc(icc: bytes, *, strip: bool) -> bytes:
    """Return the profile for the result; empty for none, which is only an sRGB profile under `strip`.

    Dropping any other profile would change the colours, which is more than dropping metadata.
    """
    return b"" if strip and is_srgb(icc) else icc
