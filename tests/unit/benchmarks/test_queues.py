"""What the witness counts, what the tables of `make queues` say, and what to install for a missing system."""

import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.harness.tables import Table, read_tables
from benchmarks.peers.queues import work
from benchmarks.peers.queues.our_service import marked
from benchmarks.peers.queues.systems import SYSTEMS, System, missing
from benchmarks.queues import measures
from benchmarks.queues.contender import Contender
from benchmarks.queues.measures import Away, Figures, Killed, Rate
from benchmarks.queues.tables import summary, tables
from benchmarks.queues.witness import Tally, Witness, tally

SYSTEM = {system.name: system for system in SYSTEMS}
WAIT_S = 180.0
LONG_S = 1000.0


def told(path: Path, *lines: str) -> Witness:
    witness = Witness(path / "witness")
    with witness.path.open("a") as file:
        file.writelines(f"{line}\n" for line in lines)
    return witness


def row(table: Table, title: str) -> dict[str, str]:
    (found,) = (cells for cells in table.rows if cells[0] == title)
    return dict(zip(table.columns, found, strict=True))


def test_a_job_that_runs_tells_its_witness_when_it_starts_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    witness = Witness(tmp_path / "witness")
    monkeypatch.setenv(work.WITNESS, str(witness.path))
    work.run("j1 sleep 0.01")
    life = witness.life("j1")
    assert life.pids == [os.getpid()]
    assert life.ends[0] - life.starts[0] >= 0.01
    assert not life.is_answered


def test_only_what_was_acknowledged_and_never_ended_is_lost(tmp_path: Path) -> None:
    witness = told(
        tmp_path,
        "submit done 7 1.0 ",
        "acknowledged done 7 1.1 ",
        "start done 8 1.2 ",
        "end done 8 1.3 ",
        "submit lost 7 1.4 ",
        "acknowledged lost 7 1.5 ",
        "start lost 8 1.6 ",
        "submit refused 7 1.7 ",
        "refused refused 7 1.8 ConnectionError: it is gone",
        "submit hanging 7 1.9 ",
    )
    jobs = ["done", "lost", "refused", "hanging"]
    assert tally(witness.lives(jobs)) == Tally(acknowledged=2, lost=1, twice=0)
    assert witness.count_answered(jobs) == 3
    assert witness.count_ended(jobs) == 1
    assert witness.life("refused").refused == "ConnectionError: it is gone"


def test_a_second_start_is_no_second_run_until_it_has_ended(tmp_path: Path) -> None:
    witness = told(tmp_path, "acknowledged j1 7 1 ", "start j1 8 2 ", "start j1 9 3 ", "end j1 9 4 ")
    assert tally([witness.life("j1")]).twice == 0
    told(tmp_path, "end j1 8 5 ")
    assert tally([witness.life("j1")]).twice == 1
    assert witness.life("j1").pids == [8, 9]


def test_half_a_line_is_read_when_it_is_whole(tmp_path: Path) -> None:
    witness = told(tmp_path, "start j1 8 2 ")
    with witness.path.open("a") as file:
        file.write("end j1 8")
        file.flush()
        assert not witness.life("j1").ends
        file.write(" 3 \nonline - 9 4 \n")
    assert witness.life("j1").ends == [3.0]
    assert witness.is_online(9)
    assert not witness.is_online(8)


