"""What a header tells of an image's cost, judged by Pillow and by the operations themselves."""

import struct
import sys
from collections.abc import Callable, Iterator
from functools import cache
from io import BytesIO
from random import Random
from typing import TYPE_CHECKING

import pytest
from fuzz.images import BENDS, sound_files, specimen
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence
from support import specimens
from support.oracle import Grid, Patch
from support.specimens import GENEROUS, encoded, natural, noise, noise_image, processed

from server.cluster.memory_files import memory_file, reader
from server.errors import ServiceError, UnsupportedImage
from server.imaging.codecs import CODECS, OUTPUT_FORMATS, Effort, Format, sniff
from server.imaging.formats import avif
from server.operations import image_cost
from server.operations.image_cost import MAX_STEPS, Header, cost, header, sniffed
from server.operations.images import OPERATIONS, ImageParameters
from server.operations.registry import Cost, unknown_cost

if TYPE_CHECKING:
    from types import FrameType

    from server.operations.registry import Read

LIMITS = {
    "max_pixels": GENEROUS.max_pixels,
    "max_lossless_pixels": 0,
    "max_frames": GENEROUS.max_frames,
    "max_total_pixels": GENEROUS.max_total_pixels,
    "max_result_bytes": 1 << 40,
}

SIZE = (61, 43)


def reading(data: bytes) -> "Read":
    return lambda position, size: data[position : position + size]


def look(data: bytes) -> Header:
    return header(reading(data), len(data))


def cost_of(data: bytes, limits: dict[str, int] | None = None, **parameters: object) -> Cost:
    chosen = ImageParameters.model_validate(parameters).model_dump()
    return cost(reading(data), len(data), chosen, limits or LIMITS)


def noise_patches(count: int) -> list[Patch]:
    return [
        Patch(Grid(*SIZE, tuple(tuple(noise(4, (at, seed))) for at in range(SIZE[0] * SIZE[1]))))
        for seed in range(count)
    ]


@cache
def corpus() -> dict[str, bytes]:
    """The sound files of the fuzz tests, and larger files of noise, of one colour and like photos."""
    files = {name: sound.data for name, sound in sound_files().items()}
    flat = Image.new("RGB", (120, 80), (200, 30, 30))
    for name, image in (("noise", noise_image("RGB", SIZE)), ("flat", flat), ("natural", natural((96, 72)))):
        for form in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "AVIF", "PPM", "QOI", "WEBP"):
            files[f"{form} {name}"] = encoded(image, form)
        files[f"WEBP lossless {name}"] = encoded(image, "WEBP", lossless=True)
        files[f"JPEG 100 {name}"] = encoded(image, "JPEG", quality=100, subsampling=0)
        files[f"JPEG progressive {name}"] = encoded(image, "JPEG", quality=60, progressive=True)
        files[f"JPEG optimized {name}"] = encoded(image, "JPEG", optimize=True)
        files[f"TIFF LZW {name}"] = encoded(image, "TIFF", compression="tiff_lzw")
        files[f"TIFF big {name}"] = encoded(image, "TIFF", big_tiff=True)
    files["JPEG CMYK noise"] = encoded(noise_image("CMYK", SIZE), "JPEG", quality=100)
    files["TIFF CMYK noise"] = encoded(noise_image("CMYK", SIZE), "TIFF")
    files["TIFF pages"] = encoded(
        noise_image("RGB", (30, 90)), "TIFF", save_all=True, append_images=[noise_image("L", (80, 20))]
    )
    files["PNG RGBA noise"] = encoded(noise_image("RGBA", SIZE), "PNG")
    rows = [noise(SIZE[0] * 8, row) for row in range(SIZE[1])]
    files["PNG 16 bits noise"] = specimens.png(SIZE, 16, 6, rows)
    files["APNG noise"] = specimens.apng(SIZE, noise_patches(4))
    files["WEBP animation noise"] = specimens.webp_animation(SIZE, noise_patches(4))
    files["GIF animation noise"] = encoded(
        noise_image("P", SIZE, 0),
        "GIF",
        save_all=True,
        append_images=[noise_image("P", SIZE, seed) for seed in range(1, 5)],
    )
    files["AVIF RGBA noise"] = encoded(noise_image("RGBA", SIZE), "AVIF", quality=100)
    files["AVIF 4:4:4 noise"] = encoded(noise_image("RGB", SIZE), "AVIF", quality=100, subsampling="4:4:4")
    files["AVIF lossless noise"] = avif.encoded_exactly(
        [noise_image("RGBA", SIZE)], [0], speed=9, icc=b"", exif=b"", xmp=b""
    )
    files["AVIF sequence"] = encoded(
        noise_image("RGB", SIZE, 0), "AVIF", save_all=True, append_images=[noise_image("RGB", SIZE, 1)] * 3
    )
    files["PPM with comments"] = b"P6 # a\n1#b\n7 # c\n3 255\n" + noise(17 * 3 * 3)
    files["JPEG with EXIF"] = specimens.with_exif(files["JPEG noise"], specimens.exif_block(6).data)
    files["JPEG with more behind it"] = specimens.ultra_hdr(files["JPEG natural"])
    return files


