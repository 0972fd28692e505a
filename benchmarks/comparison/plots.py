"""The plots of a report, as PNG: drawn with Agg, without any state that outlives a call."""

import io
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from benchmarks.comparison.recordings import AS_SHIPPED, BURST, CLUSTER, SINGLE, Raw
from benchmarks.comparison.scaling import FEWEST_POINTS
from benchmarks.comparison.summary import Cell, PeerRatio, Scaling, Spread, Summary, right_ms
from benchmarks.comparison.tables import is_cut
from benchmarks.comparison.tables import number as written
from benchmarks.harness.ranks import percentile

#: What each plot shows, in the order of the report.
TITLES: Mapping[str, str] = {
    "throughput": "Throughput over users",
    "peers": "Ours over each peer",
    "scaling": "Throughput over workers",
    "response": "Response time over users",
    "latency": "Distribution of response times",
    "memory": "Peak memory",
}

# Okabe and Ito's colours, which people with any colour vision tell apart.
_BLUE, _ORANGE, _GREEN, _GREY, _INK = "#0072B2", "#D55E00", "#009E73", "#767676", "#222222"
_COLOURS = {SINGLE: _ORANGE, CLUSTER: _BLUE}
_MARKERS = {SINGLE: "s", CLUSTER: "o"}
_DPI = 144
_WIDTH = 0.38
_STEPS_OF_CURVE = 200
_LABEL_WIDTH = 0.1
_FARTHEST = 4


def draw(raw: Raw, summary: Summary) -> dict[str, bytes]:
    """Draw what there is data for: PNG by kind and image, such as "throughput-2mp"."""
    plots = {}
    for key in summary.run.images:
        for kind, figure in _figures(raw, summary, key):
            plots[f"{kind}-{key}"] = _png(figure)
    return plots


def _figures(raw: Raw, summary: Summary, image: str) -> Iterator[tuple[str, Figure]]:
    ours = {
        key: [c for c in summary.cells if (c.image, c.topology) == (image, key) and c.repetitions]
        for key in (SINGLE, CLUSTER)
    }
    if any(cell.requests_per_s for cells in ours.values() for cell in cells):
        yield "throughput", _throughput(summary, image, ours)
    scenario = summary.headline[image]
    wanted = (image, scenario, "matched")
    ratios = [r for r in summary.peers if (r.image, r.scenario, r.quality) == wanted and r.times]
    if ratios:
        yield "peers", _peers(summary, image, ratios)
    scaling = next(scaling for scaling in summary.scaling if scaling.image == image)
    if any(point.times for point in scaling.points):
        yield "scaling", _scaling(summary, scaling)
    if any(cell.p50_ms and cell.scenario != BURST for cells in ours.values() for cell in cells):
        yield "response", _response(summary, image, ours)
    taken_ms = {key: right_ms(raw, image, key, scenario) for key in (SINGLE, CLUSTER)}
    if any(taken_ms.values()):
        yield "latency", _latency(summary, image, taken_ms)
    if any(cell.peak_memory_mb for cells in ours.values() for cell in cells):
        yield "memory", _memory(summary, image, ours)


def _throughput(summary: Summary, image: str, ours: Mapping[str, Sequence[Cell]]) -> Figure:
    scenarios = _closed(ours)
    figure, axes = _axes(f"Throughput, {_titled(summary, image)}")
    for key, cells in ours.items():
        found = [
            (scenarios.index(c.scenario), c.requests_per_s)
            for c in cells
            if c.scenario in scenarios and c.requests_per_s
        ]
        spreads = [rates for _, rates in found]
        middles = _bars(axes, summary, key, [(place, each.median, each.most) for place, each in found])
        _whiskers(axes, middles, spreads)
    gains = {gain.scenario: gain.times for gain in summary.gains if gain.image == image}
    names = [f"{int(s):,}" + (f"\n{gain.median:.2f} times" if (gain := gains[s]) else "") for s in scenarios]
    axes.set_xticks(range(len(scenarios)), names)
    axes.set_xlabel("users at once, and the cluster over the single process")
    axes.set_ylabel("right answers per second")
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.06)
    _legend_above(axes)
    return figure


