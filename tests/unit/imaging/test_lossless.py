"""JPEGs turned by their coefficients: the same as jpegtran's, the same pixels, and no damage overlooked."""

import subprocess
from collections.abc import Sequence
from functools import cache
from io import BytesIO
from itertools import product
from os import environ
from random import Random
from shutil import which

import pytest
from PIL import Image, ImageChops, ImageStat
from PIL.Image import Transpose
from support.mapped import mapped
from support.memory import memory_directory
from support.specimens import GENEROUS

from server.errors import DamagedImage, ImageError, NotLossless
from server.imaging import same_format
from server.imaging.geometry import Turn
from server.imaging.jpeg import kernel as kernels
from server.imaging.jpeg.kernel import kernel
from server.imaging.jpeg.turn import Plane
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

#: Not in CI, which installs them.
needs_jpegtran = pytest.mark.skipif(
    which("jpegtran") is None and "CI" not in environ, reason="needs libjpeg-turbo-progs, for jpegtran"
)

TURNS = {
    Turn.FLIP: (("-flip", "vertical"), Transpose.FLIP_TOP_BOTTOM),
    Turn.FLOP: (("-flip", "horizontal"), Transpose.FLIP_LEFT_RIGHT),
    Turn.ROTATE_180: (("-rotate", "180"), Transpose.ROTATE_180),
    Turn.ROTATE_90: (("-rotate", "90"), Transpose.ROTATE_270),
    Turn.ROTATE_270: (("-rotate", "270"), Transpose.ROTATE_90),
    Turn.TRANSPOSE: (("-transpose",), Transpose.TRANSPOSE),
    Turn.TRANSVERSE: (("-transverse",), Transpose.TRANSVERSE),
}
BACK = {Turn.ROTATE_90: Turn.ROTATE_270, Turn.ROTATE_270: Turn.ROTATE_90}


def run(*command: str, given: bytes) -> bytes:
    """Return what a program makes of its standard input."""
    return subprocess.run(command, input=given, capture_output=True, check=True, timeout=60).stdout


#: Runs a program for each file of a directory, and keeps what it writes; ends with the first failure.
FOR_EACH = 'set -e; cd "$1"; shift; for file in *.in; do "$@" "$file" > "${file%.in}.out"; done'


def run_for_each(*command: str, given: Sequence[bytes]) -> list[bytes]:
    """Return what a program makes of each of several files: a shell starts it faster than Python does."""
    if not given:
        return []
    with memory_directory() as directory:
        files = [directory / f"{number}.in" for number in range(len(given))]
        for file, data in zip(files, given, strict=True):
            file.write_bytes(data)
        run("sh", "-c", FOR_EACH, "sh", str(directory), *command, given=b"")
        return [file.with_suffix(".out").read_bytes() for file in files]


def textured(size: tuple[int, int], mode: str, seed: object) -> Image.Image:
    """Return an image that is smooth in some places and noise in others."""
    random = Random(f"{seed}")
    coarse = Image.frombytes(mode, (9, 7), random.randbytes(63 * len(mode)))
    noise = Image.frombytes(mode, size, random.randbytes(size[0] * size[1] * len(mode)))
    mask = Image.frombytes("L", (4, 3), random.randbytes(12)).resize(size, Image.Resampling.BICUBIC)
    return Image.composite(coarse.resize(size, Image.Resampling.BICUBIC), noise, mask)


