"""The route of formats to themselves: all is kept except the pixels and what depends on the axes."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from PIL.Image import Transpose

from server.errors import NotLossless, UnsupportedImage
from server.imaging.animation import composed
from server.imaging.codecs import Format, decoding, encoding, open_image, too_deep, write_whole
from server.imaging.formats import gif, png, tiff, vp8, webp
from server.imaging.geometry import Rect, compose, swaps_axes, turned_rect, turned_size
from server.imaging.jpeg.ending import whole_jpeg
from server.imaging.jpeg.kernel import Impossible
from server.imaging.jpeg.markers import Jpeg, check_decoded, kept_segments
from server.imaging.jpeg.mirror import Mirror
from server.imaging.jpeg.pixels import check_complete, disown_adobe, encoder_settings, write_density
from server.imaging.jpeg.transpose import Transposition
from server.imaging.limits import Tally
from server.imaging.metadata.exif import orientation_of, upright_exif
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.xmp import upright_xmp
from server.imaging.recipe import Result, Run
from server.imaging.redraw import shown
from server.imaging.transcode import TiffPage, check_side, write_pages

if TYPE_CHECKING:
    from PIL.JpegImagePlugin import JpegImageFile

    from server.imaging.formats.tiff_file import TiffFile


def _jpeg(run: Run) -> Result:
    """Turn a JPEG into a JPEG, encoded as the source was."""
    with decoding(Format.JPEG):
        data, markers = whole_jpeg(run.data, run.limits)
    run = replace(run, data=data)
    transpose = compose(markers.orientation, run.recipe.turn)
    if run.recipe.path != "pixels":
        try:
            return _moved_jpeg(run, markers, transpose)
        except Impossible as reason:
            if run.recipe.path == "lossless":
                raise NotLossless(f"This is not possible without loss: {reason}. Leave `path` out.") from None
            run.limits.check_size(*markers.size, str(reason))
    check_decoded(markers, run.limits)
    with decoding(Format.JPEG, markers.size):
        image = cast("JpegImageFile", open_image(Format.JPEG, run.data))
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
    with encoding(Format.JPEG, turned.size):
        turned.save(run.sink, "JPEG", comment=b"", extra=kept, **settings)
    if turned.mode == "CMYK":
        if markers.adobe_transform is None:
            disown_adobe(run.sink)
    elif markers.jfif and not (run.recipe.strip or settings["keep_rgb"]):
        write_density(run.sink, markers.jfif, transpose)
    run.lap("encode")
    return run.result(turned.size)


def _moved_jpeg(run: Run, markers: Jpeg, transpose: Transpose | None) -> Result:
    """Turn a JPEG by its coefficients.

    Raises:
        Impossible: that cannot be done; nothing has been written.
    """
    if run.recipe.quality is not None:
        raise Impossible("another quality is asked for")
    run.lap("decode")  # a crash from here on is that of a recipe: others do without the compiled module
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
    """Turn a PNG or an APNG, chunk by chunk."""
    with decoding(Format.PNG):
        stored = png.read_png(run.data, run.limits)
    transpose = compose(orientation_of(stored.find(b"eXIf")), run.recipe.turn)
    tally = Tally(run.limits)

    def turn(stream: bytes, size: tuple[int, int]) -> bytes:
        with decoding(Format.PNG, size):
            planes = png.unpack(stored, stream, size)
        run.lap("decode")
        turned = tuple(plane if transpose is None else plane.transpose(transpose) for plane in planes)
        run.lap("transform")
        with encoding(Format.PNG, size):
            packed = png.pack(stored, turned, run.recipe.effort)
        tally.add(len(packed))
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
    """Turn a GIF, block by block."""
    with decoding(Format.GIF):
        stored = gif.read_gif(run.data, run.limits)
    transpose = compose(1, run.recipe.turn)
    tally = Tally(run.limits)

    def turn(frame: gif.GifFrame, place: gif.GifFrame) -> gif.GifFrame:
        size = (frame.rect.width, frame.rect.height)
        with decoding(Format.GIF, size):
            indices = gif.unpack(frame)
        run.lap("decode")
        turned = run.turn(indices, transpose)
        with encoding(Format.GIF, size):
            code_size, lzw = gif.pack(turned, is_interlaced=frame.is_interlaced, code_size=frame.code_size)
        tally.add(len(lzw))
        run.lap("encode")
        return replace(place, code_size=code_size, lzw=lzw)

    result = gif.turned(stored, transpose, strip=run.recipe.strip)
    fresh = iter([turn(old, new) for old, new in zip(stored.frames, result.frames, strict=True)])
    blocks = tuple(next(fresh) if isinstance(block, gif.GifFrame) else block for block in result.blocks)
    gif.write_gif(run.sink, replace(result, blocks=blocks))
    run.lap("encode")
    return run.result(result.size, len(result.frames))


def _webp(run: Run) -> Result:
    """Turn a WebP, frame by frame."""
    with decoding(Format.WEBP):
        stored = webp.read_webp(run.data, run.limits)
    transpose = compose(orientation_of(stored.exif), run.recipe.turn)
    tally = Tally(run.limits)
    rects = [turned_rect(transpose, frame.rect, stored.size) for frame in stored.frames]
    if any(rect.x % 2 or rect.y % 2 for rect in rects):
        frames = _whole_webp_frames(run, stored, transpose, tally)
    else:
        frames = webp.turned_frames(
            stored, rects, [_turned_bitstream(run, frame.pixels, transpose, tally) for frame in stored.frames]
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


def _turned_bitstream(
    run: Run, pixels: webp.Bitstream, transpose: Transpose | None, tally: Tally
) -> webp.Bitstream:
    with decoding(Format.WEBP, pixels.size):
        image = webp.unpack(pixels)
    run.lap("decode")
    turned = run.turn(image, transpose)
    with encoding(Format.WEBP, turned.size):
        packed = webp.pack(turned, run.recipe.effort, quality=_webp_quality(run, pixels))
    tally.add(len(packed.data) + len(packed.alpha))
    run.lap("encode")
    return packed


def _whole_webp_frames(
    run: Run, stored: webp.Webp, transpose: Transpose | None, tally: Tally
) -> tuple[webp.WebpFrame, ...]:
    """Draw frames on whole canvases: a mirrored offset can be odd, which the format cannot express."""
    check_side(Format.WEBP, stored.size)
    frames: list[webp.WebpFrame] = []
    drawn_frames = shown(run, composed(stored.size, webp.layers(stored)), stored.size)
    for frame, drawn in zip(stored.frames, drawn_frames, strict=True):
        turned = run.turn(drawn.image, transpose)
        with encoding(Format.WEBP, turned.size):
            bits = webp.pack(turned, run.recipe.effort, quality=_webp_quality(run, frame.pixels))
        tally.add(len(bits.data) + len(bits.alpha))
        frames.append(webp.WebpFrame(Rect(0, 0, *turned.size), frame.duration_ms, webp.NO_BLEND, bits))
        run.lap("encode")
    return tuple(frames)


def _tiff(run: Run) -> Result:
    """Turn a TIFF, page by page, each with its own orientation and compression."""
    pages: list[TiffPage] = []
    with decoding(Format.TIFF):
        stored = tiff.check_tiff(run.data, run.limits)
        image = cast("TiffFile", open_image(Format.TIFF, run.data))
        described = [()] * len(stored) if run.recipe.strip else tiff.descriptions(run.data, len(stored))
    for index, page in enumerate(stored):
        with decoding(Format.TIFF, page.size):
            image.seek(index)
            pixels = tiff.as_narrow(image, tiff.loaded_page(image, run.data))
            if tiff.is_deep(image) and run.recipe.format is None:
                raise too_deep(Format.TIFF)
        run.lap("decode")
        transpose = compose(page.orientation, run.recipe.turn)
        turned = run.turn(pixels, transpose)
        with decoding(Format.TIFF):
            settings = tiff.page_settings(image, turned, strip=run.recipe.strip, quality=run.recipe.quality)
            shorts = tiff.shorts_of(image, turned)
        fields = tiff.turned_fields(described[index], transpose)
        pages.append(TiffPage(turned.copy() if turned is image else turned, settings, fields, shorts))
    write_pages(run.sink, pages, run.limits)
    run.lap("encode")
    return run.result(pages[0].image.size, len(pages))


#: The formats that have a route of their own.
SAME_FORMAT: dict[Format, Callable[[Run], Result]] = {
    Format.JPEG: _jpeg,
    Format.PNG: _png,
    Format.GIF: _gif,
    Format.WEBP: _webp,
    Format.TIFF: _tiff,
}
