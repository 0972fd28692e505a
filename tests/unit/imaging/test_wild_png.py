"""PNGs as strangers write them, judged by ImageMagick and ExifTool."""

from __future__ import annotations

import zlib

import pytest
from support.oracle import Grid, Patch
from support.programs import pixels, run, tags
from support.specimens import XMP as XMP_PREFIX
from support.specimens import (
    apng,
    chunk,
    encoded,
    exif_block,
    header_chunk,
    natural,
    noise,
    orientation_only,
    processed,
    with_chunk,
    with_exif,
    with_segment,
)

from server.errors import DamagedImage, UnsupportedImage
from server.imaging.codecs import Format

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SIZE = (3, 2)
PALETTE = chunk(b"PLTE", bytes((250, 0, 0, 0, 250, 0, 0, 0, 250)))
ROWS = {
    0: [b"\x0a\x14\x1e", b"\x28\x32\x3c"],
    2: [bytes(range(10, 19)), bytes(range(30, 39))],
    3: [b"\0\1\2", b"\2\1\0"],
    4: [bytes(range(10, 16)), bytes(range(30, 36))],
    6: [bytes(range(10, 22)), bytes(range(30, 42))],
}
END = chunk(b"IEND", b"")


def compressed(rows: list[bytes]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row for row in rows))


def png(  # noqa: PLR0913  each is a part of the file
    colour_type: int,
    before: bytes = b"",
    after: bytes = b"",
    *,
    depth: int = 8,
    size: tuple[int, int] = SIZE,
    rows: list[bytes] | None = None,
    pixels: bytes | None = None,
    end: bytes = END,
) -> bytes:
    """Return a PNG with chunks before and after its pixels."""
    stored = chunk(b"IDAT", compressed(rows or ROWS[colour_type])) if pixels is None else pixels
    return SIGNATURE + header_chunk(size, depth, colour_type) + before + stored + after + end


def broken(kind: bytes, body: bytes) -> bytes:
    """Return a chunk with a wrong checksum."""
    whole = chunk(kind, body)
    return whole[:-1] + bytes((whole[-1] ^ 1,))


def assert_seen_as_by_imagemagick(data: bytes) -> None:
    """Check every way out whose pixels are exact."""
    wanted = pixels(data, "png", "-flip")
    for output in (None, Format.PNG, Format.BMP):
        if output is not Format.BMP or all(pixel[3] == 255 for pixel in wanted.pixels):
            ours = processed(data, "flip", output=output)
            assert pixels(ours.data, ours.result.format.value) == wanted, output
    webp = processed(data, "flip", output=Format.WEBP).data
    assert processed(webp, "flip", output=Format.PNG, quality=100).result.width == wanted.width


