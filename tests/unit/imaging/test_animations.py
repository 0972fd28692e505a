"""Animations keep every frame, in order, with its duration; each frame is turned as a person sees it."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from support import specimens
from support.oracle import (
    CLEAR,
    SAMPLES_PER_PIXEL,
    TURNS,
    Grid,
    Patch,
    displayed,
    expected,
    grid_of,
    read_apng,
    read_png,
    seen_frames,
)
from support.specimens import GENEROUS, GifFrame, Outcome, apng, gif, gif_palette, processed, webp_animation

from server.errors import TooManyFrames
from server.imaging.codecs import Format

RED, GREEN, BLUE = (250, 0, 0, 255), (0, 250, 0, 255), (0, 0, 250, 255)
GLOBAL, LOCAL = gif_palette("global"), gif_palette("local")
DURATIONS_MS = (70, 300, 1200)
CANVAS = (9, 7)


def rgba(size: tuple[int, int], seed: object, *, has_holes: bool = True) -> Grid:
    """Return noise, about a third of it clear."""
    count = size[0] * size[1]
    raw = specimens.noise(4 * count, seed)
    samples = zip(raw[0::4], raw[1::4], raw[2::4], raw[3::4], strict=True)
    return Grid(*size, tuple(CLEAR if has_holes and a < 80 else (r, g, b, 255) for r, g, b, a in samples))


def indices(size: tuple[int, int], seed: object) -> Grid:
    return Grid(
        *size, tuple(byte % specimens.GIF_COLOURS for byte in specimens.noise(size[0] * size[1], seed))
    )


def plain(colour: tuple[int, ...], size: tuple[int, int] = CANVAS) -> Grid:
    """Return one colour with a mark in one corner, so that a turn shows."""
    return Grid(*size, ((9, 9, 9, 255), *[colour] * (size[0] * size[1] - 1)))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def durations_ms(image: Image.Image) -> list[float]:
    """Return how long each frame shows."""
    found = []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        found.append(image.info["duration"])
    return found


def assert_frames(outcome: Outcome, wanted: list[Grid], turn: str, case: object = None) -> None:
    """Check every displayed frame against the oracle's turn of what was displayed before."""
    image = outcome.image
    assert outcome.result.frames == len(wanted), (turn, case)
    assert getattr(image, "n_frames", 1) == len(wanted), (turn, case)
    for index, (ours, before) in enumerate(zip(seen_frames(image), wanted, strict=True)):
        assert ours == expected(before, turn), (turn, case, f"frame {index}")


