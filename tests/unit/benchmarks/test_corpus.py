"""The judge of the corpus run: it calls a wrong answer wrong, and a right one right."""

import struct
import zlib
from os import environ
from pathlib import Path

import pytest
from support import oracle
from support.specimens import noise

from benchmarks.corpus import canvases, decoders, metadata
from benchmarks.corpus.canvases import TURNS, UPRIGHT, Canvas
from benchmarks.corpus.judge import Answer, Judgement, Order, Source, judge, twice_fault
from benchmarks.corpus.labels import Label, in_srgb
from benchmarks.corpus.programs import JUDGES, missing, run

#: The others are asked when the first one and the service disagree, and may be missing.
NEEDED = JUDGES.keys() - {"ffmpeg", "ffprobe", "heif-convert", "tiff2rgba", "tiffinfo"}


@pytest.fixture(autouse=True)
def _judges() -> None:
    if absent := missing(sorted(NEEDED)):
        message = f"not installed: {', '.join(absent)}"
        if "CI" in environ:
            pytest.fail(message)
        pytest.skip(message)


def judged(
    source: Path, answer: Path, order: str = "flip", form: str | None = None, path: str = ""
) -> Judgement:
    source_tags, tags = metadata.read([source, answer])
    turn, _, target = order.partition(" to ")
    found = form or decoders.form_of(answer.read_bytes()) or ""
    return judge(Source(source, source_tags), Answer(Order(turn, target or None), answer, found, path, tags))


def kinds(judgement: Judgement) -> list[str]:
    return [fault.partition(":")[0] for fault in judgement.faults + judgement.disputed]


def converted(source: Path, name: str, *operators: str) -> Path:
    target = source.with_name(name)
    run("convert", source, *operators, target)
    return target


@pytest.fixture
def png(tmp_path: Path) -> Path:
    """No symmetry, and alpha of every kind."""
    file = tmp_path / "source.png"
    raw = tmp_path / "raw"
    raw.write_bytes(noise(13 * 9 * 4, "png"))
    run(
        "convert",
        "-size",
        "13x9",
        "-depth",
        "8",
        f"rgba:{raw}",
        "-define",
        "png:color-type=6",
        "-strip",
        file,
    )
    return file


@pytest.fixture
def jpeg(tmp_path: Path) -> Path:
    file = tmp_path / "source.jpg"
    run(
        "convert",
        "-seed",
        "3",
        "-size",
        "64x48",
        "plasma:red-blue",
        "-fill",
        "gold",
        "-draw",
        "rectangle 3,4 25,11",
        file,
    )
    return file


@pytest.fixture
def gif(tmp_path: Path) -> Path:
    file = tmp_path / "source.gif"
    frames = ("xc:red", "xc:lime", "xc:blue")
    run(
        "convert",
        "-size",
        "7x5",
        "-delay",
        "7",
        *frames,
        "-fill",
        "white",
        "-draw",
        "point 1,1",
        "-loop",
        "3",
        file,
    )
    return file


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_canvases_are_turned_as_the_standard_says(turn: str, orientation: int) -> None:
    stored = oracle.Grid(3, 2, tuple(tuple(noise(4, number)) for number in range(6)))
    right = oracle.expected(stored, turn.replace("?angle=", "-"), orientation)
    canvas = TURNS[turn](UPRIGHT[orientation](Canvas(3, 2, 8, oracle.samples_of(stored))))
    assert (canvas.size, canvas.rgba) == (right.size, oracle.samples_of(right))


def test_a_right_answer_is_right(png: Path) -> None:
    assert judged(png, converted(png, "answer.png", "-flip")) == Judgement()


@pytest.mark.parametrize(
    ("operators", "kind"),
    [
        ((), "pixels"),
        (("-flop",), "pixels"),
        (("-rotate", "90"), "size"),
        (("-flip", "-region", "1x1+12+8", "-negate"), "pixels"),
        (("-flip", "-alpha", "off"), "pixels"),
        (("-flip", "-channel", "A", "-evaluate", "add", "1"), "pixels"),
    ],
    ids=["unturned", "the other way", "another turn", "one pixel", "no alpha", "alpha off by a little"],
)
def test_a_wrong_image_is_wrong(png: Path, operators: tuple[str, ...], kind: str) -> None:
    answer = converted(png, "answer.png", *operators)
    assert kinds(judged(png, answer)) == [kind]


