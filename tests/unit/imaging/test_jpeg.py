"""A turned JPEG is as it was apart from the turn: tables, sampling, scans, size, metadata; never in half."""

from __future__ import annotations

import io
import re
import struct
import subprocess
from itertools import permutations
from os import environ
from shutil import which
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from PIL import Image, ImageCms, JpegImagePlugin, MpoImagePlugin
from support import specimens
from support.oracle import ORIENTATIONS, TURNS, Grid, expected, grid_of, jpeg_segments, psnr
from support.specimens import (
    encoded,
    exif_block,
    gain_map,
    natural,
    orientation_only,
    processed,
    ultra_hdr,
    with_exif,
    with_segment,
)

from server.errors import DamagedImage, UnsupportedImage
from server.imaging.codecs import Format

if TYPE_CHECKING:
    from server.imaging.recipe import ImagePath

SIZE = (128, 96)
CROOKED = (123, 93)  # no multiple of any MCU
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
GOOD_ENOUGH_DB = 48
SOF_BASELINE, SOF_PROGRESSIVE = 0xC0, 0xC2
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def sampling_factors(data: bytes) -> bytes:
    """Return the horizontal and vertical factors of every component, from the frame header."""
    frame = next(body for marker, body in jpeg_segments(data) if marker in {SOF_BASELINE, SOF_PROGRESSIVE})
    return frame[7::3]


