"""A codec that finds no memory: the image is refused with what to do, and is neither damaged nor our bug."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from server.cluster.supervisor import MALLOC_SETTINGS
from server.errors import DamagedImage, TooManyPixels
from server.imaging.codecs import OUTPUT_FORMATS, Format, check_memory, decoding, encoding

ROOT = Path(__file__).parents[3]

SIZE = (2000, 1500)

#: Flips a file again and again, each time with three more bytes of address space for each pixel, until there
#: is a result, and prints what came of each time.
PROGRAM = """
import json
import resource
import sys
from io import FileIO
from pathlib import Path

from server.cluster.memory_files import memory_file
from server.errors import OperationRefused
from server.operations.turn_image import flip

source, target, pixels = sys.argv[1], sys.argv[2], int(sys.argv[3])
parameters = {"format": target, "quality": None, "strip": False, "path": "pixels", "effort": "low"}
limits = {"max_pixels": pixels, "max_frames": 1, "max_total_pixels": pixels}


def outcome(file):
    with memory_file("sink") as sink:
        try:
            flip(file, sink, parameters, limits, lambda stage: None)
        except OperationRefused as refusal:
            return [type(refusal).__name__, type(refusal.__cause__).__name__]
    return ["done", ""]


with memory_file("warm-up") as small:
    small.write(b"P6 1 1 255 abc")
    outcomes = [outcome(small)]
used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
_, hard = resource.getrlimit(resource.RLIMIT_AS)
with FileIO(source) as file:
    for pixel_bytes in range(3, 150, 3):
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + pixel_bytes * pixels, hard))
        outcomes.append(outcome(file))
        if outcomes[-1][0] == "done":
            break
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
print(json.dumps(outcomes))
"""


def noise() -> Image.Image:
    return Image.frombytes("RGB", SIZE, random.Random(1).randbytes(3 * SIZE[0] * SIZE[1]))


def outcomes(source: Path, target: str) -> list[list[str]]:
    """Run the program as an engine would run, and return what came of each time but the first, a warm-up."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), target, str(SIZE[0] * SIZE[1])],
        cwd=ROOT,
        env={**os.environ, **MALLOC_SETTINGS},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,  # below the limit on a test
    )
    assert result.returncode == 0, result.stderr
    warm_up, *others = json.loads(result.stdout)
    assert warm_up == ["done", ""]
    return others


def assert_refused_until_there_is_enough(found: list[list[str]]) -> None:
    *refused, last = found
    assert last == ["done", ""]
    assert refused == [["TooManyPixels", "MemoryError"]] * len(refused)
    assert refused  # otherwise nothing was tried


@pytest.mark.parametrize("target", sorted(OUTPUT_FORMATS))
def test_an_encoder_without_memory_refuses_the_image(tmp_path: Path, target: Format) -> None:
    source = tmp_path / "source"
    noise().save(source, "PPM")
    assert_refused_until_there_is_enough(outcomes(source, target.value))


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {"progressive": True}),
        ("PNG", {"compress_level": 1}),
        ("WEBP", {"method": 0}),
        ("WEBP", {"lossless": True, "method": 0, "quality": 0}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("AVIF", {"speed": 10, "max_threads": 1}),
        ("AVIF", {"speed": 10, "max_threads": 1, "subsampling": "4:4:4"}),
    ],
    ids=str,
)
def test_a_decoder_without_memory_does_not_call_the_image_damaged(
    tmp_path: Path, form: str, options: dict[str, object]
) -> None:
    source = tmp_path / "source"
    noise().save(source, form, **options)
    assert_refused_until_there_is_enough(outcomes(source, "bmp"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Failed to encode image: Encoding of color planes failed"),
        RuntimeError("Failed to encode image: Encoding of alpha plane failed"),
        RuntimeError("Conversion to YUV failed: Out of memory"),
        ValueError("encoding error 1"),
        ValueError("encoding error 2"),
        ValueError("encoding error 8"),
        ValueError("quantization error"),
        OSError("cannot write file as WebP (encoder returned None)"),
        OSError("out of memory when writing image file"),
        OSError("encoder error -9 when writing image file"),
    ],
    ids=repr,
)
def test_what_encoders_say_without_memory_becomes_what_to_do(error: Exception) -> None:
    with pytest.raises(TooManyPixels, match="format=png") as refused, encoding(Format.WEBP, (1, 1)):
        raise error
    assert isinstance(refused.value.__cause__, MemoryError)  # the engine is replaced


@pytest.mark.parametrize(
    "error",
    [
        ValueError("encoding error 4"),
        ValueError("encoding error 10"),
        OSError("broken data stream when writing image file"),
        OSError(28, "No space left on device: out of memory"),
        TypeError("out of memory"),
    ],
    ids=repr,
)
def test_any_other_error_of_an_encoder_stays_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, encoding(Format.WEBP, (1, 1)):
        raise error
    assert raised.value is error


#: Looks for so many bytes twice, and prints how many KiB of memory the process had at most.
CHECK_TWICE = """
import sys
from pathlib import Path

from server.imaging.codecs import check_memory

for _ in range(2):
    check_memory(int(sys.argv[1]))
print(next(line.split()[1] for line in Path("/proc/self/status").open() if line.startswith("VmHWM:")))
"""


def test_memory_that_is_only_looked_for_is_not_taken() -> None:
    def most_kib(nbytes: int) -> int:
        command = [sys.executable, "-c", CHECK_TWICE, str(nbytes)]
        ran = subprocess.run(
            command,
            env={**os.environ, **MALLOC_SETTINGS},
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=60,
        )
        return int(ran.stdout)

    assert most_kib(300 << 20) < most_kib(1) + (30 << 10)


#: No address space has room for it.
ENORMOUS = (1 << 31, 1 << 27)


def test_a_codec_that_fails_where_there_is_no_memory_failed_for_that() -> None:
    with pytest.raises(MemoryError):
        check_memory(8 * ENORMOUS[0] * ENORMOUS[1])
    with pytest.raises(TooManyPixels), encoding(Format.JPEG, ENORMOUS):
        raise OSError("broken data stream when writing image file")
    with pytest.raises(TooManyPixels) as refused, decoding(Format.JPEG, ENORMOUS):
        raise OSError("broken data stream when reading image file")
    assert isinstance(refused.value.__cause__, MemoryError)
    with pytest.raises(DamagedImage), decoding(Format.JPEG, (1, 1)):
        raise OSError("broken data stream when reading image file")
