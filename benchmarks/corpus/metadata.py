"""What an answer keeps of the metadata, as exiftool reads it."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpus.programs import run

Tags = Mapping[str, Any]

#: Tags by what people would miss; in each group exiftool's names without their groups.
_EXIF = ("Make", "Model", "DateTimeOriginal", "Artist", "Copyright", "ImageDescription", "LensModel", "ISO")
_GPS = ("GPSLatitude", "GPSLongitude", "GPSAltitude")
_XMP_GROUPS = ("XMP-dc", "XMP-photoshop", "XMP-cc", "XMP-xmpRights", "XMP-Iptc4xmpCore", "XMP-exif")

#: Formats with a place for each kind.
_HOLDS_EXIF = frozenset({"jpeg", "png", "webp", "tiff", "avif"})
_HOLDS_XMP = frozenset({"jpeg", "png", "webp", "tiff", "avif", "gif"})
_HOLDS_IPTC = frozenset({"jpeg", "tiff"})
_HOLDS_COMMENT = frozenset({"jpeg", "png", "gif"})

#: What must go when everything is to go.
_PERSONAL_GROUPS = ("ExifIFD", "GPS", "IPTC", "XMP-", "MakerNotes")
_GEOMETRY = frozenset({"Orientation", "XMPToolkit"})
#: What states the real sides afterwards, whatever it said.
_SIDES = frozenset({"ExifImageWidth", "ExifImageHeight", "ImageWidth", "ImageHeight"})


def read(files: Sequence[Path]) -> list[Tags]:
    """Return the tags of every file, by group and name (`IFD0:Make`); an unreadable one has none."""
    if not files:
        return []
    done = run("exiftool", "-j", "-G1", "-n", "-q", *files, tolerated=(0, 1))
    found = {each["SourceFile"]: each for each in json.loads(done.output or b"[]")}
    return [found.get(str(file), {}) for file in files]


def _values(tags: Tags, names: Iterable[str], groups: Sequence[str] = ()) -> dict[str, str]:
    """Return tags by their bare names: a value may move from one group to another."""
    wanted = frozenset(names)
    found: dict[str, str] = {}
    for name, value in tags.items():
        group, _, bare = name.rpartition(":")
        if (not wanted or bare in wanted) and (not groups or group.startswith(tuple(groups))):
            found.setdefault(bare, _written(value))
    return found


def _written(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def orientation(tags: Tags, form: str) -> int:
    """Return the EXIF orientation that viewers apply to a file, 1 where it has none or an odd one."""
    value = tags.get("IFD0:Orientation", 1)
    is_known = form in ("jpeg", "png", "webp", "tiff") and isinstance(value, int)
    return value if is_known and 1 <= value <= 8 else 1  # noqa: PLR2004 the eight of EXIF


def losses(source: Tags, answer: Tags, form: str, target: str, size: tuple[int, int]) -> Iterator[str]:
    """Yield what an answer has lost or still says of the old geometry; nothing was to be left out.

    Args:
        source: the tags of the source.
        answer: those of the answer.
        form: of the source.
        target: of the answer.
        size: of the first frame of the answer, in pixels.
    """
    if (left := answer.get("IFD0:Orientation", 1)) != 1:
        yield f"orientation {left} is left"
    xmp_orientation = answer.get("XMP-tiff:Orientation", 1)
    if xmp_orientation != 1:
        yield f"orientation {xmp_orientation} is left in XMP"
    if target == "avif" and (answer.get("QuickTime:Rotation", 0) or "Meta:Rotation" in answer):
        yield "a rotation of the container is left"
    yield from _stale_sides(answer, size)
    if target in _HOLDS_EXIF:
        yield from _missing("EXIF", _values(source, _EXIF, ("IFD0", "ExifIFD")), answer)
        yield from _missing("GPS", _values(source, _GPS, ("GPS",)), answer)
    if target in _HOLDS_XMP:
        yield from _missing("XMP", _values(source, (), _XMP_GROUPS), answer)
    if target in _HOLDS_IPTC:
        yield from _missing("IPTC", _values(source, (), ("IPTC",)), answer)
    if target in _HOLDS_COMMENT or target == form:
        yield from _missing_comments(source, answer)


def _stale_sides(answer: Tags, size: tuple[int, int]) -> Iterator[str]:
    sides = answer.get("ExifIFD:ExifImageWidth"), answer.get("ExifIFD:ExifImageHeight")
    if None not in sides and sides != size and sides == size[::-1]:
        yield f"EXIF says {sides[0]} x {sides[1]}, the image is {size[0]} x {size[1]}"


def _missing(kind: str, wanted: Mapping[str, str], answer: Tags) -> Iterator[str]:
    kept = _values(answer, wanted)
    for name, value in wanted.items():
        if name not in kept:
            yield f"{kind} lost: {name}"
        elif kept[name] != value and name not in _SIDES and not _is_close(kept[name], value):
            yield f"{kind} changed: {name} from {value[:40]!r} to {kept[name][:40]!r}"


def _is_close(one: str, other: str) -> bool:
    try:
        return abs(float(one) - float(other)) <= abs(float(other)) * 1e-4
    except ValueError:
        return False


def _missing_comments(source: Tags, answer: Tags) -> Iterator[str]:
    is_gif = "GIF:GIFVersion" in answer
    for name in ("File:Comment", "GIF:Comment", "PNG:Comment", "PNG:Title", "PNG:Description", "PNG:Author"):
        if is_gif and name in ("PNG:Title", "PNG:Description", "PNG:Author"):
            continue  # it has comments only
        text = _written(source.get(name, ""))
        if text and not any(_written(value) == text for value in answer.values()):
            yield f"comment lost: {name}"


def remains(answer: Tags) -> Iterator[str]:
    """Yield what an answer still has although all metadata was to be left out."""
    for name in answer:
        group, _, bare = name.rpartition(":")
        is_text = bare == "Comment" or (group == "PNG" and bare in ("Title", "Description", "Author"))
        is_personal = group.startswith(_PERSONAL_GROUPS) or (group == "IFD0" and bare in _EXIF)
        if (is_text or is_personal) and bare not in _GEOMETRY:
            yield f"left although stripped: {name}"
