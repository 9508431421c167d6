"""Planners: the cheapest way to reverse a chain of stages within a budget of bytes.

>>> from memback import plans
>>> stages = [plans.Stage(forward_cost=1, backward_cost=2, output_bytes=100, saved_bytes=300)] * 10
>>> plan = plans.chain.solve(stages, budget=2000)
>>> plan.cost, plan.peak_bytes, plan.optimality
(36, 2000, 'optimal among persistent schedules')
"""

from __future__ import annotations

from memback.plans import actions, chain, graph
from memback.plans.actions import *  # noqa: F403 - which lists actions and plans
from memback.plans.chain import exact, revolve, uniform
from memback.plans.registry import PLANNERS, WHOLE, Planner, planner
from memback.plans.simulate import BudgetError, IllegalActionError, simulate
from memback.plans.stage import Stage

__all__ = [
    "PLANNERS",
    "WHOLE",
    "BudgetError",
    "IllegalActionError",
    "Planner",
    "Stage",
    "chain",
    "exact",
    "graph",
    "planner",
    "revolve",
    "simulate",
    "uniform",
]
__all__ += actions.__all__
