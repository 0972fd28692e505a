"""Files that no camera writes: small valid images of every format, cut off, damaged, or made up."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING

from PIL import Image
from support import specimens
from support.oracle import Grid, Patch, grid_of
from support.specimens import encoded, natural, noise_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random

SIZE = (27, 19)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Sound:
    """A file that is as it should be.

    Attributes:
        data: the file.
        pixels_end: every cut before this position loses pixels.
    """

    data: bytes
    pixels_end: int


@dataclass(frozen=True, slots=True)
class Specimen:
    """A file to be sent.

    Attributes:
        story: what it was made from, and how.
        is_cut_off: it is the beginning of a sound file, without all of its pixels.
    """

    data: bytes
    story: str
    is_cut_off: bool = False


def specimen(random: Random) -> Specimen:
    """Make the next file; the same generator in the same state makes the same one."""
    kind = random.choice(("cut", "sound", "sound", "sound", "sound", "made", "made", "made"))
    if kind == "made":
        name = random.choice(list(MAKERS))
        data = MAKERS[name](random)
    else:
        name = random.choice(list(sound_files()))
        sound = sound_files()[name]
        if kind == "cut":
            end = random.randrange(1, sound.pixels_end)
            return Specimen(sound.data[:end], f"{name}, cut at {end} of {len(sound.data)}", is_cut_off=True)
        data = sound.data
    story = [f"{kind} {name}"]
    if (container := CONTAINERS.get(name.split()[0])) and random.random() < 0.6:
        data = _with_parts_moved(random, data, name.split()[0], container)
        story.append("parts moved")
    file = bytearray(data)
    for bend in random.choices(BENDS, k=random.choice((0, 1, 1, 2, 4))):
        bend(random, file)
        story.append(bend.__name__.strip("_"))
    return Specimen(bytes(file) or b"\0", ", ".join(story))


# --- Sound files ------------------------------------------------------------------------------------------

#: How many bytes at the end of a sound file may be lost without a pixel: end marks, checksums, padding.
TAIL_BYTES = {
    "JPEG": 2, "PNG": 12 + 4 + 4 + 2, "WEBP": 4, "GIF": 1 + 1 + 2, "BMP": 3, "AVIF": 4, "PPM": 0, "QOI": 8
}  # fmt: skip

#: Name, then how Pillow is asked for it: the mode of `specimens.noise_image`, or none for a photograph.
STILLS: dict[str, tuple[str | None, dict[str, object]]] = {
    "JPEG baseline": (None, {"quality": 80}),
    "JPEG 4:4:4": (None, {"subsampling": 0, "quality": 95}),
    "JPEG 4:2:2": (None, {"subsampling": 1, "quality": 30}),
    "JPEG progressive": (None, {"progressive": True}),
    "JPEG gray": ("L", {}),
    "JPEG CMYK": ("CMYK", {}),
    "JPEG restarts": (None, {"restart_marker_blocks": 1}),
    "JPEG with EXIF": (None, {"exif": b"Exif\0\0" + specimens.exif_block(6).data}),
    **{f"PNG {kind}": (kind, {}) for kind in specimens.KINDS if kind != "CMYK"},
    "WEBP lossy": (None, {"quality": 60}),
    "WEBP lossless": (None, {"lossless": True}),
    "WEBP alpha": ("RGBA", {"quality": 60}),
    "GIF P": ("P", {}),
    "GIF transparent": ("P/index", {}),
    **{
        f"TIFF {mode} {compression}": (mode, {"compression": compression})
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
        for mode in ("L", "RGB", "RGBA", "CMYK", "I;16", "P")
    },
    "TIFF 1 group4": ("1", {"compression": "group4"}),
    "TIFF 1 group3": ("1", {"compression": "group3"}),
    "TIFF JPEG": (None, {"compression": "jpeg"}),
    **{f"BMP {kind}": (kind, {}) for kind in ("1", "L", "P", "RGB", "RGBA")},
    "AVIF RGB": (None, {"speed": 10}),
    "AVIF RGBA": ("RGBA", {"speed": 10}),
    **{f"PPM {kind}": (kind, {}) for kind in ("1", "L", "RGB", "I;16")},
    "QOI RGB": ("RGB", {}),
    "QOI RGBA": ("RGBA", {}),
}


@cache
def sound_files() -> dict[str, Sound]:
    """Return every sound file by its name, which begins with the format's."""
    files = {}
    for name, (kind, options) in STILLS.items():
        container = name.split()[0]
        image = noise_image(kind, SIZE) if kind else natural(SIZE)
        data = encoded(image, container, **options)
        end = _tiff_pixels_end(data) if container == "TIFF" else len(data) - TAIL_BYTES[container]
        files[name] = Sound(data, end)
    frames = [noise_image("RGBA", SIZE, number) for number in range(3)]
    flat = [frame.convert("P") for frame in frames]
    several = {"save_all": True, "duration": 70, "loop": 3}
    patches = [Patch(grid_of(frame), duration_ms=40, is_laid_over=True) for frame in frames]
    rows = [specimens.noise(SIZE[0] * 6, row) for row in range(SIZE[1])]
    moving = {
        "PNG 16 bits": specimens.png(SIZE, 16, 2, rows),
        "PNG animated": specimens.apng(SIZE, patches, loops=2),
        "GIF animated": encoded(flat[0], "GIF", append_images=flat[1:], **several),
        "WEBP animated": specimens.webp_animation(SIZE, patches),
        "WEBP animated lossy": encoded(frames[0], "WEBP", append_images=frames[1:], **several),
        "AVIF animated": encoded(frames[0], "AVIF", append_images=frames[1:], speed=10, **several),
    }
    files |= {name: Sound(data, len(data) - TAIL_BYTES[name.split()[0]]) for name, data in moving.items()}
    for name, options in (("TIFF pages", {}), ("TIFF pages LZW", {"compression": "tiff_lzw"})):
        data = encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:], **options)
        files[name] = Sound(data, _tiff_pixels_end(data))
    return files


