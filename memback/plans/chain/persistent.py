"""The cheapest schedule of a chain within a budget of bytes: the optimum among persistent schedules.

(Herrmann, Beaumont et al., "Optimal checkpointing for heterogeneous chains", arXiv 1911.13214.) A schedule is
*persistent* when whatever it stores stays until its stage is reversed, and what is right of a checkpoint is reversed
before anything left of it runs again. A schedule that drops a stored value early can be cheaper on small odd chains;
:mod:`memback.plans.chain.exact` finds those.

Budgets and peaks are bytes as :mod:`memback.plans.simulate` counts them, and every plan has been replayed there.

How sizes are treated, which a plan's ``optimality`` says:
    - stages alike: exact bytes, from a table by length of segment (:mod:`memback.plans.chain.identical`);
    - sizes that are multiples of a common unit, not too many of which make up the budget: exact, in that unit;
    - other sizes: costs are looked up by rounded sizes, choices are made by what they need in exact bytes. So the plan
      fits, but it is only near the optimum;
    - more than 200 stages, not alike: as before, by groups of neighbouring stages. A checkpoint inside a group
      lasts only while that group alone is reversed, which makes it a heuristic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from memback.plans.actions import Action, Plan
from memback.plans.chain import identical
from memback.plans.chain.identical import Identical
from memback.plans.chain.table_solver import PERSISTENT, TableSolver
from memback.plans.segments import Segment, inputs_alone, recorded, unfold
from memback.plans.simulate import BudgetError, Chain, finish, replay
from memback.plans.stage import Stage

__all__ = ["frontier", "solve"]

_WHOLE_FRONTIER, _FRONTIER_WORK, _FRONTIER_ACTIONS, _FRONTIER_SOLVES = 100, 2 * 10**9, 50_000, 16


def solve(stages: Sequence[Stage], budget: int, input_bytes: int = 0, save_everything: bool = True) -> Plan:
    """The cheapest persistent schedule whose peak is within the budget (bytes).

    With ``save_everything=False`` inputs alone are stored: a stage's saves are made just before its own backward, as
    revolve has it.

    Raises:
        BudgetError: nothing fits; it says what would, and what memory is made of there.
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    largest = _largest(chain, save_everything)
    if largest.peak_bytes <= budget:
        return largest
    planner = _planner(chain, largest.peak_bytes, save_everything)
    if budget < planner.minimum_bytes:
        peak = replay(chain, planner.leanest())[1]
        raise BudgetError(f"the leanest {planner.kind} of this chain of {len(chain)} stages", budget, peak)
    return planner.solve(budget)


def frontier(stages: Sequence[Stage], input_bytes: int = 0, save_everything: bool = True) -> list[tuple[int, float]]:
    """(peak in bytes, cost) of the cheapest schedules from the least memory up to that at which nothing is gained.

    Peaks rise and costs fall strictly; ``solve`` with a point's peak as its budget gives that peak and that cost. The
    points are all there are where sizes are exact and not many; otherwise a selection.

    Raises:
        UsageError: there is no stage, or ``input_bytes`` is negative.
    """
    chain = Chain(stages, input_bytes)
    largest = _largest(chain, save_everything)
    plans = [*_planner(chain, largest.peak_bytes, save_everything).frontier(), largest]
    points: list[tuple[int, float]] = []
    for peak, cost in sorted({(plan.peak_bytes, plan.cost) for plan in plans}):
        if not points or cost < points[-1][1]:
            points.append((peak, cost))
    return points


def _largest(chain: Chain, save_everything: bool) -> Plan:
    """The plan that no amount of memory makes cheaper."""
    n = len(chain)
    if save_everything:
        return finish(chain, list(recorded(0, n)), "optimal: nothing is run twice")
    return finish(chain, list(inputs_alone(n)), f"{PERSISTENT} that store inputs alone: every one is")


def _planner(chain: Chain, most: int, save_everything: bool) -> _Alike | TableSolver:
    return (_Alike if identical.applies(chain) else TableSolver)(chain, most, save_everything)


class _Alike:
    """Plans for stages alike, optimal for every budget, as :class:`TableSolver` makes them for others."""

    kind = "schedule"

    def __init__(self, chain: Chain, most: int, save_everything: bool) -> None:
        self._chain, self._most, self._save_everything = chain, most, save_everything
        self.minimum_bytes = chain.input_bytes + identical.least_need(chain, save_everything)

    def leanest(self) -> list[Action]:
        return self._actions(self._table(self.minimum_bytes), 0)

    def solve(self, budget: int) -> Plan:
        return self._plan(self._table(budget), 0)

    def frontier(self) -> Iterator[Plan]:
        n = len(self._chain)
        if n <= _WHOLE_FRONTIER:
            tabled = TableSolver(self._chain, self._most, self._save_everything)
            if tabled.exact:
                yield from tabled.frontier()
                return
        step = self._chain.activation_bytes[-1]
        budgets = (self._most - self.minimum_bytes) // step + 1 if step else 1
        yield self.solve(self.minimum_bytes)
        if n * n * (n + budgets) > _FRONTIER_WORK:
            for budget in np.linspace(self.minimum_bytes, self._most, _FRONTIER_SOLVES)[1:-1]:
                yield self.solve(int(budget))
            return
        table = self._table(self._most, budgets)
        falls = np.flatnonzero(np.diff(table.extra, append=table.never) > 0)
        for column in falls[:: -(-len(falls) * n // _FRONTIER_ACTIONS)]:
            yield self._plan(table, int(column))

    def _table(self, budget: int, budgets: int = 1) -> Identical:
        return Identical(self._chain, budget - self._chain.input_bytes, self._save_everything, budgets)

    def _actions(self, table: Identical, column: int) -> list[Action]:
        return unfold(Segment(table, 0, len(self._chain), column))

    def _plan(self, table: Identical, column: int) -> Plan:
        inputs = "" if self._save_everything else " that store inputs alone"
        return finish(self._chain, self._actions(table, column), PERSISTENT + inputs)
