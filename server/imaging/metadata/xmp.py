"""XMP, kept byte for byte except where turning the image, or leaving out companion images, makes it wrong."""

import re
from xml.parsers import expat

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


def upright_xmp(xmp: bytes) -> bytes:
    """Reset `tiff:Orientation` to 1, in place (XMP part 2, 3.6)."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


class _OddXmpError(Exception):
    """XMP with a document type, which is not allowed (XMP part 1, 7.2), or with too long a namespace name."""


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
