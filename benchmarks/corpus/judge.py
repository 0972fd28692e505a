"""Whether an answer is the image that was sent, turned: pixels, animation, colours, metadata, structure."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.corpus import decoders, metadata
from benchmarks.corpus.canvases import (
    TURNS,
    UPRIGHT,
    Canvas,
    colours,
    difference_db,
    jpegtran_arguments,
    over_white,
    raw_arguments,
    with_hard_edges,
)
from benchmarks.corpus.decoders import Unreadable
from benchmarks.corpus.labels import Label, in_srgb, is_kept, label_of
from benchmarks.corpus.metadata import Tags
from benchmarks.corpus.programs import Failed, Missing, run

#: What a lossy encoder keeps at its default quality; below, it is compared with another encoder.
LOSSY_DB = 32.0

#: How much worse than another encoder of the same quality ours may be: the two round and sample differently.
_WORSE_DB = 3.0

#: A sample may be off by one where 16 bits become 8, where a lossy image is decoded by two decoders, or
#: where alpha is flattened: 20 log10(255) is 48.1.
ROUNDED_DB = 47.0

#: Two decoders of lossy formats with subsampled colours, which upsample them differently.
_DECODERS_DB = {"jpeg": 38.0, "webp": 38.0, "avif": 34.0}

#: Two colour management systems, with intents and black points of their own.
_CONVERTED_DB = 32.0

#: How much an encoder with loss adds to that.
_LOSSY_TOO_DB = 8.0
#: And where the numbers are light itself: the steps of an encoder are coarse in the dark.
_LINEAR_TOO_DB = 3.0
#: And where transparency may have been laid on white, by one in light and by the other after the conversion.
_FLATTENED_TOO_DB = 9.0

#: Partial transparency over partial transparency is rounded differently.
_BLENDED_DB = 40.0

#: Inks, luma and chroma, and Lab: TIFF's PhotometricInterpretation (TIFF 6.0, sections 16, 21 and 23).
_OTHER_MODELS = frozenset({5, 6, 8, 9})
_OTHER_MODELS_DB = 28.0

#: Half a hundredth of a second, which a GIF rounds, and half a millisecond, which other formats do.
_DELAY_MS = 5.51

_MOST_FRAMES_COMPARED = 60
_MOST_GIF_COLOURS = 255

#: What the best 255 colours keep of a photo.
_GIF_DB = 25.0

#: Red, green and blue as they are (ITU-T H.273, table 4), which is how AVIF is lossless.
_IDENTITY = 0

#: Bits per pixel of a BMP whose samples have 5 or 6.
_HIGH_COLOUR = 16

#: Of the size of a lossless file: one that is smaller has lost something.
_LOSSLESS_SIZE = 0.8

_FLAT = frozenset({"jpeg", "bmp"})
_ONE_FRAME = frozenset({"jpeg", "bmp", "pnm", "qoi"})


@dataclass(frozen=True, slots=True)
class Order:
    """What was asked for.

    Attributes:
        turn: an operation with its angle, as in the address.
        format: of the answer; None for the source's own.
        more: further parameters.
    """

    turn: str
    format: str | None = None
    more: str = ""

    @property
    def target(self) -> str:
        """The path and query to post to."""
        given = [f"format={self.format}" if self.format else "", self.more]
        query = "&".join(filter(None, given))
        joint = "&" if "?" in self.turn else "?"
        return f"/{self.turn}{joint}{query}" if query else f"/{self.turn}"


class Source:
    """A file that was sent, decoded when somebody asks.

    Args:
        file: where it is.
        tags: of exiftool.
    """

    def __init__(self, file: Path, tags: Tags) -> None:
        self.file = file
        self.tags = tags
        self.data = file.read_bytes()
        self._decoded: dict[tuple[int, str], tuple[Canvas, ...]] = {}
        self._complaints: dict[str, str] = {}

    @cached_property
    def form(self) -> str | None:
        """What it is."""
        return decoders.form_of(self.data)

    @cached_property
    def depth(self) -> int:
        """Bits per sample, 8 or 16."""
        assert self.form is not None
        return decoders.depth_of(self.file, self.form)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Who can decode it."""
        return decoders.readers(self.form, self.data) if self.form else ()

    @cached_property
    def timing(self) -> decoders.Timing | None:
        """How it runs."""
        assert self.form is not None
        return decoders.timing_of(self.file, self.form)

    @cached_property
    def complaint(self) -> str | None:
        """What a strict decoder has against it; the one for BMP knows too few kinds."""
        assert self.form is not None
        return None if self.form == "bmp" else decoders.complaint(self.file, self.form)

    @cached_property
    def label(self) -> Label:
        """How it names its colours."""
        assert self.form is not None
        return label_of(self.tags, self.form)

    @cached_property
    def orientation(self) -> int:
        """As viewers apply it."""
        assert self.form is not None
        return metadata.orientation(self.tags, self.form)

    @cached_property
    def is_lossy(self) -> bool:
        """Whether two decoders may show different pixels."""
        assert self.form is not None
        return is_lossy(self.file, self.form, self.tags)

    @cached_property
    def is_lossless_avif(self) -> bool:
        """Whether it was coded without loss: no program tells that, but its size does."""
        if self.tags.get("QuickTime:MatrixCoefficients") != _IDENTITY:
            return False
        with TemporaryDirectory() as directory:
            png, lossless = Path(directory, "image.png"), Path(directory, "image.avif")
            try:
                run("avifdec", self.file, png)
                run("avifenc", "--lossless", "--speed", "8", png, lossless)
            except (Failed, Missing):
                return False
            return len(self.data) > _LOSSLESS_SIZE * lossless.stat().st_size

    @property
    def is_scaled(self) -> bool:
        """Whether samples have another highest value than 1, 255 or 65535, so that decoders scale them."""
        if self.form == "bmp":
            return int.from_bytes(self.data[28:30], "little") == _HIGH_COLOUR
        head = re.sub(rb"#[^\n]*\n", b"\n", self.data[:4096])
        found = re.match(rb"P[2356]\s+\d+\s+\d+\s+(\d+)\s", head)
        return bool(found and int(found[1]) not in (255, 65535))

    @property
    def is_of_another_model(self) -> bool:
        """Whether its samples are not red, green and blue, so that two decoders convert them differently."""
        return self.tags.get("IFD0:PhotometricInterpretation") in _OTHER_MODELS

    @property
    def is_rounded(self) -> bool:
        """Whether two decoders may show different numbers."""
        return self.is_lossy or self.is_of_another_model or self.is_scaled

    def seen(self, depth: int, reader: str) -> tuple[Canvas, ...]:
        """Return its frames or pages, upright.

        Raises:
            Unreadable: the decoder shows nothing.
        """
        assert self.form is not None
        if (depth, reader) not in self._decoded:
            decoded = decoders.decode(self.file, self.form, depth, reader)
            self._complaints[reader] = decoded.complaints
            self._decoded[depth, reader] = decoders.upright(decoded, self.orientation)
        return self._decoded[depth, reader]

    def complaints(self, reader: str) -> str:
        """Return what a decoder said against it."""
        return self._complaints.get(reader, "")


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with status 200.

    Attributes:
        path: the header `X-Image-Path`.
        tags: of exiftool.
    """

    order: Order
    file: Path
    form: str
    path: str
    tags: Tags


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is wrong with an answer.

    Attributes:
        faults: what differs, each with its kind in front; none if it is right.
        disputed: what the first decoder finds wrong and another one right, or of a source that is damaged.
        unjudged: why nothing could be said; empty where something could.
    """

    faults: tuple[str, ...] = ()
    disputed: tuple[str, ...] = ()
    unjudged: str = ""


