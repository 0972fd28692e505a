"""The programs that judge and that make images: all of Debian's packages, none of them Pillow or ours."""

import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: How long one program may take, in seconds; those that hang on an odd file are no reason to wait.
DEADLINE_S = 60.0

#: One core each: the files are what runs in parallel.
_ENVIRON = {"OMP_NUM_THREADS": "1", "MAGICK_THREAD_LIMIT": "1", "VIPS_CONCURRENCY": "1", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Program:
    """A program, and where it comes from.

    Attributes:
        names: that it may have; the first one that is there is run.
        package: of Debian.
    """

    names: tuple[str, ...]
    package: str


def _of(package: str, *names: str) -> dict[str, Program]:
    return {name: Program((name,), package) for name in names}


#: Without these nothing can be judged.
JUDGES = {
    "convert": Program(("convert-im6.q16", "convert-im7.q16", "magick", "convert"), "imagemagick"),
    **_of("libimage-exiftool-perl", "exiftool"),
    **_of("libjpeg-turbo-progs", "djpeg", "jpegtran"),
    **_of("webp", "dwebp", "webpinfo", "webpmux"),
    **_of("gifsicle", "gifsicle"),
    **_of("libavif-bin", "avifdec"),
    **_of("libheif-examples", "heif-convert"),
    **_of("libvips-tools", "vips", "vipsheader"),
    **_of("ffmpeg", "ffmpeg", "ffprobe"),
    **_of("libtiff-tools", "tiff2rgba", "tiffinfo"),
    **_of("pngcheck", "pngcheck"),
    **_of("netpbm", "bmptopnm"),
}

#: What the matrix of encoders is made with; those that are missing are left out, and named.
ENCODERS = {
    **_of("libjpeg-turbo-progs", "cjpeg"),
    **_of("webp", "cwebp", "gif2webp", "img2webp"),
    **_of("libavif-bin", "avifenc"),
    **_of("libheif-examples", "heif-enc"),
    **_of("libtiff-tools", "tiffcp"),
    **_of("optipng", "optipng"),
    **_of("pngquant", "pngquant"),
    **_of("pngcrush", "pngcrush"),
    **_of("jpegoptim", "jpegoptim"),
    **_of("netpbm", "pamtopng", "pamtotiff", "ppmtobmp", "pamtopnm"),
}

_PROGRAMS = JUDGES | ENCODERS


class Missing(Exception):
    """A program is not installed; the text names it and its package."""


class Failed(Exception):
    """A program did not do what it was asked for; the text is the last that it said."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that has ended without a failure."""

    output: bytes
    errors: str


@cache
def path_of(name: str) -> str | None:
    """Return where a program is, or None."""
    return next(filter(None, map(shutil.which, _PROGRAMS[name].names)), None)


def missing(names: Collection[str]) -> list[str]:
    """Return the programs that are not there, each with its package."""
    return [f"{name} ({_PROGRAMS[name].package})" for name in names if path_of(name) is None]


def packages(names: Collection[str]) -> list[str]:
    """Return the packages that programs come in."""
    return sorted({_PROGRAMS[name].package for name in names})


def run(name: str, *arguments: str | Path, given: bytes = b"", tolerated: Collection[int] = (0,)) -> Ran:
    """Run a program.

    Args:
        name: of a table above.
        arguments: its arguments.
        given: its standard input.
        tolerated: the exit codes that are no failure.

    Raises:
        Missing: it is not installed.
        Failed: it ended with another exit code or did not end in time.
    """
    path = path_of(name)
    if path is None:
        raise Missing(f"{name} is not installed: apt-get install {_PROGRAMS[name].package}")
    try:
        done = subprocess.run(
            [path, *map(str, arguments)],
            input=given,
            capture_output=True,
            timeout=DEADLINE_S,
            check=False,
            env=os.environ | _ENVIRON,
        )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{name} took more than {DEADLINE_S:.0f} s") from error
    errors = done.stderr.decode(errors="replace").strip()
    if done.returncode not in tolerated:
        raise Failed(f"{name} ended with {done.returncode}: {errors[-300:]}")
    return Ran(done.stdout, errors)
