"""JPEGs as strangers write them, judged by jpegtran and ImageMagick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.programs import pixels, run
from support.specimens import encoded, natural, orientation_only, processed, with_exif, with_segment

from server.errors import DamagedImage
from server.imaging.codecs import Format

if TYPE_CHECKING:
    from pathlib import Path

#: What Samsung's phones append to a panorama, and how they fill the file up.
SAMSUNG = (
    b"\0\0\1\n\x0e\0\0\0Image_UTC_Data1395836463000SEFHj\0\0\0\1\0\0\0"
    b"\0\0\1\n\x23\0\0\0\x23\0\0\0\x18\0\0\0SEFT"
)
ANOTHER = with_exif(encoded(natural((16, 24)), "JPEG"), orientation_only(6))
EOI = b"\xff\xd9"

TRAILERS = {
    "nothing": b"",
    "half of an EOI": b"\xff",
    "one zero": b"\0",
    "zeros": bytes(3),
    "many zeros": bytes(4096),
    "zeros and more": bytes(64) + b"\xff\xe1 and more" * 9,
    "Samsung": SAMSUNG,
    "Samsung and zeros": SAMSUNG + bytes(64),
    "a segment cut off": b"\xff\xe1\xff\xffhttp",
    "a marker that is none": b"\xff\x02\0\1",
    "another JPEG": ANOTHER,
    "another JPEG cut off": ANOTHER[:-40],
}

FILES = {
    "colour": encoded(natural((64, 64)), "JPEG", quality=85),
    "large": encoded(natural((160, 128)), "JPEG", quality=95, subsampling=0),
    "coarse": encoded(natural((48, 32)), "JPEG", quality=20, subsampling=1),
    "optimized": encoded(natural((64, 48)), "JPEG", quality=90, optimize=True),
    "restarts": encoded(natural((64, 48)), "JPEG", quality=90, restart_marker_blocks=3),
    "gray": encoded(natural((40, 24), "L"), "JPEG"),
    "inks": encoded(natural((48, 32), "CMYK"), "JPEG"),
    "tiny": encoded(natural((8, 8)), "JPEG", subsampling=0),
    "odd sides": encoded(natural((45, 31)), "JPEG"),
}
TURNS = {"flip": ("-flip", "vertical"), "rotate-90": ("-rotate", "90"), "transverse": ("-transverse",)}


def coefficients(data: bytes, *options: str) -> bytes:
    """Return a file's coefficients, turned or not, in a form that is equal for equal ones."""
    return run("jpegtran", "-copy", "none", "-optimize", *options, given=data)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("trailer", TRAILERS)
def test_a_jpeg_that_lacks_only_its_eoi_is_answered_as_if_it_were_there(name: str, trailer: str) -> None:
    whole = FILES[name]
    torn = whole.removesuffix(EOI) + TRAILERS[trailer]
    for turn in TURNS:
        assert processed(torn, turn).data == processed(whole, turn).data
    assert processed(torn, "flip", output=Format.PNG).data == processed(whole, "flip", output=Format.PNG).data


@pytest.mark.parametrize("name", ["colour", "large", "optimized", "restarts", "gray", "inks"])
def test_without_an_eoi_the_coefficients_are_those_that_jpegtran_finds_with_one(name: str) -> None:
    whole = FILES[name]
    for turn, options in TURNS.items():
        ours = processed(whole.removesuffix(EOI) + SAMSUNG, turn, path="lossless")
        assert coefficients(ours.data) == coefficients(whole, "-perfect", *options)


@pytest.mark.parametrize("trailer", ["zeros", "Samsung", "another JPEG"])
def test_without_an_eoi_the_pixels_are_those_that_imagemagick_shows(trailer: str) -> None:
    torn = FILES["odd sides"].removesuffix(EOI) + TRAILERS[trailer]
    ours = processed(torn, "flip", output=Format.PNG)
    assert pixels(ours.data, "png") == pixels(torn, "jpeg", "-flip")


