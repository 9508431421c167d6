"""The content of a report's tables, cell by cell, for every format; the format decides how they look.

All numbers are exact bytes, with MiB in a second column, unless the column's title says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from memback.engine.arrays import form
from memback.printable import printable
from memback.profiling.report import PARTS, Layer, Rank, Report, Run, SavedValue, Seconds
from memback.reports.folding import Fold, fold, span
from memback.units import KIB, MIB, format_flops, format_seconds

__all__ = [
    "Cell",
    "Column",
    "Detail",
    "Row",
    "Table",
    "bars_of",
    "cell_text",
    "comparison",
    "composition",
    "headline",
    "layers",
    "mebibytes_of",
    "overview",
    "peaks",
    "percentages_of",
    "place",
    "printable",
    "ranks",
    "text_of_cell",
    "warnings",
]

NONE = "–"
"""The text of a cell for what was not predicted, not measured, or does not exist."""

Kind = Literal["key", "text", "number", "bar"]


@dataclass(frozen=True)
class Column:
    """A column. Columns of one ``group`` belong side by side; ``optional`` ones may be left out where it is tight."""

    title: str
    kind: Kind = "number"
    group: int = 0
    optional: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell's text; in a column of bars, ``share`` of the full length is shown instead."""

    text: str
    mark: Literal["", "good", "bad", "faint"] = ""
    share: float = 0.0


@dataclass(frozen=True)
class Detail:
    """A saved value below its row: its name in the op, bytes (of each, where rows are folded), and where it is from."""

    name: str
    bytes: str
    origin: str


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns."""

    cells: Sequence[Cell]
    details: Sequence[Detail] = ()


@dataclass(frozen=True)
class Table:
    """A table. ``total`` is a last row that sums the others; ``notes`` are sentences below it, ``bad`` ones first."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    total: Row | None = None
    bad: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())


def headline(report: Report) -> str:
    """What was run, with which memback, when."""
    profile = report.profile
    model = profile.model.get("name", profile.model.get("class", ""))
    batch = f"batch {profile.data['batch']}" if "batch" in profile.data else ""
    about = [str(part) for part in (model, profile.dtype, batch, _of_ranks(report)) if part]
    return f"{profile.name}: {', '.join(about)} (memback {report.memback}, {report.created})"


def _of_ranks(report: Report) -> str:
    of = report.distributed
    if of is None:
        return ""
    which = f"the worst, rank {of.rank}" if of.ranks else f"rank {of.rank}"
    return f"{of.strategy} on {of.world_size} ranks over {of.backend}: {which}"


def warnings(report: Report) -> list[str]:
    """What a reader must know first: modes that failed, memory that a step leaves, missing ranks."""
    return [*_of_modes(report), *_of_absent_ranks(report)]


def _of_modes(report: Report) -> list[str]:
    said = [f"{mode} can't be run: {why}" for mode, why in report.not_run.items()]
    for run in report.runs:
        if run.left_bytes:
            makers = f"{', '.join(run.left[:3])}{', …' * (len(run.left) > 3)}"
            said.append(f"{run.label} leaves {run.left_bytes:,} B behind after the step, made by {makers}.")
    return said


def _of_absent_ranks(report: Report) -> list[str]:
    of = report.distributed
    if of is None:
        return []
    if not of.ranks:
        return [_stopped(of.rank, of.stopped)] if of.stopped else []
    said = []
    if of.missing:
        ranks = f"rank {of.missing[0]}" if len(of.missing) == 1 else f"ranks {', '.join(map(str, of.missing))}"
        said.append(f"No report of {ranks}, of {of.world_size} ranks: the worst is the worst of the others.")
    return said + [_stopped(rank.rank, rank.stopped) for rank in of.ranks if rank.stopped]


def _stopped(rank: int, why: str) -> str:
    return f"Rank {rank} stopped, and its figures are those of its dry run: {why}"


def overview(report: Report) -> list[Table]:
    """The tables that every format shows: the modes side by side, their peaks, and what memory consists of."""
    shown = [comparison(report), peaks(report)] if report.runs else []
    return shown if report.reference is None else [*shown, composition(report, report.reference)]


