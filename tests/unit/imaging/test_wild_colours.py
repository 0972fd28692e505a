"""Colours that are named without a profile, or by one that the other format has no place for.

What is right is computed here from the definitions of sRGB and Display P3, or published with their profiles.
"""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image
from support.programs import pixels, run, run_on, tags
from support.specimens import chunk, encoded, processed

from server.errors import UnsupportedImage
from server.imaging.codecs import Format

SIZE = (16, 16)
P3, LINEAR, PQ, HLG = (
    bytes([12, 13, 0, 1]),
    struct.pack(">I", 100_000),
    bytes([9, 16, 0, 1]),
    bytes([9, 18, 0, 1]),
)

#: Red, green and blue of Display P3 under D50, as X, Y and Z, as in the profile that Apple publishes.
P3_COLUMNS = {
    "Red": (0.51512, 0.2412, -0.00105),
    "Green": (0.29198, 0.69225, 0.04189),
    "Blue": (0.1571, 0.06657, 0.78407),
}

OF_SRGB = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)

ORANGE = (200, 100, 50)


def named_png(pixel: bytes, *labels: tuple[bytes, bytes], kind: int = 2, alpha: bytes = b"") -> bytes:
    rows = (b"\0" + (pixel + alpha) * SIZE[0]) * SIZE[1]
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 8, kind, 0, 0, 0))
    pieces = b"".join(chunk(name, data) for name, data in labels)
    return b"\x89PNG\r\n\x1a\n" + head + pieces + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gray_profile(gamma: float) -> bytes:
    """Return the least profile of gray levels (ICC.1:2001)."""
    white = struct.pack(">3i", 63190, 65536, 54061)
    elements = [
        (b"wtpt", b"XYZ \0\0\0\0" + white),
        (b"kTRC", b"curv\0\0\0\0" + struct.pack(">IH", 1, round(256 * gamma)) + b"\0\0"),
        (b"desc", b"desc\0\0\0\0" + struct.pack(">I", 5) + b"gray\0" + bytes(79)),
        (b"cprt", b"text\0\0\0\0x\0\0\0"),
    ]
    table, body = struct.pack(">I", len(elements)), b""
    for name, data in elements:
        table += name + struct.pack(">II", 132 + 12 * len(elements) + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    head = struct.pack(
        ">I4sI4s4s4s6H4s", size, b"lcms", 0x0210_0000, b"mntr", b"GRAY", b"XYZ ", 2020, 1, 1, 0, 0, 0, b"acsp"
    )
    return (head + bytes(28) + white).ljust(128, b"\0") + table + body


def light(level: int) -> float:
    value = level / 255
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def level(light: float) -> int:
    light = min(1, max(0, light))
    return round(255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055))


def p3_in_srgb(colour: Sequence[int]) -> tuple[int, ...]:
    """Convert by the published matrix between the two, which share their white."""
    matrix = ((1.2249, -0.2247, 0), (-0.0420, 1.0419, 0), (-0.0197, -0.0786, 1.0979))
    given = [light(value) for value in colour]
    return tuple(level(sum(a * b for a, b in zip(row, given, strict=True))) for row in matrix)


def is_near(seen: object, wanted: Sequence[int], tolerance: int) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(tuple(seen), wanted, strict=False))  # type: ignore[call-overload]


def columns(data: bytes, form: Format) -> dict[str, tuple[float, ...]]:
    found = tags(data, f".{form}", "-ICC_Profile:all")
    return (
        {name: tuple(map(float, found[f"ICC_Profile:{name}MatrixColumn"].split())) for name in P3_COLUMNS}
        if found
        else {}
    )


def assert_p3(data: bytes, form: Format) -> None:
    found = columns(data, form)
    for name, wanted in P3_COLUMNS.items():
        assert found[name] == pytest.approx(wanted, abs=0.002), name


@pytest.mark.parametrize("output", [Format.WEBP, Format.JPEG, Format.TIFF])
def test_codes_become_a_profile(output: Format) -> None:
    answer = processed(named_png(bytes(ORANGE), (b"cICP", P3)), "flip", output=output).data
    assert_p3(answer, output)
    assert is_near(pixels(answer, output).pixels[0], ORANGE, 3)


