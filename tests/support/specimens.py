"""Image files for the tests, made by hand where Pillow would tidy them up, and a way to process one."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from server.imaging.codecs import Effort
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.metadata.policy import Strip
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe, Result
from support.jailed import process_in_jail
from support.mapped import mapped
from support.oracle import CLEAR, Grid, Patch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from server.imaging.codecs import Format
    from server.imaging.recipe import ImagePath


#: High enough for every image here that is not about the limits.
GENEROUS = Limits(max_pixels=4_000_000, max_frames=1_000, max_total_pixels=40_000_000)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of `process`, and the bytes it wrote."""

    result: Result
    data: bytes

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.data))


#: Adam7: where each pass begins, and its steps, horizontal and vertical (PNG 3rd edition, 8.1).
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def processed(  # noqa: PLR0913  each is a field of the recipe
    data: bytes,
    turn: str = "orient",
    *,
    output: Format | None = None,
    quality: int | None = None,
    strip: Strip | bool = Strip.NOTHING,
    path: ImagePath | None = None,
    effort: Effort = Effort.NORMAL,
    limits: Limits = GENEROUS,
    held: bytes = b"",
) -> Outcome:
    """Send a file through the package, from memory to memory, over what the memory held."""
    sink = io.BytesIO(held)
    if isinstance(strip, bool):
        strip = Strip.ALL if strip else Strip.NOTHING
    recipe = Recipe(turn=Turn(turn), format=output, quality=quality, strip=strip, path=path, effort=effort)
    if "FLIP_TESTS_JAILED" in os.environ:
        return Outcome(*process_in_jail(data, held, recipe, limits))
    result = process(mapped(data), sink, recipe, limits)
    return Outcome(result, sink.getvalue())


def noise(count: int, seed: object = "") -> bytes:
    """Return the same random bytes every time."""
    return hashlib.shake_128(repr(seed).encode()).digest(count)


# --- Still images, by mode ----------------------------------------------------------------------

PALETTE = tuple(tuple(noise(3, ("palette", index))) for index in range(20))
PALETTE_SIZE = len(PALETTE)

#: Every kind of still image the tests know; what follows the mode is how it is transparent.
KINDS = ("1", "L", "L/key", "LA", "P", "P/index", "P/bytes", "RGB", "RGB/key", "RGBA", "CMYK", "I;16")


def noise_image(kind: str, size: tuple[int, int], seed: object = "") -> Image.Image:
    """Return an image of noise: no two corners alike, no symmetry to hide behind."""
    mode, _, transparency = kind.partition("/")
    count = size[0] * size[1]
    if mode == "1":
        image = Image.new("1", size)
        image.putdata([255 * (byte & 1) for byte in noise(count, (kind, seed))])
        return image
    if mode == "P":
        image = Image.frombytes("P", size, bytes(byte % PALETTE_SIZE for byte in noise(count, (kind, seed))))
        image.putpalette([value for colour in PALETTE for value in colour])
    else:
        sample_bytes = 2 if mode == "I;16" else Image.getmodebands(mode)
        image = Image.frombytes(mode, size, noise(count * sample_bytes, (kind, seed)))
    if transparency == "index":
        image.info["transparency"] = 3
    elif transparency == "bytes":
        image.info["transparency"] = bytes((0, 255, 128, 7, 200))
    elif transparency == "key":
        image.info["transparency"] = image.getpixel((0, 0))
    return image


def encoded(image: Image.Image, container: str, **options: object) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, container, **options)
    return buffer.getvalue()