def smooth(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return an image that survives compression."""
    return Image.frombytes(mode, (5, 4), Random(1).randbytes(20 * len(mode))).resize(
        size, Image.Resampling.BICUBIC
    )


def encoded(image: Image.Image, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


def pnm(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PPM")
    return file.getvalue()


def turned(jpeg: bytes, turn: Turn = Turn.FLIP, wants: str = "lossless", **more: object) -> bytes:
    """Turn an image, and check that it took the path we want."""
    sink = BytesIO()
    result = process(mapped(jpeg), sink, Recipe(turn, **more), GENEROUS)  # type: ignore[arg-type]
    assert result.path == wants
    with Image.open(sink) as image:
        assert image.size == (result.width, result.height)
    return sink.getvalue()


def fidelity_db(answer: bytes, source: bytes, transpose: Transpose) -> float:
    """Return the peak signal-to-noise ratio of an answer against the source as a person sees it, turned."""
    with Image.open(BytesIO(answer)) as one, Image.open(BytesIO(source)) as other:
        errors = ImageStat.Stat(ImageChops.difference(one, other.transpose(transpose)))
    squares = sum(errors.sum2) / sum(errors.count)
    return 255**2 / squares if squares else float("inf")


SAMPLINGS = [
    *("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x4"),
    *("2x2,1x2,2x1", "1x1,1x1,2x2", "3x1,1x1,3x1"),
]
SIZES = [(1, 1), (2, 3), (5, 2), (11, 9)]  # in MCUs


def mcu(sampling: str) -> tuple[int, int]:
    """Return width and height of an MCU, in pixels."""
    factors = [tuple(map(int, one.split("x"))) for one in sampling.split(",")]
    return 8 * max(x for x, _ in factors), 8 * max(y for _, y in factors)


CODINGS = {
    "standard tables": (),
    "optimised tables": ("-optimize",),
    "restart after one": ("-restart", "1B"),
    "restart after seven": ("-restart", "7B", "-optimize"),
    "restart after a row": ("-restart", "1"),
    "coarse": ("-quality", "10", "-optimize"),
    "fine": ("-quality", "100"),
}


@cache
def generated() -> dict[str, bytes]:
    """Generate files of all kinds that cjpeg can make."""
    files = {}
    for (name, options), sampling, size in product(CODINGS.items(), SAMPLINGS, SIZES):
        width, height = mcu(sampling)
        image = textured((size[0] * width, size[1] * height), "RGB", (name, sampling, size))
        files[f"{name} {sampling} {size}"] = run("cjpeg", "-sample", sampling, *options, given=pnm(image))
    for (name, options), size in product(CODINGS.items(), SIZES):
        image = textured((size[0] * 8, size[1] * 8), "L", (name, size))
        files[f"{name} gray {size}"] = run("cjpeg", "-grayscale", *options, given=pnm(image))
    for (name, options), size in product(CODINGS.items(), SIZES[1:]):
        image = textured((size[0] * 8, size[1] * 8), "CMYK", (name, size))
        inks = encoded(image, optimize="-optimize" in options)
        restarts = options[:2] if "-restart" in options else ()
        files[f"{name} inks {size}"] = run("jpegtran", *restarts, given=inks)
    return files


#: Makes the canonical form of a file's coefficients, equal for files with equal coefficients.
CANONICAL = ("jpegtran", "-copy", "none", "-optimize")


def coefficients(jpeg: bytes) -> bytes:
    """Return a file's coefficients in the canonical form."""
    return run(*CANONICAL, given=jpeg)


@cache  # each source is compared with every turn of it
def generated_coefficients() -> dict[bytes, bytes]:
    """Return the coefficients of all generated files."""
    files = list(generated().values())
    return dict(zip(files, run_for_each(*CANONICAL, given=files), strict=True))


@needs_jpegtran
@pytest.mark.timeout(300)
@pytest.mark.parametrize("turn", TURNS)
def test_the_coefficients_are_those_that_jpegtran_finds(turn: Turn) -> None:
    names, files = list(generated()), list(generated().values())
    all_theirs = run_for_each(*CANONICAL, "-perfect", *TURNS[turn][0], given=files)
    all_ours = [turned(jpeg, turn) for jpeg in files]
    found = run_for_each(*CANONICAL, given=all_ours)
    for name, theirs, ours, ours_found in zip(names, all_theirs, all_ours, found, strict=True):
        assert ours_found == theirs, name
        with Image.open(BytesIO(ours)) as one, Image.open(BytesIO(theirs)) as other:
            assert one.tobytes() == other.tobytes(), name
    all_back = [turned(ours, BACK.get(turn, turn)) for ours in all_ours]
    known = generated_coefficients()
    others = [back for back in all_back if back not in known]
    found_back = known | dict(zip(others, run_for_each(*CANONICAL, given=others), strict=True))
    for name, jpeg, back in zip(names, files, all_back, strict=True):
        assert found_back[back] == known[jpeg], name


@needs_jpegtran
@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.FLOP, Turn.ROTATE_180])
@pytest.mark.parametrize("script", ["0;1;2;", "0 1;2;", "2;0 1;", "1;0;2;"])
def test_scans_one_after_the_other_stay_so(turn: Turn, script: str, tmp_path: pytest.TempPathFactory) -> None:
    scans = tmp_path / "scans"  # type: ignore[operator]
    scans.write_text(script)
    jpeg = run(
        *("cjpeg", "-sample", "2x2", "-restart", "2B", "-optimize", "-scans", str(scans)),
        given=pnm(textured((96, 64), "RGB", script)),
    )
    ours = turned(jpeg, turn)
    assert ours.count(b"\xff\xda") == script.count(";")
    assert coefficients(ours) == run(
        "jpegtran", "-perfect", "-optimize", "-copy", "none", *TURNS[turn][0], given=jpeg
    )


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_pixels_are_those_that_are_seen(turn: Turn, subsampling: str) -> None:
    jpeg = encoded(smooth((96, 64)), subsampling=subsampling, quality=90)
    assert fidelity_db(turned(jpeg, turn), jpeg, TURNS[turn][1]) > 1e5  # 50 dB
    assert fidelity_db(turned(jpeg, turn, "pixels", path="pixels"), jpeg, TURNS[turn][1]) > 1e4


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("size", [(96, 61), (93, 64), (48, 76), (17, 24), (24, 40), (40, 23), (1, 8), (8, 1)])
def test_an_image_that_ends_within_a_block_is_never_trimmed(
    turn: Turn, mode: str, size: tuple[int, int]
) -> None:
    jpeg = encoded(smooth(size, mode), subsampling=2 if mode == "RGB" else 0, quality=95)
    sink = BytesIO()
    process(mapped(jpeg), sink, Recipe(turn), GENEROUS)
    with Image.open(BytesIO(jpeg)) as original, Image.open(sink) as answer:
        assert answer.size == original.transpose(TURNS[turn][1]).size
    # The least is that of odd sides with halved colours, which go to pixels.
    assert fidelity_db(sink.getvalue(), jpeg, TURNS[turn][1]) > 500  # 27 dB


