"""Metadata as strangers write it, judged by exiftool."""

import struct
from functools import cache
from itertools import permutations, product

import pytest
from PIL.Image import Transpose
from support.oracle import Grid, expected
from support.programs import run, run_on, tags
from support.specimens import (
    MAKER_NOTE,
    XMP,
    chunk,
    encoded,
    exif_block,
    natural,
    processed,
    with_exif,
    with_segment,
)

from server.imaging.codecs import Format
from server.imaging.metadata.exif import kept_exif
from server.imaging.metadata.photoshop import kept_iptc, kept_photoshop
from server.imaging.metadata.policy import Policy, Strip
from server.imaging.metadata.xmp import kept_xmp
from server.imaging.recipe import ImagePath

SIZE = (64, 48)
TURNS = ("flip", "flop", "rotate-90", "rotate-180", "rotate-270", "transpose", "transverse", "orient")
#: Formats with places for EXIF and XMP, and their extensions.
FORMATS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "TIFF": ".tif", "AVIF": ".avif"}
#: From a format with every kind of metadata to each other one, and back.
ROUND_TRIPS = [pair for other in FORMATS if other != "JPEG" for pair in (("JPEG", other), (other, "JPEG"))]


@cache
def plain(container: str) -> bytes:
    options = {"quality": 90, "subsampling": 0} if container == "JPEG" else {}
    return encoded(natural(SIZE), container, **options)


def tagged(data: bytes, suffix: str, *assignments: str) -> bytes:
    """Write tags with exiftool."""
    return run_on("exiftool", data, suffix, "-n", "-o", "-", *assignments, "{}")


# --- Geometry -------------------------------------------------------------------------------------

GEOMETRY = (
    "-EXIF:ExifImageWidth=64", "-EXIF:ExifImageHeight=48",
    "-EXIF:SubjectArea=16 8 4 6", "-EXIF:SubjectLocation=16 8",
    "-EXIF:XResolution=300", "-EXIF:YResolution=150",
    "-EXIF:FocalPlaneXResolution=1000", "-EXIF:FocalPlaneYResolution=500",
    "-InteropIFD:RelatedImageWidth=64", "-InteropIFD:RelatedImageHeight=48", "-IFD0:Make=Imaginary",
    "-XMP-tiff:ImageWidth=64", "-XMP-tiff:ImageHeight=48",
    "-XMP-exif:ExifImageWidth=64", "-XMP-exif:ExifImageHeight=48",
    "-XMP-tiff:XResolution=300", "-XMP-tiff:YResolution=150",
    "-XMP-exif:FocalPlaneXResolution=1000", "-XMP-exif:FocalPlaneYResolution=500",
    *(f"-XMP-exif:SubjectArea={number}" for number in (16, 8, 4, 6)),
    (
        "-XMP-mwg-rs:RegionInfo={AppliedToDimensions={W=64,H=48},RegionList=[{Name=Ada|, the first,"
        "Rotation=0.5,Type=Face,Area={X=0.25,Y=0.2,W=0.1,H=0.3,Unit=normalized}}]}"
    ),
    "-XMP-MP:RegionInfoMP={Regions=[{PersonDisplayName=Ada,Rectangle=0.2|, 0.05|, 0.1|, 0.3}]}",
    "-XMP-GPano:PoseHeadingDegrees=30", "-XMP-crs:CropTop=0.1", "-XMP-crs:HasCrop=1", "-XMP-crs:Sharpness=3",
    "-XMP-dc:Title=A & B < C",
)  # fmt: skip


@cache
def measured(container: str) -> bytes:
    suffix = FORMATS[container]
    fields = [one for one in GEOMETRY if container != "TIFF" or not one.startswith("-InteropIFD")]
    return tagged(plain(container), suffix, *fields)


def turned_point(point: tuple[int, int], turn: str, orientation: int) -> tuple[int, int]:
    """Follow one pixel."""
    pixels = tuple((x, y) == point for y in range(SIZE[1]) for x in range(SIZE[0]))
    grid = expected(Grid(*SIZE, pixels), turn, orientation)
    row, column = divmod(grid.pixels.index(True), grid.width)
    return column, row


def turned_box(box: tuple[float, ...], turn: str, orientation: int) -> list[float]:
    """Follow a box of x, y, width and height, all multiples of 0.05, on a grid of as many cells."""
    x, y, width, height = (round(number * 20) for number in box)
    cells = tuple(
        x <= left < x + width and y <= top < y + height for top, left in product(range(20), repeat=2)
    )
    grid = expected(Grid(20, 20, cells), turn, orientation)
    found = [divmod(index, 20) for index, is_inside in enumerate(grid.pixels) if is_inside]
    (top, left), (bottom, right) = map(min, zip(*found, strict=True)), map(max, zip(*found, strict=True))
    return [left / 20, top / 20, (right - left + 1) / 20, (bottom - top + 1) / 20]


def numbers(text: str) -> list[float]:
    return [round(float(number), 9) for number in text.replace(",", " ").split()]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize(
    ("container", "orientation"), [*((one, 1) for one in FORMATS), ("JPEG", 6), ("PNG", 5), ("TIFF", 8)]
)
def test_sides_areas_and_regions_turn_with_the_image(container: str, orientation: int, turn: str) -> None:
    check_oriented(container, orientation, turn)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_sides_areas_and_regions_are_right_of_an_image_made_upright(orientation: int) -> None:
    check_oriented("JPEG", orientation, "orient")


def check_oriented(container: str, orientation: int, turn: str) -> None:
    data = tagged(measured(container), FORMATS[container], f"-IFD0:Orientation={orientation}")
    check(data, container, orientation, turn, None)