def payloads(data: bytes, marker: int, prefix: bytes = b"") -> list[bytes]:
    return [body for kind, body in jpeg_segments(data) if kind == marker and body.startswith(prefix)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("is_progressive", [False, True])
def test_tables_sampling_and_scans_are_kept(sampling: str, is_progressive: bool) -> None:  # noqa: FBT001
    for size in (SIZE, CROOKED):
        for quality in (35, 90):
            data = encoded(
                natural(size), "JPEG", quality=quality, subsampling=sampling, progressive=is_progressive
            )
            for turn, (sides_swap, _) in TURNS.items():
                ours = processed(data, turn)
                case = sampling, is_progressive, size, quality, turn
                assert ours.image.format == "JPEG", case
                assert bool(ours.image.info.get("progressive")) == is_progressive, case
                # A transposing coder may turn the tables, a re-encoding one keeps them as they are.
                tables = opened(data).quantization
                turned = {
                    key: [table[x * 8 + y] for y in range(8) for x in range(8)]
                    for key, table in tables.items()
                }
                assert ours.image.quantization in ((tables, turned) if sides_swap else (tables,)), case
                if sampling != "4:2:2" or not sides_swap:
                    assert sampling_factors(ours.data) == sampling_factors(data), case


def best_possible_db(before: Image.Image, wanted: Grid) -> float:
    """Return the fidelity of a plain encode of the right answer with the same tables, 48 dB at most."""
    right = Image.new(before.mode, wanted.size)
    right.putdata(wanted.pixels)
    sampling = {} if before.mode == "L" else {"subsampling": JpegImagePlugin.get_sampling(before)}
    again = encoded(right, "JPEG", qtables=before.quantization, **sampling)
    return min(GOOD_ENOUGH_DB, psnr(grid_of(opened(again)), wanted) - 0.5)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("size", [(256, 192), (245, 187)])
def test_a_turn_costs_no_visible_quality(sampling: str, size: tuple[int, int]) -> None:
    """At least 48 dB, or what a plain encode costs where the blocks of the answer fall elsewhere."""
    data = encoded(natural(size), "JPEG", quality=90, subsampling=sampling)
    before = opened(data)
    stored = grid_of(before)
    for turn in ("flip", "rotate-90", "transverse"):
        wanted = expected(stored, turn)
        ours = grid_of(processed(data, turn).image)
        assert psnr(ours, wanted) >= best_possible_db(before, wanted), (sampling, size, turn)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_every_turn_of_every_orientation_keeps_the_quality(mode: str) -> None:
    for size in ((64, 48), (37, 29)):
        plain = encoded(natural(size, mode), "JPEG", quality=90, subsampling=0)
        before = opened(plain)
        stored = grid_of(before)
        for turn in TURNS:
            for orientation in ORIENTATIONS:
                case = mode, size, orientation, turn
                ours = processed(with_exif(plain, exif_block(orientation).data), turn).image
                assert ours.mode == mode, case
                wanted = expected(stored, turn, orientation)
                assert ours.size == wanted.size, case
                assert psnr(grid_of(ours), wanted) >= best_possible_db(before, wanted), case


@pytest.mark.parametrize("options", [{}, {"optimize": True}, {"progressive": True}])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_file_keeps_its_size(sampling: str, options: dict[str, bool]) -> None:
    data = encoded(natural((512, 384)), "JPEG", quality=90, subsampling=sampling, **options)
    for turn in ("flip", "flop", "rotate-180"):
        assert abs(len(processed(data, turn).data) - len(data)) <= len(data) / 100, (sampling, turn)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("thumbnail_first", [False, True])
def test_exif_comes_back_byte_for_byte_but_for_orientation_and_thumbnail(
    order: str,
    thumbnail_first: bool,  # noqa: FBT001
) -> None:
    plain = encoded(natural(SIZE), "JPEG")
    for orientation in ORIENTATIONS:
        block = exif_block(orientation, order=order, thumbnail_first=thumbnail_first)
        for turn in TURNS:
            case = order, thumbnail_first, orientation, turn
            found = payloads(processed(with_exif(plain, block.data), turn).data, 0xE1, b"Exif\0\0")
            assert len(found) == 1, case
            ours, wanted = found[0][6:], block.after()
            assert specimens.THUMBNAIL not in ours, case
            dropped = range(block.thumbnail_directory.start, block.thumbnail.stop)
            ours = ours.ljust(len(wanted), b"\0")
            different = [at for at in range(len(wanted)) if at not in dropped and ours[at] != wanted[at]]
            assert not different, case
            assert len(ours) == len(wanted), case


def test_exif_without_an_orientation_comes_back_as_it_is() -> None:
    block = b"MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\0\x03Me\0\0\0\0\0\0"
    data = with_exif(encoded(natural(SIZE), "JPEG"), block)
    for turn in TURNS:
        assert payloads(processed(data, turn).data, 0xE1) == [b"Exif\0\0" + block], turn


@pytest.mark.parametrize(
    "block", [b"", b"II", b"II*\0\xff\xff\xff\xff", b"nonsense", b"MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_does_not_spoil_the_image(block: bytes) -> None:
    plain = encoded(natural(SIZE), "JPEG")
    data = with_exif(plain, block)
    for turn in TURNS:
        ours = processed(data, turn).image
        assert psnr(grid_of(ours), expected(grid_of(opened(plain)), turn)) > 40, turn
        assert ours.getexif().get(0x0112, 1) == 1, turn


def test_profile_xmp_and_comment_come_back_unless_they_are_stripped() -> None:
    data = encoded(natural(SIZE), "JPEG", icc_profile=PROFILE, comment=b"on the left")
    data = with_exif(with_segment(data, 0xE1, XMP), exif_block(6).data)
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.image.info["icc_profile"] == PROFILE, turn
        assert payloads(ours.data, 0xE1, b"http:") == [XMP], turn
        assert payloads(ours.data, 0xFE) == [b"on the left"], turn
        stripped = processed(data, turn, strip=True)
        assert not payloads(stripped.data, 0xE1), turn
        assert not payloads(stripped.data, 0xFE), turn
        assert specimens.THUMBNAIL not in stripped.data, turn
        wanted = expected(grid_of(opened(data)), turn, 6)
        assert psnr(grid_of(stripped.image), wanted) > 40, turn


def test_a_profile_longer_than_one_segment_comes_back() -> None:
    profile = specimens.noise(150_000, "profile")
    data = encoded(natural(SIZE), "JPEG", icc_profile=profile)
    for turn in TURNS:
        assert processed(data, turn).image.info["icc_profile"] == profile, turn


def test_the_density_turns_with_the_image() -> None:
    plain = encoded(natural(SIZE), "JPEG", dpi=(300, 72))
    for orientation in (1, 3, 6):
        data = with_exif(plain, specimens.orientation_only(orientation))
        for turn, (sides_swap, _) in TURNS.items():
            wanted = (72, 300) if sides_swap != (orientation == 6) else (300, 72)
            ours = processed(data, turn).image.info["dpi"]
            assert tuple(round(dots) for dots in ours) == wanted, (orientation, turn)


def test_quality_is_taken_over() -> None:
    data = encoded(natural(SIZE), "JPEG", quality=90)
    for quality in (1, 40, 75, 100):
        reference = opened(encoded(natural(SIZE), "JPEG", quality=quality)).quantization
        assert processed(data, "flip", quality=quality).image.quantization == reference, quality
    sizes = [len(processed(data, "flip", quality=quality).data) for quality in (10, 50, 95)]
    assert sizes == sorted(set(sizes))


def test_orienting_an_upright_jpeg_changes_no_pixel() -> None:
    data = encoded(natural(CROOKED), "JPEG", quality=90, subsampling=2)
    assert psnr(grid_of(processed(data, "orient").image), grid_of(opened(data))) >= GOOD_ENOUGH_DB


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (17, 1), (8, 8), (16, 16), (15, 33)])
def test_jpegs_of_any_size_are_seen_turned(size: tuple[int, int]) -> None:
    for sampling in SAMPLINGS:
        data = encoded(natural(size), "JPEG", quality=95, subsampling=sampling)
        stored = grid_of(opened(data))
        for turn in TURNS:
            ours = grid_of(processed(data, turn).image)
            wanted = expected(stored, turn)
            assert ours.size == wanted.size, (size, sampling, turn)
            assert psnr(ours, wanted) >= 30, (size, sampling, turn)


def test_the_middle_colour_of_cmyk_is_not_inverted() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (200, 20, 60, 10)), "JPEG", quality=95)
    for turn in TURNS:
        seen = processed(data, turn).image.getpixel((8, 8))
        assert max(abs(a - b) for a, b in zip(seen, (200, 20, 60, 10), strict=True)) <= 3, turn


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 4}], ids=str
)
def test_a_truncated_jpeg_is_never_answered(options: dict[str, object]) -> None:
    data = with_exif(encoded(natural(SIZE), "JPEG", quality=90, **options), exif_block(6).data)
    cuts = {len(data) * percent // 100 for percent in range(0, 100, 2)} | {
        len(data) - n for n in range(3, 17)
    }  # without the EOI alone every pixel is there
    for cut in sorted(cuts):
        for turn in ("flip", "transpose"):
            with pytest.raises((DamagedImage, UnsupportedImage)):
                pytest.fail(f"{cut} of {len(data)} bytes gave {processed(data[:cut], turn).result}")


