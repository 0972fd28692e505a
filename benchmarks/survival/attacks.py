"""Attacks from outside, with polite clients at work: what an attacker takes from other clients.

Run it with `make attacks`, on a machine that does nothing else; it takes about 20 minutes, and 40 with
`--before`. In each round and for each attack, a new service with default settings (but without jobs) serves
four polite clients from addresses of their own, first without and then with the attack, and its health is
probed meanwhile. `--before REVISION` does the same with another revision in turn, in a worktree of its own.

The table has a row for each attack. Each figure is the median over the rounds, with the least and the most:

- what share of the polite requests was refused or failed: promised is under 1 %;
- their p95 with the attack over that without, where a refusal or failure counts as infinitely long: at most
  1.5;
- the p99 of the health probes with the attack: under 25 ms;
- the longest `Retry-After` that a polite client was given;
- the peak of what all processes hold in memory, and of all shared memory of the machine, sampled four times
  a second: at most what docs/settings.md says.

An attack that did not take place says so, and keeps no promise. What attackers cost is in `attackers`.
"""

import argparse
import json
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import processes
from benchmarks.harness.findings import Finding, print_table
from benchmarks.harness.server import ROOT, LiveServer
from benchmarks.harness.tables import Table, markdown_table
from benchmarks.harness.waiting import DEADLINE_S, sampled
from benchmarks.survival.attackers import CONNECTING, UNCONNECTED
from benchmarks.survival.cluster import OK, cluster, listed, percentile, worker_count
from benchmarks.survival.polite import Seen
from server.settings import Settings, bytes_in_flight

#: The attackers come from this one on.
_FIRST_ADDRESS = 66

#: What each worker needs in addition to its two engines and the images in flight (docs/settings.md).
_WORKER_MB = 120

#: That of engines.
_NICENESS = 10

_MOST_REFUSED, _MOST_RATIO, _MOST_HEALTH_MS = 0.01, 1.5, 25.0

#: An attack with less than this share of its planned requests did not take place.
_TAKES_PLACE = 0.8

#: How long a client may take to get ready, or to end after its time: next to a busy service.
_CLIENT_S = 60.0


@dataclass(frozen=True, slots=True)
class Attack:
    """One attack.

    Attributes:
        kind: its name in `attackers`.
        sizes: in full.
        quick: sizes for tests.
        needs_mb: memory that must be available, because today's or yesterday's service may take that much.
    """

    kind: str
    sizes: Mapping[str, float]
    quick: Mapping[str, float]
    needs_mb: int = 0


ATTACKS: dict[str, Attack] = {
    "slow-readers-4": Attack(
        "slow_readers",
        {"connections": 4, "side": 10_000, "reads_per_s": 40_000},
        {"connections": 2, "side": 1_000, "reads_per_s": 40_000},
        needs_mb=4_000,
    ),
    "slow-readers-24": Attack(
        "slow_readers",
        {"connections": 24, "side": 10_000, "reads_per_s": 40_000},
        {"connections": 6, "side": 1_000, "reads_per_s": 40_000},
        needs_mb=12_000,
    ),
    "announced-uploads": Attack(
        "announced_uploads",
        {"per_s": 10, "announced_bytes": 67_108_864},
        {"per_s": 10, "announced_bytes": 67_108_864},
    ),
    "greedy-client": Attack("greedy_client", {"connections": 64}, {"connections": 8}),
    "idle-connections": Attack("idle_connections", {"connections": 4_200}, {"connections": 50}),
    "tiny-chunks-4": Attack(
        "tiny_chunks",
        {"connections": 4, "body_bytes": 40_000, "sends_per_s": 512_000},
        {"connections": 4, "body_bytes": 4_000, "sends_per_s": 512_000},
    ),
    "tiny-chunks-100": Attack(
        "tiny_chunks",
        {"connections": 100, "body_bytes": 10_000, "sends_per_s": 40_000},
        {"connections": 10, "body_bytes": 1_000, "sends_per_s": 40_000},
    ),
    "many-fields": Attack(
        "many_fields",
        {"per_s": 50, "fields": 5_000},
        {"per_s": 10, "fields": 500},
    ),
    "pipelined": Attack(
        "pipelined",
        {"connections": 8, "burst": 500, "every_s": 4},
        {"connections": 2, "burst": 50, "every_s": 0.5},
    ),
    "tiny-images": Attack("tiny_images", {"per_s": 5, "side": 10_000}, {"per_s": 5, "side": 500}),
    "slow-formats": Attack(
        "slow_formats",
        {"per_s": 1, "comment_bytes": 16_000_000, "side": 1_500},
        {"per_s": 4, "comment_bytes": 10_000, "side": 50},
    ),
    "exploding-results": Attack(
        "exploding_results",
        {"per_s": 1, "side": 10_000, "frame_side": 1_000, "frames": 100},
        {"per_s": 8, "side": 500, "frame_side": 50, "frames": 5},
        needs_mb=6_000,
    ),
}