def test_the_colour_of_what_is_transparent_does_not_matter() -> None:
    images = [Canvas(2, 1, 8, bytes([colour, 2, 3, 0, 4, 5, 6, 255])) for colour in (1, 99)]
    assert canvases.difference_db(*images) == float("inf")


@pytest.mark.parametrize(("shift", "is_right"), [(0, True), (257, True), (2000, False)])
def test_sixteen_bits_may_be_rounded_by_one(tmp_path: Path, shift: int, *, is_right: bool) -> None:
    source = tmp_path / "source.png"
    run("convert", "-size", "9x17", "gradient:gray20-gray70", "-depth", "16", source)
    value = ("-evaluate", "add", str(shift))
    answer = converted(source, "answer.bmp", *value, "-flip", "-depth", "8", "-type", "TrueColor")
    assert (judged(source, answer, "flip to bmp").faults == ()) is is_right


def test_a_lossy_answer_may_be_as_lossy_as_that_of_another_encoder(png: Path) -> None:
    """Noise keeps little in a JPEG of quality 90; another image does not look like it at all."""
    flat = ("-background", "white", "-flatten", "-quality", "90")
    assert judged(png, converted(png, "answer.jpg", "-flip", *flat), "flip to jpeg") == Judgement()
    assert kinds(judged(png, converted(png, "answer.jpg", *flat), "flip to jpeg")) == ["pixels"]


@pytest.mark.parametrize(("wanted", "found"), [("vertical", []), ("horizontal", ["pixels"])])
def test_a_lossless_turn_is_what_jpegtran_makes(jpeg: Path, wanted: str, found: list[str]) -> None:
    answer = jpeg.with_name("answer.jpg")
    run("jpegtran", "-flip", wanted, "-outfile", answer, jpeg)
    assert kinds(judged(jpeg, answer, path="lossless")) == found


def test_what_was_encoded_again_is_not_lossless(jpeg: Path) -> None:
    answer = converted(jpeg, "answer.jpg", "-flip", "-quality", "95")
    assert kinds(judged(jpeg, answer, path="pixels")) == []
    assert kinds(judged(jpeg, answer, path="lossless")) == ["pixels"]


def test_an_orientation_is_applied_and_must_not_be_left(jpeg: Path) -> None:
    run("exiftool", "-q", "-overwrite_original", "-n", "-Orientation=6", jpeg)
    answer = jpeg.with_name("answer.jpg")
    run(
        "jpegtran", "-copy", "all", "-transpose", "-outfile", answer, jpeg
    )  # by a quarter, then flipped: 6, 4
    turned = ("-transverse", "-copy", "all")
    run("jpegtran", *turned, "-outfile", answer, jpeg)
    wrong = judged(jpeg, answer)
    run("exiftool", "-q", "-overwrite_original", "-n", "-Orientation=1", answer)
    right = canvases.jpegtran_arguments(6, "flip")
    run("jpegtran", "-copy", "all", *right, "-outfile", answer, jpeg)
    left = judged(jpeg, answer)
    run("exiftool", "-q", "-overwrite_original", "-n", "-Orientation=1", answer)
    assert "metadata: orientation 6 is left" in wrong.faults
    assert left.faults == ("metadata: orientation 6 is left",)
    assert judged(jpeg, answer) == Judgement()