@pytest.mark.parametrize(("source", "target"), ROUND_TRIPS)
def test_sides_areas_and_regions_turn_with_the_image_into_every_format(source: str, target: str) -> None:
    form = Format(target.lower())
    check(measured(source), source, 1, "rotate-90", form)


def check(data: bytes, container: str, orientation: int, turn: str, output: Format | None) -> None:
    answer = processed(data, turn, output=output)
    found = tags(answer.data, f".{answer.result.format}")
    pixels = tuple((x, y) for y in range(SIZE[1]) for x in range(SIZE[0]))
    wanted = expected(Grid(*SIZE, pixels), turn, orientation)
    swaps = wanted.width != SIZE[0]
    is_same = wanted.pixels == pixels
    width, height = wanted.size
    assert (answer.result.width, answer.result.height) == wanted.size
    has_ifd0 = answer.result.format is not Format.AVIF
    resolution = [150, 300] if swaps else [300, 150]
    focal = [500, 1000] if swaps else [1000, 500]
    area = [*turned_point((16, 8), turn, orientation), *([6, 4] if swaps else [4, 6])]
    for group, sides in (("ExifIFD:Exif", "Image"), ("XMP-exif:Exif", "Image"), ("XMP-tiff:", "Image")):
        assert [int(found[f"{group}{sides}{side}"]) for side in ("Width", "Height")] == [width, height]
    for group in ("XMP-tiff", *(["IFD0"] if has_ifd0 else [])):
        assert [float(found[f"{group}:{axis}Resolution"]) for axis in "XY"] == resolution, group
    for group in ("ExifIFD", "XMP-exif"):
        assert [float(found[f"{group}:FocalPlane{axis}Resolution"]) for axis in "XY"] == focal, group
        assert numbers(found[f"{group}:SubjectArea"]) == area, group
    assert numbers(found["ExifIFD:SubjectLocation"]) == area[:2]
    if "TIFF" not in (container, answer.result.format.upper()):
        related = [int(found[f"InteropIFD:RelatedImage{side}"]) for side in ("Width", "Height")]
        assert related == [width, height]
    dimensions = [int(found[f"XMP-mwg-rs:RegionAppliedToDimensions{side}"]) for side in "WH"]
    assert dimensions == [width, height]
    box = turned_box((0.2, 0.05, 0.1, 0.3), turn, orientation)
    region = [float(found[f"XMP-mwg-rs:RegionArea{name}"]) for name in "XYWH"]
    assert region == pytest.approx([box[0] + box[2] / 2, box[1] + box[3] / 2, *box[2:]])
    assert numbers(found["XMP-MP:RegionRectangle"]) == pytest.approx(box)
    is_mirrored = (turn in ("flip", "flop", "transpose", "transverse")) != (orientation in (2, 4, 5, 7))
    assert float(found["XMP-mwg-rs:RegionRotation"]) == (-0.5 if is_mirrored else 0.5)
    assert found["XMP-mwg-rs:RegionName"] == "Ada, the first"
    assert found["XMP-dc:Title"] == "A & B < C"
    assert found["XMP-crs:Sharpness"] == "3"
    assert ("XMP-GPano:PoseHeadingDegrees" in found) is is_same
    assert ("XMP-crs:CropTop" in found) is ("XMP-crs:HasCrop" in found) is is_same
    assert found["IFD0:Make"] == "Imaginary"


# --- EXIF and XMP by hand -------------------------------------------------------------------------


def exif_of(order: str, *entries: tuple[int, int, int, bytes]) -> bytes:
    """Lay out a directory of fields, each of at most four bytes: tag, type, count, value."""
    fields = b"".join(
        struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
        for tag, kind, count, value in entries
    )
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(entries))
    return head + fields + bytes(4)


WHOLE_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


def with_exif_in(container: str, exif: bytes) -> bytes:
    image = natural((24, 16))
    if container == "PNG":
        data = encoded(image, "PNG")
        return data[:33] + chunk(b"eXIf", exif) + data[33:]
    if container == "JPEG":
        return with_exif(encoded(image, "JPEG"), exif)
    return encoded(image, container, exif=exif)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("kind", "count"), [(1, 1), (4, 1), (6, 1), (8, 1), (9, 1), (3, 2), (1, 4), (3, 0), (3, 3), (4, 2)]
)
def test_an_orientation_of_another_type_or_count_is_applied_and_reset(
    container: str, order: str, kind: int, count: int
) -> None:
    values = struct.pack(f"{order}{max(1, count)}{WHOLE_TYPES[kind]}", *([6] * max(1, count)))
    at = values if len(values) <= 4 else struct.pack(order + "I", 8 + 2 + 12 + 4)
    exif = exif_of(order, (0x0112, kind, count, at)) + (values if len(values) > 4 else b"")
    answer = processed(with_exif_in(container, exif), "orient")
    assert (answer.result.width, answer.result.height) == (16, 24)
    assert tags(answer.data, FORMATS[container], "-Orientation")["IFD0:Orientation"] == "1"
    again = processed(answer.data, "orient")
    assert (again.result.width, again.result.height) == (16, 24)


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_out_of_its_range_turns_nothing(value: int) -> None:
    exif = exif_of("<", (0x0112, 1, 1, bytes([value])))
    assert processed(with_exif_in("JPEG", exif), "orient").result.width == 24


RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
NAMESPACES = (
    f'xmlns:r="{RDF}" xmlns:t="http://ns.adobe.com/tiff/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/" '
    'xmlns:m="http://www.metadataworkinggroup.com/schemas/regions/" '
    'xmlns:a="http://ns.adobe.com/xmp/sType/Area#" xmlns:d="http://ns.adobe.com/xap/1.0/sType/Dimensions#"'
)
REGION_SYNTAXES = {
    "attributes": "<m:Area a:x='.25' a:y=\"0.2\" a:w='0.1' a:h='0.3' a:unit='normalized'/>",
    "elements": "<m:Area r:parseType='Resource'><a:h>0.3</a:h><a:w> 0.1 </a:w><a:y>0.2</a:y>"
    "<a:x>0.25</a:x></m:Area>",
    "description": "<m:Area><r:Description a:x='0.25' a:y='0.2'><a:w>0.1</a:w><a:h>0.3</a:h>"
    "</r:Description></m:Area>",
    "pixels": "<m:Area a:x='16' a:y='9.6' a:w='6.4' a:h='14.4' a:unit='pixel'/>",
}  # fmt: skip


def packet(area: str, start: str = "") -> str:
    return (
        f"{start}<r:RDF {NAMESPACES}><r:Description r:about='' t:Orientation='1'><dc:format>image/jpeg"
        "</dc:format><m:Regions r:parseType='Resource'><m:AppliedToDimensions d:w='64' d:h='48'/>"
        f"<m:RegionList><r:Bag><r:li><r:Description m:Name='A&amp;&#66;'>{area}</r:Description></r:li>"
        "</r:Bag>"
        "</m:RegionList></m:Regions></r:Description></r:RDF>"
    )


def with_xmp(text: bytes) -> bytes:
    return with_segment(plain("JPEG"), 0xE1, XMP + text)


@pytest.mark.parametrize("syntax", REGION_SYNTAXES)
@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le"])
def test_regions_turn_in_any_syntax_and_coding(syntax: str, coding: str) -> None:
    start = "\ufeff" if coding == "utf-16-be" else ""
    data = with_xmp(packet(REGION_SYNTAXES[syntax], start).encode(coding))
    found = tags(processed(data, "rotate-90").data, ".jpg", "-XMP:all")
    wanted = [0.8, 0.25, 0.3, 0.1] if syntax != "pixels" else [38.4, 16, 14.4, 6.4]
    assert [float(found[f"XMP-mwg-rs:RegionArea{name}"]) for name in "XYWH"] == wanted
    assert [found[f"XMP-mwg-rs:RegionAppliedToDimensions{name}"] for name in "WH"] == ["48", "64"]
    assert found["XMP-mwg-rs:RegionName"] == "A&B"
    assert found["XMP-dc:Format"] == "image/jpeg"


@pytest.mark.parametrize(
    "area",
    [
        "<m:Area a:x='0.25' a:y='nan' a:w='0.1' a:h='0.3'/>",
        "<m:Area a:x='0.25' a:w='0.1' a:h='0.3'/>",
        "<m:Area a:x='0.25' a:y='0.2' a:unit='inch'/>",
        "<m:Area a:x='1/4' a:y='0.2' a:w='0.1' a:h='0.3'/>",
    ],
)
def test_a_region_that_cannot_be_turned_goes_with_its_siblings(area: str) -> None:
    found = tags(processed(with_xmp(packet(area).encode()), "flop").data, ".jpg", "-XMP:all")
    assert not [name for name in found if "Region" in name]
    assert found["XMP-dc:Format"] == "image/jpeg"


@pytest.mark.parametrize(
    "text",
    [
        packet(REGION_SYNTAXES["attributes"])[:-5].encode(),
        packet(REGION_SYNTAXES["attributes"]).encode("utf-32"),
        packet(REGION_SYNTAXES["attributes"], "<!DOCTYPE r:RDF [<!ENTITY a 'b'>]>").encode(),
        packet("<m:Area>" * 60 + "</m:Area>" * 60).encode(),
        packet(
            "".join(f"<n:b xmlns:n='http://example.org/{number}/sType/Area#'/>" for number in range(200))
        ).encode(),
    ],
)
def test_a_packet_that_cannot_be_read_does_not_stay_with_its_regions(text: bytes) -> None:
    assert b"Area" not in processed(with_xmp(text), "flip").data.replace(b"\0", b"")
    assert text in processed(with_xmp(text), "orient").data or b"\0" in text


@pytest.mark.parametrize("coding", ["utf-8", "utf-16"])
@pytest.mark.parametrize(
    "description",
    [
        "<r:Description t:Orientation='6'/>",
        '<r:Description t:Orientation = "8"/>',
        "<r:Description><t:Orientation> 6 </t:Orientation></r:Description>",
        "<r:Description><t:Orientation>6<!-- b --></t:Orientation></r:Description>",
    ],
)
def test_an_xmp_orientation_is_reset_in_any_syntax(description: str, coding: str) -> None:
    text = f"<r:RDF {NAMESPACES}>{description}</r:RDF>"
    found = tags(processed(with_xmp(text.encode(coding)), "orient").data, ".jpg", "-XMP:all")
    assert found == {"XMP-tiff:Orientation": "1"}


def test_a_packet_without_geometry_stays_byte_for_byte() -> None:
    text = f"<r:RDF {NAMESPACES}><r:Description dc:format='a' ><!-- b --></r:Description></r:RDF>  ".encode()
    assert text in processed(with_xmp(text), "rotate-90").data


def test_a_second_packet_with_regions_is_left_out() -> None:
    data = with_segment(with_xmp(packet(REGION_SYNTAXES["attributes"]).encode()), 0xE1, XMP + b"<a b='c'/>")
    assert b"a:x" not in processed(data, "flip").data
    assert processed(data, "orient").data.count(b"a:x=") == 1


def test_an_area_of_another_size_than_the_image_is_left_out() -> None:
    data = tagged(measured("JPEG"), ".jpg", "-EXIF:ExifImageWidth=32", "-XMP-exif:ExifImageWidth=32")
    found = tags(processed(data, "flip").data, ".jpg")
    assert not [name for name in found if "Subject" in name]
    assert found["ExifIFD:ExifImageWidth"] == found["XMP-exif:ExifImageWidth"] == "64"
    assert found["IFD0:Make"] == "Imaginary"


