"""GIFs as strangers write them, and animations that become GIFs, judged by other readers and by hand."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image, ImageCms
from support.oracle import CLEAR, TURNS, Grid, Patch, displayed, expected, read_apng
from support.programs import pixels, run, run_on, tags
from support.specimens import (
    GENEROUS,
    GifFrame,
    apng,
    chunk,
    encoded,
    gif,
    gif_palette,
    noise,
    processed,
    webp_animation,
    with_chunk,
)

from server.errors import DamagedImage, TooManyPixels
from server.imaging.codecs import Format
from server.imaging.limits import Limits

PALETTE = gif_palette("wild")
RED, BLUE = (250, 0, 0, 255), (0, 0, 250, 255)
KEY = 5


def indices(size: tuple[int, int], seed: object) -> Grid:
    return Grid(*size, tuple(byte % 16 for byte in noise(size[0] * size[1], ("wild", seed))))


def cropped(grid: Grid, width: int, height: int) -> Grid:
    """Return the upper left part."""
    return Grid(width, height, tuple(grid.at(x, y) for y in range(height) for x in range(width)))


def seen(data: bytes, form: str, count: int) -> list[Grid]:
    """Return every frame as ImageMagick composes it, without the colour of transparent pixels."""
    strip = pixels(data, form, "-coalesce", frame=None)
    height = strip.height // count
    area = strip.width * height
    return [
        Grid(strip.width, height, strip.pixels[at : at + area]).map(
            lambda pixel: pixel if pixel[3] else CLEAR
        )
        for at in range(0, count * area, area)
    ]


def delays(data: bytes) -> list[int]:
    """Return how long each frame of a GIF shows, in hundredths of a second."""
    return [int(delay) for delay in run("convert", "gif:-", "-format", "%T ", "info:-", given=data).split()]


def with_screen(data: bytes, width: int, height: int) -> bytes:
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def one_pixel_frame(code_size: int, lzw: bytes, size: tuple[int, int] = (1, 1)) -> bytes:
    descriptor = b"," + struct.pack("<4HB", 0, 0, *size, 0)
    head = b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes(RED[:3]) + bytes(BLUE[:3])
    return head + descriptor + bytes([code_size, len(lzw)]) + lzw + b"\0;"


# --- The canvas -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disposal", [1, 2, 3])
@pytest.mark.parametrize(
    ("place", "size", "visible"),
    [
        ((6, 4), (8, 5), (3, 3)),
        ((0, 5), (9, 7), (9, 2)),
        ((7, 0), (30, 7), (2, 7)),
        ((0, 0), (20, 20), (9, 7)),
    ],
)
def test_a_frame_over_the_edge_of_the_canvas_is_cut_there(
    disposal: int, place: tuple[int, int], size: tuple[int, int], visible: tuple[int, int]
) -> None:
    frames = [
        GifFrame(indices((9, 7), 1), transparent=KEY, disposal=1),
        GifFrame(indices(size, 2), *place, transparent=KEY, disposal=disposal, delay_cs=20),
        GifFrame(indices((3, 2), 3), 2, 1, transparent=KEY, disposal=1, delay_cs=30),
    ]
    data = gif((9, 7), PALETTE, frames)
    patches = [frame.patch(PALETTE) for frame in frames]
    patches[1] = Patch(cropped(patches[1].grid, *visible), *place, patches[1].dispose)
    wanted = displayed((9, 7), patches)
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.result.frames == 3
        assert seen(ours.data, "gif", 3) == [expected(frame, turn) for frame in wanted]
        assert delays(ours.data) == [10, 20, 30]
    converted = processed(data, "flop", output=Format.PNG).data
    assert displayed((9, 7), read_apng(converted)) == [expected(frame, "flop") for frame in wanted]


@pytest.mark.parametrize("place", [(9, 0), (0, 7), (40, 3), (65535, 65535)])
@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
@pytest.mark.parametrize("has_control", [True, False])
def test_a_frame_outside_the_canvas_shows_nothing_for_its_time(
    place: tuple[int, int],
    disposal: int,
    has_control: bool,  # noqa: FBT001
) -> None:
    frames = [
        GifFrame(indices((9, 7), 1), transparent=KEY, disposal=1),
        GifFrame(indices((4, 4), 2), *place, disposal=disposal, delay_cs=70),
        GifFrame(indices((3, 2), 3), 2, 1, transparent=KEY, disposal=1),
    ]
    data = gif((9, 7), PALETTE, frames)
    if not has_control:
        control = b"\x21\xf9\x04" + struct.pack("<BHB", disposal << 2, 70, 0) + b"\0"
        data = data.replace(control, b"")
    first, last = (frames[at].patch(PALETTE) for at in (0, 2))
    wanted = displayed((9, 7), [first, Patch(Grid(1, 1, (CLEAR,))), last])
    ours = processed(data, "rotate-90")
    assert ours.result.frames == 3
    assert seen(ours.data, "gif", 3) == [expected(frame, "rotate-90") for frame in wanted]
    assert delays(ours.data) == [10, 70 if has_control else 0, 10]
    assert len(read_apng(processed(data, output=Format.PNG).data)) == 3


@pytest.mark.parametrize(
    ("screen", "place", "canvas"),
    [
        ((0, 0), (0, 0), (6, 5)),
        ((0, 9), (0, 0), (6, 9)),
        ((3, 2), (0, 0), (6, 5)),
        ((3, 9), (0, 1), (6, 9)),
        ((6, 5), (2, 1), (8, 6)),
    ],
)
def test_the_first_frame_enlarges_the_canvas(
    screen: tuple[int, int], place: tuple[int, int], canvas: tuple[int, int]
) -> None:
    """As in Chromium; the others cut it, or move it. A screen of 0 x 0 is that of the first frame for all."""
    frames = [
        GifFrame(indices((6, 5), 1), *place, transparent=KEY, disposal=1),
        GifFrame(indices((4, 4), 2), 5, 4, transparent=KEY, disposal=1),
    ]
    data = with_screen(gif((1, 1), PALETTE, frames), *screen)
    first, second = (frame.patch(PALETTE) for frame in frames)
    visible = (min(4, canvas[0] - 5), min(4, canvas[1] - 4))
    wanted = displayed(canvas, [first, Patch(cropped(second.grid, *visible), 5, 4)])
    for turn in ("flip", "rotate-270"):
        ours = processed(data, turn)
        assert (ours.result.width, ours.result.height) == wanted[0].size[:: 1 if turn == "flip" else -1]
        assert seen(ours.data, "gif", 2) == [expected(frame, turn) for frame in wanted]


def test_a_still_on_a_screen_of_nothing_is_what_imagemagick_shows() -> None:
    data = with_screen(gif((6, 5), PALETTE, [GifFrame(indices((6, 5), 1))]), 0, 0)
    assert pixels(processed(data, "flop").data, "gif") == pixels(data, "gif", "-flop")
    assert pixels(processed(data, "flop", output=Format.PNG).data, "png") == pixels(data, "gif", "-flop")


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_a_frame_counts_with_all_its_pixels(frames: int) -> None:
    """What lies outside the canvas is decoded too, and a screen of nothing hides no size."""
    large = GifFrame(indices((30, 30), 1))
    small = GifFrame(indices((4, 4), 2))
    data = with_screen(gif((1, 1), PALETTE, [small, large, large][3 - frames :]), 0, 0)
    with pytest.raises(TooManyPixels):
        processed(data, limits=Limits(max_pixels=899, max_frames=9, max_total_pixels=10**6))
    total = {1: 900, 2: 1800, 3: 1816}[frames]
    assert processed(data, limits=Limits(900, 9, total)).result.frames == frames
    with pytest.raises(TooManyPixels):
        processed(data, limits=Limits(900, 9, total - 1))


# --- The end of the file ----------------------------------------------------------------------------------


def sample(count: int) -> bytes:
    return gif((6, 5), PALETTE, [GifFrame(indices((6, 5), at)) for at in range(count)])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("tail", [b"", b"\0\0\0", b"\0;", b"\xff", b"garbage, and more of it", bytes(500)])
@pytest.mark.parametrize("output", [None, Format.PNG])
def test_whole_frames_are_enough(count: int, tail: bytes, output: Format | None) -> None:
    whole = sample(count)
    ours, theirs = (
        processed(whole[:-1] + tail, "flip", output=output),
        processed(whole, "flip", output=output),
    )
    assert ours == theirs
    assert ours.result.frames == count


@pytest.mark.parametrize("count", [1, 3])
def test_the_last_terminator_is_not_missed(count: int) -> None:
    whole = sample(count)
    assert processed(whole[:-2], "flip") == processed(whole, "flip")


@pytest.mark.parametrize(
    "tail",
    [
        b"!\xf9\x04\0\5\0\0\0",  # a frame is announced
        b"!\xf9\x04\0\5\0\0\0\xff",
        b"!\xf9\x04\0",
        b"!",
        b",",
        b",\0\0\0\0\x01\0\x01\0\0",
        b",\0\0\0\0\x01\0\x01\0\0\x02\x02\x44",
        b",\0\0\0\0\x09\0\x09\0\0\x02\x02\x44\x01\0",  # it lacks pixels
        b"!\xfe\x09hello",
        b"\xff!\xf9\x04\0\5\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;",  # a frame behind garbage
    ],
)
def test_a_frame_that_is_not_whole_is_refused(tail: bytes) -> None:
    with pytest.raises(DamagedImage):
        processed(sample(2)[:-1] + tail, "flip")


def test_garbage_before_the_first_frame_is_refused() -> None:
    head = 13 + 48
    with pytest.raises(DamagedImage):
        processed(sample(1)[:head] + b"\xff" + sample(1)[head:], "flip")


# --- Pixels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lzw",
    [
        b"\x01",  # a clear code of one bit, then pixels of one bit, which is how Chromium reads it
        b"\x01\x00",
        b"\x04\x40\x15\x0a",
    ],
)
def test_a_code_size_of_0_leaves_one_colour(lzw: bytes) -> None:
    data = one_pixel_frame(0, lzw, (2, 2))
    for output in (None, Format.PNG):
        ours = processed(data, "flip", output=output)
        assert set(pixels(ours.data, ours.result.format).pixels) == {RED}


def test_pixels_that_are_missing_at_a_code_size_of_0_are_not_made_up() -> None:
    with pytest.raises(DamagedImage):
        processed(one_pixel_frame(0, b"\x01", (20, 20)), "flip")


def test_a_pixel_of_code_size_1_is_read_as_everybody_does() -> None:
    data = one_pixel_frame(1, b"\x32")  # in use as a tracking pixel: clear, 0, end, of two bits each
    assert pixels(data, "gif").pixels == pixels(processed(data, "flip").data, "gif").pixels == (RED,)


def test_more_pixels_of_code_size_1_are_refused() -> None:
    """ImageMagick shows red, green, green, green; gifsicle refuses it, and Pillow shows red at the end."""
    with pytest.raises(DamagedImage):
        processed(one_pixel_frame(1, b"\x52\x0c", (2, 2)), "flip")


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("output", [Format.PNG, Format.WEBP, Format.BMP, Format.GIF])
def test_colours_that_a_palette_lacks_are_black(count: int, output: Format) -> None:
    """As in Chromium. Pillow makes them gray, and wraps their indices when it writes a smaller palette."""
    colours = tuple((200, 10 + at, 10) for at in range(16))
    grid = Grid(8, 1, (0, 1, 2, 3, 4, 7, 9, 15))
    short = gif((8, 1), colours, [GifFrame(grid)] * count)
    short = short[:10] + b"\xf1" + short[11 : 13 + 12] + short[13 + 48 :]  # four of sixteen colours
    if output is Format.GIF:  # where the palette stays as short
        ours = processed(short, "flop").data
        assert ours[13 : 13 + 12] == short[13 : 13 + 12]
        return
    ours = processed(short, "flop", output=output)
    wanted = tuple((*colours[index], 255) if index < 4 else (0, 0, 0, 255) for index in reversed(grid.pixels))
    if output is Format.WEBP:
        assert ours.result.frames == count
    assert pixels(ours.data, output).pixels == wanted


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 8, 9, 17])
@pytest.mark.parametrize("turn", ["flip", "rotate-90"])
def test_interlaced_rows_are_where_imagemagick_shows_them(height: int, turn: str) -> None:
    data = bytearray(gif((7, height), PALETTE, [GifFrame(indices((7, height), height))]))
    data[data.index(b",", 13 + 48) + 9] |= 0x40
    ours = processed(bytes(data), turn).data
    assert pixels(ours, "gif") == expected(pixels(bytes(data), "gif"), turn)


@pytest.mark.parametrize("code_size", [4, 5, 8])
def test_a_table_that_is_full_stays_as_it_is(code_size: int) -> None:
    """No clear code follows: the codes stay at twelve bits."""
    image = Image.frombytes("L", (120, 120), noise(14_400, "full")).point(lambda level: level & 15)
    lzw = _lzw_without_clear(image.tobytes(), code_size)
    head = b"GIF89a" + struct.pack("<HHBBB", 120, 120, 0xF7, 0, 0) + bytes(range(256)) * 3
    data = head + b"," + struct.pack("<4HB", 0, 0, 120, 120, 0) + bytes([code_size]) + lzw + b";"
    assert pixels(processed(data, "flip").data, "gif") == pixels(data, "gif", "-flip")


def _lzw_without_clear(samples: bytes, code_size: int) -> bytes:
    clear = 1 << code_size
    table = {bytes([level]): level for level in range(clear)}
    fresh, bits, packed, used = clear + 2, code_size + 1, clear, code_size + 1
    known = b""

    def emit(code: int) -> None:
        nonlocal packed, used
        packed |= code << used
        used += bits

    for at in range(len(samples)):
        longer = known + samples[at : at + 1]
        if longer in table:
            known = longer
            continue
        emit(table[known])
        if fresh < 4096:
            table[longer] = fresh
            bits += fresh == 1 << bits
            fresh += 1
        known = samples[at : at + 1]
    emit(table[known])
    emit(clear + 1)
    body = packed.to_bytes((used + 7) // 8, "little")
    parts = (body[start : start + 255] for start in range(0, len(body), 255))
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


# --- How often it runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"NETSCAPE2.0", b"ANIMEXTS1.0"])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("repetitions", "plays"), [(0, 0), (1, 2), (7, 8), (200, 201)])
def test_repetitions_are_read_wherever_they_stand(
    name: bytes,
    is_late: bool,  # noqa: FBT001
    repetitions: int,
    plays: int,
) -> None:
    """Pillow looks for them before the first frame, and under one name."""
    data = sample(2)
    block = b"!\xff\x0b" + name + b"\x03\x01" + struct.pack("<H", repetitions) + b"\0"
    at = len(data) - 1 if is_late else 13 + 48
    ours = processed(data[:at] + block + data[at:], output=Format.WEBP).data
    assert tags(ours, ".webp")["RIFF:AnimationLoopCount"] in (str(plays), {0: "inf"}.get(plays))


# --- Animations that become GIFs --------------------------------------------------------------------------

OPAQUE = Grid(4, 4, (RED,) * 16)
HALF = Grid(4, 4, (BLUE, BLUE, CLEAR, CLEAR) * 4)
OTHER_HALF = Grid(4, 4, (CLEAR, CLEAR, RED, RED) * 4)


@pytest.mark.parametrize("source", [apng, webp_animation])
@pytest.mark.parametrize(
    "grids",
    [
        [OPAQUE, HALF],
        [HALF, OPAQUE],
        [OPAQUE, OPAQUE, HALF, OTHER_HALF, OPAQUE, HALF],
        [HALF, OTHER_HALF, HALF],
        [OPAQUE, OPAQUE],
    ],
)
def test_no_frame_shows_through_the_next_one(source: object, grids: list[Grid]) -> None:
    data = source((4, 4), [Patch(grid, is_laid_over=False) for grid in grids])
    for turn in TURNS:
        ours = processed(data, turn, output=Format.GIF).data
        assert seen(ours, "gif", len(grids)) == [expected(grid, turn) for grid in grids]
    # What is shown again comes after the last frame: a viewer need not clear the canvas.
    blocks = ours.split(b"!\xf9\x04")[1:]
    disposals = [block[0] >> 2 for block in blocks]
    following = [*grids[1:], grids[0]]
    assert disposals == [1 if CLEAR not in grid.pixels else 2 for grid in following]


def test_no_frame_of_an_avif_shows_through_the_next_one() -> None:
    opaque = Image.new("RGBA", (32, 32), RED)
    half = Image.new("RGBA", (32, 32))
    half.paste(BLUE, (0, 0, 16, 32))
    data = encoded(opaque, "AVIF", save_all=True, append_images=[half], duration=100)
    first, second = seen(processed(data, output=Format.GIF).data, "gif", 2)
    assert first.at(28, 5)[3] == second.at(3, 5)[3] == 255
    assert second.at(28, 5) == CLEAR


def lasting(source: str, durations: list[int]) -> bytes:
    """Return an animation whose frames show for so many milliseconds."""
    grids = [Grid(2, 1, ((at, 9, 9, 255), RED)) for at in range(len(durations))]
    patches = [
        Patch(grid, is_laid_over=False, duration_ms=duration)
        for grid, duration in zip(grids, durations, strict=True)
    ]
    return (apng if source == "apng" else webp_animation)((2, 1), patches)


@pytest.mark.parametrize("source", ["apng", "webp"])
@pytest.mark.parametrize(
    ("durations", "wanted"),
    [
        ([25] * 4, [2, 3, 2, 3]),
        ([33] * 6, [3, 4, 3, 3, 3, 4]),
        ([45] * 4, [4, 5, 4, 5]),
        ([35, 15, 25, 25], [3, 2, 2, 3]),
        ([4] * 4, [1, 1, 1, 1]),
        ([10, 1, 10], [1, 1, 1]),
        ([0, 25, 0, 25], [0, 2, 0, 3]),
        ([16] * 4, [2, 2, 2, 2]),  # one hundredth would be shown for ten
        ([11, 14, 100], [2, 2, 10]),
        ([40, 1000, 65530], [4, 100, 6553]),
    ],
)
def test_delays_carry_what_rounding_leaves(source: str, durations: list[int], wanted: list[int]) -> None:
    assert delays(processed(lasting(source, durations), output=Format.GIF).data) == wanted


@pytest.mark.parametrize("step", [21, 33, 37, 41, 67, 99])
def test_frames_of_a_gif_end_within_half_a_hundredth_of_their_time(step: int) -> None:
    durations = [step + at % 3 for at in range(40)]
    found = delays(processed(lasting("webp", durations), output=Format.GIF).data)
    for end in range(1, 41):
        assert abs(10 * sum(found[:end]) - sum(durations[:end])) <= 5


def with_delay(data: bytes, numerator: int, denominator: int) -> bytes:
    """Give every frame of an APNG the same delay."""
    parts, position = [data[:8]], 8
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"fcTL":
            body = body[:20] + struct.pack(">HH", numerator, denominator) + body[24:]
        parts.append(chunk(kind, body))
        position += 12 + length
    return b"".join(parts)


@pytest.mark.parametrize(
    ("fraction", "hundredths", "milliseconds"),
    [
        ((1, 30), [3, 4, 3], [33, 34, 33]),
        ((1, 60), [2, 2, 2], [17, 16, 17]),
        ((1, 96), [2, 2, 2], [11, 11, 11]),  # 10.4 ms, which browsers honour, and not 10
        ((1, 3000), [1, 1, 1], [1, 1, 1]),
        ((0, 100), [0, 0, 0], [0, 0, 0]),
        ((3, 0), [3, 3, 3], [30, 30, 30]),  # a denominator of 0 stands for 100
        ((65535, 1), [65535] * 3, [16777215] * 3),  # the longest there is, not what is left of 18 hours
    ],
)
def test_fractions_of_a_second_become_ticks(
    fraction: tuple[int, int], hundredths: list[int], milliseconds: list[int]
) -> None:
    data = with_delay(lasting("apng", [100] * 3), *fraction)
    assert delays(processed(data, output=Format.GIF).data) == hundredths
    told = run_on("webpinfo", processed(data, output=Format.WEBP).data, ".webp", "{}").decode()
    assert [int(line.split()[-1]) for line in told.splitlines() if "Duration" in line] == milliseconds


@pytest.mark.parametrize(
    ("duration_ms", "wanted"),
    [(0, (0, 1000)), (70, (70, 1000)), (65535, (65535, 1000)), (70005, (14001, 200)), (16777215, (65536, 1))],
)
def test_a_duration_is_a_fraction_that_fits(duration_ms: int, wanted: tuple[int, int]) -> None:
    data = processed(lasting("webp", [duration_ms] * 2), output=Format.PNG).data
    numerator, denominator = struct.unpack_from(">HH", data, data.index(b"fcTL") + 4 + 20)
    if wanted[0] > 65535:
        assert abs(numerator / denominator - duration_ms / 1000) < 0.5
    else:
        assert (numerator, denominator) == wanted


# --- Metadata ---------------------------------------------------------------------------------------------

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" photoshop:City="Ulm"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes().replace(b"Lab ", b"RGB ", 1)


def described(form: str, count: int) -> bytes:
    """Return an animation, or a still, with a profile and XMP."""
    image = Image.new("RGB", (8, 8), RED[:3])
    if form == "PNG":
        grids = [Grid(8, 8, ((at, 0, 0, 255),) * 64) for at in range(count)]
        data = apng((8, 8), [Patch(grid) for grid in grids])
        data = with_chunk(data, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
        return with_chunk(data, b"iCCP", b"x\0\0" + zlib.compress(PROFILE))
    frames = [Image.new("RGB", (8, 8), (0, 120 * at, 0)) for at in range(1, count)]
    return encoded(image, form, save_all=True, append_images=frames, icc_profile=PROFILE, xmp=XMP)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("source", ["PNG", "WEBP"])
@pytest.mark.parametrize("output", [Format.PNG, Format.GIF, Format.WEBP])
def test_profile_and_xmp_of_an_animation_come_along(source: str, output: Format, count: int) -> None:
    data = described(source, count)
    ours = processed(data, "flip", output=output)
    assert ours.result.frames == count
    found = tags(
        ours.data, f".{output}", "-XMP:City", "-ICC_Profile:ProfileCMMType", "-ICC_Profile:ColorSpaceData"
    )
    assert found["XMP-photoshop:City"] == "Ulm"
    has_profile = output is not Format.GIF  # whose colours are converted: viewers do not look at its profile
    assert ("ICC-header:ColorSpaceData" in found) is has_profile
    back = processed(ours.data, "flip", output=Format.WEBP).data
    assert (PROFILE in back) is has_profile
    assert XMP in back
    stripped = processed(processed(data, output=output, strip=True).data, output=Format.WEBP).data
    assert (PROFILE in stripped) is has_profile
    assert XMP not in stripped


def test_an_apng_keeps_its_chunks_in_order() -> None:
    data = processed(described("WEBP", 2), output=Format.PNG).data
    assert data.index(b"iCCP") < data.index(b"IDAT")
    assert run("convert", "png:-", "-format", "%w", "info:-", given=data) == b"8"
    assert processed(data, "flip", limits=GENEROUS).result.frames == 2
