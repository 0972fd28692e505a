"""The table of peers, and why one of them cannot run here."""

from pathlib import Path

import pytest

from benchmarks.peers.catalogue import PEERS, Peer, missing

ALONE = {peer.name: peer for peer in PEERS if not peer.is_cluster}


def node_that_says(directory: Path, version: str) -> str:
    """Return a directory to look for programs in, with a Node.js of a version."""
    program = directory / "node"
    program.write_text(f"#!/bin/sh\necho {version}\n")
    program.chmod(0o755)
    return str(directory)


def install(root: Path, *places: str) -> None:
    for place in places:
        (root / place).mkdir(parents=True)
        (root / place / ".installed").touch()


def test_each_peer_is_there_alone_and_as_a_cluster() -> None:
    assert {peer.name for peer in PEERS} == {*ALONE, *(f"{name}-cluster" for name in ALONE)}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_only_a_cluster_has_a_process_for_each_core(peer: Peer, tmp_path: Path) -> None:
    environ = peer.environ(cores=5, quality=None, sample=tmp_path)
    assert environ["WORKERS"] == ("5" if peer.is_cluster else "1")
    assert environ["QUALITY"] == "default"


def test_without_node_its_peers_are_missing(tmp_path: Path) -> None:
    assert missing(ALONE["koa-jimp"], root=tmp_path, path=str(tmp_path)) == (
        "koa-jimp: no Node.js; install Node.js 20.9 or newer, then run `make peers`"
    )


def test_with_an_old_node_its_peers_are_missing(tmp_path: Path) -> None:
    install(tmp_path, "benchmarks/peers/node_modules")
    assert missing(ALONE["koa-sharp"], root=tmp_path, path=node_that_says(tmp_path, "v18.19.1")) == (
        "koa-sharp: Node.js 18.19.1; install Node.js 20.9 or newer, then run `make peers`"
    )


def test_with_a_node_that_does_not_run_its_peers_are_missing(tmp_path: Path) -> None:
    reason = missing(ALONE["koa-sharp"], root=tmp_path, path=node_that_says(tmp_path, ""))
    assert reason is not None
    assert reason.startswith("koa-sharp: Node.js does not run; install")


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_a_peer_that_is_not_installed_is_missing(peer: Peer, tmp_path: Path) -> None:
    path = node_that_says(tmp_path, "v20.9.0")
    assert missing(peer, root=tmp_path, path=path) == f"{peer.name}: not installed; run `make peers`"
    install(tmp_path, ".venv-peers", "benchmarks/peers/node_modules")
    assert missing(peer, root=tmp_path, path=path) is None
