"""BMPs as strangers write them, judged by ImageMagick, or by pixels that are known because we stored them."""

import io
import struct

import pytest
from PIL import Image
from support.oracle import Grid, expected
from support.programs import pixels
from support.specimens import encoded, noise, processed

from server.errors import DamagedImage, UnsupportedImage
from server.imaging.codecs import Format

WIDTH, HEIGHT = 9, 5
Colours = list[tuple[int, ...]]

BLACK, WHITE = (0, 0, 0), (255, 255, 255)
PALETTES: dict[str, Colours] = {
    "black": [BLACK],
    "red": [(255, 0, 0)],
    "black and white": [BLACK, WHITE],
    "white and black": [WHITE, BLACK],
    "red and green": [(255, 0, 0), (0, 255, 0)],
    "almost black": [BLACK, (1, 1, 1), (2, 2, 2)],
    "4 grays": [(85 * step,) * 3 for step in range(4)],
    "16 dark grays": [(step,) * 3 for step in range(16)],
    "16 grays": [(17 * step,) * 3 for step in range(16)],
    "5 colours": [tuple(noise(3, step)) for step in range(5)],
    "256 grays": [(step,) * 3 for step in range(256)],
    "256 colours": [tuple(noise(3, step)) for step in range(256)],
}


def bmp(  # noqa: PLR0913  each is a field of the file
    rows: list[bytes] | bytes,
    bits: int,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    header: int = 40,
    compression: int = 0,
    colours: Colours = (),  # type: ignore[assignment]  # only read
    entry_bytes: int = 4,
    used: int | None = None,
    masks: tuple[int, ...] = (),
    is_top_down: bool = False,
) -> bytes:
    """Lay out a BMP: rows from the top, or what stands for them when they are compressed."""
    width, height = size
    if isinstance(rows, list):
        padded = [row.ljust((width * bits + 31) // 32 * 4, b"\0") for row in rows]
        rows = b"".join(padded if is_top_down else reversed(padded))
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sides = (width, -height if is_top_down else height)
        used = len(colours) if used is None else used
        info = struct.pack(
            "<IiiHHIIiiII", header, *sides, 1, bits, compression, len(rows), 2835, 2835, used, 0
        )
        fields = struct.pack(f"<{len(masks)}I", *masks)
        info = info[:header] + fields if header <= 40 else (info + fields).ljust(header, b"\0")
    palette = b"".join(bytes(colour[::-1]).ljust(entry_bytes, b"\0") for colour in colours)
    offset = 14 + len(info) + len(palette)
    return struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset) + info + palette + rows


def packed(indices: bytes, bits: int) -> bytes:
    """Pack a row of indices."""
    number = int(
        "1" + "".join(f"{index:0{bits}b}" for index in indices).ljust(-(-len(indices) * bits // 8) * 8, "0"),
        2,
    )
    return number.to_bytes(number.bit_length() // 8 + 1, "big")[1:]


def indices_of(colours: Colours) -> list[bytes]:
    return [bytes(byte % len(colours) for byte in noise(WIDTH, (len(colours), y))) for y in range(HEIGHT)]


def shown(rows: list[bytes], colours: Colours) -> Grid:
    return Grid(len(rows[0]), len(rows), tuple((*colours[index], 255) for row in rows for index in row))


def answer(data: bytes, output: Format | None = None, turn: str = "flip") -> Grid:
    """Return the pixels of our answer, as ImageMagick reads them."""
    ours = processed(data, turn, output=output)
    return pixels(ours.data, ours.result.format)


def assert_shows(data: bytes, stored: Grid) -> None:
    """Check that both routes give these pixels, flipped."""
    for output in (None, Format.PNG):
        assert answer(data, output) == expected(stored, "flip"), output


def fitting(bits: int) -> list[str]:
    return [name for name, colours in PALETTES.items() if len(colours) <= 1 << bits]


INDEXED = [(bits, name) for bits in (1, 2, 4, 8) for name in fitting(bits)]


@pytest.mark.parametrize(("bits", "name"), INDEXED)
def test_a_palette_of_any_colours_is_a_palette(bits: int, name: str) -> None:
    """Pillow takes two colours, black and white, for one bit, and 16 dark grays for bytes of gray."""
    colours = PALETTES[name]
    rows = indices_of(colours)
    data = bmp([packed(row, bits) for row in rows], bits, colours=colours)
    assert_shows(data, shown(rows, colours))
    if bits != 2:  # which ImageMagick does not read
        assert pixels(data, "bmp") == shown(rows, colours)


@pytest.mark.parametrize("header", [12, 16, 40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_every_header_leads_to_the_palette(header: int, bits: int) -> None:
    colours = PALETTES["256 colours"][: 1 << bits]
    rows = indices_of(colours)
    data = bmp(
        [packed(row, bits) for row in rows],
        bits,
        header=header,
        colours=colours,
        entry_bytes=3 if header == 12 else 4,
        used=0,
    )
    assert answer(data) == expected(shown(rows, colours), "flip")


def test_the_entries_of_os2_are_as_long_as_the_room_for_them() -> None:
    colours = PALETTES["5 colours"]
    rows = indices_of(colours)
    data = bmp(rows, 8, header=64, colours=colours, entry_bytes=3)
    assert pixels(data, "bmp") == shown(rows, colours)
    assert_shows(data, shown(rows, colours))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rows_may_come_from_the_top(bits: int) -> None:
    colours = PALETTES["256 colours"][: 1 << bits]
    rows = indices_of(colours)
    data = bmp([packed(row, bits) for row in rows], bits, colours=colours, is_top_down=True)
    assert_shows(data, shown(rows, colours))


def test_an_index_without_a_colour_is_black() -> None:
    colours = PALETTES["5 colours"]
    rows = [bytes(range(WIDTH))] * HEIGHT
    assert_shows(bmp(rows, 8, colours=colours), shown(rows, colours + [BLACK] * WIDTH))


def test_more_colours_than_indices_are_left_out() -> None:
    colours = PALETTES["256 colours"]
    rows = indices_of(colours)
    assert_shows(bmp(rows, 8, colours=colours + colours), shown(rows, colours))


@pytest.mark.parametrize("name", fitting(8))
@pytest.mark.parametrize("container", ["PNG", "GIF"])
def test_a_bmp_that_we_write_is_read_the_same_by_all(name: str, container: str) -> None:
    colours = PALETTES[name]
    rows = indices_of(colours)
    image = Image.frombytes("P", (WIDTH, HEIGHT), b"".join(rows))
    image.putpalette([level for colour in colours for level in colour])
    ours = processed(encoded(image, container, optimize=False), "flip", output=Format.BMP).data
    wanted = expected(shown(rows, colours), "flip")
    assert pixels(ours, "bmp") == wanted
    read_by_pillow = Image.open(io.BytesIO(ours)).convert("RGBA")
    assert tuple(read_by_pillow.get_flattened_data()) == wanted.pixels


# --- Bit fields ------------------------------------------------------------------------------------

R5G6B5 = (0xF800, 0x07E0, 0x001F, 0)
X1R5G5B5 = (0x7C00, 0x03E0, 0x001F, 0)
A1R5G5B5 = (0x7C00, 0x03E0, 0x001F, 0x8000)
A4R4G4B4 = (0x0F00, 0x00F0, 0x000F, 0xF000)
R2G3B1 = (0x0030, 0x000E, 0x0001, 0)
X8R8G8B8 = (0xFF0000, 0xFF00, 0xFF, 0)
A8R8G8B8 = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
A8B8G8R8 = (0xFF, 0xFF00, 0xFF0000, 0xFF000000)
R8G8B8A8 = (0xFF000000, 0xFF0000, 0xFF00, 0xFF)
G8B8R8 = (0xFF0000, 0xFF, 0xFF00, 0)
A2R10G10B10 = (0x3FF00000, 0x000FFC00, 0x3FF, 0xC0000000)
R7G18B7 = (0xFE000000, 0x01FFFF80, 0x7F, 0)


def level(number: int, mask: int) -> int:
    """Return the level of a channel: its bits, repeated to fill eight."""
    bits = f"{(number & mask) >> (mask & -mask).bit_length() - 1:0{mask.bit_count()}b}"
    return int((bits * 8)[:8], 2)


def pixel(number: int, masks: tuple[int, ...]) -> tuple[int, ...]:
    return (*(level(number, mask) for mask in masks[:3]), level(number, masks[3]) if masks[3] else 255)


def fields_bmp(
    bits: int, masks: tuple[int, ...], header: int = 108, compression: int = 3
) -> tuple[bytes, Grid]:
    """Return a BMP of noise in these bit fields, and what it shows."""
    rows = [noise(WIDTH * bits // 8, (masks, y)) for y in range(HEIGHT)]
    stored = masks[:3] if header in (40, 52) and compression == 3 else masks
    data = bmp(rows, bits, header=header, masks=stored, compression=compression)
    form = {16: "H", 32: "I"}[bits]
    numbers = (number for row in rows for number in struct.unpack(f"<{WIDTH}{form}", row))
    return data, Grid(WIDTH, HEIGHT, tuple(pixel(number, masks) for number in numbers))


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"), [(16, R5G6B5), (16, X1R5G5B5), (16, R2G3B1), (32, X8R8G8B8), (32, G8B8R8)]
)
def test_bit_fields_without_alpha_are_opaque(header: int, bits: int, masks: tuple[int, ...]) -> None:
    data, stored = fields_bmp(bits, masks, header)
    if masks != R2G3B1 and header != 52:  # ImageMagick does not fill eight bits, and reads alpha behind 52
        assert pixels(data, "bmp") == stored
    assert_shows(data, stored)


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [(16, A1R5G5B5), (16, A4R4G4B4), (32, A8R8G8B8), (32, A8B8G8R8), (32, R8G8B8A8)],
)
def test_alpha_of_any_bits_is_alpha(header: int, bits: int, masks: tuple[int, ...]) -> None:
    data, stored = fields_bmp(bits, masks, header)
    if bits == 32:  # of fewer bits it makes 0.5 at most
        assert pixels(data, "bmp") == stored
    assert len({colour[3] for colour in stored.pixels}) > 1
    assert_shows(data, stored)


def test_a_short_header_may_have_a_mask_of_alpha_behind_it() -> None:
    assert_shows(*fields_bmp(32, A8R8G8B8, 40, compression=6))


@pytest.mark.parametrize("header", [40, 108, 124])
@pytest.mark.parametrize(("bits", "masks"), [(16, A1R5G5B5), (32, A8R8G8B8)])
def test_what_is_left_of_a_pixel_is_no_alpha(header: int, bits: int, masks: tuple[int, ...]) -> None:
    """Masks count with bit fields only, and browsers show this opaque."""
    rows = [noise(WIDTH * bits // 8, (masks, y)) for y in range(HEIGHT)]
    data = bmp(rows, bits, header=header, masks=masks if header > 40 else ())
    stored = fields_bmp(bits, masks)[1].map(lambda colour: (*colour[:3], 255))
    assert_shows(data, stored)


@pytest.mark.parametrize("masks", [A2R10G10B10, R7G18B7])
def test_more_than_eight_bits_of_a_channel_are_not_lost_unasked(masks: tuple[int, ...]) -> None:
    data, stored = fields_bmp(32, masks)
    with pytest.raises(UnsupportedImage, match="8 bits"):
        processed(data)
    assert answer(data, Format.PNG) == expected(stored, "flip")


@pytest.mark.parametrize(
    "masks",
    [
        (0xF0F0, 0x0F00, 0x000F, 0),  # in pieces
        (0xFF00, 0x0FF0, 0x000F, 0),  # over each other
        (0xFF0000, 0xFF00, 0xFF, 0),  # beyond the pixel
        (0, 0, 0, 0),
    ],
)
def test_bit_fields_that_make_no_sense_are_refused(masks: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedImage, match="bit fields"):
        processed(bmp([bytes(2 * WIDTH)] * HEIGHT, 16, header=108, masks=masks, compression=3))


# --- Runs ------------------------------------------------------------------------------------------

END_OF_ROW, END = b"\0\0", b"\0\1"
#: From the bottom row up, of 6 by 3 pixels; what is skipped has the first colour.
RUNS: dict[str, tuple[int, bytes, list[str]]] = {
    "runs": (
        8,
        b"\6\1" + END_OF_ROW + b"\2\2\4\3" + END_OF_ROW + b"\5\4\1\0" + END_OF_ROW + END,
        ["444440", "223333", "111111"],
    ),
    "as they are, odd": (
        8,
        b"\0\3\1\2\3\0\3\4" + END_OF_ROW + b"\0\5\5\4\3\2\1\0\1\2" + END_OF_ROW + b"\6\3" + END,
        ["333333", "543212", "123444"],
    ),
    "as they are, even": (
        8,
        b"\0\6\1\2\3\4\5\0" + END_OF_ROW + b"\0\4\1\2\3\4\2\5" + END_OF_ROW + b"\6\0" + END,
        ["000000", "123455", "123450"],
    ),
    "skipped": (8, b"\2\1\0\2\1\1\3\2" + END_OF_ROW + b"\1\3" + END, ["300000", "000222", "110000"]),
    "skipped far": (8, b"\0\2\5\2\1\5" + END, ["000005", "000000", "000000"]),
    "short rows": (8, b"\1\1" + END_OF_ROW + END_OF_ROW + b"\2\2" + END, ["220000", "000000", "100000"]),
    "an early end": (8, b"\6\2" + END_OF_ROW + b"\3\1" + END, ["000000", "111000", "222222"]),
    "no end": (8, b"\6\2" + END_OF_ROW + b"\6\1" + END_OF_ROW + b"\6\3", ["333333", "111111", "222222"]),
    "no end, but that of the row": (8, b"\6\2\0\0\6\1\0\0\6\3\0\0", ["333333", "111111", "222222"]),
    "more behind the last row": (
        8,
        b"\6\2\0\0\6\1\0\0\6\3\0\0\6\4\0\0" + END,
        ["333333", "111111", "222222"],
    ),
    "beyond the row": (
        8,
        b"\4\2\7\1" + END_OF_ROW + b"\0\7\1\2\3\4\5\5\5\0" + END_OF_ROW + b"\6\3" + END,
        ["333333", "123455", "222211"],
    ),
    "nibbles": (
        4,
        b"\6\x12" + END_OF_ROW + b"\3\x34\3\x50" + END_OF_ROW + b"\5\x01\1\x50" + END,
        ["010105", "343505", "121212"],
    ),
    "nibbles as they are": (
        4,
        b"\0\6\x12\x34\x50\0"
        + END_OF_ROW
        + b"\0\5\x12\x34\x50\0\1\x10"
        + END_OF_ROW
        + b"\0\3\x54\x30\3\x21"
        + END,
        ["543212", "123451", "123450"],
    ),
    "nibbles skipped": (
        4,
        b"\1\x10\0\2\2\1\3\x24" + END_OF_ROW + b"\2\x35" + END,
        ["350000", "000242", "100000"],
    ),
    "nibbles beyond the row": (
        4,
        b"\5\x12\4\x34" + END_OF_ROW + b"\0\7\x12\x34\x55\x10" + END_OF_ROW + b"\7\x12" + END,
        ["121212", "123455", "121213"],
    ),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("gap", [0, 1])
def test_runs_are_what_they_say(name: str, gap: int) -> None:
    """They are padded by their own length, wherever they start in the file."""
    bits, runs, rows = RUNS[name]
    colours = PALETTES["256 colours"][: 16 if bits == 4 else 256]
    data = bmp(runs, bits, size=(6, 3), compression=1 if bits == 8 else 2, colours=colours)
    start = len(data) - len(runs)
    data = data[:10] + struct.pack("<I", start + gap) + data[14:start] + bytes(gap) + runs
    stored = shown([bytes(int(index) for index in row) for row in rows], colours)
    assert_shows(data, stored)


@pytest.mark.parametrize("name", ["runs", "as they are, odd", "nibbles", "nibbles as they are"])
def test_runs_of_black_and_white_are_too(name: str) -> None:
    bits, runs, rows = RUNS[name]
    colours = [BLACK, WHITE]
    data = bmp(runs, bits, size=(6, 3), compression=1 if bits == 8 else 2, colours=colours)
    stored = shown([bytes(int(index) for index in row) for row in rows], colours + [BLACK] * 4)
    assert_shows(data, stored)


@pytest.mark.parametrize(
    "name", [name for name in RUNS if RUNS[name][1].endswith(END) and name != "more behind the last row"]
)
def test_runs_that_are_cut_off_are_no_image(name: str) -> None:
    bits, runs, _ = RUNS[name]
    for cut in range(len(runs) - 4):
        data = bmp(
            runs[:cut], bits, size=(6, 3), compression=1 if bits == 8 else 2, colours=PALETTES["5 colours"]
        )
        with pytest.raises(DamagedImage):
            processed(data, "flip")


@pytest.mark.parametrize(("bits", "compression"), [(4, 1), (8, 2), (1, 1), (24, 1), (8, 4), (24, 4), (32, 5)])
def test_a_compression_that_nobody_knows_is_refused(bits: int, compression: int) -> None:
    colours = PALETTES["256 colours"][: 1 << bits] if bits <= 8 else []
    with pytest.raises(UnsupportedImage, match="compression"):
        processed(bmp(bytes(1000), bits, compression=compression, colours=colours))
