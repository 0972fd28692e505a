"""The bare function: what one writes with Pillow in five lines, run in as many processes as there are cores.

It is the yardstick: nothing that a service adds can make a picture cheaper than this.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from math import inf, log10
from pathlib import Path

from PIL import Image, ImageChops, ImageStat, JpegImagePlugin

from server.imaging.pipeline import Limits, Operation, Recipe, process


def flip(picture: bytes) -> bytes:
    """Turn a JPEG upside down, at the quality it has."""
    image = Image.open(BytesIO(picture))
    turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    with BytesIO() as file:
        sampling = JpegImagePlugin.get_sampling(image)
        turned.save(file, "JPEG", qtables=image.quantization, subsampling=sampling)
        return file.getvalue()


def move(picture: bytes) -> bytes:
    """Turn a JPEG upside down as the service does, without the service."""
    limits = Limits(max_pixels=10**8, max_frames=1, max_total_pixels=10**8)
    with BytesIO() as file:
        assert process(BytesIO(picture), file, Recipe(Operation.FLIP), limits).path == "lossless"
        return file.getvalue()


#: What is done to the picture, by name.
METHODS = {"pixels": flip, "lossless": move}


def fidelity_db(picture: bytes, answer: bytes) -> float:
    """How near an answer comes to Pillow's flip, as peak signal-to-noise ratio in decibels."""
    with Image.open(BytesIO(picture)) as original, Image.open(BytesIO(answer)) as flipped:
        expected = original.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        errors = ImageStat.Stat(ImageChops.difference(flipped, expected))
    mean_squared_error = sum(errors.sum2) / sum(errors.count)
    return 10 * log10(255**2 / mean_squared_error) if mean_squared_error else inf


@dataclass(frozen=True, slots=True)
class Bare:
    """What a round of the bare function took, over all processes.

    Attributes:
        wall_s: from the common start to the last process's end, in seconds.
        cpu_s: user and system time together, in seconds.
    """

    wall_s: float
    cpu_s: float


def run(
    method: str, picture: Path, *, processes: int, pictures_each: int, environ: Mapping[str, str]
) -> Bare:
    """Flip a picture again and again in several processes at once.

    Args:
        method: one of METHODS.
        picture: a JPEG file.
        processes: how many at once.
        pictures_each: how many times each process flips it.
        environ: the environment of the processes, where the malloc settings are.
    """
    command = [sys.executable, "-m", "benchmarks.bare", method, str(picture), str(pictures_each)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with ExitStack() as stack:
        children = [
            stack.enter_context(subprocess.Popen(command, env=dict(environ), text=True, **pipes))
            for _ in range(processes)
        ]
        for child in children:  # each says when it is warm
            assert child.stdout is not None
            child.stdout.readline()
        started = time.perf_counter()
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        cpu_s = 0.0
        for child in children:
            assert child.stdout is not None
            cpu_s += float(child.stdout.readline())
        return Bare(time.perf_counter() - started, cpu_s)


def _main() -> None:
    method, picture, pictures = METHODS[sys.argv[1]], Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
    method(picture)
    print("warm", flush=True)
    sys.stdin.read()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(pictures):
        method(picture)
    after = resource.getrusage(resource.RUSAGE_SELF)
    print(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, flush=True)


if __name__ == "__main__":
    _main()