def as_gif(grids: list[Grid], durations: tuple[int, ...], loops: int | None) -> bytes:
    """Encode one GIF frame per grid, each with the palette of its own colours."""
    frames = []
    for grid, duration in zip(grids, durations, strict=True):
        colours = sorted(set(grid.pixels))
        palette = tuple(colour[:3] for colour in colours) + ((0, 0, 0),) * (16 - len(colours))
        frames.append(GifFrame(grid.map(colours.index), palette=palette, delay_cs=duration // 10))
    return gif(grids[0].size, GLOBAL, frames, loops=loops)


def animation(container: str, grids: list[Grid], durations: tuple[int, ...], loops: int = 0) -> bytes:
    if container == "GIF":
        return as_gif(grids, durations, loops)
    patches = [
        Patch(grid, is_laid_over=False, duration_ms=duration)
        for grid, duration in zip(grids, durations, strict=True)
    ]
    if container == "PNG":
        return apng(grids[0].size, patches, loops=loops)
    return webp_animation(grids[0].size, patches, loops=loops)


CONTAINERS = pytest.mark.parametrize("container", ["GIF", "PNG", "WEBP"])


@CONTAINERS
@pytest.mark.parametrize("loops", [0, 3])
def test_frames_times_and_loops_come_back_in_order(container: str, loops: int) -> None:
    grids = [plain(RED), plain(GREEN), plain(BLUE)]
    data = animation(container, grids, DURATIONS_MS, loops)
    assert seen_frames(opened(data)) == grids
    for turn in TURNS:
        ours = processed(data, turn)
        assert_frames(ours, grids, turn, container)
        assert durations_ms(ours.image) == list(DURATIONS_MS), (container, turn)
        assert ours.image.info.get("loop") == loops, (container, turn)
        assert ours.image.format == container, (container, turn)


def test_a_gif_that_says_nothing_about_loops_still_says_nothing() -> None:
    data = gif(CANVAS, GLOBAL, [GifFrame(indices(CANVAS, 1)), GifFrame(indices(CANVAS, 2))])
    assert "loop" not in opened(data).info
    for turn in TURNS:
        assert "loop" not in processed(data, turn).image.info, turn


@CONTAINERS
def test_equal_frames_in_a_row_are_not_merged(container: str) -> None:
    grids = [plain(RED), plain(RED), plain(GREEN), plain(GREEN), plain(GREEN)]
    data = animation(container, grids, (50, 100, 150, 150, 250))
    for turn in TURNS:
        ours = processed(data, turn)
        assert_frames(ours, grids, turn, container)
        assert durations_ms(ours.image) == [50, 100, 150, 150, 250], (container, turn)


@CONTAINERS
def test_an_animation_of_equal_frames_only_stays_an_animation(container: str) -> None:
    data = animation(container, [plain(RED)] * 3, (100, 100, 100))
    for turn in TURNS:
        assert_frames(processed(data, turn), [plain(RED)] * 3, turn, container)


@CONTAINERS
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 1), (5, 3), (8, 8)])
def test_an_animation_of_any_size_is_turned_exactly(container: str, size: tuple[int, int]) -> None:
    grids = [
        Grid(*size, tuple((*GLOBAL[byte % 16], 255) for byte in specimens.noise(size[0] * size[1], seed)))
        for seed in range(3)
    ]
    data = animation(container, grids, DURATIONS_MS)
    assert seen_frames(opened(data)) == grids
    for turn in TURNS:
        assert_frames(processed(data, turn), grids, turn, (container, size))


@pytest.mark.parametrize("disposal", [0, 1, 2, 3])
@pytest.mark.parametrize("transparent", [None, 5])
@pytest.mark.parametrize("palette", [None, LOCAL])
def test_gif_frames_that_cover_a_part_are_turned_as_they_are_seen(
    disposal: int,
    transparent: int | None,
    palette: tuple[tuple[int, int, int], ...] | None,
) -> None:
    frames = [
        GifFrame(indices(CANVAS, 1), disposal=disposal, transparent=transparent),
        GifFrame(indices((4, 3), 2), 2, 3, palette, transparent, disposal, 20),
        GifFrame(indices((5, 5), 3), 4, 1, None, transparent, disposal, 30),
        GifFrame(indices((1, 1), 4), 8, 6, palette, transparent, disposal, 40),
    ]
    data = gif(CANVAS, GLOBAL, frames, loops=0)
    wanted = displayed(CANVAS, [frame.patch(GLOBAL) for frame in frames])
    if transparent is None and disposal in {2, 3}:
        # Viewers disagree: Pillow restores to the background colour, browsers to nothing. We go with Pillow.
        wanted = seen_frames(opened(data))
    assert seen_frames(opened(data)) == wanted
    for turn in TURNS:
        ours = processed(data, turn)
        assert_frames(ours, wanted, turn, (disposal, transparent))
        assert durations_ms(ours.image) == [100, 200, 300, 400], turn


def test_a_first_gif_frame_that_covers_a_part_is_turned_within_its_canvas() -> None:
    frames = [
        GifFrame(indices((4, 3), 1), 1, 2, transparent=0),
        GifFrame(indices((3, 4), 2), 6, 3, transparent=0),
    ]
    data = gif(CANVAS, GLOBAL, frames, loops=0)
    wanted = displayed(CANVAS, [frame.patch(GLOBAL) for frame in frames])
    assert seen_frames(opened(data)) == wanted
    for turn in TURNS:
        assert_frames(processed(data, turn), wanted, turn)