def _tiff_pixels_end(data: bytes) -> int:
    """Return where the last strip ends, without the end marks of its compression."""
    with Image.open(BytesIO(data)) as image:
        image.seek(image.n_frames - 1)
        tags = image.tag_v2
        return tags[273][-1] + tags[279][-1] - 6


# --- Mutated bytes ----------------------------------------------------------------------------------------

NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)


def _piece(random: Random, file: bytearray, longest: int = 64) -> slice:
    start = random.randrange(len(file) + 1)
    return slice(start, start + random.randint(1, longest))


def _place(random: Random, file: bytearray) -> int:
    """Choose any position, more often one in the headers."""
    return random.randrange(max(1, min(len(file), random.choice((32, 128, len(file))))))


def _flip_bits(random: Random, file: bytearray) -> None:
    for _ in range(random.randint(1, 8)):
        if file:
            file[_place(random, file)] ^= 1 << random.randrange(8)


def _set_bytes(random: Random, file: bytearray) -> None:
    start = _place(random, file)
    count = random.choice((1, 1, 2, 4, 16))
    file[start : start + count] = bytes([random.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))]) * count


def _set_number(random: Random, file: bytearray) -> None:
    start = _place(random, file)
    count = random.choice((2, 4))
    number = random.choice((*NUMBERS, len(file), random.randrange(len(file) + 1))) % (1 << 8 * count)
    file[start : start + count] = number.to_bytes(count, random.choice(("big", "little")))


def _remove(random: Random, file: bytearray) -> None:
    del file[_piece(random, file)]


def _repeat(random: Random, file: bytearray) -> None:
    piece = _piece(random, file)
    file[piece.start : piece.start] = file[piece] * random.choice((1, 2, 50))


def _insert(random: Random, file: bytearray) -> None:
    at = random.randrange(len(file) + 1)
    file[at:at] = random.randbytes(random.choice((1, 2, 4, 300)))


def _splice(random: Random, file: bytearray) -> None:
    other = random.choice(list(sound_files().values())).data
    file[random.randrange(len(file) + 1) :] = other[random.randrange(len(other)) :]


def _cut(random: Random, file: bytearray) -> None:
    del file[random.randrange(len(file) + 1) :]


