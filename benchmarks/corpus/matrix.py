"""One small image file for every option of every encoder that Debian packages, as a directory for the corpus run.

    python -m benchmarks.corpus.matrix DIRECTORY

Base images are painted by ImageMagick from a seed. Programs that are not installed are named with their
package, and left out; what a program refuses is named too.
"""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.corpus.programs import ENCODERS, JUDGES, Failed, missing, packages, path_of, run

#: Odd sides, so that blocks, bytes and tiles are cut.
_SIZE = "61x47"

Bases = dict[str, Path]


@dataclass(frozen=True, slots=True)
class Made:
    """A file to be made.

    Attributes:
        name: below the directory; also the one that the program is told, as `{}`.
        commands: programs with their arguments, one after the other; `{}` is the file, `{name}` a base image.
        tolerated: exit codes that are no failure.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    tolerated: tuple[int, ...] = (0,)


def _made(name: str, *command: str) -> Made:
    return Made(name, (command,))


def _each(options: Mapping[str, tuple[str, ...]]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Pair what a variant is called with the options that make it."""
    return options.items()


# --- Base images ----------------------------------------------------------------------------------

_PHOTO = ("-seed", "7", "-size", _SIZE, "plasma:tomato-steelblue")
_MARKS = ("-fill", "gold", "-draw", "rectangle 3,4 17,11", "-fill", "navy", "-draw", "circle 44,12 51,14")
_ALPHA = ("(", "-size", _SIZE, "gradient:white-black", ")", "-compose", "CopyOpacity", "-composite")
_HOLE = (
    "-alpha",
    "set",
    "-region",
    "20x14+31+25",
    "-channel",
    "A",
    "-evaluate",
    "set",
    "0",
    "+channel",
    "+region",
)

#: What ImageMagick paints, by name and with the suffix of the file.
_BASES: dict[str, tuple[str, ...]] = {
    "rgb.png": (*_PHOTO, *_MARKS, "-alpha", "off", "-depth", "8", "-strip"),
    "rgba.png": (*_PHOTO, *_MARKS, *_ALPHA, "-depth", "8", "-strip"),
    "hole.png": (*_PHOTO, *_MARKS, *_HOLE, "-depth", "8", "-strip"),
    "gray.png": (*_PHOTO, *_MARKS, "-alpha", "off", "-colorspace", "Gray", "-depth", "8", "-strip"),
    "graya.png": (*_PHOTO, *_MARKS, "-colorspace", "Gray", *_ALPHA, "-depth", "8", "-strip"),
    "bilevel.png": (*_PHOTO, *_MARKS, "-alpha", "off", "-colorspace", "Gray", "-monochrome", "-strip"),
    "palette.png": (*_PHOTO, *_MARKS, "-alpha", "off", "+dither", "-colors", "13", "-type", "Palette", "-strip"),
    "rgb16.png": (*_PHOTO, *_MARKS, "-alpha", "off", "-blur", "0x1", "-depth", "16", "-strip"),
    "rgba16.png": (*_PHOTO, *_MARKS, *_ALPHA, "-blur", "0x1", "-depth", "16", "-strip"),
    "gray16.png": (*_PHOTO, "-alpha", "off", "-colorspace", "Gray", "-blur", "0x1", "-depth", "16", "-strip"),
    "cmyk.tiff": (*_PHOTO, *_MARKS, "-alpha", "off", "-colorspace", "CMYK", "-depth", "8", "-strip"),
    "dot.png": ("-size", "1x1", "xc:teal", "-depth", "8", "-strip"),
    "line.png": ("-size", "1x37", "gradient:red-blue", "-depth", "8", "-strip"),
    "even.png": ("-seed", "9", "-size", "64x48", "plasma:olive-plum", *_MARKS, "-alpha", "off", "-depth", "8", "-strip"),
    "evena.png": ("-seed", "9", "-size", "64x48", "plasma:olive-plum", *_MARKS, "-alpha", "set", "-channel", "A",
                  "-evaluate", "multiply", "0.5", "+channel", "-depth", "8", "-strip"),
    "half.png": ("-seed", "9", "-size", "72x56", "plasma:olive-plum", *_MARKS, "-alpha", "off", "-depth", "8", "-strip"),
    "grid.png": ("-seed", "9", "-size", "128x128", "plasma:olive-plum", *_MARKS, "-alpha", "off", "-depth", "8", "-strip"),
}  # fmt: skip


def paint(directory: Path) -> Bases:
    """Paint the base images, and three frames, and write a profile of a wide gamut."""
    bases: Bases = {}
    for name, arguments in _BASES.items():
        bases[name.partition(".")[0]] = directory / name
        run("convert", *arguments, directory / name)
    for number, colour in enumerate(("tomato", "seagreen", "orchid")):
        bases[f"frame{number}"] = directory / f"frame{number}.png"
        drawn = ("-fill", colour, "-draw", f"rectangle {5 + 9 * number},7 {21 + 9 * number},29")
        run("convert", bases["rgb"], *drawn, "+dither", "-colors", "60", bases[f"frame{number}"])
        bases[f"sprite{number}"] = directory / f"sprite{number}.png"
        shape = ("-fill", colour, "-draw", f"circle {12 + 11 * number},20 {20 + 11 * number},26")
        run(
            "convert",
            "-size",
            _SIZE,
            "xc:none",
            *shape,
            "-channel",
            "A",
            "-threshold",
            "50%",
            bases[f"sprite{number}"],
        )
    bases["p3"] = directory / "p3.icc"
    wide = directory / "wide.png"
    run("vips", "icc_transform", bases["rgb"], wide, "p3", "--input-profile", "srgb")
    run("convert", wide, bases["p3"])
    return bases


