"""Every queue that `make queues` compares, as far as it is installed: its jobs run, and once each.

`.venv/bin/pytest benchmarks/queues` runs this; `make check` does not.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from benchmarks.harness.waiting import until
from benchmarks.peers.queues.systems import SYSTEMS, System, missing
from benchmarks.queues import measures
from benchmarks.queues.contender import Contender, OurService
from benchmarks.queues.witness import Tally, tally
from images.render import small_image

HERE = [system for system in SYSTEMS if missing(system) is None and not system.is_only_idle]
DEADLINE_S = 60.0


@pytest.fixture(scope="module", params=HERE, ids=lambda system: system.name)
def contender(request: pytest.FixtureRequest) -> Iterator[Contender]:
    system: System = request.param
    # The paths of sockets have to be short.
    with TemporaryDirectory(prefix="q-") as directory:
        kind = OurService if system.is_service else Contender
        with kind(system, Path(directory) / "s", Path(directory)) as started:
            started.warm_up()
            yield started


def test_a_job_runs_once(contender: Contender) -> None:
    lives = contender.wait_for(contender.submit(*["empty"] * 5), DEADLINE_S)
    assert tally(lives) == Tally(acknowledged=5, lost=0, twice=0)
    assert [len(life.starts) for life in lives] == [1] * 5
    assert all(life.submitted_s < life.starts[0] for life in lives if life.submitted_s)


def test_no_job_starts_while_workers_are_paused(contender: Contender) -> None:
    contender.pause()
    try:
        jobs = contender.submit(*["empty"] * 10)
        assert until(lambda: contender.witness.count_answered(jobs) == len(jobs))
        assert not any(life.starts for life in contender.witness.lives(jobs))
    finally:
        contender.resume()
    assert contender.wait_for(jobs, DEADLINE_S)
    assert contender.witness.count_ended(jobs) == len(jobs)


def test_jobs_have_a_rate(contender: Contender) -> None:
    rate = measures.empty_jobs(contender, 10)
    assert rate.submitted_per_s
    assert rate.done_per_s > 0


def test_a_flip_has_the_right_result(contender: Contender) -> None:
    if contender.system.is_queue_alone:
        pytest.skip("it has no engine")
    assert measures.flips(contender, small_image(), 90, 2).done_per_s > 0


def test_a_killed_worker_is_replaced(contender: Contender) -> None:
    if contender.system.is_queue_alone or not contender.system.is_durable:
        pytest.skip("it may lose jobs")
    killed = measures.kill_workers([contender], 0.0, whole=True)[contender]
    assert killed is not None
    assert killed.jobs.acknowledged
    (life,) = contender.wait_for(contender.submit("empty"), DEADLINE_S)
    assert life.ends


def test_ours_runs_a_job_again_whose_worker_is_killed(contender: Contender) -> None:
    if not contender.system.is_service:
        pytest.skip("it is another's promise")
    killed = measures.kill_workers([contender], DEADLINE_S, whole=True)[contender]
    assert killed is not None
    assert killed.again_s is not None
    assert (killed.jobs.acknowledged, killed.jobs.lost) == (4, 0)


def test_a_server_that_is_killed_serves_again(contender: Contender) -> None:
    is_ours = contender.system.is_service
    found = measures.kill_servers([contender], DEADLINE_S if is_ours else 10.0)[contender]
    assert found is not None
    assert found.acknowledged
    if is_ours:
        assert (found.lost, found.twice) == (0, 0)


def test_without_a_server_a_submission_is_refused_or_hangs(contender: Contender) -> None:
    away = measures.submit_without_server([contender])[contender]
    assert away.said or away.after_s is None
