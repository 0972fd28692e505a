"""The file formats in detail: what is kept of a file, what is refused, and how pixels get in and out."""

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from PIL import Image, ImageChops, ImageOps
from PIL.Image import Transpose
from support import specimens
from support.mapped import mapped

from server.errors import DamagedImage, ImageError, TooManyFrames, TooManyPixels, UnsupportedImage
from server.imaging.codecs import Effort, Format
from server.imaging.formats import gif, png, tiff, vp8, webp
from server.imaging.geometry import Rect, Turn, compose, turned_rect, turned_size
from server.imaging.jpeg.markers import read_jpeg
from server.imaging.jpeg.pixels import encoder_settings
from server.imaging.limits import Limits
from server.imaging.metadata.policy import Strip
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe, Result

GENEROUS = Limits(max_pixels=10**7, max_frames=100, max_total_pixels=10**8)


def noise(mode: str, size: tuple[int, int], seed: int = 1) -> Image.Image:
    """Return an image of random bytes, the same in every run."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    state, values = seed, bytearray()
    for _ in range(size[0] * size[1] * bands):
        state = (state * 1103515245 + 12345) % 2**31
        values.append(state >> 16 & 0xFF)
    return Image.frombytes(mode, size, bytes(values))


def smooth(size: tuple[int, int]) -> Image.Image:
    gradient = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (gradient, gradient.transpose(Transpose.ROTATE_180), Image.new("L", size, 90)))


def encoded(image: Image.Image, container: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, container, **options)
    return file.getvalue()


def run(data: bytes, recipe: Recipe, limits: Limits = GENEROUS) -> tuple[Result, bytes]:
    sink = io.BytesIO()
    result = process(mapped(data), sink, recipe, limits)
    return result, sink.getvalue()


def turned(data: bytes, turn: Turn = Turn.FLIP) -> bytes:
    return run(data, Recipe(turn))[1]


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# --- turns


@pytest.mark.parametrize("turn", Turn)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_one_transpose_does_what_orientation_and_turn_do_one_after_the_other(
    orientation: int, turn: Turn
) -> None:
    stored = noise("L", (5, 3))
    stored.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(stored)
    second = compose(1, turn)
    wanted = upright if second is None else upright.transpose(second)
    first = compose(orientation, turn)
    ours = stored if first is None else stored.transpose(first)
    assert (ours.size, ours.tobytes()) == (wanted.size, wanted.tobytes())


@pytest.mark.parametrize("transpose", [None, *Transpose])
def test_a_rectangle_goes_where_its_pixels_go(transpose: Transpose | None) -> None:
    canvas = Image.new("L", (11, 7))
    rect = Rect(2, 1, 5, 3)
    canvas.paste(255, (rect.x, rect.y, rect.x + rect.width, rect.y + rect.height))
    after = canvas if transpose is None else canvas.transpose(transpose)
    x, y, width, height = turned_rect(transpose, rect, canvas.size)
    assert after.getbbox() == (x, y, x + width, y + height)
    assert after.size == turned_size(transpose, canvas.size)


# --- PNG


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(colour_type: int, channels: int, size: tuple[int, int]) -> tuple[bytes, list[list[bytes]]]:
    """Return a PNG with 16 bits per sample, and its pixels as bytes, row by row."""
    width, height = size
    samples = noise("L", (width * channels * 2, height)).tobytes()
    stride = width * channels * 2
    rows = [samples[start : start + stride] for start in range(0, len(samples), stride)]
    stream = zlib.compress(b"".join(b"\0" + row for row in rows))
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    data = png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND")
    pixel = channels * 2
    return data, [[row[start : start + pixel] for start in range(0, stride, pixel)] for row in rows]


def unfiltered(data: bytes, pixel: int, row_bytes: int = 0) -> list[list[bytes]]:
    """Return the pixels of a PNG that is not interlaced, in pieces of whole bytes (PNG 3rd edition, 9.2)."""
    position, stream, size = 8, b"", (0, 0)
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        size = struct.unpack_from(">II", body) if kind == b"IHDR" else size
        stream += body if kind == b"IDAT" else b""
        position += length + 12
    raw, stride = zlib.decompress(stream), row_bytes or size[0] * pixel
    above, rows = bytes(stride), []
    for start in range(0, len(raw), stride + 1):
        kind, row = raw[start], bytearray(raw[start + 1 : start + 1 + stride])
        for index in range(stride):
            left = row[index - pixel] if index >= pixel else 0
            corner = above[index - pixel] if index >= pixel else 0
            up = above[index]
            nearest = min((left, up, corner), key=lambda value, at=left + up - corner: abs(at - value))
            row[index] = row[index] + (0, left, up, (left + up) // 2, nearest)[kind] & 0xFF
        above = bytes(row)
        rows.append([above[at : at + pixel] for at in range(0, stride, pixel)])
    return rows


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_per_sample_stay_sixteen(colour_type: int, channels: int) -> None:
    data, rows = deep_png(colour_type, channels, (7, 5))
    assert unfiltered(turned(data), channels * 2) == rows[::-1]
    clockwise = [list(column) for column in zip(*rows[::-1], strict=True)]
    assert unfiltered(turned(data, Turn.ROTATE_90), channels * 2) == clockwise
    assert unfiltered(turned(data, Turn.ORIENT), channels * 2) == rows


def interlaced(data: bytes, bits: int) -> bytes:
    """Return a PNG without filters in the order of Adam7 (PNG 3rd edition, 8.1)."""
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    plain = zlib.decompress(data[41 : 41 + int.from_bytes(data[33:37], "big")])
    stride = (width * bits + 7) // 8 + 1
    rows = [
        "".join(f"{byte:08b}" for byte in plain[row * stride + 1 : (row + 1) * stride])
        for row in range(height)
    ]
    stream = b""
    for x, y, step_x, step_y in specimens.ADAM7:
        for row in rows[y::step_y] if x < width else ():
            line = "".join(row[at * bits : (at + 1) * bits] for at in range(x, width, step_x))
            line += "0" * (-len(line) % 8)
            stream += b"\0" + int(line, 2).to_bytes(len(line) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 1)
    palette = chunk(b"PLTE", bytes(range(48))) if colour_type == 3 else b""
    return (
        png.SIGNATURE
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(stream))
        + chunk(b"IEND")
    )


LAYOUTS = [(depth, 0, 1) for depth in (1, 2, 4, 8, 16)] + [(depth, 3, 1) for depth in (1, 2, 4)]
LAYOUTS += [(depth, kind, bands) for depth in (8, 16) for kind, bands in ((2, 3), (4, 2), (6, 4))]


@pytest.mark.parametrize(("depth", "colour_type", "channels"), LAYOUTS)
@pytest.mark.parametrize("size", [(1, 1), (3, 9), (13, 11)])
def test_interlaced_pixels_are_the_same_pixels(
    depth: int, colour_type: int, channels: int, size: tuple[int, int]
) -> None:
    width, height = size
    bits = depth * channels
    row_bytes = (width * bits + 7) // 8
    mask = ~((1 << (-width * bits % 8)) - 1) & 0xFF  # the bits behind the last pixel mean nothing
    samples = noise("L", (row_bytes, height)).tobytes()
    rows = [samples[at : at + row_bytes] for at in range(0, len(samples), row_bytes)]
    rows = [row[:-1] + bytes([row[-1] & mask]) for row in rows]
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    stream = zlib.compress(b"".join(b"\0" + row for row in rows))
    data = png.SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", stream) + chunk(b"IEND")
    out = turned(interlaced(data, bits))
    assert [b"".join(row) for row in unfiltered(out, max(1, bits // 8), row_bytes)] == rows[::-1]


def test_deep_colour_is_reduced_where_eight_bits_are_asked_for() -> None:
    data, rows = deep_png(2, 3, (7, 5))
    result, out = run(data, Recipe(Turn.ORIENT, format=Format.BMP))
    assert result.format is Format.BMP
    assert opened(out).getpixel((0, 0)) == tuple(rows[0][0][::2])


def test_a_png_is_read_and_written_without_a_difference() -> None:
    image = noise("P", (9, 9))
    image.putpalette(bytes(range(256)) * 3)
    data = encoded(image, "PNG", transparency=7, dpi=(72, 144))
    sink = io.BytesIO()
    png.write_png(sink, png.read_png(data, GENEROUS))
    assert sink.getvalue() == data


def test_chunks_stay_if_they_are_safe_to_copy() -> None:
    data = encoded(noise("RGB", (4, 3)), "PNG")
    extra = chunk(b"gAMA", b"\0\0\xb1\x8f") + chunk(b"saFe", b"1") + chunk(b"unSF", b"2")
    out = turned(data[:33] + extra + data[33:])
    assert b"gAMA" in out
    assert b"saFe" in out
    assert b"unSF" not in out
    stripped = run(data[:33] + extra + data[33:], Recipe(Turn.FLIP, strip=Strip.ALL))[1]
    assert b"gAMA" in stripped
    assert b"saFe" not in stripped


@pytest.mark.parametrize("is_compressed", [False, True])
def test_the_orientation_in_the_xmp_of_a_png_is_reset(is_compressed: bool) -> None:  # noqa: FBT001
    data = encoded(noise("RGB", (4, 3)), "PNG")
    xmp = b'<x tiff:Orientation="6"/>'
    text = b"\1\0\0\0" + zlib.compress(xmp) if is_compressed else b"\0\0\0\0" + xmp
    out = turned(data[:33] + chunk(b"iTXt", b"XML:com.adobe.xmp\0" + text) + data[33:])
    assert opened(out).info["xmp"] == b'<x tiff:Orientation="1"/>'
    for end in range(len(text)):  # what cannot be read is left out as a whole
        broken = chunk(b"iTXt", b"XML:com.adobe.xmp\0" + text[:end])
        assert b"adobe" not in turned(data[:33] + broken + data[33:]) or not is_compressed


def test_an_unknown_critical_chunk_is_refused() -> None:
    data = encoded(noise("RGB", (4, 3)), "PNG")
    with pytest.raises(DamagedImage, match="critical"):
        turned(data[:33] + chunk(b"NEWC", b"1") + data[33:])


def apng() -> bytes:
    first, *others = (noise("RGBA", (6, 4), seed) for seed in (1, 2, 3))
    return encoded(first, "PNG", save_all=True, append_images=others, duration=[10, 20, 30])


def test_frames_out_of_sequence_are_refused() -> None:
    data = bytearray(apng())
    position = data.rindex(b"fdAT")
    data[position + 7] ^= 1
    length = int.from_bytes(data[position - 4 : position], "big")
    data[position + 4 + length : position + 8 + length] = struct.pack(
        ">I", zlib.crc32(data[position : position + 4 + length])
    )
    with pytest.raises(DamagedImage, match="sequence"):
        turned(bytes(data))


def test_frames_are_counted_by_their_own_headers() -> None:
    few = Limits(max_pixels=100, max_frames=2, max_total_pixels=1000)
    with pytest.raises(TooManyFrames):
        run(apng(), Recipe(Turn.FLIP), few)
    lying = apng().replace(chunk(b"acTL", struct.pack(">II", 3, 0)), chunk(b"acTL", struct.pack(">II", 1, 0)))
    with pytest.raises(TooManyFrames):
        run(lying, Recipe(Turn.FLIP), few)
    with pytest.raises(DamagedImage):
        turned(lying)


# --- GIF


def test_palette_indices_come_back_whatever_their_size_and_order() -> None:
    for size in ((1, 1), (3, 2), (16, 5), (17, 16), (1, 40)):
        for colours in (1, 2, 3, 4, 17, 128, 256):
            indices = noise("L", size).point(lambda value, most=colours: value * most >> 8)
            before = Image.frombytes("P", size, indices.tobytes())
            for is_interlaced in (False, True):
                code_size, lzw = gif.pack(before, is_interlaced=is_interlaced, code_size=1)
                frame = gif.GifFrame(Rect(0, 0, *size), 0x40 * is_interlaced, b"", code_size, lzw)
                assert gif.unpack(frame).tobytes() == before.tobytes(), (size, colours, is_interlaced)


def test_a_gif_is_read_and_written_without_a_difference() -> None:
    frames = [noise("L", (8, 6), seed) for seed in (1, 2, 3)]
    data = encoded(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=70, loop=3, comment=b"hi"
    )
    sink = io.BytesIO()
    gif.write_gif(sink, gif.read_gif(data, GENEROUS))
    assert sink.getvalue() == data


def test_stripping_a_gif_leaves_its_loop_and_takes_its_comment() -> None:
    frames = [noise("L", (8, 6), seed) for seed in (1, 2)]
    data = encoded(
        frames[0], "GIF", save_all=True, append_images=frames[1:], duration=70, loop=3, comment=b"hi"
    )
    out = run(data, Recipe(Turn.FLIP, strip=Strip.ALL))[1]
    assert opened(out).info["loop"] == 3
    assert b"\x21\xfe" not in out


@pytest.mark.parametrize("rect", [(0, 0, 9, 6), (0, 0, 8, 65535), (0, 0, 0, 6), (0, 0, 8, 0)])
def test_a_frame_of_another_size_than_its_pixels_is_refused(rect: tuple[int, int, int, int]) -> None:
    stored = gif.read_gif(encoded(noise("L", (8, 6)), "GIF"), GENEROUS)
    sink = io.BytesIO()
    gif.write_gif(sink, replace(stored, blocks=(replace(stored.frames[0], rect=Rect(*rect)),)))
    with pytest.raises(DamagedImage):
        turned(sink.getvalue())


def test_pixels_that_are_not_square_lie_the_other_way_afterwards() -> None:
    data = bytearray(encoded(noise("L", (8, 6)), "GIF"))
    data[12] = 113  # (113 + 15) / 64 = 2
    assert turned(bytes(data))[12] == 113
    sideways = turned(bytes(data), Turn.ROTATE_90)
    assert (sideways[12] + 15) / 64 == pytest.approx(0.5, abs=0.01)
    assert abs(turned(sideways, Turn.ROTATE_270)[12] - 113) <= 2


def test_a_gif_is_composed_as_browsers_do_it() -> None:
    """What is cleared is transparent; browsers ignore the background colour of the header."""
    red, green, blue = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    palette = bytes((*red, *green, *blue, 9, 9, 9))
    blocks: list[gif.GifFrame | bytes] = []
    patches = [
        (Rect(0, 0, 4, 4), 0, 1),
        (Rect(1, 1, 2, 2), 1, 2),
        (Rect(3, 3, 1, 1), 2, 3),
        (Rect(0, 0, 1, 1), 1, 0),
    ]
    for rect, index, disposal in patches:
        code_size, lzw = gif.pack(Image.new("P", rect[2:], index), is_interlaced=False)
        blocks.append(gif.control(delay=5, disposal=disposal, transparent=None))
        blocks.append(gif.GifFrame(rect, 0, b"", code_size, lzw))
    sink = io.BytesIO()
    gif.write_gif(sink, gif.Gif(b"GIF89a", (4, 4), 0x81, 3, 0, palette, tuple(blocks)))
    out = run(sink.getvalue(), Recipe(Turn.ORIENT, format=Format.WEBP))[1]
    frames = [frame.convert("RGBA") for frame in shown(out)]
    assert [frame.getpixel((1, 1)) for frame in frames] == [
        (*red, 255),
        (*green, 255),
        (0, 0, 0, 0),
        (0, 0, 0, 0),
    ]
    assert [frame.getpixel((3, 3))[:3] for frame in frames] == [red, red, blue, red]
    assert [frame.getpixel((0, 0))[:3] for frame in frames] == [red, red, red, green]


# --- WebP


def webp_frames(canvas: tuple[int, int], rects: list[Rect]) -> bytes:
    frames = tuple(
        webp.WebpFrame(
            rect,
            40 + index,
            index % 2,
            webp.pack(noise("RGBA", rect[2:], index + 1), Effort.LOW, quality=None),
        )
        for index, rect in enumerate(rects)
    )
    sink = io.BytesIO()
    webp.write_webp(sink, webp.Webp(canvas, frames, loops=5, background=b"\1\2\3\4", xmp=b"<x/>"))
    return sink.getvalue()


def shown(data: bytes) -> Iterator[Image.Image]:
    image = Image.open(io.BytesIO(data))
    for index in range(image.n_frames):
        image.seek(index)
        yield image.copy()


def test_a_webp_is_read_and_written_without_a_difference() -> None:
    data = webp_frames((10, 8), [Rect(0, 0, 10, 8), Rect(2, 4, 6, 4)])
    sink = io.BytesIO()
    webp.write_webp(sink, webp.read_webp(data, GENEROUS))
    assert sink.getvalue() == data


@pytest.mark.parametrize("canvas", [(10, 8), (11, 8), (10, 7), (11, 7)])
@pytest.mark.parametrize("turn", Turn)
def test_webp_frames_go_to_their_places_even_where_those_are_odd(canvas: tuple[int, int], turn: Turn) -> None:
    data = webp_frames(canvas, [Rect(0, 0, *canvas), Rect(2, 4, 6, 3), Rect(4, 0, 4, 4)])
    out = turned(data, turn)
    transpose = compose(1, turn)
    for before, after in zip(shown(data), shown(out), strict=True):
        wanted = before if transpose is None else before.transpose(transpose)
        for paper in ("white", "black"):
            seen = [
                Image.alpha_composite(Image.new("RGBA", canvas.size, paper), canvas)
                for canvas in (wanted, after)
            ]
            assert max(highest for _, highest in ImageChops.difference(*seen).getextrema()) <= 2  # rounding
    after = webp.read_webp(out, GENEROUS)
    assert [frame.duration_ms for frame in after.frames] == [40, 41, 42]
    assert (after.loops, after.background, after.xmp) == (5, b"\1\2\3\4", b"<x/>")
    assert all(frame.pixels.is_lossless for frame in after.frames)


def test_a_canvas_must_not_contradict_its_image() -> None:
    """A small canvas around a large image would pass the limits and then be decoded."""
    data = bytearray(webp_frames((10, 8), [Rect(0, 0, 10, 8)]))
    position = data.index(b"VP8L")
    data[position + 9] ^= 1
    with pytest.raises(DamagedImage, match="contradicts"):
        turned(bytes(data))


@pytest.mark.parametrize("quality", [5, 30, 50, 75, 90, 100])
def test_the_quality_of_a_lossy_frame_is_told_from_its_header(quality: int) -> None:
    stored = webp.read_webp(encoded(smooth((200, 160)), "WEBP", quality=quality), GENEROUS)
    assert vp8.estimated_quality(stored.frames[0].pixels.data) == pytest.approx(quality, abs=15)


# --- JPEG


def test_gray_that_libjpeg_made_up_is_refused_and_gray_of_the_image_is_not() -> None:
    whole = encoded(noise("RGB", (160, 120)), "JPEG")
    for percent in range(10, 98, 4):
        with pytest.raises(DamagedImage):
            turned(whole[: len(whole) * percent // 100] + b"\xff\xd9")
    for mode, gray in (("L", 128), ("RGB", (128, 128, 128)), ("CMYK", (127, 127, 127, 127))):
        for size in ((1, 1), (8, 300), (300, 8), (200, 200)):
            for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}):
                assert turned(encoded(Image.new(mode, size, gray), "JPEG", **options))


def test_a_missing_restart_marker_is_noticed() -> None:
    data = encoded(noise("RGB", (64, 128)), "JPEG", restart_marker_rows=1)
    second, third = data.index(b"\xff\xd1"), data.index(b"\xff\xd2")
    with pytest.raises(DamagedImage, match="missing"):
        turned(data[:second] + data[third:])


def test_a_marker_in_the_middle_of_the_pixels_is_noticed() -> None:
    data = bytearray(encoded(noise("RGB", (160, 120)), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 2] = b"\xff\x47"
    with pytest.raises(DamagedImage):
        turned(bytes(data))


def test_bytes_after_the_end_do_not_matter() -> None:
    data = encoded(noise("RGB", (40, 30)), "JPEG")
    assert turned(data + b"\0" * 99 + b"\xff\xd8\xff") == turned(data)


def test_tables_turn_with_the_image() -> None:
    table = list(range(1, 65))
    data = encoded(noise("RGB", (64, 48)), "JPEG", qtables=[table, table[::-1]])
    before = opened(data).quantization
    assert opened(turned(data)).quantization == before
    after = opened(turned(data, Turn.ROTATE_90)).quantization
    assert [after[0][row * 8 + column] for column in range(8) for row in range(8)] == before[0]


def test_huffman_tables_are_optimised_only_where_they_were() -> None:
    def has_own(data: bytes) -> bool:
        return read_jpeg(data, GENEROUS).has_own_huffman_tables

    for mode in ("L", "RGB", "CMYK"):
        plain = encoded(noise("L", (64, 64)).convert(mode), "JPEG")
        optimised = encoded(noise("L", (64, 64)).convert(mode), "JPEG", optimize=True)
        assert (has_own(plain), has_own(optimised)) == (False, True)
        assert (has_own(turned(plain)), has_own(turned(optimised))) == (False, True)


@pytest.mark.parametrize(
    ("luma", "upright", "sideways"),
    [(0x11, 0, 0), (0x21, 1, 0), (0x22, 2, 2), (0x12, 0, 1), (0x41, 0, 0), (0x14, 0, 0), (0x44, 0, 0)],
)
def test_chroma_is_never_sampled_more_coarsely_than_it_was(luma: int, upright: int, sideways: int) -> None:
    """The source is only a header: what matters is which sampling is chosen."""
    data = bytearray(encoded(noise("RGB", (64, 64)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 11] = luma
    markers = read_jpeg(bytes(data), GENEROUS)
    image = Image.open(io.BytesIO(data))
    for transpose, wanted in ((None, upright), (Transpose.ROTATE_90, sideways)):
        assert encoder_settings(markers, image, transpose, None)["subsampling"] == wanted


def test_the_unit_of_the_density_is_kept_and_its_axes_turn() -> None:
    data = bytearray(encoded(noise("RGB", (40, 30)), "JPEG"))
    for unit in (0, 1, 2):
        data[13:18] = struct.pack(">BHH", unit, 3, 4)
        assert turned(bytes(data))[13:18] == struct.pack(">BHH", unit, 3, 4)
        assert turned(bytes(data), Turn.ROTATE_90)[13:18] == struct.pack(">BHH", unit, 4, 3)


def test_inks_are_called_inverted_only_where_they_were() -> None:
    image = noise("CMYK", (16, 16))
    data = encoded(image, "JPEG")
    assert data[2:4] == b"\xff\xee"
    assert turned(data)[2:4] == b"\xff\xee"
    silent = data[:2] + data[18:]
    assert read_jpeg(turned(silent), GENEROUS).adobe_transform is None
    assert opened(turned(silent)).tobytes() == opened(turned(data)).tobytes()


def test_the_index_of_other_images_goes_and_other_segments_stay() -> None:
    data = encoded(noise("RGB", (40, 30)), "JPEG", comment=b"note")
    index = b"\xff\xe2\0\x0eMPF\0II*\0\x08\0\0\0"
    private = b"\xff\xeb\0\x09private"
    out = turned(data[:20] + index + private + data[20:])
    assert b"MPF\0" not in out
    assert private in out
    assert opened(out).info["comment"] == b"note"
    stripped = run(data[:20] + index + private + data[20:], Recipe(Turn.FLIP, strip=Strip.ALL))[1]
    assert private not in stripped


# --- TIFF


def test_a_chain_of_directories_that_bites_its_tail_ends() -> None:
    data = bytearray(encoded(noise("L", (5, 4)), "TIFF"))
    (first,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<L", data, first + 2 + 12 * count, first)
    result, out = run(bytes(data), Recipe(Turn.FLIP))
    assert result.frames == opened(out).n_frames == 1


def test_every_page_counts_against_the_limits() -> None:
    pages = [noise("L", (10, 10), seed) for seed in (1, 2, 3)] + [noise("L", (30, 10))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for limits, error in (
        (Limits(299, 9, 9999), TooManyPixels),
        (Limits(300, 3, 9999), TooManyFrames),
        (Limits(300, 4, 599), TooManyPixels),
    ):
        with pytest.raises(error):
            run(data, Recipe(Turn.FLIP), limits)
    assert run(data, Recipe(Turn.FLIP), Limits(300, 4, 600))[0].frames == 4


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma"])
def test_each_page_keeps_its_compression_orientation_and_words(compression: str) -> None:
    sink = io.BytesIO()
    pages = [noise("RGB", (7, 5), seed) for seed in (1, 2)]
    from PIL.TiffImagePlugin import AppendingTiffWriter, ImageFileDirectory_v2  # noqa: PLC0415

    with AppendingTiffWriter(sink) as writer:
        for orientation, page in zip((6, 3), pages, strict=True):
            tags = ImageFileDirectory_v2()
            tags[270], tags[274], tags[282], tags[283], tags[296] = (
                f"page {orientation}",
                orientation,
                2.0,
                3.0,
                2,
            )
            page.save(writer, "TIFF", tiffinfo=tags, compression=compression)
            writer.newFrame()
    after = Image.open(io.BytesIO(turned(sink.getvalue(), Turn.FLOP)))
    for index, (orientation, resolution) in enumerate([(6, (3, 2)), (3, (2, 3))]):
        after.seek(index)
        assert after.info["compression"] == compression
        assert after.tag_v2[270] == f"page {orientation}"
        assert (after.tag_v2[282], after.tag_v2[283]) == resolution
        wanted = pages[index].transpose(compose(orientation, Turn.FLOP))
        assert after.convert("RGB").tobytes() == wanted.tobytes()


def test_many_pages_are_read_in_one_walk() -> None:
    pages = [noise("L", (2, 2))] * 60
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert len(tiff.descriptions(data, 60)) == 60


# --- the others


def test_the_alpha_of_a_bmp_is_there_for_readers_afterwards() -> None:
    image = noise("RGBA", (5, 3))
    head = struct.pack("<2sIHHI", b"BM", 14 + 56 + 60, 0, 0, 14 + 56)
    info = struct.pack(
        "<IiiHHIIiiII4I", 56, 5, 3, 1, 32, 3, 60, 0, 0, 0, 0, 0xFF0000, 0xFF00, 0xFF, 0xFF000000
    )
    data = head + info + image.tobytes("raw", ("BGRA", 0, -1))
    assert opened(data).tobytes() == image.tobytes()
    assert opened(turned(data)).tobytes() == image.transpose(Transpose.FLIP_TOP_BOTTOM).tobytes()


@pytest.mark.parametrize("colour_space", [0, 1])
def test_the_colour_space_of_a_qoi_is_kept(colour_space: int) -> None:
    data = bytearray(encoded(noise("RGB", (5, 3)), "QOI"))
    data[13] = colour_space
    assert turned(bytes(data))[13] == colour_space


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_avif_is_turned_upright_exactly_once(orientation: int) -> None:
    image = smooth((64, 32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Canon"
    data = encoded(image, "AVIF", exif=exif, quality=95)
    after = opened(turned(data, Turn.ORIENT))
    assert after.getexif().get(0x0112, 1) == 1
    assert after.getexif()[0x010F] == "Canon"
    transpose = compose(orientation, Turn.ORIENT)
    wanted = image if transpose is None else image.transpose(transpose)
    assert after.size == wanted.size
    corner = (4, 4)
    assert all(abs(a - b) < 25 for a, b in zip(after.getpixel(corner), wanted.getpixel(corner), strict=True))


@pytest.mark.parametrize("options", [{}, {"save_all": True, "append_images": [smooth((32, 16))]}])
def test_the_primaries_of_an_avif_are_called_what_they_were(options: dict[str, object]) -> None:
    mark, srgb, display_p3 = b"colrnclx", b"\0\1\0\x0d", b"\0\x0c\0\x0d"
    plain = encoded(smooth((32, 16)), "AVIF", **options)
    data = plain.replace(mark + srgb, mark + display_p3)
    out = turned(data)
    assert out.count(mark + display_p3) == data.count(mark) > 0
    assert mark + srgb not in out
    assert out.replace(mark + display_p3, mark + srgb) == turned(plain)


def test_samples_that_pillow_would_halve_are_refused_until_eight_bits_are_asked_for() -> None:
    data = b"P6 2 2 65535\n" + bytes(range(24))
    with pytest.raises(UnsupportedImage, match="8 bits"):
        turned(data)
    assert opened(run(data, Recipe(Turn.FLIP, format=Format.PNG))[1]).mode == "RGB"


def still(container: str, **options: object) -> Callable[[], bytes]:
    return lambda: encoded(noise("RGB", (24, 18)), container, **options)


SAMPLES: dict[str, Callable[[], bytes]] = {
    "jpeg": still("JPEG"),
    "progressive": still("JPEG", progressive=True),
    "png": still("PNG"),
    "apng": apng,
    "gif": lambda: encoded(noise("L", (24, 18)), "GIF"),
    "webp": still("WEBP"),
    "webp frames": lambda: webp_frames((10, 8), [Rect(0, 0, 10, 8), Rect(2, 4, 6, 3)]),
    "tiff": still("TIFF"),
    "tiff lzw": still("TIFF", compression="tiff_lzw"),
    "bmp": still("BMP"),
    "avif": still("AVIF"),
    "ppm": still("PPM"),
    "plain ppm": lambda: b"P3 2 2 255\n10 20 30 40 50 60 70 80 90 100 110 120\n",
    "qoi": still("QOI"),
}


#: How many bytes at the end say nothing about the image: the last terminator and the trailer, or EOI.
IDLE_BYTES = {"gif": 2, "jpeg": 2}


@pytest.mark.parametrize("name", SAMPLES)
def test_no_cut_gives_half_an_image(name: str) -> None:
    whole = SAMPLES[name]()
    assert turned(whole)
    ends = {len(whole) * percent // 100 for percent in range(0, 100, 3)} | set(
        range(len(whole) - 16, len(whole) - IDLE_BYTES.get(name, 0))
    )
    for end in sorted(ends):
        with pytest.raises((DamagedImage, UnsupportedImage)):
            turned(whole[:end])


@pytest.mark.parametrize("name", SAMPLES)
def test_no_changed_byte_escapes_as_anything_but_our_own_error(name: str) -> None:
    whole = SAMPLES[name]()
    for index in {*range(min(len(whole), 80)), *range(0, len(whole), max(1, len(whole) // 40))}:
        for value in (0, 255, whole[index] ^ 1):
            broken = whole[:index] + bytes([value]) + whole[index + 1 :]
            with contextlib.suppress(ImageError):
                run(broken, Recipe(Turn.FLIP), Limits(10**5, 9, 10**6))