# --- JPEG -----------------------------------------------------------------------------------------

_SAMPLINGS = ("1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x1,1x2,1x1", "1x1,2x2,1x1", "2x2,2x1,1x2")


def _jpeg(_bases: Bases) -> Iterator[Made]:
    for sampling, mode in itertools.product(_SAMPLINGS, ("baseline", "progressive", "arithmetic")):
        options: tuple[str, ...] = () if mode == "baseline" else (f"-{mode}",)
        name = f"jpeg/cjpeg-{sampling.replace(',', '_')}-{mode}.jpg"
        yield _made(
            name, "cjpeg", "-quality", "85", "-sample", sampling, *options, "-outfile", "{}", "{rgb.ppm}"
        )
    # Whole blocks turn without loss; rows that cut through a block of colours are a path of their own.
    for base, sampling, mode in itertools.product(
        ("even", "half"), ("1x1", "2x1", "1x2", "2x2"), ("baseline", "progressive", "arithmetic")
    ):
        options = () if mode == "baseline" else (f"-{mode}",)
        name = f"jpeg/cjpeg-{base}-{sampling}-{mode}.jpg"
        yield _made(name, "cjpeg", "-sample", sampling, *options, "-outfile", "{}", f"{{{base}.ppm}}")
    for title, options in _each(
        {
            "restart-row": ("-restart", "1"),
            "restart-blocks": ("-restart", "3B"),
            "restart-1-progressive": ("-restart", "1B", "-progressive"),
            "optimize": ("-optimize",),
            "gray": ("-grayscale",),
            "gray-progressive": ("-grayscale", "-progressive"),
            "gray-2x2": ("-grayscale", "-sample", "2x2"),
            "rgb": ("-rgb",),
            "rgb-progressive": ("-rgb", "-progressive"),
            "fast": ("-dct", "fast"),
            "float": ("-dct", "float"),
            "smooth": ("-smooth", "50"),
            "baseline-q1": ("-quality", "1", "-baseline"),
            "16-bit-tables": ("-quality", "1"),
            "q100": ("-quality", "100", "-sample", "1x1"),
            "three-qualities": ("-quality", "90,60,30"),
            "arithmetic-restart": ("-arithmetic", "-restart", "2B"),
            "arithmetic-progressive": ("-arithmetic", "-progressive"),
            "icc": ("-icc", "{p3}"),
        }
    ):
        yield _made(f"jpeg/cjpeg-{title}.jpg", "cjpeg", *options, "-outfile", "{}", "{rgb.ppm}")
    for base in ("dot", "line", "even"):
        yield _made(f"jpeg/cjpeg-{base}.jpg", "cjpeg", "-outfile", "{}", f"{{{base}.ppm}}")
    yield _made("jpeg/convert-cmyk.jpg", "convert", "{cmyk}", "-quality", "90", "{}")
    yield _made("jpeg/convert-cmyk-progressive.jpg", "convert", "{cmyk}", "-interlace", "JPEG", "{}")
    yield _made("jpeg/convert-p3.jpg", "convert", "{rgb}", "-profile", "{p3}", "{}")
    yield _made("jpeg/convert-comment.jpg", "convert", "{rgb}", "-set", "comment", "a comment", "{}")
    yield _made("jpeg/vips-q75.jpg", "vips", "jpegsave", "{rgb}", "{}", "--Q", "75", "--optimize-coding")
    yield _made(
        "jpeg/vips-trellis.jpg", "vips", "jpegsave", "{rgb}", "{}", "--interlace", "--subsample-mode", "off"
    )
    yield _made("jpeg/vips-restart.jpg", "vips", "jpegsave", "{rgb}", "{}", "--restart-interval", "2")
    yield _made("jpeg/ffmpeg.jpg", "ffmpeg", "-v", "error", "-i", "{rgb}", "-pix_fmt", "yuvj420p", "{}")
    yield _made("jpeg/ffmpeg-444.jpg", "ffmpeg", "-v", "error", "-i", "{rgb}", "-pix_fmt", "yuvj444p", "{}")
    yield _made(
        "jpeg/ffmpeg-huffman.jpg",
        "ffmpeg",
        "-v",
        "error",
        "-i",
        "{rgb}",
        "-pix_fmt",
        "yuvj422p",
        "-huffman",
        "default",
        "{}",
    )
    plain = ("cjpeg", "-outfile", "{}", "{rgb.ppm}")
    yield Made("jpeg/jpegoptim.jpg", (plain, ("jpegoptim", "-q", "{}")))
    yield Made(
        "jpeg/jpegoptim-progressive.jpg", (plain, ("jpegoptim", "-q", "--all-progressive", "-m", "60", "{}"))
    )
    for orientation in range(2, 9):
        set_it = ("exiftool", "-q", "-overwrite_original", "-n", f"-Orientation={orientation}", "{}")
        yield Made(f"jpeg/orientation-{orientation}.jpg", (plain, set_it))
    yield Made("jpeg/metadata.jpg", (plain, _EVERYTHING))


#: Something of every kind of metadata.
_EVERYTHING = (
    "exiftool", "-q", "-overwrite_original", "-n", "-Make=Imaginary", "-Model=One", "-Artist=A. Painter",
    "-Copyright=2020 A. Painter", "-DateTimeOriginal=2020:01:02 03:04:05", "-GPSLatitude=48.1", "-GPSLatitudeRef=N",
    "-GPSLongitude=11.5", "-GPSLongitudeRef=E", "-XMP-dc:Title=A title", "-XMP-dc:Subject=lake",
    "-XMP-dc:Rights=free", "-XMP-photoshop:City=Lindau", "-Orientation=6", "{}",
)  # fmt: skip


# --- PNG ------------------------------------------------------------------------------------------

