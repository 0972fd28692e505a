"""Files as canvases, by programs that are not ours; each format has one that is trusted first, and others.

Those that come second are asked when the first one and the service disagree: no decoder is without faults.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.corpus.canvases import UPRIGHT, Canvas, flip, flop, rotate_270
from benchmarks.corpus.programs import Failed, Missing, run

_SIGNATURES = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF8", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
    (b"qoif", "qoi"),
    *((b"P" + kind, "pnm") for kind in (b"1", b"2", b"3", b"4", b"5", b"6")),
)

#: Our names, by media type.
FORM_OF = {
    "image/jpeg": "jpeg",
    "image/png": "png",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/tiff": "tiff",
    "image/bmp": "bmp",
    "image/avif": "avif",
    "image/x-portable-anymap": "pnm",
    "image/qoi": "qoi",
}

#: What an animation is compared by, at most: a long one would take minutes.
MOST_FRAMES = 60

#: An AVIF without an edit list does not tell how often it runs.
UNTOLD = -1

_RGBA = 4


class Unreadable(Exception):
    """A decoder shows nothing; the text is what it said."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a decoder shows.

    Attributes:
        canvases: frames or pages, as they are stored or as they are seen.
        is_upright: whether the decoder has applied the orientation of the container (AVIF).
        complaints: what the decoder said against the file, although it shows it.
    """

    canvases: tuple[Canvas, ...]
    is_upright: bool = False
    complaints: str = ""


def form_of(data: bytes) -> str | None:
    """Tell a format by the first bytes; None for those that the service does not know."""
    for signature, form in _SIGNATURES:
        if data.startswith(signature):
            return form
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    brands = data[8 : max(16, int.from_bytes(data[:4]))] if data[4:8] == b"ftyp" else b""
    return "avif" if b"avif" in brands or b"avis" in brands else None


def is_animated_png(data: bytes) -> bool:
    """Tell whether an `acTL` chunk comes before the image data (PNG 3rd edition, 11.3.6.1)."""
    return 0 < data.find(b"acTL") < data.find(b"IDAT")


def is_animated_webp(data: bytes) -> bool:
    """Tell whether the extended header has the animation flag (RFC 9649, 2.7.1)."""
    return data[12:16] == b"VP8X" and bool(data[20] & 2)


def depth_of(file: Path, form: str) -> int:
    """Return 16 for a file with more than 8 bits per sample, otherwise 8.

    Raises:
        Unreadable: that cannot be told.
    """
    data = file.read_bytes()
    if form == "png":
        return 16 if data[24] == 16 else 8  # noqa: PLR2004 bits
    if form == "avif":
        info = _told("avifdec", "--info", file)
        return 8 if "Bit Depth      : 8" in info else 16
    if form not in ("tiff", "pnm"):
        return 8
    told = _told("convert", "-ping", f"{form}:{file}", "-format", "%z ", "info:-", tolerated=(0, 1))
    return 16 if any(int(bits) > 8 for bits in told.split()) else 8  # noqa: PLR2004 bits


def _told(name: str, *arguments: str | Path, tolerated: Sequence[int] = (0,)) -> str:
    try:
        return run(name, *arguments, tolerated=tolerated).output.decode(errors="replace")
    except Failed as error:
        raise Unreadable(str(error)) from error


def decode(file: Path, form: str, depth: int, reader: str | None = None) -> Decoded:
    """Decode a file.

    Args:
        file: with any name.
        form: what it is.
        depth: bits per sample of the canvases; fewer than the file has are rounded.
        reader: one of `readers`; None for the first.

    Raises:
        Unreadable: the decoder shows nothing.
    """
    table = _readers(form, file.read_bytes())
    try:
        with TemporaryDirectory() as directory:
            decoded = table[reader or next(iter(table))](file, form, depth, Path(directory))
    except (Failed, Missing, ValueError, LookupError, OSError) as error:
        raise Unreadable(str(error)) from error
    if not decoded.canvases or not all(canvas.rgba for canvas in decoded.canvases):
        raise Unreadable("no image")
    return decoded


def readers(form: str, data: bytes) -> tuple[str, ...]:
    """Return the decoders of a file, the one that is trusted first at the head."""
    return tuple(_readers(form, data))


Reader = Callable[[Path, str, int, Path], Decoded]


def _readers(form: str, data: bytes) -> dict[str, Reader]:
    if form == "png" and is_animated_png(data):
        return {"ffmpeg": _by_ffmpeg}
    if form == "webp" and is_animated_webp(data):
        return {"vips": _by_vips_frames, "convert": _by_convert_frames}
    if form == "bmp" and data[30:34] == b"\3\0\0\0" and _has_narrow_fields(data):
        return {"convert": _by_convert_bmp}  # which refuses it: the others garble it
    return _READERS[form]


def _by_convert(file: Path, form: str, depth: int, directory: Path, *operators: str) -> Decoded:
    """Read with ImageMagick. What names the colours is taken off: it would change the numbers of a PNG."""
    raw = directory / "raw"
    colours = ("-set", "colorspace", "sRGB") if form == "png" else ()
    writing = ("-depth", str(depth), "-endian", "LSB", "-write", f"rgba:{raw}")
    sizes = ("-format", "%w %h\n", "info:-")
    done = run("convert", f"{form}:{file}", *operators, *colours, *writing, *sizes, tolerated=(0, 1))
    return Decoded(_split(raw.read_bytes(), done.output.decode().split(), depth), complaints=done.errors)


def _by_convert_frames(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    return _by_convert(file, form, depth, directory, "-alpha", "set", "-coalesce")  # clear where no frame is


def _split(raw: bytes, sides: Sequence[str], depth: int) -> tuple[Canvas, ...]:
    canvases = []
    start = 0
    numbers = [int(side) for side in sides]
    for width, height in zip(numbers[::2], numbers[1::2], strict=True):
        end = start + width * height * _RGBA * depth // 8
        if end > len(raw):
            raise ValueError("fewer samples than announced")
        canvases.append(Canvas(width, height, depth, raw[start:end]))
        start = end
    return tuple(canvases)


def _has_narrow_fields(data: bytes) -> bool:
    masks = struct.unpack_from("<4I", data, 54)
    return any(mask.bit_count() in (1, 4) for mask in masks[: 4 if data[14] > _BMP_INFO_BYTES else 3])


_BMP_INFO_BYTES = 40


def _by_convert_bmp(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read with ImageMagick, but without the alpha that it sees in the unused bytes of BI_RGB.

    Raises:
        Unreadable: samples of 1 or 4 bits, which it leaves too dark: their highest becomes 128 or 240.
    """
    data = file.read_bytes()
    is_plain = data[30:34] == bytes(4)
    if data[30:34] == b"\3\0\0\0" and _has_narrow_fields(data):
        raise Unreadable("convert leaves samples of 1 or 4 bits too dark")
    return _by_convert(file, form, depth, directory, *(("-alpha", "off") if is_plain else ()))


