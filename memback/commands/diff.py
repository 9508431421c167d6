"""``memback diff``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import rich_click as click

from memback.commands.options import Output, output_options
from memback.errors import MembackError, UsageError

if TYPE_CHECKING:
    from memback.reports.diff import Diff

__all__ = ["command"]

_SUFFIXES = (".md", ".txt", ".json")


@click.command("diff", epilog="Example: memback diff main.json branch.json --fail-above 5% -o diff.md")
@click.argument("before", metavar="A.json")
@click.argument("after", metavar="B.json")
@click.option("--fail-above", metavar="LIMIT", help="Exit with 1 if saved bytes or a peak grew more: 5%, 10MiB.")
@click.option("-o", "--output", "files", multiple=True, metavar="FILE", help="Write what changed: .md .txt .json.")
@output_options
def command(before: str, after: str, fail_above: str | None, files: tuple[str, ...], output: Output) -> None:
    """Show what changed from report A to report B: modes, the make-up of the peak, and every layer.

    Layers are matched by path, op and call. Of predictions for a card, a training step's peak there is compared, too.
    """
    from memback.profiling.report import Report
    from memback.reports.diff import Limit, compare

    limit = None if fail_above is None else Limit.parse(fail_above)
    for file in files:
        if not file.lower().endswith(_SUFFIXES):
            raise UsageError(f"No format of a comparison for {file}; let its name end in one of {', '.join(_SUFFIXES)}")
        output.check(file)
    diff = compare(Report.load(before), Report.load(after))
    broken = [] if limit is None else diff.broken(limit)
    _show(diff, output)
    for file in files:
        output.write(file, _render(diff, broken, file))
        output.say_written(file)
    output.write_json(diff.to_dict())
    if broken:
        raise MembackError("\n  ".join(["memory grew past the limit", *broken]))


def _show(diff: Diff, output: Output) -> None:
    from memback.reports import text

    for number, table in enumerate(diff.tables()):
        if number:
            output.console.print()
        output.console.print(text.table(table))


def _render(diff: Diff, broken: list[str], file: str) -> str:
    from memback.reports import text
    from memback.reports.markdown import escape, folded_lines, row_lines, table_lines

    name = file.lower()
    if name.endswith(".json"):
        return json.dumps(diff.to_dict(), indent=2, ensure_ascii=False) + "\n"
    if name.endswith(".txt"):
        return text.plain(*map(text.table, diff.tables())) + "".join(f"{line}\n" for line in broken)
    first, *rest = diff.tables()
    lines = [f"> **Past the limit.** {escape(line)}" for line in broken]
    lines += [*([""] if broken else []), *table_lines(first)]
    for table in rest:
        lines += folded_lines(table.title, row_lines(table))
    return "\n".join(lines) + "\n"
