"""Markdown for a pull request: the modes side by side, what memory consists of, and each run's layers to unfold."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator, Sequence

from memback.profiling.report import Report
from memback.reports import device, tables, words
from memback.reports.tables import Cell, Row, Table
from memback.units import format_bytes

__all__ = ["escape", "folded_lines", "render", "row_lines", "table_lines"]

_SPECIAL = re.compile(r"[\\`*\[<>&|~$]|(?<![^\W_])_|_(?![^\W_])")


def render(report: Report) -> str:
    """The report as GitHub's Markdown."""
    lines = [f"### {escape(tables.headline(report))}", ""]
    for warning in tables.warnings(report):
        lines += [f"**{escape(warning)}**", ""]
    if report.device is not None:
        lines += [f"**{escape(device.verdict(report.device))}**", ""]
    for fact in words.facts(report):
        lines += [escape(fact), ""]
    table = None if report.device is None else device.make_up(report.device)
    if table is not None:
        lines += [*table_lines(table), ""]
    if report.distributed is not None and report.distributed.ranks:
        lines += [*table_lines(tables.ranks(report)), ""]
    contents = tables.overview(report) or [tables.comparison(report)]
    if report.frontier and report.runs:
        from memback.reports.plan import frontier_of  # plans are loaded only if there are some

        contents.append(frontier_of(report))
    lines += table_lines(contents[0])
    for table in contents[1:]:
        lines += ["", *table_lines(table)]
    for run in report.runs:
        title = f"Layers of {run.label}: {format_bytes(run.saved_bytes)} saved"
        lines += folded_lines(title, row_lines(tables.layers(run)))
    return "\n".join(lines) + "\n"


def table_lines(table: Table) -> Iterator[str]:
    """A table below its title, line by line."""
    yield f"#### {escape(table.title)}"
    yield ""
    yield from row_lines(table)


def folded_lines(title: str, lines: Iterable[str]) -> list[str]:
    """Lines that unfold below a title."""
    summary = html.escape(tables.printable(title))
    return ["", f"<details><summary>{summary}</summary>", "", *lines, "", "</details>"]


def row_lines(table: Table) -> Iterator[str]:
    """The table without its bars, which the exact numbers stand for; saved values go into a last column."""
    shown = [i for i, column in enumerate(table.columns) if column.kind != "bar"]
    saves = any(row.details for row in table.rows)
    titles = [escape(table.columns[i].title) for i in shown] + ["saved values"] * saves
    rules = ["---:" if table.columns[i].kind == "number" else "---" for i in shown] + ["---"] * saves
    yield _line(titles)
    yield _line(rules)
    for row in table.rows:
        yield _line([*(_cell(row.cells[i]) for i in shown), *([_details(row)] * saves)])
    if table.total is not None:
        total = [escape(table.total.cells[i].text) for i in shown] + [""] * saves
        yield _line([f"**{cell}**" if cell else "" for cell in total])
    for note in (*(f"**{escape(note)}**" for note in table.bad), *map(escape, table.notes)):
        yield ""
        yield note


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    return f"**{escape(cell.text)}**" if cell.mark == "bad" else escape(cell.text)


def _details(row: Row) -> str:
    return "<br>".join(escape(f"{detail.name} {detail.bytes}, {detail.origin}") for detail in row.details)


def escape(text: str) -> str:
    """Text that Markdown leaves as it is: names in a report may come from anywhere."""
    visible = tables.printable(text)
    return _SPECIAL.sub(r"\\\g<0>", visible)