def _by_libtiff(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read with ImageMagick, but with libtiff's own program what ImageMagick garbles: subsampled YCbCr."""
    told = run("tiffinfo", file, tolerated=(0, 1)).output.decode(errors="replace")
    if "YCbCr Subsampling" not in told or "JPEG" in told:
        return _by_convert(file, form, depth, directory)
    plain = directory / "plain.tif"
    run("tiff2rgba", "-c", "none", file, plain)
    return _by_convert(plain, form, depth, directory)


def _by_ffmpeg(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    del form
    fields = ("-show_entries", "stream=width,height", "-of", "csv=p=0", "-select_streams", "v:0")
    width, height = (
        int(side) for side in run("ffprobe", "-v", "error", *fields, file).output.split(b",")[:2]
    )
    pixels = "rgba" if depth == 8 else "rgba64le"  # noqa: PLR2004 bits
    raw = directory / "raw"
    settings = ("-vsync", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int+bitexact")
    done = run("ffmpeg", "-v", "error", "-i", file, *settings, "-f", "rawvideo", "-pix_fmt", pixels, raw)
    samples = raw.read_bytes()
    frames = len(samples) // (width * height * _RGBA * depth // 8)
    return Decoded(_split(samples, [str(width), str(height)] * frames, depth), complaints=done.errors)


def _by_vips(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read the first frame or page with libvips."""
    del form
    whole = directory / "whole.png"
    done = run("vips", "pngsave", file, whole, "--strip", "--compression", "1")
    return _with_complaints(_by_convert(whole, "png", depth, directory), done.errors)


def _by_vips_frames(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read all frames with libvips, which puts them below each other."""
    tall = directory / "tall.png"
    height = int(run("vipsheader", "-f", "page-height", f"{file}[n=-1]").output)
    done = run("vips", "pngsave", f"{file}[n=-1]", tall, "--strip", "--compression", "1")
    (strip,) = _by_convert(tall, "png", depth, directory).canvases
    sides = [str(strip.width), str(height)] * (strip.height // height)
    del form
    return Decoded(_split(strip.rgba, sides, depth), complaints=done.errors)


def _with_complaints(decoded: Decoded, complaints: str) -> Decoded:
    return Decoded(decoded.canvases, decoded.is_upright, complaints or decoded.complaints)


def _by_dwebp(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    del form
    pam = directory / "image.pam"
    run("dwebp", "-quiet", "-pam", file, "-o", pam)
    return _by_convert(pam, "pam", depth, directory)


def _by_djpeg(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    del form
    pnm = directory / "image.pnm"
    done = run("djpeg", "-pnm", "-outfile", pnm, file, tolerated=(0, 2))
    return _with_complaints(_by_convert(pnm, "pnm", depth, directory), done.errors)


def _by_avifdec(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read with libavif, which leaves the transformations of the container to us: crop, turn, mirror."""
    del form
    info = run("avifdec", "--info", "--no-strict", file).output.decode(errors="replace")
    frames = min(info.count("* Decoded frame ["), MOST_FRAMES)
    canvases: list[Canvas] = []
    for index in range(frames):
        png = directory / f"{index}.png"
        options = ("--depth", str(depth), "--png-compress", "0", "--no-strict", "--index", str(index))
        run("avifdec", *options, file, png)
        canvases += _by_convert(png, "png", depth, directory).canvases
        png.unlink()
    return Decoded(tuple(_transformed(canvas, info) for canvas in canvases), is_upright=True)


def _transformed(canvas: Canvas, info: str) -> Canvas:
    """Apply what a container says, in this order (MIAF, ISO/IEC 23000-22:2019, 7.3.6.7)."""
    if "derived crop rect" in info:
        words = info.partition("derived crop rect:")[2].split("\n")[0].replace(",", "").split()
        canvas = _cropped(canvas, *(int(word) for word in words[1::2]))
    if "irot (Rotation)" in info:
        for _ in range(int(info.partition("irot (Rotation)")[2].split(":")[1].split()[0])):
            canvas = rotate_270(canvas)
    if "imir (Mirror)" in info:
        is_vertical = "Mode 0" in info.partition("imir (Mirror)")[2].split("\n")[0]
        canvas = flip(canvas) if is_vertical else flop(canvas)
    return canvas


def _cropped(canvas: Canvas, left: int, top: int, width: int, height: int) -> Canvas:
    pixel = _RGBA * canvas.depth // 8
    row = canvas.width * pixel
    starts = (y * row + left * pixel for y in range(top, top + height))
    rows = (canvas.rgba[start : start + width * pixel] for start in starts)
    return Canvas(width, height, canvas.depth, b"".join(rows))


def _by_heif_convert(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    """Read the primary image with libheif, which applies transformations."""
    del form
    png = directory / "image.png"
    run("heif-convert", file, png)
    return Decoded(_by_convert(png, "png", depth, directory).canvases, is_upright=True)


def _by_bmptopnm(file: Path, form: str, depth: int, directory: Path) -> Decoded:
    del form
    pnm = directory / "image.pnm"
    pnm.write_bytes(run("bmptopnm", file).output)
    return _by_convert(pnm, "pnm", depth, directory)


_READERS: dict[str, dict[str, Reader]] = {
    "jpeg": {"convert": _by_convert, "djpeg": _by_djpeg, "vips": _by_vips},
    "png": {"convert": _by_convert, "vips": _by_vips, "ffmpeg": _by_ffmpeg},
    "webp": {"dwebp": _by_dwebp, "vips": _by_vips},
    "gif": {"convert": _by_convert_frames, "vips": _by_vips_frames, "ffmpeg": _by_ffmpeg},
    "tiff": {"convert": _by_libtiff, "vips": _by_vips, "ffmpeg": _by_ffmpeg},
    "bmp": {"convert": _by_convert_bmp, "ffmpeg": _by_ffmpeg, "bmptopnm": _by_bmptopnm},
    "avif": {"avifdec": _by_avifdec, "heif-convert": _by_heif_convert},
    "pnm": {"convert": _by_convert, "vips": _by_vips, "ffmpeg": _by_ffmpeg},
    "qoi": {"ffmpeg": _by_ffmpeg},
}


# --- Animations -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timing:
    """How an animation runs.

    Attributes:
        delays_ms: of every frame.
        plays: how often it runs, 0 for ever, `UNTOLD` where the file leaves it to the viewer.
    """

    delays_ms: tuple[float, ...]
    plays: int


def timing_of(file: Path, form: str) -> Timing | None:
    """Return how an animation runs; None for a still, and for pages.

    Raises:
        Unreadable: the program that tells it fails.
    """
    data = file.read_bytes()
    try:
        timing = _TIMINGS[form](file, data) if form in _TIMINGS else None
    except (Failed, Missing, ValueError, LookupError, struct.error) as error:
        raise Unreadable(str(error)) from error
    return timing if timing and len(timing.delays_ms) > 1 else None


def _gif_timing(file: Path, _data: bytes) -> Timing:
    """Read `delay 0.10s` after each image; the loop count is of repetitions, and without one it runs once."""
    delays_ms: list[float] = []
    plays = 1
    for line in run("gifsicle", "--info", file).output.decode(errors="replace").splitlines():
        words = line.split()
        if words[:2] == ["+", "image"]:
            delays_ms.append(0)
        elif words[:2] == ["loop", "forever"]:
            plays = 0
        elif words[:2] == ["loop", "count"]:
            plays = int(words[2]) + 1
        elif "delay" in words and delays_ms:
            delays_ms[-1] = float(words[words.index("delay") + 1].rstrip("s")) * 1000
    return Timing(tuple(delays_ms), plays)


def _webp_timing(file: Path, data: bytes) -> Timing | None:
    if not is_animated_webp(data):
        return None
    told = run("webpmux", "-info", file).output.decode(errors="replace")
    plays = int(told.partition("Loop Count :")[2].split()[0])
    rows = [line.split() for line in told.splitlines() if line.partition(":")[0].strip().isdigit()]
    return Timing(tuple(float(row[6]) for row in rows), plays)


def _png_timing(_file: Path, data: bytes) -> Timing | None:
    """Read the chunks acTL and fcTL (PNG 3rd edition, 11.3.6); no program tells the delays as they are."""
    if not is_animated_png(data):
        return None
    delays_ms: list[float] = []
    plays = 0
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"acTL":
            plays = struct.unpack_from(">I", data, position + 12)[0]
        elif kind == b"fcTL":
            numerator, denominator = struct.unpack_from(">HH", data, position + 28)
            delays_ms.append(1000 * numerator / (denominator or 100))
        position += 12 + length
    return Timing(tuple(delays_ms), plays)


def _avif_timing(file: Path, data: bytes) -> Timing:
    """Read the durations of libavif; the edit list says how often they run (ISO/IEC 23008-12:2022, 9.6)."""
    info = run("avifdec", "--info", "--no-strict", file).output.decode(errors="replace")
    frames = [line for line in info.splitlines() if "* Decoded frame [" in line]
    delays_ms = [float(line.partition("[duration ")[2].split()[0]) for line in frames]
    if len(frames) > 1:  # two digits after the point are too few
        per_second = int(info.partition(" timescales per second")[0].split()[-1])
        ticks = [int(line.partition("[duration ")[2].partition("(")[2].split()[0]) for line in frames]
        delays_ms = [1000 * tick / per_second for tick in ticks]
    return Timing(tuple(delays_ms), _avif_plays(data))


def _avif_plays(data: bytes) -> int:
    start = data.find(b"elst")
    if start < 0:
        return UNTOLD
    version = data[start + 4]
    if not data[start + 7] & 1:
        return 1
    header = data.find(b"tkhd")
    wide = data[header + 4] == 1
    track = int.from_bytes(data[header + 32 : header + 40] if wide else data[header + 24 : header + 28])
    if track in (2**64 - 1, 2**32 - 1):
        return 0
    edit = int.from_bytes(data[start + 12 : start + 20] if version == 1 else data[start + 12 : start + 16])
    return round(track / edit) if edit else 0


_TIMINGS: dict[str, Callable[[Path, bytes], Timing | None]] = {
    "gif": _gif_timing,
    "webp": _webp_timing,
    "png": _png_timing,
    "avif": _avif_timing,
}


# --- What others say ------------------------------------------------------------------------------


def opened_by(file: Path) -> list[str]:
    """Return which programs open a file and show an image, whatever it is."""
    form = form_of(file.read_bytes())
    found = []
    with TemporaryDirectory() as directory:
        neutral = Path(directory, "image")  # so that no name tells what it is
        neutral.write_bytes(file.read_bytes())
        for name in readers(form, file.read_bytes()) if form else ("convert", "vips"):
            try:
                if form:
                    decode(neutral, form, 8, name)
                elif name == "vips":
                    run("vips", "pngsave", neutral, Path(directory, "image.png"))
                else:
                    run("convert", f"{neutral}[0]", Path(directory, "image.png"), tolerated=(0, 1))
                    if not Path(directory, "image.png").exists():
                        continue
            except (Unreadable, Failed, Missing):
                continue
            found.append(name)
    return found


def upright(decoded: Decoded, orientation: int) -> tuple[Canvas, ...]:
    """Return what a person sees of stored canvases with this EXIF orientation."""
    if decoded.is_upright:
        return decoded.canvases
    return tuple(UPRIGHT[orientation](canvas) for canvas in decoded.canvases)


# --- Strict decoders ------------------------------------------------------------------------------

#: What libtiff warns of although it is allowed: tags that it does not know, and sides in EXIF as SHORT.
_HARMLESS = ("unknown field with tag", 'wrong data type 3 for "pixel')


def complaint(file: Path, form: str) -> str | None:
    """Return what a strict decoder has against a file, or None.

    Args:
        file: an image.
        form: what it is.
    """
    command = _STRICT.get(form)
    if command is None:
        return None
    try:
        with TemporaryDirectory() as directory:
            known = _without_new_chunks(file, Path(directory)) if form == "png" else file
            done = run(*(str(known) if word == "{}" else word for word in command))
    except Failed as error:
        return str(error).replace(str(file), "the file")
    lines = (
        done.errors + "\n" + (done.output.decode(errors="replace") if form == "webp" else "")
    ).splitlines()
    for line in lines:
        is_against = form in ("jpeg", "gif", "bmp") or "warning" in line.lower() or "error" in line.lower()
        if line.strip() and is_against and not any(words in line.lower() for words in _HARMLESS):
            if form == "webp" and "no error" in line.lower():
                continue
            return line.strip().replace(str(file), "the file")[:200]
    return None


def _without_new_chunks(file: Path, directory: Path) -> Path:
    """Copy a PNG without the chunks of its third edition, which pngcheck does not know and refuses."""
    data = file.read_bytes()
    kept, at = data[:8], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        kept += data[at : at + 12 + length] if data[at + 4 : at + 8] not in _NEW_CHUNKS else b""
        at += 12 + length
    copy = directory / "known.png"
    copy.write_bytes(kept + data[at:])
    return copy


_NEW_CHUNKS = (b"cICP", b"mDCV", b"cLLI")
_STRICT = {
    "jpeg": ("djpeg", "-strict", "-outfile", "/dev/null", "{}"),
    "png": ("pngcheck", "-q", "{}"),
    "webp": ("webpinfo", "-quiet", "{}"),
    "gif": ("gifsicle", "--info", "{}", "-o", "/dev/null"),
    "tiff": ("tiffinfo", "-D", "{}"),
    "avif": ("avifdec", "--info", "{}"),
    "bmp": ("bmptopnm", "-quiet", "{}"),
}
