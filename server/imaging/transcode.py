"""Turned frames written in another format: one image, or every frame with its duration."""

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from io import BytesIO
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from PIL.TiffImagePlugin import AppendingTiffWriter

from server.errors import UnsupportedImage
from server.imaging.animation import Clock
from server.imaging.codecs import CODECS, Effort, Format, Sink, encoding, write_whole
from server.imaging.formats import avif, bmp, gif, png, simple, tiff, webp
from server.imaging.geometry import Rect
from server.imaging.jpeg.markers import segments_for
from server.imaging.limits import Limits, Tally
from server.imaging.metadata import ifd
from server.imaging.metadata.exif import without_orientation
from server.imaging.metadata.icc import kept_icc
from server.imaging.metadata.policy import Policy
from server.imaging.modes import GRAY_MODES, fit, indexed

#: The quality of the result when a format is asked for but no quality.
_QUALITY = {Format.JPEG: 90, Format.WEBP: 90, Format.AVIF: 80}

#: Of libavif, chosen with `python -m benchmarks.cost.encoders` (ADR 14).
_AVIF_SPEED = {Effort.LOW: 9, Effort.NORMAL: 7, Effort.HIGH: 6}

#: Formats that can hold several frames. The others get the first one.
MANY_FRAMES = frozenset({Format.PNG, Format.WEBP, Format.GIF, Format.TIFF, Format.AVIF})

#: Formats that count the runs of an animation in 16 bits: GIF those after the first, WebP all of them.
_SHORT_COUNTS = frozenset({Format.GIF, Format.WEBP})
_MOST_PLAYS = 1 << 16

#: Modes that hold drawings rather than photos: lossless WebP makes small files of these.
_DRAWN_MODES = frozenset({"1", "P"})

