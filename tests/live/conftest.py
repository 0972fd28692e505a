"""One cluster for all tests that leave it as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.live_server import ROOT, LiveServer


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        yield server


@pytest.fixture(scope="session")
def landscape() -> Path:
    return ROOT / "images" / "landscape.jpg"