def test_lost_metadata_is_named(jpeg: Path) -> None:
    tags = (
        "-Artist=A. Painter",
        "-GPSLatitude=48.1",
        "-GPSLatitudeRef=N",
        "-IPTC:City=Lindau",
        "-XMP-dc:Title=Lake",
    )
    run("exiftool", "-q", "-overwrite_original", *tags, "-Comment=mine", jpeg)
    answer = jpeg.with_name("answer.jpg")
    run("jpegtran", "-copy", "none", "-flip", "vertical", "-outfile", answer, jpeg)
    assert set(judged(jpeg, answer).faults) >= {
        "metadata: EXIF lost: Artist",
        "metadata: GPS lost: GPSLatitude",
        "metadata: IPTC lost: City",
        "metadata: XMP lost: Title",
        "metadata: comment lost: File:Comment",
    }
    run("jpegtran", "-copy", "all", "-flip", "vertical", "-outfile", answer, jpeg)
    assert judged(jpeg, answer) == Judgement()
    left = set(metadata.remains(metadata.read([answer])[0]))
    assert {
        f"left although stripped: {name}" for name in ("IFD0:Artist", "GPS:GPSLatitude", "File:Comment")
    } <= left


def test_a_right_animation_is_right(gif: Path) -> None:
    assert judged(gif, converted(gif, "answer.gif", "-coalesce", "-flip")) == Judgement()


@pytest.mark.parametrize(
    ("operators", "kind"),
    [
        (("-flip", "-delete", "1"), "frames"),
        (("-flip", "-reverse"), "pixels"),
        (("-flip", "-set", "delay", "9"), "animation"),
        (("-flip", "-set", "delay", "0"), "animation"),
        (("-flip", "-loop", "0"), "animation"),
        ((), "pixels"),
    ],
    ids=["a frame fewer", "backwards", "slower", "no delay", "for ever", "unturned"],
)
def test_a_wrong_animation_is_wrong(gif: Path, operators: tuple[str, ...], kind: str) -> None:
    answer = converted(gif, "answer.gif", "-coalesce", *operators)
    assert kind in kinds(judged(gif, answer))


def test_a_still_made_of_an_animation_is_wrong_where_the_format_holds_one(gif: Path) -> None:
    still = converted(gif, "answer.gif", "-delete", "1--1", "-flip")
    assert "frames" in kinds(judged(gif, still))


def _with_chunk(file: Path, name: bytes, data: bytes) -> None:
    """Put a chunk directly after the header of a PNG."""
    whole = file.read_bytes()
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    file.write_bytes(whole[:33] + chunk + whole[33:])


def test_named_colours_must_not_be_lost(tmp_path: Path) -> None:
    """128 of a linear image is 188 in sRGB (IEC 61966-2-1)."""
    source, answer = tmp_path / "source.png", tmp_path / "answer.bmp"
    for file, gray in ((source, 128), (answer, 128)):
        run("convert", "-size", "8x6", f"xc:rgb({gray},{gray},{gray})", "-strip", "-type", "TrueColor", file)
    _with_chunk(source, b"gAMA", struct.pack(">I", 100_000))
    assert kinds(judged(source, answer, "flip to bmp")) == ["colours"]


def test_colours_may_be_converted(tmp_path: Path) -> None:
    source, answer = tmp_path / "source.png", tmp_path / "answer.bmp"
    for file, gray in ((source, 128), (answer, 188)):
        run("convert", "-size", "8x6", f"xc:rgb({gray},{gray},{gray})", "-strip", "-type", "TrueColor", file)
    _with_chunk(source, b"gAMA", struct.pack(">I", 100_000))
    assert judged(source, answer, "flip to bmp") == Judgement()
    linear = in_srgb(Canvas(1, 1, 8, bytes([128, 128, 128, 7])), Label(transfer=0, gamma=1.0), source)
    assert linear.rgba == bytes([188, 188, 188, 7])


def test_a_damaged_answer_is_wrong(png: Path) -> None:
    answer = converted(png, "answer.png", "-flip")
    whole = answer.read_bytes()
    end = whole.index(b"IEND") + 4
    answer.write_bytes(whole[:end] + bytes(4))  # a wrong checksum, which most decoders forgive
    assert "strict" in kinds(judged(png, answer))
    answer.write_bytes(whole[:40])
    assert "strict" in kinds(judged(png, answer, form="png"))


def test_what_is_flipped_twice_must_be_the_source(png: Path) -> None:
    source = Source(png, {})
    same = converted(png, "same.png", "-flip", "-flip")
    other = converted(png, "other.png", "-flip")
    assert twice_fault(source, same, "png") is None
    assert twice_fault(source, other, "png") is not None
