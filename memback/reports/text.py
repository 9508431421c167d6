"""Text for a terminal or a pipe: totals first, layers on demand.

A table takes the width that there is. What does not fit side by side goes into a second table below, with the first
column repeated, or is left out where it is optional; a number is never cut or broken.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from itertools import groupby, zip_longest

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from memback.profiling.report import Report, Run
from memback.reports import device, tables, words
from memback.reports.tables import Cell, Column, Detail, Row, Table
from memback.units import format_bytes

__all__ = [
    "bar",
    "comparison",
    "composition",
    "layers",
    "line",
    "plain",
    "render",
    "summary",
    "table",
    "to_ascii",
]

GAP = 2
_FILE_WIDTH = 120
_KEY_AT_LEAST = 24
_TEXT_AT_LEAST = 16
_BAR_AT_LEAST, _BAR_AT_MOST = 10, 32
_STYLES = {"": "", "good": "green", "bad": "bold red", "faint": "dim"}
_ASCII = str.maketrans(
    {"×": "x", "–": "-", "…": "..", "µ": "u", "─": "-", "█": "#", "→": ">", "√": "sqrt ", "²": "^2", "ᵀ": "'"}
    | {"■": "#", "▣": "%", "▪": "o", "·": ".", "◂": "<"}
    | {"∂": "D", "α": "a", "β": "b", "δ": "d", "₁": "1", "₂": "2", "₃": "3"}
    | dict.fromkeys("▏▎▍▌▋▊▉")
)


def summary(report: Report) -> RenderableType:
    """The whole at a glance: what was run, the modes side by side, and what training memory consists of."""
    parts: list[RenderableType] = [
        _Line(tables.headline(report), "bold"),
        *(_Line(f"! {warning}", "bold red", 2) for warning in tables.warnings(report)),
        *_verdict(report),
        *map(_Line, words.facts(report)),
        *_on_device(report),
        _Line(words.machine(report), "dim"),
        _Line(_arguments(report)),
    ]
    if report.distributed is not None and report.distributed.ranks:
        parts += [Text(), _Sheet(tables.ranks(report))]
    contents = tables.overview(report)
    if report.frontier and report.runs:
        from memback.reports.plan import frontier_of  # plans are loaded only if there are some

        contents.append(frontier_of(report))
    for content in contents:
        parts += [Text(), _Sheet(content)]
    return Group(*parts)


def _verdict(report: Report) -> list[RenderableType]:
    if report.device is None:
        return []
    style = {True: "bold green", False: "bold red", None: ""}[device.fits(report.device)]
    return [_Line(device.verdict(report.device), style)]


def _on_device(report: Report) -> list[RenderableType]:
    table = None if report.device is None else device.make_up(report.device)
    return [] if table is None else [Text(), _Sheet(table), Text()]


def comparison(report: Report) -> RenderableType:
    """One row a mode: saved bytes, peaks, the process, time, gradients."""
    return _Sheet(tables.comparison(report))


def composition(report: Report, run: Run) -> RenderableType:
    """What memory consists of at the run's peak, with shares of a stated total."""
    return _Sheet(tables.composition(report, run))


def layers(run: Run, fold: bool = True) -> RenderableType:
    """One row a layer with all that it saves; with ``fold``, rows that repeat are folded into one."""
    return _Sheet(tables.layers(run, fold))


def table(content: Table) -> RenderableType:
    """Any table, laid out for the width at hand."""
    return _Sheet(content)


def line(content: str, style: str = "") -> RenderableType:
    """Any sentence, wrapped between words."""
    return _Line(content, style)


