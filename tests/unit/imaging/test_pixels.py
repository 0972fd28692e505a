"""Every turn on every orientation, size, mode and lossless container, against the oracle, exactly."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING, TypeVar

import pytest
from PIL import Image, ImageCms, TiffImagePlugin
from support import specimens
from support.oracle import ORIENTATIONS, TURNS, Grid, Png, expected, grid_of, read_png
from support.specimens import encoded, noise_image, orientation_only, processed

from server.errors import UnsupportedImage
from server.imaging.codecs import Format
from server.imaging.geometry import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SIZES = ((1, 1), (2, 3), (5, 4), (7, 7), (8, 16))
#: Pillow's PNG writes CMYK as something else.
PNG_KINDS = tuple(kind for kind in specimens.KINDS if kind != "CMYK")
UPRIGHT = {None, 1}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

TIFF_CASES = (
    *((kind, None) for kind in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")),
    *((kind, "tiff_lzw") for kind in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")),
    *((kind, "tiff_adobe_deflate") for kind in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")),
    ("RGB", "packbits"),
    ("1", "group4"),
)

#: Container, the options that make it lossless, the kinds it stores exactly.
LOSSLESS = (
    ("PNG", {}, PNG_KINDS),
    ("BMP", {}, ("1", "L", "P", "RGB")),
    ("GIF", {}, ("P", "P/index")),
    ("WEBP", {"lossless": True, "exact": True}, ("RGB", "RGBA")),
    ("PPM", {}, ("1", "L", "RGB")),
    ("QOI", {}, ("RGB", "RGBA")),
)


def every_turn(source: Callable[[tuple[int, int], int], T]) -> Iterator[tuple[tuple[int, int], int, str, T]]:
    """Yield every size, orientation and turn, and what is made for a size and orientation, made once."""
    for size in SIZES:
        for orientation in ORIENTATIONS:
            made = source(size, orientation)
            for turn in TURNS:
                yield size, orientation, turn, made


def opaque_look(image: Image.Image) -> Grid:
    """Return what a person sees of a palette image, transparency included."""
    return grid_of(image.convert("RGBA"))


def assert_same_still(ours: Image.Image, source: Image.Image, wanted: Grid, case: object) -> None:
    """Check mode, samples, palette and transparency; the palette's unused tail may be padded."""
    assert ours.mode == source.mode, case
    assert ours.size == wanted.size, case
    assert grid_of(ours) == wanted, case
    assert ours.info.get("transparency") == source.info.get("transparency"), case
    if source.mode == "P":
        colours = source.getpalette()[: 3 * specimens.PALETTE_SIZE]
        assert ours.getpalette()[: len(colours)] == colours, case


def test_the_oracle_knows_every_turn() -> None:
    assert TURNS.keys() == set(Turn)


@pytest.mark.parametrize("kind", PNG_KINDS)
def test_png_in_every_orientation_is_turned_exactly(kind: str) -> None:
    def source(size: tuple[int, int], orientation: int) -> tuple[Grid, bytes]:
        image = noise_image(kind, size)
        return grid_of(image), encoded(image, "PNG", exif=orientation_only(orientation))

    for size, orientation, turn, (stored, data) in every_turn(source):
        outcome = processed(data, turn)
        case = kind, size, orientation, turn
        ours = outcome.image
        assert ours.format == "PNG", case
        assert_same_still(ours, Image.open(io.BytesIO(data)), expected(stored, turn, orientation), case)
        assert ours.getexif().get(0x0112) in UPRIGHT, case
        assert (outcome.result.width, outcome.result.height) == ours.size, case


@pytest.mark.parametrize(("kind", "compression"), TIFF_CASES)
def test_tiff_in_every_orientation_is_turned_exactly(kind: str, compression: str | None) -> None:
    def source(size: tuple[int, int], orientation: int) -> tuple[Image.Image, Grid, bytes]:
        image = noise_image(kind, size)
        data = encoded(image, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
        return image, grid_of(image), data

    for size, orientation, turn, (image, stored, data) in every_turn(source):
        ours = processed(data, turn).image
        case = kind, compression, size, orientation, turn
        assert ours.format == "TIFF", case
        assert ours.getexif().get(0x0112) in UPRIGHT, case
        assert_same_still(ours, image, expected(stored, turn, orientation), case)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "group4"])