_PNG_BASES = (
    "rgb",
    "rgba",
    "hole",
    "gray",
    "graya",
    "bilevel",
    "palette",
    "rgb16",
    "rgba16",
    "gray16",
    "dot",
    "line",
)


def _png(_bases: Bases) -> Iterator[Made]:
    for base, interlace in itertools.product(_PNG_BASES, ("none", "PNG")):
        name = f"png/convert-{base}-{'interlaced' if interlace == 'PNG' else 'plain'}.png"
        yield _made(name, "convert", f"{{{base}}}", "-interlace", interlace, "{}")
    for filter_number in range(5):
        define = ("-define", f"png:compression-filter={filter_number}")
        yield _made(f"png/convert-filter-{filter_number}.png", "convert", "{rgb}", *define, "{}")
    for bits in (1, 2, 4, 8):
        gray = (
            "-colorspace",
            "Gray",
            "-depth",
            str(bits),
            "-define",
            "png:color-type=0",
            "-define",
            f"png:bit-depth={bits}",
        )
        yield _made(f"png/convert-gray-{bits}.png", "convert", "{gray}", *gray, "{}")
        few = (
            "+dither",
            "-colors",
            str(min(200, 2**bits)),
            "-define",
            "png:color-type=3",
            "-define",
            f"png:bit-depth={bits}",
        )
        yield _made(f"png/convert-palette-{bits}.png", "convert", "{rgb}", *few, "{}")
        clear = ("-channel", "A", "-threshold", "50%", "+channel", *few)
        yield _made(f"png/convert-palette-clear-{bits}.png", "convert", "{hole}", *clear, "{}")
        yield _made(
            f"png/convert-palette-{bits}-interlaced.png", "convert", "{rgb}", *few, "-interlace", "PNG", "{}"
        )
    yield _made("png/convert-palette-alpha.png", "convert", "{rgba}", "+dither", "-colors", "60", "PNG8:{}")
    yield _made(
        "png/convert-key.png",
        "convert",
        "{palette}",
        "-transparent",
        "gold",
        "-define",
        "png:color-type=2",
        "{}",
    )
    yield _made("png/convert-p3.png", "convert", "{rgb}", "-profile", "{p3}", "{}")
    yield _made("png/convert-gamma-1.png", "convert", "{rgb}", "-set", "gamma", "1.0", "{}")
    yield _made("png/convert-gamma-srgb.png", "convert", "{rgb}", "-set", "gamma", "0.45455", "{}")
    yield _made(
        "png/convert-text.png",
        "convert",
        "{rgb}",
        "-set",
        "Title",
        "a title",
        "-set",
        "comment",
        "a comment",
        "{}",
    )
    yield _made("png/convert-offset.png", "convert", "{rgb}", "-repage", "80x70+9+8", "{}")
    for title, options in _each(
        {
            "0": ("-o0",),
            "2": ("-o2",),
            "7-interlaced": ("-o7", "-i1"),
            "nc": ("-o2", "-nc"),
        }
    ):
        for base in ("rgb", "palette", "gray", "rgba", "rgb16"):
            yield _made(
                f"png/optipng-{title}-{base}.png", "optipng", "-quiet", *options, "-out", "{}", f"{{{base}}}"
            )
    for base, colours in itertools.product(("rgb", "rgba", "hole"), ("2", "16", "256")):
        name = f"png/pngquant-{base}-{colours}.png"
        yield _made(name, "pngquant", "--force", "--output", "{}", colours, f"{{{base}}}")
    yield _made(
        "png/pngquant-posterize.png", "pngquant", "--force", "--posterize", "4", "--output", "{}", "{rgba}"
    )
    for title, options in _each({"brute": ("-brute",), "reduce": ("-reduce",), "strip": ("-rem", "alla")}):
        yield _made(f"png/pngcrush-{title}.png", "pngcrush", "-q", *options, "{rgba}", "{}")
    for base in ("rgb", "rgba", "rgb16", "gray16"):
        yield _made(f"png/vips-{base}.png", "vips", "pngsave", f"{{{base}}}", "{}", "--interlace")
        yield _made(f"png/vips-{base}-filters.png", "vips", "pngsave", f"{{{base}}}", "{}", "--filter", "all")
    yield _made("png/vips-palette.png", "vips", "pngsave", "{rgba}", "{}", "--palette", "--bitdepth", "4")
    for pixels in (
        "rgb24",
        "rgba",
        "gray",
        "ya8",
        "pal8",
        "monob",
        "rgb48be",
        "rgba64be",
        "gray16be",
        "ya16be",
    ):
        name = f"png/ffmpeg-{pixels}.png"
        yield _made(name, "ffmpeg", "-v", "error", "-i", "{rgba}", "-pix_fmt", pixels, "-pred", "mixed", "{}")
    for orientation in (3, 6, 7):
        made = ("convert", "{rgb}", "{}")
        set_it = ("exiftool", "-q", "-overwrite_original", "-n", f"-Orientation={orientation}", "{}")
        yield Made(f"png/orientation-{orientation}.png", (made, set_it))
    yield Made("png/metadata.png", (("convert", "{rgb}", "{}"), _EVERYTHING))
    for pixels, plays in itertools.product(("rgba", "rgb24", "gray", "pal8", "rgba64be"), ("0", "1", "3")):
        moving = ("-f", "apng", "-plays", plays, "-pix_fmt", pixels)
        yield _made(
            f"png/ffmpeg-apng-{pixels}-{plays}.png",
            "ffmpeg",
            "-v",
            "error",
            "-i",
            "{moving.gif}",
            *moving,
            "{}",
        )


# --- WebP -----------------------------------------------------------------------------------------


