"""The functions of the operations on images: the only module of this package that imports `imaging`.

Loaded by engines alone, so that a worker has no decoder in its memory.
"""

import mmap
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from io import FileIO
from typing import Any

from server.errors import TooManyPixels, UnsupportedImage
from server.imaging.codecs import Effort, Format
from server.imaging.geometry import Turn
from server.imaging.jpeg.kernel import Impossible, kernel
from server.imaging.limits import Limits
from server.imaging.metadata.policy import Strip
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe
from server.imaging.rehearsal import rehearse

#: How much metadata to leave out, by the value of the parameter.
STRIPS = {False: Strip.NOTHING, True: Strip.ALL, "location": Strip.LOCATION, "private": Strip.PRIVATE}
_QUARTERS = {90: Turn.ROTATE_90, 180: Turn.ROTATE_180, 270: Turn.ROTATE_270}


def prepare() -> None:
    """Load and start whatever the first image would: there is no file to load it from in the jail."""
    with suppress(Impossible):  # already logged: lossless_unavailable
        kernel()
    rehearse()


def _turn(  # noqa: PLR0913, PLR0917 a run's five and what to do
    turn: Turn,
    source: FileIO,
    sink: FileIO,
    parameters: Mapping[str, Any],
    limits: Mapping[str, int],
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    form = parameters["format"]
    recipe = Recipe(
        turn=turn,
        format=None if form is None else Format(form),
        quality=parameters["quality"],
        strip=STRIPS[parameters["strip"]],
        path=parameters["path"],
        effort=Effort(parameters["effort"]),
    )
    try:
        with _mapped(source) as data:
            result = process(data, sink, recipe, Limits(**limits), progress)
    except MemoryError as error:
        raise TooManyPixels("The image needs more memory than it may have. Send a smaller one.") from error
    return {
        "media_type": result.media_type,
        "width": result.width,
        "height": result.height,
        "frames": result.frames,
        "path": result.path,
    }


def _mapped(source: FileIO) -> mmap.mmap:
    size = os.fstat(source.fileno()).st_size
    if not size:
        raise UnsupportedImage(UnsupportedImage.example)
    try:
        return mmap.mmap(
            source.fileno(), size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ
        )
    except OSError as error:  # there is no other reason
        raise MemoryError from error


flip = partial(_turn, Turn.FLIP)
flop = partial(_turn, Turn.FLOP)
transpose = partial(_turn, Turn.TRANSPOSE)
transverse = partial(_turn, Turn.TRANSVERSE)
orient = partial(_turn, Turn.ORIENT)


def rotate(
    source: FileIO,
    sink: FileIO,
    parameters: Mapping[str, Any],
    limits: Mapping[str, int],
    progress: Callable[[str], None],
) -> Mapping[str, Any]:
    """Turn clockwise by the parameter `angle`."""
    return _turn(_QUARTERS[parameters["angle"]], source, sink, parameters, limits, progress)