@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.ROTATE_90])
@pytest.mark.parametrize("height", [8, 24, 72, 1080])
def test_where_only_colours_end_within_a_block_the_luma_is_exact(turn: Turn, height: int) -> None:
    jpeg = encoded(smooth((64, height)), subsampling="4:2:0", quality=95)
    answer = turned(jpeg, turn, wants="coefficients")
    with Image.open(BytesIO(answer)) as one, Image.open(BytesIO(jpeg)) as other:
        one.draft("L", one.size)
        other.draft("L", other.size)
        difference = ImageChops.difference(one, other.transpose(TURNS[turn][1]))
        # libjpeg's inverse transform rounds rows before columns.
        assert difference.getextrema()[1] <= (0 if turn is Turn.FLIP else 1)
    assert fidelity_db(answer, jpeg, TURNS[turn][1]) > 5e3  # 37 dB


@pytest.mark.parametrize(
    ("jpeg", "recipe", "says"),
    [
        (encoded(smooth((16, 16)), progressive=True), {}, "progressively"),
        (encoded(smooth((16, 15)), subsampling="4:2:0"), {}, "height of 15 is no multiple"),
        (encoded(smooth((16, 12))), {}, "height of 12 is no multiple"),
        (encoded(smooth((16, 16))), {"quality": 50}, "quality"),
        (encoded(smooth((16, 16))), {"format": "png"}, "stays one"),
    ],
)
def test_a_lossless_turn_that_is_impossible_is_refused_with_the_reason(
    jpeg: bytes, recipe: dict[str, object], says: str
) -> None:
    with pytest.raises(NotLossless, match=says):
        turned(jpeg, path="lossless", **recipe)
    if "format" not in recipe:
        sink = BytesIO()
        assert process(mapped(jpeg), sink, Recipe(Turn.FLIP, **recipe), GENEROUS).path != "lossless"  # type: ignore[arg-type]