def _webp(_bases: Bases) -> Iterator[Made]:
    still = ("rgb", "rgba", "hole", "gray", "palette", "dot", "line")
    for base in still:
        yield _made(f"webp/cwebp-{base}.webp", "cwebp", "-quiet", f"{{{base}}}", "-o", "{}")
        yield _made(
            f"webp/cwebp-{base}-lossless.webp", "cwebp", "-quiet", "-lossless", f"{{{base}}}", "-o", "{}"
        )
    for title, options in _each(
        {
            "exact": ("-lossless", "-exact"),
            "near-0": ("-near_lossless", "0"),
            "near-60": ("-near_lossless", "60"),
            "z9": ("-z", "9"),
            "alpha-none": ("-alpha_method", "0", "-alpha_filter", "none"),
            "alpha-best": ("-alpha_filter", "best"),
            "alpha-q0": ("-alpha_q", "0"),
            "alpha-q50-fast": ("-alpha_q", "50", "-alpha_filter", "fast"),
            "q0": ("-q", "0"),
            "q100": ("-q", "100"),
            "segments-1": ("-segments", "1"),
            "partitions": ("-partition_limit", "50", "-m", "6"),
            "strong": ("-f", "80", "-strong", "-sharpness", "5"),
            "simple": ("-f", "60", "-nostrong"),
            "sharp-yuv": ("-sharp_yuv",),
            "jpeg-like": ("-jpeg_like",),
            "pre": ("-pre", "2"),
            "noalpha": ("-noalpha",),
            "crop": ("-crop", "3", "5", "31", "29"),
            "blend": ("-blend_alpha", "0x00ff00"),
        }
    ):
        yield _made(f"webp/cwebp-{title}.webp", "cwebp", "-quiet", *options, "{rgba}", "-o", "{}")
    yield _made("webp/cwebp-icc.webp", "cwebp", "-quiet", "-metadata", "all", "{p3.png}", "-o", "{}")
    for title, options in _each({
        "plain": (), "lossy": ("-lossy",), "mixed": ("-mixed",), "min-size": ("-min_size",),
        "kmax-1": ("-kmax", "1"), "kmin": ("-kmin", "2", "-kmax", "4"), "q10": ("-lossy", "-q", "10"),
    }):  # fmt: skip
        for base in ("moving", "sprites", "previous", "small", "endless", "once"):
            yield _made(
                f"webp/gif2webp-{title}-{base}.webp",
                "gif2webp",
                "-quiet",
                *options,
                f"{{{base}.gif}}",
                "-o",
                "{}",
            )
    frames = ("{frame0}", "-d", "70", "{frame1}", "-d", "130", "{frame2}")
    sprites = ("{sprite0}", "-d", "70", "{sprite1}", "-d", "35", "{sprite2}")
    for title, options in _each({
        "lossless": ("-lossless",), "lossy": ("-lossy",), "mixed": ("-mixed",), "loop-3": ("-loop", "3"),
        "min-size": ("-min_size",), "kmax": ("-kmax", "0"),
    }):  # fmt: skip
        yield _made(f"webp/img2webp-{title}.webp", "img2webp", *options, "-d", "40", *frames, "-o", "{}")
        yield _made(
            f"webp/img2webp-{title}-sprites.webp", "img2webp", *options, "-d", "40", *sprites, "-o", "{}"
        )
    for base in ("rgb", "rgba", "gray"):
        yield _made(f"webp/vips-{base}.webp", "vips", "webpsave", f"{{{base}}}", "{}", "--Q", "80")
        yield _made(f"webp/vips-{base}-lossless.webp", "vips", "webpsave", f"{{{base}}}", "{}", "--lossless")
    yield _made("webp/convert-rgba.webp", "convert", "{rgba}", "-quality", "70", "{}")
    yield _made("webp/convert-lossless.webp", "convert", "{rgba}", "-define", "webp:lossless=true", "{}")
    yield _made("webp/ffmpeg.webp", "ffmpeg", "-v", "error", "-i", "{rgba}", "-c:v", "libwebp", "{}")
    yield _made(
        "webp/ffmpeg-moving.webp",
        "ffmpeg",
        "-v",
        "error",
        "-i",
        "{moving.gif}",
        "-c:v",
        "libwebp_anim",
        "-loop",
        "2",
        "{}",
    )
    placed = ("-frame", "{still.webp}", "+100+0+0+0+b", "-frame", "{still.webp}", "+70+10+6+1-b")
    yield _made(
        "webp/webpmux-placed.webp",
        "webpmux",
        *placed,
        "-loop",
        "5",
        "-bgcolor",
        "255,255,255,255",
        "-o",
        "{}",
    )
    for orientation in (6, 7):
        set_it = ("exiftool", "-q", "-overwrite_original", "-n", f"-Orientation={orientation}", "{}")
        yield Made(
            f"webp/orientation-{orientation}.webp", (("cwebp", "-quiet", "{rgba}", "-o", "{}"), set_it)
        )
    yield Made("webp/metadata.webp", (("cwebp", "-quiet", "{rgba}", "-o", "{}"), _EVERYTHING))


# --- GIF ------------------------------------------------------------------------------------------