BENDS = (_flip_bits, _set_bytes, _set_number, _remove, _repeat, _insert, _splice, _cut)


# --- Containers, taken apart and put together again with right lengths and checksums ----------------------


@dataclass(frozen=True, slots=True)
class Container:
    """A container format, taken apart and put together: a part is the name of a chunk and its content."""

    split: Callable[[bytes], Iterator[bytes]]
    join: Callable[[list[bytes]], bytes]
    names: tuple[bytes, ...]


def _with_parts_moved(random: Random, data: bytes, form: str, container: Container) -> bytes:
    parts = list(islice(container.split(data), 1000))
    others = [sound.data for name, sound in sound_files().items() if name.startswith(form + " ")]
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(parts)) if parts else 0
        invented = random.choice(container.names) + random.choice(
            (
                b"",
                random.randbytes(random.choice((1, 4, 13, 300))),
                specimens.exif_block(random.randint(1, 8)).data,
            )
        )
        bent = bytearray(parts[at]) if parts else bytearray(4)
        random.choice((_flip_bits, _set_number, _set_bytes, _cut))(random, bent)
        borrowed = random.choice(list(container.split(random.choice(others))))
        change = random.choice(("drop", "twice", "swap", "invent", "bend", "bend", "bend", "borrow"))
        if change == "swap" and parts:
            to = random.randrange(len(parts))
            parts[at], parts[to] = parts[to], parts[at]
        else:
            parts[at : at + (change in {"drop", "bend"})] = {
                "twice": parts[at : at + 1], "invent": [invented], "bend": [bytes(bent)], "borrow": [borrowed]
            }.get(change, [])  # fmt: skip
    return container.join(parts)


def _png_parts(data: bytes) -> Iterator[bytes]:
    at = 8
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : end]
        at = end + 4


def _png_file(parts: list[bytes]) -> bytes:
    return PNG_SIGNATURE + b"".join(specimens.chunk(part[:4], part[4:]) for part in parts)


def _riff_parts(data: bytes) -> Iterator[bytes]:
    at = 12
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4] + data[at + 8 : end]
        at = end + end % 2


