"""Tables of a report, and how to write them as Markdown."""

import json
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names the row.

    Attributes:
        note: an explanation.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def markdown_table(table: Table, level: str) -> Iterator[str]:
    """Yield the lines of a table, with its title as a heading of a level (`##`)."""
    yield f"{level} {escaped(table.title)}"
    yield ""
    yield f"| {' | '.join(map(escaped, table.columns))} |"
    yield "|---|" + ("---:|" if any(table.columns) else "---|") * (len(table.columns) - 1)
    yield from (f"| {' | '.join(map(escaped, row))} |" for row in table.rows)
    yield ""
    if table.note:
        yield escaped(table.note)
        yield ""


def escaped(text: str) -> str:
    """Write text so that Markdown takes none of it for its own."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def read_tables(document: str) -> list[Table]:
    """Read the tables that a JSON document has under `tables`."""
    return [
        Table(each["title"], tuple(each["columns"]), tuple(map(tuple, each["rows"])), each["note"])
        for each in json.loads(document)["tables"]
    ]