def test_a_tiff_keeps_its_compression(compression: str | None) -> None:
    data = encoded(noise_image("1", (20, 10)), "TIFF", compression=compression)
    for turn in TURNS:
        assert processed(data, turn).image.info["compression"] == (compression or "raw"), turn


def test_a_tiff_in_strips_and_with_a_predictor_is_turned_exactly() -> None:
    source = noise_image("RGB", (33, 40))
    strips = TiffImagePlugin.ImageFileDirectory_v2()
    strips[TiffImagePlugin.ROWSPERSTRIP] = 7
    strips[TiffImagePlugin.PREDICTOR] = 2
    data = encoded(source, "TIFF", compression="tiff_lzw", tiffinfo=strips)
    for turn in TURNS:
        assert grid_of(processed(data, turn).image) == expected(grid_of(source), turn), turn


@pytest.mark.parametrize("container", ["WEBP", "AVIF", "JPEG"])
def test_a_lossy_image_in_every_orientation_is_seen_turned(container: str) -> None:
    """Four corners of four colours, large enough to survive any encoder, tell the eight positions apart."""
    colours = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (240, 240, 10))
    corners = Grid(2, 2, colours)
    source = Image.new("RGB", (2, 2))
    source.putdata(colours)
    source = source.resize((64, 48), Image.Resampling.NEAREST)
    for orientation in ORIENTATIONS:
        block = (b"Exif\0\0" if container == "JPEG" else b"") + orientation_only(orientation)
        data = encoded(source, container, exif=block)
        for turn in TURNS:
            case = container, orientation, turn
            ours = processed(data, turn).image
            wanted = expected(corners, turn, orientation)
            assert ours.size == expected(Grid(64, 48, (0,) * 3072), turn, orientation).size, case
            assert ours.getexif().get(0x0112) in UPRIGHT, case
            for (x, y), colour in zip(((0, 0), (1, 0), (0, 1), (1, 1)), wanted.pixels, strict=True):
                seen = ours.convert("RGB").getpixel(
                    (ours.width * (1 + 2 * x) // 4, ours.height * (1 + 2 * y) // 4)
                )
                assert max(abs(a - b) for a, b in zip(seen, colour, strict=True)) < 40, (case, x, y)


@pytest.mark.parametrize("order", ["<", ">"])
def test_webp_without_loss_in_every_orientation_is_turned_exactly(order: str) -> None:
    def source(size: tuple[int, int], orientation: int) -> tuple[Image.Image, Grid, bytes]:
        image = noise_image("RGBA", size)
        block = specimens.exif_block(orientation, order=order).data
        return image, grid_of(image), encoded(image, "WEBP", lossless=True, exact=True, exif=block)

    for size, orientation, turn, (image, stored, data) in every_turn(source):
        ours = processed(data, turn).image
        case = order, size, orientation, turn
        assert_same_still(ours, image, expected(stored, turn, orientation), case)


@pytest.mark.parametrize(
    ("container", "options", "kind"),
    [
        pytest.param(container, options, kind, id=f"{container}-{kind}")
        for container, options, kinds in LOSSLESS
        for kind in kinds
    ],
)
def test_a_lossless_container_loses_nothing(container: str, options: dict[str, object], kind: str) -> None:
    for size in SIZES:
        source = noise_image(kind, size)
        data = encoded(source, container, **options)
        before = Image.open(io.BytesIO(data))
        stored = grid_of(source)
        for turn in TURNS:
            ours = processed(data, turn).image
            case = container, kind, size, turn
            assert ours.format == before.format, case
            if container == "GIF":
                # A writer may reorder a GIF's palette, which changes no colour.
                assert opaque_look(ours) == expected(opaque_look(before), turn), case
            else:
                assert_same_still(ours, before, expected(stored, turn), case)


@pytest.mark.parametrize("kind", ["P", "P/index"])
def test_a_gif_of_one_frame_keeps_its_palette(kind: str) -> None:
    """Unused and repeated colours keep their places: other programs may count on them."""
    source = noise_image(kind, (9, 7))
    before = Image.open(io.BytesIO(encoded(source, "GIF", optimize=False)))
    for turn in TURNS:
        ours = processed(encoded(source, "GIF", optimize=False), turn).image
        assert_same_still(ours, before, expected(grid_of(source), turn), (kind, turn))


def palette_png(depth: int, size: tuple[int, int], colours: int, transparency: bytes) -> tuple[bytes, Grid]:
    noise = iter(specimens.noise(size[0] * size[1], depth))
    indices = Grid(*size, tuple(next(noise) % colours for _ in range(size[0] * size[1])))
    rows = [packed(indices.pixels[y * size[0] : (y + 1) * size[0]], depth) for y in range(size[1])]
    extra = specimens.chunk(b"PLTE", b"".join(bytes(colour) for colour in specimens.PALETTE[:colours]))
    if transparency:
        extra += specimens.chunk(b"tRNS", transparency)
    return specimens.png(size, depth, 3, rows, extra), indices


def packed(row: tuple[int, ...], depth: int) -> bytes:
    bits = "".join(format(sample, f"0{depth}b") for sample in row)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [b"", b"\x80", b"\xff\x00", b"\x00\x10\x20\x30"])