def is_lossy(file: Path, form: str, tags: Tags) -> bool:
    """Tell whether a file is coded with loss, so that two decoders may round differently."""
    if form == "webp":
        return "lossy" in run("webpmux", "-info", file, tolerated=(0, 1)).output.decode(
            errors="replace"
        ) or b"VP8 " in _chunks(file.read_bytes())
    if form == "tiff":
        return tags.get("IFD0:Compression") in (6, 7, 34712, 50001)
    return form in ("jpeg", "avif")


def _chunks(data: bytes) -> Iterator[bytes]:
    """Yield the names of the chunks of a RIFF file, outside of frames."""
    position = 12
    while position + 8 <= len(data):
        yield data[position : position + 4]
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        position += 8 + length + length % 2


def judge(source: Source, answer: Answer) -> Judgement:
    """Judge an answer with the decoders that there are.

    Raises:
        Failed, Missing: a program of ours failed, not the answer.
    """
    faults: list[str] = []
    disputed: list[str] = []
    try:
        result_depth = decoders.depth_of(answer.file, answer.form)
        depth = min(source.depth, result_depth)
        found = decoders.decode(answer.file, answer.form, depth)
    except Unreadable as error:
        return Judgement((f"strict: the answer cannot be decoded ({error})",))
    canvases = decoders.upright(found, 1)
    pixel_faults, unread = _pixel_faults(source, answer, canvases, depth)
    if unread:
        return Judgement(unjudged=unread)
    if pixel_faults:
        first, *others = pixel_faults
        if not first:
            pass
        elif any(not other for other in others):
            disputed.append(f"{first} (by {source.readers[0]}, another decoder does not say so)")
        elif source.complaints(source.readers[0]) or source.complaint:
            why = source.complaints(source.readers[0]) or source.complaint or ""
            disputed.append(f"{first} (the source has complaints: {why[:100]})")
        else:
            faults.append(first)
    faults += _timing_faults(source, answer)
    if "strip" in answer.order.more:
        faults += [f"metadata: {text}" for text in metadata.remains(answer.tags)]
    else:
        size = canvases[0].size
        assert source.form is not None
        lost = metadata.losses(source.tags, answer.tags, source.form, answer.form, size)
        faults += [f"metadata: {text}" for text in lost]
    against = decoders.complaint(answer.file, answer.form)
    if against and not (answer.form == source.form and source.complaint):
        faults.append(f"strict: {against}")
    return Judgement(tuple(faults), tuple(disputed))


