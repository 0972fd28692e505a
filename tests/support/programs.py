"""Programs that judge images: readers other than Pillow, of Debian's packages."""

import shutil
import subprocess
from functools import cache
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from support.oracle import Grid

#: By what we call them: the names they may have, and the packages they come in.
_PROGRAMS = {
    "convert": (("convert-im6.q16", "convert-im7.q16", "magick"), "imagemagick"),
    "exiftool": (("exiftool",), "libimage-exiftool-perl"),
    "gifsicle": (("gifsicle",), "gifsicle"),
    "avifdec": (("avifdec",), "libavif-bin"),
    "avifenc": (("avifenc",), "libavif-bin"),
    "webpinfo": (("webpinfo",), "webp"),
    "jpegtran": (("jpegtran",), "libjpeg-turbo-progs"),
    "djpeg": (("djpeg",), "libjpeg-turbo-progs"),
}
_DEADLINE_S = 60


@cache
def _path(name: str) -> str | None:
    names, _ = _PROGRAMS[name]
    return next(filter(None, map(shutil.which, names)), None)


def run(name: str, *arguments: str, given: bytes = b"", tolerated: tuple[int, ...] = (0,)) -> bytes:
    """Run a program and return what it writes; skip the test where it is not installed, and fail in CI.

    Args:
        name: one of the table above.
        arguments: its arguments.
        given: its standard input.
        tolerated: the exit codes that are no failure.
    """
    path = _path(name)
    if path is None:
        message = f"needs {name}: install the package {_PROGRAMS[name][1]}"
        if "CI" in environ:
            pytest.fail(message)
        pytest.skip(message)
    done = subprocess.run(
        [path, *arguments], input=given, capture_output=True, timeout=_DEADLINE_S, check=False
    )
    assert done.returncode in tolerated, (name, arguments, done.returncode, done.stderr.decode()[-500:])
    return done.stdout


def run_on(name: str, data: bytes, suffix: str, *arguments: str) -> bytes:
    """Run a program that wants a file: `{}` in its arguments stands for one with this content."""
    with TemporaryDirectory() as directory:
        file = Path(directory, f"image{suffix}")
        file.write_bytes(data)
        return run(name, *(argument.replace("{}", str(file)) for argument in arguments))


def pixels(data: bytes, kind: str, *options: str, frame: int | None = 0) -> Grid:
    """Decode an image with ImageMagick to rows of (red, green, blue, alpha).

    Args:
        data: the file.
        kind: ImageMagick's name of its format, such as `bmp` or `tiff`.
        options: more for `convert`, before the pixels are written, such as `-coalesce`.
        frame: which one, after the options; None for all, one below the other.
    """
    chosen = [] if frame is None else ["-delete", f"0-{frame - 1}"] if frame else []
    rest = [] if frame is None else ["-delete", "1--1"]
    append = ["-append"] if frame is None else []
    arguments = [f"{kind}:-", *options, *chosen, *rest, *append, "-depth", "8", "PAM:-"]
    head = run("convert", *arguments, given=data, tolerated=(0, 1))  # 1 with a complete image is a warning
    return _read_pam(head)


def _read_pam(data: bytes) -> Grid:
    """Read what `convert` writes as PAM: a header of lines, and samples of 8 bits."""
    header, _, samples = data.partition(b"ENDHDR\n")
    fields = dict(line.split(b" ", 1) for line in header.splitlines()[1:])
    width, height, depth = (int(fields[name]) for name in (b"WIDTH", b"HEIGHT", b"DEPTH"))
    assert fields[b"MAXVAL"] == b"255" and len(samples) == width * height * depth  # noqa: PT018
    opaque = (255,)
    rgba = {
        1: lambda pixel: (pixel[0],) * 3 + opaque,
        2: lambda pixel: (pixel[0],) * 3 + (pixel[1],),
        3: lambda pixel: tuple(pixel) + opaque,
        4: tuple,
    }[depth]
    found = [rgba(samples[start : start + depth]) for start in range(0, len(samples), depth)]
    return Grid(width, height, tuple(found))


def tags(data: bytes, suffix: str, *wanted: str) -> dict[str, str]:
    """Return metadata as exiftool reads it, by the names of tags with their groups, numbers as numbers.

    Args:
        data: the file.
        suffix: of a name that fits its format, with the dot.
        wanted: which tags, such as `-XMP:all`; all of them without any.
    """
    lines = run_on("exiftool", data, suffix, "-n", "-G1", "-s", "-a", *wanted, "{}").decode(errors="replace")
    found = {}
    for line in lines.splitlines():
        name, _, value = line.partition(": ")
        group, _, tag = name.partition("] ")
        found[f"{group.strip('[ ')}:{tag.strip()}"] = value
    return found
