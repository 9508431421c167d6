"""A plan for a graph, for readers: what is kept of each node, and a picture of what is recomputed when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from memback.plans.actions import Compute, Reverse
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.planning import ModelPlan
from memback.reports.folding import span
from memback.reports.tables import NONE, Cell, Column, Row, Table

__all__ = ["LEGEND", "nodes", "sweeps"]

LEGEND = "■ output kept  ▪ residuals kept  · nothing kept, or run again  ◂ reversed"
_MOST_ROWS = 24


class _Kind(NamedTuple):
    """What a row of nodes has in common."""

    keeps: str
    times: int


def nodes(plan: ModelPlan, region: GraphRegion) -> Table:
    """One row for each run of adjacent nodes with the same treatment."""
    columns = [
        Column("nodes", "key"),
        Column("ops", "text"),
        Column("layers", "text"),
        Column("forward keeps", "text"),
        Column("bytes kept"),
        Column("run again"),
    ]
    rows = []
    for kind, group in groupby(range(len(region.graph)), key=lambda i: _kind(plan, region, i)):
        numbers = list(group)
        first, last = numbers[0], numbers[-1]
        rows.append(
            Row(
                [
                    Cell(str(first) if first == last else f"{first}–{last}"),
                    Cell(_ops(region, numbers)),
                    Cell(_layers(region, first, last)),
                    Cell(kind.keeps),
                    Cell(f"{sum(_held(region, i) for i in numbers):,}"),
                    Cell(f"{kind.times}×" if kind.times else NONE),
                ]
            )
        )
    notes = ["A node is an op with the views of its output, and the ops before it whose output it alone uses."]
    if len(rows) > _MOST_ROWS:
        notes.insert(0, f"{len(rows) - _MOST_ROWS} more rows are not shown; --json has every node.")
        rows = rows[:_MOST_ROWS]
    return Table("Nodes", columns, rows, notes=notes)


def _kind(plan: ModelPlan, region: GraphRegion, i: int) -> _Kind:
    outputs, saves = region.stored_in_forward
    residuals = region.graph.nodes[i].saved_bytes and i in saves
    kept = " and ".join(["its output"] * (i in outputs) + ["residuals"] * bool(residuals))
    return _Kind(kept or "nothing", plan.runs.get(region.makers[i], 0))


def _held(region: GraphRegion, i: int) -> int:
    node = region.graph.nodes[i]
    outputs, saves = region.stored_in_forward
    return node.output_bytes * (i in outputs) + node.saved_bytes * (i in saves)


def _ops(region: GraphRegion, numbers: Sequence[int]) -> str:
    names = list(dict.fromkeys(region.calls[region.makers[i]].op for i in numbers))
    return ", ".join(names[:2]) + " …" * (len(names) > 2)


def _layers(region: GraphRegion, first: int, last: int) -> str:
    calls = region.calls[region.bounds[first] : region.bounds[last + 1]]
    paths = [call.path for call in calls if call.path] or ["(top)"]
    if paths[0] == paths[-1]:
        return paths[0]
    one_level = paths[0].count(".") == paths[-1].count(".")
    return span(paths[0], paths[-1]) if one_level else f"{paths[0]} – {paths[-1]}"


def sweeps(region: GraphRegion) -> Iterator[tuple[str, list[str]]]:
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