def _pixel_faults(
    source: Source, answer: Answer, found: Sequence[Canvas], depth: int
) -> tuple[list[str], str]:
    """Return what each decoder of the source says against the pixels, up to the first that says nothing.

    Returns:
        For each decoder the fault, or an empty text; and why none could be asked, if so.
    """
    said: list[str] = []
    reason = ""
    is_opaque = True
    for reader in source.readers:
        try:
            seen = source.seen(depth, reader)
        except Unreadable as error:
            reason = reason or f"no decoder opens the source ({str(error)[:120]})"
            continue
        if said and all(canvas.is_opaque for canvas in seen) and not is_opaque:
            continue  # it is blind to transparency
        is_opaque = all(canvas.is_opaque for canvas in seen)
        fault = _fault_of(source, answer, seen, found)
        said.append(fault or "")
        if not fault:
            break
    return said, "" if said else reason


def _fault_of(source: Source, answer: Answer, seen: Sequence[Canvas], found: Sequence[Canvas]) -> str | None:
    expected = _expected(source, answer, seen)
    if len(found) != len(expected):
        return f"frames: {len(found)} instead of {len(expected)}"
    if answer.form == source.form == "jpeg" and answer.path == "lossless":
        return _lossless_fault(source, answer)
    for number, (right, canvas) in enumerate(zip(expected, found, strict=True)):
        if number >= _MOST_FRAMES_COMPARED:
            break
        where = f"frame {number}: " if len(expected) > 1 else ""
        if canvas.size != right.size:
            sizes = "{} x {} instead of {} x {}".format(*canvas.size, *right.size)
            return f"size: {where}{sizes}"
        wanted = right
        if answer.form == "gif":
            is_rounded = source.depth > right.depth or source.is_rounded
            wanted = with_hard_edges(right, canvas if is_rounded else None)
        if fault := _difference(source, answer, wanted, canvas):
            return f"{fault[0]}: {where}{fault[1]}"
    return None


