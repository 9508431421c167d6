"""Plans for a whole model as a graph of its calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from memback.plans.actions import GraphPlan
from memback.plans.graph import milp
from memback.plans.graph.search import search
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.model_plan import RESERVE, ModelPlan, leaner
from memback.plans.model.step_graph import StepGraph
from memback.plans.stage import Stage

__all__ = ["GraphPlans"]

_REFINEMENTS = 3


@dataclass(frozen=True)
class GraphPlans:
    """A step as a graph, for which plans are made: ``realise`` runs one dry, ``everything`` is that which keeps all."""

    step: StepGraph
    everything: ModelPlan
    realise: Callable[[GraphRegion, tuple[Stage, ...], int, str], ModelPlan]

    def within(self, budget: int, time_limit: float) -> ModelPlan | None:
        """The cheapest plan that a dry run finds within the budget (bytes), if there is one."""
        end = time.monotonic() + time_limit
        most = budget - RESERVE
        room = most
        for _ in range(_REFINEMENTS):
            solved = search(self.step.graph, room, max(end - time.monotonic(), 0.1), self.step.pinned)
            if solved is None:
                return None
            made = self._realised(solved, budget)
            if made.peak_bytes <= most:
                return made
            room -= made.peak_bytes - most
        return None

    def leanest(self, time_limit: float) -> ModelPlan:
        """The plan with the least peak that is found; within twice the limit, since solving it once may take all."""
        solved = milp.leanest(self.step.graph, time_limit, self.step.pinned)
        made = min(self._realised(solved, 0), self.everything, key=lambda plan: plan.peak_bytes)
        end = time.monotonic() + time_limit

        def find(budget: int) -> ModelPlan | None:
            left = end - time.monotonic()
            return self.within(budget, left) if left > 0 else None

        return leaner(made, solved.peak_bytes + RESERVE, find)

    def _realised(self, solved: GraphPlan, budget: int) -> ModelPlan:
        return self.realise(self.step.region(solved.actions), (), budget, solved.optimality)
