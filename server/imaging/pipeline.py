"""One picture through decode, transform and encode, under limits, with nothing lost that need not be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Literal, cast

from PIL import Image
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

from server.errors import NotLossless, UnsupportedImage
from server.imaging import gif, ifd, jpeg, png, stills, tiff, vp8, webp
from server.imaging.codec import (
    CODECS,
    OUTPUT_FORMATS,
    Data,
    Effort,
    Format,
    Sink,
    Source,
    as_data,
    decoding,
    open_image,
    sniff,
    write_whole,
)
from server.imaging.composition import composed
from server.imaging.conversion import (
    MANY_FRAMES,
    Attachments,
    Frame,
    Target,
    TiffPage,
    check_side,
    encode,
    write_pages,
)
from server.imaging.geometry import Rect, Turn, compose, swaps_axes, turned_rect, turned_size
from server.imaging.icc import kept_icc
from server.imaging.limits import Limits
from server.imaging.lossless import Moving
from server.imaging.metadata import orientation_of, upright_exif, upright_xmp, without_companions
from server.imaging.recoded import Recoding
from server.imaging.sequential import Impossible

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

__all__ = [
    "OUTPUT_FORMATS",
    "PATHS",
    "Format",
    "ImagePath",
    "Limits",
    "Recipe",
    "Result",
    "Stage",
    "Turn",
    "process",
]

#: How a picture is made: "pixels" are decoded and encoded again; the coefficients of a JPEG only change
#: places ("lossless"), or some of them are mixed and quantized again ("coefficients").
ImagePath = Literal["lossless", "coefficients", "pixels"]
PATHS: tuple[ImagePath, ...] = ("lossless", "coefficients", "pixels")

#: What `lap` is told has just ended.
Stage = Literal["decode", "transform", "encode"]

_MAX_DPI = 65535


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to make of a picture.

    Args:
        turn: applied to what a person sees.
        format: of the result; None for the source's own.
        quality: 1 to 100; None keeps a JPEG's own tables, and elsewhere means a good default.
        strip: drop EXIF, XMP, texts, comments and resolution. The colour profile goes too if it is sRGB;
            any other one stays, because without it the colours would change.
        path: None for lossless where that is possible, and pixels otherwise.
        effort: how long to look for a smaller file, where the encoder has a choice: PNG, WebP and AVIF.
    """

    turn: Turn
    format: Format | None = None
    quality: int | None = None
    strip: bool = False
    path: ImagePath | None = None
    effort: Effort = Effort.NORMAL


@dataclass(frozen=True, slots=True)
class Result:
    """What came out.

    Args:
        format: of the bytes in the sink.
        media_type: for `Content-Type`.
        width, height: of the canvas, in pixels.
        frames: how many there are; pages, for a TIFF.
        path: how it was made.
    """

    format: Format
    media_type: str
    width: int
    height: int
    frames: int
    path: ImagePath


