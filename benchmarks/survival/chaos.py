"""The promises under kills, overload and slow clients: one scenario after the other, with a table.

Run it with `make chaos`, on a machine that does nothing else; it takes about 20 minutes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial

from benchmarks.harness.findings import Finding, print_table
from benchmarks.survival import crashes, overload

SCENARIOS: dict[str, Callable[..., list[Finding]]] = {
    scenario.__name__: scenario
    for scenario in (
        crashes.engine_kills,
        crashes.worker_kills,
        crashes.engine_stops,
        crashes.worker_stops,
        crashes.part_failures,
        crashes.sabotage,
        overload.overload,
        overload.health,
        overload.slow_clients,
        overload.reloads,
        crashes.client_gone,
        crashes.leaks,
    )
}

#: Small counts that take two minutes in all; the tests use them too.
QUICK: dict[str, dict[str, object]] = {
    "engine_kills": {"kills": 6, "every_s": 0.5, "at_once": 6, "body": "medium"},
    "worker_kills": {"kills": 3, "every_s": 1.0, "at_once": 6, "body": "medium"},
    "engine_stops": {"stops": 1, "at_once": 6, "body": "medium"},
    "worker_stops": {"stops": 1, "at_once": 6, "body": "medium"},
    "part_failures": {"failures": 2, "at_once": 6, "body": "medium"},
    "sabotage": {"at_once": 4, "body": "small", "timeout_s": 3.0, "memory_bytes": 1 << 29},
    "overload": {"at_once": 30, "max_wait_s": 0.5, "body": "medium"},
    "health": {"rounds": 1, "requests": 40, "at_once": 20, "body": "medium"},
    "slow_clients": {
        "rounds": 1,
        "requests": 20,
        "sizes": {"heads": 50, "uploads": 20, "downloads": 10},
        "limit_s": 3.0,
        "body": "medium",
    },
    "reloads": {"times": 3, "every_s": 1.0, "at_once": 4, "in_flight_at_end": 4, "body": "medium"},
    "client_gone": {"leavers": 20, "body": "medium"},
    "leaks": {"engine_kills": 6, "worker_kills": 3, "every_s": 0.0},
}


def play(name: str, *, is_quick: bool = False) -> list[Finding]:
    """Run one scenario, in full or with small counts."""
    return SCENARIOS[name](**(QUICK[name] if is_quick else {}))


def main() -> None:
    """Run the scenarios that were asked for; the exit code is 1 when a promise was not kept."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("scenarios", nargs="*", metavar="scenario", help=", ".join(SCENARIOS))
    options.add_argument("--quick", action="store_true", help="small counts, two minutes in all")
    given = options.parse_args()
    if unknown := set(given.scenarios) - SCENARIOS.keys():
        options.error(f"there is no scenario {', '.join(unknown)}")
    sys.exit(not are_kept(given.scenarios or SCENARIOS, partial(play, is_quick=given.quick)))


def are_kept(names: Iterable[str], play_one: Callable[[str], list[Finding]]) -> bool:
    """Play scenarios, print what each has found, and return whether all promises were kept."""
    verdicts = []
    for name in names:
        started_s = time.monotonic()
        try:
            findings = play_one(name)
        except Exception as error:  # noqa: BLE001 the other scenarios still have something to say
            findings = [Finding("the scenario runs to its end", str(error)[-2000:], is_kept=False)]
        print_table(name, findings, time.monotonic() - started_s)
        verdicts += [finding.is_kept for finding in findings]
    return all(verdicts)


if __name__ == "__main__":
    main()
