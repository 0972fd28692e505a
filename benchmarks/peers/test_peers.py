"""Those that we are compared with do the same work as we, and leave nothing behind.

`make peers` installs them, and `.venv/bin/pytest benchmarks/peers` runs this; `make check` does without.
"""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image, JpegImagePlugin
from support.live_server import DEADLINE_S, ROOT, LiveServer, clean_environ

from benchmarks.cost.bare import fidelity_db
from benchmarks.harness.findings import until
from benchmarks.harness.processes import command, tree
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
def picture(landscape: Path) -> bytes:
    return reduced(landscape, (250, 163))


@pytest.fixture(scope="session")
def sample(landscape: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "sample.jpg"
    path.write_bytes(reduced(landscape, (96, 64)))
    return path


def reduced(landscape: Path, size: tuple[int, int]) -> bytes:
    with Image.open(landscape) as image, BytesIO() as file:
        image.resize(size, reducing_gap=2).save(file, "JPEG", quality=QUALITY, subsampling="4:2:0")
        return file.getvalue()


class Running:
    """A peer that answers, with all its processes."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self._process = process
        self._url = url

    def is_up(self) -> bool:
        assert self._process.poll() is None, "it did not start"
        try:
            return httpx.get(f"{self._url}/healthz", timeout=DEADLINE_S).is_success
        except httpx.ConnectError:
            return False

    def who_answers(self) -> str:
        """Which process did, each time on a new connection."""
        return httpx.get(f"{self._url}/healthz", timeout=DEADLINE_S).text

    def flip(self, picture: bytes = b"", form: bytes = b"") -> httpx.Response:
        files = {"image": ("picture.jpg", form, "image/jpeg")} if form else None
        headers = {"Content-Type": "image/jpeg"} if picture else {}
        return httpx.post(
            f"{self._url}/flip",
            content=picture or None,
            files=files,
            headers=headers,
            timeout=DEADLINE_S,
        )

    def status_of_length(self, body_bytes: int) -> int:
        """How a body that is only announced is answered; sent, it would cut a refusal off."""
        address = httpx.URL(self._url)
        with closing(HTTPConnection(address.host, address.port, timeout=DEADLINE_S)) as connection:
            connection.putrequest("POST", "/flip")
            connection.putheader("Content-Type", "image/jpeg")
            connection.putheader("Content-Length", str(body_bytes))
            connection.endheaders()
            return connection.getresponse().status

    def children(self) -> list[int]:
        return [pid for pid in tree(self._process.pid) if pid != self._process.pid]

    def end(self, signal_number: signal.Signals) -> int:
        self._process.send_signal(signal_number)
        return self._process.wait(DEADLINE_S)


@contextmanager
def running(peer: Peer, sample: Path, quality: int | None = QUALITY) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    environ = clean_environ() | peer.environ(port=port, cores=CORES, quality=quality, sample=sample)
    with ExitStack() as stack:
        process = subprocess.Popen(
            peer.command(), env=environ, stdin=subprocess.DEVNULL, start_new_session=True
        )
        stack.callback(process.wait, DEADLINE_S)
        stack.callback(kill_session, process.pid)
        server = Running(process, f"http://127.0.0.1:{port}")
        assert until(server.is_up)
        if peer.is_cluster:
            assert until(lambda: len(server.children()) == CORES)
        yield server


def kill_session(pid: int) -> None:
    """What a failed test leaves is in one process group, for none of the peers makes another."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def coding(picture: bytes) -> tuple[dict[int, list[int]], bool]:
    """Quantization tables, and whether scans are progressive."""
    with Image.open(BytesIO(picture)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        return image.quantization, "progressive" in image.info


def sampling(picture: bytes) -> int:
    with Image.open(BytesIO(picture)) as image:
        return JpegImagePlugin.get_sampling(image)


def huffman_tables(picture: bytes) -> Sequence[bytes]:
    """The tables of a JPEG by class and number, however many segments they come in."""
    tables, at = [], 2
    while picture[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(picture[at + 2 : at + 4])
        if picture[at + 1] == 0xC4:
            at += 4
            while at < end:
                size = 17 + sum(picture[at + 1 : at + 17])
                tables.append(picture[at : at + size])
                at += size
        at = end
    return sorted(tables)


@pytest.fixture(scope="module", params=HERE, ids=lambda peer: peer.name)
def matched(request: pytest.FixtureRequest, sample: Path) -> Iterator[tuple[Peer, Running]]:
    with running(request.param, sample) as server:
        yield request.param, server


def test_a_peer_turns_what_is_sent_or_else_the_sample(
    matched: tuple[Peer, Running], picture: bytes, sample: Path
) -> None:
    _, server = matched
    raw, form, nothing = server.flip(picture), server.flip(form=picture), server.flip()
    assert [answer.headers["Content-Type"] for answer in (raw, form, nothing)] == ["image/jpeg"] * 3
    assert raw.content == form.content
    assert fidelity_db(picture, picture) < 20  # as much as an answer that is not turned would have
    assert fidelity_db(picture, raw.content) > 36
    assert fidelity_db(sample.read_bytes(), nothing.content) > 36


def test_a_peer_writes_jpegs_as_the_source_is_written(matched: tuple[Peer, Running], picture: bytes) -> None:
    peer, server = matched
    answer = server.flip(picture).content
    assert coding(answer) == coding(picture)
    assert huffman_tables(answer) == huffman_tables(picture)
    assert (sampling(answer) == sampling(picture)) == peer.has_4_2_0


def test_a_peer_refuses_what_is_too_large(matched: tuple[Peer, Running]) -> None:
    _, server = matched
    assert server.status_of_length(LIMIT_BYTES + 1) == 413


@pytest.mark.parametrize("peer", ALONE, ids=lambda peer: peer.name)
def test_a_peer_by_itself_writes_other_jpegs(peer: Peer, picture: bytes, sample: Path) -> None:
    with running(peer, sample, quality=None) as server:
        answer = server.flip(picture).content
    assert coding(answer) != coding(picture)
    assert fidelity_db(picture, answer) > 25


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("peer", HERE, ids=lambda peer: peer.name)
def test_a_peer_leaves_no_process_behind(peer: Peer, sample: Path, signal_number: signal.Signals) -> None:
    with running(peer, sample) as server:
        children = server.children()
        server.end(signal_number)
        for child in children:
            LiveServer.wait_until_gone(child)


@pytest.mark.parametrize("peer", CLUSTERS, ids=lambda peer: peer.name)
def test_a_cluster_forks_again_what_dies(peer: Peer, picture: bytes, sample: Path) -> None:
    with running(peer, sample) as server:
        # A node:cluster ends when one dies that does not listen yet, and refuses when no other one does.
        listening: set[str] = set()
        assert until(lambda: listening.add(server.who_answers()) or len(listening) == CORES)
        first, *others = server.children()
        os.kill(first, signal.SIGKILL)
        assert until(lambda: first not in server.children() and len(server.children()) == CORES)
        assert set(others) < set(server.children())
        assert until(lambda: all(command(pid) for pid in server.children()))
        assert server.flip(picture).is_success


@pytest.mark.parametrize("peer", CLUSTERS, ids=lambda peer: peer.name)
def test_a_cluster_that_cannot_start_ends(peer: Peer, sample: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environ = clean_environ() | peer.environ(port=port, cores=CORES, quality=QUALITY, sample=sample)
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
