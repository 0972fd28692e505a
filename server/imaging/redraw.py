"""The route of any format to any other, and of simple ones to themselves: decode frames, turn, encode."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import UnsupportedImage
from server.imaging.animation import composed
from server.imaging.codecs import CODECS, Data, Format, decoding, encoding, open_image, too_deep
from server.imaging.formats import avif, gif, png, simple, tiff, webp
from server.imaging.geometry import compose, turned_size
from server.imaging.jpeg.ending import whole_jpeg
from server.imaging.jpeg.markers import Jpeg, check_decoded
from server.imaging.jpeg.pixels import check_complete
from server.imaging.metadata import ifd
from server.imaging.metadata.colour import Colours, from_codes
from server.imaging.metadata.exif import kept_exif, orientation_of, resolution_of
from server.imaging.metadata.photoshop import iptc_in, kept_iptc
from server.imaging.metadata.policy import Strip
from server.imaging.metadata.xmp import kept_xmp, without_companions
from server.imaging.modes import GRAY_MODES
from server.imaging.recipe import Result, Run
from server.imaging.transcode import MANY_FRAMES, Frame, Metadata, Target, check_plays, check_side, encode

_MAX_DPI = 65535
#: Characters of a comment, so that it fits into a segment of a JPEG.
_MAX_COMMENT = 16_000
#: Fields of EXIF that texts of a PNG become, and their type (EXIF 2.32, 4.6.4).
_NAME, _DESCRIPTION, _SOFTWARE, _ARTIST, _COPYRIGHT, _ASCII = 0x010D, 0x010E, 0x0131, 0x013B, 0x8298, 2

#: Formats that name colours by their codes.
_WITH_CODES = frozenset({Format.PNG, Format.AVIF})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What is known from the header, before decoding.

    Args:
        size: of the canvas as stored, or of the first page, in pixels.
        frames: how many frames can be drawn.
        orientation: of the stored pixels, 1 where Pillow or the container has dealt with it.
        exif, xmp, iptc, comment: as stored.
        texts: of a PNG, by keyword.
        plays: how often an animation runs, 0 for ever.
        drawn: its frames with their durations, where Pillow would compose them wrongly.
        icc: the colour profile of these frames; None to ask Pillow for it, and for the resolution.
        is_deep: whether decoding would halve the bits per channel.
        markers: of a JPEG.
        colours: where they are named without a profile.
        stored_avif: what the structure of an AVIF says.
        data: what is decoded; None for the file as it is.
    """

    size: tuple[int, int]
    frames: int = 1
    orientation: int = 1
    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    comment: bytes = b""
    texts: Mapping[str, str] = field(default_factory=dict)
    plays: int = 0
    drawn: Iterator[tuple[Image.Image, float]] | None = None
    icc: bytes | None = None
    is_deep: bool = False
    markers: Jpeg | None = None
    colours: Colours | None = None
    stored_avif: avif.Avif | None = None
    data: Data | None = None


def _jpeg_head(run: Run) -> _Head:
    data, markers = whole_jpeg(run.data, run.limits)
    check_decoded(markers, run.limits)
    return _Head(
        size=markers.size,
        orientation=markers.orientation,
        exif=markers.exif,
        iptc=iptc_in(markers.photoshop),
        comment=markers.comment,
        markers=markers,
        data=data,
    )


def _png_head(run: Run) -> _Head:
    stored = png.read_png(run.data, run.limits)
    texts = png.texts_in(stored)
    drawn: Iterator[tuple[Image.Image, float]] | None = None
    if stored.frames:
        drawn = composed(stored.size, png.layers(stored))
    elif stored.has_own_key and stored.still is not None:
        drawn = iter([(png.coloured(stored, stored.still, stored.size), 0)])
    return _Head(
        size=stored.size,
        frames=max(1, len(stored.frames)),
        orientation=orientation_of(stored.find(b"eXIf")),
        exif=stored.exif,
        xmp=stored.xmp,
        iptc=iptc_in(stored.iptc),
        comment=texts.get("Comment", "").encode(),
        texts=texts,
        plays=stored.plays,
        drawn=drawn,
        colours=png.colours(stored),
        data=png.for_pillow(stored),
    )


def _gif_head(run: Run) -> _Head:
    stored = gif.read_gif(run.data, run.limits)
    frames = len(stored.frames)
    is_plain = frames == 1 and stored.frames[0].rect == (0, 0, *stored.size)
    return _Head(
        size=stored.size,
        frames=frames,
        xmp=gif.xmp_of(stored),
        comment=gif.comment_in(stored),
        plays=gif.plays_of(stored),
        drawn=gif.stills(stored) if is_plain else composed(stored.size, gif.layers(stored)),
        icc=gif.icc_of(stored),
    )


