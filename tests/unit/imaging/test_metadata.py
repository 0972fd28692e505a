"""EXIF, XMP, Photoshop resources and profiles: what is changed in them, and that nothing else is."""

import struct
from itertools import pairwise

import pytest
from PIL import Image, ImageCms

from server.imaging.metadata.exif import EXIF_PREFIX, kept_exif, orientation_of, without_orientation
from server.imaging.metadata.icc import is_srgb, kept_icc
from server.imaging.metadata.ifd import Entry, Reader, exif_from
from server.imaging.metadata.photoshop import kept_photoshop
from server.imaging.metadata.policy import Policy
from server.imaging.metadata.xmp import kept_xmp, without_companions

SHORT, LONG = 3, 4
SAME = Policy()
MAKE, ORIENTATION = 0x010F, 0x0112
THUMBNAIL = b"\xff\xd8thumbnail\xff\xd9"


def entry(order: str, tag: int, kind: int, value: int) -> bytes:
    form = "HHLHH" if kind == SHORT else "HHLL"
    values = (value, 0) if kind == SHORT else (value,)
    return struct.pack(order + form, tag, kind, 1, *values)


def exif(order: str, orientation: int, *, thumbnail: bytes = THUMBNAIL, tail: bytes = b"") -> bytes:
    """Return EXIF with a make outside its entry, an orientation, and a thumbnail in a second directory."""
    first, second = 8, 60
    make, small = 50, 100
    structure = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "L", first)
    structure += struct.pack(order + "H", 2)
    structure += struct.pack(order + "HHLL", MAKE, 2, 6, make)
    structure += entry(order, ORIENTATION, SHORT, orientation) + struct.pack(order + "L", second)
    structure = structure.ljust(make, b"\0") + b"Canon\0"
    structure = structure.ljust(second, b"\0") + struct.pack(order + "H", 2)
    structure += entry(order, 0x0201, LONG, small) + entry(order, 0x0202, LONG, len(thumbnail))
    return structure.ljust(small, b"\0") + thumbnail + tail


ORDERS = pytest.mark.parametrize("order", ["<", ">"])


@ORDERS
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_found_and_reset_in_both_byte_orders(order: str, orientation: int) -> None:
    before = exif(order, orientation)
    assert orientation_of(before) == orientation
    assert orientation_of(EXIF_PREFIX + before) == orientation
    assert orientation_of(kept_exif(before, SAME)) == 1


@ORDERS
def test_every_byte_but_orientation_thumbnail_and_the_link_to_it_stays(order: str) -> None:
    before = exif(order, 6, tail=b"maker note")
    after = kept_exif(before, SAME)
    assert len(after) == len(before)
    changed = {index for index, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    assert changed <= {30, 31, 34, 35, 36, 37, *range(100, 100 + len(THUMBNAIL))}
    assert after.endswith(b"maker note")
    assert b"thumbnail" not in after


@ORDERS
def test_a_thumbnail_at_the_end_is_cut_off(order: str) -> None:
    assert kept_exif(exif(order, 6), SAME) == kept_exif(exif(order, 6, tail=b"."), SAME)[:100]


def test_pillow_sees_no_thumbnail_afterwards() -> None:
    seen = Image.Exif()
    seen.load(kept_exif(exif("<", 6), SAME))
    assert seen[MAKE] == "Canon"
    assert seen.get_ifd(1) == {}


def test_an_orientation_outside_its_range_counts_as_upright() -> None:
    for value in (0, 9, 65535):
        before = exif(">", value)
        assert orientation_of(before) == 1
        assert orientation_of(kept_exif(before, SAME)) == 1


def test_a_thumbnail_that_claims_to_lie_in_the_directory_destroys_nothing() -> None:
    before = bytearray(exif("<", 6))
    before[62 + 8 : 62 + 12] = struct.pack("<L", 8)
    after = kept_exif(bytes(before), SAME)
    assert after[:8] == before[:8]
    assert orientation_of(after) == 1
    assert after[50:56] == b"Canon\0"


def test_malformed_exif_is_dropped_whatever_is_wrong_with_it() -> None:
    whole = exif("<", 6)
    for broken in (
        b"",
        b"II",
        b"II*\0",
        b"XX*\0" + whole[4:],
        whole[:20],
        b"II*\0\xff\xff\xff\xff" + whole[8:],
    ):
        assert kept_exif(broken, SAME) == b""
        assert without_orientation(broken) == b""
        assert orientation_of(broken) == 1


def test_exif_survives_every_cut_and_every_byte() -> None:
    whole = exif("<", 6)
    for end in range(len(whole)):
        kept_exif(whole[:end], SAME)
        without_orientation(whole[:end])
    for index in range(len(whole)):
        for value in (0, 1, 255):
            broken = whole[:index] + bytes([value]) + whole[index + 1 :]
            assert len(kept_exif(broken, SAME)) <= len(whole)
            without_orientation(broken)


@ORDERS
def test_exif_may_end_right_behind_its_entries(order: str) -> None:
    before = exif(order, 6)[:34]
    assert orientation_of(before) == 6
    assert orientation_of(kept_exif(before, SAME)) == 1
    assert len(kept_exif(before, SAME)) == len(without_orientation(before)) == len(before)
    entries, following = Reader(before).entries(8)
    assert len(entries) == 2
    assert following == 0


@ORDERS
def test_a_second_directory_that_is_the_first_is_unlinked(order: str) -> None:
    before = exif(order, 6)
    before = before[:34] + struct.pack(order + "L", 8) + before[38:]
    after = kept_exif(before, SAME)
    assert orientation_of(after) == 1
    assert after[34:] == bytes(4) + before[38:]


@ORDERS
def test_an_orientation_can_be_taken_out(order: str) -> None:
    before = kept_exif(exif(order, 6), SAME)
    after = without_orientation(before)
    assert len(after) == len(before)
    seen = Image.Exif()
    seen.load(after)
    assert dict(seen) == {MAKE: "Canon"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'<a tiff:Orientation="6"/>', b'<a tiff:Orientation="1"/>'),
        (b"<a tiff:Orientation='8'/>", b"<a tiff:Orientation='1'/>"),
        (b"<tiff:Orientation>3</tiff:Orientation>", b"<tiff:Orientation>1</tiff:Orientation>"),
        (b'<a tiff:Orientation = "5"/>', b'<a tiff:Orientation = "1"/>'),
        (b'<a tiff:ImageWidth="6"/>', b'<a tiff:ImageWidth="6"/>'),
    ],
)
def test_xmp_says_upright_and_is_as_long_as_before(before: bytes, after: bytes) -> None:
    assert kept_xmp(before, SAME) == after


