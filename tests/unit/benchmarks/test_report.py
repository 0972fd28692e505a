"""The report is pure: recorded raw data gives exactly the recorded tables, and holes in it show as holes.

After an intended change, `python -m benchmarks.comparison.report` on a copy of a recording gives new tables.
"""

import json
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import plots
from benchmarks.comparison.recordings import (
    AS_SHIPPED,
    Generated,
    Raw,
    Request,
    Run,
    Sample,
    SentImage,
    Skipped,
    Topology,
    Window,
    raw_from,
    read,
)
from benchmarks.comparison.report import html, markdown, summarise, summary_json, verdict, write
from benchmarks.comparison.summary import Summary
from benchmarks.comparison.tables import NO_DATA, caveats, have_ours_failed

RECORDED = Path(__file__).parent / "recorded"
PNG = b"\x89PNG\r\n\x1a\n"
IMAGE = SentImage("2 megapixels", 1632, 1224, 600_000, 90, "jpeg")
SINGLE = Topology("single process", 1, is_peer=False, quality="matched", design="flipcluster")
CLUSTER = replace(SINGLE, title="cluster", workers=2)
PEER = Topology("Peer", 2, is_peer=True, quality="matched", design="other")
RUN = Run(
    profile="quick",
    started="2026-11-25T21:00:00Z",
    duration_s=100.0,
    cores=2,
    interrupted=False,
    commit="0123abc",
    machine={"cpu": "Example"},
    versions={"python": "3.11.7"},
    images={"2mp": IMAGE},
    topologies={"single": SINGLE, "cluster": CLUSTER},
    skipped=(),
)

each_recording = pytest.mark.parametrize("name", ["quick", "article"])


def measured(
    topology: str, rate: int, *, repetition: int = 0, scenario: str = "10", outcome: str = "ok"
) -> tuple[Window, list[Request]]:
    """A window of one second, and so many requests that end in it, each after 100 ms."""
    key = ("2mp", topology, scenario, repetition)
    began_s = 10.0 * repetition
    requests = [
        Request(*key, "raw", began_s + n / (rate + 1) - 0.09, 100.0, outcome, "200", 600_100, "")
        for n in range(rate)
    ]
    return Window(*key, began_s, began_s + 1.0), requests


def raw_of(*cells: tuple[Window, list[Request]], run: Run = RUN) -> Raw:
    return Raw(run, tuple(window for window, _ in cells), tuple(r for _, requests in cells for r in requests))


@cache
def recorded(name: str) -> tuple[Raw, Summary]:
    """What was measured, and what it comes to; no test changes either."""
    raw = read(RECORDED / name)
    return raw, summarise(raw)