@pytest.fixture(params=sorted(corpus()))
def file(request: pytest.FixtureRequest) -> bytes:
    return corpus()[request.param]


# --- The header ---------------------------------------------------------------------------------------------


def assert_no_less_than_pillow_sees(data: bytes) -> Header:
    """Compare with Pillow's readers, as engines call them."""
    found = look(data)
    try:
        form = sniff(data)
    except ServiceError:
        assert found.form is None
        return found
    assert found.form == form
    if found.is_refused:
        assert_engines_refuse(data)
        return found
    try:
        image = CODECS[form].plugin(BytesIO(data))
        frames = getattr(image, "n_frames", 1)
        sizes = [image.size]
        if form is Format.GIF:  # Pillow enlarges the canvas for any frame, and finds some among garbage
            result = processed(data).result
            frames, sizes = result.frames, [(result.width, result.height)]
        if form is Format.TIFF:
            sizes = [page.size for page in ImageSequence.Iterator(image)]
    except Exception:  # noqa: BLE001 no engine decodes it either
        return found
    if form is Format.PNG and image.size != struct.unpack_from(">II", data, 16):  # that of a second header
        assert_engines_refuse(data)
        return found
    assert found.pixels >= max(width * height for width, height in sizes)
    assert found.frames >= frames
    if found.total_pixels:
        assert found.total_pixels >= sum(width * height for width, height in sizes)
    return found


def assert_engines_refuse(data: bytes) -> None:
    for target in (None, Format.BMP):
        with pytest.raises(ServiceError):
            processed(data, output=target)


def test_a_header_says_no_less_than_pillow_sees(file: bytes) -> None:
    found = assert_no_less_than_pillow_sees(file)
    assert found.is_known
    with Image.open(BytesIO(file)) as image:
        assert found.pixels <= 2 * image.width * image.height  # and no nonsense
        assert found.frames <= getattr(image, "n_frames", 1) + 3


@pytest.mark.parametrize("seed", range(10))
def test_neither_do_bent_headers(seed: int) -> None:
    random = Random(seed)
    for _ in range(150):
        assert_no_less_than_pillow_sees(specimen(random).data)


def gif_animation(frames: int, frame_bytes: int, block_bytes: int) -> bytes:
    """Make an animation of 640 x 480 whose frames have so many bytes, in sub-blocks of so many."""
    full, rest = divmod(frame_bytes, block_bytes + 1)
    blocks = (bytes([block_bytes]) + bytes(block_bytes)) * full + bytes([rest]) + bytes(rest)
    pixels = b"\x08" + blocks + (b"\0" if rest else b"")
    frame = b"!\xf9\4\0\5\0\0\0" + struct.pack("<BHHHHB", 0x2C, 0, 0, 640, 480, 0) + pixels
    return b"GIF89a" + struct.pack("<HHBBB", 640, 480, 0xF7, 0, 0) + bytes(768) + frame * frames + b";"