def test_a_palette_png_of_any_depth_keeps_indices_palette_and_transparency(
    depth: int, transparency: bytes
) -> None:
    colours = min(PALETTE_LIMIT, 1 << depth)
    data, indices = palette_png(depth, (11, 5), colours, transparency[:colours])
    for turn in TURNS:
        case = depth, transparency, turn
        ours = read_png(processed(data, turn).data)
        assert ours.colour_type == 3, case
        assert ours.grid == expected(indices, turn), case
        assert ours.chunk(b"PLTE")[: 3 * colours] == read_png(data).chunk(b"PLTE"), case
        assert alphas(ours) == alphas(read_png(data)), case


PALETTE_LIMIT = 20


def alphas(image: Png) -> list[int]:
    """Return the alpha of every palette entry; what is not listed is opaque."""
    return list((image.chunk(b"tRNS") or b"").ljust(PALETTE_LIMIT, b"\xff"))[:PALETTE_LIMIT]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_gray_png_of_low_depth_looks_the_same(depth: int) -> None:
    samples = tuple(byte % (1 << depth) for byte in specimens.noise(55, depth))
    rows = [packed(samples[y * 11 : (y + 1) * 11], depth) for y in range(5)]
    data = specimens.png((11, 5), depth, 0, rows)
    scale = 255 // ((1 << depth) - 1)
    wanted = Grid(11, 5, tuple(sample * scale for sample in samples))
    for turn in TURNS:
        assert grid_of(processed(data, turn).image) == expected(wanted, turn), (depth, turn)


def deep_png(colour_type: int, size: tuple[int, int], extra: bytes = b"") -> tuple[bytes, Grid]:
    """Return a PNG of 16 bits per sample and its samples."""
    per_pixel = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    row_bytes = 2 * per_pixel * size[0]
    raw = specimens.noise(row_bytes * size[1], colour_type)
    rows = [raw[y * row_bytes : (y + 1) * row_bytes] for y in range(size[1])]
    data = specimens.png(size, 16, colour_type, rows, extra)
    return data, read_png(data).grid


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_a_png_of_16_bits_keeps_all_16(colour_type: int) -> None:
    for size in ((1, 1), (5, 4), (8, 3)):
        for orientation in ORIENTATIONS:
            extra = specimens.chunk(b"eXIf", orientation_only(orientation))
            data, stored = deep_png(colour_type, size, extra)
            for turn in TURNS:
                case = colour_type, size, orientation, turn
                ours = read_png(processed(data, turn).data)
                assert ours.depth == 16, case
                assert ours.colour_type == colour_type, case
                assert ours.grid == expected(stored, turn, orientation), case


@pytest.mark.parametrize("kind", range(5))
def test_a_png_of_16_bits_is_read_through_every_filter(kind: int) -> None:
    """The same samples, filtered: the answer is the same as for the unfiltered file."""
    size, row_bytes = (5, 4), 30
    _, stored = deep_png(2, size)
    raw = b"".join(struct.pack(">3H", *pixel) for pixel in stored.pixels)
    rows = [raw[y * row_bytes : (y + 1) * row_bytes] for y in range(size[1])]
    body = b"".join(bytes((kind,)) + filtered(kind, rows, y) for y in range(size[1]))
    data = (
        b"\x89PNG\r\n\x1a\n"
        + specimens.header_chunk(size, 16, 2)
        + specimens.chunk(b"IDAT", zlib.compress(body))
        + specimens.chunk(b"IEND", b"")
    )
    assert read_png(data).grid == stored
    for turn in TURNS:
        assert read_png(processed(data, turn).data).grid == expected(stored, turn), (
            kind,
            turn,
        )


