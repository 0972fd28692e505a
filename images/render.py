"""Sample images, painted from a seed: dawn at a mountain lake, no two sides alike.

No photo is needed, and so no licence of one.
Pillow and the standard library are enough: value noise makes clouds, rock and ripples, midpoint displacement
makes ridges, polygons make trees and grass, and film grain makes it all as hard to compress as a photo.
The same size and seed give the same bytes.

::

    python images/render.py                landscape.jpg, which is in the repository
    python images/render.py --benchmark    benchmark-20mp.jpg, which is not
"""

import argparse
import math
import os
import tempfile
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random
from statistics import NormalDist
from typing import Any, TypeAlias, cast

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageMath

Size = tuple[int, int]
Point = tuple[float, float]
Colour = tuple[float, float, float]
Stops = Sequence[tuple[float, Colour]]
Pixels: TypeAlias = Any  # an operand in ImageMath, whose class is private
Names: TypeAlias = dict[str, Pixels]

HERE = Path(__file__).resolve().parent
SEED = 1816  # the year without a summer had the finest dawns
BICUBIC = Image.Resampling.BICUBIC
OVERDRAW = 2  # polygons are drawn this much larger and reduced: that is their antialiasing

#: Heights as fractions of the image. The water is level; everything else moves around these.
WATERLINE = 0.605
SUN = (0.685, 0.436)

MIST: Colour = (250, 216, 184)  # towards the sun
SHADOW_MIST: Colour = (172, 180, 208)  # away from it
SNOW_LIGHT: Colour = (255, 224, 202)
SNOW_SHADE: Colour = (128, 146, 196)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample image: its size, how it is encoded, and how strong its grain is."""

    size: Size
    quality: int
    grain: float
    seed: int = SEED


LANDSCAPE = Sample((3072, 1920), quality=91, grain=4.0)
BENCHMARK = Sample((5472, 3648), quality=92, grain=3.6)
SMALL_SIZE = (640, 427)
SMALL_QUALITY = 85


# Files


def landscape_image(path: Path | None = None) -> Path:
    """Render the image in the repository again, even if it is there."""
    path = path or HERE / "landscape.jpg"
    write_atomically(path, lambda: encode(LANDSCAPE))
    return path


def benchmark_image(path: Path | None = None, sample: Sample = BENCHMARK) -> Path:
    """Return the image of 20 megapixels, rendered on first use; a smaller `sample` is for tests."""
    path = path or HERE / "benchmark-20mp.jpg"
    if not path.exists():
        write_atomically(path, lambda: encode(sample))
    return path


def small_image(path: Path | None = None) -> Path:
    """Return the landscape at the size of an image on a web page, made on first use."""
    path = path or HERE / "benchmark-small.jpg"
    if not path.exists():
        write_atomically(path, _shrink_landscape)
    return path


def encode(sample: Sample) -> bytes:
    """Render an image as a baseline JPEG with 4:2:0 sampling and the standard Huffman tables."""
    return _jpeg(render(sample), sample.quality)


def _shrink_landscape() -> bytes:
    with Image.open(HERE / "landscape.jpg") as landscape:
        return _jpeg(landscape.resize(SMALL_SIZE, Image.Resampling.LANCZOS), SMALL_QUALITY)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=False, progressive=False)
    return file.getvalue()


def write_atomically(path: Path, produce: Callable[[], bytes]) -> None:
    """Write all of a file or none of it, so that no reader sees half an image."""
    data = produce()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(name).chmod(0o644)  # mkstemp makes files for one user only
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


# The scene, from the far to the near


def render(sample: Sample) -> Image.Image:
    """Paint the scene from far to near, then expose it on grainy film."""
    size, seed = sample.size, sample.seed
    image = _sky(size, seed)
    _paint_birds(image, seed)
    _paint_mountains(image, seed)
    _paint_far_shore(image, seed)
    _paint_lake(image, seed)
    _paint_meadow(image, seed)
    _paint_pines(image, seed)
    return _expose(image, sample)


def _sky(size: Size, seed: int) -> Image.Image:
    """A dawn gradient, the sun's glow and a deck of clouds in perspective, lit from below."""
    width, height = size
    area = (width, round(height * WATERLINE))
    stops: Stops = (
        (0.00, (84, 128, 186)),
        (0.28, (134, 170, 208)),
        (0.52, (196, 199, 211)),
        (0.70, (240, 202, 182)),
        (0.85, (248, 204, 164)),
        (1.00, (250, 206, 160)),
    )
    sun_distance = _distance(area, (SUN[0] * width, SUN[1] * height), height)
    glow = _math(lambda a: 1 / (1 + (a["r"] * 5.5) ** 2), r=sun_distance)
    disc = _math(lambda a: 1 / (1 + (a["r"] * 42) ** 5), r=sun_distance)
    right, down = round(height * 0.006), round(height * 0.012)
    wider = (area[0] + right, area[1] + down)
    density = _math(
        lambda a: a["x"] * 0.62 + a["y"] * 0.5, x=_cloud_deck(wider, seed), y=_cloud_banks(wider, seed)
    )
    density, below = _neighbours(density, area, right, down)
    veil = _column(area, [(0.0, 0.95), (0.45, 1.0), (0.72, 0.75), (0.92, 0.0), (1.0, 0.0)])
    cover = _math(lambda a: a["v"] * _smooth(a, (a["d"] + 0.06) / 1.1) * 0.9, d=density, v=veil)
    lit = _math(lambda a: _smooth(a, (a["d"] - a["b"]) * 1.1 + 0.55 - a["d"] * 0.16), d=density, b=below)
    bands = []
    for channel, (shade, light, glare) in enumerate(
        zip((138, 141, 172), (255, 226, 205), (64, 34, -6), strict=True)
    ):
        band = _math(
            lambda a: _mix(a["clear"], _mix(a["shade"], a["light"], a["lit"]), a["cover"])
            + a["glow"] * (1 - a["cover"] * 0.25) * a["glare"]
            + a["disc"] * 700,
            clear=_column(area, [(at, colour[channel]) for at, colour in stops]),
            cover=cover, shade=shade, light=light, lit=lit, glow=glow, glare=glare, disc=disc,
        )  # fmt: skip
        dither = _flat_noise(area, Random(f"{seed} dither {channel}"))
        bands.append(_math(lambda a: _shoulder(a, a["x"]) + a["dither"], x=band, dither=dither).convert("L"))
    image = Image.new("RGB", size, tuple(round(part) for part in MIST))
    image.paste(Image.merge("RGB", bands), (0, 0))
    return image


