"""Our reader of QOI files: Pillow's forgets a pixel, and takes the end marker for pixels (ADR 26)."""

from PIL import Image, ImageFile
from PIL.QoiImagePlugin import QoiImageFile

#: The end of every file, which is no pixel.
_END_BYTES = 8

#: Where each kind of chunk starts, by its first byte (QOI 1.0): behind an index, a small difference, a larger
#: one with the luma first, a run; and two that are whole pixels.
_DIFFERENCE, _LUMA, _RUN, _RGB, _RGBA = 0x40, 0x80, 0xC0, 0xFE, 0xFF


class QoiFile(QoiImageFile):
    """A QOI, decoded by us."""

    def _open(self) -> None:
        super()._open()
        _, box, offset, args = self.tile[0]
        self.tile = [ImageFile._Tile(QoiDecoder.name, box, offset, args)]  # noqa: SLF001


class QoiDecoder(ImageFile.PyDecoder):
    """A decoder of QOI, in Python."""

    name = "qoi_chunks"
    _pulls_fd = True

    def decode(self, _buffer: Image.DecoderInput) -> tuple[int, int]:
        """Decode the image, from the current position of the file (see `ImageFile.PyDecoder`)."""
        assert self.fd is not None  # noqa: S101 - set by Pillow
        channels = len(self.mode)
        length = self.state.xsize * self.state.ysize * channels
        self.set_as_raw(_unpacked(self.fd.read()[:-_END_BYTES], length, channels))
        return -1, 0


def _unpacked(data: bytes, length: int, channels: int) -> bytearray:
    """Decode chunks (QOI 1.0).

    Args:
        data: all of them.
        length: of the result, in bytes.
        channels: of the result, 3 without alpha or 4.

    Raises:
        IndexError, ValueError: they end before the image.
    """
    samples = bytearray()
    seen = [bytes(4)] * 64
    pixel = b"\0\0\0\xff"
    at = 0
    while len(samples) < length:
        first = data[at]
        at += 1
        count = 1
        if first == _RGBA:
            pixel = data[at : at + 4]
            at += 4
        elif first == _RGB:
            pixel = data[at : at + 3] + pixel[3:]
            at += 3
        elif first >= _RUN:
            count = first - _RUN + 1
        elif first >= _LUMA:
            second = data[at]
            at += 1
            green = first - _LUMA - 32
            pixel = _moved(pixel, green - 8 + (second >> 4), green, green - 8 + (second & 15))
        elif first >= _DIFFERENCE:
            pixel = _moved(pixel, (first >> 4 & 3) - 2, (first >> 2 & 3) - 2, (first & 3) - 2)
        else:
            pixel = seen[first]
        red, green, blue, alpha = pixel
        seen[(3 * red + 5 * green + 7 * blue + 11 * alpha) % 64] = pixel
        samples += pixel[:channels] * count
    return samples


def _moved(pixel: bytes, red: int, green: int, blue: int) -> bytes:
    """Add differences to the colour of a pixel."""
    return bytes(((pixel[0] + red) & 255, (pixel[1] + green) & 255, (pixel[2] + blue) & 255, pixel[3]))


Image.register_decoder(QoiDecoder.name, QoiDecoder)