def natural(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Return an image like a photo: smooth gradients, and noise that fades with its frequency."""
    width, height = size
    image = Image.merge(
        "RGB",
        (
            Image.linear_gradient("L").resize(size),
            Image.radial_gradient("L").resize(size),
            Image.frombytes("L", (256, 1), bytes(range(256))).resize(size),
        ),
    )
    for divisor, weight in ((64, 0.4), (24, 0.2), (8, 0.1), (4, 0.05)):
        grain_size = max(1, width // divisor), max(1, height // divisor)
        grain = Image.frombytes("RGB", grain_size, noise(3 * grain_size[0] * grain_size[1], divisor))
        image = Image.blend(image, grain.resize(size, Image.Resampling.BICUBIC), weight)
    return image.convert(mode)


# --- EXIF, by hand --------------------------------------------------------------------------------

MAKER_NOTE = b"Imaginary\0\1\2\3" + noise(40, "maker note")
THUMBNAIL = b"\xff\xd8 the thumbnail " + noise(60, "thumbnail") + b"\xff\xd9"


@dataclass(frozen=True, slots=True)
class Exif:
    """A TIFF structure as EXIF uses it, and where its parts are."""

    data: bytes
    order: str  # of struct: "<" or ">"
    orientation_at: int
    link_at: int  # to the directory of the thumbnail
    thumbnail_directory: slice
    thumbnail: slice

    def after(self) -> bytes:
        """Return the expected result: upright, without thumbnail, every other byte where it was."""
        block = bytearray(self.data)
        struct.pack_into(self.order + "H", block, self.orientation_at, 1)
        struct.pack_into(self.order + "I", block, self.link_at, 0)
        return bytes(block)


def exif_block(orientation: int, *, order: str = "<", thumbnail_first: bool = False) -> Exif:
    """Lay out a main directory, an EXIF directory with a maker note, and a thumbnail before or after it."""
    make, resolution = b"Imaginary\0", struct.pack(order + "II", 300, 1)
    main_at, entries = 8, 5
    link_at = main_at + 2 + 12 * entries
    make_at = link_at + 4
    resolution_at = make_at + len(make)
    body_at = resolution_at + len(resolution)
    exif_bytes = 2 + 12 * 2 + 4 + len(MAKER_NOTE)
    small_bytes = 2 + 12 * 3 + 4 + len(THUMBNAIL)
    small_at = body_at if thumbnail_first else body_at + exif_bytes
    exif_at = body_at + small_bytes if thumbnail_first else body_at

    def entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
        return struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")

    def long(value: int) -> bytes:
        return struct.pack(order + "I", value)

    def short(value: int) -> bytes:
        return struct.pack(order + "H", value)

    main = (
        short(entries)
        + entry(0x010F, 2, len(make), long(make_at))
        + entry(0x0112, 3, 1, short(orientation))
        + entry(0x011A, 5, 1, long(resolution_at))
        + entry(0x011B, 5, 1, long(resolution_at))
        + entry(0x8769, 4, 1, long(exif_at))
        + long(small_at)
    )
    note_at = exif_at + 2 + 12 * 2 + 4
    details = (
        short(2)
        + entry(0x9000, 7, 4, b"0232")
        + entry(0x927C, 7, len(MAKER_NOTE), long(note_at))
        + long(0)
        + MAKER_NOTE
    )
    small_directory_bytes = 2 + 12 * 3 + 4
    small = (
        short(3)
        + entry(0x0103, 3, 1, short(6))
        + entry(0x0201, 4, 1, long(small_at + small_directory_bytes))
        + entry(0x0202, 4, 1, long(len(THUMBNAIL)))
        + long(0)
        + THUMBNAIL
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + long(main_at)
    body = small + details if thumbnail_first else details + small
    return Exif(
        data=head + main + make + resolution + body,
        order=order,
        orientation_at=main_at + 2 + 12 + 8,
        link_at=link_at,
        thumbnail_directory=slice(small_at, small_at + small_directory_bytes),
        thumbnail=slice(small_at + small_directory_bytes, small_at + small_bytes),
    )


def orientation_only(orientation: int) -> bytes:
    """Return the smallest EXIF block there is."""
    return struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)


# --- JPEG -----------------------------------------------------------------------------------------


def with_segment(jpeg: bytes, marker: int, payload: bytes) -> bytes:
    """Insert a marker segment after SOI and, where there is one, JFIF."""
    position = 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[2:4] == b"\xff\xe0" else 2
    segment = struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload
    return jpeg[:position] + segment + jpeg[position:]


def with_exif(jpeg: bytes, block: bytes) -> bytes:
    return with_segment(jpeg, 0xE1, b"Exif\0\0" + block)


# --- JPEGs with more behind them ------------------------------------------------------------------

XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
ISO_GAIN_MAP = b"urn:iso:std:iso:ts:21496:-1\0"
_HDRGM = "http://ns.adobe.com/hdr-gain-map/1.0/"
_GOOGLE = "http://ns.google.com/photos/1.0/"
#: The head of an MP4 file, by which a reader recognises one.
VIDEO = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + noise(500, "video")


def directory_xmp(gain_map_bytes: int) -> bytes:
    """Return XMP of a motion photo with a gain map (Ultra HDR 1.1, Motion Photo 1.0), and the user's own."""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:hdrgm="{_HDRGM}"
   xmlns:Container="{_GOOGLE}container/" xmlns:Item="{_GOOGLE}container/item/"
   xmlns:GCamera="{_GOOGLE}camera/" hdrgm:Version="1.0" GCamera:MotionPhoto="1" dc:source='a "b" > c'
   GCamera:MotionPhotoVersion="1" GCamera:MotionPhotoPresentationTimestampUs='500000'>
  <Container:Directory><rdf:Seq>
   <rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="Primary" Item:Mime="image/jpeg"/></rdf:li>
   <rdf:li rdf:parseType="Resource"><Container:Item
     Item:Semantic="GainMap" Item:Mime="image/jpeg" Item:Length="{gain_map_bytes}"/></rdf:li>
   <rdf:li rdf:parseType="Resource"><Container:Item
     Item:Semantic="MotionPhoto" Item:Mime="video/mp4" Item:Length="{len(VIDEO)}"/></rdf:li>
  </rdf:Seq></Container:Directory>
  <dc:title>A café at night</dc:title>
 </rdf:Description>
</rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>""".encode()


def gain_map(size: tuple[int, int]) -> bytes:
    """Return a gain map as Ultra HDR 1.1 stores it: a JPEG of its own, with the parameters in its XMP."""
    xmp = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:hdrgm="{_HDRGM}"
 hdrgm:Version="1.0" hdrgm:GainMapMax="2.3" hdrgm:HDRCapacityMax="2.3"/></rdf:RDF></x:xmpmeta>"""
    data = encoded(natural(size, "L"), "JPEG")
    return with_segment(with_segment(data, 0xE2, ISO_GAIN_MAP + bytes(20)), 0xE1, XMP + xmp.encode())


def _image_index(primary_bytes: int, gain_map_bytes: int, gain_map_offset: int) -> bytes:
    """Return the index of two images (CIPA DC-007, 5.2): version, their number, an entry for each."""
    return b"MPF\0" + struct.pack(
        ">2sHIH HHI4s HHII HHII I IIIHH IIIHH",
        *(b"MM", 42, 8, 3),
        *(0xB000, 7, 4, b"0100", 0xB001, 4, 1, 2, 0xB002, 7, 32, 50, 0),
        *(0x030000, primary_bytes, 0, 0, 0),
        *(0, gain_map_bytes, gain_map_offset, 0, 0),
    )


def ultra_hdr(plain: bytes, exif: bytes = b"") -> bytes:
    """Append a gain map and a video to a JPEG, and insert the metadata that refers to them."""
    extra = gain_map((32, 24))

    def primary(length: int, offset: int) -> bytes:
        data = with_segment(plain, 0xE2, ISO_GAIN_MAP + bytes(4))
        data = with_segment(data, 0xE2, _image_index(length, len(extra), offset))
        data = with_segment(data, 0xE1, XMP + directory_xmp(len(extra)))
        return with_exif(data, exif) if exif else data

    sketch = primary(0, 0)
    origin = sketch.index(b"MPF\0") + 4  # offsets count from the TIFF header
    return primary(len(sketch), len(sketch) - origin) + extra + VIDEO


# --- PNG and APNG ---------------------------------------------------------------------------------


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def header_chunk(size: tuple[int, int], depth: int, colour_type: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0))


