"""The scenarios of `make chaos` with small counts; nothing that depends on speed is asserted."""

import pytest

from benchmarks.survival.chaos import QUICK, SCENARIOS, play


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_promise_is_kept(scenario: str) -> None:
    findings = [finding for finding in play(scenario, is_quick=True) if not finding.is_figure]
    assert findings
    assert [finding for finding in findings if not finding.is_kept] == []


def test_every_scenario_is_played_in_small() -> None:
    assert QUICK.keys() == SCENARIOS.keys()
