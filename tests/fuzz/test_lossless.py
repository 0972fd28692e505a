"""Mutated JPEGs: refused, or turned and turned back to exactly what they were."""

import logging
import re
from collections import Counter
from functools import cache
from io import BytesIO
from math import inf, log10
from os import environ
from random import Random

import pytest
from PIL import Image, ImageChops, ImageFile, ImageStat
from support.mapped import mapped
from support.specimens import GENEROUS

from server.errors import ImageError
from server.imaging.geometry import Turn, compose
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

log = logging.getLogger("fuzz")

FILES = int(environ.get("FUZZ_JPEGS", "10000"))
SEED = int(environ.get("FUZZ_SEED", "1"))

FRAMES = {0xC0, 0xC1, 0xC2}

BACK = {
    **{turn: turn for turn in Turn if turn is not Turn.ORIENT},
    Turn.ROTATE_90: Turn.ROTATE_270,
    Turn.ROTATE_270: Turn.ROTATE_90,
}


@cache
def sound_files() -> tuple[bytes, ...]:
    """Return small files of all kinds that Pillow writes."""
    random = Random(1)
    files = []
    for _ in range(60):
        mode = random.choice(("L", "RGB", "RGB", "RGB", "CMYK"))
        size = random.choice(((16, 16), (32, 48), (64, 32), (40, 24), (24, 36), (33, 31)))
        coarse = Image.frombytes(mode, (5, 4), random.randbytes(20 * len(mode)))
        noise = Image.frombytes(mode, size, random.randbytes(size[0] * size[1] * len(mode)))
        image = Image.blend(coarse.resize(size), noise, random.random())
        options = {
            "quality": random.choice((10, 50, 80, 95, 100)),
            "optimize": random.random() < 0.5,
            "progressive": random.random() < 0.1,
            "restart_marker_blocks": random.choice((0, 0, 1, 3)),
        }
        if mode == "RGB":
            options["subsampling"] = random.choice((0, 1, 2))
        file = BytesIO()
        image.save(file, "JPEG", **options)
        files.append(file.getvalue())
    return tuple(files)


#: The first marker that is no stuffed byte, no fill byte and no restart marker (ITU-T T.81, B.1.1.5).
END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


def mutated(random: Random) -> bytes:
    """Change a few places of one of the files, most of them in its entropy-coded data."""
    data = bytearray(random.choice(sound_files()))
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        scan = data.find(b"\xff\xda")
        first = max(0, scan) if random.random() < 0.7 else 0
        at = random.randrange(first, max(first + 1, len(data)))
        length = random.choice((1, 1, 2, 8, 30))
        match random.randrange(6):
            case 0:
                data[at : at + 1] = bytes([(data[at] if at < len(data) else 0) ^ 1 << random.randrange(8)])
            case 1:
                data[at : at + 1] = random.choice(
                    (b"\x00", b"\xff", b"\xff\x00", b"\xff\xd0", b"\xff\xd9", b"\x7f")
                )
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = random.randbytes(length)
            case 4:
                data[at : at + length] = random.randbytes(length)
            case _:
                data[at:at] = data[at : at + length]
    return bytes(data)