def filtered(kind: int, rows: list[bytes], y: int, step: int = 6) -> bytes:
    row = rows[y]
    above = rows[y - 1] if y else bytes(len(row))
    left = bytes(step) + row[:-step]
    up_left = bytes(step) + above[:-step]
    if kind == 4:
        predictions = [paeth(a, b, c) for a, b, c in zip(left, above, up_left, strict=True)]
    else:
        averages = bytes((a + b) // 2 for a, b in zip(left, above, strict=True))
        predictions = (bytes(len(row)), left, above, averages)[kind]
    return bytes((value - guess) & 255 for value, guess in zip(row, predictions, strict=True))


def paeth(left: int, up: int, up_left: int) -> int:
    distances = [abs(up - up_left), abs(left - up_left), abs(left + up - 2 * up_left)]
    return (left, up, up_left)[distances.index(min(distances))]


@pytest.mark.parametrize("depth_bytes", [1, 2])
def test_an_interlaced_png_is_turned_exactly(depth_bytes: int) -> None:
    """Adam7, laid out by hand: seven small images in one."""
    size = (9, 6)
    samples = Grid(*size, tuple(specimens.noise(54 * depth_bytes, "adam")[i::54] for i in range(54)))
    body = b""
    for left, top, across, down in specimens.ADAM7:
        for y in range(top, size[1], down):
            row = b"".join(samples.at(x, y) for x in range(left, size[0], across))
            body += b"\0" + row if row else b""
    header = struct.pack(">IIBBBBB", *size, 8 * depth_bytes, 0, 0, 0, 1)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        specimens.chunk(kind, content)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    )
    stored = samples.map(lambda sample: int.from_bytes(sample, "big"))
    for turn in TURNS:
        assert grid_of(processed(data, turn).image) == expected(stored, turn), turn


def test_a_gray_ppm_of_16_bits_is_turned_exactly() -> None:
    raw = specimens.noise(40, "gray")
    data = b"P5\n5 4\n65535\n" + raw
    stored = Grid(5, 4, struct.unpack(">20H", raw))
    for turn in TURNS:
        outcome = processed(data, turn)
        assert grid_of(outcome.image) == expected(stored, turn), turn
        assert outcome.result.format is Format.PPM


def test_a_colour_ppm_of_16_bits_is_refused_rather_than_cut_to_8() -> None:
    """Pillow reads only the upper half of each sample: to hand that back as a PPM would be a loss."""
    for turn in TURNS:
        with pytest.raises(UnsupportedImage):
            processed(b"P6\n5 4\n65535\n" + specimens.noise(120), turn)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_counts_as_upright(orientation: int) -> None:
    source = noise_image("RGB", (5, 4))
    data = encoded(source, "PNG", exif=orientation_only(orientation))
    for turn in TURNS:
        assert grid_of(processed(data, turn).image) == expected(grid_of(source), turn), turn


def test_metadata_of_a_png_comes_back() -> None:
    source = noise_image("RGB", (5, 4))
    block = specimens.exif_block(6)
    text = specimens.chunk(b"tEXt", b"Comment\0on the left") + specimens.chunk(b"tEXt", b"Author\0Ansel")
    text += specimens.chunk(b"iTXt", b"Title\0\0\0de\0Titel\0\xc3\x9cberschrift")
    data = encoded(source, "PNG", exif=block.data, icc_profile=PROFILE)
    data = data[:33] + text + specimens.chunk(b"pHYs", struct.pack(">IIB", 3780, 11811, 1)) + data[33:]
    ours = processed(data, "flip").image
    assert dict(ours.text) == {"Comment": "on the left", "Author": "Ansel", "Title": "Überschrift"}
    assert ours.info["icc_profile"] == PROFILE
    assert ours.getexif()[0x010F] == "Imaginary"
    assert ours.getexif().get_ifd(0x8769)[0x927C] == specimens.MAKER_NOTE
    assert specimens.THUMBNAIL not in processed(data, "flip").data
    assert [round(dots) for dots in ours.info["dpi"]] == [300, 96], "flip on orientation 6 swaps the sides"
    stripped = processed(data, "flip", strip=True).image
    assert not {"exif", "Comment", "Author", "Title"} & stripped.info.keys()
    assert grid_of(stripped) == expected(grid_of(source), "flip", 6)


