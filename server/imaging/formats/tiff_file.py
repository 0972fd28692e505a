"""Our reader of a TIFF's pages: Pillow's, without what it takes for something else (ADR 26)."""

from PIL import ImageFile, ImagePalette, TiffImagePlugin, TiffTags
from PIL.TiffImagePlugin import II, MM, OPEN_INFO, TiffImageFile

_BITS, _COMPRESSION, _FILL_ORDER, _PLANES, _COLOUR_MAP, _EXTRA_SAMPLES = 258, 259, 266, 284, 320, 338
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE = 0, 1, 2, 3
_HIGHEST_BIT_FIRST, _SEPARATE, _UNASSOCIATED = 1, 2, 2
_WITH_PALETTE = frozenset({"P", "PA"})

_HIGHEST_OF_8_BITS = 255
_WHOLE_NUMBERS = (TiffTags.BYTE, TiffTags.SHORT)

#: How Pillow calls samples, and what it should call them when they come from libtiff, which gives them in the
#: byte order of the machine. It knows that of unsigned samples itself.
_FROM_LIBTIFF = {
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
}


_Layout = tuple[bytes, int, tuple[int, ...], int, tuple[int, ...], tuple[int, ...]]

#: Layouts that Pillow does not know, or of which it drops what ImageMagick and libtiff take for alpha: a last
#: channel that is not described. By byte order, meaning of the first channels, sample format, fill order,
#: bits, and the meaning of more channels: mode, and how Pillow calls such samples.
_MORE_LAYOUTS: dict[_Layout, tuple[str, str]] = {
    **{
        (order, _BLACK_IS_ZERO, (1,), 1, (8, 8), extra): ("LA", "LA")
        for order in (II, MM)
        for extra in ((), (0,))
    },
    **{(order, _RGB, (1,), 1, (8,) * 4, (0,)): ("RGBA", "RGBA") for order in (II, MM)},
    **{(order, _PALETTE, (1,), 1, (8, 8), extra): ("PA", "PA") for order in (II, MM) for extra in ((), (0,))},
    (II, _RGB, (1,), 1, (16,) * 4, (0,)): ("RGBA", "RGBA;16L"),
    (MM, _RGB, (1,), 1, (16,) * 4, (0,)): ("RGBA", "RGBA;16B"),
    (MM, _WHITE_IS_ZERO, (1,), 1, (16,), ()): ("I;16B", "I;16B"),
}
OPEN_INFO.update(_MORE_LAYOUTS)  # type: ignore[arg-type]


# Pillow's own reader of what is not compressed knows no subsampled chroma, confuses planes, and refuses most
# of what has its bits in reverse order.
TiffImagePlugin.READ_LIBTIFF = True


class TiffFile(TiffImageFile):
    """A TIFF whose pages are decoded as they are stored: turning them is up to the caller.

    Attributes:
        extra: what the channels after the colours are, as stored.
    """

    extra: tuple[int, ...]

    def _setup(self) -> None:
        """Choose mode, palette and decoder of the current page."""
        compression = self.tag_v2.get(_COMPRESSION, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            raise OSError(f"unsupported compression {compression}")
        self.extra = self.tag_v2.get(_EXTRA_SAMPLES, ())
        if self.tag_v2.get(_PLANES) == _SEPARATE and self.extra and not any(self.extra):
            # Pillow would drop these, too, but only if they are in planes of their own.
            self.tag_v2[_EXTRA_SAMPLES] = (_UNASSOCIATED, *self.extra[1:])
        self.tag_v2[_FILL_ORDER] = _HIGHEST_BIT_FIRST  # libtiff sees to that; Pillow knows few other layouts
        super()._setup()
        self._size = self._tile_size
        if self.mode in _WITH_PALETTE:
            self.palette = ImagePalette.raw("RGB;L", bytes(level >> 8 for level in self.colour_map))
        codec, box, offset, args = self.tile[0]
        if isinstance(args, tuple) and args[0] in _FROM_LIBTIFF:
            args = (_FROM_LIBTIFF[args[0]], *args[1:])
            self.tile = [ImageFile._Tile(codec, box, offset, args)]  # noqa: SLF001

    @property
    def colour_map(self) -> tuple[int, ...]:
        """Return the colour map of the current page in 16 bits: all red levels, all green and all blue ones.

        Raises:
            SyntaxError: it has not one colour for each number that a pixel may have, or is of another type.
        """
        levels = self.tag_v2[_COLOUR_MAP]
        if self.tag_v2.tagtype[_COLOUR_MAP] not in _WHOLE_NUMBERS:
            raise SyntaxError("the colour map has another type")
        if len(levels) != 3 << int(self.tag_v2[_BITS][0]):
            raise SyntaxError("the colour map has another length")
        # One of 8 bits, as some scanners write it (libtiff's tif_getimage.c, checkcmap).
        unit = 257 if max(levels) <= _HIGHEST_OF_8_BITS else 1
        return tuple(level * unit for level in levels)

    def load_end(self) -> None:
        """Turn nothing: Pillow knows an orientation by one of its types alone."""