_16_BITS, _24_BITS = 0xFFFF, 0xFFFFFF
#: Twelve days; Pillow's encoder of AVIF counts in 32 bits, and wraps around.
_MOST_AVIF_MS = 1 << 30
_ICC_SPACES = {
    b"GRAY": tuple(GRAY_MODES),
    b"CMYK": ("CMYK",),
    b"RGB ": ("RGB", "RGBA", "P", "PA"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Args:
        image: the whole canvas, as composed with the frames before it.
        duration_ms: how long it shows; 0 in a still.
    """

    image: Image.Image
    duration_ms: float = 0


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of the result.

    Args:
        exif: the TIFF structure, its orientation reset; empty for none.
        xmp: the packet, its orientation reset; empty for none.
        iptc: datasets (IPTC IIM 4.2); empty for none.
        comment: about the image; empty for none.
        dpi: horizontal and vertical, already turned; None for unknown.
        policy: which has been followed; the colour profile is still to be dropped where that changes nothing.
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    comment: str = ""
    dpi: tuple[float, float] | None = None
    policy: Policy = field(default_factory=Policy)

    @property
    def strip(self) -> bool:
        """Tell whether a colour profile goes that says what is assumed anyway."""
        return self.policy.is_all_stripped


@dataclass(frozen=True, slots=True)
class Target:
    """What to write, and how.

    Args:
        form: the format.
        quality: 1 to 100, None for a good default.
        effort: of the encoder.
        metadata: its metadata.
        source: the format the frames come from.
        limits: of the result.
        frames: how many there will be.
        plays: how often an animation runs, 0 for ever.
        codes: of the colours, for formats that name them so; None for none.
        settings: more for `save`, of a format that comes out as it came in.
        stored_avif: what the structure of the source says, where both are AVIF.
    """

    form: Format
    quality: int | None
    effort: Effort
    metadata: Metadata
    source: Format
    limits: Limits
    frames: int = 1
    plays: int = 0
    codes: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    stored_avif: avif.Avif | None = None


def _profile(image: Image.Image, *, strip: bool) -> bytes:
    """Return the colour profile if it still describes these pixels (ICC.1:2022, 7.2.6)."""
    icc = image.info.get("icc_profile")
    if not isinstance(icc, bytes):  # a TIFF may give it any type
        return b""
    fits = image.mode in _ICC_SPACES.get(icc[16:20], ())
    return kept_icc(icc, strip=strip) if fits else b""


def check_side(form: Format, size: tuple[int, int]) -> None:
    """Refuse an image that is too large for the format.

    Raises:
        UnsupportedImage: a side is too long.
    """
    codec = CODECS[form]
    if max(size) > codec.max_side:
        raise UnsupportedImage(
            f"The image is {size[0]} x {size[1]} pixels; {codec.name} holds at most {codec.max_side} "
            "to a side. Ask for another format, such as png.",
        )


def check_plays(form: Format, plays: int) -> None:
    """Refuse an animation that runs more often than the format can say.

    WebP says one time less than GIF, which is for ever in effect and is let pass.

    Raises:
        UnsupportedImage: it runs too often.
    """
    if form in _SHORT_COUNTS and plays > _MOST_PLAYS:
        raise UnsupportedImage(
            f"The animation runs {plays} times; {CODECS[form].name} can say at most {_MOST_PLAYS}. "
            "Ask for format=png or format=avif.",
        )


def encode(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    """Write the frames, taking them one by one so that few are in memory at once.

    Raises:
        UnsupportedImage: the format cannot hold them.
        ResultTooLarge: told as soon as it is known.
    """
    _WRITERS[target.form](sink, frames, target)


def _to_jpeg(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    image = fit(next(frames).image, Format.JPEG)
    metadata = target.metadata
    icc = _profile(image, strip=metadata.strip)
    image.save(
        sink,
        "JPEG",
        quality=target.quality or _QUALITY[Format.JPEG],
        dpi=_rounded(metadata.dpi),
        comment=b"",
        extra=segments_for(
            exif=metadata.exif,
            icc=icc,
            xmp=metadata.xmp,
            iptc=metadata.iptc,
            comment=metadata.comment.encode(),
        ),
    )


def _rounded(dpi: tuple[float, float] | None) -> tuple[int, int]:
    """Return dots per inch as JPEG stores them: whole numbers, and zero for unknown."""
    if dpi is None:
        return (0, 0)
    return (round(dpi[0]), round(dpi[1]))


def _to_bmp(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    image = next(frames).image
    dpi = target.metadata.dpi or (96, 96)
    if image.mode == "RGBA" and target.source is Format.BMP:
        target.limits.check_result(bmp.pixel_bytes(image))
        bmp.write_with_alpha(sink, image, dpi)
        return
    image = bmp.writable(fit(image, Format.BMP))
    target.limits.check_result(bmp.pixel_bytes(image))
    image.save(sink, "BMP", dpi=dpi)


def _to_png(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    if target.frames > 1:
        _to_apng(sink, frames, target)
        return
    image = fit(next(frames).image, Format.PNG)
    still = png.still(image, target.effort, _png_settings(image, target.metadata))
    png.write_png(sink, replace(still, before=_with_codes(still, target)))


def _with_codes(still: png.Png, target: Target) -> tuple[png.Chunk, ...]:
    """Return the chunks before the pixels, with the codes of the colours."""
    return still.before if target.codes is None else (png.codes_chunk(*target.codes), *still.before)


def _png_settings(image: Image.Image, metadata: Metadata) -> dict[str, Any]:
    text = PngInfo()
    for chunk in _text_chunks(metadata):
        text.add(*chunk)
    settings: dict[str, Any] = {"pnginfo": text, "icc_profile": _profile(image, strip=metadata.strip)}
    if metadata.exif:
        settings["exif"] = metadata.exif
    if metadata.dpi:
        settings["dpi"] = metadata.dpi
    return settings


def _text_chunks(metadata: Metadata) -> tuple[png.Chunk, ...]:
    return png.text_chunks(xmp=metadata.xmp, iptc=metadata.iptc, comment=metadata.comment)


def _to_apng(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    """Write whole canvases that replace each other. Pillow's writer would merge equal ones."""
    done: list[png.PngFrame] = []
    tally = Tally(target.limits)
    size, settings = (1, 1), {}
    for frame in frames:
        size = frame.image.size
        pixels = fit(frame.image, Format.PNG).convert("RGBA")
        settings = _png_settings(pixels, target.metadata)
        stream = png.pack(png.RGBA_PATTERN, (pixels,), target.effort)
        tally.add(len(stream))
        done.append(png.PngFrame(Rect(0, 0, *size), _apng_control(frame.duration_ms), stream))
    about = _with_codes(png.still(Image.new("RGBA", (1, 1)), target.effort, settings), target)
    png.write_png(sink, png.animation(size, about, tuple(done), target.plays))


def _apng_control(duration_ms: float) -> bytes:
    """Encode the delay, and that the frame replaces what is there (PNG 3rd edition, 11.3.6.2).

    It is a fraction of two numbers of 16 bits: of a thousand, where that is exact, and otherwise the nearest.
    """
    delay, ticks_per_second = round(duration_ms), 1000
    if delay != duration_ms or delay > _16_BITS:
        seconds = min(Fraction(_16_BITS), Fraction(duration_ms) / 1000)
        nearest = seconds.limit_denominator(_16_BITS // max(1, math.ceil(seconds)))
        delay, ticks_per_second = nearest.numerator or 1, nearest.denominator
    return struct.pack(">HHBB", delay, ticks_per_second, 0, 0)


def _to_webp(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    done: list[webp.WebpFrame] = []
    tally = Tally(target.limits)
    clock = Clock(1, _24_BITS)
    icc, size = b"", (1, 1)
    for frame in frames:
        size = frame.image.size
        is_drawn = frame.image.mode in _DRAWN_MODES or (target.frames > 1 and not target.quality)
        pixels = fit(frame.image, Format.WEBP)
        icc = _profile(pixels, strip=target.metadata.strip)
        quality = target.quality or (None if is_drawn else _QUALITY[Format.WEBP])
        bits = webp.pack(pixels, target.effort, quality=quality)
        tally.add(len(bits.data) + len(bits.alpha))
        duration_ms = clock.ticks(frame.duration_ms)
        done.append(webp.WebpFrame(Rect(0, 0, *size), duration_ms, webp.NO_BLEND, bits))
    loops = min(_16_BITS, target.plays) if target.frames > 1 else None
    metadata = target.metadata
    webp.write_webp(
        sink,
        webp.Webp(size, tuple(done), loops=loops, icc=icc, exif=metadata.exif, xmp=metadata.xmp),
    )


def _to_gif(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    """Write whole canvases, each cleared away if the next one, which is laid over it, is not opaque."""
    drawn: list[gif.GifFrame] = []
    delays: list[int] = []
    transparent: list[int | None] = []
    tally, clock = Tally(target.limits), Clock(10, _16_BITS)
    size = (1, 1)
    for frame in frames:
        size = frame.image.size
        image = fit(frame.image, Format.GIF)
        indices, palette, index = indexed(image)
        drawn.append(gif.whole_frame(indices, palette))
        delays.append(clock.ticks(frame.duration_ms))
        transparent.append(index)
        tally.add(len(drawn[-1].lzw))
    blocks: list[gif.GifFrame | bytes] = []
    if target.frames > 1 and target.plays != 1:
        blocks.append(gif.loop(max(0, target.plays - 1)))  # it counts the repetitions
    if target.metadata.comment:
        blocks.append(gif.comment_block(target.metadata.comment.encode()))
    following = [*transparent[1:], transparent[0]]  # not all viewers clear the canvas between repetitions
    for stored, delay, index, next_index in zip(drawn, delays, transparent, following, strict=True):
        if target.frames > 1 or index is not None:
            disposal = 1 if next_index is None else 2
            blocks.append(gif.control(delay=delay, disposal=disposal, transparent=index))
        blocks.append(stored)
    if xmp := gif.packet(target.metadata.xmp):
        blocks.append(xmp)
    gif.write_gif(sink, gif.Gif(b"GIF89a", size, 0x70, 0, 0, b"", tuple(blocks)))


def _to_tiff(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    metadata = target.metadata
    (fields,) = tiff.descriptions(metadata.exif)
    if metadata.xmp:
        fields = (*fields, tiff.xmp_field(metadata.xmp))
    if metadata.iptc:
        fields = (*fields, tiff.iptc_field(metadata.iptc))
    pages: list[TiffPage] = []
    for frame in frames:
        image = fit(frame.image, Format.TIFF)
        settings: dict[str, Any] = {"compression": "tiff_adobe_deflate"}
        settings["icc_profile"] = _profile(image, strip=metadata.strip)
        if metadata.dpi:
            settings["dpi"] = metadata.dpi
        pages.append(TiffPage(image, settings, fields, tiff.colour_map(image)))
    write_pages(sink, pages, target.limits)


@dataclass(frozen=True, slots=True)
class TiffPage:
    """A page to be written.

    Args:
        image: its pixels.
        settings: for `save`.
        fields: its metadata. Pillow cannot write all of it into a compressed page, so we do.
        shorts: numbers to write over Pillow's, by the tags of their fields.
    """

    image: Image.Image
    settings: dict[str, Any]
    fields: tuple[ifd.Field, ...]
    shorts: Mapping[int, tuple[int, ...]]


def write_pages(sink: Sink, pages: list[TiffPage], limits: Limits) -> None:
    """Write a TIFF of one or more pages.

    Raises:
        ResultTooLarge: told after the page with which it is.
    """
    tally = Tally(limits)
    whole = BytesIO()
    with AppendingTiffWriter(whole) as writer:
        for page in pages:
            page.image.info = {}
            alone = BytesIO()
            with encoding(Format.TIFF, page.image.size):
                page.image.save(alone, "TIFF", **page.settings)
            tally.add(alone.getbuffer().nbytes)
            writer.write(tiff.with_shorts(alone.getvalue(), page.shorts))
            writer.newFrame()
    sink.write(ifd.with_fields(whole.getvalue(), [page.fields for page in pages]))


def _to_avif(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    images: list[Image.Image] = []
    durations: list[int] = []
    clock = Clock(1, _MOST_AVIF_MS)
    for frame in frames:
        images.append(fit(frame.image, Format.AVIF))
        durations.append(clock.ticks(frame.duration_ms))
    if len({image.mode for image in images}) > 1:  # one sequence has alpha throughout or not at all
        mode = "RGBA" if any(image.mode == "RGBA" for image in images) else "RGB"
        images = [image.convert(mode) for image in images]
    file = bytearray(_avif(images, durations, target))
    if images[1:]:
        avif.with_plays(file, target.plays)
    if target.codes is not None:
        avif.with_codes(file, target.codes)
    write_whole(sink, memoryview(file))


def _avif(images: list[Image.Image], durations: list[int], target: Target) -> bytes:
    """Encode as finely as the source, where that is AVIF too and no quality is asked for."""
    first, source, metadata = images[0], target.stored_avif, target.metadata
    subsampling = "4:2:0" if source is None else source.subsampling
    kept = None if source is None else source.quality
    icc = _profile(first, strip=metadata.strip)
    exif = _exif_for_avif(metadata.exif)
    speed = _AVIF_SPEED[target.effort]
    avif.check_memory_to_encode(first.size, subsampling)
    if source is not None and source.is_lossless and subsampling == "4:4:4" and target.quality is None:
        return avif.encoded_exactly(images, durations, speed=speed, icc=icc, exif=exif, xmp=metadata.xmp)
    several = {"save_all": True, "append_images": images[1:], "duration": durations} if images[1:] else {}
    file = BytesIO()
    first.save(
        file,
        "AVIF",
        quality=target.quality or kept or _QUALITY[Format.AVIF],
        subsampling=subsampling,
        speed=speed,
        icc_profile=icc,
        exif=exif,
        xmp=metadata.xmp,
        **several,
    )
    return file.getvalue()


def _exif_for_avif(exif: bytes) -> bytes:
    """Return EXIF that Pillow passes on untouched: it would move an orientation into the container."""
    exif = without_orientation(exif)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Image.Exif().load(exif)
    except Exception:  # noqa: BLE001 - its reader may raise anything on odd fields; the image matters more
        return b""
    return exif


def _as_it_is(sink: Sink, frames: Iterator[Frame], target: Target) -> None:
    """Write a format that is output only for itself."""
    image = fit(next(frames).image, target.form)
    if image.mode == "F":
        simple.write_pfm(sink, image)
        return
    comment = target.metadata.comment
    is_commented = target.form is Format.PPM and bool(comment)
    file = simple.Commented(sink, comment) if is_commented else sink
    image.save(file, CODECS[target.form].pillow, **target.settings)  # type: ignore[arg-type]  # it only writes


_WRITERS = {
    Format.JPEG: _to_jpeg,
    Format.PNG: _to_png,
    Format.WEBP: _to_webp,
    Format.GIF: _to_gif,
    Format.TIFF: _to_tiff,
    Format.BMP: _to_bmp,
    Format.AVIF: _to_avif,
    Format.PPM: _as_it_is,
    Format.QOI: _as_it_is,
}
