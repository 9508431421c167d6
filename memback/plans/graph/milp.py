"""The cheapest schedule of a graph over its fixed order, as a mixed-integer linear program that HiGHS solves.

(Jain et al. 2020, "Checkmate: Breaking the Memory Wall with Optimal Tensor Rematerialization", arXiv 1910.02653;
Huangfu & Hall 2018 for HiGHS.) As there, S says what is stored when a stage begins and R what is computed in it. Two
things are particular here: the forward pass runs each node once, since the model itself does it, so there are stages
for backward alone, and stage b ends with the reversal of node b; and saves (residuals that a node's own backward alone
needs) are values of their own, so that they can be kept where the output that they come with is not.

Within a stage, an output is live from when it is stored or computed until its last use there. Instead of the paper's
products of variables for what is freed, ``A[b, v, i]`` says that output v is still live when its i-th user has its turn
in stage b: A[b, v, i] ≥ R[b, user i], A[b, v, i] ≥ A[b, v, i + 1], and beyond the last user A is S of the next stage.
It need not be declared an integer.

A stage whose reversal needs no value computes nothing, so it shares S with the next one: what the next one does not
store, there was no need to store in this one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from memback.plans.actions import GraphAction, GraphPlan
from memback.plans.graph.memory import finish
from memback.plans.graph.nodes import Graph
from memback.plans.graph.schedule import Schedule, everything, unfold
from memback.plans.linear_program import GAP, ONE, LinearProgram, Term, solve

__all__ = ["cheapest", "leanest"]

PROVED = "optimal over a fixed order"
_RETRIES = 3


def cheapest(graph: Graph, budget: int, time_limit: float, pinned: int = 0) -> GraphPlan | None:
    """The cheapest schedule within a budget (bytes); None if there is none, or none was found in time (seconds)."""
    end = time.monotonic() + time_limit
    room, bound = float(budget), 0.0
    for attempt in range(_RETRIES):
        answer = _Model(graph, pinned).solve(room, max(end - time.monotonic(), 0.1))
        if attempt == 0:
            bound = answer.bound
        if answer.actions is None:
            return None
        plan = finish(graph, answer.actions, "", None)
        if plan.peak_bytes <= budget:
            return _labelled(graph, plan, bound)
        room -= plan.peak_bytes - budget  # HiGHS keeps to a row but for a millionth of it
    return None


def leanest(graph: Graph, time_limit: float, pinned: int = 0) -> GraphPlan:
    """A schedule with the least peak, as far as it is found in time (seconds); the cheapest of these, likewise."""
    full = finish(graph, unfold(graph, everything(graph)), "optimal: nothing is computed twice", 0.0)
    answer = _Model(graph, pinned).solve(None, time_limit)
    if answer.actions is None:
        return full
    found = finish(graph, answer.actions, "feasible: the leanest schedule that was found over a fixed order")
    if full.peak_bytes <= found.peak_bytes:
        return full
    return cheapest(graph, found.peak_bytes, time_limit, pinned) or found


def _labelled(graph: Graph, plan: GraphPlan, bound: float) -> GraphPlan:
    """The plan with what is proved of it; ``bound`` is one on the cost of computing nodes again."""
    once = sum(node.cost + node.backward_cost for node in graph.nodes)
    gap = max(plan.cost - once - bound, 0) / max(once + bound, 1e-300)
    if gap <= GAP:
        return GraphPlan(plan.actions, plan.cost, plan.peak_bytes, PROVED, 0.0)
    label = f"feasible, at most {100 * gap:.2g} % above the optimum over a fixed order"
    return GraphPlan(plan.actions, plan.cost, plan.peak_bytes, label, gap)


@dataclass
class _Answer:
    """What HiGHS found: the actions of a schedule, if any, and a lower bound of the objective."""

    actions: list[GraphAction] | None
    bound: float


class _Model:
    """The program of a graph. A variable is its column's number, ``ONE`` (always 1) or None (always 0)."""

    def __init__(self, graph: Graph, pinned: int) -> None:
        self.graph = graph
        self.n = len(graph)
        self.pinned = pinned
        self.program = LinearProgram()
        self.scale = max((node.cost for node in graph.nodes), default=0.0) or 1.0
        self.unit = max(math.gcd(*_sizes(graph)), 1)
        self.needs = [frozenset(node.needs) for node in graph.nodes]
        self.own = [node.saved_bytes > 0 for node in graph.nodes]
        self.outputs: list[dict[int, int]] = []
        self.saves: list[dict[int, int]] = []
        self.runs: list[dict[int, int]] = [{} for _ in range(self.n)]
        self._memory: list[list[Term]] = []
        self._variables()
        for b in range(self.n):
            self._flow(b)
            self._memory_of(b)
        self._memory_of_forward()

    # -- variables

    def _variables(self) -> None:
        program, nodes = self.program, self.graph.nodes
        first_need = {v: b for b in reversed(range(self.n)) for v in self.needs[b]}
        for b in range(self.n):
            idle = b > 0 and not self.needs[b] and not self.own[b]
            if idle:
                self.outputs.append(dict(self.outputs[b - 1]))
                self.saves.append(dict(self.saves[b - 1]))
                continue
            useful = {v for v in range(b + 1) if first_need.get(v, self.n) <= b} | {
                v for v in range(b) if any(u <= b for u in self.graph.users[v])
            }
            self.outputs.append({v: self._stored(nodes[v].output_bytes, v in first_need) for v in sorted(useful)})
            self.saves.append({v: self._stored(nodes[v].saved_bytes, True) for v in range(b + 1) if self.own[v]})
            self.runs[b] = {v: program.variable(nodes[v].cost / self.scale) for v in range(b + 1)}

    def _stored(self, size: int, needed: bool) -> int:
        if needed and size < self.pinned:
            return ONE
        return self.program.variable()

    # -- what can be stored, computed and reversed

    def _flow(self, b: int) -> None:
        runs, outputs, saves = self.runs[b], self.outputs[b], self.saves[b]
        for v, stored in (self.outputs[b - 1] if b else {}).items():
            self._implies(stored, [outputs.get(v), runs.get(v)])
        for v, stored in (self.saves[b - 1] if b else {}).items():
            self._implies(stored, [saves.get(v), runs.get(v)])
        for v in self.needs[b]:
            self._implies(ONE, [outputs.get(v), runs.get(v)])
        if self.own[b]:
            self._implies(ONE, [saves.get(b), runs.get(b)])
        for k, run in runs.items():
            for used in set(self.graph.nodes[k].uses):
                self._implies(run, [outputs.get(used), runs.get(used)])
            if k not in self.needs[b] and not (k == b and self.own[b]):
                kept = [stored[b - 1].get(k) for stored in (self.outputs, self.saves) if b]
                self._implies(run, [*kept, *(runs.get(u) for u in self.graph.users[k])])  # it is of use

    def _implies(self, variable: int, any_of: Sequence[int | None]) -> None:
        """If the variable is 1, so is one of the others."""
        present = [other for other in any_of if other is not None]
        if variable in present or ONE in present:
            return
        self.program.at_most([(variable, 1.0), *((other, -1.0) for other in present)], 0.0)

    # -- memory

    def _memory_of(self, b: int) -> None:
        graph, nodes = self.graph, self.graph.nodes
        kept = self.outputs[b - 1] if b else {}
        kept_saves = self.saves[b - 1] if b else {}
        after = {v: kept[v] for v in kept if v not in self.needs[b]} | dict.fromkeys(self.needs[b], ONE)
        saves_after = {**kept_saves, **({b: ONE} if self.own[b] else {})}
        reversal = [(variable, float(nodes[v].output_bytes)) for v, variable in after.items()]
        reversal += [(variable, float(nodes[v].saved_bytes)) for v, variable in saves_after.items()]
        self._memory.append([(ONE, float(graph.during[b])), *reversal])
        lives = {v: self._live(b, v, after.get(v)) for v in range(b)} if self.runs[b] else {}
        for k, run in self.runs[b].items():
            terms: list[Term] = [(ONE, float(graph.before[b])), (run, float(nodes[k].workspace))]
            terms.append((run, float(nodes[k].output_bytes)))
            terms += [(s, float(nodes[v].output_bytes)) for v, s in self.outputs[b].items() if v > k]
            for v in range(k):
                live = next((a for user, a in lives[v] if user >= k), after.get(v))
                if live is not None:
                    terms.append((live, float(nodes[v].output_bytes)))
            terms += [(s, float(nodes[v].saved_bytes)) for v, s in self.saves[b].items() if v > k]
            terms += [(s, float(nodes[v].saved_bytes)) for v, s in saves_after.items() if v <= k]
            self._memory.append(terms)

    def _live(self, b: int, v: int, after: int | None) -> list[tuple[int, int]]:
        """By user of output v in stage b, in order: whether v is live when that has its turn."""
        if after == ONE:
            return []
        lives: list[tuple[int, int]] = []
        for user in reversed([u for u in self.graph.users[v] if u in self.runs[b]]):
            live = self.program.variable(integer=False)
            self.program.at_most([(self.runs[b][user], 1.0), (live, -1.0)], 0.0)
            if after is not None:
                self.program.at_most([(after, 1.0), (live, -1.0)], 0.0)
            lives.append((user, live))
            after = live
        return lives[::-1]

    def _memory_of_forward(self) -> None:
        nodes = self.graph.nodes
        outputs, saves = self.outputs[self.n - 1], self.saves[self.n - 1]
        for moment in self.graph.running:
            alive = frozenset(moment.alive)
            terms = [(ONE, float(moment.besides + sum(nodes[v].output_bytes for v in alive)))]
            terms += [
                (s, float(nodes[v].output_bytes)) for v, s in outputs.items() if v < moment.node and v not in alive
            ]
            terms += [(s, float(nodes[v].saved_bytes)) for v, s in saves.items() if v <= moment.node]
            self._memory.append(terms)

    # -- solving

    def solve(self, budget: float | None, time_limit: float) -> _Answer:
        """The cheapest schedule within a budget (bytes); without one, the schedule with the least peak."""
        program = self.program
        biggest = max(sum(coefficient for _, coefficient in terms) for terms in self._memory)
        # half a unit more than the budget is no more than it, whatever rows are allowed to be off by
        room = 1.0 if budget is None else (math.floor(budget / self.unit) + 0.4) * self.unit / biggest
        peak = program.variable(1.0, integer=False) if budget is None else None
        if peak is not None:
            program.cost[:peak] = [0.0] * peak
        for terms in self._memory:
            scaled = [(variable, coefficient / biggest) for variable, coefficient in terms]
            if peak is None:
                program.at_most(scaled, room)
            else:
                program.at_most([*scaled, (peak, -1.0)], 0.0)
        highs, bound = solve(program, time_limit)
        values = None if highs is None else np.asarray(highs) > 0.5
        actions = None if values is None else unfold(self.graph, self._schedule(values))
        return _Answer(actions, bound * (self.scale if budget is not None else biggest))

    def _schedule(self, values: Any) -> Schedule:
        def chosen(variables: dict[int, int]) -> frozenset[int]:
            return frozenset(v for v, variable in variables.items() if variable == ONE or values[variable])

        return Schedule(
            [chosen(stored) for stored in self.outputs],
            [chosen(stored) for stored in self.saves],
            [chosen(runs) for runs in self.runs],
        )


def _sizes(graph: Graph) -> list[int]:
    sizes = [size for node in graph.nodes for size in (node.output_bytes, node.saved_bytes, node.workspace)]
    return [*sizes, *(moment.besides for moment in graph.running), *graph.before, *graph.during]