def test_a_lone_resolution_becomes_the_other() -> None:
    data = with_exif(plain("JPEG"), exif_of("<", (0x011A, 3, 1, b"\x48\0")))
    assert b"\x1b\1\3\0\1\0\0\0\x48\0" in processed(data, "rotate-90").data
    assert b"\x1a\1\3\0\1\0\0\0\x48\0" in processed(data, "flip").data


@pytest.mark.parametrize("pointer", [0, 4, 8, 30, 2**32 - 1])
def test_a_pointer_that_leads_nowhere_does_no_harm(pointer: int) -> None:
    entries = ((0x0100, 3, 1, b"\x40\0"), (0x8769, 4, 1, struct.pack("<I", pointer)))
    data = with_exif(plain("JPEG"), exif_of("<", *entries))
    found = tags(processed(data, "rotate-90").data, ".jpg", "-IFD0:all")
    assert found["IFD0:ImageWidth"] == "48"


# --- Strip ----------------------------------------------------------------------------------------

PLACES = (
    "-GPS:GPSLatitude=48.1", "-GPS:GPSLatitudeRef=N", "-GPS:GPSLongitude=11.5", "-GPS:GPSLongitudeRef=E",
    "-GPS:GPSAltitude=519", "-GPS:GPSDateStamp=2020:01:02", "-GPS:GPSAreaInformation=Town hall",
    "-XMP-exif:GPSLatitude=48.1", "-XMP-exif:GPSLongitude=11.5", "-XMP-exif:GPSAltitude=519",
    "-XMP-photoshop:City=Munich", "-XMP-photoshop:State=Bavaria", "-XMP-photoshop:Country=Germany",
    "-XMP-iptcCore:Location=Marienplatz", "-XMP-iptcCore:CountryCode=DE",
    "-XMP-iptcExt:LocationCreated={City=Munich,GPSLatitude=48.1}", "-XMP-iptcExt:LocationShown={City=Munich}",
    "-XMP-dc:Coverage=Munich", "-XMP-dwc:DCTermsLocation={DecimalLatitude=48.1,Municipality=Munich}",
)  # fmt: skip
IPTC_PLACES = (
    "-IPTC:City=Munich", "-IPTC:Sub-location=Marienplatz", "-IPTC:Province-State=Bavaria",
    "-IPTC:Country-PrimaryLocationName=Germany", "-IPTC:Country-PrimaryLocationCode=DEU",
    "-IPTC:ContentLocationName=Munich", "-IPTC:ContentLocationCode=DEU",
)  # fmt: skip
#: Written, and found again whatever is left out.
CREDITS = {
    "IFD0:Artist": "Ada", "IFD0:Copyright": "(c) Ada", "ExifIFD:ColorSpace": "65535", "ExifIFD:Gamma": "2.2",
    "XMP-dc:Rights": "(c) Ada", "XMP-dc:Creator": "Ada", "XMP-photoshop:Credit": "The agency",
    "XMP-xmpRights:UsageTerms": "None", "XMP-xmpRights:WebStatement": "https://example.org/",
    "XMP-plus:LicensorName": "The licensor", "XMP-cc:License": "https://example.org/",
}  # fmt: skip
IPTC_CREDITS = {
    "IPTC:By-line": "Ada", "IPTC:Credit": "The agency", "IPTC:CopyrightNotice": "(c) Ada",
    "Photoshop:CopyrightFlag": "1", "Photoshop:URL": "https://example.org/",
}  # fmt: skip
#: Written, and private.
PRIVATE = {
    "IFD0:Make": "Imaginary", "IFD0:ImageDescription": "A cat", "IFD0:Software": "Some",
    "ExifIFD:OwnerName": "Bob",
    "ExifIFD:SerialNumber": "4711", "ExifIFD:DateTimeOriginal": "2020:01:02 03:04:05",
    "ExifIFD:UserComment": "A cat", "ExifIFD:LensModel": "A lens",
    "XMP-dc:Title": "A cat", "XMP-dc:Subject": "Cats", "XMP-xmp:CreatorTool": "Some",
    "XMP-xmpMM:DocumentID": "uuid:1",
    "XMP-aux:SerialNumber": "4711", "XMP-iptcCore:CreatorWorkEmail": "ada@example.org",
    "XMP-iptcExt:PersonInImage": "Bob", "XMP-photoshop:Instructions": "Feed",
}  # fmt: skip
IPTC_PRIVATE = {"IPTC:Caption-Abstract": "A cat", "IPTC:Keywords": "Cats"}
STRIPPED_FORMATS = FORMATS | {"GIF": ".gif"}
HOLDS_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")
HOLDS_IPTC = ("JPEG", "TIFF")
SOUGHT = (
    "-EXIF:all", "-XMP:all", "-IPTC:all", "-Photoshop:all", "-MakerNotes:all", "-Comment",
    "-PNG:Author", "-PNG:Title", "-PNG:Copyright", "-PNG:Comment",
)  # fmt: skip
#: What EXIF itself needs, and what describes the pixels of a TIFF.
STRUCTURE = {
    "ExifIFD:ExifVersion", "ExifIFD:ComponentsConfiguration", "ExifIFD:FlashpixVersion",
    "IFD0:YCbCrPositioning",
    "XMP-x:XMPToolkit", "Photoshop:IPTCDigest", "IPTC:ApplicationRecordVersion", "IFD0:Orientation",
    *(f"IFD0:{name}" for name in ("ImageWidth", "ImageHeight", "BitsPerSample", "Compression", "StripOffsets",
    "PhotometricInterpretation", "SamplesPerPixel", "RowsPerStrip", "StripByteCounts", "PlanarConfiguration",
    "ColorMap", "XResolution", "YResolution", "ResolutionUnit")),
}  # fmt: skip


