"""The peers do the same work as the service, and leave no process behind.

`make peers` installs them, and `.venv/bin/pytest benchmarks/peers` runs this; `make check` does not.
"""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image, JpegImagePlugin

from benchmarks.harness.answers import fidelity_db
from benchmarks.harness.processes import command, tree, wait_until_gone
from benchmarks.harness.server import ROOT, Server, clean_environ
from benchmarks.harness.waiting import DEADLINE_S, until
from benchmarks.peers.catalogue import PEERS, Peer, missing

CORES = 2
QUALITY = 90
LIMIT_BYTES = 32 << 20

HERE = [peer for peer in PEERS if missing(peer) is None]
ALONE = [peer for peer in HERE if not peer.is_cluster]
CLUSTERS = [peer for peer in HERE if peer.is_cluster]


@pytest.fixture(scope="session")
def landscape() -> Path:
    return ROOT / "images" / "landscape.jpg"


@pytest.fixture(scope="session")
def image(landscape: Path) -> bytes:
    return reduced(landscape, (250, 163))


@pytest.fixture(scope="session")
def sample(landscape: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "sample.jpg"
    path.write_bytes(reduced(landscape, (96, 64)))
    return path


def reduced(landscape: Path, size: tuple[int, int]) -> bytes:
    with Image.open(landscape) as decoded, BytesIO() as file:
        decoded.resize(size, reducing_gap=2).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
        return file.getvalue()


class PeerServer(Server):
    """A running peer."""

    def __init__(self, peer: Peer, sample: Path, quality: int | None = QUALITY) -> None:
        environ = peer.environ(cores=CORES, quality=quality, sample=sample)
        processes = 1 + CORES if peer.is_cluster else 1
        super().__init__(peer.command(), environ=environ, title=peer.title, fewest_processes=processes)

    def which_answers(self) -> str:
        """Name the process that answers, on a new connection each time."""
        return httpx.get(f"{self.url}/healthz", timeout=DEADLINE_S).text

    def flip(self, image: bytes = b"", form: bytes = b"") -> httpx.Response:
        files = {"image": ("image.jpg", form, "image/jpeg")} if form else None
        headers = {"Content-Type": "image/jpeg"} if image else {}
        return httpx.post(
            f"{self.url}/flip",
            content=image or None,
            files=files,
            headers=headers,
            timeout=DEADLINE_S,
        )

    def status_of_length(self, body_bytes: int) -> int:
        """Announce a body without sending it, which would cut a refusal off, and return the status."""
        with closing(HTTPConnection(*self.address, timeout=DEADLINE_S)) as connection:
            connection.putrequest("POST", "/flip")
            connection.putheader("Content-Type", "image/jpeg")
            connection.putheader("Content-Length", str(body_bytes))
            connection.endheaders()
            return connection.getresponse().status

    def children(self) -> list[int]:
        return [pid for pid in tree(self.pid) if pid != self.pid]


def coding(image: bytes) -> tuple[dict[int, list[int]], bool]:
    """Quantization tables, and whether scans are progressive."""
    with Image.open(BytesIO(image)) as decoded:
        assert isinstance(decoded, JpegImagePlugin.JpegImageFile)
        return decoded.quantization, "progressive" in decoded.info


def sampling(image: bytes) -> int:
    with Image.open(BytesIO(image)) as decoded:
        return JpegImagePlugin.get_sampling(decoded)


def huffman_tables(image: bytes) -> Sequence[bytes]:
    """The tables of a JPEG by class and number, however many segments they come in."""
    tables, at = [], 2
    while image[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(image[at + 2 : at + 4])
        if image[at + 1] == 0xC4:
            at += 4
            while at < end:
                size = 17 + sum(image[at + 1 : at + 17])
                tables.append(image[at : at + size])
                at += size
        at = end
    return sorted(tables)


@pytest.fixture(scope="module", params=HERE, ids=lambda peer: peer.name)
def matched(request: pytest.FixtureRequest, sample: Path) -> Iterator[tuple[Peer, PeerServer]]:
    with PeerServer(request.param, sample) as server:
        yield request.param, server


def test_a_peer_turns_what_is_sent_or_else_the_sample(
    matched: tuple[Peer, PeerServer], image: bytes, sample: Path
) -> None:
    _, server = matched
    raw, form, nothing = server.flip(image), server.flip(form=image), server.flip()
    assert [answer.headers["Content-Type"] for answer in (raw, form, nothing)] == ["image/jpeg"] * 3
    assert raw.content == form.content
    assert fidelity_db(image, image) < 20  # as much as an answer that is not turned would have
    assert fidelity_db(image, raw.content) > 36
    assert fidelity_db(sample.read_bytes(), nothing.content) > 36


def test_a_peer_writes_jpegs_as_the_source_is_written(matched: tuple[Peer, PeerServer], image: bytes) -> None:
    peer, server = matched
    answer = server.flip(image).content
    assert coding(answer) == coding(image)
    assert huffman_tables(answer) == huffman_tables(image)
    assert (sampling(answer) == sampling(image)) == peer.has_4_2_0


def test_a_peer_refuses_what_is_too_large(matched: tuple[Peer, PeerServer]) -> None:
    _, server = matched
    assert server.status_of_length(LIMIT_BYTES + 1) == 413


@pytest.mark.parametrize("peer", ALONE, ids=lambda peer: peer.name)
def test_a_peer_by_itself_writes_other_jpegs(peer: Peer, image: bytes, sample: Path) -> None:
    with PeerServer(peer, sample, quality=None) as server:
        answer = server.flip(image).content
    assert coding(answer) != coding(image)
    assert fidelity_db(image, answer) > 25


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.name)
def test_a_peer_leaves_no_process_behind(peer: Peer, sample: Path, signal_number: signal.Signals) -> None:
    with PeerServer(peer, sample) as server:
        children = server.children()
        server.send_signal(signal_number)
        server.wait()
        for child in children:
            wait_until_gone(child, DEADLINE_S)


@pytest.mark.parametrize("peer", CLUSTERS, ids=lambda peer: peer.name)
def test_a_cluster_forks_again_what_dies(peer: Peer, image: bytes, sample: Path) -> None:
    with PeerServer(peer, sample) as server:
        # A node:cluster ends when one dies that does not listen yet, and refuses when no other one does.
        listening: set[str] = set()
        assert until(lambda: listening.add(server.which_answers()) or len(listening) == CORES)
        first, *others = server.children()
        os.kill(first, signal.SIGKILL)
        assert until(lambda: first not in server.children() and len(server.children()) == CORES)
        assert set(others) < set(server.children())
        assert until(lambda: all(command(pid) for pid in server.children()))
        assert server.flip(image).is_success


@pytest.mark.parametrize("peer", CLUSTERS, ids=lambda peer: peer.name)
def test_a_cluster_that_cannot_start_ends(peer: Peer, sample: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = (
            clean_environ() | peer.environ(cores=CORES, quality=QUALITY, sample=sample) | {"PORT": str(port)}
        )
        ended = subprocess.run(
            peer.command(),
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE_S,
        )
    assert ended.returncode != 0
    assert re.search("EADDRINUSE|already in use", ended.stderr)