KEY = b"\0\x0a"
PROFILE = b"name\0\0" + zlib.compress(b"no profile")
LEFT_OUT = {
    **{
        f"{kind.decode()} with a wrong checksum": png(2, broken(kind, body))
        for kind, body in (
            (b"tEXt", b"a\0b"),
            (b"zTXt", b"a\0\0" + zlib.compress(b"b")),
            (b"iTXt", b"a\0\0\0\0\0b"),
            (b"eXIf", orientation_only(6)),
            (b"gAMA", b"\0\0\0\1"),
            (b"cHRM", bytes(32)),
            (b"sRGB", b"\0"),
            (b"cICP", b"\x09\x10\0\1"),
            (b"iCCP", PROFILE),
            (b"pHYs", bytes(9)),
            (b"tIME", bytes(7)),
            (b"prVt", b"a"),
        )
    },
    "tRNS of a palette with a wrong checksum": png(3, PALETTE + broken(b"tRNS", b"\0")),
    "tRNS of gray with a wrong checksum": png(0, broken(b"tRNS", KEY)),
    "text with a wrong checksum behind the pixels": png(2, after=broken(b"tEXt", b"a\0b")),
    "tRNS longer than the palette": png(3, PALETTE + chunk(b"tRNS", bytes(4))),
    "empty tRNS": png(3, PALETTE + chunk(b"tRNS", b"")),
    "tRNS in front of the palette": png(3, chunk(b"tRNS", b"\0") + PALETTE),
    "tRNS of a palette behind the pixels": png(3, PALETTE, chunk(b"tRNS", b"\0")),
    "tRNS of gray behind the pixels": png(0, after=chunk(b"tRNS", KEY)),
    "tRNS twice": png(0, chunk(b"tRNS", KEY) + chunk(b"tRNS", b"\0\x14")),
    "tRNS of gray too long": png(0, chunk(b"tRNS", KEY + b"\0")),
    "tRNS of gray too short": png(0, chunk(b"tRNS", b"\x0a")),
    "tRNS of RGB too short": png(2, chunk(b"tRNS", KEY)),
    "tRNS of RGBA": png(6, chunk(b"tRNS", b"\0\x0a\0\x0b\0\x0c")),
    "tRNS of gray and alpha": png(4, chunk(b"tRNS", KEY)),
    "palette of gray": png(0, PALETTE),
    "palette of RGB of a wrong length": png(2, chunk(b"PLTE", b"abcd")),
    "palette of RGB behind the pixels": png(2, after=PALETTE),
    "gAMA too short": png(2, chunk(b"gAMA", b"\0\0\1")),
    "pHYs too short": png(2, chunk(b"pHYs", b"\0\0\1")),
    "tIME too short": png(2, chunk(b"tIME", b"\0\0\1")),
    "cICP too short": png(2, chunk(b"cICP", b"\1")),
    "bKGD too short": png(2, chunk(b"bKGD", b"\1")),
    "sBIT too short": png(2, chunk(b"sBIT", b"\1")),
    "hIST without a palette": png(0, chunk(b"hIST", b"\0\1")),
    "profile without a method": png(2, chunk(b"iCCP", b"name")),
    "profile of an unknown method": png(2, chunk(b"iCCP", b"name\0\1" + PROFILE[6:])),
    "text of an unknown method": png(2, chunk(b"zTXt", b"a\0\1" + zlib.compress(b"b"))),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_an_ancillary_chunk_that_decoders_leave_out_is_left_out(name: str) -> None:
    data = LEFT_OUT[name]
    assert_seen_as_by_imagemagick(data)
    ours = processed(data, "orient").data
    strict = run("convert", "-regard-warnings", "png:-", "rgba:-", given=ours)
    assert len(strict) % (4 * SIZE[0] * SIZE[1]) == 0


@pytest.mark.parametrize(
    "data",
    [
        png(2, after=broken(b"IEND", b""), end=b""),
        png(3, broken(b"PLTE", bytes(9))),
        png(2, pixels=broken(b"IDAT", compressed(ROWS[2]))),
        SIGNATURE + broken(b"IHDR", header_chunk(SIZE, 8, 2)[8:-4]) + png(2)[33:],
        png(3, PALETTE + PALETTE),
        png(3, after=PALETTE),
        png(2, chunk(b"p\x80Ys", b"a")),
        png(2, broken(b"p\x80Ys", b"a")),
        png(2, header_chunk(SIZE, 8, 2)),
        png(2, end=b""),
        png(2, end=END[:-1]),
        png(2, end=bytes(30)),
        png(2, after=chunk(b"tEXt", b"a\0b")[:-2], end=b""),
        png(2, pixels=chunk(b"IDAT", compressed(ROWS[2])[:-9])),
        png(2, pixels=chunk(b"IDAT", zlib.compress(b"".join(b"\7" + row for row in ROWS[2])))),
        png(2, pixels=chunk(b"IDAT", compressed(ROWS[2])[:-1] + b"?")),
        png(
            2,
            pixels=chunk(b"IDAT", compressed(ROWS[2])[:9])
            + chunk(b"tEXt", b"a\0b")
            + chunk(b"IDAT", compressed(ROWS[2])[9:]),
        ),
    ],
    ids=len,
)
def test_what_neither_libpng_nor_imagemagick_shows_is_refused(data: bytes) -> None:
    run("convert", "png:-", "rgba:-", given=data, tolerated=(1,))
    for output in (None, Format.JPEG):
        with pytest.raises(DamagedImage):
            processed(data, "flip", output=output)


FRAME = Grid(*SIZE, tuple((10 * number, 20, 30, 255) for number in range(6)))


@pytest.mark.parametrize("kind", [b"acTL", b"fcTL", b"fdAT"])
def test_an_animation_with_a_wrong_checksum_is_refused(kind: bytes) -> None:
    data = bytearray(apng(SIZE, [Patch(FRAME), Patch(FRAME)]))
    start = data.rindex(kind)
    data[start + 4 + int.from_bytes(data[start - 4 : start], "big")] ^= 1
    for output in (None, Format.WEBP, Format.JPEG):
        with pytest.raises(DamagedImage, match="checksum"):
            processed(bytes(data), "flip", output=output)


STREAM = compressed(ROWS[2])
ODDITIES = {
    "a proposed palette": png(2, PALETTE),
    "more colours than indices": png(3, PALETTE, depth=1, rows=[b"\x40", b"\x80"]),
    "empty pixel chunks": png(
        2, pixels=b"".join(chunk(b"IDAT", part) for part in (b"", STREAM[:7], b"", STREAM[7:]))
    ),
    "bytes behind the pixel stream": png(2, pixels=chunk(b"IDAT", STREAM + b"more")),
    "rows behind the last": png(2, pixels=chunk(b"IDAT", compressed([*ROWS[2], ROWS[2][0]]))),
    "a second pixel stream": png(
        2, after=chunk(b"tEXt", b"a\0b") + chunk(b"IDAT", compressed(ROWS[2][::-1]))
    ),
    "bytes behind the end": png(2, end=END + b"more\xff" * 9),
    "an end that is not empty": png(2, end=chunk(b"IEND", b"more")),
    "a transparent gray of 16 bits": png(0, chunk(b"tRNS", b"\1\2"), depth=16, rows=[b"\1\2\1\3\2\2"] * 2),
    "a transparent colour of 16 bits": png(
        2, chunk(b"tRNS", b"\1\2\3\4\5\6"), depth=16, rows=[b"\1\2\3\4\5\6\1\2\3\4\5\7\0\2\3\4\5\6"] * 2
    ),
    "much text": png(2, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))),
    "much text behind the pixels": png(2, after=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3_000_000)))),
    "a large profile": png(2, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(3_000_000)))),
    "an old zlib window": png(2, pixels=chunk(b"IDAT", b"\x08\x1d" + STREAM[2:])),
}  # fmt: skip