def test_the_compiled_module_begins_after_the_first_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dispatcher would have all recipes of the image refused, and most do without the module."""
    laps: list[str] = []

    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    for name, turn in (("Mirror", Turn.FLIP), ("Transposition", Turn.ROTATE_90)):
        laps.clear()
        monkeypatch.setattr(same_format, name, crash)
        with pytest.raises(ZeroDivisionError):
            process(
                mapped(encoded(smooth((64, 64)))), BytesIO(), Recipe(turn=turn), GENEROUS, lap=laps.append
            )
        assert laps == ["decode"]


def test_without_a_compiler_images_are_turned_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel.cache_clear()
    monkeypatch.setattr(kernels, "why_not", lambda: "no compiler")
    jpeg = encoded(smooth((16, 16)))
    turned(jpeg, wants="pixels")
    with pytest.raises(NotLossless, match="no compiler"):
        turned(jpeg, path="lossless")
    monkeypatch.undo()
    kernel.cache_clear()
    turned(jpeg)


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.TRANSPOSE])
def test_pixels_that_end_early_are_damage_wherever_they_end(options: dict[str, object], turn: Turn) -> None:
    jpeg = encoded(textured((64, 64), "RGB", 3), **options)
    start = jpeg.index(b"\xff\xda") + 14
    refused = 0
    for end in range(start, len(jpeg) - 2):
        if jpeg[end - 1] == 0xFF:
            continue  # that would be another file
        with pytest.raises(DamagedImage):
            turned(jpeg[:end] + b"\xff\xd9", turn)
        refused += 1
    assert refused > 1000


@pytest.mark.parametrize("options", [{}, {"restart_marker_blocks": 3}])
@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.TRANSPOSE])
def test_pixels_that_end_early_are_damage_far_behind_their_start_too(
    options: dict[str, object], turn: Turn
) -> None:
    """The kernel reads some kilobytes at a time; this file is many times as long."""
    jpeg = encoded(textured((256, 192), "RGB", 4), quality=95, **options)
    start = jpeg.index(b"\xff\xda") + 14
    assert len(jpeg) > 40_000
    assert turned(turned(jpeg, turn), turn) == jpeg
    for end in range(start, len(jpeg) - 2, 101):
        if jpeg[end - 1] == 0xFF:
            continue  # that would be another file
        with pytest.raises(DamagedImage):
            turned(jpeg[:end] + b"\xff\xd9", turn)


def with_segment(jpeg: bytes, marker: int, parameters: bytes, before: bytes) -> bytes:
    """Insert one segment, before the first one of another kind."""
    at = jpeg.index(before)
    return (
        jpeg[:at] + bytes([0xFF, marker]) + (len(parameters) + 2).to_bytes(2, "big") + parameters + jpeg[at:]
    )


EOI, SOF = b"\xff\xd9", b"\xff\xc0"


@pytest.mark.parametrize(
    "jpeg",
    [
        # A quantization table that comes too late, one of zeros, and one that there is twice.
        with_segment(encoded(smooth((16, 16))), 0xDB, b"\0" + bytes([9] * 64), EOI),
        with_segment(encoded(smooth((16, 16))), 0xDB, b"\0" + bytes(64), SOF),
        with_segment(encoded(smooth((16, 16))), 0xDB, 2 * (b"\0" + bytes([9] * 64)), SOF),
        # A Huffman table with a size that no difference has.
        with_segment(encoded(smooth((16, 16))), 0xC4, b"\0\1" + bytes(15) + b"\x10", SOF),
    ],
)
@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.ROTATE_90])
def test_a_file_that_decoders_may_take_in_several_ways_is_left_to_one(jpeg: bytes, turn: Turn) -> None:
    with pytest.raises((NotLossless, DamagedImage)):
        turned(jpeg, turn, path="lossless")


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_an_image_without_height_is_refused(subsampling: str) -> None:
    jpeg = bytearray(encoded(smooth((16, 16)), subsampling=subsampling))
    at = jpeg.index(SOF) + 5
    jpeg[at : at + 2] = b"\0\0"
    scan = jpeg.index(b"\xff\xda") + 14
    for data in (bytes(jpeg), bytes(jpeg[:scan]) + EOI):
        with pytest.raises(ImageError):
            turned(data)


@pytest.mark.parametrize(
    ("marker", "parameters"), [(0xE0, b"JFXX\0\x10"), (0xEE, b"Adob"), (0xEE, b"unknown!")]
)
@pytest.mark.parametrize("keep_rgb", [True, False])
def test_colours_stay_what_they_are_whatever_else_is_in_the_file(
    marker: int, parameters: bytes, *, keep_rgb: bool
) -> None:
    jpeg = encoded(smooth((16, 16)), keep_rgb=keep_rgb, subsampling=0, quality=95)
    odd = jpeg[:2] + bytes([0xFF, marker, 0, len(parameters) + 2]) + parameters + jpeg[2:]
    assert fidelity_db(turned(odd), odd, Transpose.FLIP_TOP_BOTTOM) > 1e5  # 50 dB


@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.FLOP, Turn.ROTATE_90])
def test_colours_that_are_mixed_get_codes_for_what_they_become(turn: Turn) -> None:
    # Blocks of one value, whose tables know nothing else, with an edge between two of them.
    image = Image.new("RGB", (24, 24), (200, 40, 40))
    image.paste((40, 40, 200), (0, 0, 16, 16))
    jpeg = encoded(image, subsampling="4:2:0", optimize=True, quality=95)
    answer = turned(jpeg, turn, wants="coefficients")
    assert fidelity_db(answer, jpeg, TURNS[turn][1]) > 300


def test_a_coefficient_that_becomes_too_large_is_left_to_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    def overdone(plane: Plane, *_: object, **__: object) -> None:
        plane.coefficients[1] = -1024
        plane.used[0] |= 2

    monkeypatch.setattr(Plane, "mirror", overdone)
    turned(encoded(smooth((16, 24)), subsampling="4:2:0"), wants="pixels")


def test_the_densities_change_places_with_the_sides() -> None:
    jpeg = encoded(smooth((16, 24)), subsampling=0, dpi=(72, 300))
    with Image.open(BytesIO(turned(jpeg, Turn.ROTATE_90))) as image:
        assert image.info["dpi"] == (300, 72)
    with Image.open(BytesIO(turned(jpeg, Turn.FLIP))) as image:
        assert image.info["dpi"] == (72, 300)
    with Image.open(BytesIO(turned(jpeg, Turn.FLIP, strip=True))) as image:
        assert "dpi" not in image.info


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Return marker and parameters of each segment; a scan's entropy-coded data belongs to its parameters."""
    found, at = [], 2
    while jpeg[at + 1] != 0xD9:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        stop = end
        if jpeg[at + 1] == 0xDA:
            while jpeg[stop] != 0xFF or jpeg[stop + 1] in {0, *range(0xD0, 0xD8)}:
                stop += 1
        found.append((jpeg[at + 1], jpeg[at + 4 : end] + jpeg[end:stop]))
        at = stop
    return found


