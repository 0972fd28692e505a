"""How files name their colours, and the same colours in sRGB, by libvips.

A PNG names colours by `cICP` and `gAMA`, an AVIF by `nclx`. No program here converts by these, so they are
written as an ICC profile of three primaries and a curve (ICC.1:2022, 8.3.2), and libvips converts.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.corpus import decoders
from benchmarks.corpus.canvases import Canvas, raw_arguments
from benchmarks.corpus.programs import Failed, run

Tags = Mapping[str, Any]

#: White, red, green and blue, as x and y (ITU-T H.273, table 2).
Chromaticities = tuple[tuple[float, float], ...]
_D65 = (0.3127, 0.3290)
_PRIMARIES: dict[int, Chromaticities] = {
    1: (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),
    5: (_D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
_UNSPECIFIED = 2

#: Exponents, by the number of the transfer function; those of BT.709 are shown like sRGB.
_GAMMAS = {4: 2.2, 5: 2.8, 8: 1.0}
_LIKE_SRGB = frozenset({1, 6, 13, 14, 15})
_SRGB = 13
_HDR = frozenset({16, 18})

#: Entries of a curve.
_STEPS = 1024

_D50 = (0.9642, 1.0, 0.8249)
_BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))

Matrix = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Label:
    """How a file names its colours.

    Attributes:
        profile: the description of its ICC profile.
        space: of the profile, such as `RGB`; empty for none.
        primaries: where white, red, green and blue are; None if that is not told.
        transfer: the number of the transfer function; 0 if an exponent is told.
        gamma: the exponent; 0 if that is not told.
    """

    profile: str = ""
    space: str = ""
    primaries: Chromaticities | None = None
    transfer: int = _SRGB
    gamma: float = 0.0

    @property
    def is_srgb(self) -> bool:
        """Whether it means sRGB; a file that says nothing does."""
        if self.space:
            return self.space == "RGB" and "srgb" in self.profile.lower()
        is_usual = self.primaries is None or _are_near(self.primaries, _PRIMARIES[1])
        return is_usual and (2.0 <= self.gamma <= 2.4 if self.gamma else self.transfer in _LIKE_SRGB)  # noqa: PLR2004

    @property
    def is_linear(self) -> bool:
        """Whether its numbers are those of light."""
        return not self.space and self.gamma == 1

    @property
    def is_hdr(self) -> bool:
        """Whether its numbers are PQ or HLG, which nothing here converts."""
        return not self.space and self.transfer in _HDR

    def __str__(self) -> str:
        """Return it for messages."""
        if self.space:
            return f"profile {self.profile!r} of {self.space}"
        if self.is_srgb:
            return "sRGB"
        curve = f"gamma {self.gamma:.3g}" if self.gamma else f"transfer {self.transfer}"
        code = next(
            (code for code, found in _PRIMARIES.items() if found == (self.primaries or _PRIMARIES[1])), "own"
        )
        return f"{curve}, primaries {code}"


def label_of(tags: Tags, form: str) -> Label:
    """Return how a file names its colours."""
    space = str(tags.get("ICC-header:ColorSpaceData", "")).strip()
    if space:
        return Label(str(tags.get("ICC_Profile:ProfileDescription", "")), space)
    group = {"png": "PNG-cICP", "avif": "QuickTime"}.get(form)
    code = [tags.get(f"{group}:{name}") for name in ("ColorPrimaries", "TransferCharacteristics")]
    if group and None not in code:
        transfer = _SRGB if code[1] == _UNSPECIFIED else int(str(code[1]))
        return Label(
            primaries=_PRIMARIES.get(int(str(code[0]))), transfer=transfer, gamma=_GAMMAS.get(transfer, 0)
        )
    gamma = float(tags.get("PNG:Gamma", 0))
    if form != "png" or "PNG:SRGBRendering" in tags or not gamma:
        return Label()
    names = [(f"PNG:{name}X", f"PNG:{name}Y") for name in ("WhitePoint", "Red", "Green", "Blue")]
    if "PNG:RedX" not in tags:
        return Label(transfer=0, gamma=gamma)
    return Label(primaries=tuple((float(tags[x]), float(tags[y])) for x, y in names), transfer=0, gamma=gamma)


def is_kept(source: Label, answer: Label) -> bool:
    """Tell whether an answer names its colours as the source does."""
    if source.space or answer.space:
        return (source.profile, source.space) == (answer.profile, answer.space)
    if source.is_srgb and answer.is_srgb:
        return True
    one, other = source.primaries or _PRIMARIES[1], answer.primaries or _PRIMARIES[1]
    is_same_curve = source.transfer == answer.transfer and abs(source.gamma - answer.gamma) < 0.01  # noqa: PLR2004
    return _are_near(one, other) and is_same_curve


def _are_near(one: Chromaticities, other: Chromaticities) -> bool:
    pairs = zip(sum(one, ()), sum(other, ()), strict=True)
    return all(abs(a - b) < 0.005 for a, b in pairs)  # noqa: PLR2004 less than the eye sees


def in_srgb(canvas: Canvas, label: Label, file: Path) -> Canvas:
    """Return a canvas in sRGB.

    Args:
        canvas: numbers as they are in the file.
        label: what they mean.
        file: where the profile is, if it has one.

    Raises:
        Failed: that cannot be told here.
    """
    if label.is_srgb:
        return canvas
    if label.is_hdr or label.space not in ("", "RGB", "GRAY"):
        raise Failed(f"not converted here: {label}")
    with TemporaryDirectory() as directory:
        raw, plain, profile = (Path(directory, name) for name in ("raw", "plain.png", "profile.icc"))
        raw.write_bytes(canvas.rgba)
        kind = ("-alpha", "off", "-define", f"png:color-type={0 if label.space == 'GRAY' else 2}")
        run("convert", *raw_arguments(canvas, raw), *kind, "-strip", plain)
        made = run("exiftool", "-b", "-icc_profile", file).output if label.space else made_profile(label)
        profile.write_bytes(made)
        converted = Path(directory, "converted.png")
        options = ("--intent", "perceptual", "--depth", str(canvas.depth))
        run("vips", "icc_transform", plain, converted, "srgb", "--input-profile", profile, *options)
        (found,) = decoders.decode(converted, "png", canvas.depth).canvases
    return _with_alpha_of(canvas, found)


def _with_alpha_of(canvas: Canvas, colours: Canvas) -> Canvas:
    width = canvas.depth // 8
    samples = bytearray(colours.rgba)
    for position in range(3 * width, 4 * width):
        samples[position :: 4 * width] = canvas.rgba[position :: 4 * width]
    return Canvas(canvas.width, canvas.height, canvas.depth, bytes(samples))


def made_profile(label: Label) -> bytes:
    """Write primaries and a curve as an ICC profile, version 2."""
    primaries = label.primaries or _PRIMARIES[1]
    if label.gamma:
        curve = struct.pack(">4sIIH", b"curv", 0, 1, round(label.gamma * 256))
    else:
        values = (round(0xFFFF * _srgb_to_linear(step / (_STEPS - 1))) for step in range(_STEPS))
        curve = struct.pack(f">4sII{_STEPS}H", b"curv", 0, _STEPS, *values)
    red, green, blue = zip(*_to_d50(primaries), strict=True)
    tags = [
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + bytes(79)),
        (b"cprt", b"text\0\0\0\0none\0"),
        (b"wtpt", _xyz(_D50)),
        *((name, _xyz(column)) for name, column in ((b"rXYZ", red), (b"gXYZ", green), (b"bXYZ", blue))),
        *((name, curve) for name in (b"rTRC", b"gTRC", b"bTRC")),
    ]
    table, body = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(body)
    date = (2020, 1, 1, 0, 0, 0)
    head = struct.pack(
        ">I4sI4s4s4s6H4s", size, b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ", *date, b"acsp"
    )
    return (head + bytes(28) + _xyz(_D50)[8:]).ljust(128, b"\0") + table + body


def _xyz(value: Sequence[float]) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(part * 65536) for part in value))


def _srgb_to_linear(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4  # noqa: PLR2004 IEC 61966-2-1


def _to_d50(chromaticities: Chromaticities) -> Matrix:
    """Return the matrix from linear RGB to XYZ, adapted to D50 (ICC.1:2022, annex E)."""
    white, *colours = ((x / y, 1.0, (1 - x - y) / y) for x, y in chromaticities)
    columns = list(zip(*colours, strict=True))
    scale = _times(_inverse(columns), [[part] for part in white])
    matrix = [[cell * scale[number][0] for number, cell in enumerate(row)] for row in columns]
    cones, cones_d50 = (_times(_BRADFORD, [[part] for part in point]) for point in (white, _D50))
    ratio = [[cones_d50[n][0] / cones[n][0] if n == m else 0.0 for m in range(3)] for n in range(3)]
    return _times(_times(_inverse(_BRADFORD), _times(ratio, _BRADFORD)), matrix)


def _times(one: Matrix, other: Matrix) -> list[list[float]]:
    columns = list(zip(*other, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in one]


def _inverse(matrix: Matrix) -> list[list[float]]:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    cofactors = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    whole = a * cofactors[0][0] + b * cofactors[1][0] + c * cofactors[2][0]
    return [[cell / whole for cell in row] for row in cofactors]