@dataclass(frozen=True, slots=True)
class Deeds:
    """What the attackers did.

    Attributes:
        planned: how many requests are due at least.
        requests: how many were sent.
        answers: what became of them.
        cpu_s: what the attackers themselves spent.
        late_s: how long they had to wait for a core at most.
        failure: why there are no deeds, if so.
    """

    planned: int = 0
    requests: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0
    late_s: float = 0.0
    failure: str = ""

    @property
    def takes_place(self) -> bool:
        """Whether enough of the attack reached the service, and all of it is accounted for."""
        reached = self.requests - self.answers[UNCONNECTED] - self.answers[CONNECTING]
        return (
            not self.failure
            and self.requests == self.answers.total()
            and reached >= max(1.0, _TAKES_PLACE * self.planned)
        )


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the polite clients, with or without an attack; memory in megabytes, sampled."""

    polite: Seen
    health: Seen
    memory_mb: Sequence[float]

    @property
    def refused(self) -> float:
        """The share of polite requests that were not answered 200 with the right image."""
        total = self.polite.outcomes.total()
        return 1 - self.polite.outcomes[str(OK)] / total if total else 1.0

    @property
    def p95_ms(self) -> float:
        """Of the polite requests; infinite when more than one in twenty was refused or failed."""
        return percentile(self.polite.took_ms, 95) or inf

    @property
    def health_ms(self) -> float:
        """The p99 of the probes; infinite when more than one in a hundred failed."""
        return percentile(self.health.took_ms, 99) or inf


@dataclass(frozen=True, slots=True)
class Round:
    """Two runs on one service, without and with an attack."""

    without: Run
    attacked: Run
    deeds: Deeds

    @property
    def ratio(self) -> float:
        """How much longer the polite wait with the attack."""
        return self.attacked.p95_ms / self.without.p95_ms


class _Client:
    """A process that gets ready, waits for a sign, does its part, and says what came of it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._title = module
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", f"benchmarks.survival.{module}", *arguments]
        self._process = processes.start(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe)

    def wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _CLIENT_S)
        if not readable or self._process.stdout.readline() != "ready\n":
            processes.kill_session(self._process.pid)
            _, errors = self._process.communicate()
            raise AssertionError(f"{self._title} did not get ready: {errors[-1000:]}")

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def done(self, seconds: float) -> dict[str, Any]:
        """Return what it says, at most this long and some time later."""
        try:
            said, errors = self._process.communicate(timeout=seconds + _CLIENT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self._title} did not end") from None
        assert not self._process.returncode, f"{self._title} failed: {errors[-1000:]}"
        report: dict[str, Any] = json.loads(said)
        return report

    def kill(self) -> None:
        processes.kill_session(self._process.pid)
        self._process.wait(DEADLINE_S)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()


def run(server: LiveServer, seconds: float, attackers: Sequence[str] = ()) -> tuple[Run, Deeds]:
    """Let the polite be at work for some time, with the attack whose arguments are given, if any."""
    host, port = server.address
    where = (host, str(port), str(seconds))
    witnesses = [_Client("polite", *where), _Client("polite", *where, "--probe")]
    clients = witnesses.copy()
    deeds = Deeds()
    try:
        for client in clients:
            client.wait_until_ready()
        if attackers:
            name, *rest = attackers
            clients.append(attacker := _Client("attackers", name, *where, *rest))
            deeds = _tried(attacker.wait_until_ready) or deeds
        with sampled(lambda: processes.memory_mb_at_most(list(processes.tree(server.pid)))) as memory_mb:
            for client in reversed(clients) if not deeds.failure else witnesses:
                client.go()
            polite, health = (_seen(client.done(seconds)) for client in witnesses)
        if attackers and not deeds.failure:
            deeds = _deeds(attacker, seconds)
    finally:
        for client in clients:
            client.kill()
    return Run(polite, health, memory_mb), deeds


def _tried(act: Callable[[], object]) -> Deeds | None:
    try:
        act()
    except AssertionError as error:
        return Deeds(failure=str(error))
    return None


def _deeds(attacker: _Client, seconds: float) -> Deeds:
    try:
        report = attacker.done(seconds)
    except AssertionError as error:
        return Deeds(failure=str(error))
    return Deeds(**report | {"answers": Counter(report["answers"])})


def _seen(report: dict[str, Any]) -> Seen:
    return Seen(**report | {"outcomes": Counter(report["outcomes"])})