def assigned(found: dict[str, str]) -> list[str]:
    return [f"-{name}={value}" for name, value in found.items()]


@cache
def storied(container: str) -> bytes:
    """Return an image with metadata of every kind that its format can hold."""
    data = plain(container)
    wanted = [*PLACES, *assigned(CREDITS | PRIVATE)]
    if container in HOLDS_IPTC:
        wanted += [*IPTC_PLACES, *assigned(IPTC_CREDITS | IPTC_PRIVATE)]
    if container in ("JPEG", "GIF", "PNG"):
        wanted.append("-Comment=A cat")
    if container == "PNG":
        wanted += ["-PNG:Author=Ada", "-PNG:Copyright=(c) Ada", "-PNG:Title=A cat"]
    if container not in HOLDS_EXIF:
        wanted = [one for one in wanted if not one.startswith(("-GPS", "-IFD0", "-ExifIFD"))]
    if container == "JPEG":
        data = with_exif(data, exif_block(1).data)
    return tagged(data, STRIPPED_FORMATS[container], *wanted)


def wanted_tags(container: str, *groups: dict[str, str]) -> dict[str, str]:
    """Return what a format can hold of these."""
    return {
        name: value
        for group in groups
        for name, value in group.items()
        if container in HOLDS_EXIF or not name.startswith(("IFD0", "ExifIFD"))
        if container in HOLDS_IPTC or not name.startswith(("IPTC", "Photoshop"))
    }


ROUTES = pytest.mark.parametrize(
    ("container", "turn", "path"),
    [
        *((container, turn, None) for container in STRIPPED_FORMATS for turn in ("flip", "orient")),
        ("JPEG", "flip", "pixels"),
        ("JPEG", "rotate-90", "lossless"),
        ("TIFF", "rotate-90", None),
        ("PNG", "transpose", None),
    ],
)


@ROUTES
def test_nothing_is_left_out_unless_it_is_asked_for(
    container: str, turn: str, path: ImagePath | None
) -> None:
    data = storied(container)
    found = tags(processed(data, turn, path=path).data, STRIPPED_FORMATS[container], *SOUGHT)
    before = tags(data, STRIPPED_FORMATS[container], *SOUGHT)
    changed = {"XMP-x:XMPToolkit", "IFD1:ThumbnailImage"}
    gone = {name for name in before if name not in found and not name.startswith("IFD1:")}
    assert not gone - STRUCTURE - changed
    assert wanted_tags(container, CREDITS, IPTC_CREDITS, PRIVATE, IPTC_PRIVATE).items() <= found.items()
    assert len(tags(data, STRIPPED_FORMATS[container], "-Location:all")) > 10


@ROUTES
def test_no_place_is_left_and_nothing_else_is_missing(
    container: str, turn: str, path: ImagePath | None
) -> None:
    data, suffix = storied(container), STRIPPED_FORMATS[container]
    answer = processed(data, turn, strip=Strip.LOCATION, path=path).data
    assert tags(answer, suffix, "-Location:all", "-GPS:all") == {}
    assert not [word for word in (b"Munich", b"Marienplatz", b"Bavaria", b"Town hall") if word in answer]
    found = tags(answer, suffix, *SOUGHT)
    assert wanted_tags(container, CREDITS, IPTC_CREDITS, PRIVATE, IPTC_PRIVATE).items() <= found.items()
    assert MAKER_NOTE not in answer
    if container in ("JPEG", "GIF", "PNG"):
        assert "A cat" in (found.get("File:Comment"), found.get("PNG:Comment"), found.get("GIF:Comment"))


@ROUTES
def test_nothing_but_credits_and_colours_is_left(container: str, turn: str, path: ImagePath | None) -> None:
    data, suffix = storied(container), STRIPPED_FORMATS[container]
    answer = processed(data, turn, strip=Strip.PRIVATE, path=path).data
    found = tags(answer, suffix, *SOUGHT)
    wanted = wanted_tags(container, CREDITS, IPTC_CREDITS)
    if container == "PNG":
        wanted |= {"PNG:Author": "Ada", "PNG:Copyright": "(c) Ada"}
    assert wanted.items() <= found.items()
    assert found.keys() <= wanted.keys() | STRUCTURE
    words = (b"Munich", b"A cat", b"4711", b"Bob", b"Imaginary", b"Feed", b"A lens", b"uuid")
    assert not [word for word in words if word in answer]


@pytest.mark.parametrize("strip", [Strip.LOCATION, Strip.PRIVATE])
@pytest.mark.parametrize(("source", "target"), [*ROUND_TRIPS, ("JPEG", "GIF"), ("GIF", "PNG")])
def test_what_is_left_out_is_left_out_of_every_other_format(source: str, target: str, strip: Strip) -> None:
    suffix = STRIPPED_FORMATS[target]
    answer = processed(storied(source), "flop", output=Format(target.lower()), strip=strip).data
    assert tags(answer, suffix, "-Location:all", "-GPS:all") == {}
    assert b"Munich" not in answer
    found = tags(answer, suffix, *SOUGHT)
    if strip is Strip.PRIVATE:
        assert found.keys() <= {*CREDITS, *IPTC_CREDITS, *STRUCTURE, "PNG:Author", "PNG:Copyright"}


UNREADABLE = b"<x><exif:GPSLatitude>48.1"
STRIPS = pytest.mark.parametrize("strip", [Strip.LOCATION, Strip.PRIVATE])


