"""Schedules of any chain from tables of cost by segment and memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np

from memback.plans.actions import Action, Plan
from memback.plans.least import Least
from memback.plans.links import Figures, Links
from memback.plans.segments import Segment, unfold
from memback.plans.simulate import Chain, finish
from memback.plans.table import Table
from memback.units import format_bytes_short

__all__ = ["PERSISTENT", "Tabled"]

PERSISTENT = "optimal among persistent schedules"

_WHOLE, _GROUPS, _LEAF = 200, 128, 16
_WORK = 1_200_000_000
_SLACK = 32
_POINTS = 32


class Tabled:
    """Plans for a chain whose budgets lie between the least need and ``most`` bytes, at which nothing is gained.

    Budgets are split into tiers, each of which reaches down to half its largest budget and has a table of its own. All
    sizes in a table are multiples of its unit: the common unit of the chain's sizes where that makes few enough
    columns, and then the table is exact; otherwise a fixed fraction of the tier's largest budget. There, a plan for
    column c takes less than c units, since sizes were rounded up. So every plan is replayed in exact bytes, and the
    cheapest one that fits is taken, from whichever column, as long as that is not more than ``_SLACK`` units off.
    """

    def __init__(self, chain: Chain, most: int, save_everything: bool) -> None:
        self._chain, self._most = chain, most - chain.input_bytes
        figures = Figures(chain)
        self._unit = figures.unit
        self._least = _least(figures, 0, len(chain), _WHOLE, save_everything)
        self._rows = len(self._least.links)
        self._columns = int(np.clip(_WORK // max(len(chain), self._rows) ** 3, 400, 4000))
        self.minimum_bytes = chain.input_bytes + int(self._least.need[0, -1])

    @property
    def exact(self) -> bool:
        """Whether the plans are optimal for every budget."""
        return not self._least.leaves and self._unit_for(self._most) == self._unit

    def leanest(self) -> list[Action]:
        """The schedule with the least memory."""
        return unfold(Segment(self._least, 0, self._rows, int(self._least.need[0, -1])))

    def solve(self, budget: int) -> Plan:
        """The cheapest plan within a budget (bytes) that is not below the minimum."""
        free = budget - self._chain.input_bytes
        top = self._tier(free)
        return self._table(top, min(free, top)).best(budget)

    def frontier(self) -> Iterator[Plan]:
        """Plans over the whole range of budgets, each of which ``solve`` gives for its own peak; not in order."""
        top, least = self._most, int(self._least.need[0, -1])
        while top >= least:
            plans = self._table(top, top)
            low = 0 if plans.exact else top // 2
            for free in self._budgets(plans, max(low + 1, least), top):
                plan = plans.best(free + self._chain.input_bytes)
                if plan.peak_bytes - self._chain.input_bytes > low:
                    yield plan
            if plans.exact:
                return
            top = low

    def _budgets(self, plans: _Plans, low: int, top: int) -> list[int]:
        if not plans.exact:
            return sorted({int(free) for free in np.linspace(low, top, _POINTS)})
        every = plans.steps
        picked = np.unique(np.linspace(0, len(every) - 1, min(len(every), 20 * _POINTS)).round().astype(int))
        return [int(every[index]) * plans.unit for index in picked]

    def _tier(self, free: int) -> int:
        """The largest free bytes of the tier that ``free`` is in."""
        top = self._most
        while top // 2 >= free and self._unit_for(top) != self._unit:
            top //= 2
        return top

    def _unit_for(self, top: int) -> int:
        if top // self._unit <= self._columns:
            return self._unit
        return -(-top // self._columns)

    def _table(self, top: int, free: int) -> _Plans:
        unit = self._unit_for(top)
        exact = unit == self._unit
        return _Plans(self._chain, self._least, unit, free // unit + (0 if exact else _SLACK) + 1, exact)


class _Plans:
    """The plans of one table."""

    def __init__(self, chain: Chain, least: Least, unit: int, columns: int, exact: bool) -> None:
        self._chain, self._least, self.unit, self.exact = chain, least, unit, exact
        self._table = _table(least, unit, columns)
        row = self._table.row
        self.steps = np.flatnonzero(row < np.concatenate(([np.inf], row[:-1])))
        """Columns at which the cost falls."""
        self._known: dict[int, Plan] = {}

    def best(self, budget: int) -> Plan:
        """The cheapest plan with a peak within the budget (bytes)."""
        if self.exact:
            return self._plan(int(self.steps[self._count(budget)]))
        for index in range(self._count(budget, _SLACK), -1, -1):
            plan = self._plan(int(self.steps[index]))
            if plan.peak_bytes <= budget and self._is_near(plan, index):
                break
        else:
            return self._lean
        return min(plan, self._lean, key=lambda plan: plan.cost)

    def _count(self, budget: int, slack: int = 0) -> int:
        """Index of the last step within so many units more than the budget, -1 if there is none."""
        column = (budget - self._chain.input_bytes) // self.unit + slack
        return int(np.searchsorted(self.steps, column, "right")) - 1

    def _is_near(self, plan: Plan, index: int) -> bool:
        """Whether the search for the plan's own peak comes by the plan."""
        return index <= self._count(plan.peak_bytes, _SLACK)

    def _plan(self, column: int) -> Plan:
        if column not in self._known:
            actions = unfold(Segment(self._table, 0, len(self._table.links), column))
            self._known[column] = finish(self._chain, actions, self._optimality())
        return self._known[column]

    @cached_property
    def _lean(self) -> Plan:
        actions = unfold(Segment(self._least, 0, len(self._least.links), int(self._least.need[0, -1])))
        return finish(self._chain, actions, "the least memory of any persistent schedule; not proved cheapest for it")

    def _optimality(self) -> str:
        where = rounding = ""
        if self._least.leaves:
            where = f" whose long-lived checkpoints lie between {len(self._least.links)} groups of stages"
        if not self.exact:
            rounding = f", for sizes rounded up to multiples of {format_bytes_short(self.unit)}"
        inputs = "" if self._least.save_everything else " that store inputs alone"
        return PERSISTENT + inputs + where + rounding


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
