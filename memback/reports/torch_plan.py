"""A plan for a PyTorch module, for readers: what is kept of each block, and a picture of what is recomputed when."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from memback.plans.actions import Action, Forward, Keep
from memback.reports.folding import span
from memback.reports.plan import MOST_ROWS, drawn, folded, sweeps, times
from memback.reports.tables import NONE, Cell, Column, Row, Table

__all__ = ["blocks", "picture", "recomputed"]

_LEGEND = "■ all kept  ▪ input kept  · nothing kept  ◂ reversed"


class LayerCall(Protocol):
    """A call, as far as it is drawn: the path of the layer that made it."""

    @property
    def path(self) -> str: ...


class TorchPlan(Protocol):
    """A plan for a PyTorch module, as far as it is drawn (it is a :class:`memback.bridges.torch.TorchPlan`)."""

    @property
    def actions(self) -> Sequence[Action]: ...
    @property
    def stages(self) -> Sequence[object]: ...
    @property
    def calls(self) -> Sequence[LayerCall]: ...
    @property
    def bounds(self) -> Sequence[int]: ...
    @property
    def units(self) -> Sequence[int | None]: ...
    @property
    def runs(self) -> Mapping[int, int]: ...
    @property
    def saved_bytes(self) -> int: ...
    @property
    def unit_saved_bytes(self) -> Sequence[int]: ...


def blocks(plan: TorchPlan) -> Table:
    """One row for each run of adjacent blocks with the same treatment, one for the code between blocks, and the sum."""

    def cells(kind: tuple[str, int], units: list[int]) -> list[str]:
        saved = sum(plan.unit_saved_bytes[unit] for unit in units)
        return [_layers(plan, units), kind[0], f"{saved:,}", times(kind[1])]

    table = folded(
        "Blocks",
        [Column("blocks", "key"), Column("forward keeps", "text"), Column("saved bytes"), Column("run again")],
        list(_kinds(plan)),
        cells,
        "Saved bytes are charged to the block that has made them: the input that a block keeps, to the one before it. A"
        " block that keeps its input begins a segment, which is run again with the blocks after it that keep nothing.",
        "--save writes every block",
    )
    rest = plan.saved_bytes - sum(plan.unit_saved_bytes)
    sums = [["(other code)", _KEEPS[Keep.EVERYTHING], f"{rest:,}", NONE]] if rest else []
    sums.append(["total", "", f"{plan.saved_bytes:,}", ""])
    return replace(table, rows=[*table.rows, *(Row(list(map(Cell, texts))) for texts in sums)])


_KEEPS = {Keep.EVERYTHING: "all that backward needs", Keep.INPUT: "its input", Keep.NOTHING: "nothing"}


def _kinds(plan: TorchPlan) -> Iterator[tuple[str, int]]:
    """What the forward pass, which comes first, keeps of each unit, and how often that is run again."""
    first: dict[int, Keep] = {}
    for action in plan.actions:
        if isinstance(action, Forward):
            first.setdefault(action.stage, action.keep)
    runs = plan.runs
    for stage, unit in enumerate(plan.units):
        if unit is not None:
            yield _KEEPS[first[stage]], runs.get(plan.bounds[unit], 0)


def _layers(plan: TorchPlan, units: list[int]) -> str:
    """From which block to which some units go."""
    bounds = (*plan.bounds, len(plan.calls))
    first, last = plan.calls[bounds[units[0]]].path, plan.calls[bounds[units[-1] + 1] - 1].path
    same_list = first.rpartition(".")[0] == last.rpartition(".")[0] and "." in first
    return span(first, last) if same_list or first == last else f"{first} – {last}"


class RecomputedCalls(Protocol):
    """Calls of one op in one module that a plan recomputes."""

    @property
    def path(self) -> str: ...
    @property
    def op(self) -> str: ...
    @property
    def calls(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...


class PlanOfCalls(Protocol):
    """A plan over calls, as far as it is shown."""

    @property
    def recomputed(self) -> Sequence[RecomputedCalls]: ...


def recomputed(plan: PlanOfCalls) -> Table:
    """One row for all modules that differ by a number alone, those that make most first."""
    found: dict[str, list[RecomputedCalls]] = {}
    for one in plan.recomputed:
        found.setdefault(re.sub(r"\b\d+\b", "*", one.path), []).append(one)
    groups = sorted(found.items(), key=lambda item: -sum(one.bytes for one in item[1]))
    rows = [
        _recomputed_row(path or "(top)", ", ".join(dict.fromkeys(one.op for one in group)), group)
        for path, group in groups[:MOST_ROWS]
    ]
    rows.append(_recomputed_row("total", "", plan.recomputed))
    notes = ["All else that backward needs is kept. A * stands for the numbers of modules that are alike."]
    if len(groups) > MOST_ROWS:
        notes.insert(0, f"{len(groups) - MOST_ROWS} more rows are not shown; --save writes all of them.")
    columns = [Column("layers", "key"), Column("ops", "text"), Column("calls"), Column("bytes made"), Column("FLOPs")]
    return Table("Recomputed in backward", columns, rows, notes=notes)


def _recomputed_row(path: str, ops: str, group: Sequence[RecomputedCalls]) -> Row:
    flops = sum(one.flops for one in group)
    cells = [path, ops, f"{sum(one.calls for one in group):,}", f"{sum(one.bytes for one in group):,}"]
    return Row([*map(Cell, cells), Cell(f"{flops:,}" if flops else NONE)])


def picture(plan: TorchPlan, width: int) -> Iterator[str]:
    """A column for each stage (or several, where there are more than ``width``), a line for each sweep over them."""
    yield from drawn(list(sweeps(plan.actions, len(plan.stages), {})), width, _LEGEND)