def plain(*parts: RenderableType) -> str:
    """What is shown, as plain text of 120 columns."""
    file = io.StringIO()
    console = Console(
        file=file,
        width=_FILE_WIDTH,
        color_system=None,
        force_terminal=False,
        force_jupyter=False,  # within a notebook it would show what it prints there, too
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    return file.getvalue()


def render(report: Report) -> str:
    """Everything as plain text of 120 columns, nothing folded."""
    details = (part for run in report.runs for part in (Text(), layers(run, fold=False)))
    return plain(summary(report), *details)


def _arguments(report: Report) -> str:
    parts = report.arguments.by_name()
    sizes = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    return f"Arguments, there before the step: {sizes or 'none'}."


# -- text that is safe on any terminal


def to_ascii(content: str) -> str:
    """Text for where nothing but ASCII can be shown: signs become letters, all else is escaped."""
    return content.translate(_ASCII).encode("ascii", "backslashreplace").decode()


def _text(content: str, options: ConsoleOptions, style: str = "") -> Text:
    """Text as it may be printed: control characters escaped, and ASCII where nothing else can be shown."""
    content = tables.printable(content)
    if options.ascii_only:
        content = to_ascii(content)
    return Text(content, style)


class _Line:
    """A sentence, wrapped between words."""

    def __init__(self, content: str, style: str = "", indent: int = 0) -> None:
        self.content = content
        self.style = style
        self.indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = _text(self.content, options, self.style)
        yield from _wrap(text, console, options.max_width, self.indent)


def _wrap(text: Text, console: Console, width: int, indent: int = 0) -> Iterator[Text]:
    """The lines of a text, those after the first indented."""
    if not text:
        return
    first, *_ = text.wrap(console, max(1, width), overflow="fold")
    rest = text[len(first.plain) :]
    rest = Text(rest.plain.lstrip(), text.style)
    first.rstrip()
    yield first
    for line in rest.wrap(console, max(1, width - indent), overflow="fold") if rest else ():
        line.rstrip()
        line.pad_left(indent)
        yield line


# -- tables


class _Sheet:
    """A table laid out for the width at hand."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        layout = _Columns(self.table, console, options)
        yield from _Line(self.table.title, "bold").__rich_console__(console, options)
        for number, chosen in enumerate(layout.split()):
            if number:
                yield Text()
            yield from layout.lines(chosen)
        for note in self.table.bad:
            yield from _Line(f"! {note}", "bold red", 2).__rich_console__(console, options)
        for note in self.table.notes:
            yield from _Line(note, "dim").__rich_console__(console, options)


class _Columns:
    """Which columns go side by side, how wide they are, and the lines that result. A column is named by its number."""

    def __init__(self, table: Table, console: Console, options: ConsoleOptions) -> None:
        self.table = table
        self.console = console
        self.options = options
        self.width = options.max_width
        self.natural = [self._natural(i) for i in range(len(table.columns))]
        self.least = [self._least(i) for i in range(len(table.columns))]

    @property
    def _rows(self) -> list[Row]:
        return [*self.table.rows, *([self.table.total] if self.table.total else [])]

    def _natural(self, i: int) -> int:
        column = self.table.columns[i]
        if column.kind == "bar":
            return _BAR_AT_LEAST
        cells = [_text(row.cells[i].text, self.options).cell_len for row in self._rows]
        title = column.title.split() if column.kind == "number" else [column.title]
        return max([*cells, *map(len, title)])

    def _least(self, i: int) -> int:
        column = self.table.columns[i]
        least = {"key": _KEY_AT_LEAST, "text": _TEXT_AT_LEAST}.get(column.kind, self.natural[i])
        return min(self.natural[i], least)

    # which columns

    def split(self) -> list[list[int]]:
        """The columns of each table below the other; each starts with the first column."""
        needed = [i for i, column in enumerate(self.table.columns) if not column.optional]
        key, *others = needed
        sheets: list[list[int]] = []
        for _, group in groupby(others, key=lambda i: self.table.columns[i].group):
            whole = list(group)
            for part in [whole] if self._fits([key, *whole], self.least) else [[i] for i in whole]:
                if sheets and self._fits(sheets[-1] + part, self.natural):
                    sheets[-1] += part
                else:
                    sheets.append([key, *part])
        return [self._with_optional(sheet) for sheet in sheets]

    def _with_optional(self, sheet: list[int]) -> list[int]:
        for i, column in enumerate(self.table.columns):
            if column.optional and self._fits([*sheet, i], self.natural):
                sheet = sorted([*sheet, i])
        return sheet

    def _fits(self, chosen: Sequence[int], widths: Sequence[int]) -> bool:
        return sum(widths[i] for i in chosen) + GAP * (len(chosen) - 1) <= self.width

    # how wide

    def widths(self, chosen: Sequence[int]) -> dict[int, int]:
        """The widest text gives way until all fits; a bar takes what is left over."""
        widths = {i: self.natural[i] for i in chosen}
        room = self.width - GAP * (len(chosen) - 1)
        while sum(widths.values()) > room:
            flexible = [i for i in chosen if widths[i] > self.least[i]]
            if not flexible:
                break
            widths[max(flexible, key=widths.__getitem__)] -= 1
        for i in chosen:
            if self.table.columns[i].kind == "bar":
                widths[i] = max(widths[i], min(_BAR_AT_MOST, widths[i] + room - sum(widths.values())))
        return widths

    # the lines

    def lines(self, chosen: Sequence[int]) -> Iterator[Text]:
        """Titles, rows with their details, and the total."""
        widths = self.widths(chosen)
        rule = _text("─" * (sum(widths.values()) + GAP * (len(chosen) - 1)), self.options, "dim")
        yield from self._titles(chosen, widths)
        yield rule
        for row in self.table.rows:
            yield from self._row(row, widths)
            yield from self._details(row.details)
        if self.table.total is not None:
            yield rule
            yield from self._row(self.table.total, widths, "bold")

    def _titles(self, chosen: Sequence[int], widths: dict[int, int]) -> Iterator[Text]:
        blocks = []
        for i in chosen:
            title = _text(self.table.columns[i].title, self.options, "bold cyan")
            blocks.append(list(_wrap(title, self.console, widths[i])))
        height = max(map(len, blocks))
        blocks = [[Text()] * (height - len(block)) + block for block in blocks]
        yield from self._join(blocks, widths)

    def _row(self, row: Row, widths: dict[int, int], style: str = "") -> Iterator[Text]:
        blocks = [list(self._cell(self.table.columns[i], row.cells[i], width)) for i, width in widths.items()]
        for line in self._join(blocks, widths):
            line.stylize(style)
            yield line

    def _cell(self, column: Column, cell: Cell, width: int) -> Iterator[Text]:
        if column.kind == "bar":
            yield _text(bar(cell.share, width), self.options, "blue")
        else:
            text = _text(cell.text, self.options, _STYLES[cell.mark])
            yield from _wrap(text, self.console, width, GAP if column.kind == "key" else 0)

    def _join(self, blocks: Sequence[Sequence[Text]], widths: dict[int, int]) -> Iterator[Text]:
        """Blocks of lines side by side, numbers to the right."""
        right = [self.table.columns[i].kind == "number" for i in widths]
        for parts in zip_longest(*blocks, fillvalue=Text()):
            line = Text()
            for part, width, number in zip(parts, widths.values(), right, strict=True):
                space = " " * (width - part.cell_len)
                line.append_text(Text.assemble(space, part) if number else Text.assemble(part, space))
                line.append(" " * GAP)
            line.rstrip()
            yield line

    def _details(self, details: Sequence[Detail]) -> Iterator[Text]:
        if not details:
            return
        texts = [_text(detail.name, self.options).plain for detail in details]
        names = max(map(len, texts))
        sizes = max(len(detail.bytes) for detail in details)
        for name, detail in zip(texts, details, strict=True):
            start = f"    {name:<{names}}  {detail.bytes:>{sizes}}  "
            text = _text(start + detail.origin, self.options, "dim")
            yield from _wrap(text, self.console, self.width, min(len(start), self.width // 2))


def bar(share: float, width: int) -> str:
    """A bar for a share from 0 to 1, in eighths of a character, ``width`` of them at most; what is not zero shows."""
    eighths = round(share * width * 8)
    if share > 0:
        eighths = max(1, eighths)
    whole, part = divmod(eighths, 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[part].strip()