HDRGM = b"xmlns:h='http://ns.adobe.com/hdr-gain-map/1.0/'"
CAMERA = b"xmlns:c='http://ns.google.com/photos/1.0/camera/'"


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"<a><b x='1' %s h:Version='1.0' y='2'/></a>" % HDRGM, b"<a><b x='1' y='2'/></a>"),
        (b"<a %s><h:Version>1.0</h:Version><b>c</b></a>" % HDRGM, b"<a><b>c</b></a>"),
        (b"<a %s><h:A/><b/><h:B h:c='/>'/>d</a>" % HDRGM, b"<a><b/>d</a>"),
        (b"<a %s><h:A><h:A>b</h:A><c/></h:A >d</a>\n\0" % HDRGM, b"<a>d</a>\n\0"),
        (b"<a %s c:MicroVideo = '1' c:Other='2'/>" % CAMERA, b"<a %s c:Other='2'/>" % CAMERA),
        (b"<a %s><c:MotionPhoto>1</c:MotionPhoto></a>" % CAMERA, b"<a %s></a>" % CAMERA),
        (b"\xef\xbb\xbf<a %s xmlnso='' h:A='' b='c'/>" % HDRGM, b"\xef\xbb\xbf<a xmlnso='' b='c'/>"),
        (b"<a %s >b='' h:A='1'</a>" % HDRGM, b"<a>b='' h:A='1'</a>"),
        (b"<a xmlns:o='urn:o' o:OLiveMotionPhoto='1'/>", b"<a xmlns:o='urn:o'/>"),
        (b"<a xmlns='http://ns.google.com/photos/dd/1.0/device/'>b</a>", b""),
    ],
)
def test_xmp_loses_what_refers_to_companion_and_nothing_else(before: bytes, kept: bytes) -> None:
    after = without_companions(before)
    assert len(after) == len(before)
    assert after.replace(b" ", b"") == kept.replace(b" ", b"")


@pytest.mark.parametrize(
    "odd",
    [
        b"<a %s><h:Version>1.0</a>" % HDRGM,
        b"<!DOCTYPE a [<!ENTITY h '1.0'>]><a %s h:Version='&h;'/>" % HDRGM,
        b"<a><!-- %s --></a>" % HDRGM,
        b"<a %s b='\xff'/>" % HDRGM,
        b"h:MotionPhoto",
        (b"<a %s/>" % HDRGM).decode().encode("utf-16"),
        (b"<a %s/>" % HDRGM).decode().encode("utf-32-be"),
        b"<a xmlns:b='%s' %s/>" % (b"b" * 300, HDRGM),
    ],
)
def test_odd_xmp_that_refers_to_companion_is_dropped(odd: bytes) -> None:
    assert without_companions(odd) == b""
    assert without_companions(b"<a>odd") == b"<a>odd"