def attack(
    server: LiveServer, name: str, seconds: float, *, addresses: int = 1, is_quick: bool = False
) -> tuple[Run, Deeds]:
    """Let the polite be at work for some time, with an attack from so many addresses."""
    chosen = ATTACKS[name]
    sizes = json.dumps(chosen.quick if is_quick else chosen.sizes)
    sources = ",".join(f"127.0.0.{_FIRST_ADDRESS + number}" for number in range(addresses))
    # The tests run next to others, which would leave a nice process no core at all.
    niceness = "0" if is_quick else str(_NICENESS)
    return run(server, seconds, (chosen.kind, niceness, sizes, sources))


def play(root: Path, name: str, seconds: float, *, addresses: int = 1) -> Round:
    """Start the service of a revision, and run the polite clients without and then with an attack."""
    needs_mb, available_mb = ATTACKS[name].needs_mb, processes.of_machine("MemAvailable") / 1e6
    nothing = Run(Seen(), Seen(), [0.0])
    if available_mb < needs_mb:
        missing = f"it takes {needs_mb} MB of memory, and {available_mb:.0f} MB are available"
        return Round(nothing, nothing, Deeds(failure=missing))
    try:
        with cluster(root) as server:
            try:
                without, _ = run(server, seconds)
                return Round(without, *attack(server, name, seconds, addresses=addresses))
            finally:
                server.kill()  # what an attack has left behind may take longer to stop than it may
    except Exception as error:  # noqa: BLE001 the other attacks still have something to say
        return Round(nothing, nothing, Deeds(failure=f"the run failed: {str(error)[-1000:]}"))


@contextmanager
def revision(name: str) -> Iterator[Path]:
    """Check out a revision next to ours while the block runs, with its compiled module."""
    with tempfile.TemporaryDirectory(prefix="flip-before-") as parent:
        root = Path(parent) / "tree"
        _git("worktree", "add", "--quiet", "--detach", str(root), name)
        try:
            _compile(root)
            yield root
        finally:
            _git("worktree", "remove", "--force", str(root))


def _git(*arguments: str) -> None:
    ended = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S607 the one that everybody has
    if ended.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {ended.stderr.strip()}")


def _compile(root: Path) -> None:
    """Give a worktree what git does not have: our compiled module if it has the same source, or its own."""
    source = Path("server/imaging/jpeg/entropy.py")
    compiled = list((ROOT / source).parent.glob("entropy.*.so"))
    if compiled and (root / source).read_bytes() == (ROOT / source).read_bytes():
        for file in compiled:
            shutil.copy(file, (root / source).parent)
        return
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    subprocess.run(command, cwd=root, capture_output=True, check=True)


def findings(rounds: Sequence[Round]) -> list[Finding]:
    """Compare what was seen with the promises; only whether there was an attack is no figure."""
    quiet, attacked = [each.without for each in rounds], [each.attacked for each in rounds]
    deeds = [each.deeds for each in rounds]
    takes_place = all(each.takes_place for each in deeds)
    figures = _figures(rounds) if takes_place else [(_ABSENT, False)] * len(_PROMISES)
    calm = sum((each.polite.outcomes for each in quiet), Counter())
    hit = sum((each.polite.outcomes for each in attacked), Counter())
    return [
        Finding("the attack takes place", _told(deeds), takes_place),
        Finding("without it every polite request is answered 200", listed(calm), calm.keys() == {str(OK)}),
        *(
            Finding(promise, seen, is_kept, is_figure=True)
            for promise, (seen, is_kept) in zip(_PROMISES, figures, strict=True)
        ),
        Finding("how the polite are answered with it", listed(hit), is_kept=bool(hit)),
    ]


_ABSENT = "no attack"

_PROMISES = (
    "of the polite requests, under 1 % are refused or fail",
    "their p95 is at most 1.5 times that without the attack",
    "health p99 is under 25 ms",
    "longest Retry-After for a polite client",
    "memory stays below the documented ceiling",
)


def _figures(rounds: Sequence[Round]) -> list[tuple[str, bool]]:
    """Return each figure as text, and whether it keeps its promise, in the order of the promises."""
    refused = [each.attacked.refused for each in rounds]
    ratios = [each.ratio for each in rounds]
    health_ms = [each.attacked.health_ms for each in rounds]
    waits_s = [each.attacked.polite.retry_after_s for each in rounds]
    peaks_mb = [max(each.attacked.memory_mb) for each in rounds]
    outcomes = sum((each.attacked.polite.outcomes for each in rounds), Counter[str]())
    of_all = 1 - outcomes[str(OK)] / outcomes.total() if outcomes else 1.0
    return [
        (_spread(refused, lambda share: f"{100 * share:.1f} %"), of_all < _MOST_REFUSED),
        (_spread(ratios, lambda ratio: f"{ratio:.2f}"), median(ratios) <= _MOST_RATIO),
        (_spread(health_ms, lambda took_ms: f"{took_ms:.0f} ms"), median(health_ms) < _MOST_HEALTH_MS),
        (f"{max(waits_s)} s", True),
        (_spread(peaks_mb, lambda peak_mb: f"{peak_mb:.0f} MB"), max(peaks_mb) <= ceiling_mb()),
    ]