_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
"""Characters that begin a formula in a spreadsheet (OWASP, CSV injection); tabs are escaped already."""


def cell_text(text: str) -> str:
    """A printable text for a CSV file, with an apostrophe before what a spreadsheet would compute.

    A text that begins with such an apostrophe gets another one, so that :func:`text_of_cell` can tell.
    """
    text = printable(text)
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def text_of_cell(cell: str) -> str:
    """The text of which :func:`cell_text` made a cell."""
    return cell[1:] if cell.startswith("'") and cell.lstrip("'").startswith(_FORMULA) else cell


# -- one row a mode


def comparison(report: Report) -> Table:
    """The modes side by side: saved bytes, peak, the process, time, and whether gradients are the same."""
    runs = report.runs
    columns = [
        (Column("mode", "key"), [Cell(run.label) for run in runs]),
        *_saved_columns(report),
        *_peak_columns(runs),
        *_process_columns(runs),
        *_time_columns(runs),
        (Column("gradients", "text", 4), [_gradients(run, report.reference) for run in runs]),
    ]
    bad = [*map(_apart_note, filter(_is_apart, runs)), *_gradient_notes(report)]
    shown = [(column, cells) for column, cells in columns if any(cell.text != NONE for cell in cells)]
    rows = [Row(cells) for cells in zip(*(cells for _, cells in shown), strict=True)]
    rows += [Row([Cell(mode), *(Cell(NONE) for _ in shown[1:])]) for mode in report.not_run]
    titles = {column.title for column, _ in shown}
    notes = [_APART_TORCH if "torch" in report.machine else _APART] if any(map(_difference, runs)) else []
    notes += [note for title, note in _PROCESS_NOTES.items() if title in titles]
    return Table("Modes", [column for column, _ in shown], rows, bad=bad, notes=notes)


_APART = (
    "Difference: measured minus predicted. The measurement includes temporaries of Python and NumPy inside an op,"
    " which a dry run does not make."
)
_APART_TORCH = (
    "Difference: measured minus predicted. The real step ran other ops than the dry run, or a kernel made other"
    " storages than PyTorch's own description of it says."
)

_PROCESS_NOTES = {
    "bookkeeping": "Bookkeeping: Python's own small objects at the measured peak; not part of it.",
    "allocator": "Allocator: the most that PyTorch's own allocator gave out, scratch memory of kernels included.",
    "reserved": "Reserved: the memory that this allocator had taken from the device.",
    "RSS growth": "RSS growth: the operating system's view of the process, allocator and interpreter included.",
}


def _saved_columns(report: Report) -> list[tuple[Column, list[Cell]]]:
    saved = [run.saved_bytes for run in report.runs]
    full = next((run.saved_bytes for run in report.runs if run.mode == "full"), 0)
    return [
        (Column("saved bytes", group=1), [_bytes(n) for n in saved]),
        (Column("MiB", group=1), mebibytes_of(saved)),
        (Column("", "bar", 1), bars_of(saved)),
        (Column("of full", group=1), [Cell(f"{n / full:.2f}×" if full else NONE) for n in saved]),
    ]


def _peak_columns(runs: Sequence[Run]) -> list[tuple[Column, list[Cell]]]:
    return [
        (Column("predicted peak", group=2), [_bytes(run.predicted_peak_bytes) for run in runs]),
        (Column("measured peak", group=2), [_bytes(run.measured_peak_bytes) for run in runs]),
        (Column("difference", group=2), [_apart(run, "{:+,}") for run in runs]),
        (Column("%", group=2), [_apart_percent(run) for run in runs]),
    ]


def _process_columns(runs: Sequence[Run]) -> list[tuple[Column, list[Cell]]]:
    return [
        (Column("bookkeeping", group=3), [_bytes(run.bookkeeping_bytes) for run in runs]),
        (Column("allocator", group=3), [_bytes(run.allocator_peak_bytes) for run in runs]),
        (Column("reserved", group=3), [_bytes(run.reserved_peak_bytes) for run in runs]),
        (Column("RSS growth", group=3), [_bytes(run.rss_peak_bytes) for run in runs]),
    ]


