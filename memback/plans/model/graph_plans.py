"""Plans for a whole model as a graph of its calls, and the better of these and of those for a chain of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from memback.errors import UsageError
from memback.plans.actions import GraphPlan
from memback.plans.graph import milp
from memback.plans.graph.search import search
from memback.plans.model.planning import RESERVE, ModelPlan, NoPlanError, leaner
from memback.plans.model.step_graph import StepGraph

if TYPE_CHECKING:
    from memback.plans.model.planning import Planning

__all__ = ["PLANNERS", "leanest"]

_REFINEMENTS = 3


def whole(planning: Planning, budget: int, time_limit: float) -> ModelPlan:
    """The cheapest plan for the graph of a step's calls.

    Raises:
        NoPlanError: none fits, or none was found in time.
        UsageError: the graph is too large.
    """
    if planning.everything.budget <= budget:
        return replace(planning.everything, budget=budget)
    found = _within(planning, planning.step_graph, budget, time_limit)
    if found is None:
        found = planning.leanest("graph", time_limit)
        if found.budget > budget:
            raise NoPlanError(budget, found, time_limit)
    return replace(found, budget=budget)


def better(planning: Planning, budget: int, time_limit: float) -> ModelPlan:
    """The cheaper of the plans for the graph of a step's calls and for the chain of its stages.

    Raises:
        NoPlanError: neither fits.
    """
    if planning.everything.budget <= budget:
        return replace(planning.everything, budget=budget)
    plans: list[ModelPlan] = []
    with suppress(NoPlanError):
        plans.append(_by("chain", planning.plan(budget, "chain")))
    seconds: float | None = None
    with suppress(UsageError):  # too large
        found = _within(planning, planning.step_graph, budget, time_limit)
        seconds = time_limit
        if found is not None:
            plans.append(_by("graph", replace(found, budget=budget)))
    if not plans:
        found = planning.leanest("auto", time_limit)
        if found.budget > budget:
            raise NoPlanError(budget, found, seconds)
        plans.append(replace(found, budget=budget))
    return min(plans, key=lambda plan: (plan.extra_flops, plan.peak_bytes))


PLANNERS: Mapping[str, Callable[[Planning, int, float], ModelPlan]] = {"auto": better, "graph": whole}
"""The planners of :data:`memback.plans.registry.WHOLE`."""


def leanest(planning: Planning, planner: str, time_limit: float) -> ModelPlan:
    """The plan with the least peak that a planner of whole models finds.

    Raises:
        UsageError: the planner is ``graph``, and the graph is too large.
    """
    if planner == "graph":
        return _leanest(planning, planning.step_graph, time_limit)
    plans = [_by("chain", planning.leanest("chain"))]
    with suppress(UsageError):  # too large
        plans.append(_by("graph", planning.leanest("graph", time_limit)))
    return min(plans, key=lambda plan: (plan.peak_bytes, plan.extra_flops))


def _by(planner: str, plan: ModelPlan) -> ModelPlan:
    return replace(plan, optimality=f"{plan.optimality} (planner {planner})")


def _within(planning: Planning, step: StepGraph, budget: int, time_limit: float) -> ModelPlan | None:
    """The cheapest plan that a dry run finds within the budget, if there is one."""
    end = time.monotonic() + time_limit
    most = budget - RESERVE
    room = most
    for _ in range(_REFINEMENTS):
        solved = search(step.graph, room, max(end - time.monotonic(), 0.1), step.pinned)
        if solved is None:
            return None
        made = _realised(planning, step, solved, budget)
        if made.peak_bytes <= most:
            return made
        room -= made.peak_bytes - most
    return None


def _leanest(planning: Planning, step: StepGraph, time_limit: float) -> ModelPlan:
    """The plan with the least peak that is found; within twice the time limit, since solving it once may take all."""
    solved = milp.leanest(step.graph, time_limit, step.pinned)
    made = min(_realised(planning, step, solved, 0), planning.everything, key=lambda plan: plan.peak_bytes)
    end = time.monotonic() + time_limit

    def find(budget: int) -> ModelPlan | None:
        left = end - time.monotonic()
        return _within(planning, step, budget, left) if left > 0 else None

    return leaner(made, solved.peak_bytes + RESERVE, find)


def _realised(planning: Planning, step: StepGraph, solved: GraphPlan, budget: int) -> ModelPlan:
    return planning.realise(step.region(solved.actions), (), budget, solved.optimality)