def _cloud_deck(area: Size, seed: int) -> Image.Image:
    """Small clouds on a plane above us, closer together towards the horizon."""
    width, height = area
    return _receding(area, (width / 7, height / 3.2), 0.22, f"{seed} deck", octaves=7, near_is_top=True)


def _cloud_banks(area: Size, seed: int) -> Image.Image:
    """Long banks that break the deck's regularity."""
    width, height = area
    return _fractal(area, (width / 2.2, height / 4.5), f"{seed} banks", gain=0.45)


def _paint_birds(image: Image.Image, seed: int) -> None:
    """A loose skein, right of the middle."""
    width, height = image.size
    box = (round(width * 0.52), round(height * 0.14), round(width * 0.78), round(height * 0.28))
    with _Overdraw(image, box) as draw:
        rng = Random(f"{seed} birds")
        for index in range(11):
            x = width * (0.57 + 0.012 * index + rng.uniform(-0.006, 0.006))
            y = height * (0.185 + 0.006 * abs(index - 4) + rng.uniform(-0.006, 0.006))
            span, beat = height * rng.uniform(0.0045, 0.007), rng.uniform(-0.35, 0.6)
            for side in (-1, 1):
                tip = (x + side * span, y - span * beat)
                elbow = (x + side * span * 0.45, y - span * (0.25 + beat * 0.4))
                draw.polygon(
                    [(x, y), elbow, tip, (elbow[0], elbow[1] + span * 0.16), (x, y + span * 0.2)],
                    (70, 66, 84),
                )


@dataclass(frozen=True, slots=True)
class _Ridge:
    """One layer of mountains: its skyline, its colours, and how much of the haze is before it."""

    name: str
    skyline: Sequence[Point]
    roughness: float
    shade: Colour
    light: Colour
    haze: tuple[float, float]
    relief: float
    snow: bool = False
    trees: float = 0.0


RIDGES = (
    _Ridge(
        "massif",
        ((0, 0.375), (0.07, 0.345), (0.13, 0.285), (0.175, 0.29), (0.225, 0.215), (0.268, 0.15),
         (0.30, 0.195), (0.345, 0.225), (0.375, 0.29), (0.43, 0.285), (0.47, 0.35), (0.53, 0.405),
         (0.62, 0.455), (0.74, 0.468), (0.83, 0.425), (0.90, 0.435), (1, 0.38)),
        0.42, (64, 76, 116), (226, 170, 146), (0.12, 0.74), 1.0, snow=True,
    ),
    _Ridge(
        "shoulder",
        ((0, 0.40), (0.10, 0.42), (0.24, 0.465), (0.42, 0.455), (0.56, 0.50), (0.70, 0.505), (0.84, 0.445),
         (1, 0.375)),
        0.26, (60, 74, 104), (184, 142, 120), (0.22, 0.74), 1.0,
    ),
    _Ridge(
        "flank",
        ((0, 0.47), (0.16, 0.49), (0.33, 0.525), (0.5, 0.515), (0.66, 0.545), (0.82, 0.52), (0.93, 0.475),
         (1, 0.45)),
        0.16, (46, 64, 76), (134, 118, 92), (0.18, 0.60), 0.8, trees=0.006,
    ),
    _Ridge(
        "hill",
        ((0, 0.505), (0.10, 0.515), (0.25, 0.555), (0.42, 0.565), (0.58, 0.58), (0.76, 0.57), (0.9, 0.535),
         (1, 0.52)),
        0.08, (28, 46, 48), (96, 94, 62), (0.10, 0.42), 0.7, trees=0.013,
    ),
)  # fmt: skip


def _paint_mountains(image: Image.Image, seed: int) -> None:
    for ridge in RIDGES:
        _paint_ridge(image, ridge, seed)


