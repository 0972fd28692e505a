"""XMP, kept byte for byte except where turning the image, or leaving something out, makes it wrong."""

import re
from codecs import utf_16_be_decode, utf_16_le_decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from itertools import count
from math import isfinite
from xml.parsers import expat

from server.imaging.geometry import mirrored_axes
from server.imaging.metadata.policy import Policy, Strip

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation\s*(?:=\s*[\"']|>)\s*)[2-8]")

#: Names of properties that refer to a companion of the image, by namespace or by name: a gain map, a depth
#: map or a video.
_COMPANION = re.compile(
    rb"http://ns\.adobe\.com/hdr-gain-map/"  # Ultra HDR 1.1, ISO 21496-1
    rb"|http://ns\.apple\.com/HDRGainMap/"
    rb"|http://ns\.google\.com/photos/1\.0/(?:container|depthmap|image)/"  # GContainer, GDepth
    rb"|http://ns\.google\.com/photos/dd/"  # Dynamic Depth 1.0
    rb"|:\w*(?:MotionPhoto|MicroVideo)"  # Motion Photo 1.0, and what phones add in their own namespaces
)
#: The same, and the property that refers to an extended packet, which is left out (XMP part 3, 1.1.3.1).
_COMPANION_OR_EXTENSION = re.compile(_COMPANION.pattern + rb"|:HasExtendedXMP\b")
#: The parser repeats the whole name of a namespace for each element in it. The longest in use are below 100.
_MAX_NAMESPACE = 256
_TAG_NAME = re.compile(rb"<[^\s/>]+")
_ATTRIBUTE = re.compile(rb"\s+([^\s=<>/]+)\s*=\s*(\"[^\"]*\"|'[^']*')")

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns# "
_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/ ", "http://ns.adobe.com/exif/1.0/ "
_XML = "http://www.w3.org/XML/1998/namespace"

#: What ends the namespace of the fields of a rectangle and of a size, in regions of any vendor.
_AREA, _DIMENSIONS = "sType/Area# ", "sType/Dimensions# "
_RECTANGLE = "http://ns.microsoft.com/photo/1.2/t/Region# Rectangle"
_ROTATION = "http://www.metadataworkinggroup.com/schemas/regions/ Rotation"
_PIXEL_SIDES = (_EXIF + "PixelXDimension", _EXIF + "PixelYDimension")
_SIDES = (_PIXEL_SIDES, (_TIFF + "ImageWidth", _TIFF + "ImageLength"))
_PAIRS = (
    (_TIFF + "XResolution", _TIFF + "YResolution"),
    (_EXIF + "FocalPlaneXResolution", _EXIF + "FocalPlaneYResolution"),
)
_AREAS = (_EXIF + "SubjectArea", _EXIF + "SubjectLocation")

#: Properties with coordinates or directions that nothing is left of after a turn: panoramas, IPTC regions,
#: thumbnails, crops and local edits of raw converters, angles of faces.
_UNTURNABLE = re.compile(
    r"http://ns\.google\.com/photos/1\.0/panorama/ "
    r"|http://iptc\.org/std/Iptc4xmpExt/2008-02-29/ ImageRegion$"
    r"|http://ns\.adobe\.com/xap/1\.0/ Thumbnails$"
    r"|http://ns\.adobe\.com/exif/1\.0/ SpatialFrequencyResponse$"
    r"|http://ns\.adobe\.com/camera-raw-(?:saved-settings|settings|defaults)/1\.0/ "
    r"(?:Has)?(?:Crop|Retouch|RedEye|Perspective|Upright|\w*Corrections$)"
    r"| AngleInfo(?:Roll|Yaw)$"
)
#: What a packet contains when a turn may make it wrong.
_GEOMETRY = (
    *(b"ImageWidth", b"ImageLength", b"XDimension", b"YDimension", b"XResolution", b"YResolution"),
    *(b"SubjectArea", b"SubjectLocation", b"sType/Area#", b"sType/Dimensions#", b"Rectangle"),
    *(b"photos/1.0/panorama/", b"ImageRegion", b"Thumbnails", b"SpatialFrequencyResponse", b"AngleInfo"),
    *(b"Crop", b"Corrections", b"Retouch", b"RedEye", b"Perspective", b"Upright"),
)
_RIGHT_ORIENTATION = re.compile(
    rb":Orientation\s*=\s*[\"']1[\"']|:Orientation>\s*1\s*</[\w.-]{1,40}:Orientation>"
)

#: Names of properties, at any depth, that say where: those of EXIF, IPTC, Photoshop, drones, Darwin Core and
#: the W3C's geo vocabulary. The address of a creator or licensor has other names.
_PLACE = re.compile(
    r"(?i)^http://(?:www\.w3\.org/2003/01/geo/|rs\.tdwg\.org/dwc/)"
    r"| (?:gps|geo)\w*$|latitude|longitude|altitude|(?<!subject)location\w*$"
    r"| (?:city|sublocation|province|state|provincestate|country|countrycode|countryname|worldregion"
    r"|coverage)$"
)
#: Properties that stay when all that is private goes.
_PUBLIC = re.compile(
    r"http://purl\.org/dc/elements/1\.1/ (?:rights|creator)$"
    r"|http://ns\.adobe\.com/photoshop/1\.0/ (?:Credit|ColorMode|ICCProfile)$"
    r"|http://ns\.adobe\.com/xap/1\.0/rights/ "
    r"|http://ns\.adobe\.com/tiff/1\.0/ (?:Artist|Copyright)$"
    r"|http://ns\.adobe\.com/exif/1\.0/ ColorSpace$|http://cipa\.jp/exif/1\.0/ Gamma$"
    r"|http://creativecommons\.org/ns# "
    r"|http://ns\.useplus\.org/ldf/xmp/1\.0/ (?:Copyright|ImageCreator|Licens|CreditLine|TermsAndConditions"
    r"|DataMining|OtherConstraints|OtherLicense)"
)

#: No sound packet has more elements, or deeper ones; each costs a step in Python.
_MAX_ELEMENTS, _MAX_DEPTH = 100_000, 50
#: Nor more namespaces, which some steps compare with each other or with all elements. Few have more than 30.
_MAX_NAMESPACES = 128
#: What cannot stand in an attribute as it is.
_SPECIAL = re.compile("[&<>\"'\n\t\r]")
#: Characters of a name with its namespace.
_MAX_NAME = 512


class _OddXmpError(Exception):
    """XMP with a document type, which is not allowed (XMP part 1, 7.2), or larger than any sound one."""


@dataclass(slots=True, eq=False)
class _Element:
    """An element of a packet. Names have their namespace and a blank in front.

    Args:
        name: of the element.
        attributes: by name.
        content: text and elements.
        is_edited: whether it is not as it was read.
    """

    name: str
    attributes: dict[str, str]
    content: "list[_Element | str]" = field(default_factory=list)
    is_edited: bool = False

    @property
    def elements(self) -> "list[_Element]":
        """Return the elements directly below."""
        return [one for one in self.content if isinstance(one, _Element)]

    @property
    def names(self) -> list[str]:
        """Return the names of what may be properties: of attributes, and of elements directly below."""
        return [*self.attributes, *(element.name for element in self.elements)]

    @property
    def text(self) -> str:
        """Return the text directly in it."""
        return "".join(one for one in self.content if isinstance(one, str)).strip()

    def value(self, name: str) -> str | None:
        """Return the value of a simple property, an attribute or an element; None when there is none."""
        if name in self.attributes:
            return self.attributes[name].strip()
        return next((element.text for element in self.elements if element.name == name), None)

    def set(self, name: str, value: str) -> None:
        """Replace the value of a simple property, wherever it is."""
        if self.attributes.get(name, value) != value:
            self.attributes[name], self.is_edited = value, True
        for element in self.elements:
            if element.name == name and element.content != [value]:
                element.content, element.is_edited = [value], True

    def rename(self, names: Mapping[str, str]) -> None:
        """Give properties other names."""
        if names.keys().isdisjoint(self.names):
            return
        self.is_edited = True
        self.attributes = {names.get(name, name): value for name, value in self.attributes.items()}
        for element in self.elements:
            element.name = names.get(element.name, element.name)

    def drop(self, is_gone: Callable[[str], object]) -> None:
        """Leave out properties by name."""
        if not any(map(is_gone, self.names)):
            return
        self.is_edited = True
        self.attributes = {name: value for name, value in self.attributes.items() if not is_gone(name)}
        self.content = [one for one in self.content if isinstance(one, str) or not is_gone(one.name)]

    def all(self) -> "Iterator[_Element]":
        """Yield it and every element in it."""
        yield self
        for element in self.elements:
            yield from element.all()


class _Packet:
    """An XMP packet, read into elements.

    Args:
        xmp: the packet, in UTF-8 or UTF-16.

    Raises:
        ExpatError, _OddXmpError, UnicodeError: it cannot be read.
    """

    def __init__(self, xmp: bytes) -> None:
        text = _decoded(xmp)
        self._prefixes: dict[str, str] = {_XML: "xml"}
        self._names: dict[str, str] = {}
        self._open: list[_Element] = []
        self._elements_left = _MAX_ELEMENTS
        self.root = _Element("", {})
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.buffer_text = True
        parser.StartNamespaceDeclHandler = self._namespace
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._doctype
        parser.Parse(text, True)  # noqa: FBT003 - takes no keywords

    def _doctype(self, *_: object) -> None:
        raise _OddXmpError

    def _namespace(self, prefix: str | None, name: str | None) -> None:
        if len(name or "") > _MAX_NAMESPACE:
            raise _OddXmpError
        if name and name not in self._prefixes:
            if len(self._prefixes) >= _MAX_NAMESPACES:
                raise _OddXmpError
            taken = set(self._prefixes.values())
            free = (f"ns{number}" for number in count(1))
            self._prefixes[name] = (
                prefix if prefix and prefix not in taken else next(one for one in free if one not in taken)
            )

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        element = _Element(name, attributes)
        self._elements_left -= 1
        is_long = max(map(len, (name, *attributes))) > _MAX_NAME
        if is_long or not self._elements_left or len(self._open) >= _MAX_DEPTH:
            raise _OddXmpError
        if self._open:
            self._open[-1].content.append(element)
        else:
            self.root = element
        self._open.append(element)

    def _end(self, _: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        self._open[-1].content.append(text)

    @property
    def descriptions(self) -> list[_Element]:
        """Return the elements whose attributes and elements are the properties (XMP part 1, 7.4)."""
        return [node for rdf in self.root.all() if rdf.name == _RDF + "RDF" for node in rdf.elements]

    def written(self) -> bytes:
        """Encode it as UTF-8, in the wrapper that scanners look for (XMP part 1, 7.3.2)."""
        used = {name.rpartition(" ")[0] for one in self.root.all() for name in (one.name, *one.attributes)}
        declared = "".join(
            f" xmlns:{prefix}={_quoted(name)}"
            for name, prefix in self._prefixes.items()
            if prefix != "xml" and name in used
        )
        parts = ['<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n']
        self._write(self.root, parts, declared)
        parts.append('\n<?xpacket end="w"?>')
        return "".join(parts).encode()

    def _write(self, element: _Element, parts: list[str], declared: str = "") -> None:
        name = self._qualified(element.name)
        attributes = "".join(
            f" {self._qualified(key)}={_quoted(text)}" for key, text in element.attributes.items()
        )
        parts.append(f"<{name}{declared}{attributes}")
        if not element.content:
            parts.append("/>")
            return
        parts.append(">")
        for one in element.content:
            if isinstance(one, str):
                parts.append(escape(one, quote=False).replace("\r", "&#13;"))
            else:
                self._write(one, parts)
        parts.append(f"</{name}>")

    def _qualified(self, name: str) -> str:
        if name not in self._names:
            namespace, _, local = name.rpartition(" ")
            self._names[name] = f"{self._prefixes[namespace]}:{local}" if namespace else local
        return self._names[name]


def _quoted(text: str) -> str:
    if _SPECIAL.search(text):
        text = escape(text).replace("\n", "&#10;").replace("\t", "&#9;").replace("\r", "&#13;")
    return f'"{text}"'


def _decoded(xmp: bytes) -> str:
    """Decode a packet, whose encoding shows in its first character (XMP part 1, 7.3.2).

    By functions: `decode` would import a module for the encoding, which a jailed engine cannot.
    """
    if xmp.startswith((b"\xfe\xff", b"\0<")):
        text, _ = utf_16_be_decode(xmp, "strict", True)  # noqa: FBT003 - takes no keywords
    elif xmp.startswith((b"\xff\xfe", b"<\0")):
        text, _ = utf_16_le_decode(xmp, "strict", True)  # noqa: FBT003 - takes no keywords
    else:
        text = xmp.decode("utf-8")
    return text.strip("\ufeff\0 \t\r\n")


def is_changed(xmp: bytes, policy: Policy) -> bool:
    """Tell whether a packet may need more than that its orientation, in its usual syntax, is reset."""
    if policy.strip is not Strip.NOTHING:
        return True
    plain = xmp.replace(b"\0", b"")
    if policy.is_turned and any(word in plain for word in _GEOMETRY):
        return True
    return b"Orientation" in plain and b"Orientation" in _RIGHT_ORIENTATION.sub(b"", plain)


def kept_xmp(xmp: bytes, policy: Policy) -> bytes:
    """Adapt an XMP packet to the result: upright, sides and regions turned, some properties left out.

    Returns:
        The packet. It is the same but for the digit of its orientation, as long as nothing else must change;
        otherwise it is written again. Empty when it cannot be read and something must change.
    """
    if policy.is_all_stripped:
        return b""
    if b"tiff:Orientation" in xmp:
        xmp = _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)
    if not xmp or not is_changed(xmp, policy):
        return xmp
    try:
        packet = _Packet(xmp)
    except (expat.ExpatError, _OddXmpError, UnicodeError):
        return b""
    for description in packet.descriptions:
        description.set(_TIFF + "Orientation", "1")
        if policy.is_turned:
            _turn(description, policy)
    if policy.strip is Strip.LOCATION:
        for element in packet.root.all():
            element.drop(_PLACE.search)
    if policy.strip is Strip.PRIVATE:
        return _public(packet)
    is_edited = any(element.is_edited for element in packet.root.all())
    return packet.written() if is_edited else xmp


def _public(packet: _Packet) -> bytes:
    """Write a packet of nothing but public properties; empty for none."""
    descriptions = packet.descriptions
    for description in descriptions:
        description.name, description.attributes = (
            _RDF + "Description",
            {name: text for name, text in description.attributes.items() if _PUBLIC.match(name)},
        )
        description.content = [one for one in description.elements if _PUBLIC.match(one.name)]
        description.attributes[_RDF + "about"] = ""
    kept: list[_Element | str] = [one for one in descriptions if len(one.names) > 1]
    packet.root = _Element(_RDF + "RDF", {}, kept)
    return packet.written() if kept else b""


@lru_cache(maxsize=2048)
def _is_unturnable(name: str) -> bool:
    return _UNTURNABLE.search(name) is not None


def _turn(description: _Element, policy: Policy) -> None:
    """Turn the properties of a description, and leave out those that cannot be."""
    sides = [description.value(name) for name in _PIXEL_SIDES]
    is_about_these = sides in ([None, None], [str(side) for side in policy.size])
    for names in _SIDES:
        for name, side in zip(names, policy.result_size, strict=True):
            description.set(name, str(side))
    for one, other in _PAIRS if policy.swaps_axes else ():
        description.rename({one: other, other: one})
    description.drop(_is_unturnable)
    kept: list[_Element | str] = []
    for part in description.content:
        try:
            if isinstance(part, _Element) and part.name in _AREAS:
                _turn_numbers(part, policy, is_about_these=is_about_these)
            elif isinstance(part, _Element):
                _turn_regions(part, policy)
        except ValueError:
            description.is_edited = True
        else:
            kept.append(part)
    description.content = kept


def _turn_numbers(element: _Element, policy: Policy, *, is_about_these: bool) -> None:
    """Turn a list of whole numbers, a subject area.

    Raises:
        ValueError: they cannot be turned.
    """
    items = [one for one in element.all() if one.name == _RDF + "li"]
    if not is_about_these:
        raise ValueError("it is about another image")
    area = policy.turned_area(tuple(int(item.text) for item in items))
    for item, number in zip(items, area, strict=True):
        item.content, item.is_edited = [str(number)], True


def _turn_regions(element: _Element, policy: Policy) -> None:
    """Turn the regions and sizes in a property, at any depth.

    Raises:
        ValueError: they cannot be turned.
    """
    for one in element.all():
        one.drop(_is_unturnable)
        for namespace in {name.rpartition(" ")[0] + " " for name in one.names}:
            if namespace.endswith(_AREA):
                _turn_area(one, namespace, policy)
            elif namespace.endswith(_DIMENSIONS) and policy.swaps_axes:
                one.rename({namespace + "w": namespace + "h", namespace + "h": namespace + "w"})
        if (rectangle := one.value(_RECTANGLE)) is not None:
            x, y, width, height = (float(number) for number in rectangle.split(","))
            place = _turned_place(policy, (x + width / 2, y + height / 2), (1, 1))
            if policy.swaps_axes:
                width, height = height, width
            numbers = (place[0] - width / 2, place[1] - height / 2, width, height)
            one.set(_RECTANGLE, ", ".join(map(_decimal, numbers)))
        if policy.is_mirrored and (rotation := one.value(_ROTATION)):
            one.set(_ROTATION, _decimal(-float(rotation)))


def _turn_area(element: _Element, namespace: str, policy: Policy) -> None:
    """Turn an area: its centre, width and height, as parts of the image or in pixels (MWG 2.0, 5.9)."""
    if element.value(namespace + "x") is None and element.value(namespace + "y") is None:
        return
    unit = element.value(namespace + "unit") or "normalized"
    extent: dict[str, tuple[float, float]] = {"normalized": (1, 1), "pixel": policy.size}
    if unit not in extent:
        raise ValueError("its unit is unknown")
    centre = tuple(float(element.value(namespace + axis) or "none") for axis in "xy")
    for axis, number in zip("xy", _turned_place(policy, (centre[0], centre[1]), extent[unit]), strict=True):
        element.set(namespace + axis, _decimal(number))
    if policy.swaps_axes:
        element.rename({namespace + "w": namespace + "h", namespace + "h": namespace + "w"})


def _turned_place(
    policy: Policy, place: tuple[float, float], extent: tuple[float, float]
) -> tuple[float, float]:
    rows, columns = mirrored_axes(policy.transpose)
    x = extent[0] - place[0] if columns else place[0]
    y = extent[1] - place[1] if rows else place[1]
    return (y, x) if policy.swaps_axes else (x, y)


def _decimal(number: float) -> str:
    """Write a number with at most nine decimals.

    Raises:
        ValueError: it is infinite, or not a number.
    """
    if not isfinite(number):
        raise ValueError("it is no number")
    text = f"{number:.9f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


class _BlankedPacket:
    """An XMP packet with the properties that refer to a companion blanked out, in place.

    Args:
        xmp: the packet.
        gone: matches the names of these properties.

    Raises:
        ExpatError, _OddXmpError: it cannot be read.
    """

    def __init__(self, xmp: bytes, gone: re.Pattern[bytes]) -> None:
        self._gone = gone
        self.blanked = bytearray(xmp)
        self._xmp = xmp
        self._open = 0  # how many elements are open, from the one to blank out
        self._gone_start = self._gone_tag_end = 0
        self._parser = expat.ParserCreate("utf-8", namespace_separator=":")
        self._parser.ordered_attributes = True
        self._parser.StartNamespaceDeclHandler = self._namespace
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._parser.Parse(xmp.rstrip(b"\0"), True)  # noqa: FBT003 - takes no keywords

    def _start(self, name: str, attributes: list[str]) -> None:
        position = self._parser.CurrentByteIndex
        if self._open:
            self._open += 1
            return
        stored, tag_end = self._tag(position)
        if self._gone.search(name.encode()):
            self._open, self._gone_start, self._gone_tag_end = 1, position, tag_end
            return
        names = iter(attributes[::2])
        for attribute in stored:
            is_declaration = attribute[1].partition(b":")[0] == b"xmlns"
            if self._gone.search(attribute[2] if is_declaration else next(names).encode()):
                self._blank(*attribute.span())

    def _end(self, _: str) -> None:
        if not self._open:
            return
        self._open -= 1
        if not self._open:
            is_empty = self._xmp[self._gone_tag_end - 1 : self._gone_tag_end + 1] == b"/>"
            start = self._gone_tag_end if is_empty else self._parser.CurrentByteIndex
            self._blank(self._gone_start, self._xmp.index(b">", start) + 1)

    def _namespace(self, _: str | None, name: str | None) -> None:
        if len(name or "") > _MAX_NAMESPACE:
            raise _OddXmpError

    def _doctype(self, *_: object) -> None:
        raise _OddXmpError

    def _tag(self, position: int) -> tuple[list[re.Match[bytes]], int]:
        """Return the attributes of a start tag as stored, and where its `>` is."""
        found = _TAG_NAME.match(self._xmp, position)
        attributes = []
        while found is not None:
            position = found.end()
            found = _ATTRIBUTE.match(self._xmp, position)
            if found is not None:
                attributes.append(found)
        return attributes, self._xmp.index(b">", position)

    def _blank(self, start: int, end: int) -> None:
        self.blanked[start:end] = b" " * (end - start)


def refers_to_companion(xmp: bytes) -> bool:
    """Tell whether XMP refers to a gain map, a depth map or a video, in UTF-16 and UTF-32 too."""
    return _refers_to(_COMPANION, xmp)


def _refers_to(gone: re.Pattern[bytes], xmp: bytes) -> bool:
    return gone.search(xmp.replace(b"\0", b"")) is not None


def without_companions(xmp: bytes, *, is_alone: bool = False) -> bytes:
    """Blank out, in place, XMP properties that refer to a gain map, depth map or video.

    Args:
        xmp: the packet.
        is_alone: whether a packet that extends it is left out too.

    Returns:
        The packet, as long as before, every other byte as it was. Empty when it refers to a companion and
        cannot be read: a viewer would look for the companion in the wrong place.
    """
    gone = _COMPANION_OR_EXTENSION if is_alone else _COMPANION
    if not _refers_to(gone, xmp):
        return xmp
    try:
        blanked = bytes(_BlankedPacket(xmp, gone).blanked)
    except (expat.ExpatError, _OddXmpError):
        return b""
    return b"" if _refers_to(gone, blanked) else blanked