def _gif(_bases: Bases) -> Iterator[Made]:
    for base in ("rgb", "hole", "gray", "palette", "bilevel", "dot", "line"):
        for interlace in ("none", "GIF"):
            name = f"gif/convert-{base}-{'interlaced' if interlace == 'GIF' else 'plain'}.gif"
            yield _made(name, "convert", f"{{{base}}}", "-interlace", interlace, "{}")
    for disposal in ("none", "background", "previous", "undefined"):
        for base in ("frame", "sprite"):
            several = tuple(f"{{{base}{number}}}" for number in range(3))
            name = f"gif/convert-{base}-{disposal}.gif"
            yield _made(name, "convert", "-delay", "7", "-dispose", disposal, *several, "-loop", "0", "{}")
    for title, options in _each({
        "optimize": ("-layers", "optimize"), "optimize-plus": ("-layers", "optimize-plus"),
        "frame": ("-layers", "optimize-frame"), "transparency": ("-layers", "optimize-transparency"),
    }):  # fmt: skip
        for base in ("frame", "sprite"):
            several = tuple(f"{{{base}{number}}}" for number in range(3))
            name = f"gif/convert-layers-{title}-{base}.gif"
            yield _made(name, "convert", "-delay", "13", *several, "-coalesce", *options, "-loop", "2", "{}")
    for level, source in itertools.product(
        ("-O1", "-O2", "-O3", "-Okeep-empty"), ("moving", "sprites", "previous", "small")
    ):
        name = f"gif/gifsicle{level.replace(',', '-')}-{source}.gif"
        yield _made(name, "gifsicle", level, f"{{{source}.gif}}", "-o", "{}")
    for title, options in _each({
        "interlace": ("--interlace",), "loop-1": ("--loopcount=1",), "loop-none": ("--no-loopcount",),
        "delay-0": ("--delay", "0"), "delay-1": ("--delay", "1"), "delay-long": ("--delay", "65535"),
        "colors-2": ("--colors", "2"), "lossy": ("--lossy=80", "-O3"), "unoptimize": ("--unoptimize",),
        "dispose-bg": ("--disposal", "background"), "dispose-prev": ("--disposal", "previous"),
        "comment": ("--comment", "a comment"), "screen": ("--logical-screen", "90x80"),
        "position": ("--position", "3,5"), "background": ("--background", "0"), "careful": ("--careful", "-O2"),
        "crop": ("--crop", "5,5+31x27"), "rotate": ("--rotate-90",), "flip": ("--flip-vertical",),
        "conserve": ("--conserve-memory", "-O2"), "transparent": ("--transparent", "#FF6347"),
    }):  # fmt: skip
        for base in ("moving", "sprites"):
            yield _made(
                f"gif/gifsicle-{title}-{base}.gif", "gifsicle", *options, f"{{{base}.gif}}", "-o", "{}"
            )
    for title, flags in {"offsetting": "+offsetting", "transdiff": "-transdiff", "none": "0"}.items():
        moving = ("-i", "{frames.apng}", "-gifflags", flags, "-loop", "3")
        yield _made(f"gif/ffmpeg-{title}.gif", "ffmpeg", "-v", "error", *moving, "{}")
    yield _made("gif/vips.gif", "vips", "gifsave", "{rgba}", "{}")
    yield _made("gif/vips-interlaced.gif", "vips", "gifsave", "{rgb}", "{}", "--interlace", "--bitdepth", "3")
    yield _made("gif/convert-odd-places.gif", "convert", "-delay", "9", "{frame0}", "(", "{dot}", "-repage", "61x47+59+46", ")",
                "(", "{line}", "-repage", "61x47+7+3", ")", "-loop", "0", "{}")  # fmt: skip


# --- TIFF -----------------------------------------------------------------------------------------

_TIFF_BASES = ("rgb", "rgba", "gray", "palette", "bilevel", "rgb16", "gray16", "cmyk")
_COMPRESSIONS = ("none", "lzw", "zip", "packbits", "lzma", "zstd", "webp")