def _webp_head(run: Run) -> _Head:
    stored = webp.read_webp(run.data, run.limits)
    return _Head(
        size=stored.size,
        frames=len(stored.frames),
        orientation=orientation_of(stored.exif),
        exif=stored.exif,
        xmp=stored.xmp,
        plays=stored.loops or 0,
        drawn=webp.stills(stored) if stored.loops is None else composed(stored.size, webp.layers(stored)),
        icc=stored.icc,
    )


def _tiff_head(run: Run) -> _Head:
    page = tiff.check_tiff(run.data, run.limits)[0]
    return _Head(size=page.size, orientation=page.orientation)


def _avif_head(run: Run) -> _Head:
    avif.check_end(run.data)
    image, frames = _opened(run, avif.without_exif(run.data))
    stored = avif.read_avif(run.data)
    return _Head(
        size=image.size,
        frames=frames,
        orientation=stored.orientation,
        exif=stored.exif,
        plays=stored.plays,
        is_deep=stored.is_deep,
        colours=_avif_colours(stored, image),
        stored_avif=stored,
    )


def _avif_colours(stored: avif.Avif, image: Image.Image) -> Colours | None:
    """Return the colours that codes name; a profile goes before them (ISO/IEC 23000-22, 7.3.6.4)."""
    if stored.codes is None or image.info.get("icc_profile"):
        return None
    return from_codes(stored.codes.primaries, stored.codes.transfer)  # pixels come in full range


def _opened(run: Run, data: Data) -> tuple[ImageFile, int]:
    """Open the file with Pillow and check the limits. Returns the image and how many frames it has."""
    image = open_image(run.form, data)
    frames = getattr(image, "n_frames", 1)
    run.limits.check_size(*image.size)
    run.limits.check_frames(frames)
    run.limits.check_total(image.width * image.height * frames)
    return image, frames


def _other_head(run: Run) -> _Head:
    simple.check_head(run.form, run.data)
    image, frames = _opened(run, run.data)
    simple.check_end(run.form, run.data)
    simple.check_steps(run.form, run.target, image, run.data)
    exif = image.info.get("exif", b"")
    simple.check_rows(run.form, image, run.data)
    return _Head(
        size=image.size,
        frames=frames,
        orientation=orientation_of(exif),
        exif=exif,
        comment=simple.comment_in(run.data) if run.form is Format.PPM else b"",
        is_deep=simple.is_deep(run.form, image),
    )


_HEADS: dict[Format, Callable[[Run], _Head]] = {
    Format.JPEG: _jpeg_head,
    Format.PNG: _png_head,
    Format.GIF: _gif_head,
    Format.WEBP: _webp_head,
    Format.TIFF: _tiff_head,
    Format.AVIF: _avif_head,
}


def _drawn(run: Run, head: _Head, count: int) -> Iterator[Frame]:
    """Decode frames as Pillow composes them, upright or not."""
    with decoding(run.form, head.size):
        data = run.data if head.stored_avif is None else avif.without_exif(run.data)
        image = open_image(run.form, data)
    durations = iter(()) if head.stored_avif is None else head.stored_avif.durations_ms()
    for index in range(count):
        with decoding(run.form, head.size):
            if head.stored_avif is not None:
                avif.check_memory_to_decode(image.size)
            if index:
                image.seek(index)
            pixels: Image.Image = image
            if isinstance(image, TiffImageFile):
                pixels = tiff.loaded_page(image, run.data)
            else:
                image.load()
            if run.form is Format.PNG:
                png.add_missing_colours(image)
            if head.markers is not None:
                check_complete(head.markers, image, run.data)
            if head.stored_avif is not None:
                pixels = avif.cropped(head.stored_avif, image)
        run.lap("decode")
        yield Frame(pixels, next(durations, float(image.info.get("duration") or 0)))


def _shown(run: Run, head: _Head, frames: Iterator[tuple[Image.Image, float]]) -> Iterator[Frame]:
    """Yield frames as we compose them, with their profile and resolution."""
    if head.icc is None:
        with decoding(run.form, head.size):
            info = open_image(run.form, run.data).info
    else:
        info = {"icc_profile": head.icc} if head.icc else {}
    while True:
        with decoding(run.form, head.size):
            following = next(frames, None)
        if following is None:
            return
        image, duration_ms = following
        image.info.update({key: info[key] for key in ("icc_profile", "dpi", "xmp") if key in info})
        run.lap("decode")
        yield Frame(image, duration_ms)