def second_scan(parts: list[tuple[int, bytes]]) -> int:
    """Return how many segments there are to the end of the second scan."""
    return [at for at, (marker, _) in enumerate(parts) if marker == 0xDA][1] + 1


def assembled(parts: list[tuple[int, bytes]]) -> bytes:
    """Make a file of such segments."""
    file = b"\xff\xd8"
    for marker, parameters in parts:
        length = 2 + (4 + 2 * parameters[0] if marker == 0xDA else len(parameters))
        file += bytes([0xFF, marker]) + length.to_bytes(2, "big") + parameters
    return file + EOI


def in_three_scans(image: Image.Image, *options: str, folder: pytest.TempPathFactory) -> bytes:
    script = folder / "scans"  # type: ignore[operator]
    script.write_text("0;1;2;")
    return run("cjpeg", *options, "-scans", str(script), given=pnm(image))


def assert_as_jpegtran(jpeg: bytes, turn: Turn) -> None:
    theirs = run("jpegtran", "-perfect", "-optimize", "-copy", "none", *TURNS[turn][0], given=jpeg)
    assert coefficients(turned(jpeg, turn)) == theirs


STRAIGHT = [Turn.FLIP, Turn.FLOP, Turn.ROTATE_180]


@needs_jpegtran
@pytest.mark.parametrize("turn", STRAIGHT)
@pytest.mark.parametrize("options", [(), ("-restart", "2B")])
def test_tables_and_intervals_may_change_between_scans(
    turn: Turn, options: tuple[str, ...], tmp_path: pytest.TempPathFactory
) -> None:
    # Optimised tables of several scans have the same numbers, and each scan brings its own.
    jpeg = in_three_scans(
        textured((96, 64), "RGB", options), "-sample", "2x2", "-optimize", *options, folder=tmp_path
    )
    parts = segments(jpeg)
    assert sum(marker == 0xC4 for marker, _ in parts) > 2
    if options:  # and none for the last scan
        plain = segments(
            in_three_scans(textured((96, 64), "RGB", options), "-sample", "2x2", "-optimize", folder=tmp_path)
        )
        parts = [*parts[: second_scan(parts)], (0xDD, b"\0\0"), *plain[second_scan(plain) :]]
    assert_as_jpegtran(assembled(parts), turn)


