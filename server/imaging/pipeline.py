"""One image through decode, transform and encode, within limits, losing nothing that can be kept."""

from collections.abc import Callable
from io import SEEK_END

from server.errors import NotLossless
from server.imaging.codecs import Data, Format, Sink, sniff
from server.imaging.limits import Limits
from server.imaging.recipe import Recipe, Result, Run, Stage
from server.imaging.redraw import redraw
from server.imaging.same_format import SAME_FORMAT


def _no_lap(_stage: Stage, /) -> None:
    """Measure nothing."""


def process(
    data: Data,
    sink: Sink,
    recipe: Recipe,
    limits: Limits,
    lap: Callable[[Stage], None] = _no_lap,
) -> Result:
    """Turn the image in `data` and write it to `sink`.

    The format stays unless another is asked for, and so do mode, depth, palette, transparency, metadata,
    frames, durations and loop count; a JPEG keeps its quantization tables and sampling. JPEG and BMP hold
    one frame: an animation gives its first. A multi-page TIFF keeps its pages as a TIFF and gives its first
    page to any other format. Of an MPO only the primary image comes out.

    Args:
        data: the whole file, in memory or mapped.
        sink: at its start; afterwards it holds the result and nothing else, whatever it held before. A raw
            file over a descriptor lets the encoders write to it directly.
        recipe: what to do.
        limits: of the image, checked against headers before anything is decoded, and of the result.
        lap: told each time a stage ends, for an animation once per frame and stage.

    Raises:
        UnsupportedImage: not an image, outside the allow-list, or not expressible in the wanted format.
        DamagedImage: cut off or corrupt.
        TooManyPixels, TooManyFrames, ResultTooLarge: outside the limits.
        NotLossless: that was the path to take.
    """
    form = sniff(data)
    run = Run(data, form, sink, recipe, limits, lap)
    route = SAME_FORMAT.get(form, redraw) if run.target is form else redraw
    if recipe.path == "lossless" and not (form is run.target is Format.JPEG):
        raise NotLossless("Only a JPEG that stays one can be turned without loss. Leave `path` out.")
    if run.target is not Format.JPEG:  # other encoders may leave holes, which would show old bytes
        sink.truncate(0)
    try:
        result = route(run)
    except OSError:  # a full file may be at the limit, which the kernel knows too (RLIMIT_FSIZE)
        limits.check_result(sink.seek(0, SEEK_END))
        raise
    if run.target is Format.JPEG:
        sink.truncate()
    limits.check_result(sink.seek(0, SEEK_END))
    return result