def _time_columns(runs: Sequence[Run]) -> list[tuple[Column, list[Cell]]]:
    again = [run.recomputed_flops for run in runs]
    return [
        *((Column(phase, group=4), [_phase(run, phase) for run in runs]) for phase in Seconds.__struct_fields__),
        (Column("recomputed FLOPs", group=4), [Cell(format_flops(n) if n else NONE) for n in again]),
    ]


def _phase(run: Run, phase: str) -> Cell:
    """The time of a phase, where the run has that phase at all."""
    absent = run.seconds is None or (run.mode == "inference" and phase != "forward")
    seconds = 0.0 if absent else getattr(run.seconds, phase)
    return Cell(format_seconds(seconds) if seconds else NONE)


def _difference(run: Run) -> int | None:
    if run.predicted_peak_bytes is None or run.measured_peak_bytes is None:
        return None
    return run.measured_peak_bytes - run.predicted_peak_bytes


def _is_apart(run: Run) -> bool:
    """Whether prediction and measurement differ by more than 1 % + 256 KiB, in exact arithmetic."""
    difference, predicted = _difference(run), run.predicted_peak_bytes
    if difference is None or predicted is None:
        return False
    return 100 * abs(difference) > predicted + 100 * 256 * KIB


def _apart(run: Run, form: str) -> Cell:
    difference = _difference(run)
    return Cell(NONE) if difference is None else Cell(form.format(difference), "bad" if _is_apart(run) else "")


def _apart_percent(run: Run) -> Cell:
    difference, predicted = _difference(run), run.predicted_peak_bytes
    if difference is None or not predicted:
        return Cell(NONE)
    return Cell(f"{100 * difference / predicted:+.2f} %", "bad" if _is_apart(run) else "")


def _apart_note(run: Run) -> str:
    return (
        f"{run.label}: predicted and measured peak differ by {abs(_difference(run) or 0):,} B, more than"
        " 1 % + 256 KiB: the prediction does not hold for this run."
    )


def _gradients(run: Run, reference: Run | None) -> Cell:
    if run.gradient_sha256 is None or reference is None or reference.gradient_sha256 is None:
        return Cell(NONE)
    if run.gradient_sha256 != reference.gradient_sha256:
        return Cell("DIFFERENT", "bad")
    return Cell("reference", "faint") if run is reference else Cell("bit-identical", "good")


def _gradient_notes(report: Report) -> list[str]:
    return [
        f"{run.label}: its gradients DIFFER from those of {report.reference.label}."
        for run in report.runs
        if report.reference is not None and _gradients(run, report.reference).text == "DIFFERENT"
    ]


def peaks(report: Report) -> Table:
    """What is alive at each mode's peak, and where that is."""
    used = [part for part in PARTS if any(getattr(run.peak, part) for run in report.runs)]
    columns = [
        Column("mode", "key"),
        Column("peak bytes", group=1),
        Column("at", "text", 1),
        *(Column(part, group=2) for part in used),
    ]
    rows = [
        Row(
            [
                Cell(run.label),
                _bytes(run.peak.total_bytes),
                Cell(place(run)),
                *(_bytes(getattr(run.peak, part)) for part in used),
            ]
        )
        for run in report.runs
    ]
    measured = [run.label for run in report.runs if run.predicted_peak_bytes is None]
    notes = [f"Measured, because nothing was predicted: {', '.join(measured)}."] if measured else []
    return Table("Alive at the peak, above the arguments", columns, rows, notes=notes)


def place(run: Run) -> str:
    """Where a run has its peak: ``backward of relu, layers.198``."""
    peak = run.peak
    return f"{peak.phase} of {peak.op}" + (f", {peak.path}" if peak.path else "")


# -- one row a rank