def _spread(values: Sequence[float], written: Callable[[float], str]) -> str:
    middle = written(median(values))
    return f"{middle} ({written(min(values))} to {written(max(values))})" if len(values) > 1 else middle


def _told(deeds: Sequence[Deeds]) -> str:
    if failures := [each.failure for each in deeds if each.failure]:
        return failures[0].strip().rpartition("\n")[2]
    answers = sum((each.answers for each in deeds), Counter[str]())
    spent_s, late_s = sum(each.cpu_s for each in deeds), max(each.late_s for each in deeds)
    requests = f"{answers.total()} requests, {sum(each.planned for each in deeds)} were due"
    return f"{requests}: {listed(answers)}; took {spent_s:.2f} s of CPU, late by {late_s:.2f} s at most"


def ceiling_mb() -> float:
    """Return what docs/settings.md says that the memory of the whole service without jobs stays below."""
    settings = Settings.from_environ({})
    each_mb = 2 * settings.engine_memory_bytes / 1e6 + _WORKER_MB
    held_bytes = settings.max_bytes_in_flight or bytes_in_flight(worker_count())
    return held_bytes / 1e6 + worker_count() * each_mb


def table(seen: Mapping[str, Mapping[str, Sequence[Round]]]) -> Table:
    """Make the one table of all attacks.

    Args:
        seen: for each attack the rounds of each revision.
    """
    revisions = list(next(iter(seen.values())))
    columns = [
        f"{title}, {each}" if len(revisions) > 1 else title for title in _COLUMNS for each in revisions
    ]
    rows = (
        (name, *(_cell(title, rounds) for title in _COLUMNS for rounds in by_revision.values()))
        for name, by_revision in seen.items()
    )
    promised = f"Promised: under 1 %, at most 1.5, under 25 ms, at most {ceiling_mb():.0f} MB."
    note = f"{promised} What is not kept is marked with an exclamation mark."
    return Table("Attacks", ("attack", *columns), tuple(rows), note)


_ATTACKERS = "attackers"
_COLUMNS = (
    "refused or failed",
    "p95 with / without",
    "health p99",
    "longest Retry-After",
    "peak memory",
    _ATTACKERS,
)


def _cell(title: str, rounds: Sequence[Round]) -> str:
    if title == _ATTACKERS:
        return _told([each.deeds for each in rounds])
    if not all(each.deeds.takes_place for each in rounds):
        return f"{_ABSENT} !"
    seen, is_kept = _figures(rounds)[_COLUMNS.index(title)]
    return seen if is_kept else f"{seen} !"


def main() -> None:
    """Run the attacks that were asked for; the exit code is 1 when a promise was not kept."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(ATTACKS))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--seconds", type=float, default=12, help="of each run")
    options.add_argument("--addresses", type=int, default=1, help="that an attack comes from, at most 100")
    options.add_argument("--before", metavar="REVISION", help="an earlier one to compare with")
    given = options.parse_args()
    if unknown := set(given.only or ()) - ATTACKS.keys():
        options.error(f"there is no attack {', '.join(unknown)}")
    seen: dict[str, dict[str, list[Round]]] = {}
    verdicts = []
    with ExitStack() as stack:
        roots = {"before": stack.enter_context(revision(given.before))} if given.before else {}
        roots["after"] = ROOT
        for name in given.only or ATTACKS:
            started_s = time.monotonic()
            seen[name] = {which: [] for which in roots}
            for number in range(given.rounds):
                # Each comes first in turn, because a machine's speed drifts.
                for which in list(roots)[:: -1 if number % 2 else 1]:
                    done = play(roots[which], name, given.seconds, addresses=given.addresses)
                    seen[name][which].append(done)
            for which, rounds in seen[name].items():
                found = findings(rounds)
                title = f"{name}, {which}" if given.before else name
                print_table(title, found, time.monotonic() - started_s)
                verdicts += [finding.is_kept for finding in found if which == "after"]
    print("\n" + "\n".join(markdown_table(table(seen), "##")))
    sys.exit(not all(verdicts))


if __name__ == "__main__":
    main()