def _response(summary: Summary, image: str, ours: Mapping[str, Sequence[Cell]]) -> Figure:
    figure, axes = _axes(f"Response time of right answers, {_titled(summary, image)}")
    for key, cells in ours.items():
        closed = [c for c in cells if c.scenario != BURST and c.p50_ms is not None and c.p95_ms is not None]
        users = [int(cell.scenario) for cell in closed]
        p50_ms = [cell.p50_ms or 0.0 for cell in closed]
        p95_ms = [cell.p95_ms or 0.0 for cell in closed]
        name, colour = _name(summary, key), _COLOURS[key]
        axes.plot(users, p50_ms, color=colour, marker=_MARKERS[key], label=f"{name}, p50")
        axes.plot(
            users, p95_ms, color=colour, marker=_MARKERS[key], mfc="white", ls=":", label=f"{name}, p95"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.set_xticks([int(scenario) for scenario in _closed(ours)])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_locator(NullLocator())
    refused = any(cell.refused for cells in ours.values() for cell in cells if cell.scenario != BURST)
    cut = sorted(int(c.scenario) for cells in ours.values() for c in cells if is_cut(c))
    said = "users at once (log)" + ("; requests that were refused are not in here" if refused else "")
    said += f"\nfrom {cut[0]:,} on at least so long: slower answers would end after the window" if cut else ""
    axes.set_xlabel(said)
    axes.set_ylabel("milliseconds (log)")
    _legend_above(axes, columns=2)
    return figure


def _latency(summary: Summary, image: str, taken_ms: Mapping[str, Sequence[float]]) -> Figure:
    scenario = int(summary.headline[image])
    figure, axes = _axes(
        f"Response times at {scenario:,} user{'s' * (scenario > 1)}, {_titled(summary, image)}"
    )
    for place, (key, values) in enumerate(taken_ms.items()):
        if values:
            axes.ecdf(
                values, color=_COLOURS[key], lw=2, label=f"{_title(summary, key)} ({len(values):,} answers)"
            )
            middle = percentile(values, 50) or 0.0
            # One below the other, for the curves may lie close together.
            where = (9, -4 - 14 * place)
            said = f"median {_short(middle)} ms"
            label = axes.annotate(
                said, (middle, 0.5), where, textcoords="offset points", va="top", color=_COLOURS[key]
            )
            label.set_path_effects([withStroke(linewidth=4, foreground="white")])  # where it meets a curve
    for part in (0.5, 0.95):
        axes.axhline(part, color=_GREY, lw=0.7, ls=(0, (2, 3)), zorder=0)
    # Room on the right for the label of the slower line.
    axes.set_xlim(0, 1.12 * max(max(values) for values in taken_ms.values() if values))
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.0f} %"))
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95])
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("answers that were there by then")
    _legend_above(axes)
    return figure


def _memory(summary: Summary, image: str, ours: Mapping[str, Sequence[Cell]]) -> Figure:
    cells = [cell for each in ours.values() for cell in each if cell.peak_memory_mb is not None]
    scenarios = list(dict.fromkeys(cell.scenario for cell in cells))
    figure, axes = _axes(f"Peak memory of all processes, {_titled(summary, image)}")
    for key in ours:
        mine = [cell for cell in cells if cell.topology == key]
        heights = [(scenarios.index(cell.scenario), cell.peak_memory_mb or 0.0) for cell in mine]
        _bars(axes, summary, key, [(place, height, height) for place, height in heights])
    names = ["burst of 10" if s == BURST else f"{int(s):,}" for s in scenarios]
    axes.set_xticks(range(len(scenarios)), names)
    axes.set_xlabel("users at once")
    axes.set_ylabel("megabytes")
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.06)
    _legend_above(axes)
    return figure


