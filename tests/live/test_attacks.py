"""The attacks of `make attacks`, for a moment each; nothing that depends on speed is asserted."""

import json
import subprocess
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest

from benchmarks.harness.server import ROOT, LiveServer, free_port
from benchmarks.survival.attackers import BY_NAME, UNCONNECTED
from benchmarks.survival.attacks import ATTACKS, attack, play, revision, run
from benchmarks.survival.cluster import cluster

#: For how long an attack is tried until it takes place: where the machine stalls, that is a small part of a
#: longer one.
SECONDS = (0.8, 3.2, 12.8)

PROBES_PER_S = 20


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with cluster() as server:
        yield server


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_takes_place_while_the_polite_are_at_work(server: LiveServer, name: str) -> None:
    for seconds in SECONDS:
        with_attack, deeds = attack(server, name, seconds, is_quick=True)
        if deeds.takes_place:
            break
    assert deeds.takes_place, deeds
    assert with_attack.polite.outcomes.total() >= 4, "each of four clients has asked"
    answered = [took_ms for took_ms in with_attack.polite.took_ms if took_ms < inf]
    assert len(answered) == with_attack.polite.outcomes["200"]
    assert len(with_attack.polite.took_ms) == with_attack.polite.outcomes.total()
    assert with_attack.health.outcomes.total() == len(with_attack.health.took_ms) == PROBES_PER_S * seconds
    assert min(with_attack.memory_mb) > 0


def test_every_attack_is_made_by_attackers_and_each_of_these_is_used() -> None:
    assert {each.kind for each in ATTACKS.values()} == BY_NAME.keys()
    assert all(each.sizes.keys() == each.quick.keys() for each in ATTACKS.values())


def test_an_attack_that_reaches_nothing_is_not_counted_as_one() -> None:
    sizes = json.dumps({"per_s": 20, "announced_bytes": 1000})
    where = ("127.0.0.1", str(free_port()), "0.5")
    command = ["benchmarks.survival.attackers", "announced_uploads", *where, "0", sizes, "127.0.0.66"]
    ended = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        input="\n",
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    ready, report = ended.stdout.splitlines()
    done = json.loads(report)
    assert ready == "ready"
    assert done["answers"] == {UNCONNECTED: done["requests"]}


def test_attackers_that_fail_are_told(server: LiveServer) -> None:
    with_none, deeds = run(server, 0.2, ("tiny_images", "0", '{"no_such_size": 1}', "127.0.0.66"))
    assert not deeds.takes_place
    assert "no_such_size" in deeds.failure
    assert with_none.polite.outcomes["200"]


def test_another_revision_is_checked_out_for_as_long_as_it_is_needed() -> None:
    def worktrees() -> str:
        return subprocess.run(
            ["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    with revision("HEAD") as root:
        assert (root / "gunicorn.conf.py").is_file()
        assert {each.name for each in (root / "server/imaging/jpeg").glob("entropy.*.so")} == {
            each.name for each in (ROOT / "server/imaging/jpeg").glob("entropy.*.so")
        }
        assert str(root) in worktrees()
    assert not Path(root).exists()
    assert str(root) not in worktrees()


def test_a_round_is_one_run_without_the_attack_and_one_with_it() -> None:
    done = play(ROOT, "announced-uploads", 0.5)
    assert not done.deeds.failure
    assert done.deeds.answers.total() == done.deeds.requests > 0
    assert done.without.polite.outcomes.keys() == {"200"}
    assert done.attacked.polite.outcomes.total() > 0


def test_a_round_that_fails_is_told(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text("raise SystemExit('no service here')")
    done = play(tmp_path, "announced-uploads", 0.5)
    assert not done.deeds.takes_place
    assert "no service here" in done.deeds.failure