def resource(number: int, name: bytes, data: bytes) -> bytes:
    pascal = bytes([len(name)]) + name
    padded = pascal + bytes(len(pascal) % 2)
    return (
        b"8BIM"
        + struct.pack(">H", number)
        + padded
        + struct.pack(">L", len(data))
        + data
        + bytes(len(data) % 2)
    )


def test_photoshop_loses_its_thumbnails_and_nothing_else() -> None:
    caption, paths = resource(0x0404, b"", b"caption"), resource(0x07D0, b"path", b"12345678")
    thumbnails = [resource(0x040C, b"", THUMBNAIL), resource(0x0409, b"old", b"odd")]
    assert kept_photoshop(caption + thumbnails[0] + paths + thumbnails[1], SAME) == caption + paths
    for whole in (caption + paths, b"", b"8BIM", b"something else", caption + b"8BIM\x04"):
        assert kept_photoshop(whole, SAME) == whole


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_only_a_profile_with_the_numbers_of_srgb_is_dropped() -> None:
    assert is_srgb(srgb())
    assert kept_icc(srgb(), strip=True) == b""
    assert kept_icc(srgb(), strip=False) == srgb()
    swapped = srgb().replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    assert kept_icc(swapped, strip=True) == swapped
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert kept_icc(lab, strip=True) == lab


def test_a_profile_with_another_tone_curve_is_another_profile() -> None:
    curve = srgb().index(b"para")
    linear = srgb()[:curve] + b"para\0\0\0\0\0\0\0\0\0\1\0\0" + srgb()[curve + 16 :]
    assert not is_srgb(linear)


def test_no_profile_can_make_us_fail() -> None:
    whole = srgb()
    for end in range(0, len(whole), 3):
        is_srgb(whole[:end])
    for index in range(100, len(whole)):
        for value in (0, 255):
            is_srgb(whole[:index] + bytes([value]) + whole[index + 1 :])


@ORDERS
def test_a_directory_says_where_its_entries_and_their_values_are(order: str) -> None:
    entries, link = Reader(exif(order, 6)).directory(8)
    assert entries == [Entry(10, MAKE, 2, 6, 50), Entry(22, ORIENTATION, SHORT, 1, 30)]
    assert [entry.end for entry in entries] == [56, 32]
    assert link == 34


@ORDERS
def test_a_directory_of_a_big_tiff_has_wider_entries(order: str) -> None:
    signature = b"II" if order == "<" else b"MM"
    big = signature + struct.pack(order + "HHHQQ", 43, 8, 0, 16, 2)
    big += struct.pack(order + "HHQQ", MAKE, 2, 9, 100)
    big += struct.pack(order + "HHQLL", ORIENTATION, LONG, 2, 6, 0) + struct.pack(order + "Q", 70)
    reader = Reader(big.ljust(200, b"\0"))
    assert reader.first == 16
    assert reader.entries(16) == ([Entry(24, MAKE, 2, 9, 100), Entry(44, ORIENTATION, LONG, 2, 56)], 70)


def test_a_count_beyond_the_data_is_refused_before_any_entry_is_read() -> None:
    for bomb in (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**60), b"II*\0\x08\0\0\0\xff\xff"):
        reader = Reader(bomb)
        with pytest.raises(struct.error):
            reader.entries(reader.first)


@ORDERS
def test_fields_are_the_same_when_they_are_written_again(order: str) -> None:
    source = exif(order, 6)
    fields = Reader(source).fields(Reader(source).first)
    seen = Image.Exif()
    seen.load(exif_from(fields))
    assert dict(seen) == {MAKE: "Canon", ORIENTATION: 6}


def test_fields_that_overlap_do_not_multiply() -> None:
    """Each of these claims the whole file for itself."""
    count = 200
    entries = b"".join(struct.pack("<HHLL", tag, 7, 3000, 0) for tag in range(1, count))
    bomb = b"II*\0\x08\0\0\0" + struct.pack("<H", count - 1) + entries + bytes(4)
    bomb = bomb.ljust(4000, b"\0")
    fields = Reader(bomb).fields(8)
    assert sum(len(field.data) for field in fields) <= len(bomb)


def test_tags_are_written_in_ascending_order() -> None:
    before = Image.Exif()
    before[0x9C9B], before[MAKE], before[0x0131] = b"x\0", "Canon", "ours"
    before.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    source = before.tobytes().removeprefix(EXIF_PREFIX)
    after = exif_from(Reader(source).fields(Reader(source).first)[::-1])
    tags = [one.tag for one in Reader(after).entries(8)[0]]
    assert all(first < second for first, second in pairwise(tags))
    seen = Image.Exif()
    seen.load(after)
    assert seen.get_ifd(0x8769)[0x9003] == "2020:01:01 00:00:00"