def _scaling(summary: Summary, scaling: Scaling) -> Figure:
    figure, axes = _axes(f"Speed-up over workers, {_titled(summary, scaling.image)}")
    measured = [(point.workers, point.times) for point in scaling.points if point.times]
    workers = [number for number, _ in measured]
    speedups = [speedup for _, speedup in measured]
    most, end = max(workers), float(max(workers))
    if scaling.law:
        knee = scaling.knee or 0.0
        end = max(1.5 * most, 1.25 * knee) if knee <= _FARTHEST * most else 1.5 * most
        axes.axvspan(most, end, color="#f3f3f3", zorder=-1)
        axes.text(end, 0.02, "not measured ", transform=axes.get_xaxis_transform(), ha="right", color=_GREY)
        _law(axes, scaling, most, end)
        _knee(axes, scaling, end)
    ideal_end = end if not scaling.law else min(end, 1.3 * max(s.most for s in speedups) + 1)
    axes.plot([1, ideal_end], [1, ideal_end], color=_GREY, lw=1.2, ls=(0, (1, 1.5)), label="ideal")
    _whiskers(axes, workers, speedups)
    axes.plot(workers, [s.median for s in speedups], "o", color=_BLUE, ms=7, label="measured", zorder=4)
    for number, speedup in _apart(measured, end * _LABEL_WIDTH):
        where = (number, speedup.median)
        axes.annotate(f"{speedup.median:.2f}", where, (7, -13), textcoords="offset points", color=_BLUE)
    axes.set_xlim(0, end * 1.05 + 0.15)
    axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("workers")
    axes.set_ylabel("times the throughput of one worker")
    if scaling.law is None:
        points = f"{len(workers)} measured point{'s' * (len(workers) != 1)}"
        said = f"{points}: this predicts nothing\n(a fit takes at least {FEWEST_POINTS})"
        axes.text(0.97, 0.05, said, transform=axes.transAxes, ha="right", color=_GREY)
    _legend_above(axes, columns=4)
    return figure


def _apart(points: Sequence[tuple[int, Spread]], least: float) -> Iterator[tuple[int, Spread]]:
    """Return the points that have room for a label, the last before all others."""
    free_until = float("inf")
    for number, speedup in reversed(points):
        if free_until - number >= least:
            yield number, speedup
            free_until = number


def _law(axes: Axes, scaling: Scaling, most: int, end: float) -> None:
    law = scaling.law
    assert law
    first = scaling.points[0].requests_per_s.median
    for begin, until, style, name in (
        (1.0, most, "-", "fitted law (USL)"),
        (most, end, "--", "PREDICTION of the law"),
    ):
        n = np.linspace(begin, until, _STEPS_OF_CURVE)
        axes.plot(n, [law.throughput(each) / first for each in n], style, color=_GREEN, lw=1.8, label=name)


def _knee(axes: Axes, scaling: Scaling, end: float) -> None:
    assert scaling.law
    if scaling.knee is None or scaling.knee > end:
        said = f"predicted knee: {scaling.knee:.0f} workers" if scaling.knee else "no knee predicted"
        axes.text(end, 0.1, f"{said} ", transform=axes.get_xaxis_transform(), ha="right", color=_GREEN)
        return
    height = scaling.law.throughput(scaling.knee) / scaling.points[0].requests_per_s.median
    axes.plot([scaling.knee] * 2, [0, height], color=_GREEN, lw=1.2, ls="--")
    is_measured = scaling.knee <= scaling.points[-1].workers
    axes.annotate(
        f"{'knee of the law' if is_measured else 'predicted knee'}:\n{scaling.knee:.0f} workers",
        (scaling.knee, height / 3),
        (6, 0) if is_measured else (-6, 0),
        textcoords="offset points",
        ha="left" if is_measured else "right",
        va="center",
        color=_GREEN,
    )