def _paint_ridge(image: Image.Image, ridge: _Ridge, seed: int) -> None:
    """Cut textured, hazy rock out along a skyline of midpoint displacement."""
    width, height = image.size
    skyline = [
        (x * width, y * height) for x, y in _displace(ridge.skyline, ridge.roughness, f"{seed} {ridge.name}")
    ]
    top = max(0, math.floor(min(y for _, y in skyline) - ridge.trees * height * 1.5))
    bottom = round(height * WATERLINE)
    area = (width, bottom - top)
    mask = Image.new("L", (width * OVERDRAW, area[1] * OVERDRAW))
    draw = ImageDraw.Draw(mask)
    outline = [(x * OVERDRAW, (y - top) * OVERDRAW) for x, y in skyline]
    draw.polygon([(0, mask.height), *outline, (mask.width, mask.height)], 255)
    if ridge.trees:
        rng = Random(f"{seed} {ridge.name} trees")
        for x, y in _walk(outline, ridge.trees * height * OVERDRAW * 0.22, rng):
            tall = ridge.trees * height * OVERDRAW * rng.uniform(0.45, 1.15)
            draw.polygon(_spruce((x, y + tall * 0.15), tall, rng, tiers=4), 255)
    rock = _rock(area, ridge, seed)
    image.paste(rock, (0, top), mask.reduce(OVERDRAW))


