"""A plan for a PyTorch module, for people: what is kept of each block, and a picture of what is run again when."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from memback.plans.actions import Forward, Keep
from memback.reports.folding import span
from memback.reports.plan import drawn, sweeps
from memback.reports.tables import NONE, Cell, Column, Row, Table

if TYPE_CHECKING:
    from memback.bridges.torch.plan import TorchPlan

__all__ = ["blocks", "picture"]

_MOST_ROWS = 24
_LEGEND = "■ all kept  ▪ input kept  · nothing kept  ◂ reversed"


class _Kind(NamedTuple):
    """What a row of stages has in common."""

    keeps: str
    runs: int
    glue: bool


def blocks(plan: TorchPlan) -> Table:
    """One row a run of neighbouring blocks treated alike, and one for code between blocks that keeps something."""
    kept = _kept(plan)
    kinds = [_kind(plan, stage, kept[stage]) for stage in range(len(plan.stages))]
    rows = []
    for kind, group in groupby(range(len(kinds)), key=kinds.__getitem__):
        stages = list(group)
        held = sum(_held(plan, stage, kept[stage]) for stage in stages)
        if kind.glue and not held:
            continue
        times = f"{kind.runs}×" if kind.runs else NONE
        rows.append(Row([Cell(_layers(plan, stages)), Cell(kind.keeps), Cell(f"{held:,}"), Cell(times)]))
    notes = ["Linked blocks of which nothing but the input is kept are one segment, which is run again as a whole."]
    if len(rows) > _MOST_ROWS:
        notes.insert(0, f"{len(rows) - _MOST_ROWS} more rows are not shown; --save writes every block.")
    columns = [Column("blocks", "key"), Column("forward keeps", "text"), Column("bytes kept"), Column("run again")]
    return Table("Blocks", columns, rows[:_MOST_ROWS], notes=notes)


def _kept(plan: TorchPlan) -> list[Keep]:
    """What the forward pass, which comes first, keeps of each stage."""
    first: dict[int, Keep] = {}
    for action in plan.actions:
        if isinstance(action, Forward):
            first.setdefault(action.stage, action.keep)
    return [first[stage] for stage in range(len(plan.stages))]


def _kind(plan: TorchPlan, stage: int, keep: Keep) -> _Kind:
    unit = plan.units[stage]
    runs = 0 if unit is None else plan.runs.get(plan.bounds[unit], 0)
    words = {Keep.EVERYTHING: "all that backward needs", Keep.INPUT: "its input", Keep.NOTHING: "nothing"}
    return _Kind(words[keep], runs, unit is None)


def _held(plan: TorchPlan, stage: int, keep: Keep) -> int:
    if keep is Keep.EVERYTHING:
        return plan.stages[stage].saved_bytes
    return plan.stages[stage - 1].output_bytes if keep is Keep.INPUT and stage else 0


def _layers(plan: TorchPlan, stages: list[int]) -> str:
    """From which block to which some stages go."""
    units = [unit for unit in (plan.units[stage] for stage in stages) if unit is not None]
    if not units:
        return "(code between blocks)"
    bounds = (*plan.bounds, len(plan.calls))
    first, last = plan.calls[bounds[units[0]]].path, plan.calls[bounds[units[-1] + 1] - 1].path
    same_list = first.rpartition(".")[0] == last.rpartition(".")[0] and "." in first
    return span(first, last) if same_list or first == last else f"{first} – {last}"


def picture(plan: TorchPlan, width: int) -> Iterator[str]:
    """A column for each stage (or several, where there are more than ``width``), a line for each sweep over them."""
    yield from drawn(list(sweeps(plan.actions, len(plan.stages), {})), width, _LEGEND)
