"""Send every file of a directory tree to a live service, and judge every answer with programs not ours.

Run it with `make corpus DIR=…`. It prints what is right, refused, wrong and failed for every file and in
all, writes `report.jsonl`, and keeps inputs and outputs of what is wrong. The exit code is 1 if anything is
wrong or failed.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.corpus.canvases import TURNS
from benchmarks.corpus.programs import JUDGES, missing, packages
from benchmarks.corpus.run import FILE_S, Row, Run, Verdict
from benchmarks.harness.server import ROOT, LiveServer

_MOST_EXAMPLES = 3


def main() -> None:
    """Judge a directory."""
    options = argparse.ArgumentParser(prog="benchmarks.corpus", description=__doc__)
    options.add_argument("directory", type=Path, nargs="?", help="a tree of files, of any kind")
    options.add_argument("--into", type=Path, help="where to write; default benchmarks/results/<time>-corpus")
    options.add_argument("--url", help="of a running service; default is one of its own")
    options.add_argument("--every", type=int, default=1, metavar="N", help="only every Nth file")
    options.add_argument("--turns", nargs="+", default=(), choices=TURNS, help="operations, default all")
    options.add_argument("--formats", nargs="*", default=(), help="formats to ask for, default all")
    options.add_argument("--at-once", type=int, default=2, help="files at the same time")
    options.add_argument("--file-s", type=float, default=FILE_S, help="how long one may take, in seconds")
    options.add_argument("--packages", action="store_true", help="print the packages that it needs, and end")
    given = options.parse_args()
    if given.packages:
        print(" ".join(packages(JUDGES)))
        return
    if absent := missing(JUDGES):
        options.error(f"not installed: {', '.join(absent)}")
    if given.directory is None or not given.directory.is_dir():
        options.error("give a directory: make corpus DIR=…")
    into = given.into or ROOT / "benchmarks" / "results" / f"{time.strftime('%Y%m%d-%H%M%S')}-corpus"
    into.mkdir(parents=True, exist_ok=True)
    if given.url:
        sys.exit(not _is_clean(_judged(given, given.url, into), into))
    with LiveServer(ignore={"request"}) as server:
        sys.exit(not _is_clean(_judged(given, server.url, into), into))


def _judged(given: argparse.Namespace, url: str, into: Path) -> list[Row]:
    """Judge all files; print each, and write its rows."""
    run = Run(url, given.directory.resolve(), into, given.turns, given.formats, given.at_once, given.file_s)
    files = run.files()[:: given.every]
    rows: list[Row] = []
    with (into / "report.jsonl").open("w") as report:
        for rows_of_file in run.rows(files):
            _print_file(rows_of_file)
            for row in rows_of_file:
                report.write(json.dumps(asdict(row)) + "\n")
            report.flush()
            rows += rows_of_file
    return rows


def _print_file(rows: Sequence[Row]) -> None:
    counts = Counter(row.verdict for row in rows)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    print(f"{rows[0].file}: {told}", flush=True)
    for row in rows:
        if row.verdict in (Verdict.WRONG, Verdict.DISPUTED, Verdict.FAILED):
            print(f"    {row.verdict} {row.request}: {'; '.join(row.differs) or row.detail}")
    refusals = Counter(
        (row.status, row.problem, row.opened_by) for row in rows if row.verdict is Verdict.REFUSED
    )
    for (status, problem, others), count in refusals.items():
        opened = f"opened by {', '.join(others)}" if others else "nobody opens it"
        print(f"    refused {count} times with {status} {problem}; {opened}")


def _is_clean(rows: Iterable[Row], into: Path) -> bool:
    """Print the totals, and return whether nothing is wrong or failed."""
    rows = list(rows)
    counts = Counter(row.verdict for row in rows)
    files: defaultdict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    for row in rows:
        for group in _groups(row):
            files[group][row.file] = None
    print(f"\n{len({row.file for row in rows})} files, {len(rows)} answers")
    for verdict in Verdict:
        print(f"  {verdict:<10} {counts[verdict]}")
    for verdict in (Verdict.WRONG, Verdict.FAILED, Verdict.DISPUTED, Verdict.REFUSED, Verdict.UNJUDGED):
        groups = {group: found for group, found in files.items() if group[0] == verdict}
        if groups:
            print(f"\n{verdict}, by kind")
        for group, found in sorted(groups.items(), key=lambda each: -len(each[1])):
            examples = ", ".join(list(found)[:_MOST_EXAMPLES])
            print(f"  {len(found):5} files  {'; '.join(group[1:])}  ({examples})")
    print(f"\n{into / 'report.jsonl'}")
    return not (counts[Verdict.WRONG] or counts[Verdict.FAILED])


def _groups(row: Row) -> list[tuple[str, ...]]:
    """Return what kinds of findings a row belongs to."""
    if row.verdict is Verdict.RIGHT:
        return []
    if row.verdict is Verdict.REFUSED:
        opened = f"opened by {', '.join(row.opened_by)}" if row.opened_by else "nobody opens it"
        return [(row.verdict, f"{row.status} {row.problem}", opened)]
    if row.differs:
        asked = row.request.partition("format=")[2] or "own format"
        return [(row.verdict, _kind(text), asked) for text in row.differs]
    return [(row.verdict, row.detail[:60])]


def _kind(text: str) -> str:
    """Return a fault without its numbers, so that the same of other files is counted with it."""
    words = text.partition("(")[0].split()
    return " ".join("N" if any(letter.isdigit() for letter in word) else word for word in words)[:90]


if __name__ == "__main__":
    main()