def _riff_file(parts: list[bytes]) -> bytes:
    body = b"WEBP" + b"".join(specimens.riff_chunk(part[:4].ljust(4), part[4:]) for part in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _box_parts(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        end = at + max(8, int.from_bytes(data[at : at + 4], "big"))
        yield data[at + 4 : end]
        at = end


def _box_file(parts: list[bytes]) -> bytes:
    return b"".join(struct.pack(">I", len(part) + 4) + part for part in parts)


def _jpeg_parts(data: bytes) -> Iterator[bytes]:
    """Split into segments; what follows a scan's header belongs to it, and is found by its length."""
    at = 2
    while at + 4 < len(data):
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:
            while end < len(data) - 1 and not (
                data[end] == 0xFF and data[end + 1] not in {0, *range(0xD0, 0xD8)}
            ):
                end += 1
        yield data[at + 1 : at + 2] + data[at + 4 : end]
        at = end


def _jpeg_file(parts: list[bytes]) -> bytes:
    file = bytearray(b"\xff\xd8")
    for part in parts:
        length = 4 + 2 * part[1] if part[:1] == b"\xda" and len(part) > 1 else len(part) - 1
        file += b"\xff" + part[:1] + struct.pack(">H", (length + 2) % 65536) + part[1:]
    return bytes(file) + b"\xff\xd9"


def _gif_parts(data: bytes) -> Iterator[bytes]:
    """Split into the header with its palette, and blocks."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    yield data[:at]
    while data[at : at + 1] in {b"\x21", b"\x2c"}:
        flags = data[at + 9] if data[at] == 0x2C else 0
        end = at + (2 if data[at] == 0x21 else 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
        while data[end]:
            end += data[end] + 1
        yield data[at : end + 1]
        at = end + 1


def _gif_file(parts: list[bytes]) -> bytes:
    return b"".join(parts) + b"\x3b"


CONTAINERS = {
    "PNG": Container(
        _png_parts, _png_file,
        (b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"pHYs",
         b"bKGD", b"sBIT", b"tIME", b"IDAT", b"acTL", b"fcTL", b"fdAT", b"cICP", b"prVt", b"IEND"),
    ),
    "WEBP": Container(
        _riff_parts, _riff_file,
        (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP ", b"ABCD"),
    ),
    "AVIF": Container(_box_parts, _box_file, (b"free", b"skip", b"meta", b"mdat", b"moov", b"uuid", b"ftyp")),
    "JPEG": Container(
        _jpeg_parts, _jpeg_file,
        (b"\xc0", b"\xc1", b"\xc2", b"\xc3", b"\xc4", b"\xc9", b"\xda", b"\xdb", b"\xdd", b"\xdc", b"\xe0",
         b"\xe1", b"\xe1Exif\0\0", b"\xe2ICC_PROFILE\0\1\1", b"\xe2MPF\0", b"\xeeAdobe", b"\xfe", b"\x01"),
    ),
    "GIF": Container(
        _gif_parts, _gif_file,
        (b"\x21", b"\x21\xfe", b"\x21\xf9\x04", b"\x21\xff\x0bNETSCAPE2.0\x03\x01", b"\x2c"),
    ),
}  # fmt: skip


# --- Files made up from their formats' grammars -----------------------------------------------------------


def _size(random: Random) -> tuple[int, int]:
    return random.randint(1, 24), random.randint(1, 24)


def _made_png(random: Random) -> bytes:
    depth, colour = random.choice(
        ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (4, 3), (8, 3), (8, 4), (16, 4),
         (8, 6), (16, 6))
    )  # fmt: skip
    width, height = _size(random)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    is_interlaced = random.random() < 0.3
    passes = specimens.ADAM7 if is_interlaced else ((0, 0, 1, 1),)
    pixels = b"".join(
        bytes([random.randrange(5)]) + random.randbytes((columns * bits + 7) // 8)
        for left, top, across, down in passes
        if (columns := len(range(left, width, across)))
        for _ in range(top, height, down)
    )
    stream = zlib.compress(pixels, random.randrange(10))
    split = random.randrange(len(stream))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, is_interlaced)
    texts = (b"tEXtTitle\0a", b"zTXtTitle\0\0" + zlib.compress(b"a"), b"iTXtXML:com.adobe.xmp\0\0\0\0\0<x/>")
    extras = [
        b"PLTE" + random.randbytes(3 * random.choice((1, 16, 256))) if colour == 3 else b"tIME" + bytes(7),
        b"tRNS" + random.randbytes({0: 2, 2: 6}.get(colour, 1)) if colour in {0, 2, 3} else b"sRGB\0",
        b"pHYs" + struct.pack(">IIB", 2835, random.choice(NUMBERS), 1),
        b"eXIf" + specimens.exif_block(random.randint(1, 8), order=random.choice("<>")).data,
        random.choice(texts),
    ]
    kept = [extra for extra in extras if extra[:4] == b"PLTE" or random.random() < 0.4]
    return _png_file([b"IHDR" + header, *kept, b"IDAT" + stream[:split], b"IDAT" + stream[split:], b"IEND"])


def _made_gif(random: Random) -> bytes:
    size = _size(random)
    frames = []
    for _ in range(random.randint(1, 4)):
        shape = random.randint(1, size[0]), random.randint(1, size[1])
        grid = Grid(*shape, tuple(random.choices(range(specimens.GIF_COLOURS), k=shape[0] * shape[1])))
        frames.append(
            specimens.GifFrame(
                grid,
                left=random.randint(0, size[0] - shape[0]),
                top=random.randint(0, size[1] - shape[1]),
                palette=random.choice((None, specimens.gif_palette(1))),
                transparent=random.choice((None, 3)),
                disposal=random.randrange(4),
                delay_cs=random.choice((0, 1, 10, 65535)),
            )
        )
    return specimens.gif(size, specimens.gif_palette(0), frames, loops=random.choice((None, 0, 1, 65535)))


def _made_webp(random: Random) -> bytes:
    """Make a WebP of the chunks of valid files, in any order and with any flags."""
    streams = [
        part
        for name in ("WEBP lossy", "WEBP lossless", "WEBP alpha")
        for part in _riff_parts(sound_files()[name].data)
        if part[:4] in {b"VP8 ", b"VP8L", b"ALPH"}
    ]
    side = [(edge - 1).to_bytes(3, "little") for edge in SIZE]
    parts = [b"VP8X" + bytes([random.randrange(64), 0, 0, 0]) + b"".join(side)]
    if random.random() < 0.5:
        parts.append(b"ANIM" + struct.pack("<IH", 0, random.choice((0, 1, 65535))))
        for stream in random.choices(streams, k=random.randint(1, 4)):
            place = bytes(6) + b"".join(side) + random.choice((0, 50)).to_bytes(3, "little")
            frame = specimens.riff_chunk(stream[:4], stream[4:])
            parts.append(b"ANMF" + place + bytes([random.randrange(4)]) + frame)
    else:
        parts += random.choices(streams, k=random.randint(1, 2))
    notes = [
        b"EXIF" + specimens.exif_block(random.randint(1, 8)).data,
        b"XMP <x/>",
        b"ICCP" + random.randbytes(128),
    ]
    return _riff_file(parts + random.sample(notes, random.randint(0, 3)))


def _made_tiff(random: Random) -> bytes:
    order = random.choice("<>")
    file = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        width, height = _size(random)
        bits, samples, photometric = random.choice(
            ((1, 1, 0), (1, 1, 1), (4, 1, 1), (8, 1, 1), (8, 1, 3), (8, 2, 1), (8, 3, 2), (8, 4, 2),
             (8, 4, 5), (8, 3, 6), (8, 3, 8), (16, 1, 1), (16, 3, 2), (32, 1, 1))
        )  # fmt: skip
        compression = random.choice((1, 1, 1, 1, 8, 8, 8, 32946, 32773, 32773, 5, 2, 3, 4, 7, 50000))
        rows = random.randint(1, height)
        strips = []
        for start in range(0, height, rows):
            raw = random.randbytes((width * bits * samples + 7) // 8 * min(rows, height - start))
            if compression in {8, 32946}:
                raw = zlib.compress(raw)
            elif compression == 32773:  # PackBits, literal runs alone
                raw = b"".join(
                    bytes([len(run) - 1]) + run
                    for at in range(0, len(raw), 128)
                    if (run := raw[at : at + 128])
                )
            strips.append((len(file), len(raw)))
            file += raw
        fields: list[tuple[int, int, tuple[int, ...]]] = [
            (256, 4, (width,)), (257, 3, (height,)), (258, 3, (bits,) * samples), (259, 3, (compression,)),
            (262, 3, (photometric,)), (273, 4, tuple(at for at, _ in strips)), (277, 3, (samples,)),
            (278, 4, (rows,)), (279, 4, tuple(count for _, count in strips)),
            (274, 3, (random.randrange(10),)), (284, 3, (random.choice((1, 1, 2)),)),
            (317, 3, (random.choice((1, 2, 3)),)), (34665, 4, (8,)),
            (320, 3, tuple(random.choices(range(65536), k=3 << bits)) if photometric == 3 else (0,)),
            (338, 3, (random.randrange(3),)), (339, 3, (random.choice((1, 2, 3)),)),
        ]  # fmt: skip
        kept = [field for field in fields if (field[0] < 280 and field[0] != 274) or random.random() < 0.1]
        entries = b""
        for tag, kind, values in sorted(kept):
            packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
            if len(packed) > 4:
                file += packed
                packed = struct.pack(order + "I", len(file) - len(packed))
            entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        struct.pack_into(order + "I", file, link, len(file))
        file += struct.pack(order + "H", len(kept)) + entries + bytes(4)
        link = len(file) - 4
    return bytes(file)


def _made_jpeg(random: Random) -> bytes:
    """Make a JPEG with a scan of valid Huffman codes: twelve sizes of DC in 4 bits, all pairs of AC in 8."""
    width, height = _size(random)
    count = random.choice((1, 3, 3, 4))
    sampling = [(random.randint(1, 2), random.randint(1, 2)) for _ in range(count)] if count > 1 else [(1, 1)]
    is_progressive = random.random() < 0.3  # its first scan alone: coarse, and sound
    pairs = [0, 0xF0, *(run << 4 | size for run in range(16) for size in range(1, 11))]
    interval = random.choice((0, 0, 1, 3))
    wide, high = (8 * max(sample[axis] for sample in sampling) for axis in (0, 1))
    units = -(-width // wide) * -(-height // high)
    scan, bits = b"", ""
    for unit in range(units):
        for _ in range(sum(across * down for across, down in sampling)):
            size = random.randint(0, 5)
            bits += f"{size:04b}" + "".join(random.choices("01", k=size))
            if not is_progressive:
                for index in random.choices(range(2, 40), k=random.randint(0, 2)):
                    bits += f"{index:08b}" + "".join(random.choices("01", k=pairs[index] & 15))
                bits += f"{0:08b}"
        is_last = unit == units - 1
        if is_last or (interval and (unit + 1) % interval == 0):
            bits += "1" * (-len(bits) % 8)
            scan += int(bits or "0", 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
            scan += b"" if is_last else b"\xff" + bytes([0xD0 + unit // interval % 8])
            bits = ""
    frame = b"".join(
        bytes([index + 1, across << 4 | down, 0]) for index, (across, down) in enumerate(sampling)
    )
    notes = [
        b"\xe0JFIF\0\1\1\1\0\x48\0\x48\0\0",
        b"\xe1Exif\0\0" + specimens.exif_block(random.randint(1, 8), order=random.choice("<>")).data,
        b"\xeeAdobe\0\x64\0\0\0\0" + bytes([random.randrange(3)]),
        b"\xfe" + random.randbytes(20),
        b"\xe2ICC_PROFILE\0" + bytes([random.randint(1, 2), 1]) + random.randbytes(130),
    ]
    parts = [
        *random.sample(notes, random.randint(0, 3)),
        b"\xdb\0" + bytes(random.randint(1, 255) for _ in range(64)),
        (b"\xc2" if is_progressive else b"\xc0") + struct.pack(">BHHB", 8, height, width, count) + frame,
        b"\xc4\0" + bytes([0, 0, 0, 12, *[0] * 12, *range(12)]),
        b"\xc4\x10" + bytes([*[0] * 7, len(pairs), *[0] * 8, *pairs]),
        b"\xdd" + struct.pack(">H", interval),
        b"\xda" + bytes([count, *(byte for index in range(count) for byte in (index + 1, 0))])
        + bytes([0, 0 if is_progressive else 63, 0]) + scan,
    ]  # fmt: skip
    return _jpeg_file(parts)


def _made_bmp(random: Random) -> bytes:
    width, height = _size(random)
    header_bytes = random.choice((12, 40, 52, 56, 64, 108, 124))
    depth, compression = random.choice(
        ((1, 0), (4, 0), (8, 0), (16, 0), (24, 0), (32, 0), (8, 1), (4, 2), (16, 3), (32, 3), (32, 6))
    )
    palette = random.randbytes((3 if header_bytes == 12 else 4) << depth) if depth <= 8 else b""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    if header_bytes == 12:
        header = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        edge = random.choice((height, -height))
        header = struct.pack(
            "<IiiHHIIiiII", header_bytes, width, edge, 1, depth, compression, 0, 2835, 2835, 0, 0
        )
        header = (header + masks).ljust(header_bytes, b"\0")[:header_bytes]
        header += masks[:12] if compression == 3 and header_bytes == 40 else b""
    pixels = random.randbytes((width * depth + 31) // 32 * 4 * height)
    if compression in {1, 2}:
        pixels = (bytes([width, 7, 0, 0]) * height)[:-2] + b"\0\1"
    at = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", at + len(pixels), 0, 0, at) + header + palette + pixels


#: By the name of the format.
MAKERS: dict[str, Callable[[Random], bytes]] = {
    "JPEG": _made_jpeg,
    "PNG": _made_png,
    "WEBP": _made_webp,
    "GIF": _made_gif,
    "TIFF": _made_tiff,
    "BMP": _made_bmp,
}
