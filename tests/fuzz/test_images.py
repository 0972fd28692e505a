"""Mutated and made-up images: each is answered with a whole image or refused, and leaves nothing behind."""

import logging
from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from support.live_server import LiveServer
from support.specimens import processed

from fuzz.campaign import CLIENTS, Campaign
from fuzz.conftest import EXTENT, Extent
from fuzz.images import MAKERS, sound_files
from server.errors import DamagedImage, UnsupportedImage
from server.imaging.codecs import Format, sniff

log = logging.getLogger("fuzz")

#: Low enough that no single header asks for an image that takes seconds, or for so much memory that it looks
#: like a leak.
LIMITS = {
    "FLIP_MAX_PIXELS": "250000",
    "FLIP_MAX_FRAMES": "50",
    "FLIP_MAX_TOTAL_PIXELS": "1000000",
    "FLIP_ENGINE_MAX_TASKS": "0",  # a fresh engine would hide what an old one has kept
    "FLIP_MAX_WAIT_S": "600",  # on a busy machine a longer file would have all others refused
}

#: How much more each process may hold at the end than after a fifth of the images: an engine keeps what its
#: largest image needed, which is most for AVIF.
MAX_GROWTH_BYTES = {"pid": 8 << 20, "engine_pid": 64 << 20}

#: A leak shows in every fifth, and a larger image than any before in few of them.
MAX_STEADY_GROWTH_BYTES = 1 << 20


@pytest.mark.timeout(120 + EXTENT.images // 10)
# Odd metadata is passed on, and read back with a complaint.
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_every_image_gets_an_image_or_a_refusal_and_nothing_stays(extent: Extent, tmp_path: Path) -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "2", **LIMITS}) as server:
        campaign = Campaign(server, extent.seed, tmp_path)
        fifth = -(-extent.images // 5)
        weights = []
        for numbers in (range(extent.images)[at : at + fifth] for at in range(0, extent.images, fifth)):
            campaign.run(numbers)
            weights.append(campaign.weights())
            log.info("%d images: %s, %s", numbers.stop, dict(campaign.statuses), weights[-1])
    campaign.read_log()
    assert not campaign.findings, "\n".join(campaign.findings)
    assert campaign.statuses.total() == extent.images
    assert {200, 415, 422} <= campaign.statuses.keys()
    assert all(weight.keys() == weights[0].keys() for weight in weights)
    for role, pid in weights[0]:
        held = [weight[role, pid].resident_bytes for weight in weights]
        assert held[-1] - held[0] <= MAX_GROWTH_BYTES[role], held
        assert min(after - before for before, after in pairwise(held)) <= MAX_STEADY_GROWTH_BYTES, held
        # Files are kept for what is in flight at once, an upload and a result each.
        assert weights[-1][role, pid].memory_files <= 2 * CLIENTS


def test_the_same_seed_and_number_make_the_same_request(tmp_path: Path) -> None:
    one, again, other = (Campaign(None, seed, tmp_path) for seed in (1, 1, 2))  # type: ignore[arg-type]
    images = [[campaign.request(number).image for number in range(50)] for campaign in (one, again, other)]
    assert images[0] == images[1]
    assert images[0] != images[2]


def test_every_format_is_sent_sound_and_most_are_made_up_too() -> None:
    assert {sniff(file.data) for file in sound_files().values()} == set(Format)
    made = Counter(sniff(make(Random(number))) for make in MAKERS.values() for number in range(20))
    assert made == dict.fromkeys(set(Format) - {Format.AVIF, Format.PPM, Format.QOI}, 20)


@pytest.mark.parametrize("name", sound_files())
def test_a_sound_file_is_taken_and_never_without_its_last_pixels(name: str) -> None:
    file = sound_files()[name]
    assert processed(file.data).data
    for end in (1, file.pixels_end // 2, file.pixels_end - 1):
        with pytest.raises((DamagedImage, UnsupportedImage)):
            processed(file.data[:end])
