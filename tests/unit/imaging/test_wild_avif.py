"""AVIFs as strangers write them, judged by avifdec and by what their files are made of."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageChops, ImageCms
from support import programs
from support.oracle import TURNS, Grid
from support.programs import pixels, run_on, tags
from support.specimens import MAKER_NOTE, encoded, exif_block, natural, processed

from server.errors import DamagedImage, UnsupportedImage
from server.imaging.codecs import Effort, Format
from server.imaging.formats import avif, bmff

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = (64, 40)
CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"iprp", b"ipco", b"meta"})


# --- Files, made by avifenc or changed by hand ----------------------------------------------------


def made(directory: Path, *options: str, images: tuple[Image.Image, ...] = ()) -> bytes:
    """Encode with avifenc."""
    names = []
    for index, image in enumerate(images or (natural(SIZE),)):
        names.append(str(directory / f"{index}.png"))
        image.save(names[-1])
    target = directory / "made.avif"
    programs.run("avifenc", "--speed", "9", *options, *names, str(target))
    return target.read_bytes()


def decoded(directory: Path, data: bytes) -> Grid:
    """Decode with avifdec, which leaves out crop, rotation and mirror (libavif 0.11)."""
    source, target = directory / "decoded.avif", directory / "decoded.png"
    source.write_bytes(data)
    programs.run("avifdec", str(source), str(target))
    return pixels(target.read_bytes(), "png")


def told(data: bytes, name: str) -> str:
    """Return what avifdec says of a file."""
    lines = run_on("avifdec", data, ".avif", "--info", "{}").decode().splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f" * {name}"))


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of all boxes, those inside others too."""
    end = len(data) if end is None else end
    while start < end:
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, start + size
        if kind in CONTAINERS:
            yield from boxes(data, start + (12 if kind == b"meta" else 8), start + size)
        start += size


def span(data: bytes, wanted: bytes, number: int = 0) -> tuple[int, int]:
    return [(start, end) for kind, start, end in boxes(data) if kind == wanted][number]


def associations(data: bytes) -> Iterator[int]:
    """Yield where the indices of properties stand in `ipma`, each of a byte."""
    start, _ = span(data, b"ipma")
    at = start + 16
    for _ in range(*struct.unpack_from(">I", data, start + 12)):
        count = data[at + 2]
        yield from range(at + 3, at + 3 + count)
        at += 3 + count


def reordered(data: bytes, first: bytes) -> bytes:
    """Put those properties first that contain some bytes, and keep them where they belong."""
    start, end = span(data, b"ipco")
    found = [data[begin:stop] for _, begin, stop in boxes(data, start + 8, end)]
    order = sorted(range(len(found)), key=lambda index: first not in found[index])
    file = bytearray(data)
    file[start + 8 : end] = b"".join(found[index] for index in order)
    for at in associations(data):
        file[at] = file[at] & 0x80 | order.index((file[at] & 0x7F) - 1) + 1
    return bytes(file)


def with_loose_property(data: bytes, body: bytes) -> bytes:
    """Insert a property that belongs to no item before all others."""
    prop = struct.pack(">I", len(body) + 4) + body
    start, _ = span(data, b"ipco")
    file = bytearray(data)
    for at in associations(data):
        file[at] += 1
    places, _ = span(data, b"iloc")
    assert file[places + 8 : places + 14] == b"\0\0\0\0\x44\0"
    at = places + 16
    for _ in range(*struct.unpack_from(">H", file, places + 14)):
        (offset,) = struct.unpack_from(">I", file, at + 6)
        struct.pack_into(">I", file, at + 6, offset + len(prop))
        at += 14
    file[start + 8 : start + 8] = prop
    for box in (b"ipco", b"iprp", b"meta"):
        begin, end = span(data, box)
        struct.pack_into(">I", file, begin, end - begin + len(prop))
    return bytes(file)


def frames(mode: str = "RGB", count: int = 3) -> list[Image.Image]:
    return [ImageChops.offset(natural(SIZE, mode), 9 * index) for index in range(count)]


def sequence(mode: str = "RGB", **options: object) -> bytes:
    first, *rest = frames(mode)
    return encoded(first, "AVIF", save_all=True, append_images=rest, duration=100, speed=9, **options)