@pytest.mark.parametrize("name", ODDITIES)
def test_an_odd_png_is_seen_as_imagemagick_sees_it(name: str) -> None:
    assert_seen_as_by_imagemagick(ODDITIES[name])


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_of_a_transparent_gray_only_the_bits_of_a_sample_count(depth: int) -> None:
    """PNG 3rd edition, 11.3.1.1: decoders must mask the others."""
    highest = (1 << depth) - 1
    data = png(
        0,
        chunk(b"tRNS", (0x0100 | highest | 1 << depth).to_bytes(2, "big")),
        depth=depth,
        size=(1, 2),
        rows=[b"\0", bytes((0xFF,))],
    )
    for output in (None, Format.TIFF):
        ours = processed(data, "flip", output=output)
        assert [pixel[3] for pixel in pixels(ours.data, ours.result.format.value).pixels] == [0, 255]


@pytest.mark.parametrize("output", [Format.GIF, Format.BMP, Format.TIFF, Format.PNG])
@pytest.mark.parametrize("depth", [4, 8])
def test_an_index_without_a_colour_is_black(output: Format, depth: int) -> None:
    """As libpng and browsers show it."""
    rows = [b"\x19"] if depth == 4 else [b"\1\xc8"]
    data = png(3, PALETTE, depth=depth, size=(2, 1), rows=rows)
    ours = processed(data, "flop", output=output)
    if output is not Format.PNG:  # where it stays an index without a colour
        assert pixels(ours.data, output.value).pixels[0] == (0, 0, 0, 255)
    assert pixels(ours.data, output.value).pixels[1] == (0, pytest.approx(250, abs=1), 0, 255)


def test_a_png_for_apple_s_devices_is_refused_with_the_way_out() -> None:
    data = SIGNATURE + chunk(b"CgBI", b"P\0 \2") + png(6)[8:]
    with pytest.raises(UnsupportedImage, match="pngcrush -revert"):
        processed(data, "flip")


