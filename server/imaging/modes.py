"""Conversion of pixels to a mode that another format can hold, losing as little as that format allows."""

from io import BytesIO

from PIL import Image, ImageCms

from server.errors import UnsupportedImage
from server.imaging.codecs import CODECS, Format, check_memory
from server.imaging.metadata.icc import is_srgb

_WHITE: dict[str, int | tuple[int, ...]] = {"L": 255, "RGB": (255, 255, 255)}
_PALETTE_SIZE = 256
_OPAQUE_ABOVE = 127

#: Modes without colours, and those whose samples a profile can be applied to.
GRAY_MODES = ("1", "L", "LA", "I;16", "I;16B", "I", "F")
_IN_COLOUR = {
    "RGB": "RGB",
    "RGBA": "RGB",
    "P": "RGB",
    "PA": "RGB",
    "L": "L",
    "LA": "L",
    "I;16": "L",
    "I;16B": "L",
}

#: Formats without a place for a profile that viewers look at.
_WITHOUT_PROFILE = frozenset({Format.GIF, Format.BMP})
_16_BITS = 0xFFFF

#: What the quantizer needs: for each pixel, and for each colour that there is, of 24 bits.
_PIXEL_BYTES = 12
_COLOUR_BYTES = 40
_MOST_COLOURS = 1 << 24

#: What to try for a mode that a format cannot hold, in this order.
_NEXT_MODES: dict[str, tuple[str, ...]] = {
    "1": ("L", "RGB"),
    "L": ("RGB", "RGBA"),
    "I;16": ("L", "RGB"),
    "I;16B": ("I;16", "L", "RGB"),
    "I": ("I;16", "L", "RGB"),
    "RGB": ("RGBA",),
    "RGBX": ("RGB",),
    "CMYK": ("RGB",),
    "YCbCr": ("RGB",),
    "LA": ("RGBA",),
    "La": ("LA", "RGBA"),
    "PA": ("RGBA",),
    "RGBa": ("RGBA",),
}


def fit(image: Image.Image, form: Format) -> Image.Image:
    """Convert an image to a mode that the format holds.

    Alpha is flattened on white where the format has none. Sixteen bits become eight by dropping the low byte,
    which Pillow's own conversion does not do: it clips at 255. CMYK goes through its own profile to sRGB when
    it has one; the result then carries no profile. So does any other image whose profile would be lost.

    Raises:
        UnsupportedImage: it cannot be done correctly (32-bit samples have no known white).
    """
    modes = CODECS[form].modes
    if _loses_profile(image, form):
        image = in_srgb(image)
    if (
        image.has_transparency_data
        and image.mode != "RGBA"
        and (form is not Format.PNG or image.mode == "PA")
    ):
        image = _with_alpha(image)
    if image.has_transparency_data and not {"RGBA", "LA"} & set(modes) and form is not Format.GIF:
        image = _flattened(image)
    if form is Format.GIF:
        return image
    if image.mode in modes:
        return image
    if image.mode == "P":
        return image.convert("RGB")
    for mode in _NEXT_MODES.get(image.mode, ()):
        if mode in modes:
            return _converted(image, mode)
    raise UnsupportedImage(
        f"Samples of this kind ({image.mode}) do not fit into {CODECS[form].name}. "
        "Convert the image to 8 bits per channel and send that.",
    )


def _loses_profile(image: Image.Image, form: Format) -> bool:
    """Tell whether the profile would not go along, or not fit any more, as one of gray levels in RGB."""
    icc = image.info.get("icc_profile")
    if not isinstance(icc, bytes) or image.mode not in _IN_COLOUR:
        return False
    if form in _WITHOUT_PROFILE:
        return True
    is_gray_alone = not image.has_transparency_data or (form is Format.TIFF and image.mode == "LA")
    stays_gray = form is Format.PNG or ("L" in CODECS[form].modes and is_gray_alone)
    return icc[16:20] == b"GRAY" and image.mode in GRAY_MODES and not stays_gray