def assert_close(ours: Grid, theirs: Grid, most: int) -> None:
    assert ours.size == theirs.size
    apart = (
        abs(a - b)
        for left, right in zip(ours.pixels, theirs.pixels, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    assert max(apart) <= most


# --- What belongs to the image that is shown ------------------------------------------------------


@pytest.mark.parametrize(("subsampling", "named"), [("4:2:0", "YUV420"), ("4:4:4", "YUV444")])
def test_an_alpha_whose_properties_come_first_does_not_make_an_image_gray(
    tmp_path: Path, subsampling: str, named: str
) -> None:
    image = natural(SIZE, "RGBA")
    image.putalpha(Image.linear_gradient("L").resize(SIZE))
    plain = encoded(image, "AVIF", subsampling=subsampling, quality=90)
    alpha = next(data for data in (plain[slice(*span(plain, b"av1C", n))] for n in (0, 1)) if data[10] & 0x10)
    data = reordered(plain, alpha)
    assert data[span(data, b"av1C")[0] + 10] & 0x10
    out = processed(data, "orient").data
    assert told(out, "Format") == told(data, "Format") == named
    assert_close(decoded(tmp_path, out), decoded(tmp_path, data), 24)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_an_alpha_track_that_comes_first_does_not_make_a_sequence_gray(
    tmp_path: Path, subsampling: str
) -> None:
    plain = sequence("RGBA", subsampling=subsampling)
    (first, middle), (_, last) = span(plain, b"trak"), span(plain, b"trak", 1)
    data = plain[:first] + plain[middle:last] + plain[first:middle] + plain[last:]
    out = processed(data, "orient").data
    assert told(out, "Format") == told(plain, "Format") != "YUV400"
    assert_close(decoded(tmp_path, out), decoded(tmp_path, plain), 40)


def test_the_first_tile_of_a_grid_tells_how_all_are_coded(tmp_path: Path) -> None:
    data = made(tmp_path, "--grid", "2x2", "--nclx", "12/13/6", images=(natural((128, 128)),))
    out = processed(data, "orient").data
    assert [told(out, name) for name in ("Format", "Color Primaries", "Resolution")] == [
        "YUV444",
        "12",
        "128x128",
    ]
    assert_close(decoded(tmp_path, out), decoded(tmp_path, data), 24)


@pytest.mark.parametrize(
    "loose",
    [
        b"colrnclx\0\x09\0\x10\0\x09\x80",
        b"av1C\x81\0\x5c\0",  # ten bits, monochrome
        b"clap" + struct.pack(">8I", 8, 1, 8, 1, 0, 1, 0, 1),
        b"irot\1",
        b"imir\1",
    ],
    ids=lambda body: body[:4].decode(),
)
def test_a_property_that_belongs_to_no_item_counts_for_nothing(tmp_path: Path, loose: bytes) -> None:
    plain = encoded(natural(SIZE), "AVIF")
    data = with_loose_property(plain, loose)
    assert decoded(tmp_path, data) == decoded(tmp_path, plain)
    assert decoded(tmp_path, processed(data, "flip").data) == decoded(tmp_path, processed(plain, "flip").data)


def test_the_sequence_header_rules_over_its_copies() -> None:
    data = bytearray(encoded(natural(SIZE), "AVIF"))
    data[span(bytes(data), b"av1C")[0] + 10] |= 0x10  # monochrome, which it is not
    assert told(processed(bytes(data), "orient").data, "Format") == "YUV420"


@pytest.mark.parametrize("kind", [b"pitm", b"ipma", b"ipco", b"iinf", b"iloc"])
def test_a_file_without_structure_is_refused(kind: bytes) -> None:
    data = encoded(natural(SIZE), "AVIF")
    with pytest.raises(DamagedImage):
        processed(data.replace(kind, b"free"), "flip")


# --- Other items ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Item:
    """An item of a file that is put together by hand."""

    number: int
    kind: bytes
    payload: bytes
    properties: tuple[bytes, ...] = ()
    references: tuple[tuple[bytes, tuple[int, ...]], ...] = ()
    is_hidden: bool = False


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def full(kind: bytes, version: int, *parts: bytes, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


def coded(number: int, image: Image.Image, *properties: bytes, **others: object) -> Item:
    """Return an item with an image as Pillow codes it, in 4:4:4 or gray."""
    options = {} if image.mode == "L" else {"subsampling": "4:4:4"}
    data = encoded(image, "AVIF", quality=90, **options)
    start, end = span(data, b"mdat")
    own = tuple(data[slice(*span(data, kind))] for kind in (b"ispe", b"pixi", b"av1C"))
    return Item(number, b"av01", data[start + 8 : end], (*own, *properties), **others)


def put_together(
    items: list[Item], primary: int, *, is_wide: bool, holds_own: bool, brand: bytes = b"mif1"
) -> bytes:
    """Write a file of items: with numbers of 16 bits or, in the other versions of all boxes, of 32.

    Args:
        items: in the order of the file.
        primary: its number.
        is_wide: whether to use 32 bits, and properties with 15.
        holds_own: whether their content is in `meta` (construction method 1), rather than behind it.
        brand: another one.
    """
    wide = int(is_wide)
    number = ">I" if is_wide else ">H"
    properties = [prop for item in items for prop in item.properties]

    def owned(item: Item) -> bytes:
        indices = [properties.index(prop) + 1 for prop in item.properties]
        widths = struct.pack(f">{len(indices)}{'H' if is_wide else 'B'}", *indices)
        return struct.pack(number, item.number) + bytes([len(indices)]) + widths

    def fields(item: Item, to: tuple[int, ...]) -> list[tuple[str, int]]:
        return [(number, item.number), (">H", len(to)), *((number, other) for other in to)]

    def meta(start: int) -> bytes:
        places, at = b"", start
        for item in items:
            method = struct.pack(">H", int(holds_own)) if is_wide or holds_own else b""
            places += struct.pack(number, item.number) + method + bytes(2)
            places += struct.pack(">HII", 1, at, len(item.payload))
            at += len(item.payload)
        version = 2 if is_wide else int(holds_own)
        entries = [
            full(
                b"infe",
                2 + wide,
                struct.pack(number, item.number) + bytes(2) + item.kind + b"\0",
                flags=int(item.is_hidden),
            )
            for item in items
        ]
        references = [
            box(kind, *(struct.pack(form, value) for form, value in fields(item, to)))
            for item in items
            for kind, to in item.references
        ]
        return full(
            b"meta",
            0,
            full(b"hdlr", 0, bytes(4) + b"pict" + bytes(13)),
            full(b"pitm", wide, struct.pack(number, primary)),
            full(b"iloc", version, b"\x44\0", struct.pack(number, len(items)), places),
            full(b"iinf", wide, struct.pack(number, len(items)), *entries),
            *([full(b"iref", wide, *references)] if references else []),
            box(
                b"iprp",
                box(b"ipco", *properties),
                full(b"ipma", wide, struct.pack(">I", len(items)), *map(owned, items), flags=wide),
            ),
            *([box(b"idat", *(item.payload for item in items))] if holds_own else []),
        )

    head = box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miaf" + brand)
    if holds_own:
        return head + meta(0)
    return head + meta(len(head) + len(meta(0)) + 8) + box(b"mdat", *(item.payload for item in items))


def with_others() -> dict[str, list[Item]]:
    """Return lists of items, of which the second is primary: in colour, and labelled as BT.2020."""
    label = box(b"colr", b"nclx" + struct.pack(">3HB", 9, 14, 6, 0x80))
    depth = full(b"auxC", 0, b"urn:mpeg:mpegB:cicp:systems:auxiliary:depth\0")
    shown = coded(2, natural(SIZE), label)
    small = natural((32, 20), "L")
    gray = natural(SIZE, "L")
    tone_map = Item(3, b"tmap", bytes(62), (shown.properties[0],), ((b"dimg", (2, 1)),))
    return {
        "thumbnail": [coded(1, small, references=((b"thmb", (2,)),)), shown],
        "depth map": [coded(1, gray, depth, references=((b"auxl", (2,)),)), shown],
        "hidden image": [coded(1, gray, is_hidden=True), shown],
        "image of its own": [coded(1, gray), shown],
        "gain map": [coded(1, small, is_hidden=True), shown, tone_map],
        "nothing": [shown],
    }


@pytest.mark.parametrize("holds_own", [False, True], ids=["mdat", "idat"])
@pytest.mark.parametrize("is_wide", [False, True], ids=["16 bits", "32 bits"])
@pytest.mark.parametrize("name", with_others())
def test_only_the_primary_image_counts(tmp_path: Path, name: str, *, is_wide: bool, holds_own: bool) -> None:
    items = with_others()[name]
    data = put_together(
        items, 2, is_wide=is_wide, holds_own=holds_own, brand=b"tmap" if name == "gain map" else b"mif1"
    )
    wanted = decoded(tmp_path, data)
    answer = processed(data, "orient")
    assert answer.result.frames == 1
    assert [told(answer.data, what) for what in ("Format", "Color Primaries", "Transfer Char.")] == [
        "YUV444",
        "9",
        "14",
    ]
    assert_close(decoded(tmp_path, answer.data), wanted, 20)
    assert pixels(processed(data, "orient", output=Format.PNG).data, "png") == wanted
    assert avif.read_avif(data).codes == avif.Codes(9, 14, 6, is_full_range=True)


@pytest.mark.parametrize("kind", [b"infe", b"dimg"])
def test_lists_without_end_are_refused(kind: bytes) -> None:
    entry = full(b"infe", 2, b"\0\1\0\0av01\0") if kind == b"infe" else box(kind, b"\0\1\0\0")
    lists = full(b"iinf", 0, b"\0\0", entry * 50_000) if kind == b"infe" else full(b"iref", 0, entry * 50_000)
    data = encoded(natural(SIZE), "AVIF")
    at, _ = span(data, b"meta")
    head = data[:at] + full(b"meta", 0, lists)
    with pytest.raises(DamagedImage):
        processed(head + data[at:], "flip")


# --- Crop, rotation, mirror -----------------------------------------------------------------------


def cropped(grid: Grid, x: int, y: int, width: int, height: int) -> Grid:
    rows = (grid.pixels[row * grid.width + x :][:width] for row in range(y, y + height))
    return Grid(width, height, tuple(pixel for row in rows for pixel in row))


def turned(grid: Grid, turn: str) -> Grid:
    swaps, source = TURNS[turn]
    width, height = (grid.height, grid.width) if swaps else grid.size
    places = (source(x, y, *grid.size) for y in range(height) for x in range(width))
    return Grid(width, height, tuple(grid.at(*place) for place in places))


#: What `irot` and `imir` do (ISO/IEC 23008-12:2022, 6.5.10 and 6.5.12), in our words.
ROTATIONS = ("orient", "rotate-270", "rotate-180", "rotate-90")
MIRRORS = ("flip", "flop")


@pytest.mark.parametrize("output", [None, Format.PNG, Format.JPEG])
@pytest.mark.parametrize("box", [(10, 6, 40, 30), (0, 0, 16, 16), (1, 3, 33, 21), (62, 38, 2, 2)])
def test_what_is_cropped_away_does_not_show(
    tmp_path: Path, box: tuple[int, int, int, int], output: Format | None
) -> None:
    data = made(tmp_path, "--yuv", "444", "--clap", clap(*box))
    wanted = turned(cropped(decoded(tmp_path, data), *box), "flip")
    answer = processed(data, "flip", output=output)
    assert (answer.result.width, answer.result.height) == wanted.size
    ours = decoded(tmp_path, answer.data) if output is None else pixels(answer.data, answer.result.format)
    assert_close(ours, wanted, 0 if output is Format.PNG else 24)
    if output is None:
        assert told(answer.data, "Transformations") == "None"


def clap(x: int, y: int, width: int, height: int) -> str:
    """Return a clean aperture by the formula of ISO/IEC 14496-12, 12.1.4.1, in halves."""
    right, down = 2 * x + width - SIZE[0], 2 * y + height - SIZE[1]
    return f"{width},1,{height},1,{right % 2**32},2,{down % 2**32},2"


def test_a_crop_in_a_sequence_counts_for_all_frames(tmp_path: Path) -> None:
    data = made(tmp_path, "--clap", clap(4, 4, 20, 10), images=tuple(frames()))
    assert b"clap" in data[span(data, b"moov")[0] :]
    for output in (None, Format.PNG, Format.GIF):
        answer = processed(data, "rotate-90", output=output)
        assert (answer.result.width, answer.result.height, answer.result.frames) == (10, 20, 3)


@pytest.mark.parametrize(
    "numbers",
    ["81,2,30,1,0,1,0,1", "40,1,30,1,1,4,0,1", "40,1,30,1,20,1,0,1", "80,1,30,1,0,1,0,1", "0,1,30,1,0,1,0,1"],
    ids=["half a pixel wide", "between pixels", "beyond the side", "too wide", "empty"],
)
def test_a_crop_that_is_no_whole_pixels_is_refused(numbers: str, tmp_path: Path) -> None:
    data = bytearray(made(tmp_path, "--clap", clap(10, 6, 40, 30)))
    start, _ = span(bytes(data), b"clap")
    struct.pack_into(">8I", data, start + 8, *map(int, numbers.split(",")))
    with pytest.raises(UnsupportedImage, match="cropped"):
        processed(bytes(data), "flip")


@pytest.mark.parametrize("mirror", [None, 0, 1])
@pytest.mark.parametrize("angle", range(4))
def test_rotation_and_mirror_are_applied_once(tmp_path: Path, angle: int, mirror: int | None) -> None:
    options = ["--irot", str(angle), "--crop", "10,6,40,30"]
    options += [] if mirror is None else ["--imir", str(mirror)]
    data = made(tmp_path, *options)
    wanted = turned(cropped(decoded(tmp_path, data), 10, 6, 40, 30), ROTATIONS[angle])
    wanted = wanted if mirror is None else turned(wanted, MIRRORS[mirror])
    assert pixels(processed(data, "orient", output=Format.PNG).data, "png") == wanted
    out = processed(data, "orient").data
    assert told(out, "Transformations") == "None"
    assert_close(decoded(tmp_path, out), wanted, 24)


def test_transformations_apply_in_the_order_of_the_file(tmp_path: Path) -> None:
    data = made(tmp_path, "--irot", "1", "--imir", "1")
    at = list(associations(data))
    rotation, mirror = (span(data, kind)[0] for kind in (b"irot", b"imir"))
    order = [start for _, start, _ in boxes(data, span(data, b"ipco")[0] + 8, span(data, b"ipco")[1])]
    first, second = (
        next(place for place in at if data[place] & 0x7F == order.index(start) + 1)
        for start in (rotation, mirror)
    )
    file = bytearray(data)
    file[first], file[second] = data[second], data[first]
    wanted = turned(turned(decoded(tmp_path, data), "flop"), "rotate-270")
    assert pixels(processed(bytes(file), "orient", output=Format.PNG).data, "png") == wanted


# --- Quality --------------------------------------------------------------------------------------


def test_the_estimated_quality_is_the_one_of_the_source() -> None:
    """Encoded with the estimate, an image is what it was: it stands for the same quantizer."""
    image = natural((16, 16))
    for quality in range(1, 101):
        data = encoded(image, "AVIF", quality=quality, speed=9)
        estimate = avif.read_avif(data).quality
        again = encoded(image, "AVIF", quality=estimate, speed=9)
        assert data[slice(*span(data, b"mdat"))] == again[slice(*span(again, b"mdat"))], (quality, estimate)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [20, 50, 80, 95])
def test_an_avif_stays_about_as_large(quality: int, subsampling: str) -> None:
    data = encoded(natural((200, 140)), "AVIF", quality=quality, subsampling=subsampling, speed=7)
    out = processed(data, "flip").data
    assert 0.8 < len(out) / len(data) < 1.25


@pytest.mark.parametrize("codec", ["aom", "rav1e"])
@pytest.mark.parametrize("quantizer", [4, 20, 40, 60])
def test_the_quality_of_other_encoders_is_followed_too(tmp_path: Path, codec: str, quantizer: int) -> None:
    limits = ("--min", str(quantizer), "--max", str(quantizer))
    data = made(tmp_path, "--codec", codec, *limits, images=(natural((200, 140)),))
    assert 0.8 < len(processed(data, "flip").data) / len(data) < 1.8


def test_a_quality_that_is_asked_for_goes_before_that_of_the_source() -> None:
    fine, coarse = (encoded(natural((200, 140)), "AVIF", quality=quality) for quality in (95, 20))
    assert len(processed(fine, "flip", quality=20).data) < len(fine) / 3
    assert len(processed(coarse, "flip", quality=95).data) > 3 * len(coarse)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
@pytest.mark.parametrize("turn", ["flip", "rotate-90"])
def test_a_lossless_image_stays_lossless(tmp_path: Path, mode: str, turn: str) -> None:
    image = natural(SIZE, mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(SIZE))
    options = ("--yuv", "400") if mode == "L" else ()
    data = made(tmp_path, "--lossless", *options, images=(image,))
    before = decoded(tmp_path, data)
    assert before == pixels(encoded(image, "PNG"), "png")
    out = processed(data, turn).data
    assert decoded(tmp_path, out) == turned(before, turn)
    assert told(out, "Format") == told(data, "Format")
    assert len(out) < 1.2 * len(data)
    assert len(processed(data, turn, quality=50).data) < len(data) / 2


def test_a_lossless_sequence_stays_lossless(tmp_path: Path) -> None:
    data = made(tmp_path, "--lossless", images=tuple(frames()))
    out = processed(data, "flip").data
    ours, theirs = (io.BytesIO(file) for file in (out, data))
    with Image.open(ours) as after, Image.open(theirs) as before:
        assert after.n_frames == before.n_frames == 3
        for index in range(3):
            after.seek(index)
            before.seek(index)
            assert after.tobytes() == before.transpose(Image.Transpose.FLIP_TOP_BOTTOM).tobytes()


# --- How often a sequence runs --------------------------------------------------------------------


def repeated(data: bytes, times: int) -> bytes:
    """Make a sequence of Pillow's run so many times (ISO/IEC 23008-12, 9.6.1); 0 for ever."""
    file = bytearray(data)
    for number in range(sum(kind == b"trak" for kind, _, _ in boxes(data))):
        edit, track = (span(data, kind, number)[0] for kind in (b"elst", b"tkhd"))
        file[edit + 11] = times != 1
        (once,) = struct.unpack_from(">Q", file, edit + 16)
        struct.pack_into(">Q", file, track + 36, times * once if times else 2**64 - 1)
    return bytes(file)


def plays(data: bytes) -> set[float]:
    """Return how often the tracks of a sequence run, from their boxes."""
    found: set[float] = set()
    for number in range(sum(kind == b"trak" for kind, _, _ in boxes(data))):
        edit, track = (span(data, kind, number)[0] for kind in (b"elst", b"tkhd"))
        assert data[edit + 8] == data[track + 8] == 1  # versions with durations of 64 bits
        (once,), (whole,) = (
            struct.unpack_from(">Q", data, edit + 16),
            struct.unpack_from(">Q", data, track + 36),
        )
        assert once == 300
        found.add(whole / once if data[edit + 11] & 1 and whole < 2**64 - 1 else 1 - (data[edit + 11] & 1))
    return found


@pytest.mark.parametrize("times", [0, 1, 2, 7, 65535, 100_000])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_runs_as_often_as_before(times: int, mode: str) -> None:
    data = repeated(sequence(mode), times)
    assert plays(data) == {times}
    out = processed(data, "flip").data
    assert plays(out) == {times}
    (movie,) = struct.unpack_from(">Q", out, span(out, b"mvhd")[0] + 32)
    assert movie == (300 * times or 2**64 - 1)


@pytest.mark.parametrize("times", [0, 1, 2, 7, 65535])
def test_other_formats_run_as_often_as_the_avif(times: int) -> None:
    data = repeated(sequence(), times)
    png = processed(data, "flip", output=Format.PNG, effort=Effort.LOW).data
    assert struct.unpack_from(">I", png, png.index(b"acTL") + 8) == (times,)
    webp = processed(data, "flip", output=Format.WEBP, effort=Effort.LOW).data
    assert struct.unpack_from("<H", webp, webp.index(b"ANIM") + 12) == (times,)
    found = tags(processed(data, "flip", output=Format.GIF).data, ".gif", "-AnimationIterations")
    assert found.get("GIF:AnimationIterations") == {0: "0", 1: None}.get(times, str(times - 1))


@pytest.mark.parametrize("output", [Format.GIF, Format.WEBP])
def test_a_count_that_the_format_cannot_say_is_refused(output: Format) -> None:
    with pytest.raises(UnsupportedImage, match="runs 100000 times"):
        processed(repeated(sequence(), 100_000), "flip", output=output)


@pytest.mark.parametrize("times", [0, 1, 2, 7])
@pytest.mark.parametrize("container", ["GIF", "WEBP", "PNG"])
def test_an_avif_runs_as_often_as_what_it_comes_from(container: str, times: int) -> None:
    first, *rest = frames()
    options: dict[str, object] = {"loop": times}
    if container == "GIF":
        options = {} if times == 1 else {"loop": max(0, times - 1)}
    data = encoded(first, container, save_all=True, append_images=rest, duration=100, **options)
    assert plays(processed(data, "flip", output=Format.AVIF).data) == {times}


def test_a_sequence_without_edit_list_runs_for_ever() -> None:
    data = sequence().replace(b"edts", b"free")
    assert plays(processed(data, "flip").data) == {0}


def ticks(data: bytes) -> list[int]:
    """Return how long each frame shows, from the boxes of the first track."""
    at, _ = span(data, b"stts")
    runs = struct.unpack_from(f">{2 * struct.unpack_from('>I', data, at + 12)[0]}I", data, at + 16)
    return [delta for count, delta in zip(runs[::2], runs[1::2], strict=True) for _ in range(count)]


def test_a_sequence_does_not_run_faster_by_rounding(tmp_path: Path) -> None:
    data = made(tmp_path, "--fps", "30", images=tuple(frames(count=6)))
    assert ticks(data) == [1] * 6
    assert ticks(processed(data, "flip").data) == [33, 34, 33, 33, 34, 33]


def test_a_frame_that_shows_for_ever_does_not_overflow() -> None:
    data = bytearray(sequence())
    at, _ = span(bytes(data), b"stts")
    struct.pack_into(">I", data, at + 20, 2**32 - 1)
    again = processed(repeated(bytes(data), 2**31 - 1), "flip").data
    assert all(delta >= 2**30 for delta in ticks(again))


# --- Colours --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "codes", ["1/13/6", "12/13/6", "9/16/9", "9/18/9", "1/1/1", "2/2/2", "11/17/6", "1/13/0"]
)
def test_colours_are_called_what_they_were(tmp_path: Path, codes: str) -> None:
    primaries, transfer, matrix = map(int, codes.split("/"))
    for images in ((natural(SIZE),), tuple(frames())):
        data = made(tmp_path, "--nclx", codes, "--yuv", "444", images=images)
        assert avif.read_avif(data).codes == avif.Codes(primaries, transfer, matrix, is_full_range=True)
        out = processed(data, "flip").data
        assert told(out, "Color Primaries") == str(primaries)
        assert told(out, "Transfer Char.") == str(transfer)


def test_codes_and_profile_both_stay(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    profile = profile[:16] + b"RGB " + profile[20:]
    (tmp_path / "profile.icc").write_bytes(profile)
    data = made(tmp_path, "--nclx", "12/13/6", "--icc", str(tmp_path / "profile.icc"))
    out = processed(data, "flip").data
    assert told(out, "Color Primaries") == "12"
    assert told(out, "ICC Profile") == f"Present ({len(profile)} bytes)"


def test_colours_come_from_the_stream_where_no_property_names_them() -> None:
    data = encoded(natural(SIZE), "AVIF").replace(b"colrnclx", b"freenclx")
    assert avif.read_avif(data).codes == avif.Codes(1, 13, 6, is_full_range=True)


# --- What else there is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "size", "mode"),
    [
        (("--yuv", "420"), (71, 51), "RGB"),
        (("--yuv", "422"), (71, 51), "RGB"),
        (("--yuv", "420"), (1, 1), "RGB"),
        (("--yuv", "420"), (1, 3), "RGBA"),
        (("--range", "limited"), SIZE, "RGB"),
        (("--premultiply",), SIZE, "RGBA"),
        (("--nclx", "1/13/8"), SIZE, "RGB"),
        (("--tilerowslog2", "1", "--tilecolslog2", "1"), (200, 140), "RGB"),
        (("--pasp", "2,1"), SIZE, "RGB"),
        (("--advanced", "film-grain-test=1"), SIZE, "RGB"),
    ],
    ids=str,
)
def test_it_is_decoded_as_avifdec_does(
    tmp_path: Path, options: tuple[str, ...], size: tuple[int, int], mode: str
) -> None:
    image = natural(size, mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(size))
    data = made(tmp_path, *options, images=(image,))
    wanted = turned(decoded(tmp_path, data), "flip")
    assert_close(pixels(processed(data, "flip", output=Format.PNG).data, "png"), wanted, 1)
    assert processed(data, "flip").result.width == size[0]


def test_gray_of_limited_range_fills_the_whole_range(tmp_path: Path) -> None:
    """As avifdec does not (libavif 0.11)."""
    image = natural(SIZE, "L")
    exact = ("--min", "0", "--max", "0")
    data = made(tmp_path, "--range", "limited", "--yuv", "400", *exact, images=(image,))
    wanted = pixels(encoded(image, "PNG"), "png")
    assert_close(pixels(processed(data, "orient", output=Format.PNG).data, "png"), wanted, 1)
    assert_close(decoded(tmp_path, processed(data, "orient").data), wanted, 1)


@pytest.mark.parametrize("depth", ["10", "12"])
@pytest.mark.parametrize(
    "images", [(natural(SIZE),), (natural(SIZE), natural(SIZE))], ids=["still", "sequence"]
)
def test_more_than_eight_bits_are_refused_until_eight_are_asked_for(
    tmp_path: Path, depth: str, images: tuple[Image.Image, ...]
) -> None:
    data = made(tmp_path, "--depth", depth, images=images)
    with pytest.raises(UnsupportedImage, match="8 bits"):
        processed(data, "flip")
    assert processed(data, "flip", output=Format.AVIF).result.width == SIZE[0]


def test_an_image_of_another_size_than_it_says_is_refused_rather_than_stretched() -> None:
    data = encoded(natural(SIZE), "AVIF")
    width, height = SIZE
    stretched = data.replace(struct.pack(">II", width, height), struct.pack(">II", height, width))
    assert stretched != data
    with pytest.raises(DamagedImage, match="as large as it says"):
        processed(stretched, "flip")


# --- EXIF -----------------------------------------------------------------------------------------

#: A TIFF structure whose only field is the maker.
BLOCK = struct.pack(">2sHIHHHIIIxx", b"MM", 42, 8, 1, 0x010F, 2, 10, 26, 0)[:26] + b"Imaginary\0"
MAKER = {"IFD0:Make": "Imaginary"}


def exif_item(data: bytes) -> int:
    """Return where the EXIF stands, behind its offset."""
    return data.index(BLOCK)


def maker(data: bytes, suffix: str) -> dict[str, str]:
    return tags(data, suffix, "-EXIF:Make")


@pytest.mark.parametrize("images", [(natural(SIZE),), tuple(frames())], ids=["still", "sequence"])
@pytest.mark.parametrize("options", [(), ("--irot", "1", "--imir", "0")], ids=["upright", "rotated"])
def test_exif_comes_back_with_its_maker_note(
    tmp_path: Path, images: tuple[Image.Image, ...], options: tuple[str, ...]
) -> None:
    (tmp_path / "exif").write_bytes(exif_block(1).data)
    data = made(tmp_path, "--exif", str(tmp_path / "exif"), *options, images=images)
    out = processed(data, "flip").data
    assert MAKER_NOTE in out
    assert maker(out, ".avif") == maker(data, ".avif") == MAKER
    assert not maker(processed(data, "flip", strip=True).data, ".avif")
    jpeg = processed(data, "flip", output=Format.JPEG).data
    assert MAKER_NOTE in jpeg
    assert maker(jpeg, ".jpg") == MAKER


@pytest.mark.parametrize("offset", [1, 6, 1000, 2**32 - 1])
def test_exif_is_found_where_its_offset_is_wrong(offset: int) -> None:
    data = bytearray(encoded(natural(SIZE), "AVIF", exif=BLOCK))
    at = exif_item(data)
    assert data[at - 4 : at] == bytes(4)
    struct.pack_into(">I", data, at - 4, offset)
    assert maker(processed(bytes(data), "flip", output=Format.JPEG).data, ".jpg") == MAKER


def test_exif_without_offset_is_found() -> None:
    """As avif-serialize wrote it."""
    data = bytearray(encoded(natural(SIZE), "AVIF", exif=BLOCK))
    at = exif_item(data) - 4
    place = data.index(struct.pack(">II", at, len(BLOCK) + 4))
    struct.pack_into(">II", data, place, at + 4, len(BLOCK))
    assert maker(processed(bytes(data), "flip", output=Format.JPEG).data, ".jpg") == MAKER


@pytest.mark.parametrize("junk", [b"\0" * 8, b"Exif\0\0\0\0", b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08"])
@pytest.mark.parametrize("output", [None, Format.PNG])
def test_an_image_is_worth_more_than_its_exif(junk: bytes, output: Format | None) -> None:
    """Libavif refuses the file, or Pillow does."""
    data = bytearray(encoded(natural(SIZE), "AVIF", exif=BLOCK))
    at = exif_item(data)
    data[at : at + len(BLOCK)] = junk.ljust(len(BLOCK), b"\xff")
    assert processed(bytes(data), "flip", output=output).result.width == SIZE[0]


def test_a_second_list_of_properties_is_damage() -> None:
    properties = box(b"iprp", box(b"ipco"))
    with pytest.raises(ValueError, match="twice"):
        bmff.still(box(b"meta", bytes(4), properties, properties))
