"""What an engine does before its first task."""

from pathlib import Path

import pytest

from server.cluster.engine import prefer_for_oom_kill


@pytest.mark.parametrize(("was", "becomes"), [("0\n", "500"), ("-900\n", "500"), ("1000\n", "1000\n")])
def test_an_engine_is_ended_before_a_worker_when_memory_runs_out(
    tmp_path: Path, was: str, becomes: str
) -> None:
    score = tmp_path / "oom_score_adj"
    score.write_text(was)
    prefer_for_oom_kill(score)
    assert score.read_text() == becomes


def test_an_engine_starts_where_it_may_not_say_so(tmp_path: Path) -> None:
    prefer_for_oom_kill(tmp_path)  # any error of the operating system