@pytest.mark.parametrize("output", [Format.GIF, Format.BMP])
@pytest.mark.parametrize("alpha", [b"", b"\xff"], ids=["opaque", "with-alpha"])
def test_what_has_no_place_for_a_profile_is_converted(output: Format, alpha: bytes) -> None:
    data = named_png(bytes(ORANGE), (b"cICP", P3), kind=6 if alpha else 2, alpha=alpha)
    answer = processed(data, "flip", output=output).data
    assert is_near(pixels(answer, output).pixels[0], p3_in_srgb(ORANGE), 1)


@pytest.mark.parametrize("output", [Format.GIF, Format.BMP])
def test_a_profile_of_the_file_is_applied_too(output: Format) -> None:
    profile = processed(named_png(bytes(ORANGE), (b"cICP", P3)), output=Format.WEBP).image.info["icc_profile"]
    plain = Image.new("RGB", SIZE, ORANGE)
    for image in (plain, plain.quantize(2), plain.convert("RGBA")):
        answer = processed(encoded(image, "PNG", icc_profile=profile), "flip", output=output).data
        assert is_near(pixels(answer, output).pixels[0], p3_in_srgb(ORANGE), 1), image.mode


@pytest.mark.parametrize("output", [Format.PNG, Format.AVIF])
def test_codes_stay_codes_where_there_is_a_place(output: Format) -> None:
    source = named_png(bytes(ORANGE), (b"cICP", P3))
    answer = processed(source, "flip", output=output).data
    if output is Format.PNG:
        assert chunk(b"cICP", P3) in answer
    else:
        info = run_on("avifdec", answer, ".avif", "--info", "{}").decode()
        assert "Color Primaries: 12" in info
        assert "Transfer Char. : 13" in info
    assert is_near(pixels(answer, output).pixels[0], ORANGE, 4) or output is Format.AVIF


@pytest.mark.parametrize("level_", [128, 64])
@pytest.mark.parametrize("output", [Format.GIF, Format.BMP])
def test_a_gamma_is_applied(level_: int, output: Format) -> None:
    wanted = {128: 188, 64: 137}[level_]
    for kind, pixel in ((2, bytes([level_] * 3)), (0, bytes([level_]))):
        answer = processed(named_png(pixel, (b"gAMA", LINEAR), kind=kind), "flip", output=output).data
        assert is_near(pixels(answer, output).pixels[0], (wanted,) * 3, 1), kind


@pytest.mark.parametrize("output", [Format.WEBP, Format.JPEG, Format.TIFF, Format.AVIF])
def test_a_gamma_becomes_a_profile(output: Format) -> None:
    answer = processed(named_png(bytes([128] * 3), (b"gAMA", LINEAR)), "flip", output=output).data
    assert columns(answer, output)["Green"] == pytest.approx((0.3851, 0.7169, 0.0971), abs=0.002)  # sRGB's
    curve = run_on("exiftool", answer, f".{output}", "-b", "-GreenTRC", "{}")
    assert curve == b"para\0\0\0\0\0\0\0\0" + struct.pack(">i", 65536)


def test_primaries_go_with_a_gamma() -> None:
    p3 = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)
    answer = processed(named_png(bytes(ORANGE), (b"gAMA", LINEAR), (b"cHRM", p3)), output=Format.WEBP)
    assert_p3(answer.data, Format.WEBP)
    alone = processed(named_png(bytes(ORANGE), (b"cHRM", p3)), output=Format.WEBP)
    assert not columns(alone.data, Format.WEBP)


