"""A refused file is named."""

import pytest
from support.specimens import processed

from server.errors import UnsupportedImage


def _ftyp(*brands: bytes) -> bytes:
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (_ftyp(b"heic", b"mif1", b"heic"), "a HEIC"),
        (_ftyp(b"mif1", b"heix"), "a HEIC"),
        (_ftyp(b"mif1", b"mif1"), "a HEIF"),
        (_ftyp(b"isom", b"mp42"), "an ISO media file"),
        (_ftyp(b"crx ", b"isom"), "a camera's raw file"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"\xff\x0a\x00", "a JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG"),
        (b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- made by hand --><svg>', "an SVG"),
        (b'<?xml version="1.0"?><!DOCTYPE svg PUBLIC "-//W3C" "x" [<!ENTITY a "b">]><svg>', "an SVG"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"<rss>", "text (XML)"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\0\0\1\0\1\0", "an icon (ICO)"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"data:image/png;base64,iVBORw0KGgo=", "a data URL"),
        (b'{"image": "..."}', "text (JSON)"),
    ],
)
def test_what_was_sent_is_named(head: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match="Send a JPEG, PNG, WebP") as refused:
        processed(head)
    assert str(refused.value).startswith(f"This is {name}")


@pytest.mark.parametrize(
    "head", [b"nothing", b"\0" * 64, b"\0\0\0\0ftyp", b"<", b"<" * 4096, b"<!--" * 1024, b" " * 4096]
)
def test_what_nobody_knows_is_not(head: bytes) -> None:
    with pytest.raises(UnsupportedImage):
        processed(head)
