"""A plan for readers: what it takes, what is kept of each stage, and a picture of what is recomputed when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from memback.plans.actions import Action, Backward, Forward, Keep
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.planning import FrontierPoint, ModelPlan, knee
from memback.plans.model.region import Region
from memback.profiling.report import Report
from memback.reports import graph_plan
from memback.reports.folding import span
from memback.reports.tables import NONE, Cell, Column, Row, Table
from memback.units import MIB, format_bytes, format_flops, format_seconds

__all__ = ["drawn", "frontier", "frontier_of", "memory", "picture", "sentences", "stages", "sweeps"]

_PARTS = ("saved", "recomputed", "gradients", "outputs", "workspace")
_MOST_ROWS = 24
_MOST_POINTS = 16


def sentences(plan: PlanWithCost, full_peak: int, seconds: tuple[float, float] | None = None) -> list[str]:
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


class PlanWithBudget(Protocol):
    """A plan for a budget; sizes in bytes."""

    @property
    def budget(self) -> int:
        """The largest peak that was allowed."""

    @property
    def peak_bytes(self) -> int:
        """The peak of the planned step."""

    @property
    def reserve_bytes(self) -> int:
        """What is left of the budget for ..."""

    @property
    def reserve_for(self) -> str:
        """... this."""

    @property
    def peak(self) -> Mapping[str, Any]:
        """What the peak is made of, and where it is."""


class PlanWithCost(Protocol):
    """A plan that recomputes something."""

    @property
    def flops(self) -> int:
        """Of one forward pass."""

    @property
    def extra_flops(self) -> int:
        """FLOPs that are recomputed."""

    @property
    def peak_bytes(self) -> int:
        """The peak of the planned step, in bytes."""

    @property
    def optimality(self) -> str:
        """What is known of the plan."""


def memory(plan: PlanWithBudget) -> Table:
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


# -- stages


class _Kind(NamedTuple):
    """What a row of stages has in common."""

    keeps: str
    held: int
    runs: int


def stages(plan: ModelPlan) -> Table:
    """One row for each run of adjacent stages, or nodes of a graph, with the same treatment."""
    if isinstance(plan.region, GraphRegion):
        return graph_plan.nodes(plan, plan.region)
    region = plan.region
    columns = [
        Column("stages", "key"),
        Column("layers", "text"),
        Column("forward keeps", "text"),
        Column("bytes kept"),
        Column("run again"),
    ]
    kinds = [_kind(plan, region, i) for i in range(len(plan.stages))]
    rows = []
    for kind, group in groupby(range(len(kinds)), key=kinds.__getitem__):
        numbers = list(group)
        first, last = numbers[0], numbers[-1]
        name = str(first) if first == last else f"{first}–{last}"
        times = NONE if not kind.runs else f"{kind.runs}×"
        held = kind.held * len(numbers)
        rows.append(
            Row([Cell(name), Cell(_layers(plan, first, last)), Cell(kind.keeps), Cell(f"{held:,}"), Cell(times)])
        )
    notes = ["A stage is a run of ops between two points where one activation alone is used further on."]
    if len(rows) > _MOST_ROWS:
        left = len(rows) - _MOST_ROWS
        rows = rows[:_MOST_ROWS]
        notes.insert(0, f"{left} more rows are not shown; --json has every stage.")
    return Table("Stages", columns, rows, notes=notes)


def _kind(plan: ModelPlan, region: Region, i: int) -> _Kind:
    keep, stage = region.first[i], plan.stages[i]
    runs = max((plan.runs.get(number, 0) for number in range(region.bounds[i], region.bounds[i + 1])), default=0)
    if keep is Keep.EVERYTHING:
        whole = region.kept[i] is None
        return _Kind("all that backward needs" if whole else "expensive ops only", stage.saved_bytes, runs)
    held = plan.stages[i - 1].output_bytes if i else 0
    return _Kind("its input", held, runs) if keep is Keep.INPUT else _Kind("nothing", 0, runs)


def _layers(plan: ModelPlan, first: int, last: int) -> str:
    """The first and the last layer of a run of stages."""
    region = plan.region
    calls = region.calls[region.bounds[first] : region.bounds[last + 1]]
    paths = [call.path for call in calls if call.path] or ["(top)"]
    one_level = paths[0].count(".") == paths[-1].count(".")
    return span(paths[0], paths[-1]) if one_level else f"{paths[0]} – {paths[-1]}"


# -- the picture


def picture(plan: ModelPlan, width: int) -> Iterator[str]:
    """A column for each stage (or several, where there are more than ``width``), a line for each sweep over them."""
    region = plan.region
    if isinstance(region, GraphRegion):
        yield from drawn(list(graph_plan.sweeps(region)), width, graph_plan.LEGEND, "nodes")
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


def _narrowed(marks: Sequence[str], per: int) -> str:
    """A column for each ``per`` marks: the most informative of them."""
    return "".join(max(marks[i : i + per], key=_ORDER.index) for i in range(0, len(marks), per))


def _condensed(lines: list[str]) -> Iterator[str]:
    """The first and the last lines, and the number of those between them."""
    if len(lines) <= _MOST_ROWS:
        yield from lines
        return
    half = _MOST_ROWS // 2
    yield from lines[:half]
    yield f"{'':>9}  … {len(lines) - 2 * half} more …"
    yield from lines[-half:]


# -- the frontier


def frontier_of(report: Report) -> Table | None:
    """A report's frontier as a table, where it has one."""
    if not report.frontier or not report.runs:
        return None
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