def ranks(report: Report) -> Table:
    """The ranks of a merged report, those that need the most memory first, in the mode that they are compared by."""
    of = report.distributed
    assert of is not None
    leading = of.ranks[0].leading
    sizes = [_rank_sizes(rank) for rank in of.ranks]
    used = [title for title in sizes[0] if any(of_rank[title] for of_rank in sizes)]
    rows = [
        Row([Cell(f"{rank.rank}{' (stopped)' if rank.stopped else ''}"), *(_bytes(of_rank[title]) for title in used)])
        for rank, of_rank in zip(of.ranks, sizes, strict=True)
    ]
    notes = [
        "Memory: what was there before the step, and the peak above it. Gradients: of parameters, at the step's end."
    ]
    if len(sizes) > 1:
        differing = ", ".join(title for title in used if len({of_rank[title] for of_rank in sizes}) > 1)
        notes.append(f"The ranks differ in: {differing}." if differing else "All ranks have the same figures.")
    if of.gradient_as_bucket_view:
        notes.append("Parameter gradients are views of the gradient buckets, and need no memory of their own.")
    groups = dict.fromkeys(["memory", *of.ranks[0].arguments.by_name()], 1)
    columns = [Column("rank", "key"), *(Column(title, group=groups.get(title, 2)) for title in used)]
    title = "Ranks, the worst first" + ("" if leading is None else f": {leading.mode}")
    return Table(title, columns, rows, bad=_unequal(report), notes=notes)


def _rank_sizes(rank: Rank) -> dict[str, int | None]:
    """What a row says of a rank, by the column's title."""
    sizes: dict[str, int | None] = {"memory": rank.memory_bytes, **rank.arguments.by_name()}
    run = rank.leading
    if run is not None:
        sizes |= {
            "saved bytes": run.saved_bytes,
            "gradients": run.gradient_bytes,
            "gathered": run.peak.gathered,
            "buckets": run.peak.buckets,
            "predicted peak": run.predicted_peak_bytes,
            "measured peak": run.measured_peak_bytes,
        }
    return sizes


def _unequal(report: Report) -> list[str]:
    """Under DDP every rank has the same gradients, once they have been reduced."""
    of = report.distributed
    if of is None or of.strategy != "ddp":
        return []
    said = []
    for number, run in enumerate(report.runs):
        hashes = {rank.runs[number].gradient_sha256 for rank in of.ranks} - {None}
        if len(hashes) > 1:
            said.append(f"{run.label}: the gradients of the ranks DIFFER, though DDP has reduced them.")
    return said


# -- what training memory consists of


def composition(report: Report, run: Run) -> Table:
    """What memory consists of at a run's peak; the shares add up to 100 % of the total in the last row."""
    always = ("parameters", "gradients", "saved activations", "workspace")
    parts = {name: n for name, n in report.training_memory(run).items() if n or name in always}
    sizes = list(parts.values())
    total = sum(sizes)
    shares = percentages_of(sizes)
    mebibytes = mebibytes_of([*sizes, total])
    columns = [
        Column("memory", "key"),
        Column("bytes"),
        Column("MiB"),
        Column("share"),
        Column("", "bar", optional=True),
    ]
    rows = [
        Row([Cell(name), _bytes(size), mib, Cell(share), bar])
        for name, size, mib, share, bar in zip(parts, sizes, mebibytes, shares, bars_of(sizes), strict=False)
    ]
    whole = "100.0 %" if total else NONE
    last = Row([Cell("total"), _bytes(total), mebibytes[-1], Cell(whole), Cell("")])
    notes = [f"Parameter gradients at the end of the step: {run.gradient_bytes:,} B."] if run.gradient_bytes else []
    if not report.arguments.optimizer_bytes:
        notes.append("Optimiser state is not included: it comes on top (Adam keeps two numbers per parameter).")
    return Table(f"Memory at the peak of {run.label}: {place(run)}", columns, rows, last, notes=notes)


def percentages_of(sizes: Sequence[int]) -> list[str]:
    """Shares to a tenth of a percent that add up to 100.0 exactly: the largest remainders are rounded up."""
    total = sum(sizes)
    if total == 0:
        return [NONE] * len(sizes)
    tenths = [1000 * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: 1000 * sizes[i] % total, reverse=True)
    for i in by_remainder[: 1000 - sum(tenths)]:
        tenths[i] += 1
    return [f"{n // 10}.{n % 10} %" for n in tenths]


# -- one row a layer


