"""What a file is that is none of our formats, so that a refusal can name it."""

import re

#: How files begin, and what they are; the first that fits counts.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"II\xbc", "a JPEG XR"),
    (b"%PDF-", "a PDF"),
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\0\0\1\0", "an icon (ICO)"),
    (b"\0\0\2\0", "a cursor (CUR)"),
    (b"P7\n", "a PAM"),
    (b"PF\n", "a PFM in colour"),
    (b"\x8aMNG", "an MNG"),
    (b"\x8bJNG", "a JNG"),
    (b"DDS ", "a DirectDraw surface"),
    (b"v/1\1", "an OpenEXR"),
    (b"#?RADIANCE", "a Radiance HDR"),
    (b"BPG\xfb", "a BPG"),
    (b"FLIF", "a FLIF"),
    (b"farbfeld", "a farbfeld"),
    (b"AT&TFORM", "a DjVu"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIU\0", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIRS", "a camera's raw file"),
    (b"MMOR", "a camera's raw file"),
    (b"FOVb", "a camera's raw file"),
    (b"\x1aE\xdf\xa3", "a video (Matroska or WebM)"),
    (b"PK\3\4", "a zip"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"data:image/", "a data URL, which has to be decoded from Base64 first"),
    (b"{", "text (JSON)"),
)

#: Brands of files that begin with `ftyp` (ISO/IEC 14496-12, 4.3; 23008-12, B.4), and what they are.
_BRANDS: tuple[tuple[tuple[bytes, ...], str], ...] = (
    ((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "a HEIC"),
    ((b"crx ",), "a camera's raw file"),
    ((b"jp2 ", b"jpx "), "a JPEG 2000"),
    ((b"mif1", b"msf1", b"mif2"), "a HEIF"),
)

#: Markup, after what may come before its first element.
_MARKUP = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*|<!--.*?-->\s*|<!DOCTYPE[^>\[]*(?:\[[^\]]*\])?>\s*)*<(\w+)",
    re.DOTALL | re.IGNORECASE,
)
_MARKUPS = {b"svg": "an SVG", b"html": "an HTML page"}


def name_of(head: bytes) -> str | None:
    """Name what a file is, with an article; None when it is not known.

    Args:
        head: its first 4096 bytes, or all of them.
    """
    for signature, name in _SIGNATURES:
        if head.startswith(signature):
            return name
    if head[4:8] == b"ftyp":
        brands = head[8 : int.from_bytes(head[:4], "big")]
        return next(
            (name for some, name in _BRANDS if any(brand in brands for brand in some)),
            "an ISO media file, such as a video",
        )
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video"
    if head[40:44] == b" EMF":
        return "a Windows metafile"
    markup = _MARKUP.match(head)
    return _MARKUPS.get(markup[1].lower(), "text (XML)") if markup else None
