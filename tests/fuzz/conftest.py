"""How much is fuzzed, and where a longer run says so: `make fuzz`."""

import os
from typing import NamedTuple

import pytest


class Extent(NamedTuple):
    """How many images are sent, and the seed that makes them."""

    images: int
    seed: int


EXTENT = Extent(int(os.environ.get("FUZZ_IMAGES", "10000")), int(os.environ.get("FUZZ_SEED", "1")))


@pytest.fixture(scope="session")
def extent() -> Extent:
    return EXTENT
