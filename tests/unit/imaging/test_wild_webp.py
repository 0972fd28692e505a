"""WebPs as strangers write them, judged by ImageMagick over libwebp and by hand."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image
from support.oracle import CLEAR, TURNS, Grid, Patch, displayed, expected, psnr
from support.programs import pixels, run, run_on
from support.specimens import encoded, natural, noise, noise_image, processed, riff_chunk, webp_animation

from server.errors import DamagedImage
from server.imaging.codecs import Format


def riff(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def extended(size: tuple[int, int], flags: int) -> bytes:
    """Return a VP8X chunk."""
    return riff_chunk(
        b"VP8X", bytes([flags, 0, 0, 0]) + b"".join((n - 1).to_bytes(3, "little") for n in size)
    )


def bitstream(image: Image.Image, **options: object) -> bytes:
    """Return the chunks with pixels."""
    data = encoded(image, "WEBP", **options)
    return data[12:] if data[12:16] != b"VP8X" else data[30:]


def decoded(files: list[bytes]) -> list[Grid]:
    """Decode stills with one run of ImageMagick, without the colour of transparent pixels."""
    with TemporaryDirectory() as directory:
        paths = [Path(directory, f"{at}.webp") for at in range(len(files))]
        for path, file in zip(paths, files, strict=True):
            path.write_bytes(file)
        pams = run("convert", *map(str, paths), "-depth", "8", "PAM:-")
    grids = []
    while pams:
        head, _, pams = pams.partition(b"ENDHDR\n")
        fields = dict(line.split(b" ", 1) for line in head.splitlines()[1:])
        width, height, depth = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH"))
        samples, pams = pams[: width * height * depth], pams[width * height * depth :]
        found = (
            (*samples[start : start + 3], *(samples[start + 3 : start + 4] if depth > 3 else b"\xff"))
            for start in range(0, len(samples), depth)
        )
        grids.append(Grid(width, height, tuple(pixel if pixel[3] else CLEAR for pixel in found)))
    return grids


def stored(data: bytes) -> list[Patch]:
    """Return the frames as they are stored; ImageMagick does not know all ways to compose them."""
    heads, files = [], []
    at = 30
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        body, at = data[at + 8 : at + 8 + length], at + 8 + length + length % 2
        if kind == b"ANMF":
            size = tuple(int.from_bytes(body[start : start + 3], "little") + 1 for start in (6, 9))
            files.append(riff(extended(size, 0x10), body[16:]))
            heads.append(body[:16])
    return [
        Patch(
            grid,
            left=2 * int.from_bytes(head[0:3], "little"),
            top=2 * int.from_bytes(head[3:6], "little"),
            dispose="background" if head[15] & 1 else "keep",
            is_laid_over=not head[15] & 2,
            duration_ms=int.from_bytes(head[12:15], "little"),
        )
        for grid, head in zip(decoded(files), heads, strict=True)
    ]


def seen(data: bytes) -> list[Grid]:
    """Return every frame as a person sees it."""
    size = tuple(int.from_bytes(data[start : start + 3], "little") + 1 for start in (24, 27))
    return displayed(size, stored(data))


# --- The container ----------------------------------------------------------------------------------------


def lossless_pixel(*channels: int) -> bytes:
    """Return the shortest lossless image of one pixel: one code for each of green, red, blue and alpha."""
    packed, used = 0, 3  # no transform, no colour cache, no groups
    for value in channels:
        is_long = value > 1
        packed |= (1 | is_long << 2 | value << 3) << used  # a simple code of one symbol, of one bit or eight
        used += 11 if is_long else 4
    packed |= 1 << used  # of distances
    body = b"\x2f" + bytes(4) + packed.to_bytes((used + 4 + 7) // 8, "little")
    return riff(riff_chunk(b"VP8L", body))


@pytest.mark.parametrize(
    "channels",
    [(1, 0, 0, 1), (1, 0, 1, 1), (77, 0, 0, 1), (77, 88, 0, 1), (77, 88, 99, 1), (77, 88, 99, 255)],
)
def test_an_image_may_be_shorter_than_thirty_bytes(channels: tuple[int, ...]) -> None:
    data = lossless_pixel(*channels)
    assert len(data) <= 32
    green, red, blue, _ = channels
    wanted = ((red, green, blue, 255),)
    assert pixels(data, "webp").pixels == wanted
    assert len(lossless_pixel(1, 0, 0, 1)) == 28
    for output in (None, Format.PNG):
        ours = processed(data, "flip", output=output)
        assert pixels(ours.data, ours.result.format).pixels == wanted


def test_what_is_too_short_for_its_structure_is_refused() -> None:
    data = lossless_pixel(1, 0, 0, 1)
    for end in range(12, len(data) - 1):
        with pytest.raises(DamagedImage):
            processed(data[:end], "flip")
        with pytest.raises(DamagedImage):
            processed(riff(data[12:end]), "flip")


@pytest.mark.parametrize("output", [None, Format.PNG])
def test_padding_may_be_missing_and_more_may_follow(output: Format | None) -> None:
    for seed in range(20):
        whole = encoded(noise_image("RGB", (9, 7), seed), "WEBP", lossless=True)
        if struct.unpack_from("<I", whole, 16)[0] % 2:
            break
    wanted = pixels(whole, "webp", "-flip")
    size = len(whole) - 8
    told = {
        length: whole[:4] + struct.pack("<I", length) + whole[8:] for length in (size - 1, size, size + 8)
    }
    for data in (
        told[size - 1],  # without the padding in its length
        told[size - 1][:-1],  # and without it
        told[size][:-1],  # in its length only
        told[size] + b"more",
        told[size + 8] + riff_chunk(b"rest", b""),
        riff(riff_chunk(b"rest", b"x"), whole[12:]),
    ):
        ours = processed(data, "flip", output=output)
        assert pixels(ours.data, ours.result.format) == wanted


def test_a_length_that_is_wrong_by_more_is_refused() -> None:
    whole = encoded(noise_image("RGB", (9, 7)), "WEBP", lossless=True)
    size = len(whole) - 8
    for length in (0, 4, 11, size - 2, size + 2, 2 * size, 2**32 - 2):
        with pytest.raises(DamagedImage):
            processed(whole[:4] + struct.pack("<I", length) + whole[8:], "flip")


@pytest.mark.parametrize("options", [{"lossless": True, "exact": True}, {"quality": 80}])
@pytest.mark.parametrize("output", [None, Format.PNG])
def test_alpha_without_its_flag_is_alpha(options: dict[str, object], output: Format | None) -> None:
    """As `dwebp` shows it. Pillow drops it."""
    image = natural((12, 10)).convert("RGBA")
    image.putalpha(Image.frombytes("L", image.size, noise(120, "alpha")))
    data = riff(extended(image.size, 0), bitstream(image, **options))
    ours = processed(data, "flip", output=output)
    alphas = image.getchannel("A").transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()
    assert bytes(pixel[3] for pixel in pixels(ours.data, ours.result.format).pixels) == alphas
    assert b"No error" in run_on("webpinfo", processed(data, "flip").data, ".webp", "{}")


@pytest.mark.parametrize("output", [None, Format.PNG])
def test_a_profile_counts_where_its_flag_says_so(output: Format | None) -> None:
    """Browsers do not look for one without the flag; to set it would change the colours."""
    image = natural((12, 10))
    profile = riff_chunk(b"ICCP", b"a profile of RGB".ljust(128, b"\0")[:16] + b"RGB " + bytes(108))
    for flags in (0, 0x20):
        data = riff(extended(image.size, flags), profile, bitstream(image, lossless=True))
        ours = processed(data, "flip", output=output).data
        assert (b"ICCP" in ours or b"iCCP" in ours) == bool(flags)


def test_flags_and_chunks_that_contradict_each_other_are_refused() -> None:
    """As libwebp refuses them."""
    still = bitstream(natural((12, 10)), lossless=True)
    frame = riff_chunk(b"ANMF", bytes(6) + bytes([11, 0, 0, 9, 0, 0]) + bytes(4) + still)
    loops = riff_chunk(b"ANIM", bytes(6))
    for chunks in (
        [extended((12, 10), 2), still],
        [extended((12, 10), 2), loops],
        [extended((12, 10), 0), loops, frame],
        [extended((12, 11), 0), still],
        [riff_chunk(b"VP8X", bytes(4) + bytes([11, 0, 0, 9, 0, 0, 0, 0])), still],
        [riff_chunk(b"VP8X", bytes(4) + bytes([11, 0, 0])), still],
    ):
        for output in (None, Format.PNG):
            with pytest.raises(DamagedImage):
                processed(riff(*chunks), "flip", output=output)


# --- Frames whose mirrored places are odd -----------------------------------------------------------------


def holed(size: tuple[int, int], seed: object) -> Grid:
    """Return noise, about a third of it clear."""
    raw = noise(4 * size[0] * size[1], ("holed", seed))
    samples = zip(raw[0::4], raw[1::4], raw[2::4], raw[3::4], strict=True)
    return Grid(*size, tuple(CLEAR if a < 80 else (r, g, b, 255) for r, g, b, a in samples))


def filled(size: tuple[int, int], seed: object) -> Grid:
    return holed(size, seed).map(lambda pixel: (7, 8, 9, 255) if pixel == CLEAR else pixel)


#: On a canvas of 11 x 9: each is somewhere else, and its mirrored offsets are odd in one axis or both.
PLACES = ((2, 2, (4, 4)), (4, 0, (5, 3)), (0, 6, (6, 3)), (6, 4, (3, 2)), (0, 0, (1, 1)), (2, 0, (9, 9)))


@pytest.mark.parametrize("turn", [turn for turn in TURNS if turn not in {"orient", "transpose"}])
@pytest.mark.parametrize("is_laid_over", [True, False])
@pytest.mark.parametrize("disposes", ["keep", "background", "mixed"])
@pytest.mark.parametrize("is_full_at_first", [True, False])
def test_frames_at_odd_places_look_the_same(
    turn: str,
    is_laid_over: bool,  # noqa: FBT001
    disposes: str,
    is_full_at_first: bool,  # noqa: FBT001
) -> None:
    first = Patch(filled((11, 9), 0), duration_ms=40)
    patches = [first] * is_full_at_first + [
        Patch(
            (holed if at % 3 else filled)(size, at),
            left,
            top,
            disposes if disposes != "mixed" else ("keep", "background")[at % 2],
            is_laid_over ^ (disposes == "mixed" and at % 4 == 0),
            50 + at,
        )
        for at, (left, top, size) in enumerate(PLACES + PLACES[::-1])
    ]
    wanted = [expected(frame, turn) for frame in displayed((11, 9), patches)]
    ours = processed(webp_animation((11, 9), patches, loops=3), turn)
    assert seen(ours.data) == wanted
    told = run_on("webpinfo", ours.data, ".webp", "{}").decode()
    assert "No error detected" in told
    durations = [int(line.split()[-1]) for line in told.splitlines() if "Duration" in line]
    assert durations == [patch.duration_ms for patch in patches]


def sprites(form: dict[str, object], dispose: str) -> bytes:
    """Return a background of 161 x 121 and six small frames that wander over it."""
    patches = [(0, 0, natural((161, 121)), 2)]
    for at in range(6):
        image = natural((40, 30)).rotate(30 * at, fillcolor=(90, 0, 90))
        patches.append((20 * at, 12 * at, image, int(dispose == "background")))
    frames = [
        riff_chunk(
            b"ANMF",
            b"".join(n.to_bytes(3, "little") for n in (x // 2, y // 2, image.width - 1, image.height - 1, 50))
            + bytes([flags])
            + bitstream(image, **form),
        )
        for x, y, image, flags in patches
    ]
    return riff(extended((161, 121), 2), riff_chunk(b"ANIM", bytes(6)), *frames)


@pytest.mark.parametrize("form", [{"lossless": True}, {"quality": 80}])
@pytest.mark.parametrize("dispose", ["keep", "background"])
def test_frames_at_odd_places_take_no_more_room(form: dict[str, object], dispose: str) -> None:
    data = sprites(form, dispose)
    even = len(processed(data, "orient").data)
    odd = processed(data, "rotate-180").data
    assert len(odd) < 1.5 * even
    for ours, theirs in zip(seen(odd), seen(data), strict=True):
        assert psnr(ours, expected(theirs, "rotate-180")) > (99 if form.get("lossless") else 27)


def test_a_column_that_is_added_to_a_lossy_frame_does_not_show() -> None:
    """The frame itself is as opaque as before, next to pixels that are clear or those of another frame."""
    image = Image.new("RGB", (16, 16), (200, 40, 40))
    frame = b"ANMF", bytes([2, 0, 0, 2, 0, 0, 15, 0, 0, 15, 0, 0, 50, 0, 0])
    for flags in (0, 1, 2, 3):
        data = riff(
            extended((31, 31), 2),
            riff_chunk(b"ANIM", bytes(6)),
            riff_chunk(frame[0], frame[1] + bytes([flags]) + bitstream(image, quality=90)),
        )
        (only,) = seen(processed(data, "rotate-180").data)
        inside = {(x, y) for x in range(11, 27) for y in range(11, 27)}
        for y in range(31):
            for x in range(31):
                if (x, y) not in inside:
                    assert only.at(x, y) == CLEAR
                else:
                    red, green, blue, alpha = only.at(x, y)
                    assert alpha == 255
                    assert max(abs(red - 200), abs(green - 40), abs(blue - 40)) < 8


def test_even_places_stay_as_they_are() -> None:
    patches = [Patch(filled((12, 10), 0)), replace(Patch(holed((4, 4), 1), 2, 4), dispose="background")]
    data = webp_animation((12, 10), patches)
    ours = processed(data, "rotate-180").data
    places = [ours[at + 8 : at + 20] for at in (ours.index(b"ANMF"), ours.rindex(b"ANMF"))]
    assert places == [
        bytes([0, 0, 0, 0, 0, 0, 11, 0, 0, 9, 0, 0]),
        bytes([3, 0, 0, 1, 0, 0, 3, 0, 0, 3, 0, 0]),
    ]
