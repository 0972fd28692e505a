"""What each effort costs and gains: time and size of PNG, WebP and AVIF, next to Pillow's own settings.

All alternate in one run, on one core, by the processor time of this process; each ratio is taken within a
round, over what Pillow does when it is asked for nothing, and the median over the rounds is the result.
Run it with `python -m benchmarks.cost.encoders` on a machine that does nothing else (about 6 minutes).
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from statistics import median
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from images.render import HERE as IMAGES
from server.imaging.codecs import Effort, Format
from server.imaging.geometry import Turn
from server.imaging.limits import Limits
from server.imaging.pipeline import process
from server.imaging.recipe import Recipe

_LIMITS = Limits(max_pixels=10**9, max_frames=1, max_total_pixels=10**9)
_PALETTE = 64
_WORDS = "A flip is top to bottom, a flop is left to right"


@dataclass(frozen=True, slots=True)
class Case:
    """One image in one format: Pillow's settings, and what ours is asked for."""

    title: str
    image: Image.Image
    form: Format
    quality: int | None = None
    pillow: dict[str, Any] = field(default_factory=dict)


def cases() -> Iterator[Case]:
    """Yield a photo, the same with transparency, in gray and with a palette, and a screenshot."""
    with Image.open(IMAGES / "landscape.jpg") as landscape:
        photo = landscape.convert("RGB").resize((1632, 1020))
    transparent = photo.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(photo.size))
    screen = _screen((1920, 1080))
    yield Case("PNG, photo, RGB", photo, Format.PNG)
    yield Case("PNG, photo, RGBA", transparent, Format.PNG)
    yield Case("PNG, photo, gray", photo.convert("L"), Format.PNG)
    yield Case("PNG, photo, palette", photo.quantize(_PALETTE), Format.PNG)
    yield Case("PNG, screen", screen, Format.PNG)
    for title, image in (("photo", photo), ("screen", screen)):
        yield Case(f"WebP, lossy, {title}", image, Format.WEBP, 90, {"quality": 90})
        yield Case(f"WebP, lossless, {title}", image, Format.WEBP, None, {"lossless": True, "exact": True})
        yield Case(f"AVIF, {title}", image, Format.AVIF, 80, {"quality": 80})


def _screen(size: tuple[int, int]) -> Image.Image:
    """Draw text and boxes on white, with smooth edges."""
    screen = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(screen)
    font = ImageFont.load_default(15)
    for number in range(size[1] // 20):
        for column in range(3):
            draw.text((30 + 640 * column, 20 * number), f"{number:3} {_WORDS}", (40, 40, 60 + number), font)
    for number in range(8):
        corner = 100 + 220 * number, 60 + 110 * number
        far = corner[0] + 180, corner[1] + 90
        draw.rounded_rectangle((*corner, *far), 12, (250 - 20 * number, 200, 120 + 15 * number), "gray")
    return screen


def contenders(case: Case) -> dict[str, Callable[[], bytes]]:
    """Return functions that encode the image; ours decodes an uncompressed file first, which is quick."""

    def by_pillow() -> bytes:
        file = BytesIO()
        case.image.save(file, case.form.value, **case.pillow)
        return file.getvalue()

    # The input must make our code choose the intended encoder.
    stored = BytesIO()
    if case.form is Format.WEBP and case.quality is None:
        case.image.save(stored, "WEBP", lossless=True, exact=True, method=0, quality=0)
    else:
        case.image.save(stored, "PNG", compress_level=0)

    def ours(effort: Effort) -> bytes:
        recipe = Recipe(Turn.ORIENT, format=case.form, quality=case.quality, effort=effort)
        file = BytesIO()
        process(stored.getvalue(), file, recipe, _LIMITS)
        return file.getvalue()

    return {
        "Pillow": by_pillow,
        **{effort.value: lambda effort=effort: ours(effort) for effort in Effort},  # type: ignore[misc]
    }


def main() -> None:
    """Measure all and print one table in Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    print("| | effort | ms | over Pillow's time | size, kB | over Pillow's size |\n|---|---|---|---|---|---|")
    for case in cases():
        times: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        for _ in range(given.rounds):
            for name, make in contenders(case).items():
                began = time.process_time()
                sizes[name] = len(make())
                times.setdefault(name, []).append(time.process_time() - began)
        for name, spent in times.items():
            ratios = [mine / pillow for mine, pillow in zip(spent, times["Pillow"], strict=True)]
            print(
                f"| {case.title} | {name} | {median(spent) * 1e3:.0f} "
                f"| {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
                f"| {sizes[name] / 1e3:.0f} | {100 * (sizes[name] / sizes['Pillow'] - 1):+.1f} % |"
            )


if __name__ == "__main__":
    main()