@needs_jpegtran
@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.ROTATE_90])
def test_a_quantization_table_between_scans_is_left_to_a_decoder(
    turn: Turn, tmp_path: pytest.TempPathFactory
) -> None:
    parts = segments(in_three_scans(smooth((32, 32)), "-sample", "1x1", folder=tmp_path))
    last = max(at for at, (marker, _) in enumerate(parts) if marker == 0xDA)
    parts.insert(last, next(part for part in parts if part[0] == 0xDB))
    with pytest.raises(NotLossless):
        turned(assembled(parts), turn, path="lossless")


@needs_jpegtran
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("scale", ["1", "20"])
def test_extended_frames_and_wide_quantization_tables_stay_so(turn: Turn, scale: str) -> None:
    # So coarse that cjpeg writes 16 bits for a step, and SOF1 for that.
    jpeg = run("cjpeg", "-quality", scale, "-sample", "1x2", given=pnm(textured((48, 64), "RGB", scale)))
    parts = segments(jpeg)
    if scale == "1":
        assert b"\xff\xc1" in jpeg
        assert any(marker == 0xDB and parameters[0] >> 4 for marker, parameters in parts)
    else:
        jpeg = jpeg.replace(b"\xff\xc0", b"\xff\xc1", 1)
    ours = turned(jpeg, turn)
    assert b"\xff\xc1" in ours
    assert_as_jpegtran(jpeg, turn)


@needs_jpegtran
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_table_needs_no_code_for_an_empty_block(turn: Turn, *, is_whole: bool) -> None:
    # All 63 coefficients of each block are 1, so that none ends with an end-of-block code. Where the edge
    # is within an MCU, blocks to fill it would have to be empty.
    width, height = (32, 32) if is_whole else (24, 32)
    parts = [
        (0xDB, b"\0" + bytes([8] * 64)),
        (0xC0, b"\x08" + bytes([0, height, 0, width]) + b"\x03\x01\x22\0\x02\x11\0\x03\x11\0"),
        (0xC4, b"\0\1" + bytes(15) + b"\0"),
        (0xC4, b"\x10\1" + bytes(15) + b"\x01"),
    ]
    blocks = 6 * 4
    bits = "".join("0" + "".join(f"0{(block + k) % 2}" for k in range(63)) for block in range(blocks))
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    jpeg = assembled([*parts, (0xDA, b"\x03\x01\0\x02\0\x03\0\0\x3f\0" + coded)])
    if is_whole:
        assert_as_jpegtran(jpeg, turn)
        return
    sink = BytesIO()
    process(mapped(jpeg), sink, Recipe(turn), GENEROUS)
    assert fidelity_db(sink.getvalue(), jpeg, TURNS[turn][1]) > 3e3  # 35 dB


