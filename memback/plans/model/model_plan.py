"""A plan for a model's step: what is kept of it, what is computed again when, and what that takes.

What a budget counts is what a peak counts: saved and recomputed activations, gradients of activations and parameters,
and workspace, above the arguments. A plan's own peak is that of a dry run of the planned step, exact as every dry run
is in what arrays hold. What Python allocates for its own objects while an op runs is in no array: ``RESERVE`` bytes of
every budget are left for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from memback.errors import MembackError
from memback.plans.actions import Action, GraphAction
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.measure import planned
from memback.plans.model.region import Region
from memback.plans.model.replay import run_region
from memback.plans.saved import SavedPlan, check_parameters
from memback.plans.stage import Stage
from memback.profiling.measuring import made_of
from memback.units import format_bytes, format_bytes_short

if TYPE_CHECKING:
    from memback.nn.module import Module

__all__ = ["RESERVE", "FrontierPoint", "ModelPlan", "NoPlanError", "knee", "leaner", "shapes_of_parameters"]

RESERVE = 16 * 1024
"""Bytes of a budget that a plan leaves free for memory that no array holds."""

_PROBES = 8


class NoPlanError(MembackError):
    """No plan fits the budget; ``minimum_bytes`` is the least for which the planner has one.

    ``seconds`` is how long the leanest plan was searched for, where time ended the search or could have.
    """

    def __init__(self, budget: int, minimum: ModelPlan, seconds: float | None = None) -> None:
        self.budget = budget
        self.minimum_bytes = minimum.budget
        leanest = "the leanest" if seconds is None else f"the leanest found in {seconds:g} s"
        super().__init__(
            f"no plan fits {format_bytes(budget)}: {leanest} needs {format_bytes(minimum.budget)}, which is"
            f" {made_of(minimum.peak)}, reserve {format_bytes(RESERVE)}. Raise the budget to that, or make the step"
            " smaller (its batch, its model)"
        )


class FrontierPoint(NamedTuple):
    """A budget in bytes, and the FLOPs that the cheapest plan for it computes again."""

    budget: int
    extra_flops: float


@dataclass(frozen=True)
class ModelPlan(SavedPlan):
    """A plan for a model's step: what is kept of each stage of it, and what is computed again when.

    Attributes:
        region: the calls, how they are cut into stages, or make up the nodes of a graph, and the actions.
        stages: what the planner knew of the stages; sizes in bytes, costs in FLOPs. A graph has none.
        budget: in bytes.
        peak_bytes: of the whole step, above the arguments, exactly; at least ``RESERVE`` below the budget.
        saved_bytes: at the end of the forward pass.
        flops: of one forward pass.
        extra_flops: of what is computed again.
        runs: how often each call is run again.
        optimality: what is proved of the plan.
        peak: what the peak is made of, in bytes by category, and when it is there.
        parameters: the model's parameters and their shapes, which tell whether a model is the one that this is for.
    """

    region: Region | GraphRegion
    stages: tuple[Stage, ...]
    budget: int
    peak_bytes: int
    saved_bytes: int
    flops: int
    extra_flops: int
    runs: Mapping[int, int]
    optimality: str
    peak: Mapping[str, Any]
    parameters: Mapping[str, tuple[int, ...]]

    def __hash__(self) -> int:
        return hash((self.budget, self.peak_bytes, self.actions))

    @property
    def name(self) -> str:
        """What reports call it: ``plan:64.00MiB``."""
        return f"plan:{format_bytes_short(self.budget).replace(' ', '')}"

    @property
    def reserve_bytes(self) -> int:
        """Bytes of the budget that are left free ..."""
        return RESERVE

    @property
    def reserve_for(self) -> str:
        """... for this."""
        return "Python's own small objects while an op runs, which are in no array"

    @property
    def actions(self) -> tuple[Action, ...] | tuple[GraphAction, ...]:
        """The schedule."""
        return self.region.actions

    def keeping_everything(self) -> Region | GraphRegion:
        """The same region, with all kept that backward needs."""
        return self.region.keeping_everything()

    @contextmanager
    def apply(self, module: Module) -> Iterator[None]:
        """In the block, ``module`` runs this plan; gradients have the same bits as without it.

        Raises:
            UsageError: the plan was made for another model; or, when the step runs, for other inputs.
        """
        self.check(module)
        with planned(module, self.region.begin):
            yield

    def run(self, forward: Callable[..., Any], *args: Any) -> Any:
        """Run ``forward`` under the plan, as :meth:`apply` has a module do it."""
        return run_region(self.region.begin, forward, args, {})

    def check(self, module: Module) -> None:
        """Raise unless a module has the parameters that the plan was made for.

        Raises:
            UsageError: it has not; the message names the first difference.
        """
        check_parameters(self.parameters, shapes_of_parameters(module), type(module).__name__)

    def to_dict(self) -> dict[str, Any]:
        from memback.plans.model.files import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Any) -> ModelPlan:
        from memback.plans.model.files import from_dict

        return from_dict(data)


def shapes_of_parameters(module: Module) -> dict[str, tuple[int, ...]]:
    """A module's parameters and their shapes."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def leaner(best: ModelPlan, floor: int, find: Callable[[int], ModelPlan | None]) -> ModelPlan:
    """The plan with the least peak of ``best`` and those that ``find`` has for less budget, down to ``floor`` (bytes).

    A schedule that is the leanest by a simulation need not be when it is run, so others may take less.
    """
    found: ModelPlan | None = best
    while found is not None:
        best = replace(found, budget=found.peak_bytes + RESERVE)
        span = max(best.budget - floor, 0)
        budgets = sorted({floor + span * i // _PROBES for i in range(_PROBES)} | {best.budget - 1}) if span else []
        found = next((plan for budget in budgets if (plan := find(budget)) is not None), None)
    return best


def knee(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """The point that is farthest below the straight line from the frontier's first point to its last one."""
    first, last = points[0], points[-1]
    width, height = max(last.budget - first.budget, 1), max(first.extra_flops - last.extra_flops, 1e-300)

    def below(point: FrontierPoint) -> float:
        across = (point.budget - first.budget) / width
        return 1 - across - (point.extra_flops - last.extra_flops) / height

    return max(points, key=below)