def _no_lap(_stage: Stage, /) -> None:
    """Nobody measures."""


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything about one call of `process`."""

    source: Source
    data: Data
    form: Format
    sink: Sink
    recipe: Recipe
    limits: Limits
    lap: Callable[[Stage], None]

    @property
    def target(self) -> Format:
        return self.recipe.format or self.form

    def result(self, size: tuple[int, int], frames: int = 1, path: ImagePath = "pixels") -> Result:
        """The answer, once everything is written."""
        return Result(self.target, CODECS[self.target].media_type, *size, frames, path)

    def turn(self, image: Image.Image, transpose: Transpose | None) -> Image.Image:
        """The turned picture; tells the lap."""
        turned = image if transpose is None else image.transpose(transpose)
        self.lap("transform")
        return turned


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
    job = _Job(source, data, form, sink, recipe, limits, lap)
    route = _SAME_FORMAT.get(form, _redraw) if job.target is form else _redraw
    if recipe.path == "lossless" and route is not _jpeg:
        raise NotLossless("Only a JPEG that stays one can be turned without loss. Leave `path` out.")
    if job.target is not Format.JPEG:  # other encoders may leave holes, through which old bytes would show
        sink.truncate(0)
    result = route(job)
    if job.target is Format.JPEG:
        sink.truncate()
    return result


def _jpeg(job: _Job) -> Result:
    """JPEG to JPEG, coded as the source was."""
    with decoding(Format.JPEG):
        markers = jpeg.read_jpeg(job.data, job.limits)
    transpose = compose(markers.orientation, job.recipe.turn)
    if job.recipe.path != "pixels":
        try:
            return _moved_jpeg(job, markers, transpose)
        except Impossible as reason:
            if job.recipe.path == "lossless":
                raise NotLossless(f"This is not possible without loss: {reason}. Leave `path` out.") from None
    with decoding(Format.JPEG):
        image = cast("JpegImageFile", open_image(Format.JPEG, job.source))
        if not image.quantization and job.recipe.quality is None:
            raise UnsupportedImage(
                "This JPEG is lossless, which cannot be written again. Ask for format=png, or for a quality.",
            )
        settings = jpeg.encoder_settings(markers, image, transpose, job.recipe.quality)
        kept = jpeg.kept_segments(markers, strip=job.recipe.strip)
        image.load()
        jpeg.check_complete(markers, image, job.data)
    job.lap("decode")
    turned = job.turn(image, transpose)
    turned.save(job.sink, "JPEG", comment=b"", extra=kept, **settings)
    if turned.mode == "CMYK":
        if markers.adobe_transform is None:
            jpeg.disown_adobe(job.sink)
    elif markers.jfif and not (job.recipe.strip or settings["keep_rgb"]):
        jpeg.write_density(job.sink, markers.jfif, transpose)
    job.lap("encode")
    return job.result(turned.size)


def _moved_jpeg(job: _Job, markers: jpeg.Jpeg, transpose: Transpose | None) -> Result:
    """JPEG to JPEG by its coefficients.

    Raises:
        Impossible: that cannot be done; nothing has been written.
    """
    if job.recipe.quality is not None:
        raise Impossible("another quality is asked for")
    kind = Recoding if swaps_axes(transpose) else Moving
    turn = kind(job.data, markers, transpose, must_be_exact=job.recipe.path == "lossless")
    job.lap("decode")
    job.lap("transform")  # which is part of either
    for piece in turn.pieces(strip=job.recipe.strip):
        write_whole(job.sink, piece)
    job.lap("encode")
    return job.result(
        turned_size(transpose, markers.size), path="lossless" if turn.is_exact else "coefficients"
    )


def _png(job: _Job) -> Result:
    """PNG to PNG and APNG to APNG, chunk by chunk."""
    with decoding(Format.PNG):
        stored = png.read_png(job.data, job.limits)
    transpose = compose(orientation_of(stored.find(b"eXIf")), job.recipe.turn)

    def turn(stream: bytes, size: tuple[int, int]) -> bytes:
        with decoding(Format.PNG):
            planes = png.unpack(stored, stream, size)
        job.lap("decode")
        turned = tuple(plane if transpose is None else plane.transpose(transpose) for plane in planes)
        job.lap("transform")
        packed = png.pack(stored, turned, job.recipe.effort)
        job.lap("encode")
        return packed

    result = png.turned(stored, transpose, strip=job.recipe.strip)
    frames = tuple(
        replace(new, stream=turn(old.stream, (old.rect.width, old.rect.height)))
        for old, new in zip(stored.frames, result.frames, strict=True)
    )
    still = None if stored.still is None else turn(stored.still, stored.size)
    png.write_png(job.sink, replace(result, still=still, frames=frames))
    job.lap("encode")
    return job.result(result.size, max(1, len(frames)))


def _gif(job: _Job) -> Result:
    """GIF to GIF, block by block."""
    with decoding(Format.GIF):
        stored = gif.read_gif(job.data, job.limits)
    transpose = compose(1, job.recipe.turn)

    def turn(frame: gif.GifFrame, place: gif.GifFrame) -> gif.GifFrame:
        with decoding(Format.GIF):
            indices = gif.unpack(frame)
        job.lap("decode")
        turned = job.turn(indices, transpose)
        code_size, lzw = gif.pack(turned, is_interlaced=frame.is_interlaced, code_size=frame.code_size)
        job.lap("encode")
        return replace(place, code_size=code_size, lzw=lzw)

    result = gif.turned(stored, transpose, strip=job.recipe.strip)
    fresh = iter([turn(old, new) for old, new in zip(stored.frames, result.frames, strict=True)])
    blocks = tuple(next(fresh) if isinstance(block, gif.GifFrame) else block for block in result.blocks)
    gif.write_gif(job.sink, replace(result, blocks=blocks))
    job.lap("encode")
    return job.result(result.size, len(result.frames))


def _webp(job: _Job) -> Result:
    """WebP to WebP, frame by frame."""
    with decoding(Format.WEBP):
        stored = webp.read_webp(job.data, job.limits)
    transpose = compose(orientation_of(stored.exif), job.recipe.turn)
    rects = [turned_rect(transpose, frame.rect, stored.size) for frame in stored.frames]
    if any(rect.x % 2 or rect.y % 2 for rect in rects):
        frames = _whole_webp_frames(job, stored, transpose)
    else:
        frames = webp.turned_frames(
            stored, rects, [_turned_bitstream(job, frame.pixels, transpose) for frame in stored.frames]
        )
    strip = job.recipe.strip
    size = turned_size(transpose, stored.size)
    result = replace(
        stored,
        size=size,
        frames=frames,
        icc=kept_icc(stored.icc, strip=strip),
        exif=b"" if strip else upright_exif(stored.exif),
        xmp=b"" if strip else upright_xmp(stored.xmp),
    )
    webp.write_webp(job.sink, result)
    job.lap("encode")
    return job.result(size, len(frames))


def _webp_quality(job: _Job, pixels: webp.Bitstream) -> int | None:
    if job.recipe.quality is not None:
        return job.recipe.quality
    return None if pixels.is_lossless else vp8.estimated_quality(pixels.data)


def _turned_bitstream(job: _Job, pixels: webp.Bitstream, transpose: Transpose | None) -> webp.Bitstream:
    with decoding(Format.WEBP):
        image = webp.unpack(pixels)
    job.lap("decode")
    turned = job.turn(image, transpose)
    packed = webp.pack(turned, job.recipe.effort, quality=_webp_quality(job, pixels))
    job.lap("encode")
    return packed


def _whole_webp_frames(
    job: _Job, stored: webp.Webp, transpose: Transpose | None
) -> tuple[webp.WebpFrame, ...]:
    """Frames drawn on whole canvases: a mirrored place can be odd, which the format cannot say."""
    check_side(Format.WEBP, stored.size)
    frames: list[webp.WebpFrame] = []
    drawn_frames = _shown(job, composed(stored.size, webp.layers(stored)))
    for frame, drawn in zip(stored.frames, drawn_frames, strict=True):
        turned = job.turn(drawn.image, transpose)
        bits = webp.pack(turned, job.recipe.effort, quality=_webp_quality(job, frame.pixels))
        frames.append(webp.WebpFrame(Rect(0, 0, *turned.size), frame.duration_ms, webp.NO_BLEND, bits))
        job.lap("encode")
    return tuple(frames)


def _tiff(job: _Job) -> Result:
    """TIFF to TIFF, page by page, each with its own orientation and compression."""
    pages: list[TiffPage] = []
    transpose = compose(1, job.recipe.turn)  # Pillow has already turned each page upright
    with decoding(Format.TIFF):
        stored = tiff.check_tiff(job.data, job.limits)
        image = cast("TiffImageFile", open_image(Format.TIFF, job.source))
        described = [()] * len(stored) if job.recipe.strip else tiff.descriptions(job.data, len(stored))
    for index, page in enumerate(stored):
        with decoding(Format.TIFF):
            image.seek(index)
            pixels = _loaded_page(image)
            if tiff.is_deep(image) and job.recipe.format is None:
                raise _too_deep(Format.TIFF)
        job.lap("decode")
        turned = job.turn(pixels, transpose)
        with decoding(Format.TIFF):
            settings = tiff.page_settings(image, turned, strip=job.recipe.strip, quality=job.recipe.quality)
        fields = tiff.turned_fields(described[index], compose(page.orientation, job.recipe.turn))
        pages.append(TiffPage(turned.copy() if turned is image else turned, settings, fields))
    write_pages(job.sink, pages)
    job.lap("encode")
    return job.result(pages[0].image.size, len(pages))


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
    markers: jpeg.Jpeg | None = None


def _jpeg_head(job: _Job) -> _Head:
    markers = jpeg.read_jpeg(job.data, job.limits)
    return _Head(orientation=markers.orientation, exif=markers.exif, markers=markers)


def _png_head(job: _Job) -> _Head:
    stored = png.read_png(job.data, job.limits)
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


def _gif_head(job: _Job) -> _Head:
    stored = gif.read_gif(job.data, job.limits)
    frames = len(stored.frames)
    is_plain = frames == 1 and stored.frames[0].rect == (0, 0, *stored.size)
    drawn = None if is_plain else composed(stored.size, gif.layers(stored))
    return _Head(frames=frames, plays=None, drawn=drawn)


def _webp_head(job: _Job) -> _Head:
    stored = webp.read_webp(job.data, job.limits)
    return _Head(
        frames=len(stored.frames),
        orientation=orientation_of(stored.exif),
        exif=stored.exif,
        xmp=stored.xmp,
        plays=stored.loops or 0,
        drawn=None if stored.loops is None else composed(stored.size, webp.layers(stored)),
    )


def _tiff_head(job: _Job) -> _Head:
    return _Head(applied=tiff.check_tiff(job.data, job.limits)[0].orientation)


def _other_head(job: _Job) -> _Head:
    image = open_image(job.form, job.source)
    frames = getattr(image, "n_frames", 1)
    job.limits.check_size(*image.size)
    job.limits.check_frames(frames)
    job.limits.check_total(image.width * image.height * frames)
    stills.check_end(job.form, job.data)
    exif = image.info.get("exif", b"")
    stills.check_rows(job.form, image, job.data)
    is_deep = stills.is_deep(job.form, image, job.data)
    return _Head(frames=frames, orientation=orientation_of(exif), exif=exif, is_deep=is_deep)


_HEADS: dict[Format, Callable[[_Job], _Head]] = {
    Format.JPEG: _jpeg_head,
    Format.PNG: _png_head,
    Format.GIF: _gif_head,
    Format.WEBP: _webp_head,
    Format.TIFF: _tiff_head,
}


def _drawn(job: _Job, head: _Head, count: int) -> Iterator[Frame]:
    """Frames as Pillow composes them, upright or not; tells the lap."""
    with decoding(job.form):
        image = open_image(job.form, job.source)
    for index in range(count):
        with decoding(job.form):
            if index:
                image.seek(index)
            pixels: Image.Image = image
            if isinstance(image, TiffImageFile):
                pixels = _loaded_page(image)
            else:
                image.load()
            if head.markers is not None:
                jpeg.check_complete(head.markers, image, job.data)
        job.lap("decode")
        yield Frame(pixels, float(image.info.get("duration") or 0))


def _shown(job: _Job, frames: Iterator[tuple[Image.Image, float]]) -> Iterator[Frame]:
    """Frames as we draw them, with what lies beside the pixels; tells the lap."""
    with decoding(job.form):
        info = open_image(job.form, job.source).info
    while True:
        with decoding(job.form):
            following = next(frames, None)
        if following is None:
            return
        image, duration_ms = following
        image.info = {key: info[key] for key in ("icc_profile", "dpi", "xmp", "loop") if key in info}
        job.lap("decode")
        yield Frame(image, duration_ms)


def _redraw(job: _Job) -> Result:
    """Any format to any other, and the simple formats to themselves."""
    with decoding(job.form):
        head = _HEADS.get(job.form, _other_head)(job)
    if head.is_deep and job.recipe.format is None:
        raise _too_deep(job.form)
    transpose = compose(head.orientation, job.recipe.turn)
    count = head.frames if job.target in MANY_FRAMES else 1
    drawn = _drawn(job, head, count) if head.drawn is None else _shown(job, head.drawn)
    first = next(drawn)
    size = turned_size(transpose, first.image.size)
    check_side(job.target, size)

    def turned() -> Iterator[Frame]:
        for frame in islice(chain([first], drawn), count):
            image = job.turn(frame.image, transpose)
            # An image that is still a file would be written with all its frames, or change under us.
            yield replace(frame, image=image.copy() if image is frame.image else image)
            job.lap("encode")

    target = Target(
        form=job.target,
        quality=job.recipe.quality,
        effort=job.recipe.effort,
        attachments=_attachments(job, head, first.image),
        source=job.form,
        frames=count,
        plays=_plays(first.image, head),
        settings=stills.kept_settings(job.form, job.data) if job.target is job.form else {},
    )
    encode(job.sink, turned(), target)
    if job.form is job.target is Format.AVIF:
        stills.keep_avif_colours(job.sink, job.data)
    job.lap("encode")
    return job.result(size, count)


def _plays(image: Image.Image, head: _Head) -> int:
    """How often an animation runs. A GIF counts repetitions, and without a loop block it runs once."""
    if head.plays is not None:
        return head.plays
    repetitions = image.info.get("loop")
    return 1 if repetitions is None else repetitions and repetitions + 1


def _attachments(job: _Job, head: _Head, image: Image.Image) -> Attachments:
    """What the result carries beside its pixels."""
    if job.recipe.strip:
        return Attachments(strip=True)
    exif, xmp = head.exif, head.xmp or image.info.get("xmp")
    if not isinstance(xmp, bytes):  # a TIFF may give it any type
        xmp = b""
    if job.form is Format.TIFF:
        with decoding(job.form):
            exif = ifd.exif_from(*tiff.descriptions(job.data))
    stored = head.orientation if head.applied == 1 else head.applied
    dpi = _sound_dpi(image.info.get("dpi"))
    if dpi is not None and swaps_axes(compose(stored, job.recipe.turn)):
        dpi = (dpi[1], dpi[0])
    return Attachments(exif=upright_exif(exif), xmp=upright_xmp(without_companions(xmp)), dpi=dpi)


def _sound_dpi(dpi: object) -> tuple[float, float] | None:
    """A resolution that every format can say; files claim all sorts of numbers, and some that are none."""
    try:
        horizontal, vertical = (float(number) for number in dpi)  # type: ignore[attr-defined]
    except (TypeError, ValueError, ArithmeticError):
        return None
    return (horizontal, vertical) if 0 < horizontal < _MAX_DPI and 0 < vertical < _MAX_DPI else None


_SAME_FORMAT: dict[Format, Callable[[_Job], Result]] = {
    Format.JPEG: _jpeg,
    Format.PNG: _png,
    Format.GIF: _gif,
    Format.WEBP: _webp,
    Format.TIFF: _tiff,
}