def _tiff(_bases: Bases) -> Iterator[Made]:
    for base, compression in itertools.product(_TIFF_BASES, _COMPRESSIONS):
        name = f"tiff/tiffcp-{base}-{compression}.tif"
        yield _made(name, "tiffcp", "-c", compression, f"{{{base}.tif}}", "{}")
    for base, (title, options) in itertools.product(_TIFF_BASES, _each({
        "tiles": ("-t", "-w", "32", "-l", "16"), "tiles-lzw": ("-t", "-w", "16", "-l", "32", "-c", "lzw:2"),
        "strip-7": ("-r", "7"), "one-strip": ("-r", "-1"), "planar": ("-p", "separate"),
        "planar-tiles": ("-p", "separate", "-t", "-w", "32", "-l", "32", "-c", "zip"),
        "predictor": ("-c", "lzw:2"), "zip-predictor": ("-c", "zip:2"), "big-endian": ("-B",),
        "big-endian-lzw": ("-B", "-c", "lzw:2"), "bigtiff": ("-8",), "bigtiff-big-endian": ("-8", "-B", "-c", "zip"),
        "lsb2msb": ("-f", "lsb2msb"), "lsb2msb-lzw": ("-f", "lsb2msb", "-c", "lzw"),
    })):  # fmt: skip
        yield _made(f"tiff/tiffcp-{base}-{title}.tif", "tiffcp", *options, f"{{{base}.tif}}", "{}")
    for compression in ("g3", "g3:2d", "g3:fill", "g4"):
        name = f"tiff/tiffcp-bilevel-{compression.replace(':', '-')}.tif"
        yield _made(name, "tiffcp", "-c", compression, "{bilevel.tif}", "{}")
        yield _made(
            name.replace(".tif", "-lsb.tif"),
            "tiffcp",
            "-c",
            compression,
            "-f",
            "lsb2msb",
            "{bilevel.tif}",
            "{}",
        )
    for base, quality in itertools.product(("rgb", "gray"), ("75", "100", "75:r")):
        name = f"tiff/tiffcp-{base}-jpeg-{quality.replace(':', '-')}.tif"
        yield _made(name, "tiffcp", "-c", f"jpeg:{quality}", "-r", "16", f"{{{base}.tif}}", "{}")
        tiled = ("-t", "-w", "32", "-l", "32")
        yield _made(
            name.replace(".tif", "-tiles.tif"),
            "tiffcp",
            "-c",
            f"jpeg:{quality}",
            *tiled,
            f"{{{base}.tif}}",
            "{}",
        )
    yield _made("tiff/tiffcp-floatpredictor.tif", "tiffcp", "-c", "zip:3", "{float.tif}", "{}")
    yield _made(
        "tiff/tiffcp-pages.tif", "tiffcp", "{rgb.tif}", "{gray.tif}", "{bilevel.tif}", "{palette.tif}", "{}"
    )
    yield _made("tiff/tiffcp-pages-lzw.tif", "tiffcp", "-c", "lzw", "{rgba.tif}", "{rgb16.tif}", "{}")
    for title, options in _each({
        "miniswhite": ("-define", "quantum:polarity=min-is-white"), "rgb-planar": ("-interlace", "Plane"),
        "alpha-associated": ("-define", "tiff:alpha=associated"), "alpha-unassociated": ("-define", "tiff:alpha=unassociated"),
        "msb": ("-endian", "MSB"), "lsb-fill": ("-define", "tiff:fill-order=lsb"), "group4": ("-monochrome", "-compress", "Group4"),
        "depth-2": ("-colorspace", "Gray", "-depth", "2"), "depth-4": ("-colorspace", "Gray", "-depth", "4"),
        "depth-12": ("-depth", "12"), "depth-32": ("-depth", "32"),
        "float-32": ("-depth", "32", "-define", "quantum:format=floating-point"),
        "tile": ("-define", "tiff:tile-geometry=16x16"), "lab": ("-colorspace", "Lab"), "ycbcr": ("-colorspace", "YCbCr", "-compress", "JPEG"),
        "palette-4": ("+dither", "-colors", "11", "-type", "Palette", "-depth", "4"), "gray-alpha": ("-colorspace", "Gray"),
        "palette-alpha": ("+dither", "-colors", "9", "-type", "PaletteAlpha"), "profile": ("-profile", "{p3}"),
    }):  # fmt: skip
        for base in ("rgb", "rgba"):
            yield _made(f"tiff/convert-{title}-{base}.tif", "convert", f"{{{base}}}", *options, "{}")
    for base, (title, options) in itertools.product(("rgb", "rgba", "gray", "rgb16"), _each({
        "pyramid": ("--tile", "--pyramid", "--tile-width", "32", "--tile-height", "32"), "deflate": ("--compression", "deflate", "--predictor", "horizontal"),
        "bigtiff": ("--bigtiff",), "jpeg": ("--compression", "jpeg"), "webp": ("--compression", "webp"), "zstd": ("--compression", "zstd"),
        "premultiply": ("--premultiply",), "subifd": ("--tile", "--pyramid", "--subifd", "--tile-width", "32", "--tile-height", "32"),
        "miniswhite": ("--miniswhite",), "bitdepth-1": ("--bitdepth", "1"), "bitdepth-4": ("--bitdepth", "4"),
        "jp2k": ("--compression", "jp2k"),
    })):  # fmt: skip
        yield _made(f"tiff/vips-{title}-{base}.tif", "vips", "tiffsave", f"{{{base}}}", "{}", *options)
    for pixels in (
        "rgb24",
        "rgba",
        "gray",
        "ya8",
        "pal8",
        "monob",
        "monow",
        "rgb48le",
        "rgba64le",
        "gray16le",
        "yuv420p",
        "yuv444p",
    ):
        for compression in ("raw", "lzw", "deflate", "packbits"):
            coded = ("-pix_fmt", pixels, "-compression_algo", compression)
            yield _made(
                f"tiff/ffmpeg-{pixels}-{compression}.tif",
                "ffmpeg",
                "-v",
                "error",
                "-i",
                "{rgba}",
                *coded,
                "{}",
            )
    for orientation in range(2, 9):
        made = ("convert", "{rgb}", "-compress", "LZW", "-orient", _ORIENTATIONS[orientation], "{}")
        yield _made(f"tiff/orientation-{orientation}.tif", *made)
    yield Made("tiff/metadata.tif", (("convert", "{rgb}", "{}"), _EVERYTHING))


_ORIENTATIONS = (
    "Undefined", "TopLeft", "TopRight", "BottomRight", "BottomLeft", "LeftTop", "RightTop", "RightBottom",
    "LeftBottom",
)  # fmt: skip


# --- AVIF -----------------------------------------------------------------------------------------