def redraw(run: Run) -> Result:
    """Convert any format to any other, and simple formats to themselves."""
    with decoding(run.form):
        head = _HEADS.get(run.form, _other_head)(run)
    if head.data is not None:
        run = replace(run, data=head.data)
    if head.is_deep and run.recipe.format is None:
        raise too_deep(run.form)
    codes = _carried_codes(run, head)
    transpose = compose(head.orientation, run.recipe.turn)
    count = head.frames if run.target in MANY_FRAMES else 1
    drawn = _drawn(run, head, count) if head.drawn is None else _shown(run, head, head.drawn)
    first = next(drawn)
    size = turned_size(transpose, first.image.size)
    check_side(run.target, size)
    if count > 1:
        check_plays(run.target, head.plays)

    def turned() -> Iterator[Frame]:
        for frame in islice(chain([first], drawn), count):
            if head.colours is not None and run.target is not run.form:
                _label(frame.image, head.colours, run.target)
            image = run.turn(frame.image, transpose)
            # An image that is still a file would be written with all its frames, or change under us.
            yield replace(frame, image=image.copy() if image is frame.image else image)
            run.lap("encode")

    target = Target(
        form=run.target,
        quality=run.recipe.quality,
        effort=run.recipe.effort,
        metadata=_metadata(run, head, first.image),
        source=run.form,
        limits=run.limits,
        frames=count,
        plays=head.plays,
        codes=codes,
        settings=simple.kept_settings(run.form, run.data) if run.target is run.form else {},
        stored_avif=head.stored_avif if run.target is run.form else None,
    )
    with encoding(run.target, size):
        encode(run.sink, turned(), target)
    run.lap("encode")
    return run.result(size, count)


def _carried_codes(run: Run, head: _Head) -> tuple[int, int] | None:
    """Return the codes that the result names its colours by; None for none.

    Raises:
        UnsupportedImage: neither codes nor a profile can name them in the wanted format.
    """
    if run.target is run.form:
        return None if head.stored_avif is None else head.stored_avif.codes_of_colours
    colours = head.colours
    if colours is None or colours.is_srgb:
        return None
    if run.target in _WITH_CODES and colours.codes is not None:
        return colours.codes
    if colours.oddity:
        raise UnsupportedImage(
            f"The colours of this image are {colours.oddity}, which {CODECS[run.target].name} cannot hold. "
            "Leave `format` out, or convert the image to sRGB and send that.",
        )
    return None


def _label(image: Image.Image, colours: Colours, target: Format) -> None:
    """Give an image a profile of its colours, in place of any other; codes are enough for AVIF."""
    image.info.pop("icc_profile", None)
    is_told = colours.codes is not None and target is Format.AVIF
    if not (is_told or colours.oddity or colours.is_srgb):
        image.info["icc_profile"] = colours.profile(is_gray=image.mode in GRAY_MODES)


def _metadata(run: Run, head: _Head, image: Image.Image) -> Metadata:
    """Collect the metadata of the result."""
    policy = run.policy(compose(head.orientation, run.recipe.turn), head.size)
    exif, iptc, xmp = head.exif, head.iptc, head.xmp or image.info.get("xmp")
    if not isinstance(xmp, bytes):  # a TIFF may give it any type
        xmp = b""
    if run.form is Format.TIFF:
        with decoding(run.form):
            (fields,) = tiff.descriptions(run.data)
        iptc = tiff.iptc_in(fields)
        exif = ifd.exif_from(tuple(field for field in fields if field.tag not in tiff.EMBEDDED))
    exif = kept_exif(exif or _exif_of(head.texts), policy)
    if not policy.has_resolution:
        dpi = None
    elif run.form is Format.JPEG and not image.info.get("jfif_unit"):
        dpi = _sound_dpi(resolution_of(exif))  # Pillow takes the horizontal one for both
    else:
        dpi = _sound_dpi(image.info.get("dpi"))
        dpi = (dpi[1], dpi[0]) if dpi is not None and policy.swaps_axes else dpi
    return Metadata(
        exif=exif,
        xmp=kept_xmp(without_companions(xmp), policy),
        iptc=kept_iptc(iptc, policy),
        comment=_decoded(head.comment) if policy.strip in (Strip.NOTHING, Strip.LOCATION) else "",
        dpi=dpi,
        policy=policy,
    )


def _decoded(comment: bytes) -> str:
    """Decode a comment, whose coding nobody tells."""
    comment = comment.replace(b"\0", b"")
    try:
        text = comment.decode()
    except UnicodeDecodeError:
        text = comment.decode("latin-1")
    return text[:_MAX_COMMENT]


def _exif_of(texts: Mapping[str, str]) -> bytes:
    """Make EXIF of the texts of a PNG that has none, for formats that have no texts; empty for none."""
    named = {
        _NAME: texts.get("Title"),  # of TIFF 6.0, section 12; EXIF has no title
        _DESCRIPTION: texts.get("Description") or texts.get("Title"),
        _SOFTWARE: texts.get("Software"),
        _ARTIST: texts.get("Author"),
        _COPYRIGHT: texts.get("Copyright"),
    }
    values = {tag: text.replace("\0", "").encode() + b"\0" for tag, text in named.items() if text}
    return ifd.exif_from(tuple(ifd.Field(tag, _ASCII, len(data), data) for tag, data in values.items()))


def _sound_dpi(dpi: object) -> tuple[float, float] | None:
    """Return a resolution that every format can hold, or None: files contain numbers of any kind, and NaN."""
    try:
        horizontal, vertical = (float(number) for number in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (horizontal, vertical) if 0 < horizontal < _MAX_DPI and 0 < vertical < _MAX_DPI else None