def _expected(source: Source, answer: Answer, seen: Sequence[Canvas]) -> list[Canvas]:
    wanted = seen[:1] if answer.form in _ONE_FRAME or _is_page_source(source, answer) else seen
    turned = [TURNS[answer.order.turn](canvas) for canvas in wanted]
    if answer.form == "jpeg" or (answer.form == "bmp" and source.form != "bmp"):
        return [canvas if canvas.is_opaque else over_white(canvas) for canvas in turned]
    return turned


def _is_page_source(source: Source, answer: Answer) -> bool:
    """Pages are no frames: only a TIFF that stays one keeps them."""
    return source.form in ("tiff", "pnm") and answer.form != "tiff"


def _difference(source: Source, answer: Answer, right: Canvas, found: Canvas) -> tuple[str, str] | None:
    """Compare one frame; return the kind of fault and what is seen."""
    label = label_of(answer.tags, answer.form)
    needed_db, why = next(_needs_db(source, answer, right))
    seen_db = difference_db(right, found)
    if is_kept(source.label, label):
        if seen_db >= needed_db or _is_as_good_as_others(answer, source, right, seen_db, needed_db):
            return None
        return "pixels", f"{seen_db:.1f} dB, needed are {needed_db:.1f} ({why})"
    fault = _converted_fault(source, answer, found, right, label)
    if fault is None:
        return None
    if seen_db >= min(needed_db, _CONVERTED_DB):
        return "colours", f"{source.label} is lost and the numbers are the same ({label})"
    return "colours", f"{source.label} became {label}: {fault}"


def _converted_fault(
    source: Source, answer: Answer, found: Canvas, right: Canvas, label: Label
) -> str | None:
    """Compare both in sRGB, by what they name their colours; None if they agree."""
    try:
        if source.label.space == "CMYK":
            expected = _inks_in_srgb(source, answer, found.depth)
        else:
            expected = in_srgb(right, source.label, source.file)
        shown = in_srgb(found, label, answer.file)
    except (Failed, Unreadable) as error:
        return str(error)[:100]
    seen_db = difference_db(expected, shown)
    least_db = _CONVERTED_DB
    if answer.form in ("gif", "jpeg", "webp", "avif"):
        least_db -= _LOSSY_TOO_DB + (_LINEAR_TOO_DB if source.label.is_linear else 0)
    if source.label.is_linear and answer.form in _FLAT:
        least_db -= _FLATTENED_TOO_DB
    return None if seen_db >= least_db else f"{seen_db:.1f} dB in sRGB"


def _inks_in_srgb(source: Source, answer: Answer, depth: int) -> Canvas:
    """Return what is expected of an image of inks with a profile; the canvas of it is not by the profile."""
    with TemporaryDirectory() as directory:
        converted = Path(directory, "converted.png")
        options = ("--embedded", "--intent", "perceptual")
        run("vips", "icc_transform", source.file, converted, "srgb", *options)
        (canvas,) = decoders.decode(converted, "png", depth).canvases
    return TURNS[answer.order.turn](UPRIGHT[source.orientation](canvas))


