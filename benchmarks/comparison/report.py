"""The report of a run: raw data in, text out; the same data always gives the same report.

`python -m benchmarks.comparison.report benchmarks/results/...` writes a report again from its raw data.
"""

import argparse
import html as htmllib
import sys
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.comparison import plots as drawing
from benchmarks.comparison.recordings import Raw, read
from benchmarks.comparison.summary import Summary, summarise, summary_json
from benchmarks.comparison.tables import NO_DATA, about, alarms, caveats, overview, sections, verdict
from benchmarks.harness.tables import Table, escaped, markdown_table, read_tables

__all__ = ["Raw", "Summary", "html", "markdown", "read", "summarise", "summary_json", "verdict", "write"]

_SENTENCE = 30
_TITLE = "flipcluster: one process and all cores"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d1f; --paper: #fff; --soft: #f2f4f7; --line: #d4d8de;
  --quiet: #5c6470; --alarm: #b3261e; --blue: #0072B2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8ea; --paper: #16181c; --soft: #22262c;
  --line: #3a4049; --quiet: #a2aab5; --alarm: #ff8a80; --blue: #6cb8ea; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.6rem; }
h2 { margin-top: 3rem; border-bottom: 2px solid var(--line); }
h3 { margin: 2rem 0 .4rem; }
.verdict { font-size: 1.25rem;
  border-left: .4rem solid var(--blue); padding: .6rem 1rem; background: var(--soft); }
.alarm { font-weight: 700; color: var(--alarm); border-left: .4rem solid var(--alarm); padding: .6rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line);
  text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { white-space: nowrap; } .about td { text-align: left; white-space: normal; }
thead th { color: var(--quiet); font-weight: 600; }
tbody th { font-weight: 500; } .none { color: var(--quiet); font-style: italic; }
.note { color: var(--quiet); font-size: .87rem; margin: .3rem 0 0; max-width: 46rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
img { display: block; width: 100%; height: auto; }
@page { margin: 12mm; }
@media print { :root { --ink: #000; --paper: #fff; --soft: #fff; --line: #bbb; --quiet: #444; --alarm: #900; }
  body { font-size: 10pt; max-width: none; padding: 0; } table { font-size: 7.5pt; }
  .plots { grid-template-columns: 1fr 1fr; } .wide { overflow: visible; } td { white-space: normal; }
  figure, tr, h3 { break-inside: avoid; } h2, h3 { break-after: avoid; }
  th, td { padding: .15rem .4rem; } }
"""


def markdown(summary: Summary) -> str:
    """Write the report without plots."""
    return "\n".join(_markdown(summary)) + "\n"


def _markdown(summary: Summary) -> Iterator[str]:
    yield f"# {_TITLE}"
    yield ""
    for alarm in alarms(summary):
        yield f"**{escaped(alarm)}**"
        yield ""
    yield from (f"> {escaped(line)}" for line in _results(summary))
    yield ""
    yield from markdown_table(overview(summary), "##")
    for section in sections(summary):
        yield f"## {escaped(section.title)}"
        yield ""
        for table in section.tables:
            yield from markdown_table(table, "###")
    yield "## Caveats"
    yield ""
    yield from (f"- {escaped(caveat)}" for caveat in caveats(summary))
    yield ""
    yield from markdown_table(about(summary), "##")


def _results(summary: Summary) -> list[str]:
    return verdict(summary).splitlines()[len(alarms(summary)) :]


def html(summary: Summary, plots: Mapping[str, bytes], queues: Sequence[Table] = ()) -> str:
    """Write the report as one page that needs no other file.

    Args:
        summary: all figures.
        plots: PNG by kind and image.
        queues: the tables of `make queues`, if it has written into the same directory.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_TITLE}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{_TITLE}</h1>",
        *(f'<p class="alarm">{htmllib.escape(alarm)}</p>' for alarm in alarms(summary)),
        f'<p class="verdict">{"<br>".join(map(htmllib.escape, _results(summary)))}</p>',
        _html_table(overview(summary)),
    ]
    for section in sections(summary):
        parts += [
            f"<h2>{htmllib.escape(section.title)}</h2>",
            '<div class="plots">',
            *_figures(section.image, plots, section.title),
            "</div>",
            *map(_html_table, section.tables),
        ]
    if queues:
        parts += ["<h2>Job queues</h2>", *map(_html_table, queues)]
    said = "".join(f"<li>{htmllib.escape(caveat)}</li>" for caveat in caveats(summary))
    parts += [f"<h2>Caveats</h2><ul>{said}</ul>", _html_table(about(summary), "about"), "</body></html>"]
    return "\n".join(parts) + "\n"


def _figures(image: str, plots: Mapping[str, bytes], title: str) -> Iterator[str]:
    for kind, named in drawing.TITLES.items():
        if png := plots.get(f"{kind}-{image}"):
            alternative = htmllib.escape(f"{named}, {title}")
            data = b64encode(png).decode()
            yield f'<figure><img alt="{alternative}" src="data:image/png;base64,{data}"></figure>'


def _html_table(table: Table, kind: str = "") -> str:
    head = "".join(f'<th scope="col">{htmllib.escape(column)}</th>' for column in table.columns)
    rows = "".join(
        f'<tr><th scope="row">{htmllib.escape(first)}</th>{"".join(map(_html_cell, cells))}</tr>'
        for first, *cells in table.rows
    )
    note = f'<p class="note">{htmllib.escape(table.note)}</p>' if table.note else ""
    heading = f"<thead><tr>{head}</tr></thead>" if any(table.columns) else ""
    return (
        f"<h3>{htmllib.escape(table.title)}</h3>"
        f'<div class="wide"><table class="{kind}">{heading}<tbody>{rows}</tbody></table></div>{note}'
    )


def _html_cell(text: str) -> str:
    quiet = ' class="none"' if text == NO_DATA else ""
    # On paper a figure may be parted from its range, and neither from its unit.
    unparted = text.replace(" ", "\N{NO-BREAK SPACE}").replace("\N{NO-BREAK SPACE}(", " (")
    return f"<td{quiet}>{htmllib.escape(unparted if len(text) < _SENTENCE else text)}</td>"


def write(directory: Path) -> Summary:
    """Make `report.html`, `summary.md`, `summary.json` and `plots/` from `raw/`."""
    raw = read(directory)
    summary = summarise(raw)
    plots = drawing.draw(raw, summary)
    (directory / "plots").mkdir(exist_ok=True)
    for name, png in plots.items():
        (directory / "plots" / f"{name}.png").write_bytes(png)
    (directory / "summary.json").write_text(summary_json(summary))
    (directory / "summary.md").write_text(markdown(summary))
    (directory / "report.html").write_text(html(summary, plots, _queues(directory)))
    return summary


def _queues(directory: Path) -> list[Table]:
    file = directory / "queues.json"
    return read_tables(file.read_text()) if file.exists() else []


def main() -> None:
    """Write the report of a result again."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("directory", type=Path, help="the one that holds raw/")
    directory = options.parse_args().directory
    try:
        print(verdict(write(directory)))
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"{directory} holds no result that can be read: {error}")


if __name__ == "__main__":
    main()