@cache
def drawn_of(name: str) -> dict[str, bytes]:
    """All plots of a recording, which take seconds."""
    return plots.draw(*recorded(name))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a recording and the report on it; no test changes it."""
    directory = tmp_path_factory.mktemp("written")
    shutil.copytree(RECORDED / "article" / "raw", directory / "raw")
    write(directory)
    return directory


def everything(raw: Raw) -> tuple[Summary, str]:
    """All that a report says, which must not fail whatever is missing."""
    summary = summarise(raw)
    drawn = plots.draw(raw, summary)
    json.loads(summary_json(summary))
    html(summary, drawn)
    return summary, markdown(summary)


@each_recording
def test_recorded_raw_data_gives_exactly_the_recorded_tables(name: str) -> None:
    _, summary = recorded(name)
    assert summary_json(summary) == (RECORDED / name / "summary.json").read_text()
    assert markdown(summary) == (RECORDED / name / "summary.md").read_text()


def test_the_verdict_is_how_many_times_faster_and_how_near_to_the_ideal() -> None:
    pairs = [(100, 190), (80, 160), (100, 180)]
    raw = raw_of(
        *(measured("single", single, repetition=n) for n, (single, _) in enumerate(pairs)),
        *(measured("cluster", cluster, repetition=n) for n, (_, cluster) in enumerate(pairs)),
    )
    assert verdict(summarise(raw)) == (
        "The cluster is 1.90 (1.80 to 2.00) times as fast as the single process,"
        " 95 % of the ideal on 2 cores (2 megapixels, 10 users)."
    )


def test_only_a_pair_of_the_same_repetition_makes_a_ratio() -> None:
    raw = raw_of(measured("single", 50), measured("cluster", 100), measured("cluster", 500, repetition=1))
    gain = summarise(raw).gains[0].times
    assert gain
    assert (gain.median, gain.repetitions) == (2.0, 1)


def test_only_answers_that_end_within_the_window_count_for_throughput() -> None:
    window, requests = measured("single", 20)
    early = replace(requests[0], started_s=-0.2)
    late = replace(requests[0], started_s=0.95)
    cell = summarise(raw_of((window, [*requests, early, late]))).cell("2mp", "single", "10")
    assert cell
    assert cell.requests_per_s
    assert (cell.requests_per_s.median, cell.ok) == (20.0, 20)


def test_refused_and_failed_requests_are_no_throughput() -> None:
    window, requests = measured("single", 20)
    outcomes = ["ok"] * 12 + ["refused"] * 5 + ["failed"] * 3
    mixed = [
        replace(r, outcome=outcome, fault="connection closed" if outcome == "failed" else "")
        for r, outcome in zip(requests, outcomes, strict=True)
    ]
    summary = summarise(raw_of((window, mixed)))
    cell = summary.cell("2mp", "single", "10")
    assert cell
    assert cell.requests_per_s
    assert (cell.requests_per_s.median, cell.ok, cell.refused, cell.failed) == (12.0, 12, 5, 3)
    assert verdict(summary).startswith("FAILED: single process: requests failed: connection closed (3).")
    assert any("25 % were refusals" in caveat for caveat in caveats(summary))


@pytest.mark.parametrize("started_s", [0.5, 700.0], ids=["within the window", "outside every window"])
def test_a_wrong_answer_makes_the_verdict_shout(started_s: float) -> None:
    window, requests = measured("cluster", 40)
    wrong = replace(requests[0], outcome="wrong", started_s=started_s)
    summary, said = everything(raw_of(measured("single", 20), (window, [*requests, wrong])))
    shout = "WRONG ANSWERS: 1 of 61 answers were 200 and not the flipped image (cluster 1)."
    assert verdict(summary).startswith(shout)
    assert said.splitlines()[2].startswith(f"**{shout}")
    assert f'<p class="alarm">{shout}' in html(summary, {})


def test_the_burst_is_timed_from_its_first_request() -> None:
    window = Window("2mp", "single", "burst", 0, 0.0, 9.0)
    row = Request("2mp", "single", "burst", 0, "raw", 1.0, 500.0, "ok", "200", 1, "")
    later = replace(row, started_s=1.5, response_ms=2500.0)
    cell = summarise(raw_of((window, [row, later]))).cell("2mp", "single", "burst")
    assert cell
    assert cell.first_ms
    assert cell.last_ms
    assert (cell.first_ms.median, cell.last_ms.median) == (500.0, 3000.0)


def test_many_cores_need_more_than_ten_users_for_the_headline() -> None:
    cells = [
        measured(topology, rate, scenario=scenario)
        for topology, rate in (("single", 10), ("cluster", 70))
        for scenario in ("1", "10", "100")
    ]
    for cores, scenario in ((2, "10"), (5, "10"), (8, "100")):
        assert summarise(raw_of(*cells, run=replace(RUN, cores=cores))).headline == {"2mp": scenario}


def test_one_user_cannot_be_faster_on_more_cores() -> None:
    raw = raw_of(measured("single", 10, scenario="1"), measured("cluster", 9, scenario="1"))
    (gain,) = summarise(raw).gains
    assert (gain.ideal, gain.efficiency) == (1, 0.9)


def test_what_fails_of_a_peer_is_a_caveat_and_no_failure_of_ours() -> None:
    run = replace(RUN, topologies=RUN.topologies | {"peer": PEER})
    window, requests = measured("peer", 10)
    failed = [replace(request, outcome="failed", fault="connection closed") for request in requests]
    summary, said = everything(
        raw_of(measured("single", 10), measured("cluster", 20), (window, failed), run=run)
    )
    assert "FAILED" not in said
    assert not have_ours_failed(summary)
    assert "- Peer: requests failed: connection closed (10)." in said


def test_a_peer_that_uses_more_cores_than_one_is_said_to() -> None:
    run = replace(RUN, topologies=RUN.topologies | {"peer": replace(PEER, workers=1)})
    window, requests = measured("peer", 10)
    raw = raw_of(measured("single", 10), (window, requests), run=run)
    ends = enumerate((window.began_s, window.ended_s))
    busy = [Sample(*window.key, at_s, 1.8 * n, 100.0) for n, at_s in ends]
    assert "it used 1.8 cores, unlike ours" in "\n".join(caveats(summarise(replace(raw, processes=busy))))


def test_a_machine_without_room_for_the_cluster_is_said_to_be_one() -> None:
    window, requests = measured("single", 20)
    ends = (window.began_s, window.ended_s)

    def caveats_when_locust_takes(cores: float) -> str:
        raw = raw_of((window, requests))
        served = [Sample(*window.key, at_s, 1.0 * n, 100.0) for n, at_s in enumerate(ends)]
        generated = [Generated(*window.key, at_s, cores * n) for n, at_s in enumerate(ends)]
        return "\n".join(caveats(summarise(replace(raw, processes=served, generator=generated))))

    said = "locust together keep 1.6 cores busy, so that 2 cores have room for 1.2 times as much at most"
    assert said in caveats_when_locust_takes(0.6)
    assert "cores busy" not in caveats_when_locust_takes(0.1)


def test_more_than_the_ideal_is_said_to_be_chance() -> None:
    def caveats_when_the_cluster_gives(rate: int) -> str:
        return "\n".join(caveats(summarise(raw_of(measured("single", 10), measured("cluster", rate)))))

    assert "2 megapixels, 10 users: more than the ideal is mostly chance" in caveats_when_the_cluster_gives(
        21
    )
    assert "chance" not in caveats_when_the_cluster_gives(19)


def test_threads_of_one_core_are_said_to_be_some() -> None:
    def caveats_with(physical: int) -> str:
        run = replace(RUN, machine={**RUN.machine, "physical_cores": physical})
        return "\n".join(caveats(summarise(raw_of(measured("single", 10), run=run))))

    assert "These 2 cores are threads of 1 (SMT)" in caveats_with(1)
    assert "SMT" not in caveats_with(2)


def test_the_cluster_as_shipped_is_compared_with_each_peer_too() -> None:
    run = replace(
        RUN,
        topologies={
            "single": SINGLE,
            "cluster": CLUSTER,
            AS_SHIPPED: replace(CLUSTER, title="as shipped"),
            "peer": PEER,
        },
    )
    cells = [measured("single", 10), measured("cluster", 20), measured(AS_SHIPPED, 50), measured("peer", 10)]
    said = everything(raw_of(*cells, run=run))[1]
    assert "| Peer | matched | cluster | 2.00 (once) |" in said
    assert "| Peer | matched | as shipped | 5.00 (once) |" in said


def test_what_was_measured_with_one_image_only_is_no_hole_of_another() -> None:
    run = replace(RUN, images={"2mp": IMAGE, "small": replace(IMAGE, title="small")})
    run = replace(run, topologies={"single": SINGLE, "workers-1": replace(SINGLE, title="1 core")})
    said = everything(raw_of(measured("single", 10), measured("workers-1", 10), run=run))[1]
    assert "small, 1 core" not in said
    assert "small, single process" in said


def test_nothing_measured_is_still_a_report() -> None:
    summary, said = everything(Raw(replace(RUN, interrupted=True)))
    assert "INTERRUPTED" in verdict(summary)
    assert "No verdict" in verdict(summary)
    assert said.count(NO_DATA) > 10


def test_what_an_interrupted_run_has_not_measured_shows_as_no_data() -> None:
    raw = raw_of(measured("single", 20), run=replace(RUN, interrupted=True))
    summary, said = everything(raw)
    assert "| 10 | no data | 2 | no data | 20.0 (once) | no data |" in said
    assert "- Not measured: 2 megapixels, cluster, 10 users." in said
    assert verdict(summary).splitlines()[0] == "INTERRUPTED: the run ended early, and this is what it has."


@pytest.mark.parametrize("kept", range(0, 3000, 290))
def test_a_run_that_was_killed_anywhere_can_be_read(tmp_path: Path, kept: int) -> None:
    shutil.copytree(RECORDED / "article" / "raw", tmp_path / "raw")
    lines = (tmp_path / "raw" / "requests.csv").read_text()[: kept * 43]
    (tmp_path / "raw" / "requests.csv").write_text(lines)
    (tmp_path / "raw" / "answers.csv").unlink()
    (tmp_path / "raw" / "windows.csv").write_text(
        "".join(_lines(tmp_path / "raw" / "windows.csv")[: kept // 42])
    )
    raw = read(tmp_path)
    assert raw.unreadable == (lines != "" and not lines.endswith("\n"))
    summary = summarise(raw)
    assert NO_DATA in markdown(summary)
    assert '<td class="none">' in html(summary, {})


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines(keepends=True)


def test_rows_that_are_cut_off_are_left_out_and_said() -> None:
    head = "image,topology,scenario,repetition,began_s,ended_s\n"
    row = "2mp,single,10,0,1.0,2.5\n"
    raw = raw_from(RUN, {"windows": head + row + "2mp,single,10\n2mp,single,10,x,1,2\n2mp,single,10,1,3.0,4"})
    assert raw.windows == (Window("2mp", "single", "10", 0, 1.0, 2.5),)
    assert raw.unreadable == 3
    assert any("left out: 3." in caveat for caveat in caveats(summarise(raw)))


def test_no_window_and_no_right_answer_divide_nothing_by_zero() -> None:
    window, requests = measured("single", 10, outcome="refused")
    empty = replace(window, repetition=1, ended_s=window.began_s)
    summary, _ = everything(raw_of((window, requests), (empty, []), measured("cluster", 20)))
    assert summary.gains[0].times is None


def test_a_peer_is_compared_with_ours_of_as_many_processes() -> None:
    topologies = RUN.topologies | {"many": PEER, "one": replace(PEER, title="Peer alone", workers=1)}
    run = replace(RUN, topologies=topologies)
    rates = {"single": 50, "cluster": 96, "many": 24, "one": 20}
    summary, _ = everything(raw_of(*(measured(key, rate) for key, rate in rates.items()), run=run))
    assert {(p.peer, p.ours, p.times and p.times.median) for p in summary.peers} == {
        ("one", "single", 2.5),
        ("many", "cluster", 4.0),
    }


def test_matched_quality_comes_before_defaults_and_defaults_are_marked() -> None:
    run = replace(RUN, topologies=RUN.topologies | {"a": replace(PEER, quality="default"), "b": PEER})
    rates = {"single": 50, "cluster": 96, "a": 24, "b": 20}
    summary, said = everything(raw_of(*(measured(key, rate) for key, rate in rates.items()), run=run))
    assert [ratio.peer for ratio in summary.peers] == ["b", "a"]
    assert "| Peer, its DEFAULT quality | DEFAULT | cluster | 4.00 (once) |" in said


def test_a_skipped_peer_is_said_with_its_reason() -> None:
    run = replace(RUN, skipped=(Skipped("koa-jimp", "Node is not installed"),))
    _, said = everything(raw_of(measured("single", 10), run=run))
    assert "koa-jimp was skipped: Node is not installed." in said


def test_a_peer_that_was_never_measured_crashes_nothing() -> None:
    run = replace(RUN, topologies=RUN.topologies | {"peer": PEER})
    _, said = everything(raw_of(measured("single", 10), run=run))
    assert "| Peer, 10 users | no data |" in said


def test_the_article_is_compared_with_ours_only_in_its_profile() -> None:
    article, quick = (markdown(recorded(name)[1]) for name in ("article", "quick"))
    assert "| the article | 8 | 16 s | 40 s | 10 s | 14 s | 1.60 | 2.86 |" in article
    assert "| ours | 4 |" in article
    assert "| the article's design, on our machine | 4 |" in article
    assert "40 s" not in quick


def test_two_points_predict_nothing_and_four_say_that_they_predict() -> None:
    article, quick = (markdown(recorded(name)[1]) for name in ("article", "quick"))
    assert "2 measured points predict nothing" in quick
    assert re.search(r"It predicts a knee at \d+ workers; that is a prediction", article)


@each_recording
def test_the_page_holds_all_plots_and_refers_to_nothing_outside(name: str) -> None:
    _, summary = recorded(name)
    drawn = drawn_of(name)
    page = html(summary, drawn)
    sources = re.findall(r'src="([^"]*)"', page)
    held = [b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert sorted(held) == sorted(drawn.values())
    assert all(png.startswith(PNG) for png in held)
    assert not re.search(
        r"https?:|//|href|<link|<script|@import|url\(", re.sub(r'src="data:[^"]*"', "", page)
    )


@each_recording
def test_the_page_says_whatever_the_text_says(name: str) -> None:
    _, summary = recorded(name)
    page, text = unescape(html(summary, {})).replace("\N{NO-BREAK SPACE}", " "), markdown(summary)
    for cell in {cell.strip() for line in text.splitlines() if "| " in line for cell in line.split("|")}:
        assert cell in page


def test_names_from_the_data_are_text_and_no_markup() -> None:
    run = replace(RUN, images={"2mp": replace(IMAGE, title="<b>|2")}, versions={"<i>": "&"})
    summary, said = everything(raw_of(measured("single", 10), run=run))
    page = html(summary, {})
    assert "&lt;b&gt;|2" in page
    assert "<b>" not in page + said
    assert "&lt;b>\\|2" in said


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("quick", {"throughput", "scaling", "response", "latency", "memory"}),
        ("article", {"throughput", "scaling", "response", "latency", "memory", "peers"}),
    ],
)
def test_every_kind_of_plot_is_drawn(name: str, kinds: set[str]) -> None:
    raw, _ = recorded(name)
    assert drawn_of(name).keys() == {f"{kind}-{image}" for kind in kinds for image in raw.run.images}


def test_writing_makes_all_files(written: Path) -> None:
    _, summary = recorded("article")
    assert (written / "summary.json").read_text() == summary_json(summary)
    assert (written / "summary.md").read_text() == markdown(summary)
    drawn = {file.stem: file.read_bytes() for file in (written / "plots").glob("*.png")}
    assert (written / "report.html").read_text() == html(summary, drawn)


def test_a_report_shows_the_queues_that_were_measured_into_its_directory(
    written: Path, tmp_path: Path
) -> None:
    assert "Job queues" not in (written / "report.html").read_text()
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    table = {
        "title": "Kills",
        "columns": ["queue", "lost"],
        "rows": [["a <queue>", "3 of 4"]],
        "note": "once",
    }
    (tmp_path / "queues.json").write_text(json.dumps({"tables": [table]}))
    summary = write(tmp_path)
    assert summary_json(summary) == (tmp_path / "summary.json").read_text()
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Job queues</h2>" in page
    assert "a &lt;queue&gt;" in page
    assert "3\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}4" in page


def test_the_order_of_rows_changes_nothing() -> None:
    raw, summary = recorded("article")
    turned: dict[str, Any] = {
        name: tuple(reversed(getattr(raw, name)))
        for name in ("windows", "requests", "processes", "generator", "health", "answers")
    }
    assert summary_json(summarise(replace(raw, **turned))) == summary_json(summary)