@needs_jpegtran
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("is_in_scans", [True, False])
def test_dc_differences_that_a_table_lacks_get_one_that_has_them(
    turn: Turn, tmp_path: pytest.TempPathFactory, *, is_in_scans: bool
) -> None:
    if is_in_scans and turn not in STRAIGHT:
        return
    # Steps up of one size, along the scan; mirrored they begin with a leap.
    image = Image.new("RGB", (64, 64))
    for number in range(64):
        image.paste((4 * number, 255 - number, number), (number % 8 * 8, number // 8 * 8, 64, 64))
    options = ("-sample", "1x1", "-optimize", "-quality", "95")
    jpeg = (
        in_three_scans(image, *options, folder=tmp_path)
        if is_in_scans
        else run("cjpeg", *options, given=pnm(image))
    )
    ours = turned(jpeg, turn)
    theirs = {parameters for marker, parameters in segments(jpeg) if marker == 0xC4}
    assert {parameters for marker, parameters in segments(ours) if marker == 0xC4} - theirs
    assert_as_jpegtran(jpeg, turn)


@needs_jpegtran
@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("transform", [0, 2])
def test_inks_keep_their_transform(turn: Turn, transform: int) -> None:
    jpeg = bytearray(encoded(textured((32, 24), "CMYK", transform), quality=90))
    at = jpeg.index(b"Adobe") + 11
    jpeg[at] = transform
    ours = turned(bytes(jpeg), turn)
    assert ours[ours.index(b"Adobe") + 11] == transform
    assert_as_jpegtran(bytes(jpeg), turn)
    with Image.open(BytesIO(ours)) as one, Image.open(BytesIO(jpeg)) as other:
        difference = ImageChops.difference(one, other.transpose(TURNS[turn][1]))
        # libjpeg's inverse transform rounds rows before columns.
        assert max(most for _, most in difference.getextrema()) <= 4


def test_colours_that_take_more_bits_than_before_get_room(monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = kernel().pack, []

    def pack(*given: object) -> int:
        answers.append(real(*given))
        return int(answers[-1])

    # Next to nothing but colours, all of which are coded a second time.
    colours = textured((512, 520), "RGB", "room").convert("YCbCr").split()[1:]
    image = Image.merge("YCbCr", (Image.new("L", (512, 520), 128), *colours))
    jpeg = encoded(image, subsampling="4:2:0", quality=98)
    monkeypatch.setattr(kernel(), "pack", pack)
    answer = turned(jpeg, Turn.FLIP, wants="coefficients")
    assert kernel().NO_ROOM in answers
    assert fidelity_db(answer, jpeg, Transpose.FLIP_TOP_BOTTOM) > 1e3  # 30 dB


class _Reluctant(BytesIO):
    """A file that accepts at most a thousand bytes at once."""

    def write(self, piece: object, /) -> int:
        return super().write(memoryview(piece)[:1000])  # type: ignore[call-overload]


@pytest.mark.parametrize("turn", [Turn.FLIP, Turn.ROTATE_90])
def test_a_file_that_takes_less_than_it_is_given_gets_the_rest(turn: Turn) -> None:
    jpeg, sink = encoded(textured((64, 64), "RGB", 5)), _Reluctant()
    process(mapped(jpeg), sink, Recipe(turn), GENEROUS)
    assert sink.getvalue() == turned(jpeg, turn)