def _avif(_bases: Bases) -> Iterator[Made]:
    quick = ("-s", "9")
    for base, sampling, depth in itertools.product(
        ("rgb", "rgba"), ("444", "422", "420", "400"), ("8", "10", "12")
    ):
        name = f"avif/avifenc-{base}-{sampling}-{depth}.avif"
        yield _made(
            name,
            "avifenc",
            *quick,
            "-y",
            sampling,
            "-d",
            depth,
            "--min",
            "8",
            "--max",
            "16",
            f"{{{base}}}",
            "{}",
        )
    for title, options in _each({
        "limited": ("-r", "limited"), "limited-10": ("-r", "limited", "-d", "10"), "lossless": ("-l",),
        "p3": ("--cicp", "12/13/1"), "bt2020": ("--cicp", "9/1/9"), "pq": ("--cicp", "9/16/9", "-d", "10"),
        "hlg": ("--cicp", "9/18/9", "-d", "10"), "linear": ("--cicp", "1/8/6"), "identity": ("--cicp", "1/13/0"),
        "ycgco": ("--cicp", "1/13/8"), "unspecified": ("--cicp", "2/2/2"), "icc": ("--icc", "{p3}"),
        "premultiplied": ("-p",), "sharpyuv": ("--sharpyuv", "-y", "420"), "tiles": ("--tilerowslog2", "1", "--tilecolslog2", "1"),
        "crop": ("--crop", "4,6,32,24"), "crop-odd": ("--crop", "3,5,31,23"), "pasp": ("--pasp", "2,1"),
        "irot-1": ("--irot", "1"), "irot-2": ("--irot", "2"), "irot-3": ("--irot", "3"), "imir-0": ("--imir", "0"),
        "imir-1": ("--imir", "1"), "irot-1-imir-0": ("--irot", "1", "--imir", "0"),
        "crop-irot-imir": ("--crop", "4,6,32,24", "--irot", "3", "--imir", "1"),
        "minalpha": ("--minalpha", "40", "--maxalpha", "50"), "film-grain": ("-a", "film-grain-test=1"),
        "rav1e": ("-c", "rav1e"),
    }):  # fmt: skip
        for base in ("rgb", "rgba"):
            yield _made(f"avif/avifenc-{title}-{base}.avif", "avifenc", *quick, *options, f"{{{base}}}", "{}")
    for base in ("gray", "palette", "rgb16", "gray16", "even", "evena", "line", "dot"):
        yield _made(f"avif/avifenc-{base}.avif", "avifenc", *quick, f"{{{base}}}", "{}")
    yield _made("avif/avifenc-svt.avif", "avifenc", *quick, "-c", "svt", "-y", "420", "{even}", "{}")
    yield _made("avif/avifenc-grid.avif", "avifenc", *quick, "--grid", "2x2", "{grid}", "{}")
    moving = (
        "--timescale",
        "1000",
        "--duration",
        "70",
        "{frame0}",
        "--duration",
        "130",
        "{frame1}",
        "{frame2}",
    )
    yield _made("avif/avifenc-moving.avif", "avifenc", *quick, *moving, "{}")
    sprites = (
        "--timescale",
        "100",
        "--duration",
        "7",
        "{sprite0}",
        "{sprite1}",
        "--duration",
        "11",
        "{sprite2}",
    )
    yield _made("avif/avifenc-moving-alpha.avif", "avifenc", *quick, *sprites, "{}")
    yield _made("avif/avifenc-moving-10.avif", "avifenc", *quick, "-d", "10", "-y", "420", *moving, "{}")
    for title, options in _each({
        "plain": (), "q10": ("-q", "10"), "lossless": ("-L",), "444": ("-p", "chroma=444"), "422": ("-p", "chroma=422"),
        "bit-depth-10": ("-b", "10"), "no-alpha": ("--no-alpha",), "thumb": ("-t", "16"), "nclx-709": ("--matrix_coefficients", "1"),
        "two-colr": ("--enable-two-colr-boxes",), "premultiplied": ("--premultiplied-alpha",),
    }):  # fmt: skip
        for base in ("even", "evena", "rgb", "rgba"):
            yield _made(
                f"avif/heif-enc-{title}-{base}.avif", "heif-enc", "-A", *options, f"{{{base}}}", "-o", "{}"
            )
    for base in ("even", "evena", "rgb16"):
        yield _made(
            f"avif/vips-{base}.avif",
            "vips",
            "heifsave",
            f"{{{base}}}",
            "{}",
            "--compression",
            "av1",
            "--effort",
            "1",
        )
        lossless = ("--compression", "av1", "--lossless", "--effort", "1")
        yield _made(f"avif/vips-{base}-lossless.avif", "vips", "heifsave", f"{{{base}}}", "{}", *lossless)
        yield _made(f"avif/convert-{base}.avif", "convert", f"{{{base}}}", "{}")
    yield _made(
        "avif/ffmpeg.avif",
        "ffmpeg",
        "-v",
        "error",
        "-i",
        "{rgb}",
        "-c:v",
        "libaom-av1",
        "-still-picture",
        "1",
        "{}",
    )
    yield _made(
        "avif/ffmpeg-moving.avif",
        "ffmpeg",
        "-v",
        "error",
        "-i",
        "{moving.gif}",
        "-c:v",
        "libaom-av1",
        "-cpu-used",
        "8",
        "-pix_fmt",
        "yuv420p",
        "{}",
    )
    yield Made("avif/metadata.avif", (("avifenc", *quick, "{rgb}", "{}"), _EVERYTHING))


# --- BMP, PNM, QOI --------------------------------------------------------------------------------


def _simple(_bases: Bases) -> Iterator[Made]:
    for base in ("rgb", "rgba", "gray", "palette", "bilevel", "dot", "line"):
        for version in ("BMP2", "BMP3", "BMP"):
            yield _made(f"bmp/convert-{base}-{version}.bmp", "convert", f"{{{base}}}", f"{version}:{{}}")
    for colours in (2, 3, 15, 200):
        few = ("+dither", "-colors", str(colours), "-type", "Palette")
        yield _made(f"bmp/convert-colours-{colours}.bmp", "convert", "{rgb}", *few, "BMP3:{}")
        yield _made(f"bmp/convert-rle-{colours}.bmp", "convert", "{rgb}", *few, "-compress", "RLE", "BMP3:{}")
    for subtype in ("RGB565", "RGB555", "ARGB4444", "ARGB1555"):
        yield _made(
            f"bmp/convert-{subtype}.bmp", "convert", "{rgba}", "-define", f"bmp:subtype={subtype}", "{}"
        )
    for pixels in (
        "bgr24",
        "bgra",
        "rgb565le",
        "rgb555le",
        "rgb444le",
        "pal8",
        "gray",
        "monob",
        "rgb8",
        "bgr8",
        "rgb4_byte",
    ):
        yield _made(
            f"bmp/ffmpeg-{pixels}.bmp", "ffmpeg", "-v", "error", "-i", "{rgba}", "-pix_fmt", pixels, "{}"
        )
    for kind, base in {"pbm": "bilevel", "pgm": "gray", "ppm": "rgb"}.items():
        yield _made(f"pnm/convert-raw.{kind}", "convert", f"{{{base}}}", "{}")
        yield _made(f"pnm/convert-plain.{kind}", "convert", f"{{{base}}}", "-compress", "none", "{}")
    for base, kind in {"gray16": "pgm", "rgb16": "ppm"}.items():
        yield _made(f"pnm/convert-16.{kind}", "convert", f"{{{base}}}", "-depth", "16", "{}")
        yield _made(f"pnm/convert-12.{kind}", "convert", f"{{{base}}}", "-depth", "12", "{}")
        yield _made(f"pnm/convert-5.{kind}", "convert", f"{{{base}}}", "-depth", "5", "{}")
    for base in ("rgb", "rgba", "gray"):
        yield _made(
            f"qoi/ffmpeg-{base}.qoi",
            "ffmpeg",
            "-v",
            "error",
            "-i",
            f"{{{base}}}",
            "-c:v",
            "qoi",
            "-f",
            "image2",
            "{}",
        )
    for base in ("rgb", "gray"):
        yield _made(f"pnm/vips-{base}.ppm", "vips", "ppmsave", f"{{{base}}}", "{}")