def _needs_db(source: Source, answer: Answer, right: Canvas) -> Iterator[tuple[float, str]]:
    """Yield how near the pixels must be, and why; the first one holds."""
    assert source.form is not None
    if source.form == answer.form == "avif" and source.is_lossless_avif:
        yield ROUNDED_DB, "the source is lossless"
    if is_lossy(answer.file, answer.form, answer.tags):
        yield LOSSY_DB, "lossy"
    if answer.form == "gif" and colours(right) > _MOST_GIF_COLOURS:
        yield _GIF_DB, "more than 255 colours"
    if source.is_of_another_model:
        yield _OTHER_MODELS_DB, "converted from another colour model"
    if source.is_lossy:
        yield _DECODERS_DB.get(source.form, _DECODERS_DB["jpeg"]), "lossy source"
    if source.is_scaled or source.depth > right.depth or (answer.form in _FLAT and source.form not in _FLAT):
        yield ROUNDED_DB, "rounded"
    if source.form == "webp" and decoders.is_animated_webp(source.data) and not right.is_opaque:
        yield _BLENDED_DB, "blended"
    yield math.inf, "lossless"


def _is_as_good_as_others(
    answer: Answer, source: Source, right: Canvas, seen_db: float, needed_db: float
) -> bool:
    """Tell whether another encoder does not keep more of this image: noise and small icons lose much."""
    if needed_db > LOSSY_DB or not (answer.form == "gif" or is_lossy(answer.file, answer.form, answer.tags)):
        return False
    with TemporaryDirectory() as directory:
        raw, other = Path(directory, "raw"), Path(directory, f"other.{answer.form}")
        raw.write_bytes(right.rgba)
        png = Path(directory, "right.png")
        run("convert", *raw_arguments(right, raw), png)
        if answer.form == "tiff":
            run("convert", png, "-alpha", "off", "-compress", "JPEG", "-quality", "75", f"tiff:{other}")
        elif answer.form == "jpeg":
            _encode_jpeg(source, answer, png, other, Path(directory, "tables"))
        elif answer.form == "webp":
            run("cwebp", "-quiet", "-q", "10" if source.form == "webp" else "90", png, "-o", other)
        elif answer.form == "avif":
            levels = ("50", "56") if source.form == "avif" else ("20", "24")
            run("avifenc", "-y", "420", "--min", levels[0], "--max", levels[1], "-s", "8", png, other)
        else:
            run("convert", png, "+dither", "-colors", "255", f"gif:{other}")
        others = decoders.decode(other, answer.form, right.depth).canvases[0]
    worse = 2 * _WORSE_DB if answer.form == "gif" else _WORSE_DB
    return seen_db >= difference_db(right, others) - worse


def _encode_jpeg(source: Source, answer: Answer, png: Path, target: Path, tables: Path) -> None:
    """Encode with the sampling of the answer, and with the tables of the source if that is a JPEG too."""
    sampling = ("-sample", str(answer.tags.get("File:YCbCrSubSampling", "2 2")).replace(" ", "x"))
    ppm = png.with_suffix(".ppm")
    run("convert", png, "-alpha", "off", "-depth", "8", ppm)
    quality: tuple[str, ...] = ("-quality", "90")
    if source.form == "jpeg":
        found = _quantization_tables(source.data)
        tables.write_text("\n".join(" ".join(map(str, table)) for table in found))
        quality = ("-qtables", str(tables), "-qslots", "0,1,1" if len(found) > 1 else "0", "-quality", "50")
    run("cjpeg", *quality, *sampling, "-outfile", target, ppm)


