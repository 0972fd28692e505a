"""TIFFs as strangers write them, judged by ImageMagick."""

import io
import struct

import pytest
from PIL import Image
from support.programs import pixels
from support.specimens import natural, processed

from server.imaging.codecs import Format


def _with_exif_pointer(compression: str, target: int) -> bytes:
    """Return a TIFF whose pointer to EXIF leads to `target`, as after a tool that dropped EXIF."""
    file = io.BytesIO()
    natural((8, 8)).save(file, "TIFF", compression=compression)
    data = bytearray(file.getvalue())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    entries = data[first + 2 : first + 2 + 12 * count] + struct.pack("<HHII", 34665, 4, 1, target)
    data += bytes(len(data) % 2)
    struct.pack_into("<I", data, 4, len(data))
    return bytes(data + struct.pack("<H", count + 1) + entries + bytes(4))


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("target", [0x100000, 2**32 - 1])
def test_a_pointer_past_the_end_does_no_harm(compression: str, target: int) -> None:
    """An mmap refuses to seek there, and a file does not."""
    data = _with_exif_pointer(compression, target)
    assert Image.open(io.BytesIO(data)).size == (8, 8)
    for output in (None, Format.PNG):
        answer = processed(data, "flip", output=output)
        wanted = pixels(data, "tiff", "-flip")
        assert pixels(answer.data, answer.result.format) == wanted or compression == "jpeg"
