"""The scenarios of `make chaos` with small counts; nothing that depends on speed is asserted."""

import pytest

from benchmarks.survival.chaos import QUICK, SCENARIOS, play

#: Promises that the service does not keep yet.
NOT_YET = {"engine_stops", "worker_stops"}


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason="a stopped process is not noticed yet"))
        if name in NOT_YET
        else name
        for name in SCENARIOS
    ],
)
def test_every_promise_is_kept(scenario: str) -> None:
    findings = [finding for finding in play(scenario, is_quick=True) if not finding.is_figure]
    assert findings
    assert [finding for finding in findings if not finding.is_kept] == []


def test_every_scenario_is_played_in_small() -> None:
    assert QUICK.keys() == SCENARIOS.keys()