def segments(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the segments of a valid file up to its first scan, and all that follows."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at:end])
        at = end
    return found, data[at:]


def a_segment(random: Random, own: list[bytes]) -> bytes:
    """Choose a segment that is valid by itself: of any of the files, or one that changes their meaning."""
    donor = segments(random.choice(sound_files()))[0] if random.random() < 0.5 else own
    match random.randrange(5):
        case 0:
            return b"\xff\xdd\0\4" + random.choice((0, 1, 2, 3, 7, 65535)).to_bytes(2, "big")
        case 1:
            return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([random.randrange(3)])
        case 2:
            return b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
        case 3:
            frame = bytearray(next(part for part in own if part[1] in FRAMES))
            at = random.randrange(10, len(frame), 3)
            frame[at + 1] = random.choice((0x11, 0x12, 0x21, 0x22, 0x41, 0x14))
            return bytes(frame)
        case _:
            return random.choice(donor)


def rearranged(random: Random) -> bytes:
    """Insert, remove, double, exchange or replace whole segments of one of the files."""
    parts, rest = segments(random.choice(sound_files()))
    for _ in range(random.choice((1, 1, 2, 3))):
        at, other = random.randrange(len(parts)), random.randrange(len(parts))
        fresh = a_segment(random, parts)
        match random.randrange(6):
            case 0:
                parts.insert(at, fresh)
            case 1 if parts[at][1] not in FRAMES:
                del parts[at]
            case 2:
                parts.insert(other, parts[at])
            case 3:
                parts[at], parts[other] = parts[other], parts[at]
            case 4:  # after the image, or between its scans
                eoi = rest.rindex(b"\xff\xd9")
                next_scan = rest.find(b"\xff\xda", 2)
                here = eoi if next_scan < 0 else next_scan
                rest = rest[:here] + fresh + rest[here:]
            case _:
                parts = [fresh if part[1] == fresh[1] else part for part in parts]
    return b"\xff\xd8" + b"".join(parts) + rest


def pixels(data: bytes) -> tuple[tuple[int, int], bytes]:
    """Decode a file with libjpeg, ignoring its warnings."""
    with Image.open(BytesIO(data)) as image:
        return image.size, image.tobytes()


def ended(data: bytes) -> bytes:
    """Return a file whose last scan is followed by an EOI and nothing else, as Pillow wants it."""
    start = data.rfind(b"\xff\xda") + 2
    end = END_OF_SCAN.search(data, start + int.from_bytes(data[start : start + 2], "big"))
    return data[: end.start() if end else len(data)] + b"\xff\xd9"


def turned(data: bytes, turn: Turn) -> tuple[str, bytes]:
    sink = BytesIO()
    path = process(mapped(data), sink, Recipe(turn), GENEROUS).path
    return path, sink.getvalue()


@pytest.mark.timeout(120 + FILES // 100)
def test_every_mutated_jpeg_is_refused_or_turned_without_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    outcomes: Counter[str] = Counter()
    for number in range(FILES):
        random = Random(f"{SEED}:{number}")
        data = rearranged(random) if random.random() < 0.3 else mutated(random)
        turn = random.choice(list(BACK))
        try:
            path, answer = turned(data, turn)
        except ImageError as refusal:
            outcomes[type(refusal).__name__] += 1
            continue
        outcomes[path] += 1
        if path == "lossless":
            path_back, again = turned(answer, BACK[turn])
            assert path_back == "lossless", (SEED, number)
            assert pixels(again) == pixels(ended(data)), (SEED, number)
        elif path == "coefficients":
            pixels(answer)
        if number % 100_000 == 99_999:
            log.info("%d JPEGs: %s", number + 1, dict(outcomes))
    assert {"lossless", "coefficients", "pixels", "DamagedImage"} <= outcomes.keys()
    assert outcomes["lossless"] > FILES // 10


def fidelity_db(answer: bytes, expected: Image.Image) -> float:
    with Image.open(BytesIO(answer)) as image:
        errors = ImageStat.Stat(ImageChops.difference(image, expected))
    squares = sum(errors.sum2) / sum(errors.count)
    return 10 * log10(255**2 / squares) if squares else inf


def test_colours_that_are_mixed_are_as_near_as_their_steps_allow() -> None:
    seen = 0
    for data in sound_files():
        for turn in BACK:
            path, answer = turned(data, turn)
            if path != "coefficients":
                continue
            with Image.open(BytesIO(data)) as image:
                steps = image.quantization[1]  # type: ignore[attr-defined]
                transpose = compose(1, turn)
                assert transpose is not None
                expected = image.transpose(transpose)
            # Rounding to steps has a mean square error of step**2 / 12, in both colours; red, green and blue
            # take 1.402**2, 0.344**2 + 0.714**2 and 1.772**2 of it, a third each. One more is for decoders
            # that round and clamp samples.
            rounding = sum(step**2 for step in steps) / 64 / 12 * 1.91 + 1
            assert fidelity_db(answer, expected) > 10 * log10(255**2 / rounding), (len(data), turn)
            seen += 1
    assert seen > 20