def layers(run: Run, folded: bool = True) -> Table:
    """The run's layers with all that they save, and a total that is the sum of the rows."""
    folds = fold(run.layers) if folded else [Fold((layer,)) for layer in run.layers]
    timed = any(layer.seconds is not None for layer in run.layers)
    repeated = any(row.calls > 1 for row in folds)
    columns = [
        Column("layer", "key"),
        Column("op", "text"),
        *([Column("calls")] if repeated else []),
        Column("output", "text", optional=True),
        Column("saved bytes"),
        Column("shared bytes"),
        Column("parameter bytes", optional=True),
        Column("FLOPs"),
        *([Column("time", optional=True)] if timed else []),
    ]
    rows = [_layer_row(row, repeated, timed) for row in folds]
    return Table(f"Layers of {run.label}", columns, rows, _layer_total(run, repeated, timed), notes=_layer_notes(folds))


def _layer_row(row: Fold, repeated: bool, timed: bool) -> Row:
    first = row.layers[0]
    path = (row.path or "(top)") + (" *" if first.recomputed else "")
    cells = [
        Cell(path),
        Cell(first.op),
        *([Cell(str(row.calls))] if repeated else []),
        Cell(form(first.dtype, first.output_shape) if first.dtype else ""),
        _bytes(sum(layer.saved_bytes for layer in row.layers)),
        _bytes(sum(layer.shared_bytes for layer in row.layers)),
        _bytes(sum(layer.parameter_bytes for layer in row.layers)),
        _flops(row.layers),
        *([_seconds(row.layers)] if timed else []),
    ]
    return Row(cells, [_detail(row, number) for number in range(len(first.saved))])


def _layer_total(run: Run, repeated: bool, timed: bool) -> Row:
    cells = [
        Cell("total"),
        Cell(""),
        *([Cell(str(sum(layer.count for layer in run.layers)))] if repeated else []),
        Cell(""),
        _bytes(sum(layer.saved_bytes for layer in run.layers)),
        Cell(""),
        Cell(""),
        _flops(run.layers),
        *([_seconds(run.layers)] if timed else []),
    ]
    return Row(cells)


def _detail(row: Fold, number: int) -> Detail:
    first, last = row.layers[0].saved[number], row.layers[-1].saved[number]
    each = " each" if len(row.layers) > 1 else ""
    return Detail(first.name, f"{first.bytes:,} B{each}", span(_from(first), _from(last)))


def _from(value: SavedValue) -> str:
    return ", ".join(part for part in (value.origin, value.source) if part)


def _layer_notes(folds: Sequence[Fold]) -> list[str]:
    notes = []
    if any(layer.shared_bytes for row in folds for layer in row.layers):
        notes.append("Shared bytes are charged to the layer that made them; they are not in the sum.")
    if any(len(row.layers) > 1 for row in folds):
        notes.append("Identical layers are folded into one row, whose numbers are sums.")
    if any(row.layers[0].recomputed for row in folds):
        notes.append("* recomputed in backward.")
    return notes


# -- cells


def _bytes(size: int | None) -> Cell:
    return Cell(NONE if size is None else f"{size:,}", "" if size else "faint")


def mebibytes_of(sizes: Sequence[int]) -> list[Cell]:
    """All with the same number of places: two, or what the largest needs for two digits, but at most four."""
    largest = max(sizes, default=0) / MIB
    places = 2 if largest >= 0.1 or largest == 0 else 3 if largest >= 0.01 else 4
    return [Cell(f"{size / MIB:,.{places}f}", "" if size else "faint") for size in sizes]


def bars_of(sizes: Sequence[int]) -> list[Cell]:
    """All as bars, the longest for the largest."""
    most = max(sizes, default=0)
    return [Cell("", share=size / most if most else 0.0) for size in sizes]


def _flops(rows: Sequence[Layer]) -> Cell:
    flops = sum(layer.flops for layer in rows)
    return Cell(format_flops(flops) if flops else "0", "" if flops else "faint")


def _seconds(rows: Sequence[Layer]) -> Cell:
    taken = [layer.seconds for layer in rows if layer.seconds is not None]
    return Cell(format_seconds(sum(taken)) if taken else NONE)
