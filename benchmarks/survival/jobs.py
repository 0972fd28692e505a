"""The promises to jobs and batches: one scenario after the other, with a table.

Run it with `make chaos-jobs`, on a machine that does nothing else; it takes about twelve minutes.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from time import strftime

from benchmarks.harness.findings import Finding
from benchmarks.survival import job_handovers, job_kills, job_storage, job_watchers
from benchmarks.survival.chaos import are_kept

SCENARIOS: dict[str, Callable[..., list[Finding]]] = {
    scenario.__name__: scenario
    for scenario in (
        job_kills.kill_rounds,
        job_kills.frozen_worker,
        job_kills.second_tries,
        job_handovers.submissions,
        job_handovers.shared_directory,
        job_storage.full_disk,
        job_storage.unusable_directory,
        job_storage.damaged_store,
        job_watchers.watchers,
        job_watchers.stop_with_watchers,
    )
}

#: Small counts that take less than a minute in all; the tests use them too.
QUICK: dict[str, dict[str, object]] = {
    "kill_rounds": {"rounds": 2, "size": (320, 240)},
    "frozen_worker": {"times": 1, "body": "medium"},
    "second_tries": {"kills": 2},
    "submissions": {"store_kills": 1, "grace_s": 15.0},
    "shared_directory": {"batch_of": 30, "size": (320, 240), "grace_s": 15.0},
    "full_disk": {},
    "unusable_directory": {"kinds": ("read-only",)},
    "damaged_store": {"jobs": 4},
    "watchers": {"clients": 60, "batch_of": 30, "grace_s": 15.0},
    "stop_with_watchers": {"clients": 60, "measured_s": 0.1, "grace_s": 15.0},
}

_CHOOSING = frozenset({"kill_rounds", "watchers"})


def play(name: str, *, is_quick: bool = False, seed: int | None = None) -> list[Finding]:
    """Run one scenario, in full or with small counts; the seed is for those that choose at random."""
    seeded = {"seed": seed} if seed is not None and name in _CHOOSING else {}
    return SCENARIOS[name](**(QUICK[name] if is_quick else {}), **seeded)


def main() -> None:
    """Run the scenarios that were asked for; the exit code is 1 when a promise was not kept."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("scenarios", nargs="*", metavar="scenario", help=", ".join(SCENARIOS))
    options.add_argument("--quick", action="store_true", help="small counts, less than a minute in all")
    options.add_argument("--seed", type=int, default=int(strftime("%Y%m%d")), help="the date by default")
    given = options.parse_args()
    if unknown := set(given.scenarios) - SCENARIOS.keys():
        options.error(f"there is no scenario {', '.join(unknown)}")
    sys.exit(not are_kept(given.scenarios or SCENARIOS, partial(play, is_quick=given.quick, seed=given.seed)))


if __name__ == "__main__":
    main()
