"""What a benchmark measures: images, how many users, how long, and how often."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from PIL import Image

from images.render import (
    BENCHMARK,
    HERE,
    LANDSCAPE,
    SMALL_QUALITY,
    benchmark_image,
    small_image,
    write_atomically,
)

#: Ten users send one request each at the same moment, as in the article.
BURST = "burst"
BURST_USERS = 10

#: The article's users, and how many a core needs so that it is always busy.
USUAL = "10"
_USERS_PER_CORE = 2


@dataclass(frozen=True, slots=True)
class Scenario:
    """A number of users at once, who each send their next request when they have their answer.

    Attributes:
        name: how many users, or BURST.
        seconds: how long; a burst ends when all have their answers.
        repetitions: how often, topologies alternating.
    """

    name: str
    seconds: float
    repetitions: int

    @property
    def users(self) -> int:
        """How many there are."""
        return BURST_USERS if self.name == BURST else int(self.name)


@dataclass(frozen=True, slots=True)
class SampleImage:
    """An image to send.

    Attributes:
        name: for files.
        title: for people.
        make: returns the file, and makes it if it is missing.
        quality: the one whose tables it has.
        is_progressive: how it is coded.
    """

    name: str
    title: str
    make: Callable[[], Path]
    quality: int
    is_progressive: bool = False


@dataclass(frozen=True, slots=True)
class Profile:
    """One benchmark.

    Attributes:
        scenarios: of each image; the first image is the headline.
        scaling: for each number of workers; None for none.
        with_peers: what is measured of the peers, and how often; there are many of them, and some are slow.
        shows_lossless: whether the cluster is measured as shipped too, which does not decode most JPEGs.
    """

    name: str
    scenarios: Mapping[str, tuple[Scenario, ...]]
    scaling: Scenario | None = None
    with_peers: tuple[Scenario, ...] = ()
    shows_lossless: bool = False

    def on(self, cores: int) -> "Profile":
        """Return the same for a machine with a number of cores, of which ten users keep five busy."""
        busy = str(max(int(USUAL), _USERS_PER_CORE * cores))

        def scaled(scenarios: Iterable[Scenario]) -> tuple[Scenario, ...]:
            return tuple(replace(each, name=busy) if each.name == USUAL else each for each in scenarios)

        return replace(
            self,
            scenarios={name: scaled(scenarios) for name, scenarios in self.scenarios.items()},
            scaling=self.scaling and scaled([self.scaling])[0],
            with_peers=scaled(self.with_peers),
        )


def two_megapixels() -> Path:
    """Return the landscape as web pages have it: progressive, so that every service has to decode it."""
    path = HERE / "benchmark-2mp.jpg"
    if not path.exists():
        write_atomically(path, _shrink)
    return path


def _shrink() -> bytes:
    file = BytesIO()
    with Image.open(HERE / "landscape.jpg") as landscape:
        smaller = landscape.resize((1792, 1120), Image.Resampling.LANCZOS)
        smaller.save(file, "JPEG", quality=_WEB_QUALITY, subsampling="4:2:0", progressive=True)
    return file.getvalue()


_WEB_QUALITY = 90

IMAGES = {
    image.name: image
    for image in (
        SampleImage("small", "640 x 427", small_image, SMALL_QUALITY),
        SampleImage("2mp", "2 megapixels, progressive", two_megapixels, _WEB_QUALITY, is_progressive=True),
        SampleImage("6mp", "6 megapixels", lambda: HERE / "landscape.jpg", LANDSCAPE.quality),
        SampleImage("20mp", "20 megapixels, 6.7 MB", benchmark_image, BENCHMARK.quality),
    )
}


def _each(seconds: float, **repetitions: int) -> tuple[Scenario, ...]:
    """Make scenarios: repetitions by the number of users, as in u10=3, or of the burst."""
    return tuple(Scenario(name.removeprefix("u"), seconds, count) for name, count in repetitions.items())


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "quick",
            {
                "2mp": (
                    *_each(3, u10=7),  # the speed of a shared machine changes from second to second
                    *_each(3, u1=1, u100=1),
                    *_each(0, burst=2),
                    *_each(5, u1000=1),
                ),
                "small": (
                    *_each(2, u10=2),
                    *_each(0, burst=1),
                    *_each(3, u1000=1),
                ),
            },
            scaling=Scenario("10", 3, 3),
            with_peers=(*_each(5, u10=2), *_each(0, burst=1)),
        ),
        Profile(
            "article",
            {"20mp": (*_each(0, burst=5), *_each(20, u10=4), *_each(8, u1=2, u100=1))},
            with_peers=(*_each(0, burst=1), *_each(20, u10=2)),
            shows_lossless=True,
        ),
        Profile(
            "full",
            {
                name: (
                    *_each(20, u10=5, u1=3, u100=3),
                    *_each(0, burst=5),
                    *_each(20, u1000=3),
                )
                for name in ("2mp", "small", "6mp", "20mp")
            },
            scaling=Scenario("10", 20, 3),
            with_peers=(*_each(0, burst=3), *_each(20, u10=3)),
            shows_lossless=True,
        ),
    )
}