@pytest.mark.parametrize(
    "labels",
    [
        [(b"gAMA", struct.pack(">I", 45455))],
        [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", OF_SRGB)],
        [(b"sRGB", b"\0"), (b"gAMA", LINEAR)],
        [(b"cICP", bytes([1, 13, 0, 1])), (b"gAMA", LINEAR)],
        [(b"cICP", bytes([2, 2, 0, 1]))],
        [(b"cICP", bytes([1, 1, 0, 1]))],
    ],
)  # fmt: skip
def test_srgb_needs_no_profile(labels: list[tuple[bytes, bytes]]) -> None:
    answer = processed(named_png(bytes(ORANGE), *labels), output=Format.WEBP).data
    assert not columns(answer, Format.WEBP)
    assert is_near(
        pixels(processed(named_png(bytes(ORANGE), *labels), output=Format.BMP).data, "bmp").pixels[0],
        ORANGE,
        0,
    )


@pytest.mark.parametrize("output", [Format.WEBP, Format.GIF, Format.BMP])
def test_gray_levels_by_a_profile_are_converted_where_there_is_no_gray(output: Format) -> None:
    label = (b"iCCP", b"g\0\0" + zlib.compress(gray_profile(1.0)))
    answer = processed(named_png(b"\x40", label, kind=0), "flip", output=output).data
    assert is_near(pixels(answer, output).pixels[0], (137,) * 3, 2)
    with_alpha = processed(named_png(b"\x40", label, kind=4, alpha=b"\xff"), "flip", output=output).data
    assert is_near(pixels(with_alpha, output).pixels[0], (137,) * 3, 2)


@pytest.mark.parametrize("output", [Format.JPEG, Format.TIFF, Format.AVIF])
def test_gray_levels_keep_their_profile_where_there_is_gray(output: Format) -> None:
    label = (b"iCCP", b"g\0\0" + zlib.compress(gray_profile(1.0)))
    answer = processed(named_png(b"\x40", label, kind=0), "flip", output=output).data
    assert tags(answer, f".{output}", "-ColorSpaceData") == {"ICC-header:ColorSpaceData": "GRAY"}


@pytest.mark.parametrize("codes", [PQ, HLG], ids=["pq", "hlg"])
def test_hdr_is_carried_or_refused(codes: bytes) -> None:
    source = named_png(bytes(ORANGE), (b"cICP", codes))
    for output in (Format.JPEG, Format.WEBP, Format.GIF, Format.TIFF, Format.BMP):
        with pytest.raises(UnsupportedImage, match="HDR"):
            processed(source, output=output)
    info = run_on("avifdec", processed(source, output=Format.AVIF).data, ".avif", "--info", "{}").decode()
    assert f"Transfer Char. : {codes[1]}" in info
    assert chunk(b"cICP", codes) in processed(source, "flip").data


def avif(directory: Path, *options: str) -> bytes:
    """Encode the orange with avifenc."""
    given, made = directory / "orange.png", directory / "orange.avif"
    Image.new("RGB", SIZE, ORANGE).save(given)
    run("avifenc", "--min", "0", "--max", "0", "-y", "444", *options, str(given), str(made))
    return made.read_bytes()


def test_the_codes_of_an_avif_become_a_profile_or_a_chunk(tmp_path: Path) -> None:
    source = avif(tmp_path, "--cicp", "12/13/6")
    assert_p3(processed(source, "flip", output=Format.WEBP).data, Format.WEBP)
    assert_p3(processed(source, "flip", output=Format.PNG).data, Format.PNG)
    assert chunk(b"cICP", P3) in processed(source, "flip", output=Format.PNG).data
    as_bmp = processed(source, "flip", output=Format.BMP).data
    assert is_near(pixels(as_bmp, "bmp").pixels[0], p3_in_srgb(ORANGE), 3)


@pytest.mark.parametrize("transfer", [16, 18])
def test_an_hdr_avif_is_carried_or_refused(tmp_path: Path, transfer: int) -> None:
    source = avif(tmp_path, "--cicp", f"9/{transfer}/9")
    with pytest.raises(UnsupportedImage, match="HDR"):
        processed(source, output=Format.JPEG)
    assert chunk(b"cICP", bytes([9, transfer, 0, 1])) in processed(source, output=Format.PNG).data


@pytest.mark.parametrize(
    ("gamma", "primaries"),
    [
        (1, ()),
        (45_455, (0, 1, 0, 60_000, 15_000, 60_000, 2_000_000_000, 6_000)),
    ],
    ids=["steep", "far-primaries"],
)
@pytest.mark.parametrize("output", [Format.JPEG, Format.BMP])
def test_a_gamma_that_no_profile_can_express_is_ignored(
    gamma: int, primaries: tuple[int, ...], output: Format
) -> None:
    chunks = [(b"gAMA", struct.pack(">I", gamma))]
    if primaries:
        chunks.append((b"cHRM", struct.pack(">8I", *primaries)))
    answer = processed(named_png(bytes(ORANGE), *chunks), "flip", output=output).data
    assert is_near(pixels(answer, output).pixels[0], ORANGE, 3)
