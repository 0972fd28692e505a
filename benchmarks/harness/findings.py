"""What a scenario finds: a promise, what was seen, and whether the promise was kept."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """One row of the table.

    Attributes:
        is_figure: it depends on how fast and how busy the machine is, so tests ignore it.
    """

    promise: str
    seen: str
    is_kept: bool
    is_figure: bool = False


def print_table(name: str, findings: Sequence[Finding], took_s: float) -> None:
    """Print what one scenario has found."""
    print(f"\n{name} ({took_s:.0f} s)", flush=True)
    for finding in findings:
        verdict = "ok " if finding.is_kept else "NOT"
        print(f"  {verdict}  {finding.promise:<66}  {finding.seen}", flush=True)