@STRIPS
@pytest.mark.parametrize(
    ("marker", "content"),
    [
        (0xE1, XMP + UNREADABLE),
        (0xE1, b"Exif\0\0II*\0\xff\xff\0\0GPS 48.1"),
        (0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(40) + UNREADABLE),
        (0xED, b"Photoshop 3.0\x008BIM\4\4\0\0\0\0\0\x0a\x1c\2\x5a\0\x0548.1"),
        (0xED, b"Photoshop 3.0\x00GPS 48.1"),
        (0xED, b"Photoshop 3.0\x008BIM\4\x22\0\0\0\0\0\4" + b"48.1"),
        (0xE2, b"FPXR\x0048.1"),
        (0xE3, b"Meta\0\x0048.1"),
        (0xEB, b"JP\0\1jumb 48.1"),
        (0xEC, b"PictureInfo 48.1"),
    ],
)
def test_segments_that_cannot_be_read_are_left_out(marker: int, content: bytes, strip: Strip) -> None:
    data = with_segment(plain("JPEG"), marker, content)
    for path in ("lossless", "pixels"):
        assert b"48.1" not in processed(data, "flip", strip=strip, path=path).data
    assert b"48.1" in processed(data, "orient", path="lossless").data or content[:4] == b"Exif"


@STRIPS
def test_second_segments_are_left_out(strip: Strip) -> None:
    text = f"<r:RDF {NAMESPACES}><r:Description dc:coverage='Munich'/></r:RDF>".encode()
    exif = exif_of("<", (0x8298, 2, 4, b"48.1"))
    data = with_exif(with_xmp(text), exif)
    data = with_exif(
        with_segment(data, 0xE1, XMP + text.replace(b"coverage", b"rights")), b"II*\0\x08\0\0\0\0\0"
    )
    answer = processed(data, "flip", strip=strip).data
    assert b"Munich" in answer
    assert b"coverage" not in answer
    assert b"48.1" not in answer


@pytest.mark.parametrize("strip", [Strip.NOTHING, Strip.LOCATION])
def test_an_extension_stays_while_nothing_in_it_is_left_out(strip: Strip) -> None:
    header = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + bytes(8)
    text = f"<r:RDF {NAMESPACES}><r:Description dc:rights='Ada'/></r:RDF>".encode()
    answer = processed(with_segment(plain("JPEG"), 0xE1, header + text), "flip", strip=strip).data
    assert text in answer
    area = packet(REGION_SYNTAXES["attributes"]).encode()
    answer = processed(with_segment(plain("JPEG"), 0xE1, header + area), "flip", strip=strip).data
    assert b"Area" not in answer


@STRIPS
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (b"tEXt", b"exif:GPSLatitude\0" + b"48.1"),
        (b"iTXt", b"Location\0\0\0\0\x0048.1"),
        (b"tEXt", b"Raw profile type exif\0\nexif\n 4\n48.1"),
        (b"tEXt", b"XML:com.adobe.xmp\0" + b"48.1"),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + UNREADABLE),
        (b"iTXt", b"XML:com.adobe.xmp\0\0" + b"48.1"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + b"48.1"),
        (b"eXIf", b"II*\0\xff\xff\0\0GPS 48.1"),
        (b"saFe", b"48.1"),
        (b"caBx", b"48.1"),
    ],
)
def test_chunks_that_say_where_or_cannot_be_read_are_left_out(
    kind: bytes, content: bytes, strip: Strip
) -> None:
    data = plain("PNG")
    data = data[:33] + chunk(kind, content) + data[33:]
    assert b"48.1" not in processed(data, "flip", strip=strip).data


@STRIPS
def test_a_gif_keeps_what_makes_it_move(strip: Strip) -> None:
    data = plain("GIF")
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    loop = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0"
    blocks = loop + b"!\xff\x0bSOMEBODY1.0\4" + b"48.1\0" + b"!\xfe\x05A cat\0"
    answer = processed(data[:start] + blocks + data[start:], "flip", strip=strip).data
    assert loop in answer
    assert b"48.1" not in answer
    assert (b"A cat" in answer) is (strip is Strip.LOCATION)


def resource(number: int, content: bytes) -> bytes:
    return b"8BIM" + struct.pack(">HHL", number, 0, len(content)) + content + bytes(len(content) % 2)


def test_photoshops_coordinates_do_not_outlive_a_turn() -> None:
    across, down = struct.pack(">LHH", 300 << 16, 1, 1), struct.pack(">LHH", 150 << 16, 1, 1)
    paths, flag = resource(0x07D0, b"path" * 8), resource(0x040A, b"\1\0")
    photoshop = (
        b"Photoshop 3.0\0" + resource(0x03ED, across + down) + paths + flag + resource(0x0408, b"guide!")
    )
    data = with_segment(plain("JPEG"), 0xED, photoshop)
    assert photoshop in processed(data, "orient").data
    answer = processed(data, "rotate-90").data
    assert b"Photoshop 3.0\0" + resource(0x03ED, down + across) + flag in answer
    assert b"guide!" not in answer
    found = tags(answer, ".jpg", "-Photoshop:all")
    assert (found["Photoshop:XResolution"], found["Photoshop:YResolution"]) == ("150", "300")


def test_resources_that_run_on_in_the_next_segment_are_read_together() -> None:
    whole = resource(0x0404, b"\x1c\2\x5a\0\6Munich\x1c\2\x50\0\3Ada") + resource(0x040A, b"\1")
    data = plain("JPEG")
    for piece in (whole[20:], whole[:20]):  # each is inserted before the one before it
        data = with_segment(data, 0xED, b"Photoshop 3.0\0" + piece)
    assert tags(data, ".jpg", "-IPTC:all")["IPTC:City"] == "Munich"
    answer = processed(data, "flip", strip=Strip.LOCATION).data
    assert tags(answer, ".jpg", "-IPTC:all", "-Photoshop:CopyrightFlag") == {
        "IPTC:By-line": "Ada",
        "Photoshop:CopyrightFlag": "1",
    }


