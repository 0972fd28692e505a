"""Mutated JPEGs: refused, or turned and turned back to exactly what they were."""

import logging
from collections import Counter
from functools import cache
from io import BytesIO
from os import environ
from random import Random

import pytest
from PIL import Image, ImageFile
from support.pictures import GENEROUS

from server.errors import ImageError
from server.imaging.operations import Operation
from server.imaging.pipeline import Recipe, process

log = logging.getLogger("fuzz")

FILES = int(environ.get("FUZZ_JPEGS", "10000"))
SEED = int(environ.get("FUZZ_SEED", "1"))

BACK = {
    **{operation: operation for operation in Operation if operation is not Operation.ORIENT},
    Operation.ROTATE_90: Operation.ROTATE_270,
    Operation.ROTATE_270: Operation.ROTATE_90,
}


@cache
def sound_files() -> tuple[bytes, ...]:
    """Small files of all kinds that Pillow writes."""
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


def mutated(random: Random) -> bytes:
    """One of the files with a few places changed, most of them in its entropy-coded data."""
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


def pixels(data: bytes) -> tuple[tuple[int, int], bytes]:
    """What libjpeg makes of a file, complaints or not."""
    with Image.open(BytesIO(data)) as image:
        return image.size, image.tobytes()


def turned(data: bytes, operation: Operation) -> tuple[str, bytes]:
    sink = BytesIO()
    path = process(BytesIO(data), sink, Recipe(operation), GENEROUS).path
    return path, sink.getvalue()


@pytest.mark.timeout(120 + FILES // 100)
def test_every_mutated_jpeg_is_refused_or_turned_without_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    outcomes: Counter[str] = Counter()
    for number in range(FILES):
        random = Random(f"{SEED}:{number}")
        data = mutated(random)
        operation = random.choice(list(BACK))
        try:
            path, answer = turned(data, operation)
        except ImageError as refusal:
            outcomes[type(refusal).__name__] += 1
            continue
        outcomes[path] += 1
        if path == "lossless":
            path_back, again = turned(answer, BACK[operation])
            assert path_back == "lossless", (SEED, number)
            assert pixels(again) == pixels(data), (SEED, number)
        elif path == "coefficients":
            pixels(answer)
        if number % 100_000 == 99_999:
            log.info("%d JPEGs: %s", number + 1, dict(outcomes))
    assert {"lossless", "coefficients", "pixels", "DamagedImage"} <= outcomes.keys()
    assert outcomes["lossless"] > FILES // 10
