"""The bare function: a flip with Pillow in five lines, run in as many processes as there are cores.

It is the yardstick: nothing that a service adds can make an image cheaper than this.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from PIL import Image, JpegImagePlugin

from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import ImagePath, Recipe


def flip(image: bytes) -> bytes:
    """Turn a JPEG upside down, at the quality it has."""
    decoded = Image.open(BytesIO(image))
    turned = decoded.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    assert isinstance(decoded, JpegImagePlugin.JpegImageFile)
    with BytesIO() as file:
        sampling = JpegImagePlugin.get_sampling(decoded)
        turned.save(
            file,
            "JPEG",
            qtables=decoded.quantization,
            subsampling=sampling,
            progressive="progressive" in decoded.info,
        )
        return file.getvalue()


def engine_flip(image: bytes, path: ImagePath | None = None) -> bytes:
    """Turn a JPEG upside down as an engine does, without the service."""
    limits = Limits(max_pixels=10**8, max_frames=1, max_total_pixels=10**8)
    with BytesIO() as file:
        process(image, file, Recipe(Turn.FLIP, path=path), limits)
        return file.getvalue()


#: Functions from an image to its flip, by name.
METHODS: dict[str, Callable[[bytes], bytes]] = {
    "pixels": flip,
    "lossless": engine_flip,
    "engine by pixels": partial(engine_flip, path="pixels"),
}


@dataclass(frozen=True, slots=True)
class Bare:
    """The cost of a round of the bare function, over all processes.

    Attributes:
        wall_s: from the common start to the last process's end, in seconds.
        cpu_s: user and system time together, in seconds.
        answer_bytes: how large the answer is.
    """

    wall_s: float
    cpu_s: float
    answer_bytes: int


def command_of(method: str, image: Path, images_each: int) -> list[str]:
    """Return the command line of a process that flips an image a number of times, by one of METHODS."""
    return [sys.executable, "-m", "benchmarks.cost.bare", method, str(image), str(images_each)]


def run(command: Sequence[str], *, processes: int, environ: Mapping[str, str]) -> Bare:
    """Flip an image again and again in several processes at once.

    Args:
        command: of each process. It prints a line when it is warm, begins at the end of its standard input,
            and prints in the end how many CPU seconds it took and how large the answer is, in bytes.
        processes: how many at once.
        environ: the environment of the processes, with the malloc settings.
    """
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    command, env=environ, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in range(processes)
        ]
        for child in children:  # until it is warm
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
    method, image, images = METHODS[sys.argv[1]], Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
    answer = method(image)
    print("warm", flush=True)
    sys.stdin.read()
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(images):
        method(image)
    after = resource.getrusage(resource.RUSAGE_SELF)
    spent_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    print(spent_s, len(answer), flush=True)


if __name__ == "__main__":
    _main()
