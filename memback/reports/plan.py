"""A plan for readers: what it takes, what is kept of each part, and a picture of what is recomputed when.

The parts are stages of a chain, or nodes of a graph; for PyTorch modules see :mod:`memback.reports.torch_plan`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol, TypeVar

from memback.plans.actions import Action, Backward, Compute, Forward, Keep, Reverse
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.planning import FrontierPoint, ModelPlan, knee
from memback.plans.model.region import Region
from memback.profiling.report import Report
from memback.reports.folding import span
from memback.reports.tables import NONE, Cell, Column, Row, Table
from memback.units import MIB, format_bytes, format_flops, format_seconds

__all__ = [
    "MOST_ROWS",
    "AnyPlan",
    "drawn",
    "folded",
    "frontier",
    "frontier_of",
    "memory",
    "parts",
    "picture",
    "sentences",
    "sweeps",
    "times",
]

MOST_ROWS = 24
"""Of a table or picture of a plan; those left out are counted."""

_PARTS = ("saved", "recomputed", "gradients", "outputs", "workspace")
_MOST_POINTS = 16

_Kind = TypeVar("_Kind", bound=Hashable)


class AnyPlan(Protocol):
    """A plan of any kind, as far as it is told here; sizes in bytes, ``reserve_bytes`` of the budget are left free."""

    @property
    def budget(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def reserve_bytes(self) -> int: ...
    @property
    def reserve_for(self) -> str: ...
    @property
    def peak(self) -> Mapping[str, Any]: ...
    @property
    def flops(self) -> int: ...
    @property
    def extra_flops(self) -> int: ...
    @property
    def optimality(self) -> str: ...


def sentences(plan: AnyPlan, full_peak: int, seconds: tuple[float, float] | None = None) -> list[str]:
    """What a plan costs and what is proved of it; ``seconds`` are those of recomputation (predicted) and of a step."""
    share = plan.extra_flops / max(plan.flops, 1)
    lines = [
        f"Recomputed: {format_flops(plan.extra_flops)}, {100 * share:.1f} % of a forward pass"
        f" (about {100 * share / 3:.1f} % of a step).",
        f"Peak at {100 * plan.peak_bytes / full_peak:.1f} % of full retention's {format_bytes(full_peak)}.",
        f"Proof: {plan.optimality}.",
    ]
    if seconds is not None:
        extra, step = seconds
        lines.insert(1, f"Predicted time: {format_seconds(extra)} more than the {format_seconds(step)} of a step.")
    return lines


def memory(plan: AnyPlan) -> Table:
    """The budget, and what the peak is made of."""
    where = f"{plan.peak['phase']}, {plan.peak['op']}" + (f" of {plan.peak['path']}" if plan.peak["path"] else "")
    parts = [(name, int(plan.peak[name])) for name in _PARTS]
    rows = [_size_row("budget", plan.budget, plan.budget), _size_row("peak", plan.peak_bytes, plan.budget)]
    rows += [_size_row(f"  {name}", size, plan.budget) for name, size in parts if size]
    notes = [f"The peak is in {where}; predicted, exactly."]
    if plan.reserve_bytes:
        rows.append(_size_row("reserve", plan.reserve_bytes, plan.budget))
        notes.append(f"Reserve: for {plan.reserve_for}.")
    columns = [Column("", "key"), Column("bytes"), Column("MiB"), Column("", "bar"), Column("of budget")]
    return Table("Memory above the arguments", columns, rows, notes=notes)


def _size_row(name: str, size: int, budget: int) -> Row:
    share = size / max(budget, 1)
    return Row([Cell(name), Cell(f"{size:,}"), Cell(f"{size / MIB:.2f}"), Cell("", share=share), Cell(f"{share:.1%}")])


# -- what is kept of each part


def folded(
    title: str,
    columns: Sequence[Column],
    kinds: Sequence[_Kind],
    cells: Callable[[_Kind, list[int]], Sequence[str]],
    note: str,
    whole: str,
) -> Table:
    """One row for each run of adjacent parts of a kind: its ``cells``. ``whole`` says where all of many rows are."""
    runs = groupby(range(len(kinds)), key=kinds.__getitem__)
    rows = [Row(list(map(Cell, cells(kind, list(numbers))))) for kind, numbers in runs]
    left = len(rows) - MOST_ROWS
    notes = [f"{left} more rows are not shown; {whole}.", note] if left > 0 else [note]
    return Table(title, columns, rows[:MOST_ROWS], notes=notes)


def times(runs: int) -> str:
    """How often a part is run again, in a cell."""
    return f"{runs}×" if runs else NONE


def parts(plan: ModelPlan) -> Table:
    """One row for each run of adjacent stages, or nodes of a graph, with the same treatment."""
    return _nodes(plan, plan.region) if isinstance(plan.region, GraphRegion) else _stages(plan, plan.region)


_TREATMENT = (Column("forward keeps", "text"), Column("bytes kept"), Column("run again"))


def _stages(plan: ModelPlan, region: Region) -> Table:
    def kind(i: int) -> tuple[str, int, int]:
        keep, stage = region.first[i], plan.stages[i]
        runs = max((plan.runs.get(number, 0) for number in range(region.bounds[i], region.bounds[i + 1])), default=0)
        if keep is Keep.EVERYTHING:
            whole = region.kept[i] is None
            return "all that backward needs" if whole else "expensive ops only", stage.saved_bytes, runs
        held = plan.stages[i - 1].output_bytes if i else 0
        return ("its input", held, runs) if keep is Keep.INPUT else ("nothing", 0, runs)

    def cells(kind: tuple[str, int, int], numbers: list[int]) -> list[str]:
        keeps, held, runs = kind
        return [_numbered(numbers), _layers(region, numbers), keeps, f"{held * len(numbers):,}", times(runs)]

    return folded(
        "Stages",
        [Column("stages", "key"), Column("layers", "text"), *_TREATMENT],
        list(map(kind, range(len(plan.stages)))),
        cells,
        "A stage is a run of ops between two points where one activation alone is used further on.",
        "--json has every stage",
    )


def _nodes(plan: ModelPlan, region: GraphRegion) -> Table:
    nodes = region.graph.nodes
    outputs, saves = region.stored_in_forward

    def kind(i: int) -> tuple[str, int]:
        residuals = nodes[i].saved_bytes and i in saves
        kept = " and ".join(["its output"] * (i in outputs) + ["residuals"] * bool(residuals))
        return kept or "nothing", plan.runs.get(region.makers[i], 0)

    def cells(kind: tuple[str, int], numbers: list[int]) -> list[str]:
        ops = list(dict.fromkeys(region.calls[region.makers[i]].op for i in numbers))
        held = sum(nodes[i].output_bytes * (i in outputs) + nodes[i].saved_bytes * (i in saves) for i in numbers)
        shown = ", ".join(ops[:2]) + " …" * (len(ops) > 2)
        return [_numbered(numbers), shown, _layers(region, numbers), kind[0], f"{held:,}", times(kind[1])]

    return folded(
        "Nodes",
        [Column("nodes", "key"), Column("ops", "text"), Column("layers", "text"), *_TREATMENT],
        list(map(kind, range(len(nodes)))),
        cells,
        "A node is an op with the views of its output, and the ops before it whose output it alone uses.",
        "--json has every node",
    )


def _numbered(numbers: Sequence[int]) -> str:
    first, last = numbers[0], numbers[-1]
    return str(first) if first == last else f"{first}–{last}"


def _layers(region: Region | GraphRegion, numbers: Sequence[int]) -> str:
    """The first and the last layer of a run of parts."""
    calls = region.calls[region.bounds[numbers[0]] : region.bounds[numbers[-1] + 1]]
    paths = [call.path for call in calls if call.path] or ["(top)"]
    one_level = paths[0].count(".") == paths[-1].count(".")
    return span(paths[0], paths[-1]) if one_level else f"{paths[0]} – {paths[-1]}"


# -- the picture


def picture(plan: ModelPlan, width: int) -> Iterator[str]:
    """A column for each stage (or several, where there are more than ``width``), a line for each sweep over them."""
    region = plan.region
    if isinstance(region, GraphRegion):
        yield from drawn(list(_sweeps_of_graph(region)), width, _GRAPH_LEGEND, "nodes")
    else:
        marks = {i: "▣" for i, kept in enumerate(region.kept) if kept is not None}
        yield from drawn(list(sweeps(region.actions, region.stages, marks)), width, _LEGEND)


def drawn(marked: list[tuple[str, list[str]]], width: int, legend: str, columns: str = "stages") -> Iterator[str]:
    """Lines of marks with their names, narrowed to ``width`` columns, and what the marks mean."""
    n = len(marked[0][1])
    per = -(-n // max(width, 1))
    yield from _condensed([f"{label:>9}  {_narrowed(marks, per)}" for label, marks in marked])
    yield ""
    yield legend
    if per > 1:
        yield f"A column stands for {per} {columns}."


_GRAPH_LEGEND = "■ output kept  ▪ residuals kept  · nothing kept, or run again  ◂ reversed"
_LEGEND = "■ all kept  ▣ expensive ops kept  ▪ input kept  · nothing kept  ◂ reversed"
_ORDER = " ·▪◂▣■"


def sweeps(actions: Iterable[Action], n: int, whole: Mapping[int, str]) -> Iterator[tuple[str, list[str]]]:
    """(name, a mark for each of n stages) of each run over them: the forward pass, then each time some are run again.

    ``whole`` gives the marks of stages of which something else than all is kept, where everything is said to be.
    """
    marks, name, reversing = [" "] * n, "forward", False
    for action in actions:
        if isinstance(action, Forward):
            if reversing:
                yield name, marks
                marks, name, reversing = [" "] * n, "recompute", False
            marks[action.stage] = _mark(action, whole)
        elif isinstance(action, Backward):
            if not reversing and name == "forward":
                yield name, marks
                marks, name = [" "] * n, "backward"
            marks[action.stage] = "◂"
            reversing = True
    yield name, marks


def _mark(action: Forward, whole: Mapping[int, str]) -> str:
    if action.keep is Keep.EVERYTHING:
        return whole.get(action.stage, "■")
    return "▪" if action.keep is Keep.INPUT else "·"


def _sweeps_of_graph(region: GraphRegion) -> Iterator[tuple[str, list[str]]]:
    """(name, a mark for each node): the forward pass, then each run of computations with the reversals after it."""
    n = len(region.graph)
    outputs, saves = region.stored_in_forward
    forward = [" "] * n
    for i, node in enumerate(region.graph.nodes):
        residuals = node.saved_bytes and i in saves
        forward[i] = "■" if i in outputs else "▪" if residuals else "·"
    yield "forward", forward
    marks, name, reversing = [" "] * n, "backward", False
    for action in region.actions[region.after_forward :]:
        if isinstance(action, Compute):
            if reversing:
                yield name, marks
                marks, name, reversing = [" "] * n, "recompute", False
            name = "recompute"
            marks[action.node] = "·"
        elif isinstance(action, Reverse):
            marks[action.node] = "◂"
            reversing = True
    yield name, marks


def _narrowed(marks: Sequence[str], per: int) -> str:
    """A column for each ``per`` marks: the most informative of them."""
    return "".join(max(marks[i : i + per], key=_ORDER.index) for i in range(0, len(marks), per))


def _condensed(lines: list[str]) -> Iterator[str]:
    """The first and the last lines, and the number of those between them."""
    if len(lines) <= MOST_ROWS:
        yield from lines
        return
    half = MOST_ROWS // 2
    yield from lines[:half]
    yield f"{'':>9}  … {len(lines) - 2 * half} more …"
    yield from lines[-half:]


# -- the frontier


def frontier_of(report: Report) -> Table:
    """The frontier of a report, which has one, as a table."""
    points = sorted(FrontierPoint(point.peak_bytes, point.cost) for point in report.frontier)
    table = frontier(points, report.runs[0].flops, max(points[-1].budget, 1), "peak")
    return replace(table, notes=[*table.notes, "A peak is the planner's: a run of the plan takes no more."])


def frontier(points: Sequence[FrontierPoint], flops: int, full_peak: int, size: str = "budget") -> Table:
    """What less memory costs, a row a point, the knee marked. Of many points a selection that is even in memory.

    ``size`` says what the points' bytes are.
    """
    best = knee(points)
    shown = _spread(points, best)
    most = max(max(point.extra_flops for point in shown), 1)
    rows = [
        Row(
            [
                Cell(f"{point.budget:,}", "good" if point is best else ""),
                Cell(f"{point.budget / MIB:.2f}"),
                Cell(f"{point.budget / full_peak:.1%}"),
                Cell(f"{point.extra_flops / max(flops, 1):.1%}"),
                Cell("", share=point.extra_flops / most),
                Cell("knee" if point is best else "", "good"),
            ]
        )
        for point in shown
    ]
    columns = [
        Column(size, "number"),
        Column("MiB"),
        Column("of full"),
        Column("recomputed"),
        Column("", "bar"),
        Column("", "text"),
    ]
    notes = [
        "Recomputed: FLOPs beyond one forward pass, as a share of it. The knee is farthest from both extremes.",
        "The points are those of the planner chain: for a small model a plan may need less memory, or recompute less.",
    ]
    if len(shown) < len(points):
        notes.insert(0, f"{len(shown)} of {len(points)} points; --json has all.")
    return Table("Memory against computation", columns, rows, notes=notes)


def _spread(points: Sequence[FrontierPoint], best: FrontierPoint) -> list[FrontierPoint]:
    if len(points) <= _MOST_POINTS:
        return list(points)
    low, high = points[0].budget, points[-1].budget
    wanted = [low + (high - low) * i / (_MOST_POINTS - 1) for i in range(_MOST_POINTS)]
    chosen = {min(range(len(points)), key=lambda i: abs(points[i].budget - size)) for size in wanted}
    chosen |= {points.index(best)}
    return [points[i] for i in sorted(chosen)]