@pytest.mark.parametrize("block_bytes", [255, 254])  # as of giflib and of libgd
@pytest.mark.parametrize(
    ("frames", "frame_bytes"), [(999, 300), (999, 5000), (300, 10_000), (300, 50_000), (300, 100_000)]
)
def test_ordinary_gif_animations_cost_what_they_hold(frames: int, frame_bytes: int, block_bytes: int) -> None:
    data = gif_animation(frames, frame_bytes, block_bytes)
    with memory_file("image") as file:
        file.write(data)
        found = header(reader(file, len(data)), len(data))
    assert (found.is_known, found.frames, found.pixels) == (True, frames, 640 * 480)
    assert lines_run(lambda: header(reading(data), len(data))) < MAX_LINES


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {"compress_level": 1}),
        ("WEBP", {"method": 0}),
        ("GIF", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("AVIF", {"speed": 10}),
    ],
)
def test_three_hundred_frames_cost_what_they_are(form: str, options: dict[str, object]) -> None:
    first, *others = [noise_image("RGB", SIZE, seed) for seed in range(300)]
    data = encoded(first, form, save_all=True, append_images=others, **options)
    found = look(data)
    assert (found.is_known, found.frames, found.pixels) == (True, 300, SIZE[0] * SIZE[1])


def test_a_second_header_of_a_png_counts_for_nothing() -> None:
    """Pillow believes it, but engines refuse the file."""
    header_of_another = specimens.chunk(b"IHDR", struct.pack(">IIBBBBB", 5000, 4000, 8, 2, 0, 0, 0))
    png = corpus()["PNG natural"]
    twice = png[:33] + header_of_another + png[33:]
    assert Image.open(BytesIO(twice)).size == (5000, 4000)
    assert look(twice).pixels == look(png).pixels
    assert_engines_refuse(twice)


@given(st.binary(max_size=3000))
@settings(max_examples=300, deadline=None)
@example(b"")
@example(b"RIFF\0\0\0\0WEBPVP8X")
@example(b"II*\0\x08\0\0\0" + b"\xff" * 100)
@example(b"P6 " + b"9" * 5000 + b" 1 255\n")
def test_no_bytes_raise(data: bytes) -> None:
    for beginning in (b"", *(prefix for prefix, _ in beginnings())):
        found = cost_of(beginning + data)
        assert 0 <= found.result_bytes <= LIMITS["max_result_bytes"]
        assert found.engine_us >= 0


def beginnings() -> Iterator[tuple[bytes, str]]:
    for name in ("JPEG baseline", "PNG RGB", "GIF P", "TIFF RGB raw", "BMP RGB", "AVIF RGB", "QOI RGB"):
        for length in (8, 12, 20, 40):
            yield sound_files()[name].data[:length], name
    for name in ("WEBP lossy", "WEBP animated"):
        for length in (16, 30, 50):
            yield sound_files()[name].data[:length], name


@pytest.mark.parametrize("name", sorted(sound_files()))
def test_a_header_that_has_not_arrived_yet_counts_by_size_or_as_what_is_there(name: str) -> None:
    data = corpus()[name]
    chosen = ImageParameters().model_dump()
    whole, by_size = cost_of(data), unknown_cost(reading(b""), len(data), chosen, LIMITS)
    for end in range(0, len(data), 7):
        found = cost(reading(data[:end]), len(data), chosen, LIMITS)
        assert found.engine_us <= max(whole.engine_us, by_size.engine_us)
        if found.is_known:
            assert header(reading(data[:end]), len(data)).pixels == look(data).pixels


@pytest.mark.parametrize(
    "make", [lambda n: b"\xff\xd8\xff" + b"\xe1\0\2\xff" * n, lambda n: b"GIF89a" + b"\0," * n]
)
def test_how_much_is_read_is_bounded(make: Callable[[int], bytes]) -> None:
    data = make(20_000_000)
    seen_bytes = steps = 0

    def read(position: int, size: int) -> bytes:
        nonlocal seen_bytes, steps
        piece = data[position : position + size]
        seen_bytes, steps = seen_bytes + len(piece), steps + 1
        return piece

    header(read, len(data))
    assert seen_bytes <= 17 << 20
    assert steps <= 2000


# --- How long a look takes ----------------------------------------------------------------------------------


def lines_run(call: Callable[[], object]) -> int:
    """Count the lines of the module that run, up to a million."""
    lines = 0

    def trace(frame: "FrameType", event: str, _argument: object) -> object:
        nonlocal lines
        if frame.f_code.co_filename != image_cost.__file__:
            return None
        lines += event == "line"
        assert lines < 1_000_000
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        call()
    finally:
        sys.settrace(before)
    return lines


#: A step is a few lines, and what a look does once is a few hundred.
MAX_LINES = 20 * MAX_STEPS