def test_disposals_may_change_from_frame_to_frame() -> None:
    frames = [
        GifFrame(indices((6, 5), seed), seed % 4, seed % 3, (None, LOCAL)[seed % 2], 7, disposal, 5 + seed)
        for seed, disposal in enumerate((1, 3, 2, 1, 3, 3, 2, 2, 1))
    ]
    data = gif(CANVAS, GLOBAL, frames, loops=1)
    wanted = displayed(CANVAS, [frame.patch(GLOBAL) for frame in frames])
    assert seen_frames(opened(data)) == wanted
    for turn in TURNS:
        assert_frames(processed(data, turn), wanted, turn)


def test_more_than_256_colours_over_all_frames_are_kept() -> None:
    """Sixteen local palettes of sixteen colours and one global: no single palette holds them."""
    frames = [GifFrame(indices((6, 6), seed), palette=gif_palette(("many", seed))) for seed in range(20)]
    data = gif((6, 6), GLOBAL, frames, loops=0)
    wanted = displayed((6, 6), [frame.patch(GLOBAL) for frame in frames])
    for turn in TURNS:
        assert_frames(processed(data, turn), wanted, turn)


def test_a_gif_frame_that_shows_more_than_256_colours_loses_none_of_its_shape() -> None:
    """Patches of twenty palettes pile up on one canvas: no single rectangle can store that exactly.

    What must hold is frame count, times, and colours close to the truth.
    """
    size = (24, 20)
    frames = [
        GifFrame(indices((6, 4), seed), 6 * (seed % 4), 4 * (seed // 4), gif_palette(("pile", seed)))
        for seed in range(20)
    ]
    data = gif(size, GLOBAL, frames, loops=0)
    wanted = seen_frames(opened(data))
    assert len(set(wanted[-1].pixels)) > 256
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.image.n_frames == 20, turn
        for index, (seen, before) in enumerate(zip(seen_frames(ours.image), wanted, strict=True)):
            pairs = zip(seen.pixels, expected(before, turn).pixels, strict=True)
            worst = max(max(abs(a - b) for a, b in zip(one, other, strict=True)) for one, other in pairs)
            assert worst <= 64, (turn, index)


@pytest.mark.parametrize("dispose", ["keep", "background"])
@pytest.mark.parametrize("is_laid_over", [True, False])
@pytest.mark.parametrize("container", ["PNG", "WEBP"])
def test_frames_with_an_offset_are_turned_as_they_are_seen(
    container: str,
    dispose: str,
    is_laid_over: bool,  # noqa: FBT001
) -> None:
    patches = [
        Patch(rgba(CANVAS, 1), 0, 0, dispose, is_laid_over, 70),
        Patch(rgba((4, 3), 2), 2, 4, dispose, is_laid_over, 110),
        Patch(rgba((5, 5), 3), 4, 2, dispose, is_laid_over, 50),
    ]
    data = (apng if container == "PNG" else webp_animation)(CANVAS, patches)
    wanted = displayed(CANVAS, patches)
    assert seen_frames(opened(data)) == wanted
    for turn in TURNS:
        ours = processed(data, turn)
        assert_frames(ours, wanted, turn, (container, dispose, is_laid_over))
        assert durations_ms(ours.image) == [70, 110, 50], turn


def test_an_apng_frame_that_replaces_and_is_taken_back_leaves_nothing() -> None:
    patches = [
        Patch(rgba(CANVAS, 1), is_laid_over=False),
        Patch(rgba((4, 3), 2), 2, 4, "previous", is_laid_over=False),
        Patch(rgba((5, 5), 3), 3, 1, "keep"),
    ]
    data, wanted = apng(CANVAS, patches), displayed(CANVAS, patches)
    for turn in TURNS:
        assert_frames(processed(data, turn), wanted, turn)


def test_an_apng_frame_that_is_laid_over_and_taken_back_leaves_nothing() -> None:
    """Pillow 13 does not take such a frame back, so it cannot be the reference."""
    patches = [
        Patch(rgba(CANVAS, 1), is_laid_over=False),
        Patch(rgba((4, 3), 2), 2, 4, "previous", is_laid_over=True),
        Patch(rgba((5, 5), 3), 3, 1, "keep"),
    ]
    data, wanted = apng(CANVAS, patches), displayed(CANVAS, patches)
    assert seen_frames(opened(data)) != wanted, "Pillow has learned it: use assert_frames here"
    for turn in TURNS:
        ours = processed(data, turn)
        frames = displayed(ours.image.size, read_apng(ours.data))
        assert frames == [expected(grid, turn) for grid in wanted], turn


@pytest.mark.parametrize(
    ("depth", "colour_type"), [(8, 0), (8, 2), (8, 3), (8, 4), (16, 0), (16, 2), (16, 4), (16, 6)]
)
def test_an_apng_of_any_depth_and_colour_type_keeps_its_samples(depth: int, colour_type: int) -> None:
    """Frames are stored as they are given or composed: laid one over the other they must be the same."""
    per_pixel, sample_bytes = SAMPLES_PER_PIXEL[colour_type], depth // 8

    def grid(size: tuple[int, int], seed: int) -> Grid:
        samples = iter(
            int.from_bytes(specimens.noise(sample_bytes, (seed, at)), "big")
            % (20 if colour_type == 3 else 65_536)
            for at in range(per_pixel * size[0] * size[1])
        )
        pixels = (tuple(next(samples) for _ in range(per_pixel)) for _ in range(size[0] * size[1]))
        return Grid(*size, tuple(pixel[0] if per_pixel == 1 else pixel for pixel in pixels))

    patches = [
        Patch(grid(CANVAS, 1), is_laid_over=False),
        Patch(grid((4, 3), 2), 2, 4, is_laid_over=False),
        Patch(grid((5, 5), 3), 3, 1, is_laid_over=False),
    ]
    extra = specimens.chunk(b"PLTE", b"".join(bytes(colour) for colour in specimens.PALETTE))
    data = apng(
        CANVAS, patches, depth=depth, colour_type=colour_type, extra=extra if colour_type == 3 else b""
    )
    wanted = displayed(CANVAS, patches)
    for turn in TURNS:
        case = depth, colour_type, turn
        ours = processed(data, turn).data
        assert read_png(ours).depth == depth, case
        assert read_png(ours).colour_type == colour_type, case
        stored = read_apng(ours)
        frames = displayed(expected(wanted[0], turn).size, stored)
        assert frames == [expected(frame, turn) for frame in wanted], case
        assert [patch.duration_ms for patch in stored] == [100, 100, 100], case


def test_the_default_image_of_an_apng_is_no_frame_more_and_no_frame_less() -> None:
    hidden = plain((7, 200, 7, 255))
    patches = [Patch(plain(RED), duration_ms=100), Patch(plain(GREEN), duration_ms=200)]
    data = apng(CANVAS, patches, default_image=hidden)
    before = opened(data)
    assert before.info["default_image"]
    wanted = seen_frames(before)
    for turn in TURNS:
        ours = processed(data, turn).image
        assert ours.info.get("default_image") is True, turn
        assert seen_frames(ours) == [expected(grid, turn) for grid in wanted], turn


def test_half_clear_pixels_of_an_animation_keep_their_alpha() -> None:
    raw = specimens.noise(4 * 63, "half clear")
    grids = [
        Grid(*CANVAS, tuple((*raw[at : at + 3], 1 + (raw[at + 3] + shift) % 255) for at in range(0, 252, 4)))
        for shift in (0, 9)
    ]
    for container in ("PNG", "WEBP"):
        data = animation(container, grids, (100, 200))
        assert seen_frames(opened(data)) == grids
        for turn in TURNS:
            assert_frames(processed(data, turn), grids, turn, container)


@CONTAINERS
def test_an_animation_as_a_still_format_is_its_first_frame(container: str) -> None:
    grids = [plain(RED), plain(GREEN), plain(BLUE)]
    data = animation(container, grids, DURATIONS_MS)
    for output in ("bmp", "jpeg"):
        for turn in TURNS:
            ours = processed(data, turn, output=Format(output))
            assert ours.result.frames == 1, (container, output, turn)
            middle = ours.image.convert("RGB").getpixel((4, 3))
            assert max(abs(a - b) for a, b in zip(middle, RED[:3], strict=True)) < 30, (
                container,
                output,
                turn,
            )


@pytest.mark.parametrize("source", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("output", ["gif", "png", "webp"])
def test_an_animation_changes_its_container_and_keeps_moving(source: str, output: str) -> None:
    grids = [plain(RED), plain(GREEN), plain(BLUE)]
    data = animation(source, grids, DURATIONS_MS, 2)
    ours = processed(data, "flip", output=Format(output))
    assert ours.image.n_frames == ours.result.frames == 3
    assert durations_ms(ours.image) == list(DURATIONS_MS)
    for seen, before in zip(seen_frames(ours.image), grids, strict=True):
        at = 4 + 3 * 9
        wanted = expected(before, "flip").pixels[at]
        assert max(abs(a - b) for a, b in zip(seen.pixels[at], wanted, strict=True)) < 30, (source, output)


@pytest.mark.parametrize("plays", [0, 1, 2, 7])
@pytest.mark.parametrize("source", ["GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("output", ["GIF", "PNG", "WEBP"])
def test_an_animation_runs_as_often_in_another_container(source: str, output: str, plays: int) -> None:
    """APNG and WebP count how often it runs, GIF how often it is repeated; 0 is for ever in all three."""
    loops = plays - 1 if source == "GIF" and plays else plays
    grids, durations = [plain(RED), plain(GREEN)], (100, 200)
    data = as_gif(grids, durations, loops or None) if source == "GIF" and plays else b""
    data = data or animation(source, grids, durations, loops)
    ours = processed(data, "flip", output=Format[output]).image
    wanted = (plays - 1 or None) if output == "GIF" and plays else plays
    assert ours.info.get("loop") == wanted


def long_gif(frames: int, pixels: bytes) -> bytes:
    one = b"\x21\xf9\x04\0\x05\0\0\0" + b"\x2c\0\0\0\0\x01\0\x01\0\0" + pixels
    return b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff" + one * frames + b"\x3b"


def test_a_gif_of_30_000_frames_is_refused() -> None:
    with pytest.raises(TooManyFrames):
        processed(long_gif(30_000, b"\x02\x02\x44\x01\0"), "flip")


@CONTAINERS
def test_the_frame_limit_is_the_last_number_that_passes(container: str) -> None:
    data = animation(container, [plain(RED), plain(GREEN), plain(BLUE)], DURATIONS_MS)
    at_limit = specimens.Limits(max_pixels=63, max_frames=3, max_total_pixels=3 * 63)
    assert processed(data, "flip", limits=at_limit).result.frames == 3
    with pytest.raises(TooManyFrames):
        processed(data, "flip", limits=specimens.Limits(max_pixels=63, max_frames=2, max_total_pixels=3 * 63))


def test_every_page_of_a_tiff_comes_back() -> None:
    kinds = ("RGB", "L", "1", "P", "RGBA", "I;16", "CMYK")
    pages = [specimens.noise_image(kind, (5 + at, 9 - at), at) for at, kind in enumerate(kinds)]
    data = specimens.encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for turn in TURNS:
        outcome = processed(data, turn)
        ours = outcome.image
        assert ours.n_frames == outcome.result.frames == len(pages), turn
        for at, page in enumerate(pages):
            ours.seek(at)
            assert ours.mode == page.mode, (turn, at)
            assert grid_of(ours) == expected(grid_of(page), turn), (turn, at)


def test_each_page_of_a_tiff_has_an_orientation_of_its_own() -> None:
    turns = (6, 1, 3, 8, 5)
    pages = [specimens.noise_image("RGB", (5 + at, 4), at) for at in range(len(turns))]
    for page, orientation in zip(pages, turns, strict=True):
        page.encoderinfo = {"tiffinfo": {0x0112: orientation}}
    data = specimens.encoded(
        pages[0], "TIFF", save_all=True, append_images=pages[1:], tiffinfo={0x0112: turns[0]}
    )
    before = opened(data)
    stored = []
    for at in range(len(turns)):
        before.seek(at)
        stored.append(before.tag_v2.get(0x0112, 1))
    for turn in TURNS:
        ours = processed(data, turn).image
        for at, (page, orientation) in enumerate(zip(pages, stored, strict=True)):
            ours.seek(at)
            assert grid_of(ours) == expected(grid_of(page), turn, orientation), (turn, at, stored)


def test_an_avif_sequence_keeps_frames_and_times() -> None:
    images = [Image.new("RGB", (32, 24), colour[:3]) for colour in (RED, GREEN, BLUE)]
    data = specimens.encoded(
        images[0], "AVIF", save_all=True, append_images=images[1:], duration=[100, 200, 300]
    )
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.image.n_frames == ours.result.frames == 3, turn
        assert durations_ms(ours.image) == [100, 200, 300], turn
        for seen, colour in zip(seen_frames(ours.image), (RED, GREEN, BLUE), strict=True):
            assert max(abs(a - b) for a, b in zip(seen.at(10, 10), colour, strict=True)) < 30, turn


def test_metadata_of_an_animation_comes_back_unless_it_is_stripped() -> None:
    grids = [plain(RED), plain(GREEN)]
    commented = animation("GIF", grids, (100, 200))
    commented = commented[:-1] + b"\x21\xfe\x05hello\0\x3b"
    assert processed(commented, "flip", limits=GENEROUS).image.n_frames == 2
    data = animation("PNG", grids, (100, 200))
    data = specimens.with_chunk(data, b"tEXt", b"Comment\0on the left")
    data = specimens.with_chunk(data, b"eXIf", specimens.exif_block(6).data)
    for turn in TURNS:
        ours = processed(data, turn).image
        assert ours.info["Comment"] == "on the left", turn
        assert ours.getexif().get(0x0112, 1) == 1, turn
        assert ours.getexif()[0x010F] == "Imaginary", turn
        assert seen_frames(ours) == [expected(grid, turn, 6) for grid in grids], turn
        stripped = processed(data, turn, strip=True).image
        assert not {"Comment", "exif"} & stripped.info.keys(), turn
        assert seen_frames(stripped) == [expected(grid, turn, 6) for grid in grids], turn


def test_a_gray_apng_of_16_bits_is_not_clipped() -> None:
    grids = [Grid(2, 1, ((0x2000,), (0x8000,))), Grid(2, 1, ((0xFFFF,), (0x1234,)))]
    data = apng((2, 1), [Patch(grid) for grid in grids], depth=16, colour_type=0)
    levels = [
        [pixel[0] for pixel in frame.pixels]
        for frame in seen_frames(processed(data, output=Format.GIF).image)
    ]
    assert levels == [[0x20, 0x80], [0xFF, 0x12]]


@pytest.mark.parametrize("output", [Format.PNG, Format.GIF])
def test_what_no_webp_frame_covers_is_transparent_whatever_its_header_says(output: Format) -> None:
    patch = Patch(Grid(4, 4, (RED,) * 16), 2, 2, "background")
    data = bytearray(webp_animation((8, 8), [patch, patch]))
    data[20] &= ~0x10  # no frame has any alpha
    for frame in seen_frames(processed(bytes(data), "flip", output=output).image):
        assert frame.at(0, 0) == CLEAR
        assert frame.at(2, 2) == RED