# --- Into other formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [Strip.NOTHING, Strip.LOCATION, Strip.PRIVATE])
@pytest.mark.parametrize(
    ("source", "target"), [("JPEG", "TIFF"), ("TIFF", "JPEG"), ("JPEG", "PNG"), ("TIFF", "PNG")]
)
def test_iptc_goes_along_into_another_format(source: str, target: str, strip: Strip) -> None:
    suffix = FORMATS[target]
    answer = processed(storied(source), "rotate-90", output=Format(target.lower()), strip=strip).data
    found = tags(answer, suffix, "-IPTC:all")
    wanted = {name: value for name, value in IPTC_CREDITS.items() if name.startswith("IPTC")}
    if strip is not Strip.PRIVATE:
        wanted |= IPTC_PRIVATE
    assert wanted.items() <= found.items()
    assert ("IPTC:City" in found) is (strip is Strip.NOTHING)
    again = processed(answer, "flip", strip=Strip.LOCATION).data
    left = tags(again, suffix, "-IPTC:all")
    assert left.keys() <= found.keys()
    assert "IPTC:By-line" in left
    assert "IPTC:City" not in left
    back = processed(answer, "flip", output=Format.JPEG).data
    assert tags(back, ".jpg", "-IPTC:all").keys() == found.keys()
    assert b"Munich" not in again


IIM = b"\x1c\2\x50\0\3Ada\x1c\2\x5a\0\6Munich\0"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [1, 4, 7])
@pytest.mark.parametrize("swapped", [False, True])
def test_iptc_in_a_tiff_of_any_type_and_order_stays_readable(order: str, kind: int, swapped: bool) -> None:  # noqa: FBT001
    """Many writers declare the bytes as LONG, and some have swapped them as such."""
    content = IIM
    if swapped and kind == 4:
        content = b"".join(IIM[start : start + 4][::-1] for start in range(0, len(IIM), 4))
    count = len(content) // (4 if kind == 4 else 1)
    offset = 8 + 2 + 12 * 9 + 4
    fields = (
        (256, 3, 1, struct.pack(order + "H", 2)),
        (257, 3, 1, struct.pack(order + "H", 2)),
        (258, 3, 1, struct.pack(order + "H", 8)),
        (259, 3, 1, struct.pack(order + "H", 1)),
        (262, 3, 1, struct.pack(order + "H", 1)),
        (273, 4, 1, struct.pack(order + "I", offset + len(content))),
        (278, 3, 1, struct.pack(order + "H", 2)),
        (279, 4, 1, struct.pack(order + "I", 4)),
        (33723, kind, count, struct.pack(order + "I", offset)),
    )
    data = exif_of(order, *fields) + content + b"\1\2\3\4"
    for output, suffix in ((None, ".tif"), (Format.JPEG, ".jpg")):
        found = tags(
            processed(data, "flip", output=output).data, suffix, "-IPTC:all", "-validate", "-warning"
        )
        assert found["IPTC:By-line"] == "Ada"
        found = tags(processed(data, "flip", output=output, strip=Strip.LOCATION).data, suffix, "-IPTC:all")
        assert found == {"IPTC:By-line": "Ada"}


COMMENTED = ("JPEG", "GIF", "PNG")
TEXTS = {"ASCII": "A cat", "Latin-1": "Café", "Greek": "Γάτα"}


def comment_of(data: bytes, suffix: str) -> str:
    found = tags(data, suffix, "-Comment")
    (comment,) = found.values()
    return comment


@pytest.mark.parametrize("text", TEXTS.values())
@pytest.mark.parametrize(("source", "target"), list(permutations(COMMENTED, 2)))
def test_a_comment_goes_along_into_another_format(source: str, target: str, text: str) -> None:
    suffixes = {"JPEG": ".jpg", "GIF": ".gif", "PNG": ".png"}
    data = tagged(plain(source), suffixes[source], f"-Comment={text}")
    form = Format(target.lower())
    assert comment_of(processed(data, "flip", output=form).data, suffixes[target]) == text
    assert (
        comment_of(processed(data, "flip", output=form, strip=Strip.LOCATION).data, suffixes[target]) == text
    )
    assert text.encode() not in processed(data, "flip", output=form, strip=Strip.PRIVATE).data


def test_a_comment_in_latin_1_is_read_as_such() -> None:
    data = with_segment(with_segment(plain("JPEG"), 0xFE, b"Caf\xe9\0"), 0xFE, b"A cat")
    answer = processed(data, "flip", output=Format.PNG).data
    assert b"tEXtComment\0A cat\nCaf\xe9" in answer


@pytest.mark.parametrize("target", ["JPEG", "TIFF", "WEBP", "AVIF"])
def test_texts_of_a_png_become_exif_where_there_is_none(target: str) -> None:
    texts = {
        "Description": "Γάτα",
        "Author": "Ada",
        "Copyright": "(c) Ada",
        "Software": "Some",
        "Title": "Cats",
    }
    data = tagged(plain("PNG"), ".png", *(f"-PNG:{name}={text}" for name, text in texts.items()))
    form, suffix = Format(target.lower()), FORMATS[target]
    wanted = {
        "IFD0:ImageDescription": "Γάτα", "IFD0:Artist": "Ada", "IFD0:Copyright": "(c) Ada",
        "IFD0:Software": "Some", "IFD0:DocumentName": "Cats",
    }  # fmt: skip
    sought = [f"-{name}" for name in wanted]
    assert tags(processed(data, "flip", output=form).data, suffix, *sought) == wanted
    private = tags(processed(data, "flip", output=form, strip=Strip.PRIVATE).data, suffix, *sought)
    assert private == {"IFD0:Artist": "Ada", "IFD0:Copyright": "(c) Ada"}