def png(
    size: tuple[int, int], depth: int, colour_type: int, rows: Sequence[bytes], extra: bytes = b""
) -> bytes:
    """Encode unfiltered rows of packed samples; `extra` is whole chunks to stand before the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header_chunk(size, depth, colour_type)
        + extra
        + chunk(b"IDAT", pixels)
        + chunk(b"IEND", b"")
    )


def with_chunk(data: bytes, kind: bytes, body: bytes) -> bytes:
    """Insert a chunk after the header of a PNG file."""
    return data[:33] + chunk(kind, body) + data[33:]


def apng(  # noqa: PLR0913  each is a part of the file
    size: tuple[int, int],
    patches: Sequence[Patch],
    *,
    loops: int = 0,
    default_image: Grid | None = None,
    depth: int = 8,
    colour_type: int = 6,
    extra: bytes = b"",
) -> bytes:
    """Encode an animation, every frame as it is given.

    `default_image` is for old viewers only; `extra` is whole chunks to stand before the pixels.
    """
    sequence = iter(range(2 * len(patches) + 1))
    parts = [
        b"\x89PNG\r\n\x1a\n",
        header_chunk(size, depth, colour_type),
        chunk(b"acTL", struct.pack(">II", len(patches), loops)),
        extra,
    ]
    if default_image is not None:
        parts.append(chunk(b"IDAT", _packed(default_image, depth)))
    for index, patch in enumerate(patches):
        control = struct.pack(
            ">IIIIIHHBB",
            next(sequence),
            *patch.grid.size,
            patch.left,
            patch.top,
            patch.duration_ms,
            1000,
            ("keep", "background", "previous").index(patch.dispose),
            int(patch.is_laid_over),
        )
        parts.append(chunk(b"fcTL", control))
        if index == 0 and default_image is None:
            parts.append(chunk(b"IDAT", _packed(patch.grid, depth)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", next(sequence)) + _packed(patch.grid, depth)))
    return b"".join([*parts, chunk(b"IEND", b"")])


def _packed(grid: Grid, depth: int) -> bytes:
    rows = (grid.pixels[y * grid.width : (y + 1) * grid.width] for y in range(grid.height))
    samples = ((pixel if isinstance(pixel, tuple) else (pixel,) for pixel in row) for row in rows)
    lines = (
        b"".join(sample.to_bytes(depth // 8, "big") for pixel in row for sample in pixel) for row in samples
    )
    return zlib.compress(b"".join(b"\0" + line for line in lines))


# --- GIF ------------------------------------------------------------------------------------------

GIF_COLOURS = 16


def gif_palette(seed: object) -> tuple[tuple[int, int, int], ...]:
    return tuple(tuple(noise(3, ("gif", seed, index))) for index in range(GIF_COLOURS))


@dataclass(frozen=True, slots=True)
class GifFrame:
    """One frame as it is stored: indices into its own palette or, without one, the global palette."""

    indices: Grid
    left: int = 0
    top: int = 0
    palette: tuple[tuple[int, int, int], ...] | None = None
    transparent: int | None = None
    disposal: int = 0
    delay_cs: int = 10

    def patch(self, global_palette: tuple[tuple[int, int, int], ...]) -> Patch:
        """Return what this frame means."""
        colours = self.palette or global_palette
        return Patch(
            self.indices.map(lambda index: CLEAR if index == self.transparent else (*colours[index], 255)),
            self.left,
            self.top,
            {0: "keep", 1: "keep", 2: "background", 3: "previous"}[self.disposal],
            duration_ms=10 * self.delay_cs,
        )


def gif(
    size: tuple[int, int],
    palette: tuple[tuple[int, int, int], ...],
    frames: Sequence[GifFrame],
    *,
    loops: int | None = None,
) -> bytes:
    """Encode an animation, every frame stored as it is given; palettes have 16 colours."""
    parts = [b"GIF89a", struct.pack("<HHBBB", *size, 0xF3, 0, 0), *(bytes(colour) for colour in palette)]
    if loops is not None:
        parts.append(b"\x21\xff\x0bNETSCAPE2.0\x03\x01" + struct.pack("<H", loops) + b"\0")
    for frame in frames:
        flags = frame.disposal << 2 | (frame.transparent is not None)
        parts.append(
            b"\x21\xf9\x04" + struct.pack("<BHB", flags, frame.delay_cs, frame.transparent or 0) + b"\0"
        )
        has_palette = 0x83 if frame.palette else 0
        parts.append(b"\x2c" + struct.pack("<HHHHB", frame.left, frame.top, *frame.indices.size, has_palette))
        parts.extend(bytes(colour) for colour in frame.palette or ())
        parts.append(_lzw(frame.indices.pixels))
    return b"".join([*parts, b"\x3b"])


def _lzw(indices: Sequence[int]) -> bytes:
    """Write literals only, with a clear code before codes would grow to six bits."""
    clear, end, run = 16, 17, 14
    codes = []
    for start in range(0, len(indices), run):
        codes += [clear, *indices[start : start + run]]
    bits = sum(code << 5 * place for place, code in enumerate([*codes, end]))
    body = bits.to_bytes((5 * (len(codes) + 1) + 7) // 8, "little")
    blocks = (body[start : start + 255] for start in range(0, len(body), 255))
    return b"\x04" + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"


# --- WebP -----------------------------------------------------------------------------------------


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def webp_animation(size: tuple[int, int], patches: Sequence[Patch], *, loops: int = 0) -> bytes:
    """Encode an animation without loss, every frame stored as it is given; offsets must be even."""
    parts = [
        riff_chunk(b"VP8X", bytes((0x12, 0, 0, 0)) + _u24(size[0] - 1) + _u24(size[1] - 1)),
        riff_chunk(b"ANIM", struct.pack("<IH", 0, loops)),
    ]
    for patch in patches:
        assert patch.left % 2 == patch.top % 2 == 0
        image = Image.new("RGBA", patch.grid.size)
        image.putdata(patch.grid.pixels)
        pixels = encoded(image, "WEBP", lossless=True, exact=True)[12:]
        assert pixels[:4] == b"VP8L"
        flags = (not patch.is_laid_over) << 1 | (patch.dispose == "background")
        place = _u24(patch.left // 2) + _u24(patch.top // 2)
        shape = _u24(patch.grid.width - 1) + _u24(patch.grid.height - 1)
        parts.append(riff_chunk(b"ANMF", place + shape + _u24(patch.duration_ms) + bytes((flags,)) + pixels))
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _u24(value: int) -> bytes:
    return value.to_bytes(3, "little")
