"""What a report says: the verdict, its tables and its caveats, as plain text in cells.

Markdown and HTML only differ in how they draw them.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.comparison.recordings import (
    AS_SHIPPED,
    BURST,
    CLUSTER,
    FAILED,
    OK,
    REFUSED,
    SINGLE,
    WRONG,
    SentImage,
)
from benchmarks.comparison.scaling import FEWEST_POINTS
from benchmarks.comparison.summary import BurstGain, Cell, Gain, Scaling, Spread, Summary
from benchmarks.harness.tables import Table

NO_DATA = "no data"
_FEW_REPETITIONS = 5
_P99_NEEDS = 100
_RATE_NEEDS = 30
_MUCH_OF_WINDOW = 0.5
_LISTED = 6
_SIZES_DIFFER = 0.10
_MUCH_REFUSED = 0.01

#: A process that uses so many cores has threads that compute.
_MORE_THAN_ONE = 1.3

#: From here on a core has no room for more.
_FULL = 0.85

#: A single process and what drives it keep so many cores busy where driving costs much.
_MUCH_BUSY = 1.2

#: The article's seconds to the first and the last of ten answers, of one process and of the cluster: Koa and
#: Jimp, a photo of 6.7 MB.
_ARTICLE_S = (16.0, 40.0), (10.0, 14.0)
_ARTICLE_WORKERS = 8
_ARTICLE_PEERS = "koa-jimp", "koa-jimp-cluster"


@dataclass(frozen=True, slots=True)
class Section:
    """All tables of one image."""

    image: str
    title: str
    tables: tuple[Table, ...]


def verdict(summary: Summary) -> str:
    """Return the result for the terminal: one line, two with several images, one more for what went wrong."""
    return "\n".join([*alarms(summary), *_results(summary)])


def alarms(summary: Summary) -> list[str]:
    """Return what must not be overlooked."""
    said = []
    if wrong := summary.totals[WRONG]:
        by = ", ".join(f"{_title(summary, key)} {number}" for key, number in summary.wrong_by.items())
        said.append(
            f"WRONG ANSWERS: {wrong:,} of {sum(summary.totals.values()):,} answers were 200 and not the"
            f" flipped image ({by}). Believe no figure of this run."
        )
    said += [f"FAILED: {failed}" for failed in _failed(summary, of_peers=False)]
    if summary.run.interrupted:
        said.append("INTERRUPTED: the run ended early, and this is what it has.")
    return said


def _failed(summary: Summary, *, of_peers: bool) -> Iterator[str]:
    """Yield whose requests failed, and why."""
    for key, faults in summary.faults.items():
        topology = summary.run.topologies.get(key)
        if of_peers == bool(topology and topology.is_peer):
            most = sorted(faults.items(), key=lambda pair: -pair[1])[:_LISTED]
            reasons = "; ".join(f"{fault} ({number:,})" for fault, number in most)
            yield f"{_title(summary, key)}: requests failed: {reasons}."


def have_ours_failed(summary: Summary) -> bool:
    """Return whether a request to ours failed, or any answer was wrong."""
    return bool(summary.totals[WRONG]) or any(_failed(summary, of_peers=False))


def _results(summary: Summary) -> list[str]:
    headlines = [(image, headline_gain(summary, key)) for key, image in summary.run.images.items()]
    # The image with the most pixels has the most to compute, and the least to carry.
    ranked = sorted(headlines, key=lambda pair: -pair[0].width * pair[0].height)
    found = [(image, gain) for image, gain in ranked if gain and gain.times]
    if not found:
        return ["No verdict: no repetition has measured both the single process and the cluster."]
    (image, gain), *others = found
    said = [f"The cluster is {_as_fast(gain, summary)} ({image.title}, {_users(gain.scenario)})."]
    if others:
        said.append(
            "; ".join(f"{each.title}, {_users(g.scenario)}: {_briefly(g)}" for each, g in others) + "."
        )
    return [*said, *_over_peers(summary)]


def _over_peers(summary: Summary) -> Iterator[str]:
    """Yield a line for each image: how many times as fast as other clusters ours is."""
    for key, image in summary.run.images.items():
        wanted = (key, summary.headline[key], "matched")
        ratios = [
            ratio
            for ratio in summary.peers
            if (ratio.image, ratio.scenario, ratio.quality) == wanted and ratio.ours != SINGLE
        ]
        for ours in dict.fromkeys(ratio.ours for ratio in ratios):
            over = (f"{_title(summary, r.peer)} {times(r.times)}" for r in ratios if r.ours == ours)
            name = f"{_title(summary, ours)} ({image.title}, {_users(summary.headline[key])})"
            yield f"Answers per second of the {name} over those of {'; '.join(over)}."


def headline_gain(summary: Summary, image: str) -> Gain | None:
    """Return the gain that the verdict reports."""
    wanted = (image, summary.headline[image])
    return next((gain for gain in summary.gains if (gain.image, gain.scenario) == wanted), None)


def _as_fast(gain: Gain, summary: Summary) -> str:
    assert gain.times
    cores = summary.run.cores
    bound = f"{cores} core{'s' * (cores != 1)}" if gain.ideal == cores else f"{_users(gain.scenario)}"
    return (
        f"{times(gain.times)} times as fast as the {_title(summary, SINGLE)},"
        f" {share(gain.efficiency)} of the ideal on {bound}"
    )


def _briefly(gain: Gain) -> str:
    return f"{times(gain.times)} times, {share(gain.efficiency)} of the ideal"


def overview(summary: Summary) -> Table:
    """Return the table for a reader in a hurry, with a row for each image."""
    rows = []
    for key, image in summary.run.images.items():
        gain = headline_gain(summary, key)
        burst = _our_burst(summary, key)
        rows.append(
            (
                image.title,
                _users(summary.headline[key]),
                times(gain.times if gain else None),
                share(gain.efficiency if gain else None),
                times(burst.last if burst else None),
            )
        )
    return Table(
        f"How many times faster {summary.run.cores} cores are",
        (
            "image",
            "load",
            "throughput, cluster over single",
            "of the ideal",
            "last of a burst of ten, sooner by",
        ),
        tuple(rows),
        "Each ratio is taken within a repetition; the median comes first, least and most in parentheses.",
    )


def _our_burst(summary: Summary, image: str) -> BurstGain | None:
    wanted = (image, SINGLE, CLUSTER)
    return next((b for b in summary.bursts if (b.image, b.single, b.cluster) == wanted), None)


def about(summary: Summary) -> Table:
    """Return where, when and with what it was measured."""
    run = summary.run
    machine = ", ".join(f"{name} {value}" for name, value in run.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    images = "; ".join(map(_described, run.images.values()))
    totals = ", ".join(f"{number:,} {outcome}" for outcome, number in summary.totals.items())
    ended = ", interrupted" if run.interrupted else ""
    rows = [
        ("profile", f"{run.profile}, {run.duration_s:.0f} s{ended}"),
        ("started", run.started),
        ("commit", run.commit),
        ("machine", machine),
        ("cores used", str(run.cores)),
        ("versions", versions),
        ("images", images),
        ("all requests", totals),
        *((f"skipped: {skipped.topology}", skipped.why) for skipped in run.skipped),
    ]
    return Table("The run", ("", ""), tuple(rows))


def sections(summary: Summary) -> list[Section]:
    """Return the tables of each image, ratios before absolute figures."""
    return [
        Section(key, image.title, tuple(table for table in _tables(summary, key) if table.rows))
        for key, image in summary.run.images.items()
    ]


def _tables(summary: Summary, image: str) -> Iterator[Table]:
    yield _gains(summary, image)
    if summary.run.profile == "article":
        yield _article(summary, image)
    yield _peer_ratios(summary, image)
    yield _side_by_side(summary, image)
    yield _scaling(summary, image)
    yield _throughput(summary, image)
    yield _burst(summary, image)
    yield _cost(summary, image)
    yield _health(summary, image)
    yield _answers(summary, image)


def _gains(summary: Summary, image: str) -> Table:
    def rate(topology: str, scenario: str) -> str:
        cell = summary.cell(image, topology, scenario)
        return each_s(cell.requests_per_s if cell else None)

    return Table(
        "Speed-up",
        ("users at once", "cluster over single", "ideal", "efficiency", "single, per s", "cluster, per s"),
        tuple(
            (
                f"{int(gain.scenario):,}",
                times(gain.times),
                str(gain.ideal),
                share(gain.efficiency),
                rate(SINGLE, gain.scenario),
                rate(CLUSTER, gain.scenario),
            )
            for gain in summary.gains
            if gain.image == image
        ),
        "Right answers per second; the ideal is the number of cores, or of users where they are fewer.",
    )


def _article(summary: Summary, image: str) -> Table:
    # Kept in this order: the article, its design on this machine, ours.
    pairs = [("the article's design, on our machine", *_ARTICLE_PEERS), ("ours", SINGLE, CLUSTER)]
    rows = [
        (
            name,
            str(summary.run.topologies[many].workers),
            *(duration(when) for cell in (single, cluster) for when in (cell.first_ms, cell.last_ms)),
            *(times(by) for by in (burst.first, burst.last)),
        )
        for name, one, many in pairs
        for burst in summary.bursts
        for single, cluster in [[summary.cell(image, key, BURST) for key in (one, many)]]
        if (burst.image, burst.single, burst.cluster) == (image, one, many) and single and cluster
    ]
    if shipped := summary.cell(image, AS_SHIPPED, BURST):  # one process of it is not measured
        workers = str(summary.run.topologies[AS_SHIPPED].workers)
        ended = duration(shipped.first_ms), duration(shipped.last_ms)
        rows.append(("ours, as shipped", workers, "-", "-", *ended, "-", "-"))
    (alone_first_s, alone_last_s), (first_s, last_s) = _ARTICLE_S
    article = (
        "the article",
        str(_ARTICLE_WORKERS),
        *(f"{seconds:.0f} s" for seconds in (alone_first_s, alone_last_s, first_s, last_s)),
        f"{alone_first_s / first_s:.2f}",
        f"{alone_last_s / last_s:.2f}",
    )
    return Table(
        "The article's experiment: ten requests at once",
        (
            "",
            "workers of the cluster",
            "single process: first answer",
            "single process: last answer",
            "cluster: first answer",
            "cluster: last answer",
            "speed-up of the first answer",
            "speed-up of the last answer",
        ),
        (article, *rows),
        "The article used Koa and Jimp, a photo of 6.7 MB and another machine:"
        " compare the ratios, not the seconds.",
    )


def _peer_ratios(summary: Summary, image: str) -> Table:
    mine = [ratio for ratio in summary.peers if ratio.image == image]
    scenarios = list(dict.fromkeys(ratio.scenario for ratio in mine))
    found = {(ratio.peer, ratio.ours, ratio.scenario): ratio.times for ratio in mine}
    compared = {(ratio.peer, ratio.ours): ratio for ratio in mine}
    return Table(
        "Ours over each peer, requests per second",
        ("peer", "JPEG quality", "compared with our", *map(_users, scenarios)),
        tuple(
            (
                _title(summary, peer),
                _quality(ratio.quality),
                _title(summary, ratio.ours),
                *(times(found.get((peer, ours, scenario))) for scenario in scenarios),
            )
            for (peer, ours), ratio in compared.items()
        ),
        "Above 1, ours is faster. A peer of one process is compared with our single process."
        " Only rows at matched quality compare like with like."
        + (" As shipped, ours need not decode most JPEGs." if AS_SHIPPED in summary.run.topologies else ""),
    )


def _side_by_side(summary: Summary, image: str) -> Table:
    scenario = summary.headline[image]
    cells = [cell for cell in summary.cells if (cell.image, cell.scenario) == (image, scenario)]
    checked = {answer.topology: answer for answer in summary.answers if answer.image == image}
    peers = [cell for cell in cells if summary.run.topologies[cell.topology].is_peer]
    ours = [cell for cell in cells if cell.topology in {SINGLE, CLUSTER, AS_SHIPPED}]

    def row(cell: Cell) -> tuple[str, ...]:
        topology = summary.run.topologies[cell.topology]
        answer = checked.get(cell.topology)
        return (
            topology.title,
            str(topology.workers),
            _quality(topology.quality) if topology.is_peer else "ours",
            each_s(cell.requests_per_s),
            milliseconds(cell.p50_ms),
            milliseconds(cell.p99_ms),
            _outcomes(cell),
            milliseconds(cell.cpu_ms),
            megabytes(cell.peak_memory_mb),
            share(answer.over_sent if answer else None),
            decibels(answer.psnr_db if answer else None),
        )

    return Table(
        f"Side by side, {_users(scenario)}",
        (
            "topology",
            "workers",
            "JPEG quality",
            "answers per s",
            "p50",
            "p99",
            "not ok",
            "CPU each",
            "peak memory",
            "bytes over sent",
            "PSNR",
        ),
        tuple(map(row, [*ours, *peers])) if peers else (),
    )


def _scaling(summary: Summary, image: str) -> Table:
    scaling = next(scaling for scaling in summary.scaling if scaling.image == image)
    return Table(
        f"Throughput over workers, {_users(scaling.scenario)}",
        ("workers", "over one worker", "efficiency", "answers per s", "the law says"),
        tuple(
            (
                str(point.workers),
                times(point.times),
                share(point.times.median / point.workers if point.times else None),
                each_s(point.requests_per_s),
                number(scaling.law.throughput(point.workers)) if scaling.law else "-",
            )
            for point in scaling.points
        ),
        law_in_words(scaling),
    )


def law_in_words(scaling: Scaling) -> str:
    """Describe the fit of the Universal Scalability Law, or why there is none."""
    if scaling.law is None:
        number = len(scaling.points)
        points = "1 measured point predicts" if number == 1 else f"{number} measured points predict"
        return f"{points} nothing: a fit to the Universal Scalability Law takes at least {FEWEST_POINTS}."
    law, most = scaling.law, max(point.workers for point in scaling.points)
    if scaling.knee and scaling.knee <= most:
        end = f"Its knee is at {scaling.knee:.0f} workers, within what was measured."
    else:
        knee = f"a knee at {scaling.knee:.0f} workers" if scaling.knee else "no knee"
        end = f"It predicts {knee}; that is a prediction, nothing that was measured."
    return (
        f"Universal Scalability Law: contention {law.contention:.4f}, coherency {law.coherency:.5f},"
        f" {share(law.error)} off the points. {end}"
    )


def _throughput(summary: Summary, image: str) -> Table:
    return Table(
        "Throughput and response times",
        ("load", "answers per s", "p50", "p95", "p99", "ok", "refused", "failed", "wrong"),
        tuple(
            (
                _row_name(summary, cell),
                each_s(cell.requests_per_s),
                *map(milliseconds, (cell.p50_ms, cell.p95_ms, cell.p99_ms)),
                *(_count(cell, number) for number in (cell.ok, cell.refused, cell.failed, cell.wrong)),
            )
            for cell in summary.cells
            if cell.image == image and cell.scenario != BURST
        ),
        "Response times are of the right answers of all repetitions."
        " Refused is a 503 with Retry-After; wrong is a 200 that is not the flipped image.",
    )


def _burst(summary: Summary, image: str) -> Table:
    gain = _our_burst(summary, image)
    rows = [
        (
            _title(summary, cell.topology),
            duration(cell.first_ms),
            duration(cell.last_ms),
            *(_count(cell, number) for number in (cell.ok, cell.refused, cell.failed, cell.wrong)),
        )
        for cell in summary.cells
        if (cell.image, cell.scenario) == (image, BURST)
    ]
    if gain:
        rows.append(("cluster sooner by (times)", times(gain.first), times(gain.last), "", "", "", ""))
    return Table(
        "A burst of ten requests",
        ("topology", "first answer", "last answer", "ok", "refused", "failed", "wrong"),
        tuple(rows),
        "From the first request to the first and to the last right answer; counts are of all repetitions.",
    )


def _cost(summary: Summary, image: str) -> Table:
    return Table(
        "Memory and CPU",
        ("load", "peak memory", "cores used", "CPU each answer", "locust's share of all cores"),
        tuple(
            (
                _row_name(summary, cell),
                megabytes(cell.peak_memory_mb),
                each_s(cell.cores_used),
                "-" if cell.scenario == BURST else milliseconds(cell.cpu_ms),
                share(cell.generator_share),
            )
            for cell in summary.cells
            if cell.image == image
        ),
        "Of the whole tree of the server's processes; each page of memory is counted once.",
    )


def _health(summary: Summary, image: str) -> Table:
    return Table(
        "Health check under load",
        ("load", "p50", "p99", "slowest", "asked", "not 200"),
        tuple(
            (
                _row_name(summary, cell),
                *map(milliseconds, (health.p50_ms, health.p99_ms, health.max_ms)),
                f"{health.asked:,}",
                f"{health.unwell:,}",
            )
            for cell in summary.cells
            if cell.image == image and (health := cell.health)
        ),
    )


def _answers(summary: Summary, image: str) -> Table:
    return Table(
        "What came back",
        ("topology", "JPEG quality", "bytes", "over what was sent", "PSNR"),
        tuple(
            (
                _title(summary, answer.topology),
                _quality(topology.quality) if topology.is_peer else "ours",
                f"{answer.answer_bytes:,}",
                share(answer.over_sent),
                decibels(answer.psnr_db),
            )
            for answer in summary.answers
            if answer.image == image
            for topology in [summary.run.topologies[answer.topology]]
        ),
        "One checked answer each, compared with a flip of the decoded original.",
    )


def caveats(summary: Summary) -> list[str]:
    """Return reasons to doubt the figures, as far as the data shows them."""
    rules: Sequence[Callable[[Summary], Iterable[str]]] = (
        alarms,
        _about_cores,
        _about_generator,
        _about_room,
        _about_repetitions,
        _about_more_than_ideal,
        _about_refusals,
        _about_tails,
        _about_peers,
        _about_missing,
        _about_kinds,
        _about_law,
    )
    return [caveat for rule in rules for caveat in rule(summary)]


def _about_cores(summary: Summary) -> Iterator[str]:
    cores = summary.run.cores
    yield (
        f"Absolute times and rates are those of this machine with {cores} core{'s' * (cores != 1)};"
        " ratios carry over better. What more cores give was not measured."
    )
    if (physical := int(summary.run.machine.get("physical_cores", cores))) < cores:
        yield (
            f"These {cores} cores are threads of {physical} (SMT). Two threads of one core do less than two"
            " cores, so the ideal is out of reach."
        )
    yield "Server and load generator talk over the loopback interface: there is no network in these figures."
    if cores > 1 and any(cell.topology == SINGLE and cell.repetitions for cell in summary.cells):
        yield (
            "The single process, which is a worker and its engine, had one core, and the ideal is the number"
            " of cores. Left to itself its worker receives and sends on another one, so that it gives some"
            " hundredths more, and with small images half as much again; `make ratios` compares with that."
        )


def _about_generator(summary: Summary) -> Iterator[str]:
    shares = [(c.generator_share, c) for c in summary.cells if c.generator_share is not None]
    if not shares:
        yield "What the load generator took of the same cores is not known."
        return
    (least, _), (most, cell) = (pick(shares, key=lambda pair: pair[0]) for pick in (min, max))
    cores = summary.run.cores
    understated = (
        " The single process leaves it a core, the cluster does not, so the speed-up is rather understated."
    )
    yield (
        f"The load generator ran on the same cores and took {_from_to(share(least), share(most))} of them,"
        f" the most with {_named(summary, cell)}.{understated * (cores > 1)}"
    )
    if full := [c for generated, c in shares if generated * cores > _FULL]:
        yield (
            "The load generator is one process, and its core was full, so the service may be able to do more:"
            f" {_listed(summary, full)}."
        )


def _about_room(summary: Summary) -> Iterator[str]:
    for key, image in summary.run.images.items():
        cell = summary.cell(key, SINGLE, summary.headline[key])
        if cell and cell.cores_used and cell.generator_share is not None:
            cores = summary.run.cores
            busy = cell.cores_used.median + cell.generator_share * cores
            if cores > 1 and busy > _MUCH_BUSY:
                yield (
                    f"{image.title}: the single process and locust together keep {busy:.1f} cores busy, so"
                    f" that {cores} cores have room for {cores / busy:.1f} times as much at most."
                )


def _about_repetitions(summary: Summary) -> Iterator[str]:
    counts = [cell.repetitions for cell in summary.cells if cell.repetitions]
    least, most = min(counts, default=0), max(counts, default=0)
    few = "That is few: t" if least < _FEW_REPETITIONS else "T"
    yield (
        f"Repetitions of each figure: {_from_to(str(least), str(most))}."
        f" {few}he range is least to most, and no confidence interval."
    )


def _about_more_than_ideal(summary: Summary) -> Iterator[str]:
    for gain in summary.gains:
        if gain.efficiency is not None and gain.efficiency > 1:
            yield (
                f"{summary.run.images[gain.image].title}, {_users(gain.scenario)}: more than the ideal is"
                " mostly chance, a machine that was slower when it was the single process's turn; a little of"
                " it may be what worker and engine lose when they take turns on one core."
            )


def _about_refusals(summary: Summary) -> Iterator[str]:
    for cell in summary.cells:
        asked = cell.ok + cell.refused + cell.failed + cell.wrong
        if cell.refused > _MUCH_REFUSED * asked:
            yield (
                f"Of the answers to {_named(summary, cell)}, {share(cell.refused / asked)} were refusals"
                " (503 with Retry-After). They are quick, and are in no rate and no response time."
            )


def _about_tails(summary: Summary) -> Iterator[str]:
    short = [c for c in summary.cells if 0 < c.ok < _P99_NEEDS and c.scenario != BURST]
    if short:
        yield f"With fewer than {_P99_NEEDS} answers p99 is the slowest of them: {_listed(summary, short)}."
    if few := [c for c in short if c.ok < _RATE_NEEDS]:
        yield (
            f"With fewer than {_RATE_NEEDS} answers a rate is coarse, and so is a ratio to it, whatever its"
            f" spread says; the burst says more: {_listed(summary, few)}."
        )
    if cut := [c for c in summary.cells if is_cut(c)]:
        yield (
            "Answers that would have taken longer than the window are not in it, so these response times are"
            f" at least so long: {_listed(summary, cut)}."
        )


def is_cut(cell: Cell) -> bool:
    """Return whether its window was too short for its slow answers."""
    if cell.scenario == BURST or cell.p95_ms is None or cell.window_s is None:
        return False
    return cell.p95_ms > _MUCH_OF_WINDOW * cell.window_s * 1e3


def _about_peers(summary: Summary) -> Iterator[str]:
    if any(topology.is_peer for topology in summary.run.topologies.values()):
        yield "The peers are our own small programs, as their users would write them, and not tuned."
    yield from _failed(summary, of_peers=True)
    for cell in summary.cells:
        topology = summary.run.topologies[cell.topology]
        is_headline = cell.scenario == summary.headline[cell.image]
        is_alone = topology.is_peer and topology.workers == 1 and topology.quality == "matched"
        used = cell.cores_used.median if cell.cores_used else 0.0
        if is_alone and is_headline and used > _MORE_THAN_ONE:
            yield f"{topology.title} is one process with threads: it used {used:.1f} cores, unlike ours."
    bytes_of = {(answer.image, answer.topology): answer.answer_bytes for answer in summary.answers}
    for answer in summary.answers:
        topology = summary.run.topologies[answer.topology]
        ours = bytes_of.get((answer.image, CLUSTER))
        if topology.is_peer and topology.quality == "matched" and ours:
            over = answer.answer_bytes / ours
            image = summary.run.images[answer.image].title
            if abs(over - 1) > _SIZES_DIFFER:
                yield (
                    f"{topology.title} answers {image} with {share(over)} of our bytes although its"
                    " quality is matched: the same number is not the same quality to every encoder."
                )


def _about_missing(summary: Summary) -> Iterator[str]:
    if summary.run.interrupted:
        yield "The run ended early: what it had not come to is in no table, or has no data."
    missing = [cell for cell in summary.cells if not cell.repetitions]
    if missing:
        yield f"Not measured: {_listed(summary, missing)}."
    for skipped in summary.run.skipped:
        yield f"{skipped.topology} was skipped: {skipped.why}."
    if summary.unreadable:
        yield f"Rows of the raw data that could not be read and were left out: {summary.unreadable:,}."


def _about_kinds(summary: Summary) -> Iterator[str]:
    if len(summary.kinds) > 1:
        counts = ", ".join(f"{number:,} {kind}" for kind, number in summary.kinds.items())
        yield f"Requests of several kinds are counted together: {counts}."


def _about_law(summary: Summary) -> Iterator[str]:
    if any(len(scaling.points) > 2 for scaling in summary.scaling):  # noqa: PLR2004 one, and all
        yield ("Numbers of workers between one and all were measured after those two, each on as many cores.")
    for scaling in summary.scaling:
        if scaling.points:
            yield f"{summary.run.images[scaling.image].title}: {law_in_words(scaling)}"


def number(value: float | None) -> str:
    """Write three digits, or all before the point."""
    if value is None:
        return NO_DATA
    if abs(value) >= 99.95:  # noqa: PLR2004 shown as 100
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"  # noqa: PLR2004 shown as 10.0


def times(value: Spread | None) -> str:
    """Write a ratio with its range."""
    return _ranged(value, number)


def each_s(value: Spread | None) -> str:
    """Write a rate with its range."""
    return _ranged(value, number)


def milliseconds(value: float | None) -> str:
    """Write a time in milliseconds, or in seconds if it is long."""
    if value is None:
        return NO_DATA
    return f"{number(value)} ms" if value < 1e4 else f"{number(value / 1e3)} s"  # noqa: PLR2004


def duration(value: Spread | None) -> str:
    """Write a time with its range, in seconds or milliseconds."""
    if value is None:
        return NO_DATA
    unit, factor = ("s", 1e-3) if value.median >= 1e3 else ("ms", 1.0)  # noqa: PLR2004
    median, _, spread = _ranged(value, lambda each: number(each * factor)).partition(" ")
    return f"{median} {unit} {spread}"


def share(value: float | None) -> str:
    """Write a part of a whole in percent."""
    if value is None:
        return NO_DATA
    return f"{value * 100:.0f} %" if value >= 0.1 else f"{value * 100:.1f} %"  # noqa: PLR2004


def megabytes(value: float | None) -> str:
    """Write memory."""
    return NO_DATA if value is None else f"{value:,.0f} MB"


def decibels(value: float | None) -> str:
    """Write a peak signal-to-noise ratio; infinite is no loss."""
    if value is None:
        return NO_DATA
    return "no loss" if math.isinf(value) else f"{value:.1f} dB"


def _ranged(value: Spread | None, write: Callable[[float], str]) -> str:
    if value is None:
        return NO_DATA
    if value.repetitions == 1:
        return f"{write(value.median)} (once)"
    return f"{write(value.median)} ({write(value.least)} to {write(value.most)})"


def _title(summary: Summary, topology: str) -> str:
    found = summary.run.topologies.get(topology)
    if not found:
        return topology
    is_unmarked = found.quality == "default" and "default" not in found.title.lower()
    return f"{found.title}, its DEFAULT quality" if is_unmarked else found.title


def _quality(quality: str) -> str:
    return "matched" if quality == "matched" else "DEFAULT"


def _users(scenario: str) -> str:
    return (
        "a burst of ten" if scenario == BURST else "1 user" if scenario == "1" else f"{int(scenario):,} users"
    )


def _row_name(summary: Summary, cell: Cell) -> str:
    return f"{_title(summary, cell.topology)}, {_users(cell.scenario)}"


def _named(summary: Summary, cell: Cell) -> str:
    return f"{summary.run.images[cell.image].title}, {_row_name(summary, cell)}"


def _listed(summary: Summary, cells: Sequence[Cell]) -> str:
    names = [_named(summary, cell) for cell in cells[:_LISTED]]
    more = len(cells) - len(names)
    return "; ".join(names) + (f"; and {more} more" if more else "")


def _from_to(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}"


def _count(cell: Cell, number: int) -> str:
    return f"{number:,}" if cell.repetitions else NO_DATA


def _outcomes(cell: Cell) -> str:
    if not cell.repetitions:
        return NO_DATA
    counts = {REFUSED: cell.refused, FAILED: cell.failed, WRONG: cell.wrong}
    said = ", ".join(f"{number:,} {outcome}" for outcome, number in counts.items() if number)
    return said or ("none" if cell.ok else f"nothing {OK}")


def _described(image: SentImage) -> str:
    return (
        f"{image.title} ({image.width}x{image.height} {image.format}, {image.bytes / 1e6:.2g} MB,"
        f" quality {image.quality})"
    )