def overlapping_directories() -> bytes:
    """Make 800 directories of 1024 entries, each of which begins an entry later, with one size in all."""
    entries = 1024
    file = bytearray(b"II*\0\x08\0\0\0".ljust(25_000, b"\0"))
    struct.pack_into("<HHIIHHII", file, 10 + 12 * 900, 256, 4, 1, 9, 257, 4, 1, 9)
    for place in range(8, 8 + 800 * 12, 12):
        struct.pack_into("<H", file, place, entries)
        struct.pack_into("<I", file, place + 2 + 12 * entries, place + 12)
    return bytes(file)


def box(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body) + 8) + kind + body


AVIF_BRANDS = box(b"ftyp", b"avif\0\0\0\0avifmif1")
FULL_SIZE = struct.pack(">II", 50, 50)

HOSTILE = {
    "overlapping directories": overlapping_directories(),
    "a directory of 65,535 entries": b"II*\0\x08\0\0\0\xff\xff" + bytes(800_000),
    "tags without end": b"II*\0\x08\0\0\0\xff\x3f" + struct.pack("<HHII", 256, 4, 1, 9) * 20_000,
    "sizes": AVIF_BRANDS + box(b"meta", box(b"ispe", b"\0\0\0\0" + FULL_SIZE) * 60_000),
    "sizes in many boxes": AVIF_BRANDS + box(b"meta", b"ispe" * 16_000 + bytes(16)) * 16,
    "boxes far apart": AVIF_BRANDS + box(b"free", bytes(5000)) * 3000,
    "boxes": AVIF_BRANDS + box(b"free", b"") * 100_000,
    "segments": b"\xff\xd8" + b"\xff\xe1\0\2" * 100_000,
    "frame headers": b"\xff\xd8" + b"\xff\xc0\0\x0b\x08\0\1\0\1\1\1\x11\0" * 100_000,
    "fill bytes": b"\xff\xd8" + b"\xff" * 1_000_000,
    "stuffed bytes": b"\xff\xd8" + b"\xff\0" * 500_000,
    "chunks": specimens.png((9, 9), 8, 0, [], specimens.chunk(b"teSt", b"") * 100_000),
    "sub-blocks": b"GIF89a\1\0\1\0\0\0\0!\xfe" + b"\1\1" * 500_000,
    "extensions": b"GIF89a\1\0\1\0\0\0\0" + b"!\xfe\0" * 300_000,
    "stray bytes": b"GIF89a\1\0\1\0\0\0\0" + bytes(1_000_000),
    "frames": b"RIFF\xff\xff\xff\0WEBPVP8X\x0a\0\0\0\2" + bytes(9) + b"ANMF\0\0\0\0" * 100_000,
    "bitstreams": b"RIFF\xff\xff\xff\0WEBP" + b"VP8_\0\0\0\0" * 100_000,
    "comments": b"P6 " + b"#\n" * 32_000 + b"9 9 255\n" + bytes(243),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_look_at_a_hostile_header_takes_no_longer_than_another(name: str) -> None:
    data = HOSTILE[name]
    seen_bytes = 0

    def read(position: int, size: int) -> bytes:
        nonlocal seen_bytes
        piece = data[position : position + size]
        seen_bytes += len(piece)
        return piece

    assert lines_run(lambda: header(read, len(data))) < MAX_LINES
    assert seen_bytes <= 17 << 20


def _set_far_place(random: Random, file: bytearray) -> None:
    """Write a number of eight bytes, as large as a place can be, next to the beginning."""
    start = random.randrange(min(200, len(file)) + 1)
    file[start : start + 8] = random.choice((2**63 - 1, 2**63, 2**64 - 1)).to_bytes(
        8, random.choice(("big", "little"))
    )


@given(st.randoms(use_true_random=False), st.sampled_from([*sorted(sound_files()), "TIFF big noise"]))
@settings(max_examples=500, deadline=None)
def test_a_bent_header_never_raises_nor_takes_long(random: Random, name: str) -> None:
    data = bytearray(corpus()[name])
    for bend in random.choices((*BENDS, _set_far_place), k=random.choice((1, 2, 4))):
        bend(random, data)
    with memory_file("image") as file:
        file.write(data)
        read = reader(file, len(data))
        chosen = ImageParameters().model_dump()
        assert lines_run(lambda: cost(read, len(data), chosen, LIMITS)) < MAX_LINES


def test_a_value_behind_everything_does_not_raise() -> None:
    far = struct.pack("<2sHHHQQHHQQ", b"II", 43, 8, 0, 16, 1, 256, 16, 2, 2**63 - 1)
    with memory_file("image") as file:
        file.write(far)
        found = cost(reader(file, len(far)), len(far), ImageParameters().model_dump(), LIMITS)
    assert found == Cost(0, 0)
    assert_engines_refuse(far)


def test_a_file_that_cannot_be_read_does_not_raise() -> None:
    def read(_position: int, _size: int) -> bytes:
        raise OSError

    assert not cost(read, 1000, ImageParameters().model_dump(), LIMITS).is_known


# --- Headers that are longer than a look, or lie ------------------------------------------------------------


@cache
def padded() -> dict[str, bytes]:
    """Images with so much before their size that a look does not come to it, or just does."""
    flat = Image.new("RGB", (1000, 700), (200, 30, 30))
    files = {form: encoded(flat, form) for form in ("JPEG", "PNG", "TIFF", "AVIF", "GIF", "PPM")}
    files["WEBP"] = encoded(flat, "WEBP", lossless=True)
    padded = {}
    for count in (1030, 5000):
        png, jpeg = files["PNG"], files["JPEG"]
        padded[f"PNG with {count} chunks"] = png[:33] + specimens.chunk(b"teSt", b"") * count + png[33:]
        padded[f"JPEG with {count} segments"] = jpeg[:2] + b"\xff\xfe\0\2" * count + jpeg[2:]
        for fill in (count, 200 * count):
            padded[f"JPEG with {fill} fill bytes"] = jpeg[:2] + b"\xff" * fill + jpeg[2:]
        padded[f"JPEG with {200 * count} stray bytes"] = jpeg[:20] + bytes(200 * count) + jpeg[20:]
        webp = b"WEBP" + specimens.riff_chunk(b"teSt", b"") * count + files["WEBP"][12:]
        padded[f"WEBP with {count} chunks"] = b"RIFF" + struct.pack("<I", len(webp)) + webp
        brands_end = int.from_bytes(files["AVIF"][:4], "big")
        free = box(b"free", b"") * count
        padded[f"AVIF with {count} boxes"] = with_offsets(
            files["AVIF"][:brands_end] + free + files["AVIF"][brands_end:], len(free)
        )
        head_end = 13 + 3 * 2 ** ((files["GIF"][10] & 7) + 1)
        padded[f"GIF with {count} extensions"] = (
            files["GIF"][:head_end] + b"!\xfe\1\1\0" * count + files["GIF"][head_end:]
        )
        padded[f"PPM with {count} comments"] = b"P6\n" + b"#\n" * count + files["PPM"][3:]
        entries = min(count, 4000)  # libtiff takes 4096
        padded[f"TIFF with {entries} entries"] = with_entries(files["TIFF"], entries)
    return padded


def with_offsets(avif: bytes, moved: int) -> bytes:
    """Move the places of the items on."""
    file = bytearray(avif)
    at = file.index(b"iloc") + 4
    assert file[at] == 0  # the version
    assert file[at + 4 : at + 6] == b"\x44\0"  # four bytes for a place and a length
    (items,) = struct.unpack_from(">H", file, at + 6)
    at += 8
    for _ in range(items):
        (extents,) = struct.unpack_from(">H", file, at + 4)
        for number in range(extents):
            place = at + 6 + 8 * number
            struct.pack_into(">I", file, place, struct.unpack_from(">I", file, place)[0] + moved)
        at += 6 + 8 * extents
    return bytes(file)


def with_entries(tiff: bytes, count: int) -> bytes:
    """Add entries that mean nothing to the directory, which goes to the end of the file."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (entries,) = struct.unpack_from("<H", tiff, start)
    stored = tiff[start + 2 : start + 2 + 12 * entries]
    more = struct.pack("<HHII", 65000, 4, 1, 0) * count
    directory = struct.pack("<H", entries + count) + stored + more + bytes(4)
    return tiff[:4] + struct.pack("<I", len(tiff)) + tiff[8:] + directory


@pytest.mark.parametrize("name", sorted(padded()))
@pytest.mark.parametrize("target", [None, Format.BMP, Format.PNG])
def test_a_padded_image_costs_no_less_than_without(name: str, target: Format | None) -> None:
    data = padded()[name]
    found = cost_of(data, format=target)
    form = name.split(maxsplit=1)[0]
    result = processed(data, output=target)
    assert (result.result.width, result.result.height) == (1000, 700)
    assert len(result.data) <= found.result_bytes
    plain = encoded(Image.new("RGB", (1000, 700), (200, 30, 30)), form)
    assert found.engine_us >= cost_of(plain, format=target).engine_us / 3  # the same but for its density


def test_the_formats_are_recognised_as_engines_do(file: bytes) -> None:
    assert sniffed(file[:4096]) == sniff(file).value


def test_the_image_of_forty_bytes_counts_as_what_it_is() -> None:
    data = encoded(Image.new("RGB", (1500, 1500)), "WEBP", lossless=True)
    assert len(data) < 200
    found = cost_of(data, format="bmp")
    assert found.result_bytes >= 1500 * 1500 * 3
    assert found.engine_us > 100 * cost_of(encoded(Image.new("RGB", (100, 100)), "BMP")).engine_us


# --- The result ---------------------------------------------------------------------------------------------


LOSSY = (Format.JPEG, Format.WEBP, Format.AVIF)


@pytest.mark.parametrize(
    ("target", "quality"),
    [(None, None), *((form, None) for form in sorted(OUTPUT_FORMATS)), *((form, 100) for form in LOSSY)],
)
def test_no_result_is_larger_than_its_bound(file: bytes, target: Format | None, quality: int | None) -> None:
    for path in (None, "pixels") if (quality, target) == (None, Format.JPEG) else (None,):
        bound = cost_of(file, format=target, quality=quality, effort="low", path=path).result_bytes
        try:
            outcome = processed(
                file, "rotate-90", output=target, quality=quality, effort=Effort.LOW, path=path
            )
        except UnsupportedImage:  # it has more bits than the wanted format
            continue
        assert outcome.result.format == (target or sniff(file))
        assert len(outcome.data) <= bound


def test_a_bound_is_never_above_the_limit_of_results(file: bytes) -> None:
    assert cost_of(file, LIMITS | {"max_result_bytes": 99}, format="bmp").result_bytes == 99


def test_an_ordinary_photo_books_no_more_than_a_few_times_its_size() -> None:
    photo = encoded(natural((800, 600)), "JPEG", quality=90)
    assert cost_of(photo).result_bytes <= 3 * len(photo) + (1 << 18)


def test_every_target_is_made_of_every_format() -> None:
    """So that no bound above holds only because all was refused."""
    for form in Format:
        sources = [file for file in corpus().values() if sniff(file) is form]
        for target in (None, *OUTPUT_FORMATS):
            assert any(is_made(file, target) for file in sources), (form, target)


def is_made(file: bytes, target: Format | None) -> bool:
    try:
        processed(file, output=target, effort=Effort.LOW)
    except ServiceError:
        return False
    return True


@pytest.mark.parametrize("data", [b"", b"no image", b"BM is no image"])
def test_what_is_no_image_costs_nothing(data: bytes) -> None:
    assert cost_of(data) == Cost(0, 0)
    assert_engines_refuse(data)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        *((name, 20) for name in ("PNG RGB", "GIF P", "TIFF RGB raw", "WEBP lossy", "AVIF RGB")),
        *((name, 150) for name in ("JPEG baseline", "AVIF RGB", "TIFF pages")),
        ("GIF animation noise", -3),
    ],
)
def test_an_image_that_is_cut_off_in_its_header_costs_nothing(name: str, end: int) -> None:
    data = corpus()[name][:end]
    assert cost_of(data) == Cost(0, 0)
    assert_engines_refuse(data)


def with_second_frame_header(jpeg: bytes) -> bytes:
    """Insert another frame header, of the largest size, behind the first."""
    start = jpeg.index(b"\xff\xc0")
    end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
    again = bytearray(jpeg[start:end])
    again[5:9] = b"\xff\xff\xff\xff"
    return jpeg[:end] + bytes(again) + jpeg[end:]


def with_unused_size(avif: bytes) -> bytes:
    """Name the largest size where decoders look for none: in a `free` box of `meta`."""
    file = bytearray(avif)
    at = file.index(b"meta")
    length = int.from_bytes(file[at - 4 : at], "big")
    unused = box(b"free", box(b"ispe", b"\0\0\0\0" + b"\xff\xff\xff\xff" * 2))
    struct.pack_into(">I", file, at - 4, length + len(unused))
    file[at - 4 + length : at - 4 + length] = unused
    return with_offsets(bytes(file), len(unused))


def test_a_size_that_no_engine_believes_does_not_make_an_image_cheap() -> None:
    flat = Image.new("RGB", (1000, 700), (200, 30, 30))
    for plain, bent in (
        (encoded(flat, "JPEG"), with_second_frame_header(encoded(flat, "JPEG"))),
        (encoded(flat, "AVIF"), with_unused_size(encoded(flat, "AVIF"))),
    ):
        found, without = cost_of(bent, format="bmp"), cost_of(plain, format="bmp")
        assert found.result_bytes >= without.result_bytes
        assert found.engine_us >= without.engine_us
        assert not found.is_known  # so that no prediction is corrected by it
    assert is_made(bent, Format.BMP)


def test_what_is_above_a_limit_counts_as_the_limit() -> None:
    large = cost_of(struct.pack(">4sIIBB", b"qoif", 60_000, 60_000, 3, 0), format="bmp")
    assert large.result_bytes == pytest.approx(3 * LIMITS["max_pixels"], rel=0.01)


def test_samples_of_one_size_say_nothing_of_how_many_there_are() -> None:
    """Libavif counts them by their chunks then, and takes the number of sizes for nothing."""
    data = bytearray(corpus()["AVIF sequence"])
    at = data.index(b"stsz")
    struct.pack_into(">II", data, at + 8, 20, 2)
    found = assert_no_less_than_pillow_sees(bytes(data))
    assert found.frames >= 4
    with Image.open(BytesIO(data)) as image:
        assert image.n_frames == 4


@pytest.mark.parametrize("name", ["TIFF of another kind", "AVIF without a size"])
def test_what_is_not_understood_counts_as_the_largest_image(name: str) -> None:
    data = {
        "TIFF of another kind": b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 256, 12, 1, 9) + bytes(4),
        "AVIF without a size": AVIF_BRANDS + box(b"free", b"ispe"),
    }[name]
    found = cost_of(data, format="bmp")
    assert not found.is_known
    assert found.result_bytes >= 3 * LIMITS["max_pixels"]
    assert found.engine_us >= LIMITS["max_pixels"] * 10 // 1000  # nanoseconds for a pixel, and then some


def test_the_first_frame_is_all_that_a_still_takes() -> None:
    frames = [noise_image("P", (200, 150), seed) for seed in range(3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert cost_of(data, format="bmp").result_bytes < cost_of(data, format="png").result_bytes


def test_pixels_and_effort_and_format_decide_how_long_it_takes() -> None:
    small, large = (encoded(natural(size), "PNG") for size in ((100, 75), (400, 300)))
    assert 8 < cost_of(large).engine_us / cost_of(small).engine_us < 32
    assert cost_of(large, format="avif").engine_us > 3 * cost_of(large, format="jpeg").engine_us
    assert cost_of(large, format="avif", effort="high").engine_us > cost_of(large, format="avif").engine_us
    photo = encoded(natural((400, 300)), "JPEG")
    assert cost_of(photo).engine_us < cost_of(photo, path="pixels").engine_us


@pytest.mark.parametrize(
    ("slow", "fast"),
    [
        (b"P3 99 99 255\n" + b"7 " * 3 * 99 * 99, b"P6 99 99 255\n" + bytes(3 * 99 * 99)),
        (b"P6 99 99 254\n" + bytes(3 * 99 * 99), b"P6 99 99 255\n" + bytes(3 * 99 * 99)),
        (encoded(noise_image("RGB", (99, 99)), "QOI"), encoded(noise_image("RGB", (99, 99)), "BMP")),
    ],
    ids=["plain", "odd highest value", "QOI"],
)
def test_decoders_in_python_count_as_what_they_take(slow: bytes, fast: bytes) -> None:
    assert cost_of(slow, format="jpeg").engine_us > 20 * cost_of(fast, format="jpeg").engine_us


def test_every_operation_on_images_has_this_cost() -> None:
    assert {operation.cost for operation in OPERATIONS.values()} == {cost}


def test_an_operation_without_a_cost_books_the_largest_result_and_time_by_size() -> None:
    small, large = (unknown_cost(reading(b""), size, {}, LIMITS) for size in (1000, 6_700_000))
    assert small.result_bytes == large.result_bytes == LIMITS["max_result_bytes"]
    assert (small.engine_us, large.engine_us) == (30, 201_000)
