"""One picture through decode, transform and encode, under limits, with nothing lost that need not be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, cast

from PIL import Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import NotLossless, UnsupportedImage
from server.imaging.animation import composed
from server.imaging.codecs import (
    CODECS,
    OUTPUT_FORMATS,
    Format,
    Sink,
    Source,
    as_data,
    decoding,
    open_image,
    sniff,
    write_whole,
)
from server.imaging.formats import avif, gif, png, simple, tiff, vp8, webp
from server.imaging.geometry import Rect, compose, swaps_axes, turned_rect, turned_size
from server.imaging.jpeg.kernel import Impossible
from server.imaging.jpeg.markers import Jpeg, kept_segments, read_jpeg
from server.imaging.jpeg.mirror import Mirror
from server.imaging.jpeg.pixels import check_complete, disown_adobe, encoder_settings, write_density
from server.imaging.jpeg.transpose import Transposition
from server.imaging.limits import Limits
from server.imaging.metadata import ifd
from server.imaging.metadata.exif import orientation_of, upright_exif
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.xmp import upright_xmp, without_companions
from server.imaging.recipe import Recipe, Result, Run, Stage
from server.imaging.transcode import (
    MANY_FRAMES,
    Attachments,
    Frame,
    Target,
    TiffPage,
    check_side,
    encode,
    write_pages,
)

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

_MAX_DPI = 65535


def _no_lap(_stage: Stage, /) -> None:
    """Measure nothing."""


def process(
    source: Source,
    sink: Sink,
    recipe: Recipe,
    limits: Limits,
    lap: Callable[[Stage], None] = _no_lap,
) -> Result:
    """Turn the picture in `source` and write it to `sink`.

    The format stays unless another is asked for, and so do mode, depth, palette, transparency, metadata,
    frames, durations and loop count; a JPEG keeps its quantization tables and sampling. JPEG and BMP hold
    one frame: an animation gives its first. A multi-page TIFF keeps its pages as a TIFF and gives its first
    page to any other format. Of an MPO only the primary picture comes out.

    Args:
        source: readable from position 0: an `mmap.mmap`, a `BytesIO`, or a file, which is read whole.
        sink: at its start; afterwards it holds the result and nothing else, whatever it held before. A raw
            file over a descriptor lets the encoders write to it directly.
        recipe: what to do.
        limits: checked against headers, before anything is decoded.
        lap: told each time a stage ends, for an animation once per frame and stage.

    Raises:
        UnsupportedImage: not an image, outside the allow-list, or not expressible in the wanted format.
        DamagedImage: cut off or corrupt.
        TooManyPixels, TooManyFrames: outside the limits.
        NotLossless: that was the path to take.
    """
    data = as_data(source)
    form = sniff(data)
    run = Run(source, data, form, sink, recipe, limits, lap)
    route = _SAME_FORMAT.get(form, _redraw) if run.target is form else _redraw
    if recipe.path == "lossless" and route is not _jpeg:
        raise NotLossless("Only a JPEG that stays one can be turned without loss. Leave `path` out.")
    if run.target is not Format.JPEG:  # other encoders may leave holes, through which old bytes would show
        sink.truncate(0)
    result = route(run)
    if run.target is Format.JPEG:
        sink.truncate()
    return result


def _jpeg(run: Run) -> Result:
    """JPEG to JPEG, coded as the source was."""
    with decoding(Format.JPEG):
        markers = read_jpeg(run.data, run.limits)
    transpose = compose(markers.orientation, run.recipe.turn)
    if run.recipe.path != "pixels":
        try:
            return _moved_jpeg(run, markers, transpose)
        except Impossible as reason:
            if run.recipe.path == "lossless":
                raise NotLossless(f"This is not possible without loss: {reason}. Leave `path` out.") from None
    with decoding(Format.JPEG):
        image = cast("JpegImageFile", open_image(Format.JPEG, run.source))
        if not image.quantization and run.recipe.quality is None:
            raise UnsupportedImage(
                "This JPEG is lossless, which cannot be written again. Ask for format=png, or for a quality.",
            )
        settings = encoder_settings(markers, image, transpose, run.recipe.quality)
        kept = kept_segments(markers, strip=run.recipe.strip)
        image.load()
        check_complete(markers, image, run.data)
    run.lap("decode")
    turned = run.turn(image, transpose)
    turned.save(run.sink, "JPEG", comment=b"", extra=kept, **settings)
    if turned.mode == "CMYK":
        if markers.adobe_transform is None:
            disown_adobe(run.sink)
    elif markers.jfif and not (run.recipe.strip or settings["keep_rgb"]):
        write_density(run.sink, markers.jfif, transpose)
    run.lap("encode")
    return run.result(turned.size)


def _moved_jpeg(run: Run, markers: Jpeg, transpose: Transpose | None) -> Result:
    """JPEG to JPEG by its coefficients.

    Raises:
        Impossible: that cannot be done; nothing has been written.
    """
    if run.recipe.quality is not None:
        raise Impossible("another quality is asked for")
    kind = Transposition if swaps_axes(transpose) else Mirror
    turn = kind(run.data, markers, transpose, must_be_exact=run.recipe.path == "lossless")
    run.lap("decode")
    run.lap("transform")  # which is part of either
    for piece in turn.pieces(strip=run.recipe.strip):
        write_whole(run.sink, piece)
    run.lap("encode")
    return run.result(
        turned_size(transpose, markers.size), path="lossless" if turn.is_exact else "coefficients"
    )


def _png(run: Run) -> Result:
    """PNG to PNG and APNG to APNG, chunk by chunk."""
    with decoding(Format.PNG):
        stored = png.read_png(run.data, run.limits)
    transpose = compose(orientation_of(stored.find(b"eXIf")), run.recipe.turn)

    def turn(stream: bytes, size: tuple[int, int]) -> bytes:
        with decoding(Format.PNG):
            planes = png.unpack(stored, stream, size)
        run.lap("decode")
        turned = tuple(plane if transpose is None else plane.transpose(transpose) for plane in planes)
        run.lap("transform")
        packed = png.pack(stored, turned, run.recipe.effort)
        run.lap("encode")
        return packed

    result = png.turned(stored, transpose, strip=run.recipe.strip)
    frames = tuple(
        replace(new, stream=turn(old.stream, (old.rect.width, old.rect.height)))
        for old, new in zip(stored.frames, result.frames, strict=True)
    )
    still = None if stored.still is None else turn(stored.still, stored.size)
    png.write_png(run.sink, replace(result, still=still, frames=frames))
    run.lap("encode")
    return run.result(result.size, max(1, len(frames)))


def _gif(run: Run) -> Result:
    """GIF to GIF, block by block."""
    with decoding(Format.GIF):
        stored = gif.read_gif(run.data, run.limits)
    transpose = compose(1, run.recipe.turn)

    def turn(frame: gif.GifFrame, place: gif.GifFrame) -> gif.GifFrame:
        with decoding(Format.GIF):
            indices = gif.unpack(frame)
        run.lap("decode")
        turned = run.turn(indices, transpose)
        code_size, lzw = gif.pack(turned, is_interlaced=frame.is_interlaced, code_size=frame.code_size)
        run.lap("encode")
        return replace(place, code_size=code_size, lzw=lzw)

    result = gif.turned(stored, transpose, strip=run.recipe.strip)
    fresh = iter([turn(old, new) for old, new in zip(stored.frames, result.frames, strict=True)])
    blocks = tuple(next(fresh) if isinstance(block, gif.GifFrame) else block for block in result.blocks)
    gif.write_gif(run.sink, replace(result, blocks=blocks))
    run.lap("encode")
    return run.result(result.size, len(result.frames))


def _webp(run: Run) -> Result:
    """WebP to WebP, frame by frame."""
    with decoding(Format.WEBP):
        stored = webp.read_webp(run.data, run.limits)
    transpose = compose(orientation_of(stored.exif), run.recipe.turn)
    rects = [turned_rect(transpose, frame.rect, stored.size) for frame in stored.frames]
    if any(rect.x % 2 or rect.y % 2 for rect in rects):
        frames = _whole_webp_frames(run, stored, transpose)
    else:
        frames = webp.turned_frames(
            stored, rects, [_turned_bitstream(run, frame.pixels, transpose) for frame in stored.frames]
        )
    strip = run.recipe.strip
    size = turned_size(transpose, stored.size)
    result = replace(
        stored,
        size=size,
        frames=frames,
        icc=kept_icc(stored.icc, strip=strip),
        exif=b"" if strip else upright_exif(stored.exif),
        xmp=b"" if strip else upright_xmp(stored.xmp),
    )
    webp.write_webp(run.sink, result)
    run.lap("encode")
    return run.result(size, len(frames))


def _webp_quality(run: Run, pixels: webp.Bitstream) -> int | None:
    if run.recipe.quality is not None:
        return run.recipe.quality
    return None if pixels.is_lossless else vp8.estimated_quality(pixels.data)


def _turned_bitstream(run: Run, pixels: webp.Bitstream, transpose: Transpose | None) -> webp.Bitstream:
    with decoding(Format.WEBP):
        image = webp.unpack(pixels)
    run.lap("decode")
    turned = run.turn(image, transpose)
    packed = webp.pack(turned, run.recipe.effort, quality=_webp_quality(run, pixels))
    run.lap("encode")
    return packed


def _whole_webp_frames(
    run: Run, stored: webp.Webp, transpose: Transpose | None
) -> tuple[webp.WebpFrame, ...]:
    """Frames drawn on whole canvases: a mirrored place can be odd, which the format cannot say."""
    check_side(Format.WEBP, stored.size)
    frames: list[webp.WebpFrame] = []
    drawn_frames = _shown(run, composed(stored.size, webp.layers(stored)))
    for frame, drawn in zip(stored.frames, drawn_frames, strict=True):
        turned = run.turn(drawn.image, transpose)
        bits = webp.pack(turned, run.recipe.effort, quality=_webp_quality(run, frame.pixels))
        frames.append(webp.WebpFrame(Rect(0, 0, *turned.size), frame.duration_ms, webp.NO_BLEND, bits))
        run.lap("encode")
    return tuple(frames)


def _tiff(run: Run) -> Result:
    """TIFF to TIFF, page by page, each with its own orientation and compression."""
    pages: list[TiffPage] = []
    transpose = compose(1, run.recipe.turn)  # Pillow has already turned each page upright
    with decoding(Format.TIFF):
        stored = tiff.check_tiff(run.data, run.limits)
        image = cast("TiffImageFile", open_image(Format.TIFF, run.source))
        described = [()] * len(stored) if run.recipe.strip else tiff.descriptions(run.data, len(stored))
    for index, page in enumerate(stored):
        with decoding(Format.TIFF):
            image.seek(index)
            pixels = _loaded_page(image)
            if tiff.is_deep(image) and run.recipe.format is None:
                raise _too_deep(Format.TIFF)
        run.lap("decode")
        turned = run.turn(pixels, transpose)
        with decoding(Format.TIFF):
            settings = tiff.page_settings(image, turned, strip=run.recipe.strip, quality=run.recipe.quality)
        fields = tiff.turned_fields(described[index], compose(page.orientation, run.recipe.turn))
        pages.append(TiffPage(turned.copy() if turned is image else turned, settings, fields))
    write_pages(run.sink, pages)
    run.lap("encode")
    return run.result(pages[0].image.size, len(pages))


def _loaded_page(image: TiffImageFile) -> Image.Image:
    """Decode a page, turned by its orientation tag alone: Pillow would also believe the XMP."""
    xmp = image.info.pop("xmp", None)
    image.load()
    if xmp is not None:
        image.info["xmp"] = xmp
    return tiff.as_meant(image)


def _too_deep(form: Format) -> UnsupportedImage:
    return UnsupportedImage(
        f"This {CODECS[form].name} has more than 8 bits per channel, which would be lost. "
        f"Convert it to 8 bits, or ask for them with format={form if form in OUTPUT_FORMATS else 'png'}.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """What a header tells before decoding.

    Args:
        frames: how many frames can be drawn.
        orientation: of the stored pixels, 1 where Pillow or the container has dealt with it.
        applied: the orientation that Pillow applies when it decodes; the resolution still needs it.
        exif, xmp: as stored.
        plays: how often an animation runs, 0 for ever; None for ask Pillow.
        drawn: its frames with their durations, where Pillow would show them wrongly.
        is_deep: True when decoding halves the depth.
        markers: of a JPEG.
    """

    frames: int = 1
    orientation: int = 1
    applied: int = 1
    exif: bytes = b""
    xmp: bytes = b""
    plays: int | None = 0
    drawn: Iterator[tuple[Image.Image, float]] | None = None
    is_deep: bool = False
    markers: Jpeg | None = None


def _jpeg_head(run: Run) -> _Head:
    markers = read_jpeg(run.data, run.limits)
    return _Head(orientation=markers.orientation, exif=markers.exif, markers=markers)


def _png_head(run: Run) -> _Head:
    stored = png.read_png(run.data, run.limits)
    exif = stored.find(b"eXIf")
    drawn: Iterator[tuple[Image.Image, float]] | None = None
    if stored.frames:
        drawn = composed(stored.size, png.layers(stored))
    elif stored.has_own_key and stored.still is not None:
        drawn = iter([(png.coloured(stored, stored.still, stored.size), 0)])
    return _Head(
        frames=max(1, len(stored.frames)),
        orientation=orientation_of(exif),
        exif=exif,
        plays=stored.plays,
        drawn=drawn,
    )


def _gif_head(run: Run) -> _Head:
    stored = gif.read_gif(run.data, run.limits)
    frames = len(stored.frames)
    is_plain = frames == 1 and stored.frames[0].rect == (0, 0, *stored.size)
    drawn = None if is_plain else composed(stored.size, gif.layers(stored))
    return _Head(frames=frames, plays=None, drawn=drawn)


def _webp_head(run: Run) -> _Head:
    stored = webp.read_webp(run.data, run.limits)
    return _Head(
        frames=len(stored.frames),
        orientation=orientation_of(stored.exif),
        exif=stored.exif,
        xmp=stored.xmp,
        plays=stored.loops or 0,
        drawn=None if stored.loops is None else composed(stored.size, webp.layers(stored)),
    )


def _tiff_head(run: Run) -> _Head:
    return _Head(applied=tiff.check_tiff(run.data, run.limits)[0].orientation)


def _other_head(run: Run) -> _Head:
    image = open_image(run.form, run.source)
    frames = getattr(image, "n_frames", 1)
    run.limits.check_size(*image.size)
    run.limits.check_frames(frames)
    run.limits.check_total(image.width * image.height * frames)
    simple.check_end(run.form, run.data)
    exif = image.info.get("exif", b"")
    simple.check_rows(run.form, image, run.data)
    is_deep = simple.is_deep(run.form, image, run.data)
    return _Head(frames=frames, orientation=orientation_of(exif), exif=exif, is_deep=is_deep)


_HEADS: dict[Format, Callable[[Run], _Head]] = {
    Format.JPEG: _jpeg_head,
    Format.PNG: _png_head,
    Format.GIF: _gif_head,
    Format.WEBP: _webp_head,
    Format.TIFF: _tiff_head,
}


def _drawn(run: Run, head: _Head, count: int) -> Iterator[Frame]:
    """Frames as Pillow composes them, upright or not; tells the lap."""
    with decoding(run.form):
        image = open_image(run.form, run.source)
    for index in range(count):
        with decoding(run.form):
            if index:
                image.seek(index)
            pixels: Image.Image = image
            if isinstance(image, TiffImageFile):
                pixels = _loaded_page(image)
            else:
                image.load()
            if head.markers is not None:
                check_complete(head.markers, image, run.data)
        run.lap("decode")
        yield Frame(pixels, float(image.info.get("duration") or 0))


def _shown(run: Run, frames: Iterator[tuple[Image.Image, float]]) -> Iterator[Frame]:
    """Frames as we draw them, with what lies beside the pixels; tells the lap."""
    with decoding(run.form):
        info = open_image(run.form, run.source).info
    while True:
        with decoding(run.form):
            following = next(frames, None)
        if following is None:
            return
        image, duration_ms = following
        image.info = {key: info[key] for key in ("icc_profile", "dpi", "xmp", "loop") if key in info}
        run.lap("decode")
        yield Frame(image, duration_ms)


def _redraw(run: Run) -> Result:
    """Any format to any other, and the simple formats to themselves."""
    with decoding(run.form):
        head = _HEADS.get(run.form, _other_head)(run)
    if head.is_deep and run.recipe.format is None:
        raise _too_deep(run.form)
    transpose = compose(head.orientation, run.recipe.turn)
    count = head.frames if run.target in MANY_FRAMES else 1
    drawn = _drawn(run, head, count) if head.drawn is None else _shown(run, head.drawn)
    first = next(drawn)
    size = turned_size(transpose, first.image.size)
    check_side(run.target, size)

    def turned() -> Iterator[Frame]:
        for frame in islice(chain([first], drawn), count):
            image = run.turn(frame.image, transpose)
            # An image that is still a file would be written with all its frames, or change under us.
            yield replace(frame, image=image.copy() if image is frame.image else image)
            run.lap("encode")

    target = Target(
        form=run.target,
        quality=run.recipe.quality,
        effort=run.recipe.effort,
        attachments=_attachments(run, head, first.image),
        source=run.form,
        frames=count,
        plays=_plays(first.image, head),
        settings=simple.kept_settings(run.form, run.data) if run.target is run.form else {},
    )
    encode(run.sink, turned(), target)
    if run.form is run.target is Format.AVIF:
        avif.keep_colours(run.sink, run.data)
    run.lap("encode")
    return run.result(size, count)


def _plays(image: Image.Image, head: _Head) -> int:
    """How often an animation runs. A GIF counts repetitions, and without a loop block it runs once."""
    if head.plays is not None:
        return head.plays
    repetitions = image.info.get("loop")
    return 1 if repetitions is None else repetitions and repetitions + 1


def _attachments(run: Run, head: _Head, image: Image.Image) -> Attachments:
    """What the result carries beside its pixels."""
    if run.recipe.strip:
        return Attachments(strip=True)
    exif, xmp = head.exif, head.xmp or image.info.get("xmp")
    if not isinstance(xmp, bytes):  # a TIFF may give it any type
        xmp = b""
    if run.form is Format.TIFF:
        with decoding(run.form):
            exif = ifd.exif_from(*tiff.descriptions(run.data))
    stored = head.orientation if head.applied == 1 else head.applied
    dpi = _sound_dpi(image.info.get("dpi"))
    if dpi is not None and swaps_axes(compose(stored, run.recipe.turn)):
        dpi = (dpi[1], dpi[0])
    return Attachments(exif=upright_exif(exif), xmp=upright_xmp(without_companions(xmp)), dpi=dpi)


def _sound_dpi(dpi: object) -> tuple[float, float] | None:
    """A resolution that every format can say; files claim all sorts of numbers, and some that are none."""
    try:
        horizontal, vertical = (float(number) for number in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (horizontal, vertical) if 0 < horizontal < _MAX_DPI and 0 < vertical < _MAX_DPI else None


_SAME_FORMAT: dict[Format, Callable[[Run], Result]] = {
    Format.JPEG: _jpeg,
    Format.PNG: _png,
    Format.GIF: _gif,
    Format.WEBP: _webp,
    Format.TIFF: _tiff,
}
