"""How long each call of a region takes, and what a plan's recomputation will take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memback.engine.node import Node
from memback.engine.observer import Call, Observer
from memback.engine.op import Op
from memback.engine.recipe import RecordedCall
from memback.plans.model.measure import planned
from memback.plans.model.model_plan import ModelPlan
from memback.plans.model.region import Region
from memback.profiling.mode import Mode
from memback.profiling.step import Step

__all__ = ["Timing", "measure"]


@dataclass(frozen=True)
class Timing:
    """Measured seconds: of each call when it is run again (in forward, where none was), by its number in the region;
    and of a whole step without a plan.
    """

    calls: Mapping[int, float]
    step: float

    def extra(self, plan: ModelPlan) -> float:
        """Predicted seconds of what a plan computes again."""
        return sum(self.calls.get(number, 0.0) * times for number, times in plan.runs.items())


class _Clock(Observer):
    """Times each call: its forward, and its recomputation with the overhead around it."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        self._began = 0.0
        self._again = False

    def forward_begins(self, op: Op) -> None:
        if not self._again:
            self._began = time.perf_counter()

    def forward_ended(self, call: Call) -> None:
        ended = time.perf_counter()
        if isinstance(call.node, RecordedCall):
            self.seconds[call.node.index] = ended - self._began
        self._began = ended

    def recompute_begins(self, node: Node) -> None:
        self._again, self._began = True, time.perf_counter()

    def recompute_ended(self, node: Node) -> None:
        self._again = False


def measure(step: Step, plan: ModelPlan, rounds: int = 5) -> Timing:
    """Run the step for real, each stage run again where there are stages, and take medians over the rounds.

    Raises:
        UsageError: the step is not the one that the plan was made for.
    """
    assert step.module is not None
    region = plan.region.keeping_inputs() if isinstance(plan.region, Region) else plan.keeping_everything()
    seconds: list[Mapping[int, float]] = []
    steps: list[float] = []
    step.time(Mode("full"))
    for _ in range(rounds):
        clock = _Clock()
        with planned(step.module, region.begin), step.unchanged():
            step.run(Mode("checkpoint"), clock, update=False)
        seconds.append(clock.seconds)
        timed = step.time(Mode("full"))
        steps.append(timed.forward + timed.backward)
    numbers: Sequence[int] = sorted(seconds[0])
    return Timing({n: statistics.median(s[n] for s in seconds) for n in numbers}, statistics.median(steps))