def test_the_witness_knows_every_event(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stop"):
        told(tmp_path, "stop j1 8 2 ").life("j1")


class Scripted(Contender):
    """A system without processes: its witness is told at once what is to happen later.

    Args:
        system: it.
        path: a directory.
        starts_after_s: how long after its submission a job starts.
        refused_after_s: how long after its submission it is refused; None if it is acknowledged.
        ends_after_s: how long after a kill jobs end.
        again_at: the number of the call of `supervise` at which a job is run again; 0 for none.
    """

    def __init__(  # noqa: PLR0913 all but two have a default
        self,
        system: System,
        path: Path,
        *,
        starts_after_s: float = 0.0,
        refused_after_s: float | None = None,
        ends_after_s: float = 0.0,
        again_at: int = 0,
    ) -> None:
        super().__init__(system, path, path)
        self._starts_after_s = starts_after_s
        self._refused_after_s = refused_after_s
        self._ends_after_s = ends_after_s
        self._again_at = again_at
        self._looks = 0
        self._jobs: list[str] = []

    def tell(self, event: str, job: str, after_s: float = 0.0) -> None:
        with self.witness.path.open("a") as file:
            file.write(f"{event} {job} 7 {time.monotonic() + after_s} \n")

    def submit(self, *jobs: str) -> list[str]:
        self._jobs = [f"j{number}" for number in range(len(jobs))]
        for job in self._jobs:
            self.tell("submit", job)
            if self._refused_after_s is None:
                self.tell("acknowledged", job)
                self.tell("start", job, self._starts_after_s)
            else:
                self.tell("refused", job, self._refused_after_s)
        return self._jobs

    def kill_process(self, pid: int) -> None:  # noqa: ARG002 there is none
        for job in self._jobs:
            self.tell("end", job, self._ends_after_s)

    def remove_server(self) -> None:
        pass

    def supervise(self) -> None:
        self._looks += 1
        if self._looks == self._again_at:
            self.tell("start", "j0")
            self.tell("end", "j0")


def jobs_of_a_killed_process(contender: Contender, wait_s: float) -> Tally:
    killed = measures.kill_workers([contender], wait_s, whole=False)[contender]
    assert killed is not None
    return killed.jobs


def test_a_job_that_ends_later_than_is_waited_is_lost(tmp_path: Path) -> None:
    late = Scripted(SYSTEM["gearmand"], tmp_path, ends_after_s=LONG_S)
    assert jobs_of_a_killed_process(late, 0.1) == Tally(acknowledged=4, lost=4, twice=0)


def test_a_second_run_after_a_timeout_is_seen(tmp_path: Path) -> None:
    timed = Scripted(SYSTEM["rq"], tmp_path, again_at=3)  # the first look follows the kill
    assert timed.system.timeout_s
    assert jobs_of_a_killed_process(timed, 1.0) == Tally(acknowledged=4, lost=0, twice=1)


def test_a_first_job_that_starts_later_than_is_waited_has_no_figure(tmp_path: Path) -> None:
    late = Scripted(SYSTEM["rq"], tmp_path, starts_after_s=LONG_S)
    assert measures.first_after_idleness([late], 0.0, 0.1) == {late: None}


def test_a_submission_that_is_refused_after_a_long_time_hangs(tmp_path: Path) -> None:
    slow = Scripted(SYSTEM["rq"], tmp_path, refused_after_s=LONG_S)
    assert measures.submit_without_server([slow]) == {slow: Away(None, "")}


def test_the_image_of_a_job_carries_it_in_a_comment() -> None:
    image = marked("j1 sleep 0.5")
    assert image[:4] == b"\xff\xd8\xff\xfe"
    assert image[6:].startswith(b"job:j1 sleep 0.5\n")


FIGURES = Figures(
    start_ms=[1.0, 3.0, 2.0],
    first_ms=15_000.0,
    empty=[Rate(1000.0, 200.0, 1.0), Rate(1500.0, 100.0, 2.0), Rate(1200.0, 300.0, 1.5)],
    flips=[Rate(None, 8.0, 90.0)],
    process_killed=Killed(0.5, Tally(4, 0, 1)),
    worker_killed=Killed(None, Tally(4, 1, 0)),
    server_killed=Tally(390, 12, 3),
    away=Away(0.25, "ConnectionError: it is gone"),
)
OURS = Figures(empty=[Rate(1.0, 100.0, 1.0), Rate(1.0, 400.0, 1.0), Rate(1.0, 300.0, 1.0)])


def test_the_table_for_the_readme_says_what_a_user_would_lose() -> None:
    found = row(summary({SYSTEM["rq"]: FIGURES}, WAIT_S), "RQ, durable")
    assert found == {
        "queue": "RQ, durable",
        "fsync": "appendfsync always",
        "time from enqueue to start, when idle": "2.00 (1.00 to 3.00) ms",
        "empty jobs/s": "200 (100 to 300)",
        "worker killed: its job runs again after": "not within 180 s",
        "server killed: acknowledged jobs lost; jobs run twice": "12 of 390; 3",
    }


def test_a_ratio_is_taken_within_each_round() -> None:
    _, speed, kills, about = tables(
        {SYSTEM["ours-store"]: OURS, SYSTEM["rq"]: FIGURES}, WAIT_S, {"machine": "2 cores"}
    )
    found = row(speed, "RQ, durable")
    assert found["ratio of empty jobs/s to our queue alone"] == "1.00"  # of 2, 0.25 and 1
    assert found["first job after a minute (once)"] == "15,000 ms"
    assert found["ratio of flips/s to our service"] == "-"  # which was not measured
    assert row(kills, "RQ, durable")["server away: a submission"] == (
        "ConnectionError: it is gone after 0.25 s"
    )
    assert [cells[0] for cells in kills.rows] == ["RQ, durable"]
    assert about.rows == (("machine", "2 cores"),)


def test_what_was_not_measured_is_no_figure() -> None:
    empty = row(summary({SYSTEM["celery-shipped"]: Figures()}, WAIT_S), "Celery, as shipped")
    assert set(empty.values()) - {"Celery, as shipped", SYSTEM["celery-shipped"].fsync} == {"-"}
    (_, _, kills, _) = tables({SYSTEM["rq"]: Figures(away=Away(None, ""))}, WAIT_S, {})
    assert row(kills, "RQ, durable")["server away: a submission"] == "hangs for more than 15 s"


def test_tables_can_be_read_back() -> None:
    found = tables({SYSTEM["rq"]: FIGURES}, WAIT_S, {})
    document = json.dumps({"tables": [asdict(table) for table in found]})
    assert read_tables(document) == found


def test_a_peer_that_is_not_installed_says_what_to_install(tmp_path: Path) -> None:
    assert missing(SYSTEM["beanstalkd"], root=tmp_path, path=str(tmp_path)) == (
        "beanstalkd: no beanstalkd; install Debian's package beanstalkd"
    )
    server = tmp_path / "beanstalkd"
    server.touch(0o755)
    assert missing(SYSTEM["beanstalkd"], root=tmp_path, path=str(tmp_path)) == (
        "beanstalkd: its client is not installed; run `make peers`"
    )
    (tmp_path / ".venv-peers").mkdir()
    (tmp_path / ".venv-peers" / ".installed").touch()
    assert missing(SYSTEM["beanstalkd"], root=tmp_path, path=str(tmp_path)) is None


def test_ours_needs_nothing_else(tmp_path: Path) -> None:
    assert [
        name for name, system in SYSTEM.items() if missing(system, root=tmp_path, path=str(tmp_path)) is None
    ] == [
        "ours",
        "ours-store",
    ]


def test_each_peer_is_measured_as_shipped_and_set_up_to_lose_nothing() -> None:
    durable = {system.adapter for system in SYSTEMS if system.is_peer and system.is_durable}
    shipped = {system.adapter for system in SYSTEMS if system.is_peer and not system.is_durable}
    assert durable - shipped == {"mariadb_jobs"}  # is shipped so
    assert len(SYSTEM) == len(SYSTEMS)
