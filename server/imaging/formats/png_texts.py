"""Texts of a PNG that hold metadata: XMP, and ImageMagick's raw profiles, which are hexadecimal digits.

Sources: PNG 3rd edition, 11.3.3; XMP part 3, 1.1.5; what ImageMagick and ExifTool write for raw profiles.
"""

import re
import zlib
from dataclasses import dataclass
from enum import Enum

from server.imaging.metadata.exif import EXIF_PREFIX

KINDS = frozenset({b"tEXt", b"zTXt", b"iTXt"})

#: What is inflated of one text. Metadata in JPEG has at most 64 KB in a segment, and few have several.
_MAX_BYTES = 1 << 24
_MAX_KEYWORD_BYTES = 79
_XMP_KEYWORD = b"xml:com.adobe.xmp"
_RAW_PROFILE = b"raw profile type "
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0"
_PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"

#: A raw profile: its name, how many bytes it has, and these in lines of hexadecimal digits.
_RAW = re.compile(rb"\s{0,20}([!-~]{1,20})[ \t]{0,20}\n\s{0,20}(\d{1,8})[ \t]{0,20}\n")
_DIGITS_OF_A_LINE = 72

#: Where IPTC-IIM lies among Photoshop's resources, and how its records begin (IIM 4.2, 1.5).
_IPTC_RESOURCE = b"8BIM\x04\x04\0\0"
_IIM_RECORD = b"\x1c"

#: Copies of EXIF fields, as ImageMagick writes them, that a turn makes wrong.
_OF_THE_OLD_AXES = re.compile(
    rb"(?:exif|tiff):(?:orientation|(?:exif)?image(?:width|length|height)|pixel[xy]dimension|subjectarea"
    rb"|subjectlocation|thumbnail:.*)",
    re.IGNORECASE,
)


class Kind(Enum):
    """What a text can hold besides words."""

    XMP = "xmp"
    EXIF = "exif"
    IPTC = "iptc"


#: Raw profiles by the ends of their keywords. What APP1 holds is told by how it begins.
_RAW_KINDS = {
    b"xmp": (Kind.XMP,),
    b"exif": (Kind.EXIF,),
    b"app1": (Kind.EXIF, Kind.XMP),
    b"iptc": (Kind.IPTC,),
    b"8bim": (Kind.IPTC,),
}
_PREFIXES = {Kind.XMP: _XMP_PREFIX, Kind.EXIF: EXIF_PREFIX, Kind.IPTC: _PHOTOSHOP_PREFIX}


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a text holds.

    Args:
        kind: of the content.
        prefix: what stands in front of it, as in a JPEG.
        content: the metadata: an XMP packet in UTF-8, a TIFF structure, or Photoshop's resources or IPTC
            records; empty when it cannot be read.
    """

    kind: Kind
    prefix: bytes
    content: bytes


def keyword_of(data: bytes) -> bytes:
    """Return the keyword of a text chunk in small letters."""
    return data[: _MAX_KEYWORD_BYTES + 1].partition(b"\0")[0].lower()


def kinds_in(data: bytes) -> tuple[Kind, ...]:
    """Tell by its keyword which kinds of metadata a text chunk can hold; none for one that holds words."""
    keyword = keyword_of(data)
    if keyword == _XMP_KEYWORD:
        return (Kind.XMP,)
    return _RAW_KINDS.get(keyword.removeprefix(_RAW_PROFILE), ()) if keyword.startswith(_RAW_PROFILE) else ()


def is_of_the_old_axes(data: bytes) -> bool:
    """Tell by its keyword whether a text chunk repeats an EXIF field that depends on the axes."""
    return _OF_THE_OLD_AXES.fullmatch(keyword_of(data)) is not None


def metadata_in(kind: bytes, data: bytes) -> Metadata | None:
    """Unpack the metadata of a text chunk; None for a text that holds none.

    Args:
        kind: of the chunk.
        data: its content.
    """
    kinds = kinds_in(data)
    if not kinds:
        return None
    if keyword_of(data) == _XMP_KEYWORD:
        return Metadata(Kind.XMP, b"", _in_utf8(text_of(kind, data)))
    raw = _raw_profile(text_of(kind, data))
    found = next((kind for kind in kinds if raw.startswith(_PREFIXES[kind])), None)
    if found is None:
        return Metadata(kinds[0], b"", raw if len(kinds) == 1 else b"")
    prefix = _PREFIXES[found]
    return Metadata(found, prefix, raw[len(prefix) :])


def with_metadata(kind: bytes, data: bytes, metadata: Metadata) -> bytes:
    """Pack other metadata into a text chunk, the opposite of `metadata_in`.

    Args:
        kind: of the chunk.
        data: its content, which `metadata_in` could read.
        metadata: the new one.
    """
    content = metadata.prefix + metadata.content
    if keyword_of(data) != _XMP_KEYWORD:
        found = _RAW.match(text_of(kind, data))
        assert found is not None  # noqa: S101 - it could be read
        content = _in_digits(found[1], content)
    start, is_compressed = _body(kind, data)
    return data[:start] + (zlib.compress(content) if is_compressed else content)


def photoshop_resources(content: bytes) -> bytes:
    """Return the content of an IPTC profile as Photoshop's resources; empty for anything else."""
    if content.startswith(_IIM_RECORD):
        return _IPTC_RESOURCE + len(content).to_bytes(4, "big") + content + bytes(len(content) % 2)
    return content if content.startswith(b"8BIM") else b""