def _peers(summary: Summary, image: str, ratios: Sequence[PeerRatio]) -> Figure:
    scenario = int(summary.headline[image])
    peers = list(dict.fromkeys(ratio.peer for ratio in reversed(ratios)))
    has_two = any(ratio.ours == AS_SHIPPED for ratio in ratios)
    figure, axes = _axes(
        f"Ours over each peer at matched quality, requests per second,\n{scenario:,} users,"
        f" {_titled(summary, image)}",
        height=1.6 + (0.56 if has_two else 0.42) * len(peers),
    )
    axes.set_xscale("log")
    for ratio in ratios:
        assert ratio.times
        is_shipped = ratio.ours == AS_SHIPPED
        is_paired = has_two and sum(other.peer == ratio.peer for other in ratios) > 1
        place = peers.index(ratio.peer) + (0.21 - 0.42 * is_shipped if is_paired else 0)
        colour = _GREEN if is_shipped else _BLUE
        axes.barh(
            place,
            ratio.times.median - 1,
            0.38 if is_paired else 0.66,
            left=1,
            color=colour,
        )
        axes.plot([ratio.times.least, ratio.times.most], [place] * 2, color=_INK, lw=1.2)
        axes.annotate(
            written(ratio.times.median),
            (max(ratio.times.most, 1), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            color=_INK,
        )
    axes.set_yticks(range(len(peers)), [_name_with_cores(summary, peer, ratios[0]) for peer in peers])
    axes.set_ylim(-0.6, len(peers) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color=_INK, lw=1)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color="#e3e3e3")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    nearest = min(ratio.times.least for ratio in ratios if ratio.times)
    farthest = max(ratio.times.most for ratio in ratios if ratio.times)
    axes.set_xlim(min(0.8, nearest * 0.9), max(2, farthest) * 2)
    axes.set_xlabel("times as many (log); above 1 ours is faster")
    if has_two:
        marks = [Patch(color=_BLUE, label="ours, decoding"), Patch(color=_GREEN, label="ours, as shipped")]
        axes.legend(
            handles=marks, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, frameon=False, fontsize=9
        )
    return figure


def _axes(title: str, height: float = 4.0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.8, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Above the whole figure, so that the legend has the line between.
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold", color=_INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GREY)
    axes.tick_params(colors=_INK)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", color="#e3e3e3")
    return figure, axes


def _legend_above(axes: Axes, columns: int = 2) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=columns, frameon=False, fontsize=9)


def _bars(axes: Axes, summary: Summary, key: str, bars: Sequence[tuple[int, float, float]]) -> list[float]:
    """Draw one of two bars at each place: place, height and label height; return the bars' middles."""
    shift = _WIDTH / 2 if key == CLUSTER else -_WIDTH / 2
    middles = [place + shift for place, _, _ in bars]
    heights = [height for _, height, _ in bars]
    axes.bar(middles, heights, _WIDTH * 0.94, color=_COLOURS[key], label=_name(summary, key))
    for middle, (_, height, top) in zip(middles, bars, strict=True):
        _above(axes, middle, top, _short(height))
    return middles


def _whiskers(axes: Axes, places: Sequence[float], spreads: Sequence[Spread]) -> None:
    for place, each in zip(places, spreads, strict=True):
        axes.plot([place, place], [each.least, each.most], color=_INK, lw=1.2, zorder=3)


def _above(axes: Axes, place: float, height: float, said: str) -> None:
    axes.annotate(
        said, (place, height), (0, 3), textcoords="offset points", ha="center", fontsize=9, color=_INK
    )


def _closed(ours: Mapping[str, Sequence[Cell]]) -> list[str]:
    return sorted({c.scenario for cells in ours.values() for c in cells if c.scenario != BURST}, key=int)


def _titled(summary: Summary, image: str) -> str:
    cores = summary.run.cores
    return f"{summary.run.images[image].title}, {cores} core{'s' * (cores != 1)}"


def _title(summary: Summary, topology: str) -> str:
    found = summary.run.topologies.get(topology)
    return found.title if found else topology


def _name(summary: Summary, topology: str) -> str:
    found = summary.run.topologies.get(topology)
    if not found:
        return topology
    return f"{found.title}, {found.workers} worker{'s' * (found.workers != 1)}"


def _name_with_cores(summary: Summary, peer: str, ratio: PeerRatio) -> str:
    """Name a peer with the cores that it used: some have one process with several threads."""
    cell = summary.cell(ratio.image, peer, ratio.scenario)
    used = f"\n({cell.cores_used.median:.1f} cores)" if cell and cell.cores_used else ""
    return _name(summary, peer) + used


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 three digits are enough


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