@pytest.mark.parametrize("container", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_profile_and_xmp_come_back_unless_they_are_stripped(container: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF/></x:xmpmeta>'
    options: dict[str, object] = {"icc_profile": PROFILE}
    if container in {"WEBP", "AVIF"}:
        options["xmp"] = xmp
    elif container == "TIFF":
        options["tiffinfo"] = {700: xmp}
    data = encoded(noise_image("RGB", (16, 8)), container, **options)
    if container == "PNG":
        data = specimens.with_chunk(data, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    for turn in TURNS:
        ours = processed(data, turn)
        assert ours.image.info["icc_profile"] == PROFILE, (container, turn)
        assert xmp in ours.data, (container, turn)
        stripped = processed(data, turn, strip=True)
        assert xmp not in stripped.data, (container, turn)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_xmp_that_repeats_the_orientation_does_not_turn_the_answer_again(container: str) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:x="y"/></x:xmpmeta>'
    options: dict[str, object] = {"tiffinfo": {700: xmp, 0x0112: 6}}
    if container in {"JPEG", "WEBP"}:
        options = {"xmp": xmp, "exif": b"Exif\0\0" + orientation_only(6)}
    elif container == "PNG":
        options = {"exif": orientation_only(6)}
    data = encoded(noise_image("RGB", (16, 8)), container, **options)
    if container == "PNG":
        data = specimens.with_chunk(data, b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    for turn in TURNS:
        ours = processed(data, turn)
        assert b'dc:x="y"' in ours.data, (container, turn)
        assert b'tiff:Orientation="6"' not in ours.data, (container, turn)
        assert ours.image.getexif().get(0x0112) in UPRIGHT, (container, turn)
        image = ours.image
        image.load()
        sides_swap, _ = TURNS[turn]
        assert image.size == ((16, 8) if sides_swap else (8, 16)), (container, turn)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_stripping_drops_a_profile_that_says_what_is_assumed_anyway(container: str) -> None:
    data = encoded(noise_image("RGB", (16, 8)), container, icc_profile=PROFILE)
    assert "icc_profile" in Image.open(io.BytesIO(data)).info
    for turn in TURNS:
        assert "icc_profile" not in processed(data, turn, strip=True).image.info, (container, turn)


def managed(image: Image.Image) -> tuple[int, ...]:
    """Return the colour that a viewer shows in the middle, profile applied."""
    if "icc_profile" in image.info:
        profile = io.BytesIO(image.info["icc_profile"])
        image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    return image.getpixel((8, 8))


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("strip", [False, True])
def test_a_profile_of_other_colours_never_changes_what_is_seen(container: str, strip: bool) -> None:  # noqa: FBT001
    """In this profile red and blue have changed places, so that ignoring it shows."""
    swapped = PROFILE.replace(b"rXYZ", b"____").replace(b"bXYZ", b"rXYZ").replace(b"____", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))  # its description
    data = encoded(Image.new("RGB", (16, 16), (200, 40, 40)), container, quality=95, icc_profile=swapped)
    before = managed(Image.open(io.BytesIO(data)))
    assert before[2] > before[0] + 100
    for turn in TURNS:
        ours = managed(processed(data, turn, strip=strip).image)
        assert max(abs(a - b) for a, b in zip(ours, before, strict=True)) < 12, (container, turn)


def test_the_density_of_a_tiff_and_a_bmp_turns_with_the_image() -> None:
    for container in ("TIFF", "BMP"):
        data = encoded(noise_image("RGB", (5, 4)), container, dpi=(300, 96))
        for turn, (sides_swap, _) in TURNS.items():
            dpi = [round(dots) for dots in processed(data, turn).image.info["dpi"]]
            assert dpi == ([96, 300] if sides_swap else [300, 96]), (container, turn)