def _rock(area: Size, ridge: _Ridge, seed: int) -> Image.Image:
    """Creased ground, lit from the right, that fades into the valley's mist."""
    width, height = area
    scale = width / 11
    step = max(1, round(width / 640))
    wider = (width + step, height + step // 2)
    crease = _fractal(
        wider, (scale, scale * 1.3), f"{seed} {ridge.name} rock", gain=0.5, crease=True, slant=0.55
    )
    crease, ahead = _neighbours(crease, area, step, -(step // 2))
    fine = _fractal(area, (width / 420, width / 420), f"{seed} {ridge.name} fine", gain=0.7)
    light = _math(
        lambda a: _smooth(
            a, 0.42 + (a["x"] - a["y"]) * 4.6 * ridge.relief + a["f"] * (0.13 + ridge.trees * 14)
        ),
        x=crease,
        y=ahead,
        f=fine,
    )
    patches = _fractal(area, (width / 30, width / 60), f"{seed} {ridge.name} patches", gain=0.6)
    snow = None
    if ridge.snow:
        line = _column(area, [(0.0, 1.4), (0.30, 0.55), (0.55, -0.05), (0.8, -0.9), (1.0, -1.6)])
        snow = _math(
            lambda a: _smooth(a, (a["h"] + a["x"] * 0.7 + a["p"] * 0.35 + (a["l"] - 0.5) * 0.3) * 3.4),
            h=line, x=crease, p=patches, l=light,
        )  # fmt: skip
    mist_noise = _fractal(
        (max(8, width // 4), max(8, height // 4)), (width / 24, height / 20), f"{seed} {ridge.name} mist"
    )
    mist = _math(
        lambda a: _clamp(a, a["h"] + a["n"] * 0.05),
        h=_column(area, [(0.0, ridge.haze[0]), (0.45, sum(ridge.haze) / 2 - 0.06), (1.0, ridge.haze[1])]),
        n=mist_noise.resize(area, BICUBIC),
    )
    sunward = _row(area, lambda x: math.exp(-(((x - SUN[0]) / 0.34) ** 2)))
    bands = []
    for channel, (shade, bright) in enumerate(zip(ridge.shade, ridge.light, strict=True)):
        ground = _math(
            lambda a: _mix(a["dark"], a["bright"], a["light"]) * (1 + a["p"] * 0.09),
            dark=shade, bright=bright, light=light, p=patches,
        )  # fmt: skip
        if snow is not None:
            ground = _math(
                lambda a: _mix(a["ground"], _mix(a["cold"], a["warm"], a["light"]), a["snow"]),
                ground=ground, cold=SNOW_SHADE[channel], warm=SNOW_LIGHT[channel], light=light, snow=snow,
            )  # fmt: skip
        hazy = _math(
            lambda a: _mix(a["ground"], _mix(a["cool"], a["warm"], a["x"]), a["mist"]),
            ground=ground, cool=SHADOW_MIST[channel], warm=MIST[channel], x=sunward, mist=mist,
        )  # fmt: skip
        bands.append(hazy.convert("L"))
    return Image.merge("RGB", bands)


def _paint_far_shore(image: Image.Image, seed: int) -> None:
    """Rows of spruces along the water, the nearer the darker, with morning mist between them."""
    width, height = image.size
    box = (0, round(height * 0.50), width, round(height * WATERLINE))
    rows = (
        (0.588, 0.024, (86, 100, 100)),
        (0.595, 0.030, (60, 78, 78)),
        (0.601, 0.034, (38, 56, 54)),
        (0.605, 0.022, (26, 42, 36)),
    )
    for number, (base, tall, colour) in enumerate(rows):
        rng = Random(f"{seed} shore {number}")
        phase = rng.uniform(0, 6)
        with _Overdraw(image, box) as draw:
            x = -0.01
            while x < 1.01:  # noqa: PLR2004 - a little past the right edge
                swell = 0.58 + 0.42 * math.sin(x * 9 + phase) * math.sin(x * 23 + phase * 2)
                clearing = 1.35 - 0.7 * math.exp(-(((x - 0.62) / 0.2) ** 2))  # lets the sun through
                size = height * tall * swell * clearing * rng.uniform(0.6, 1.2)
                tone = _tone(colour, rng.uniform(0.84, 1.16))
                root = (x * width, (base + rng.uniform(0.002, 0.005)) * height)
                draw.polygon(_spruce(root, size, rng, tiers=7), tone)
                x += tall * rng.uniform(0.03, 0.15)
        veil = _fractal(
            (width // 4, (box[3] - box[1]) // 4), (width / 20, height / 60), f"{seed} veil {number}"
        )
        mask = _math(
            lambda a: (_clamp(a, a["h"] * (0.75 + a["n"] * 0.35))) * 255,
            h=_column(
                (width, box[3] - box[1]),
                [(0.55, 0.0), (0.88, 0.26 - number * 0.07), (1.0, 0.34 - number * 0.11)],
            ),
            n=veil.resize((width, box[3] - box[1]), BICUBIC),
        ).convert("L")
        image.paste((238, 214, 200), box, mask)


def _paint_lake(image: Image.Image, seed: int) -> None:
    """The scene upside down in the water, torn by ripples, with the sun's path on it."""
    width, height = image.size
    top = round(height * WATERLINE)
    area = (width, round(height * 0.92) - top)
    calm = _reflection(image, area, 1.26)
    swell = _reflection(image, area, 1.52)
    waves = _receding(area, (width / 26, area[1] / 26), 0.10, f"{seed} waves", octaves=5)
    wind = _fractal((width // 4, area[1] // 4), (width / 10, area[1] / 26), f"{seed} wind").resize(
        area, BICUBIC
    )
    height_of = _math(lambda a: a["w"] * (0.75 + a["g"] * 0.5), w=waves, g=wind)
    mix = _math(lambda a: _smooth(a, 0.5 + a["w"] * 0.55) * 255, w=height_of).convert("L")
    water = Image.composite(swell, calm, mix)
    across = _row(
        area,
        lambda x: math.exp(-(((x - SUN[0]) / 0.06) ** 2)) + 0.22 * math.exp(-(((x - SUN[0]) / 0.25) ** 2)),
    )
    glint = _math(
        lambda a: a["x"] * _smooth(a, (a["w"] + 0.05) * 0.9) * 190 * a["y"],
        x=across, w=height_of, y=_column(area, [(0.0, 0.9), (0.3, 1.0), (1.0, 0.55)]),
    )  # fmt: skip
    streak = _math(lambda a: _smooth(a, a["g"] * 0.7 - 0.25), g=wind)
    bands = []
    for band, tint, deep, sparkle in zip(
        water.split(), (0.92, 0.92, 0.95), (28, 50, 74), (1.0, 0.80, 0.55), strict=True
    ):
        bands.append(
            _math(
                lambda a: _mix(a["b"] * a["tint"], a["deep"], a["n"]) * (1 + a["w"] * 0.10 * (0.4 + a["n"]))
                + a["streak"] * 12
                + a["glint"] * a["sparkle"],
                tint=tint, deep=deep, sparkle=sparkle,
                b=band.convert("F"), w=height_of, glint=glint, streak=streak,
                n=_column(area, [(0.0, 0.04), (0.5, 0.20), (1.0, 0.42)]),
            ).convert("L")
        )  # fmt: skip
    image.paste(Image.merge("RGB", bands), (0, top))


def _reflection(image: Image.Image, area: Size, squeeze: float) -> Image.Image:
    """What stands above the water, mirrored, squeezed and smeared downwards as water does."""
    top = round(image.height * WATERLINE)
    above = image.crop((0, top - min(top, round(area[1] * squeeze)), image.width, top))
    mirrored = above.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return mirrored.resize((area[0] // 2, area[1] // 5), Image.Resampling.BOX).resize(area, BICUBIC)


SHORE: Sequence[Point] = (
    (0, 0.735),
    (0.12, 0.752),
    (0.26, 0.795),
    (0.44, 0.838),
    (0.62, 0.868),
    (0.78, 0.873),
    (0.9, 0.85),
    (1, 0.83),
)


def _paint_meadow(image: Image.Image, seed: int) -> None:
    """Grass from the shore to our feet, blade by blade, with flowers in it."""
    width, height = image.size
    shore = _displace(SHORE, 0.03, f"{seed} bank")
    top = round(height * 0.70)
    box = (0, top, width, height)
    _paint_ground(image, shore, top, seed)
    rng = Random(f"{seed} grass")
    rows = 150
    with _Overdraw(image, box) as draw:
        for row in range(rows):
            depth = (row / rows) ** 1.35
            tall = 0.008 + 0.046 * depth
            for x, y in _meadow_row(shore, depth, 0.0008 + 0.0016 * depth, rng):
                clump = math.sin(x * 31 + row * 0.13) * math.sin(x * 13 - row * 0.07)
                dry = math.sin(x * 8 + y * 34) * math.sin(x * 19 - y * 23 + 2)
                size = tall * rng.uniform(0.45, 1.1) * (1 + 0.3 * clump)
                light = (1.12 - 0.42 * depth) * (1 + 0.16 * clump + 0.10 * dry)
                _blade(draw, (x * width, y * height), size * height, (light, 0.45 + 0.4 * dry), rng)
            if row % 2:
                for x, y in _meadow_row(shore, depth, 0.018 + 0.03 * depth, rng):
                    if math.sin(x * 17 + y * 9) + math.sin(x * 7 - y * 21 + 1) > rng.uniform(-0.2, 1.9):
                        _flower(
                            draw,
                            (x * width, (y - tall * 0.8) * height),
                            height * (0.0013 + 0.0075 * depth),
                            rng,
                        )


def _paint_ground(image: Image.Image, shore: Sequence[Point], top: int, seed: int) -> None:
    width, height = image.size
    area = (width, height - top)
    mask = Image.new("L", (width * OVERDRAW, area[1] * OVERDRAW))
    outline = [(x * mask.width, (y * height - top) * OVERDRAW) for x, y in shore]
    ImageDraw.Draw(mask).polygon([(0, mask.height), *outline, (mask.width, mask.height)], 255)
    patches = _fractal(area, (width / 9, height / 30), f"{seed} ground", gain=0.65)
    bands = []
    for near, far in zip((34, 42, 20), (92, 92, 42), strict=True):
        base = _column(area, [(0.0, far), (0.5, (near + far) / 2), (1.0, near)])
        bands.append(_math(lambda a: a["b"] * (1 + a["p"] * 0.22), b=base, p=patches).convert("L"))
    image.paste(Image.merge("RGB", bands), (0, top), mask.reduce(OVERDRAW))


def _meadow_row(shore: Sequence[Point], depth: float, spacing: float, rng: Random) -> list[Point]:
    """Scattered places along one row of the meadow; depth 0 is the shore, depth 1 is below the frame."""
    places = []
    x = -0.01
    while x < 1.01:  # noqa: PLR2004 - a little past the right edge
        index = min(len(shore) - 1, max(0, round(x * (len(shore) - 1))))
        y = shore[index][1]
        places.append((x, y + (1.06 - y) * depth + rng.uniform(-0.004, 0.004)))
        x += spacing * rng.uniform(0.5, 1.5)
    return places


def _blade(draw: "_Canvas", root: Point, tall: float, look: tuple[float, float], rng: Random) -> None:
    """One bent blade of grass, dark at the root and light at the tip; `look` is how lit and how dry it is."""
    x, y = root
    wide = tall * rng.uniform(0.012, 0.032)
    lean = tall * rng.gauss(0.12, 0.26)
    light = look[0] * rng.uniform(0.5, 1.25)
    dry = min(1.0, max(0.0, rng.gauss(look[1], 0.25)))
    tip = (88 + 122 * dry, 122 + 58 * dry, 44 + 46 * dry)
    left, right = (
        (x + lean * 0.32 - wide * 0.8, y - tall * 0.55),
        (x + lean * 0.32 + wide * 0.8, y - tall * 0.55),
    )
    draw.polygon([(x - wide, y), left, right, (x + wide, y)], _tone((40, 58, 24), light))
    draw.polygon([left, (x + lean, y - tall), right], _tone(tip, light))


def _flower(draw: "_Canvas", centre: Point, radius: float, rng: Random) -> None:
    """Five petals and an eye, seen somewhat from the side."""
    x, y = centre
    petal = rng.choice(((250, 246, 236), (250, 246, 236), (244, 196, 52), (198, 92, 148), (122, 104, 196)))
    light = rng.uniform(0.74, 1.0)
    turn = rng.uniform(0, math.tau)
    flat = rng.uniform(0.5, 0.85)
    wide = radius * rng.uniform(0.42, 0.55)
    stem = radius * 3.5
    draw.polygon(
        [(x - radius * 0.1, y), (x + radius * 0.1, y), (x + radius * 0.3, y + stem), (x, y + stem)],
        (52, 76, 30),
    )
    for number in range(5):
        angle = turn + number * math.tau / 5
        px, py = x + math.cos(angle) * radius * 0.62, y + math.sin(angle) * radius * 0.62 * flat
        shade = light * (0.86 + 0.14 * math.cos(angle))
        draw.ellipse((px - wide, py - wide * flat, px + wide, py + wide * flat), _tone(petal, shade))
    eye = radius * 0.26
    draw.ellipse((x - eye, y - eye * flat, x + eye, y + eye * flat), _tone((214, 150, 34), light))


def _paint_pines(image: Image.Image, seed: int) -> None:
    """Tall pines at the left edge: the near frame of the view, and what tells left from right."""
    width, height = image.size
    trees = ((0.155, 0.80, 0.36), (0.022, 0.83, 0.55), (0.088, 0.875, 0.74))
    for number, (x, base, tall) in enumerate(trees):
        reach = tall * 0.30
        box = (
            max(0, round((x - reach) * width)),
            max(0, round((base - tall - 0.01) * height)),
            round((x + reach) * width),
            round((base + 0.03) * height),
        )
        with _Overdraw(image, box) as draw:
            rng = Random(f"{seed} pine {number}")
            _pine(draw, (x * width, base * height), tall * height, rng)
            for step in range(160):  # grass hides where the trunk ends
                foot = (width * (x + tall * rng.gauss(0, 0.03)), height * (base + 0.006 * step / 160))
                _blade(draw, foot, height * tall * rng.uniform(0.018, 0.04), (0.95, 0.4), rng)


def _pine(draw: "_Canvas", root: Point, tall: float, rng: Random) -> None:
    """A conifer of drooping boughs, each a spray of needles; the side to the sun is lighter."""
    x, y = root
    trunk = tall * 0.014
    draw.polygon(
        [
            (x - trunk, y),
            (x - trunk * 0.05, y - tall * 1.004),
            (x + trunk * 0.05, y - tall * 1.004),
            (x + trunk, y),
        ],
        (48, 38, 34),
    )
    boughs = 210
    order = [(level, side) for level in range(boughs) for side in (-1, 1)]
    for level, side in order:
        share = level / boughs  # 0 at the lowest bough, 1 at the tip
        base_y = y - tall * (0.07 + 0.925 * share) + rng.uniform(-1, 1) * tall * 0.004
        length = tall * (0.006 + 0.165 * (1 - share) ** 0.8) * rng.uniform(0.5, 1.08)
        droop = rng.uniform(0.10, 0.42) * (1.1 - share * 0.9)
        face = rng.uniform(0.12, 1.0)  # how much of it points sideways and not at us
        _bough(draw, (x, base_y), (side * length * face, length * droop), tall, rng)


def _bough(draw: "_Canvas", root: Point, reach: Point, tall: float, rng: Random) -> None:
    x, y = root
    sunny = 1.0 if reach[0] > 0 else 0.72
    sprays = 16
    for number in range(sprays + 1):
        along = number / sprays
        sx = x + reach[0] * along
        sy = y + reach[1] * along**1.5 - abs(reach[0]) * 0.10 * along * (1 - along) * 4
        needle = (0.004 * tall + 0.12 * math.hypot(*reach)) * (1.25 - along * 0.75) * rng.uniform(0.6, 1.3)
        light = sunny * rng.uniform(0.6, 1.15) * (0.7 + 0.45 * along)
        colour = _tone((38, 54, 36) if rng.random() < 0.8 else (74, 80, 44), light)  # noqa: PLR2004 - most are dark
        for _ in range(3):
            angle = rng.uniform(0.15, 1.25) if reach[0] > 0 else math.pi - rng.uniform(0.15, 1.25)
            tip = (sx + math.cos(angle) * needle, sy + math.sin(angle) * needle)
            wide = needle * 0.16
            draw.polygon([(sx - wide, sy - wide), tip, (sx + wide, sy + wide * 0.4)], colour)


def _spruce(root: Point, tall: float, rng: Random, *, tiers: int) -> list[Point]:
    """The outline of a far conifer: a jagged, slightly uneven triangle."""
    x, y = root
    wide = tall * rng.uniform(0.15, 0.23)
    left, right = [], []
    for tier in range(tiers):
        share = tier / tiers
        out = wide * (1 - share) * rng.uniform(0.75, 1.15)
        left += [(x - out, y - tall * share), (x - out * 0.5, y - tall * (share + 0.55 / tiers))]
        out = wide * (1 - share) * rng.uniform(0.75, 1.15)
        right += [(x + out, y - tall * share), (x + out * 0.5, y - tall * (share + 0.55 / tiers))]
    return [*left, (x, y - tall), *reversed(right)]


def _expose(image: Image.Image, sample: Sample) -> Image.Image:
    """Darken the corners a little, then add film grain, mostly to the brightness."""
    width, height = image.size
    distance = _distance(image.size, (width * 0.52, height * 0.45), math.hypot(width, height) / 2)
    vignette = _math(lambda a: 255 * (1 - 0.20 * a["r"] ** 3), r=distance).convert("L")
    image = ImageChops.multiply(image, Image.merge("RGB", (vignette,) * 3))
    shared = _grain(image.size, sample.grain, f"{sample.seed} grain")
    bands = []
    for number, band in enumerate(image.split()):
        own = _grain(image.size, sample.grain * 0.45, f"{sample.seed} grain {number}")
        bands.append(ImageChops.add(ImageChops.add(band, shared, 1, -128), own, 1, -128))
    return Image.merge("RGB", bands)


# Noise and lines


def _grain(size: Size, strength: float, key: str) -> Image.Image:
    """Gaussian noise around 128, blurred by less than a pixel so that it has the softness of a lens."""
    bell = NormalDist(128, strength * 1.45)  # the blur takes a third of it
    table = [round(min(255, max(0, bell.inv_cdf((value + 0.5) / 256)))) for value in range(256)]
    return _bytes(size, Random(key)).point(table).filter(ImageFilter.GaussianBlur(0.5))


def _bytes(size: Size, rng: Random) -> Image.Image:
    return Image.frombytes("L", size, rng.randbytes(size[0] * size[1]))


def _flat_noise(size: Size, rng: Random) -> Image.Image:
    """Between 0 and 1: what rounding needs to leave no bands."""
    return _math(lambda a: a["x"] / 255, x=_bytes(size, rng).convert("F"))


def _fractal(  # noqa: PLR0913 - all but three have a default
    size: Size,
    cell: tuple[float, float],
    key: str,
    *,
    gain: float = 0.5,
    crease: bool = False,
    slant: float = 0.0,
) -> Image.Image:
    """Make noise of many octaves, from `cell` down to about two pixels, with mean 0 and deviation near 1/2.

    Coarse octaves are made at half the size, and that again: most of the work is in the last two.
    """
    octaves = max(1, math.floor(math.log2(max(4.0, min(cell)) / 2)) + 1)
    total = math.sqrt(sum(gain ** (2 * octave) for octave in range(octaves)))

    def level(area: Size, octave: int, pixel: float) -> Image.Image:
        fine = 0.5**octave / pixel
        noise = _octave(area, (cell[0] * fine, cell[1] * fine), Random(f"{key} {octave}"), slant)
        weight = gain**octave / total
        if crease:
            noise = _math(lambda a: (0.45 - abs(a["x"])) * 1.7 * weight, x=noise)
        else:
            noise = _math(lambda a: a["x"] * weight, x=noise)
        if octave == 0:
            return noise
        coarse = level(((area[0] + 1) // 2, (area[1] + 1) // 2), octave - 1, pixel * 2)
        return _math(lambda a: a["x"] + a["y"], x=noise, y=coarse.resize(area, BICUBIC))

    return level(size, octaves - 1, 1.0)


def _octave(size: Size, cell: tuple[float, float], rng: Random, slant: float) -> Image.Image:
    """Random values between -1 and 1, one per cell, smoothly joined; turned, so that no grid is seen."""
    turn = rng.uniform(-0.5, 0.5) if 0.5 < cell[0] / cell[1] < 2 else rng.uniform(-0.06, 0.06)  # noqa: PLR2004 - round
    cos, sin = math.cos(turn), math.sin(turn)
    a, b = cos / cell[0], (sin - slant * rng.choice((-1, 1))) / cell[0]
    d, e = -sin / cell[1], cos / cell[1]
    corners = [(a * x + b * y, d * x + e * y) for x in (0, size[0]) for y in (0, size[1])]
    left, top = min(u for u, _ in corners) - 2, min(v for _, v in corners) - 2
    cells = (
        math.ceil(max(u for u, _ in corners) - left) + 3,
        math.ceil(max(v for _, v in corners) - top) + 3,
    )
    data = (a, b, -left, d, e, -top)
    return _stretch(_bytes(cells, rng), size, Image.Transform.AFFINE, data)


def _receding(  # noqa: PLR0913 - a plane has this many properties
    size: Size, near: tuple[float, float], eye: float, key: str, *, octaves: int, near_is_top: bool = False
) -> Image.Image:
    """Make noise on a level plane seen in perspective: `near` is the size of a cell at the near edge."""
    width, height = size
    low, high = eye * height, (1 + eye) * height
    across, deep = high / near[0], high * high / near[1]  # u = across * (x - width/2) / y, v = deep / y
    sheets = []
    for octave in range(octaves):
        fine = 2.0**octave
        cells = (
            math.ceil(across * fine * width / low) + 6,
            math.ceil(deep * fine * (1 / low - 1 / high)) + 6,
        )
        u0, v0 = cells[0] / 2, 3 - deep * fine / high
        # Pillow wants (a x + b y + c) / (g x + h y + 1); y counts from the far edge, plus `low`.
        h, far = (-1.0, low + height) if near_is_top else (1.0, low)
        data = (
            across * fine / far, u0 * h / far, (u0 * far - across * fine * width / 2) / far,
            0.0, v0 * h / far, (v0 * far + deep * fine) / far,
            0.0, h / far,
        )  # fmt: skip
        sheet = _stretch(_bytes(cells, Random(f"{key} {octave}")), size, Image.Transform.PERSPECTIVE, data)
        smallest = 1.5 / (near[1] / height / fine)  # below this, cells are less than pixels: fade them
        fade = [
            (share, min(1.0, ((share + eye) / (1 + eye)) ** 2 * height / smallest)) for share in _steps(24)
        ]
        if near_is_top:
            fade = [(1 - share, value) for share, value in reversed(fade)]
        sheets.append(
            _math(lambda a: a["x"] * a["f"] * a["w"], w=0.55**octave, x=sheet, f=_column(size, fade))
        )
    result = sheets[0]
    for sheet in sheets[1:]:
        result = _math(lambda a: a["x"] + a["y"], x=result, y=sheet)
    return result


def _neighbours(field: Image.Image, size: Size, right: int, down: int) -> tuple[Image.Image, Image.Image]:
    """What is at each place of a field, and what is that much further; the field must be that much larger."""
    x, y = max(0, -right), max(0, -down)
    here = field.crop((x, y, x + size[0], y + size[1]))
    x, y = x + right, y + down
    return here, field.crop((x, y, x + size[0], y + size[1]))


def _stretch(cells: Image.Image, size: Size, method: Image.Transform, data: Sequence[float]) -> Image.Image:
    sheet = cells.convert("F").transform(size, method, data, BICUBIC)
    return _math(lambda a: a["x"] / 127.5 - 1, x=sheet)


def _displace(guide: Sequence[Point], roughness: float, key: str, depth: int = 11) -> list[Point]:
    """A jagged line through the guide's points, by midpoint displacement, at `2**depth + 1` even places."""
    rng = Random(key)
    count = 2**depth
    heights = [0.0] * (count + 1)
    step, swing = count, roughness * 0.06
    while step > 1:
        half = step // 2
        for middle in range(half, count, step):
            heights[middle] = (heights[middle - half] + heights[middle + half]) / 2 + rng.uniform(
                -swing, swing
            )
        step, swing = half, swing * (0.62 if step > count // 16 else 0.56)
    return [(i / count, heights[i] * 2 + _between(guide, i / count)) for i in range(count + 1)]


def _between(stops: Sequence[Point], at: float) -> float:
    """The value at a place between stops, which are (place, value)."""
    last = stops[0]
    for stop in stops:
        if at <= stop[0]:
            share = (at - last[0]) / (stop[0] - last[0]) if stop[0] > last[0] else 1.0
            return last[1] + (stop[1] - last[1]) * share
        last = stop
    return last[1]


def _walk(line: Sequence[Point], stride: float, rng: Random) -> list[Point]:
    """Places along a line, about a stride apart in x."""
    places = []
    x = line[0][0]
    step = (line[-1][0] - x) / (len(line) - 1)
    while x < line[-1][0]:
        places.append((x, line[round((x - line[0][0]) / step)][1]))
        x += stride * rng.uniform(0.4, 1.6)
    return places


# Images of one number per pixel


def _math(expression: Callable[[Names], Pixels], **values: Image.Image | float) -> Image.Image:
    return cast("Image.Image", ImageMath.lambda_eval(expression, **values))


def _clamp(a: Names, x: Pixels) -> Pixels:
    return a["min"](a["max"](x, 0.0), 1.0)


def _mix(x: Pixels, y: Pixels, share: Pixels) -> Pixels:
    return x + (y - x) * share


def _smooth(a: Names, x: Pixels) -> Pixels:
    """From 0 to 1 without corners."""
    x = _clamp(a, x)
    return x * x * (3 - x * 2)


def _shoulder(a: Names, x: Pixels) -> Pixels:
    """Bend bright values below 255 instead of cutting them there, as film does."""
    over = a["max"](x - 222.0, 0.0)
    return a["min"](x, 222.0) + over * 33 / (over + 33)


def _steps(count: int) -> list[float]:
    return [step / count for step in range(count + 1)]


def _column(size: Size, stops: Sequence[Point]) -> Image.Image:
    """Values that change from top to bottom only."""
    values = array("f", (_between(stops, y / max(1, size[1] - 1)) for y in range(size[1])))
    return Image.frombytes("F", (1, size[1]), values.tobytes()).resize(size, Image.Resampling.NEAREST)


def _row(size: Size, value: Callable[[float], float]) -> Image.Image:
    """Values that change from left to right only."""
    values = array("f", (value(x / max(1, size[0] - 1)) for x in range(size[0])))
    return Image.frombytes("F", (size[0], 1), values.tobytes()).resize(size, Image.Resampling.NEAREST)


def _distance(size: Size, centre: Point, unit: float) -> Image.Image:
    x = _row(size, lambda share: ((share * size[0] - centre[0]) / unit) ** 2)
    y = _column(size, [(share, ((share * size[1] - centre[1]) / unit) ** 2) for share in _steps(256)])
    return _math(lambda a: (a["x"] + a["y"]) ** 0.5, x=x, y=y)


def _tone(colour: Colour, light: float) -> tuple[int, int, int]:
    red, green, blue = (min(255, round(part * light)) for part in colour)
    return red, green, blue


class _Canvas:
    """A canvas in the image's coordinates on an enlarged part of it."""

    def __init__(self, image: Image.Image, origin: tuple[int, int]) -> None:
        self._draw = ImageDraw.Draw(image)
        self._left, self._top = origin

    def polygon(self, points: Sequence[Point], colour: tuple[int, int, int]) -> None:
        self._draw.polygon(
            [((x - self._left) * OVERDRAW, (y - self._top) * OVERDRAW) for x, y in points], colour
        )

    def ellipse(self, box: tuple[float, float, float, float], colour: tuple[int, int, int]) -> None:
        left, top, right, bottom = box
        self._draw.ellipse(
            (
                (left - self._left) * OVERDRAW,
                (top - self._top) * OVERDRAW,
                (right - self._left) * OVERDRAW,
                (bottom - self._top) * OVERDRAW,
            ),
            colour,
        )


class _Overdraw:
    """A context that enlarges a part of the image, gives a canvas on it, and puts it back reduced."""

    def __init__(self, image: Image.Image, box: tuple[int, int, int, int]) -> None:
        self._image, self._box = image, box
        size = ((box[2] - box[0]) * OVERDRAW, (box[3] - box[1]) * OVERDRAW)
        self._part = image.crop(box).resize(size, Image.Resampling.NEAREST)

    def __enter__(self) -> _Canvas:
        return _Canvas(self._part, self._box[:2])

    def __exit__(self, *failure: object) -> None:
        self._image.paste(self._part.reduce(OVERDRAW), self._box)


def main() -> None:
    """Render one image and say how large it is."""
    parser = argparse.ArgumentParser(description="Render the sample images.")
    parser.add_argument("--benchmark", action="store_true", help="render the image of 20 megapixels instead")
    path = benchmark_image() if parser.parse_args().benchmark else landscape_image()
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
