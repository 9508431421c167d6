"""Schedules of any chain from tables of cost by segment and memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from memback.plans.actions import Action, Plan
from memback.plans.chain.least import Least
from memback.plans.chain.table import Table
from memback.plans.links import Figures, Ints, Links
from memback.plans.segments import Segment, unfold
from memback.plans.simulate import Chain, finish
from memback.units import format_bytes_short

__all__ = ["PERSISTENT", "TableSolver"]

PERSISTENT = "optimal among persistent schedules"

_WHOLE, _GROUPS, _LEAF = 200, 128, 16
"""Stages of the longest chain that is not grouped, most groups, stages of the longest group that is not grouped."""
_WORK, _FEWEST, _MOST = 7 * 10**8, 500, 4000
"""Columns of a table: sums to be made for one of about a second, and bounds."""
_AHEAD = np.arange(2, 5)
"""How many columns further than the budget's to look costs up where sizes are rounded; the cheapest plan is taken."""
_BUDGETS, _STEPS = 16, 500
"""Most points of a frontier by tier, and where all of them are known."""


class TableSolver:
    """Plans for a chain whose budgets lie between the least need and ``most`` bytes, at which nothing is gained.

    Budgets are split into tiers, each of which reaches down to half its largest budget and has a table of its own. The
    unit of a table is the common unit of the chain's sizes where that makes few enough columns, and then it is exact;
    otherwise a fixed fraction of the tier's largest budget.
    """

    def __init__(self, chain: Chain, most: int, save_everything: bool) -> None:
        self._chain, self._most = chain, most - chain.input_bytes
        figures = Figures(chain)
        self._unit = figures.unit
        self._least = _least(figures, 0, len(chain), _WHOLE, save_everything)
        self._need = int(self._least.need[0, -1])
        self._columns = min(max(_WORK // len(self._least.links) ** 3, _FEWEST), _MOST)
        self._known: dict[tuple[int, int], list[tuple[int, Plan]]] = {}
        self.kind = "schedule by groups of stages" if self._least.leaves else "schedule"
        self.minimum_bytes = chain.input_bytes + self._need

    @property
    def exact(self) -> bool:
        """Whether the plans are optimal for every budget."""
        return not self._least.leaves and self._is_exact(self._most)

    def leanest(self) -> list[Action]:
        """The schedule with the least memory."""
        return unfold(Segment(self._least, 0, len(self._least.links), self._need))

    def solve(self, budget: int) -> Plan:
        """The cheapest plan within a budget (bytes) that is not below the minimum."""
        free = budget - self._chain.input_bytes
        top = self._tier(free)
        return self._best(self._table(top, min(free, top)), free)

    def frontier(self) -> Iterator[Plan]:
        """Plans over the whole range of budgets, each of which ``solve`` gives for its own peak; not in order."""
        top, seen = self._most, set[int]()
        while top >= self._need:
            table = self._table(top, top)
            if self._is_exact(top):
                every = _steps(table)
                for index in np.linspace(0, len(every) - 1, min(len(every), _STEPS)).round().astype(int):
                    yield self._best(table, int(every[index]) * table.unit)
                return
            low = max(top // 2 + 1, self._need)
            for free in _between(low, top):
                yield from self._settled(table, free, low, seen)
            top //= 2

    def _settled(self, table: Table, free: int, low: int, seen: set[int]) -> Iterator[Plan]:
        """The plan for ``free`` bytes, or for the peak of that one, and so on, that takes all that it was made for."""
        while free >= low and free not in seen:
            seen.add(free)
            plan = self._best(table, free)
            taken = plan.peak_bytes - self._chain.input_bytes
            if taken == free:
                yield plan
            free = taken

    def _best(self, table: Table, free: int) -> Plan:
        """The cheapest plan of a table that takes no more than ``free`` bytes."""
        steps = _steps(table)
        exact = table.unit == self._unit
        ahead = np.arange(0, 1) if exact else _AHEAD
        indices = np.searchsorted(steps, ahead + free // table.unit, "right") - 1
        # Near the least need no column may have a cost, because sizes are rounded up.
        columns = sorted({int(steps[index]) for index in indices if index >= 0}) or [free // table.unit]
        if exact:
            free = columns[0] * table.unit
        options = [self._option(table, free, column) for column in columns]
        return min(options, key=lambda plan: (plan.cost, plan.peak_bytes))

    def _option(self, table: Table, free: int, column: int) -> Plan:
        """The plan that a column makes of ``free`` bytes.

        With fewer bytes, but enough for that plan, the column makes the same one: no choice looks cheaper, and those
        that were made are still possible.
        """
        known = self._known.setdefault((table.unit, column), [])
        for most, plan in known:
            if plan.peak_bytes - self._chain.input_bytes <= free <= most:
                return plan
        known.append((free, self._finish(table, unfold(table.whole(free, column)))))
        return known[-1][1]

    def _finish(self, table: Table, actions: list[Action]) -> Plan:
        inputs = "" if self._least.save_everything else " that store inputs alone"
        where = rounding = ""
        if self._least.leaves:
            where = f" whose long-lived checkpoints lie between {len(self._least.links)} groups of stages"
        if table.unit != self._unit:
            rounding = f", but for sizes rounded to multiples of {format_bytes_short(table.unit)}"
        claim = "heuristic: " if where else "near-optimal: " if rounding else ""
        return finish(self._chain, actions, claim + PERSISTENT + inputs + where + rounding)

    def _tier(self, free: int) -> int:
        """The largest free bytes of the tier that ``free`` is in."""
        top = self._most
        while top // 2 >= free and not self._is_exact(top):
            top //= 2
        return top

    def _is_exact(self, top: int) -> bool:
        return top // self._unit <= self._columns

    def _table(self, top: int, free: int) -> Table:
        unit = self._unit if self._is_exact(top) else -(-top // self._columns)
        return _table(self._least, unit, free // unit + int(_AHEAD[-1]) + 1)


def _steps(table: Table) -> Ints:
    """Columns at which the cost falls."""
    return np.flatnonzero(table.row < np.concatenate(([np.inf], table.row[:-1])))


def _between(low: int, top: int) -> list[int]:
    """Sizes from low to top: in even steps, and more of them towards low."""
    even = (low + (top - low) * i // _BUDGETS for i in range(_BUDGETS + 1))
    return sorted({*even, *(low + (top - low) // 2**i for i in range(_BUDGETS // 2))})


def _least(figures: Figures, start: int, stop: int, whole: int, save_everything: bool) -> Least:
    """The least needs of a part of the chain, by groups of stages where there are more than ``whole``."""
    n = stop - start
    if n <= whole:
        return Least(Links(figures, range(start, stop + 1)), save_everything)
    groups = min(_GROUPS, -(-n // 2))
    cuts = [start + n * group // groups for group in range(groups + 1)]
    leaves = [_least(figures, a, b, _LEAF, save_everything) for a, b in pairwise(cuts)]
    return Least(Links(figures, cuts), save_everything, leaves)


def _table(least: Least, unit: int, columns: int) -> Table:
    return Table(least, unit, columns, [_table(leaf, unit, columns) for leaf in least.inside])