_FAMILIES: tuple[Callable[[Bases], Iterator[Made]], ...] = (_jpeg, _png, _webp, _gif, _tiff, _avif, _simple)


def _prepare(directory: Path, bases: Bases) -> None:
    """Add to the base images what some encoders must be given in a format of its own."""

    def add(name: str, program: str, *arguments: str) -> None:
        if path_of(program) is None:
            return
        bases[name] = directory / name
        run(program, *arguments, bases[name])

    for base in ("rgb", "dot", "line", "even", "half"):
        add(f"{base}.ppm", "convert", str(bases[base]))
    for base in ("rgb", "rgba", "gray", "palette", "bilevel", "rgb16", "gray16", "cmyk"):
        kind = ("-type", "Bilevel") if base == "bilevel" else ()
        add(f"{base}.tif", "convert", str(bases[base]), *kind, "-compress", "none")
    floating = ("-depth", "32", "-define", "quantum:format=floating-point")
    add("float.tif", "convert", str(bases["gray16"]), *floating)
    add("p3.png", "convert", str(bases["rgb"]), "-profile", str(bases["p3"]))
    frames = [str(bases[f"frame{number}"]) for number in range(3)]
    sprites = [str(bases[f"sprite{number}"]) for number in range(3)]
    add("moving.gif", "convert", "-delay", "7", *frames, "-loop", "3")
    add("sprites.gif", "convert", "-delay", "11", "-dispose", "background", *sprites, "-loop", "0")
    add("previous.gif", "convert", "-delay", "5", frames[0], "-dispose", "previous", *sprites, "-loop", "0")
    small = ["(", sprites[1], "-trim", ")"]
    add("small.gif", "convert", "-delay", "9", frames[0], *small, frames[2], "-loop", "4")
    add("endless.gif", "convert", "-delay", "3", *frames, "-loop", "0")
    add("once.gif", "convert", "-delay", "20", *frames, "-loop", "1")
    if path_of("cwebp") is not None:
        bases["still.webp"] = directory / "still.webp"
        run("cwebp", "-quiet", "-lossless", bases["rgba"], "-o", bases["still.webp"])
    if path_of("ffmpeg") is not None:
        bases["frames.apng"] = directory / "frames.apng"
        run("ffmpeg", "-v", "error", "-i", bases["moving.gif"], "-f", "apng", bases["frames.apng"])


def make(one: Made, bases: Bases, directory: Path) -> str | None:
    """Make one file, and return why it cannot be made, or None."""
    file = directory / one.name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    for name, *arguments in one.commands:
        words = [_filled(word, bases, file) for word in arguments]
        if path_of(name) is None:
            return f"{name} is not installed"
        try:
            run(name, *words, tolerated=one.tolerated)
        except Failed as error:
            file.unlink(missing_ok=True)
            return str(error).splitlines()[0][:150]
    return None if file.exists() else f"{one.commands[0][0]} wrote nothing"


def _filled(word: str, bases: Bases, file: Path) -> str:
    for name, base in bases.items():
        word = word.replace(f"{{{name}}}", str(base))
    return word.replace("{}", str(file))


def main() -> None:
    """Make all of them."""
    options = argparse.ArgumentParser(prog="benchmarks.corpus.matrix", description=__doc__)
    options.add_argument("directory", type=Path, nargs="?", help="where to put them; it need not exist")
    options.add_argument("--only", nargs="+", default=(), help="formats, such as gif tiff")
    options.add_argument(
        "--packages", action="store_true", help="print the packages with all encoders, and end"
    )
    given = options.parse_args()
    if given.packages:
        print(" ".join(packages(JUDGES | ENCODERS)))
        return
    if given.directory is None:
        options.error("give a directory")
    for absent in missing(JUDGES | ENCODERS):
        print(f"left out, not installed: {absent}")
    counts: Counter[str] = Counter()
    with TemporaryDirectory() as scratch:
        bases = paint(Path(scratch))
        _prepare(Path(scratch), bases)
        for one in (one for family in _FAMILIES for one in family(bases)):
            if given.only and one.name.partition("/")[0] not in given.only:
                continue
            reason = make(one, bases, given.directory)
            counts["made" if reason is None else "left out"] += 1
            if reason is not None:
                print(f"left out {one.name}: {reason}", flush=True)
    print(f"{counts['made']} files in {given.directory}, {counts['left out']} left out")
    sys.exit(not counts["made"])


if __name__ == "__main__":
    main()