def _quantization_tables(data: bytes) -> list[list[int]]:
    """Return the tables of a JPEG's DQT segments (T.81, B.2.4.1), row by row as cjpeg wants them."""
    cells_in_order = sorted(range(64), key=_place_in_zigzag)
    found: dict[int, list[int]] = {}
    position = 2
    while position + 4 <= len(data) and data[position + 1] != 0xDA:  # noqa: PLR2004 start of scan
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        at = position + 4
        while data[position + 1] == 0xDB and at < end:  # noqa: PLR2004 tables
            width = 1 + (data[at] >> 4)
            cells = data[at + 1 : at + 1 + 64 * width]
            table = [0] * 64
            for number, cell in enumerate(cells_in_order[: len(cells) // width]):
                table[cell] = int.from_bytes(cells[number * width : (number + 1) * width])
            found[data[at] & 15] = table
            at += 1 + 64 * width
        position = end
    return [found[number] for number in sorted(found)]


def _place_in_zigzag(cell: int) -> tuple[int, int]:
    """Return the diagonal of a cell of 8 by 8 and its place there: odd diagonals run down (T.81, A.6)."""
    row, column = divmod(cell, 8)
    diagonal = row + column
    return diagonal, row if diagonal % 2 else column


def _lossless_fault(source: Source, answer: Answer) -> str | None:
    """Compare with jpegtran, bit by bit of what djpeg decodes."""
    wanted = jpegtran_arguments(source.orientation, answer.order.turn)
    with TemporaryDirectory() as directory:
        theirs = Path(directory, "theirs.jpg")
        try:
            run("jpegtran", "-copy", "none", *wanted, "-outfile", theirs, source.file, tolerated=(0, 2))
            run("jpegtran", "-copy", "none", "-perfect", *wanted, source.file, tolerated=(0, 2))
        except Failed as error:
            return f"pixels: said to be lossless, but jpegtran: {str(error)[-150:]}"
        pixels = [
            run("djpeg", "-nosmooth", "-pnm", file, tolerated=(0, 2)).output for file in (theirs, answer.file)
        ]
    return None if pixels[0] == pixels[1] else "pixels: said to be lossless, but not what jpegtran makes"


def _timing_faults(source: Source, answer: Answer) -> Iterator[str]:
    try:
        before = source.timing
        after = decoders.timing_of(answer.file, answer.form)
    except Unreadable as error:
        yield f"animation: unreadable ({str(error)[:100]})"
        return
    if before is None or answer.form in _ONE_FRAME or answer.form == "tiff":
        return
    if after is None:
        yield f"animation: a still instead of {len(before.delays_ms)} frames"
        return
    if len(after.delays_ms) != len(before.delays_ms):
        yield f"animation: {len(after.delays_ms)} frames instead of {len(before.delays_ms)}"
        return
    if before.plays not in (after.plays, decoders.UNTOLD):
        yield f"animation: plays {after.plays or 'for ever'} instead of {before.plays or 'for ever'}"
    shown_ms, wanted_ms = 0.0, 0.0
    for number, (delay_ms, right_ms) in enumerate(zip(after.delays_ms, before.delays_ms, strict=True)):
        shown_ms, wanted_ms = shown_ms + delay_ms, wanted_ms + right_ms
        if abs(shown_ms - wanted_ms) > _DELAY_MS and abs(delay_ms - right_ms) > 1e-6:  # noqa: PLR2004 nothing
            yield f"animation: frame {number} ends after {shown_ms:g} ms instead of {wanted_ms:g} ms"
            return


def twice_fault(source: Source, twice: Path, form: str) -> str | None:
    """Return what differs between a source and what was flipped twice, or None.

    Raises:
        Unreadable: a decoder shows nothing.
    """
    found = decoders.decode(twice, form, source.depth).canvases
    fault = None
    for reader in source.readers:
        try:
            said = _twice_fault_by(source.seen(source.depth, reader), found)
        except Unreadable:
            if fault is None:
                raise
            continue
        if said is None:
            return None
        fault = fault or said
    return fault


def _twice_fault_by(seen: Sequence[Canvas], found: Sequence[Canvas]) -> str | None:
    if [canvas.size for canvas in seen] != [canvas.size for canvas in found]:
        return "twice flipped: other sizes or frames"
    for number, (one, other) in enumerate(zip(seen, found, strict=True)):
        if number < _MOST_FRAMES_COMPARED and (seen_db := difference_db(one, other)) < math.inf:
            return f"twice flipped: frame {number} differs ({seen_db:.1f} dB)"
    return None