def in_srgb(image: Image.Image) -> Image.Image:
    """Convert the colours of an image by its profile to sRGB, in 8 bits; the result has no profile.

    A palette is converted in place of its indices. A profile that is broken or for other samples is
    dropped.
    """
    icc = image.info["icc_profile"]
    if image.mode.startswith("I;16"):
        image = _converted(image, "L")
    elif "transparency" in image.info and image.mode in ("L", "RGB"):
        image = image.convert(f"{image.mode}A")  # a key colour would have to be converted too
    space = _IN_COLOUR[image.mode]
    result = image.copy()
    result.info = {key: value for key, value in image.info.items() if key != "icc_profile"}
    if icc[16:20] != {"L": b"GRAY", "RGB": b"RGB "}[space] or is_srgb(icc):
        return result
    try:
        if image.mode in ("P", "PA"):
            colours = image.getpalette("RGB") or []
            row = Image.frombytes("RGB", (len(colours) // 3, 1), bytes(colours))
            result.putpalette(_through(row, icc).tobytes())
            return result
        plain = _through(image.convert(space), icc)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return result  # a broken profile is no reason to refuse the image
    if space == "L":
        plain = plain.getchannel("R")
    if len(image.getbands()) > len(space):
        plain.putalpha(image.getchannel("A"))
    plain.info = result.info
    return plain


def _through(image: Image.Image, icc: bytes) -> Image.Image:
    """Convert gray levels, colours or inks to sRGB.

    Raises:
        PyCMSError, OSError, ValueError: the profile is broken.
    """
    result = ImageCms.profileToProfile(
        image,
        BytesIO(icc),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.PERCEPTUAL,
        outputMode="RGB",
    )
    assert result is not None  # noqa: S101 - it is not done in place
    return result


def _with_alpha(image: Image.Image) -> Image.Image:
    """Turn transparency by palette index or key colour into an alpha channel."""
    if image.mode == "I;16":
        return _with_info_of(image, image.copy())  # no other format has a key colour of 16 bits
    return image if image.mode == "LA" else image.convert("RGBA")


def _flattened(image: Image.Image) -> Image.Image:
    """Lay the image on white."""
    mode = "L" if image.mode == "LA" else "RGB"
    paper = Image.new(mode, image.size, _WHITE[mode])
    paper.paste(image.convert(mode), mask=image.getchannel("A"))
    return _with_info_of(image, paper)


def _with_info_of(image: Image.Image, result: Image.Image) -> Image.Image:
    result.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return result


def _high_bytes(image: Image.Image) -> Image.Image:
    samples = image.tobytes()
    start = 0 if image.mode == "I;16B" else 1
    return _with_info_of(image, Image.frombytes("L", image.size, samples[start::2]))


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "I;16B" and mode == "I;16":
        return _with_info_of(image, Image.frombytes(mode, image.size, image.tobytes(), "raw", "I;16B"))
    if image.mode.startswith("I;16"):
        gray = _high_bytes(image)
        return gray if mode == "L" else gray.convert(mode)
    if image.mode == "I":
        return _from_wide(image, mode)
    if image.mode == "CMYK":
        return _from_cmyk(image)
    return image.convert(mode)


def _from_wide(image: Image.Image, mode: str) -> Image.Image:
    """Convert 32-bit samples that fit into 16 bits, as Pillow returns them for a 16-bit PGM."""
    lowest, highest = image.getextrema()
    if lowest < 0 or highest > _16_BITS:  # type: ignore[operator]
        raise UnsupportedImage(
            "The image has 32-bit samples, whose range is unknown. "
            "Convert it to 8 bits per channel and send that.",
        )
    samples = image.tobytes("raw", "I;16B")
    if mode == "I;16":
        return _with_info_of(image, Image.frombytes("I;16", image.size, samples, "raw", "I;16B"))
    gray = _with_info_of(image, Image.frombytes("L", image.size, samples[0::2]))
    return gray if mode == "L" else gray.convert(mode)


def _from_cmyk(image: Image.Image) -> Image.Image:
    """Convert CMYK to sRGB: through the embedded profile, otherwise by the plain formula."""
    icc = image.info.get("icc_profile")
    if icc:
        try:
            result = _with_info_of(image, _through(image, icc))
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # a broken profile is no reason to refuse the image
        else:
            result.info.pop("icc_profile", None)
            return result
    result = _with_info_of(image, image.convert("RGB"))
    result.info.pop("icc_profile", None)  # it describes inks, which are gone
    return result


def indexed(image: Image.Image) -> tuple[Image.Image, bytes, int | None]:
    """Convert an image to palette indices, exactly if it has no more than 256 colours.

    Args:
        image: any mode that `fit` returns for GIF.

    Returns:
        The indices in mode P, the palette as RGB bytes, and the index that is transparent, or None.
    """
    if image.mode in ("1", "L") and not image.has_transparency_data:
        gray = image.convert("L")
        indices = Image.frombytes("P", gray.size, gray.tobytes())
        return indices, bytes(value for level in range(_PALETTE_SIZE) for value in (level,) * 3), None
    if image.mode == "P" and not image.has_transparency_data:
        return image, bytes(image.getpalette() or b"\0\0\0"), None
    if not image.has_transparency_data:
        return *_quantized(_plain(image, "RGB"), _PALETTE_SIZE), None
    return _indexed_with_alpha(_plain(image, "RGBA"))


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    return image.convert(mode) if image.mode in ("P", "L", "LA", "RGB", "RGBA") else _converted(image, mode)


def _indexed_with_alpha(image: Image.Image) -> tuple[Image.Image, bytes, int | None]:
    """Convert RGBA to indices. GIF has no partial transparency: half of alpha and less is transparent."""
    opaque = image.getchannel("A").point(lambda alpha: 255 if alpha > _OPAQUE_ABOVE else 0)
    colours = image.convert("RGB")
    lowest, _ = opaque.getextrema()
    if lowest:
        return *_quantized(colours, _PALETTE_SIZE), None
    # Transparent pixels must not use up a colour: give them one that is there already.
    visible = Image.new("RGB", image.size, _first_visible(colours, opaque))
    visible.paste(colours, mask=opaque)
    indices, palette = _quantized(visible, _PALETTE_SIZE - 1)
    transparent = len(palette) // 3
    indices.paste(transparent, mask=opaque.point(lambda value: 255 - value))
    return indices, palette + bytes(3), transparent


def _first_visible(colours: Image.Image, opaque: Image.Image) -> tuple[int, ...]:
    box = opaque.getbbox()
    if box is None:
        return (0, 0, 0)
    row = opaque.crop((0, box[1], opaque.width, box[1] + 1)).getbbox()
    assert row is not None  # noqa: S101 - the first row of the box has a visible pixel
    return colours.getpixel((row[0], box[1]))  # type: ignore[return-value]


def _quantized(image: Image.Image, size: int) -> tuple[Image.Image, bytes]:
    """Return indices and palette, exact if the image has no more colours than `size`.

    Mapping to a palette of our own would not be exact: Pillow treats colours as equal that differ in their
    two low bits.

    Raises:
        MemoryError: told beforehand; the quantizer's table of colours does not look whether it got memory.
    """
    pixels = image.width * image.height
    check_memory(_PIXEL_BYTES * pixels + _COLOUR_BYTES * min(pixels, _MOST_COLOURS))
    indices = image.quantize(size, method=Image.Quantize.MEDIANCUT)
    return indices, bytes(indices.getpalette() or b"")[: size * 3]