def raw_profile(name: str, content: bytes) -> bytes:
    """Return the data of a zTXt chunk that holds a raw profile, which ImageMagick and ExifTool read.

    Args:
        name: such as `iptc`, whose content is Photoshop's resources.
        content: its bytes.
    """
    keyword = b"Raw profile type " + name.encode()
    return keyword + b"\0\0" + zlib.compress(_in_digits(name.encode(), content))


def _in_digits(name: bytes, content: bytes) -> bytes:
    digits = content.hex().encode()
    lines = [digits[at : at + _DIGITS_OF_A_LINE] for at in range(0, len(digits), _DIGITS_OF_A_LINE)]
    return b"\n".join([b"", name, b"%8d" % len(content), *lines, b""])


def _raw_profile(text: bytes) -> bytes:
    """Read a raw profile; empty when it is none."""
    found = _RAW.match(text)
    if found is None:
        return b""
    try:
        content = bytes.fromhex(text[found.end() :].decode("ascii"))
    except ValueError:
        return b""
    length = int(found[2])
    return content[:length] if len(content) >= length else b""


def _body(kind: bytes, data: bytes) -> tuple[int, bool]:
    """Return where the text of a chunk begins, and whether it is compressed (11.3.3).

    Raises:
        ValueError: the chunk has another form.
    """
    start = data.index(b"\0") + 1
    if kind == b"tEXt":
        return start, False
    if kind == b"zTXt":
        if data[start : start + 1] != b"\0":
            raise ValueError("it has an unknown compression method")
        return start + 1, True
    flags = data[start : start + 2]
    if flags[:1] != b"\0" and flags != b"\1\0":
        raise ValueError("it has an unknown compression method")
    language_end = data.index(b"\0", start + 2)
    return data.index(b"\0", language_end + 1) + 1, flags[:1] == b"\1"  # behind the translated keyword


def text_of(kind: bytes, data: bytes) -> bytes:
    """Return the text of a chunk, inflated; empty when it cannot be read or is too long."""
    inflater = zlib.decompressobj()
    try:
        start, is_compressed = _body(kind, data)
        if not is_compressed:
            return data[start:] if len(data) - start <= _MAX_BYTES else b""
        text = inflater.decompress(data[start:], _MAX_BYTES)
    except (ValueError, zlib.error):
        return b""
    return text if inflater.eof else b""


def _in_utf8(text: bytes) -> bytes:
    """Return a text in UTF-8. In tEXt and zTXt it should be Latin-1, but most writers put UTF-8 there."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1").encode()
    return text