@pytest.mark.parametrize("source", ["WEBP", "GIF"])
def test_an_animation_keeps_its_xmp_in_another_format(source: str) -> None:
    options = {"save_all": True, "append_images": [natural(SIZE).rotate(90)], "duration": 100, "loop": 0}
    suffix = STRIPPED_FORMATS[source]
    data = tagged(encoded(natural(SIZE), source, **options), suffix, "-XMP-dc:Title=A cat")
    for target in {"PNG", "WEBP", "GIF"} - {source}:
        answer = processed(data, "flip", output=Format(target.lower()))
        assert answer.result.frames == 2
        found = tags(answer.data, STRIPPED_FORMATS[target], "-XMP-dc:all")
        assert found == {"XMP-dc:Title": "A cat"}


# --- Hostile --------------------------------------------------------------------------------------

POLICIES = pytest.mark.parametrize(
    "policy",
    [
        Policy(Transpose.ROTATE_90, SIZE),
        Policy(Transpose.TRANSVERSE, SIZE, Strip.LOCATION),
        Policy(None, SIZE, Strip.PRIVATE),
    ],
)


@POLICIES
def test_exif_survives_every_cut_and_every_byte(policy: Policy) -> None:
    camera = (
        (0x9214, 3, 2, struct.pack("<HH", 16, 8)),
        (0xA002, 4, 1, b"\x40\0\0\0"),
        (0xA214, 3, 2, b"\1\0\2\0"),
    )
    inner = exif_of("<", *camera)[8:]
    main = (
        (0x0100, 3, 1, b"\x40\0"),
        (0x0112, 1, 1, b"\6"),
        (0x8298, 2, 4, b"Ada\0"),
        (0x8769, 4, 1, b"\x3e\0\0\0"),
    )
    whole = exif_of("<", *main) + inner
    assert whole.index(inner) == 0x3E
    for end in range(len(whole)):
        kept_exif(whole[:end], policy)
    for index in range(len(whole)):
        for value in (0, 1, 255):
            kept_exif(whole[:index] + bytes([value]) + whole[index + 1 :], policy)


@POLICIES
def test_xmp_survives_every_cut_and_every_byte(policy: Policy) -> None:
    whole = packet(REGION_SYNTAXES["elements"]).encode()
    for end in range(len(whole)):
        kept_xmp(whole[:end], policy)
    for index in range(len(whole)):
        for value in b"\0<'1\xff":
            kept_xmp(whole[:index] + bytes([value]) + whole[index + 1 :], policy)


@pytest.mark.parametrize(
    "bomb",
    [
        b"<a>" + b"<b/>" * 500_000 + b"</a>",
        b"<a " + b" ".join(b"ImageWidth%d=''" % number for number in range(100_000)) + b"/>",
        b"<a>" * 100_000,
        b"<" + b"a" * 1_000_000 + b"ImageWidth/>",
        b":" + b"Orientation>1</" * 100_000,
        b"<a " + b"location" * 100_000 + b"-=''/>",
    ],
)
def test_no_packet_costs_more_than_its_length(bomb: bytes) -> None:
    for strip in (Strip.NOTHING, Strip.LOCATION):
        policy = Policy(Transpose.ROTATE_90, SIZE, strip)
        assert kept_xmp(bomb, policy) in {b"", bomb}


def test_no_resources_or_datasets_cost_more_than_their_length() -> None:
    empty = resource(0x0404, b"") * 200_000
    assert kept_photoshop(empty, Policy(None, SIZE, Strip.LOCATION)) == b""
    assert len(kept_photoshop(empty, Policy(Transpose.ROTATE_90, SIZE))) == len(empty)
    assert kept_iptc(b"\x1c\2\x50\0\0" * 200_000, Policy(None, SIZE, Strip.PRIVATE)) == b""


@pytest.mark.parametrize("kind", [b"P2", b"P3", b"P5", b"P6"])
def test_comments_of_a_ppm_go_along(kind: bytes) -> None:
    count = 12 if kind in (b"P3", b"P6") else 4
    samples = b"7 " * count if kind in (b"P2", b"P3") else b"7" * count
    data = kind + b"\n# by hand\n2 # and #\n2\n#\n255\n" + samples + b"\n" * (kind in (b"P2", b"P3"))
    raw = b"P5" if kind in (b"P2", b"P5") else b"P6"
    again = processed(data, "flip").data
    assert again.startswith(raw + b"\n# by hand\n# and #\n2 2\n255\n")
    assert run("convert", "pnm:-", "gray:-", given=again) == run("convert", "pnm:-", "gray:-", given=data)
    for output in (Format.JPEG, Format.GIF, Format.PNG):
        named = tags(processed(data, "flip", output=output).data, f".{output}", "-Comment")
        assert [value.replace("..", ".") for value in named.values()] == ["by hand.and #"], output
    assert b"hand" not in processed(data, "flip", strip=True).data


def test_a_comment_of_every_frame_of_a_gif_is_one() -> None:
    frames = [natural(SIZE, "L").point(lambda level, at=at: level // at) for at in (1, 2, 3)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
    control = b"!\xf9\x04"
    assert data.count(control) == 3
    data = data.replace(control, b"!\xfe\x05A cat\0" + control)
    assert comment_of(processed(data, "flip", output=Format.PNG).data, ".png") == "A cat"
    assert processed(data, "flip").data.count(b"A cat") == 3