def test_a_jpeg_truncated_behind_a_whole_thumbnail_is_not_answered() -> None:
    """The end of image marker of the thumbnail is not the image's."""
    small = encoded(natural((16, 12)), "JPEG")
    data = with_segment(encoded(natural(SIZE), "JPEG", quality=90), 0xE2, b"thumb" + small)
    with pytest.raises(DamagedImage):
        processed(data[: len(data) // 2], "flip")


@pytest.mark.parametrize(
    "garbage", [b"\0", b"\n", b"\0" * 4096, b"trailing " * 100, b"\xff\xd8\xff\xe0 another"]
)
def test_garbage_behind_the_end_is_accepted(garbage: bytes) -> None:
    data = encoded(natural(SIZE), "JPEG", quality=90)
    wanted = grid_of(opened(data))
    for turn in ("flip", "rotate-90"):
        ours = grid_of(processed(data + garbage, turn).image)
        assert psnr(ours, expected(wanted, turn)) >= 40, turn


def test_a_phone_s_mpo_is_a_jpeg() -> None:
    first, second = natural(SIZE), natural((32, 24))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=90)
    assert opened(data).format == "MPO"
    stored = grid_of(opened(data))
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.result.format is Format.JPEG, turn
        assert ours.image.format == "JPEG", turn
        assert psnr(grid_of(ours.image), expected(stored, turn)) > 40, turn


def test_the_file_of_a_gain_map_and_a_video_is_what_it_says() -> None:
    """The next tests prove nothing if their source is not a real one."""
    data = ultra_hdr(encoded(natural(SIZE), "JPEG"), orientation_only(6))
    pair = MpoImagePlugin.MpoImageFile(
        io.BytesIO(data)
    )  # `Image.open` takes an Ultra HDR file for a plain one
    assert pair.n_frames == 2
    pair.seek(1)
    assert pair.size == (32, 24)
    (length,) = re.findall(rb'GainMap"[^/]*/jpeg" Item:Length="(\d+)"', data)
    assert data.endswith(gain_map((32, 24)) + specimens.VIDEO)
    assert int(length) == len(gain_map((32, 24)))


#: What of `directory_xmp` is no word of others, and what is.
KEPT_WORDS = ("<dc:title>A café at night</dc:title>".encode(), b"""dc:source='a "b" > c'""")
COMPANION_WORDS = (b"hdrgm", b"hdr-gain-map", b"GainMap", b"Container", b"MotionPhoto", b"21496", b"MPF\0")


@pytest.mark.parametrize(
    ("path", "orientation"),
    [("lossless", 1), ("lossless", 6), ("coefficients", 1), ("pixels", 1), ("pixels", 6)],
)
def test_of_a_gain_map_and_a_video_no_word_is_left(path: ImagePath, orientation: int) -> None:
    stored = {"lossless": (128, 96), "coefficients": (136, 104), "pixels": (123, 93)}[path]
    plain = encoded(natural(stored), "JPEG", quality=90, subsampling="4:2:0")
    data = ultra_hdr(plain, orientation_only(orientation))
    for turn in ("flip", "flop") if path == "coefficients" else TURNS:
        ours = processed(data, turn, path=None if path == "coefficients" else path)
        case = path, orientation, turn
        assert ours.result.path == path, case
        assert ours.image.format == "JPEG", case
        assert not [word for word in COMPANION_WORDS if word in ours.data], case
        assert ours.data.endswith(b"\xff\xd9"), case
        assert len(re.findall(b"\xff\xd8", ours.data)) == 1, case
        (xmp,) = payloads(ours.data, 0xE1, specimens.XMP)
        ET.fromstring(xmp[len(specimens.XMP) :])  # noqa: S314 - our own
        assert all(word in xmp for word in KEPT_WORDS), case
        wanted = expected(grid_of(opened(plain)), turn, orientation)
        assert psnr(grid_of(ours.image), wanted) > 40, case


@pytest.mark.skipif(
    which("jpegtran") is None and "CI" not in environ, reason="needs libjpeg-turbo-progs, for jpegtran"
)
def test_the_primary_image_is_the_one_that_jpegtran_finds() -> None:
    data = ultra_hdr(encoded(natural(SIZE), "JPEG", quality=90))
    command = ("jpegtran", "-perfect", "-copy", "none", "-flip", "vertical")
    theirs = subprocess.run(command, input=data, capture_output=True, check=True, timeout=60).stdout
    assert processed(data, "flip", path="lossless").image.tobytes() == opened(theirs).tobytes()


@pytest.mark.parametrize("form", [Format.PNG, Format.WEBP, Format.TIFF, Format.AVIF])
def test_another_format_says_nothing_of_a_gain_map_or_a_video(form: Format) -> None:
    plain = encoded(natural(SIZE), "JPEG", quality=90)
    ours = processed(ultra_hdr(plain, orientation_only(6)), "rotate-90", output=form, quality=95)
    assert getattr(ours.image, "n_frames", 1) == 1
    assert not [word for word in COMPANION_WORDS if word in ours.data]
    assert all(word in ours.data for word in KEPT_WORDS)
    assert psnr(grid_of(ours.image.convert("RGB")), expected(grid_of(opened(plain)), "rotate-90", 6)) > 30


def test_an_xmp_extension_goes_when_it_holds_a_depth_map_and_stays_otherwise() -> None:
    """It would show the depth of the image before the turn, as a thumbnail does."""
    depth = b"xmlns:GDepth='http://ns.google.com/photos/1.0/depthmap/' GDepth:Data='/9j/4AAQ'"
    named = b"<a xmlns:xmpNote='http://ns.adobe.com/xmp/note/' b='c' xmpNote:HasExtendedXMP='%s'/>" % (
        b"0" * 32
    )
    for text, is_kept in ((depth, False), (b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", True)):
        data = with_segment(encoded(natural(SIZE), "JPEG"), 0xE1, specimens.XMP + named)
        for offset in (40, 0):  # in two parts, cut in the middle of a name
            header = specimens.XMP_EXTENSION + b"0" * 32 + struct.pack(">II", len(text), offset)
            data = with_segment(data, 0xE1, header + (text[offset:] if offset else text[:40]))
        flipped = processed(data, "flip").data
        assert bool(payloads(flipped, 0xE1, specimens.XMP_EXTENSION)) == is_kept
        (xmp,) = payloads(flipped, 0xE1, specimens.XMP)
        assert (b"HasExtendedXMP" in xmp) == is_kept
        assert b" b='c' " in xmp


def test_of_several_xmp_packets_the_first_is_edited_and_others_stay_if_they_need_no_edit() -> None:
    gain_map = b"<a xmlns:h='http://ns.adobe.com/hdr-gain-map/1.0/' b='%d'/>"
    data = encoded(natural(SIZE), "JPEG")
    for text in (b"<a b='4'/>", gain_map % 3, b"<a b='2'/>", gain_map % 1):  # the last one comes first
        data = with_segment(data, 0xE1, specimens.XMP + text)
    packets = payloads(processed(data, "flip").data, 0xE1, specimens.XMP)
    assert [re.findall(rb"b='(.)'", packet) for packet in packets] == [[b"1"], [b"2"], [b"4"]]


def test_sampling_4_2_2_never_becomes_coarser() -> None:
    """Turned by a quarter it is 4:4:0, which not every encoder writes; then finer sampling is right."""
    fine, wide, tall = b"\x11\x11\x11", b"\x21\x11\x11", b"\x12\x11\x11"
    data = encoded(natural(SIZE), "JPEG", subsampling="4:2:2")
    for turn in TURNS:
        sides_swap, _ = TURNS[turn]
        factors = sampling_factors(processed(data, turn).data)
        assert factors in ({fine, wide, tall} if sides_swap else {wide}), turn


def test_a_gray_jpeg_stays_gray() -> None:
    data = encoded(natural(SIZE, "L"), "JPEG")
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.image.mode == "L", turn
        assert len(sampling_factors(ours.data)) == 1, turn


def test_the_answer_is_a_fresh_file_that_can_be_sent_again() -> None:
    """Three more passes cost next to nothing, because the tables are kept."""
    data = encoded(natural(SIZE), "JPEG", quality=90, subsampling=0)
    stored = grid_of(opened(data))
    turned = data
    for _ in range(4):
        turned = processed(turned, "rotate-90").data
    assert psnr(grid_of(opened(turned)), stored) >= GOOD_ENOUGH_DB
    assert JpegImagePlugin.get_sampling(opened(turned)) == 0


def test_the_oracle_tells_a_wrong_turn_from_a_right_one() -> None:
    """The bounds above are meaningful: any other turn of this image is far below them."""
    stored: Grid = grid_of(natural((64, 64)))
    answers = {turn: expected(stored, turn) for turn in TURNS}
    for right, wrong in permutations(TURNS, 2):
        assert psnr(answers[right], answers[wrong]) < 20, (right, wrong)


def test_a_progressive_jpeg_with_a_scan_missing_is_not_answered() -> None:
    data = encoded(natural(SIZE), "JPEG", progressive=True)
    scans = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    assert len(scans) > 5
    for scan in scans:
        with pytest.raises(DamagedImage):
            processed(data[:scan] + b"\xff\xd9", "flip")
        with pytest.raises(DamagedImage):
            processed(data[:scan] + b"\xff\xd9", "flip", output=Format.PNG)


def test_a_jpeg_with_a_colour_missing_is_not_answered() -> None:
    data = encoded(natural(SIZE), "JPEG", progressive=True)
    frame = data.index(b"\xff\xc2")
    scan = data.index(b"\xff\xda")
    luma_only = data[:frame] + b"\xff\xc0" + data[frame + 2 : scan]
    for components in (b"\1", b"\1\2", b"\2\3"):
        header = b"".join(bytes((component, 0)) for component in components)
        sos = bytes((len(components),)) + header + b"\0\x3f\0"
        torn = luma_only + b"\xff\xda" + struct.pack(">H", 2 + len(sos)) + sos + bytes(9) + b"\xff\xd9"
        with pytest.raises(DamagedImage, match="scans"):
            processed(torn)
