"""One cluster for all tests that leave it as it was, and clients that read no certificates."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from support.live_server import ROOT, LiveServer
from support.places import why_not


@pytest.fixture(scope="module", autouse=True)
def _no_certificates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give httpx an empty directory of authorities: parsing its own costs each client some 30 ms of CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SSL_CERT_FILE", raising=False)  # it would come first
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("no-certificates")))
        yield


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Skip a test where something that it needs is missing; in CI nothing may be."""
    for mark in request.node.iter_markers("needs"):
        if reason := why_not(*mark.args):
            (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def server() -> Iterator[LiveServer]:
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server:
        yield server


@pytest.fixture(scope="session")
def landscape() -> Path:
    return ROOT / "images" / "landscape.jpg"


@pytest.fixture(scope="session")
def quarter(landscape: Path) -> bytes:
    """The same image with a quarter of its pixels, where an image need not be large."""
    with Image.open(landscape) as image, BytesIO() as file:
        image.reduce(2).save(file, "JPEG", quality=90)
        return file.getvalue()
