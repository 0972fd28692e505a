"""Ways to flip a JPEG on one core: ours, Pillow's, libvips', sharp's.

All alternate in one run; each ratio is taken within a round, and the median over the rounds is the result.
Pillow has the malloc settings that our engines have; it keeps the source's tables and optimises no codes.
libvips and sharp write with the source's tables, sampling and kind of coding, so that quality and size match;
sharp's default is to optimise codes, which has a row of its own.
"Served" is ours through the whole service, with a core for its worker; the others do no HTTP.
Run it with `make methods`, which installs the peers, on a machine that does nothing else.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.cost import bare
from benchmarks.cost.ratios import service
from benchmarks.harness import load, processes
from benchmarks.harness.messages import PIXELS
from benchmarks.harness.server import ROOT, LiveServer
from images.render import BENCHMARK, LANDSCAPE, benchmark_image
from images.render import HERE as IMAGES
from server.cluster.supervisor import MALLOC_SETTINGS

_PEERS = ROOT / "benchmarks" / "peers"
_VIPS = ROOT / ".venv-peers" / "bin" / "python"
_OURS = "ours"

#: The whole service: one worker with one engine, over the loopback device.
_TARGETS = {"ours, served": "/flip", "ours, served, pixels": PIXELS}

#: So that the engine never waits for a client.
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class Case:
    """One image.

    Attributes:
        quality: the one whose tables it has.
        kind: how it is coded: plain, optimised or progressive.
    """

    title: str
    file: Path
    quality: int
    kind: str = "plain"


def cases(directory: Path) -> Iterator[Case]:
    """Yield an image for every kind of path; those that do not exist yet are made in a directory."""
    big = benchmark_image()
    yield Case("20 megapixels, 4:2:0", big, BENCHMARK.quality)
    with Image.open(big) as image:
        for name, height, kind in (
            ("20 megapixels, 8 rows fewer: within a block of colours", 3640, "plain"),
            ("20 megapixels, 6 rows fewer: within a block of luma", 3642, "plain"),
            ("20 megapixels, optimised tables", 3648, "optimised"),
            ("20 megapixels, progressive", 3648, "progressive"),
        ):
            file = directory / f"{name}.jpg"
            part = image.crop((0, 0, image.width, height))
            part.save(
                file,
                quality=BENCHMARK.quality,
                subsampling="4:2:0",
                optimize=kind == "optimised",
                progressive=kind == "progressive",
            )
            yield Case(name, file, BENCHMARK.quality, kind)
    with Image.open(IMAGES / "landscape.jpg") as image:
        file = directory / "1920x1080.jpg"
        image.crop((0, 0, 1920, 1080)).save(file, quality=LANDSCAPE.quality, subsampling="4:2:0")
        yield Case("1920x1080: within a block of colours", file, LANDSCAPE.quality)


def contenders(case: Case, images: int) -> dict[str, list[str]]:
    """Return the command line of each; peers that are not installed are left out."""
    commands = {
        _OURS: bare.command_of("lossless", case.file, images),
        "ours, pixels": bare.command_of("engine by pixels", case.file, images),
        "Pillow": bare.command_of("pixels", case.file, images),
    }
    arguments = [str(case.file), str(images), str(case.quality), case.kind]
    if _VIPS.exists():
        commands["pyvips"] = [str(_VIPS), str(_PEERS / "vips_flip.py"), *arguments]
    if (_PEERS / "node_modules" / "sharp").exists() and (node := shutil.which("node")):
        sharp = [node, str(_PEERS / "sharp_flip.mjs")]
        commands["sharp"] = [*sharp, *arguments]
        if case.kind == "plain":
            commands["sharp, optimised"] = [*sharp, *arguments[:-1], "optimised"]
    return commands


def measure(case: Case, rounds: int, images: int) -> dict[str, list[bare.Bare]]:
    """Alternate all contenders."""
    environ = MALLOC_SETTINGS | os.environ | {"VIPS_CONCURRENCY": "1"}
    results: dict[str, list[bare.Bare]] = {}
    with service(1) as ours:
        for target in _TARGETS.values():
            _through(ours, case, target, images)  # warm-up
        for _ in range(rounds):
            for name, command in contenders(case, images).items():
                results.setdefault(name, []).append(bare.run(command, processes=1, environ=environ))
            for name, target in _TARGETS.items():
                results.setdefault(name, []).append(_through(ours, case, target, images))
    return results


def _through(ours: LiveServer, case: Case, target: str, images: int) -> bare.Bare:
    """Send the image through the service, and charge it for all of its processes."""
    pids = list(processes.tree(ours.pid))
    before_s = processes.sum_cpu_s(pids)
    done = load.run(ours.address, case.file.read_bytes(), requests=images, at_once=_AT_ONCE, target=target)
    return bare.Bare(done.wall_s, processes.sum_cpu_s(pids) - before_s, done.bodies[0])


def report(case: Case, results: dict[str, list[bare.Bare]], images: int) -> None:
    """Print milliseconds, and how many times as fast ours is, alone and served."""
    print(f"\n{case.title}, {case.file.stat().st_size / 1e6:.1f} MB")
    ours, served = results[_OURS], results["ours, served"]
    for name, rounds in results.items():
        wall_ms = median(one.wall_s for one in rounds) / images * 1e3
        cpu_ms = median(one.cpu_s for one in rounds) / images * 1e3
        size = rounds[0].answer_bytes / case.file.stat().st_size
        print(
            f"  {name:<20} {wall_ms:7.1f} ms  {cpu_ms:7.1f} ms CPU  {100 * (size - 1):+6.2f} % size"
            f"   ours is faster by {spread(rounds, ours)}, served by {spread(rounds, served)}"
        )


def spread(theirs: Sequence[bare.Bare], ours: Sequence[bare.Bare]) -> str:
    """Write the ratio of their time over ours: the median and the range."""
    values = [one.wall_s / other.wall_s for one, other in zip(theirs, ours, strict=True)]
    return f"{median(values):5.2f}  ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure all images and print the results."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--images", type=int, default=8, help="a round and contender")
    given = options.parse_args()
    with TemporaryDirectory() as directory:
        for case in cases(Path(directory)):
            missing = {"pyvips", "sharp"} - contenders(case, 1).keys()
            if missing:
                print(f"not installed: {', '.join(sorted(missing))}", file=sys.stderr)
            report(case, measure(case, given.rounds, given.images), given.images)


if __name__ == "__main__":
    main()