# --- Metadata in texts ----------------------------------------------------------------------------

XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
    ' tiff:Orientation="6" xmp:CreatorTool="café"/></rdf:RDF></x:xmpmeta>'
)
KEYWORD = b"XML:com.adobe.xmp\0"


def digits(name: bytes, content: bytes) -> bytes:
    """Write a raw profile as ImageMagick does."""
    lines = [content.hex().encode()[at : at + 72] for at in range(0, 2 * len(content), 72)]
    return b"\n" + name + b"\n%8d\n" % len(content) + b"\n".join(lines) + b"\n"


def raw(name: str, content: bytes) -> dict[str, bytes]:
    """Return chunks with a raw profile, by what they are."""
    keyword, text = f"Raw profile type {name}\0".encode(), digits(name.lower().encode(), content)
    return {
        f"{name} in tEXt": chunk(b"tEXt", keyword + text),
        f"{name} in zTXt": chunk(b"zTXt", keyword + b"\0" + zlib.compress(text)),
        f"{name} in iTXt": chunk(b"iTXt", keyword + b"\1\0\0\0" + zlib.compress(text)),
    }


XMP_TEXTS = {
    "zTXt": chunk(b"zTXt", KEYWORD + b"\0" + zlib.compress(XMP.encode())),
    "zTXt in Latin-1": chunk(b"zTXt", KEYWORD + b"\0" + zlib.compress(XMP.encode("latin-1"))),
    "tEXt": chunk(b"tEXt", KEYWORD + XMP.encode()),
    "iTXt": chunk(b"iTXt", KEYWORD + b"\0\0\0\0" + XMP.encode()),
    "iTXt compressed": chunk(b"iTXt", KEYWORD + b"\1\0\0Titel\0" + zlib.compress(XMP.encode())),
    **raw("xmp", XMP.encode()),
    **raw("APP1", XMP_PREFIX + XMP.encode()),
}
UPRIGHT_XMP = XMP.replace('"6"', '"1"').encode()


@pytest.mark.parametrize("name", XMP_TEXTS)
@pytest.mark.parametrize("is_behind", [False, True])
def test_xmp_is_found_in_any_text_and_made_upright(name: str, is_behind: bool) -> None:  # noqa: FBT001
    text = XMP_TEXTS[name]
    data = png(2, after=text) if is_behind else png(2, text)
    found = tags(processed(data, "flip").data, ".png", "-XMP:all")
    assert (found["XMP-tiff:Orientation"], found["XMP-xmp:CreatorTool"]) == ("1", "café")
    for output in (Format.JPEG, Format.WEBP, Format.TIFF, Format.AVIF):
        assert UPRIGHT_XMP in processed(data, "rotate-90", output=output).data, output


EXIF_TEXTS = {
    **raw("exif", b"Exif\0\0" + exif_block(6).data),
    **{f"{name} without a prefix": text for name, text in raw("exif", exif_block(6).data).items()},
    **raw("APP1", b"Exif\0\0" + exif_block(6).data),
}


@pytest.mark.parametrize("name", EXIF_TEXTS)
def test_exif_in_a_text_turns_nothing_and_comes_out_upright(name: str) -> None:
    """Viewers do not know it, so the image is seen as it is stored."""
    data = png(2, EXIF_TEXTS[name])
    ours = processed(data, "flip")
    assert pixels(ours.data, "png") == pixels(data, "png", "-flip")
    found = tags(ours.data, ".png", "-IFD0:all", "-IFD1:all")
    assert (found["IFD0:Orientation"], found["IFD0:Make"]) == ("1", "Imaginary")
    assert not [tag for tag in found if tag.startswith("IFD1")]
    converted = processed(data, "flip", output=Format.JPEG)
    assert (converted.result.width, converted.result.height) == SIZE
    found = tags(converted.data, ".jpg", "-IFD0:all")
    assert (found["IFD0:Orientation"], found["IFD0:Make"]) == ("1", "Imaginary")
    for output in (Format.WEBP, Format.TIFF, Format.AVIF):
        assert b"Imaginary" in processed(data, "flip", output=output).data, output


