"""The bare function: what one writes with Pillow in five lines, run in as many processes as there are cores.

It is the yardstick: nothing that a service adds can make a picture cheaper than this.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image, JpegImagePlugin

from benchmarks.harness.answers import psnr_db
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import ImagePath, Recipe


def flip(picture: bytes) -> bytes:
    """Turn a JPEG upside down, at the quality it has."""
    image = Image.open(BytesIO(picture))
    turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert isinstance(image, JpegImagePlugin.JpegImageFile)
    with BytesIO() as file:
        sampling = JpegImagePlugin.get_sampling(image)
        turned.save(
            file,
            "JPEG",
            qtables=image.quantization,
            subsampling=sampling,
            progressive="progressive" in image.info,
        )
        return file.getvalue()


def engine_flip(picture: bytes, path: ImagePath | None = None) -> bytes:
    """Turn a JPEG upside down as an engine does, without the service."""
    limits = Limits(max_pixels=10**8, max_frames=1, max_total_pixels=10**8)
    with BytesIO() as file:
        process(BytesIO(picture), file, Recipe(Turn.FLIP, path=path), limits)
        return file.getvalue()


#: What is done to the picture, by name.
METHODS = {"pixels": flip, "lossless": engine_flip, "engine by pixels": partial(engine_flip, path="pixels")}


def fidelity_db(picture: bytes, answer: bytes) -> float:
    """How near an answer comes to Pillow's flip, as peak signal-to-noise ratio in decibels."""
    with Image.open(BytesIO(picture)) as original, Image.open(BytesIO(answer)) as flipped:
        return psnr_db(flipped, original.transpose(Image.Transpose.FLIP_TOP_BOTTOM))


@dataclass(frozen=True, slots=True)
class Bare:
    """What a round of the bare function took, over all processes.

    Attributes:
        wall_s: from the common start to the last process's end, in seconds.
        cpu_s: user and system time together, in seconds.
        answer_bytes: how large the answer is.
    """

    wall_s: float
    cpu_s: float
    answer_bytes: int


def command_of(method: str, picture: Path, pictures_each: int) -> list[str]:
    """The command line of a process that flips a picture so many times, by one of METHODS."""
    return [sys.executable, "-m", "benchmarks.cost.bare", method, str(picture), str(pictures_each)]


def run(command: Sequence[str], *, processes: int, environ: Mapping[str, str]) -> Bare:
    """Flip a picture again and again in several processes at once.

    Args:
        command: of each process. It says on its standard output when it is warm, begins when its standard
            input ends, and says then how many CPU seconds it took and how large the answer is, in bytes.
        processes: how many at once.
        environ: the environment of the processes, where the malloc settings are.
    """
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
            spent_s, size = child.stdout.readline().split()
            cpu_s += float(spent_s)
        return Bare(time.perf_counter() - started, cpu_s, int(size))


def _main() -> None:
    method, picture, pictures = METHODS[sys.argv[1]], Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
    answer = method(picture)
    print("warm", flush=True)
    sys.stdin.read()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(pictures):
        method(picture)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(spent_s, len(answer), flush=True)


if __name__ == "__main__":
    _main()
