"""The route of formats to themselves: all is kept except the pixels and what depends on the axes."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from PIL import Image
from PIL.Image import Transpose

from server.errors import NotLossless, UnsupportedImage
from server.imaging.animation import Canvas, Disposal
from server.imaging.codecs import Format, decoding, encoding, open_image, too_deep, write_whole
from server.imaging.formats import gif, png, tiff, vp8, webp
from server.imaging.geometry import Rect, compose, enclosing, swaps_axes, turned_rect, turned_size
from server.imaging.jpeg.ending import whole_jpeg
from server.imaging.jpeg.kernel import Impossible
from server.imaging.jpeg.markers import Jpeg, check_decoded, kept_segments
from server.imaging.jpeg.mirror import Mirror
from server.imaging.jpeg.pixels import check_complete, disown_adobe, encoder_settings, write_density
from server.imaging.jpeg.transpose import Transposition
from server.imaging.limits import Tally
from server.imaging.metadata.exif import kept_exif, orientation_of, turned_fields
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.xmp import kept_xmp
from server.imaging.recipe import Result, Run
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
        policy = run.policy(transpose, markers.size)
        kept = kept_segments(markers, policy)
        image.load()
        check_complete(markers, image, run.data)
    run.lap("decode")
    turned = run.turn(image, transpose)
    with encoding(Format.JPEG, turned.size):
        turned.save(run.sink, "JPEG", comment=b"", extra=kept, **settings)
    if turned.mode == "CMYK":
        if markers.adobe_transform is None:
            disown_adobe(run.sink)
    elif markers.jfif and policy.has_resolution and not settings["keep_rgb"]:
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
    for piece in turn.pieces(run.policy(transpose, markers.size)):
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

    result = png.turned(stored, run.policy(transpose, stored.size))
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
        with decoding(Format.GIF, frame.stored_size):
            indices = gif.unpack(frame)
        run.lap("decode")
        turned = run.turn(indices, transpose)
        with encoding(Format.GIF, turned.size):
            code_size, lzw = gif.pack(turned, is_interlaced=frame.is_interlaced, code_size=frame.code_size)
        tally.add(len(lzw))
        run.lap("encode")
        return replace(place, code_size=code_size, lzw=lzw, beyond=(0, 0))

    result = gif.turned(stored, run.policy(transpose, stored.size))
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
        frames = _grown_webp_frames(run, stored, rects, transpose, tally)
    else:
        frames = webp.turned_frames(
            stored, rects, [_turned_bitstream(run, frame.pixels, transpose, tally) for frame in stored.frames]
        )
    policy = run.policy(transpose, stored.size)
    size = turned_size(transpose, stored.size)
    result = replace(
        stored,
        size=size,
        frames=frames,
        icc=kept_icc(stored.icc, strip=policy.is_all_stripped),
        exif=kept_exif(stored.exif, policy),
        xmp=kept_xmp(stored.xmp, policy),
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
    image = _turned_image(run, pixels, transpose)
    return _packed(run, image, pixels, tally)


def _turned_image(run: Run, pixels: webp.Bitstream, transpose: Transpose | None) -> Image.Image:
    with decoding(Format.WEBP, pixels.size):
        image = webp.unpack(pixels)
    run.lap("decode")
    return run.turn(image, transpose)


def _packed(run: Run, image: Image.Image, source: webp.Bitstream, tally: Tally) -> webp.Bitstream:
    with encoding(Format.WEBP, image.size):
        packed = webp.pack(image, run.recipe.effort, quality=_webp_quality(run, source))
    tally.add(len(packed.data) + len(packed.alpha))
    run.lap("encode")
    return packed


def _grown_webp_frames(
    run: Run, stored: webp.Webp, rects: list[Rect], transpose: Transpose | None, tally: Tally
) -> tuple[webp.WebpFrame, ...]:
    """Turn frames of which a mirrored offset is odd, which the format cannot express.

    Their rectangles grow by a column to the left or a row to the top, which changes nothing that is seen: the
    added pixels are transparent, and the frame is laid over what is there. Where it replaces that, or would
    take it along when it is cleared away, the frame is stored as it is seen, with what is under it.

    Args:
        run: what the frames belong to.
        stored: the animation before the turn.
        rects: where the frames lie after it.
        transpose: the turn.
        tally: of the result.
    """
    canvas = Canvas(turned_size(transpose, stored.size))
    frames: list[webp.WebpFrame] = []
    uncleared: Rect | None = None  # what has been cleared, and is still on the canvas of a viewer
    for frame, rect in zip(stored.frames, rects, strict=True):
        image = _turned_image(run, frame.pixels, transpose)
        layer = webp.layer(frame, image, rect)
        wide, flags = webp.grown(rect), frame.flags
        is_bare = canvas.is_bare_around(rect, wide)
        canvas.show(layer)
        if uncleared is None and is_bare:
            image = webp.padded(image, rect, wide)
        elif uncleared is None and (layer.is_laid_over or webp.is_opaque(image)):
            image, flags = webp.padded(image, rect, wide), webp.BLEND
        else:
            wide, flags = webp.grown(enclosing(rect, uncleared or rect)), webp.NO_BLEND
            image = canvas.cut(wide)
        is_cleared = layer.disposal is not Disposal.CLEAR or flags == frame.flags
        uncleared = None if is_cleared else rect
        canvas.dispose(layer)
        check_side(Format.WEBP, image.size)
        bits = _packed(run, image, frame.pixels, tally)
        frames.append(webp.WebpFrame(wide, frame.duration_ms, flags, bits))
    return tuple(frames)


def _tiff(run: Run) -> Result:
    """Turn a TIFF, page by page, each with its own orientation and compression."""
    pages: list[TiffPage] = []
    with decoding(Format.TIFF):
        stored = tiff.check_tiff(run.data, run.limits)
        image = cast("TiffFile", open_image(Format.TIFF, run.data))
        described = tiff.descriptions(run.data, len(stored))
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
            policy = run.policy(transpose, page.size)
            strip = policy.is_all_stripped
            settings = tiff.page_settings(image, turned, strip=strip, quality=run.recipe.quality)
            shorts = tiff.shorts_of(image, turned)
            fields = turned_fields(described[index], policy)
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