def test_the_exif_chunk_counts_before_exif_in_a_text() -> None:
    data = png(2, EXIF_TEXTS["exif in zTXt"] + chunk(b"eXIf", orientation_only(3)))
    ours = processed(data, "orient")
    assert pixels(ours.data, "png") == pixels(data, "png", "-rotate", "180")
    assert {value for tag, value in tags(ours.data, ".png").items() if tag.endswith(":Orientation")} == {"1"}


IIM = b"\x1c\x02\x78\0\x05hello"
IPTC_TEXTS = {
    **raw("iptc", IIM),
    **{
        f"{name} as resources": text
        for name, text in raw("iptc", b"8BIM\x04\x04\0\0\0\0\0\x0a" + IIM).items()
    },
    **raw("8bim", b"8BIM\x04\x04\0\0\0\0\0\x0a" + IIM + b"8BIM\x04\x0c\0\0\0\0\0\4\x01\x02\x03\x04"),
}


@pytest.mark.parametrize("name", IPTC_TEXTS)
def test_iptc_in_a_text_stays(name: str) -> None:
    found = tags(processed(png(2, IPTC_TEXTS[name]), "flip").data, ".png")
    assert found["IPTC:Caption-Abstract"] == "hello"


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", KEYWORD + b"\0" + zlib.compress(XMP.encode())[:-9]),
        chunk(b"zTXt", KEYWORD + b"\0" + zlib.compress(XMP.encode().ljust((1 << 24) + 1))),
        chunk(b"iTXt", KEYWORD + b"\1\0\0\0" + zlib.compress(XMP.encode())[:-1] + b"?"),
        chunk(b"iTXt", KEYWORD + b"\2\0\0\0" + XMP.encode()),
        chunk(b"iTXt", KEYWORD + b"\1\1\0\0" + zlib.compress(XMP.encode())),
        chunk(b"tEXt", b"Raw profile type xmp\0" + digits(b"xmp", XMP.encode())[:-3]),
        chunk(b"tEXt", b"Raw profile type exif\0" + digits(b"exif", b"no TIFF structure")),
        chunk(b"tEXt", b"Raw profile type APP1\0" + digits(b"APP1", XMP.encode())),
        chunk(b"tEXt", b"Raw profile type exif\0\n" + b"exif\n" + b"\n" * 50_000),
    ],
    ids=len,
)
def test_metadata_that_cannot_be_read_is_left_out_as_a_whole(text: bytes) -> None:
    data = png(2, text + chunk(b"tEXt", b"Title\0hello"))
    for turn in ("flip", "orient"):
        ours = processed(data, turn).data
        assert b"adobe" not in ours
        assert b"profile" not in ours
        assert tags(ours, ".png")["PNG:Title"] == "hello"


def test_of_several_texts_with_the_same_metadata_the_first_counts() -> None:
    other = XMP.replace("café", "tea")
    data = png(2, XMP_TEXTS["zTXt"] + chunk(b"iTXt", KEYWORD + b"\0\0\0\0" + other.encode()))
    for output, suffix in ((None, ".png"), (Format.JPEG, ".jpg")):
        found = tags(processed(data, "flip", output=output).data, suffix, "-XMP:all")
        assert found["XMP-xmp:CreatorTool"] == "café"


def test_a_png_of_imagemagick_with_everything_comes_out_upright() -> None:
    photo = with_exif(
        with_segment(encoded(natural((16, 8)), "JPEG"), 0xE1, XMP_PREFIX + XMP.encode()), exif_block(6).data
    )
    data = run("convert", "jpeg:-", "-set", "exif:Orientation", "6", "png:-", given=photo)
    for output, suffix in ((None, ".png"), (Format.PNG, ".png"), (Format.JPEG, ".jpg")):
        found = tags(processed(data, "orient", output=output).data, suffix)
        orientations = {value for tag, value in found.items() if tag.lower().endswith("orientation")}
        assert orientations == {"1"}
        assert found["XMP-xmp:CreatorTool"] == "café"
        assert found["IFD0:Make"] == "Imaginary"


def test_texts_of_any_number_are_searched_at_once() -> None:
    texts = chunk(b"tEXt", b"a\0" + noise(10)) * 20_000
    assert processed(with_chunk(png(2), b"tEXt", b"b\0c")[:-12] + texts + END, "flip").result.width == SIZE[0]