def test_scans_one_after_the_other_may_lack_the_eoi_too(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    scans.write_text("0; 1; 2;")
    whole = run("jpegtran", "-scans", str(scans), given=FILES["large"])
    ours = processed(whole.removesuffix(EOI) + bytes(9), "flip", path="lossless")
    assert coefficients(ours.data) == coefficients(whole, "-perfect", "-flip", "vertical")
    last = whole.rindex(b"\xff\xda")
    with pytest.raises(DamagedImage):
        processed(whole[:last] + bytes(9), "flip")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("trailer", TRAILERS)
def test_a_cut_is_never_filled_with_what_follows(name: str, trailer: str) -> None:
    """A zero may stand for the one that must follow 0xFF anyway: then nothing is missing."""
    whole = FILES[name]
    answer = processed(whole, "flip").data
    start = whole.rindex(b"\xff\xda") + 14
    for missing in (1, 2, 3, 4, 5, 7, 11, 30, 200):
        end = len(whole) - len(EOI) - missing
        if end <= start:
            break
        try:
            ours = processed(whole[:end] + TRAILERS[trailer], "flip")
        except DamagedImage:
            continue
        assert ours.data == answer, missing


@pytest.mark.parametrize("output", [None, Format.PNG])
def test_a_second_image_does_not_complete_a_first_one_that_is_cut(output: Format | None) -> None:
    cut = FILES["colour"][:-300]
    with pytest.raises(DamagedImage):
        processed(cut + ANOTHER, "flip", output=output)


def test_a_second_image_does_not_turn_a_first_one_without_an_eoi() -> None:
    torn = FILES["colour"].removesuffix(EOI) + ANOTHER
    assert coefficients(processed(torn, "orient").data) == coefficients(FILES["colour"])


def test_segments_behind_the_pixels_are_kept_and_garbage_is_not_taken_for_one() -> None:
    body = FILES["colour"].removesuffix(EOI)
    assert b"a comment" in processed(body + b"\xff\xfe\0\x0ba comment" + EOI, "flip").data
    torn = body + SAMSUNG + b"\xff\xfe\0\x0ba comment" + EOI
    assert b"a comment" not in processed(torn, "flip").data


ADOBE = b"Adobe\0\x64\0\0\0\0"


def bare(data: bytes) -> bytes:
    """Take the JFIF segment out."""
    return data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]


def named(data: bytes, names: bytes) -> bytes:
    """Rename the components."""
    file = bytearray(data)
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    for index, name in enumerate(names):
        file[frame + 10 + 3 * index] = file[scan + 5 + 2 * index] = name
    return bytes(file)


FINE = encoded(natural((48, 32)), "JPEG", quality=90, subsampling=0)
ODDITIES = {
    "fill bytes": FINE[:2] + b"\xff\xff\xff" + FINE[2:],
    "bytes between segments": FINE[:20] + b"\xff\0garbage" + FINE[20:],
    "a restart marker between segments": FINE[:20] + b"\xff\xd3" + FINE[20:],
    "an EOI in a segment": with_segment(FINE, 0xE5, b"\xff\xd9\xff\xda"),
    "an empty segment": with_segment(FINE, 0xE5, b""),
    "DNL": FINE[:-2] + b"\xff\xdc\0\4\0\x20" + EOI,
    "no JFIF": bare(FINE),
    "red, green and blue by Adobe": with_segment(bare(FINE), 0xEE, ADOBE + b"\0"),
    "Adobe in front of JFIF": FINE[:2] + b"\xff\xee\0\x0e" + ADOBE + b"\0" + FINE[2:],
    "an unknown transform": with_segment(bare(FINE), 0xEE, ADOBE + b"\2"),
    "red, green and blue by name": named(bare(FINE), b"RGB"),
    "red, green and blue by name with JFIF": named(FINE, b"RGB"),
    "names from 0": named(bare(FINE), bytes((0, 1, 2))),
    "names in reverse": named(FINE, bytes((3, 2, 1))),
    "bytes behind the last block": FINE[:-2] + b"\x12\x34\x56" + EOI,
    "fill bytes before the EOI": FINE[:-2] + b"\xff\xff" + EOI,
    "a restart marker before the EOI": FILES["restarts"][:-2] + b"\xff\xd5" + EOI,
}


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_jpeg_is_seen_as_imagemagick_sees_it(name: str) -> None:
    data = ODDITIES[name]
    wanted = pixels(data, "jpeg", "-flip")
    assert pixels(processed(data, "flip").data, "jpeg") == wanted
    assert pixels(processed(data, "flip", output=Format.PNG).data, "png") == wanted


HEIGHT = FINE.index(b"\xff\xc0") + 5
REFUSED = {
    "two SOI": b"\xff\xd8" + FINE,
    "no height": FINE[:HEIGHT] + b"\0\0" + FINE[HEIGHT + 2 :],
    "a height behind the pixels": FINE[:HEIGHT]
    + b"\0\0"
    + FINE[HEIGHT + 2 : -2]
    + b"\xff\xdc\0\4\0\x20"
    + EOI,
    "a segment longer than the file": FINE[:2] + b"\xff\xe5\xff\xff" + FINE[2:],
    "two frame headers": FINE[: HEIGHT - 5] + FINE[HEIGHT - 5 : HEIGHT + 14] + FINE[HEIGHT - 5 :],
    "a sampling factor of 0": FINE[: HEIGHT + 6] + b"\1" + FINE[HEIGHT + 7 :],
    "a sampling factor of 5": FINE[: HEIGHT + 6] + b"\x51" + FINE[HEIGHT + 7 :],
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_decoder_shows_is_refused(name: str) -> None:
    run("djpeg", given=REFUSED[name], tolerated=(1,))
    with pytest.raises(DamagedImage):
        processed(REFUSED[name], "flip")
