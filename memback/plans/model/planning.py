"""``mb.plan``: the cheapest way to run a model's step within a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from memback.errors import UsageError
from memback.plans.actions import Action, Plan
from memback.plans.budget import Budget
from memback.plans.chain import persistent
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.measure import Choice, StepStages, measure, predict, trace
from memback.plans.model.mixing import Mixing
from memback.plans.model.model_plan import (
    RESERVE,
    FrontierPoint,
    ModelPlan,
    NoPlanError,
    knee,
    leaner,
    shapes_of_parameters,
)
from memback.plans.model.policies import policy_plans
from memback.plans.model.region import Region, Selection
from memback.plans.registry import WHOLE
from memback.plans.registry import planner as planner_of
from memback.plans.segments import recorded
from memback.plans.simulate import BudgetError, Chain, finish
from memback.plans.stage import Stage
from memback.profiling.calling import step_of
from memback.profiling.mode import Mode
from memback.profiling.step import Step

if TYPE_CHECKING:
    from memback.engine.tensor import Tensor
    from memback.nn.module import Module
    from memback.optim import Optimizer
    from memback.plans.model.graph_plans import GraphPlans
    from memback.plans.model.step_graph import StepGraph

__all__ = [
    "KEEPING_EVERYTHING",
    "RESERVE",
    "TIME_LIMIT",
    "FrontierPoint",
    "ModelPlan",
    "NoPlanError",
    "Planning",
    "knee",
    "leaner",
    "plan",
]

TIME_LIMIT = 5.0
"""Seconds for the search for a graph's plan."""

KEEPING_EVERYTHING = frozenset({"chain", "exact", "all", *WHOLE})
"""Planners that compute nothing again where all that backward needs fits the budget."""

_REFINEMENTS = 3
_MIXTURES = 64
"""Points of the frontier between plans that keep stages in one way."""


def plan(
    module: Module,
    *inputs: Any,
    budget: str | int,
    step: Callable[[], Tensor] | None = None,
    planner: str = "auto",
    optimizer: Optimizer | None = None,
    time_limit: float = TIME_LIMIT,
) -> ModelPlan:
    """The cheapest plan whose peak is within a budget. Nothing is run or allocated: it is made from dry runs.

    Args:
        module: the model.
        *inputs: what it is called with, on real arrays, Tensors or :class:`memback.ShapeArray`.
        budget: the largest peak, above the arguments, in bytes, as ``"512MiB"``, or as ``"75%"`` of the full peak.
        step: runs forward and returns the scalar loss, calling the module once; by default the sum of its output.
        planner: one of :data:`memback.plans.PLANNERS` or :data:`memback.plans.WHOLE`, or ``"uniform:k"``.
        optimizer: whose update ends the step; its workspace counts too.
        time_limit: seconds after which the search for a graph's plan ends; what is found by then is taken.

    Raises:
        NoPlanError: nothing fits; it says what would, and what memory is made of there.
        UsageError: an unknown planner or a malformed budget; a step that does not call the module once; both
            inputs and a step.
        NoValuesError: the step takes decisions on values, so it can't be predicted.
    """
    wanted = Budget.read(budget)
    planning = Planning(Step(step_of(module, inputs, step), module, optimizer))
    return planning.plan(wanted.bytes(planning.full_peak_bytes), planner, time_limit)


class Planning:
    """A step measured once, for which plans are made.

    Raises:
        UsageError: the step does not call its module exactly once.
    """

    def __init__(self, step: Step) -> None:
        self.step = step
        self.trace = trace(step)
        self.staged: StepStages = measure(step, self.trace)
        self._leanest: dict[tuple[str, float], ModelPlan] = {}
        self._realised: dict[tuple[tuple[Selection | None, ...], tuple[Action, ...]], ModelPlan] = {}

    def full_peak_bytes(self) -> int:
        """The peak of the step without a plan."""
        return self.step.predict(Mode("full")).peak.bytes

    @cached_property
    def everything(self) -> ModelPlan:
        """The plan that keeps all that backward needs."""
        stages = self.staged.choices[0].stages
        made = finish(Chain(stages), list(recorded(0, len(stages))), "optimal: nothing is computed twice")
        plan = self._realise(self.staged.choices[0], made, 0)
        return replace(plan, budget=plan.peak_bytes + RESERVE)

    @cached_property
    def step_graph(self) -> StepGraph:
        """The step as a graph of its calls.

        Raises:
            UsageError: the graph is too large to be planned as a whole.
        """
        from memback.plans.model.step_graph import graph_of

        return graph_of(self.step, self.trace)

    @property
    def graph_plans(self) -> GraphPlans:
        """The planner of the graph; raises as :attr:`step_graph`."""
        from memback.plans.model.graph_plans import GraphPlans

        return GraphPlans(self.step_graph, self.everything, self.realise)

    @cached_property
    def policies(self) -> list[ModelPlan]:
        """The plans of the policies that find something in the model."""
        return [
            replace(plan, budget=plan.peak_bytes + RESERVE)
            for program in policy_plans(self.step, trace)
            for plan in [self.realise(program.region, program.stages, 0, f"heuristic: the policy {program.policy}")]
        ]

    # -- one plan

    def plan(self, budget: int, planner: str = "auto", time_limit: float = TIME_LIMIT) -> ModelPlan:
        """The cheapest plan within a budget (bytes) that the planner finds, over all choices of what to keep of stages.

        The search for a graph's plan ends after ``time_limit`` seconds.

        Raises:
            NoPlanError: none fits.
            UsageError: there is no such planner, or the model is not one for it.
        """
        if planner in KEEPING_EVERYTHING and self.everything.budget <= budget:
            return replace(self.everything, budget=budget)
        seconds: float | None = None
        if planner == "auto":
            found, seconds = self._better(budget, time_limit)
        elif planner == "graph":
            found, seconds = self.graph_plans.within(budget, time_limit), time_limit
        else:
            found = self._cheapest(budget, planner)
        if found is None:
            found = self.leanest(planner, time_limit)
            if found.budget > budget:
                raise NoPlanError(budget, found, seconds)
        return replace(found, budget=budget)

    def _better(self, budget: int, time_limit: float) -> tuple[ModelPlan | None, float | None]:
        """The cheaper of the plans for chain and graph, and the seconds that the search for the graph's may take."""
        plans: list[ModelPlan] = []
        seconds: float | None = None
        with suppress(NoPlanError):
            plans.append(_by("chain", self.plan(budget, "chain")))
        with suppress(UsageError):  # too large
            found = self.graph_plans.within(budget, time_limit)
            seconds = time_limit
            plans += [] if found is None else [_by("graph", found)]
        return min(plans, key=lambda plan: (plan.extra_flops, plan.peak_bytes), default=None), seconds

    def leanest(self, planner: str = "chain", time_limit: float = TIME_LIMIT) -> ModelPlan:
        """The plan with the least peak that the planner finds; a graph's within ``time_limit`` seconds. Found once."""
        asked = (planner, time_limit)
        if asked not in self._leanest:
            self._leanest[asked] = self._find_leanest(planner, time_limit)
        return self._leanest[asked]

    def _find_leanest(self, planner: str, time_limit: float) -> ModelPlan:
        if planner == "graph":
            return self.graph_plans.leanest(time_limit)
        if planner == "auto":
            plans = [_by("chain", self.leanest("chain"))]
            with suppress(UsageError):  # too large
                plans.append(_by("graph", self.leanest("graph", time_limit)))
            return min(plans, key=lambda plan: (plan.peak_bytes, plan.extra_flops))
        plans = [self.everything] if planner in KEEPING_EVERYTHING else []
        rooms = []
        for choice in self.staged.choices:
            try:
                planner_of(planner)(choice.stages, 0)
            except BudgetError as error:
                rooms.append(error.minimum_bytes)
                plans.append(self._realise(choice, planner_of(planner)(choice.stages, rooms[-1]), rooms[-1]))
            else:
                raise AssertionError("a plan within no bytes at all")
        if planner == "chain":
            plans += self.policies
        best = min(plans, key=lambda p: (p.peak_bytes, p.extra_flops))
        floor = min(rooms) + self.staged.base_bytes + RESERVE
        return leaner(best, floor, lambda budget: self._cheapest(budget, planner))

    def _cheapest(self, budget: int, planner: str) -> ModelPlan | None:
        """The cheapest plan within a budget over all choices, but for those that keep everything."""
        within = (self._within(number, budget, planner) for number in range(len(self.staged.choices)))
        found = [plan for plan in within if plan is not None]
        if planner == "chain":
            found += [replace(plan, budget=budget) for plan in self.policies if plan.budget <= budget]
        return min(found, key=lambda p: (p.extra_flops, p.peak_bytes), default=None)

    def _within(self, number: int, budget: int, planner: str) -> ModelPlan | None:
        """The plan for one choice. What a simulation counts too much is room for a cheaper plan."""
        solve, stages = planner_of(planner), self.staged.choices[number].stages
        mixing = Mixing(self.staged.choices, number)
        most = budget - RESERVE
        room, best = most - self.staged.base_bytes, None
        for _ in range(_REFINEMENTS):
            try:
                solved = solve(stages, room)
            except BudgetError:
                break
            made = self._realise(mixing.most(solved.actions, room), solved, budget)
            if made.peak_bytes <= most and (best is None or made.extra_flops < best.extra_flops):
                best = made
            slack = most - made.peak_bytes
            if slack == 0 or made.extra_flops == 0 or 0 < slack < most // 100:
                break
            room += slack
        return best

    # -- the whole curve

    def frontier(self) -> list[FrontierPoint]:
        """What less memory costs: budgets rise and extra FLOPs fall strictly, over all choices of what to keep.

        The points are those of the planner ``chain``; for a small graph ``auto`` may find cheaper plans. Peaks are
        simulated, which counts too much rather than too little, but for those of policies and of full retention.
        """
        once = sum(stage.forward_cost + stage.backward_cost for stage in self.staged.choices[0].stages)
        points: list[FrontierPoint] = []
        found = [point for choice in self.staged.choices for point in persistent.frontier(choice.stages)]
        mixing = Mixing(self.staged.choices, len(self.staged.choices) - 1)
        found += mixing.curve(tuple(recorded(0, len(self.staged.choices[0].stages))), _MIXTURES)
        every = [(peak + self.staged.base_bytes + RESERVE, max(cost - once, 0)) for peak, cost in found]
        every = sorted([*every, *((plan.budget, plan.extra_flops) for plan in [*self.policies, self.everything])])
        for peak, extra in every:
            if not points or extra < points[-1].extra_flops:
                points.append(FrontierPoint(peak, extra))
        return points

    def _realise(self, choice: Choice, made: Plan, budget: int) -> ModelPlan:
        """Run a plan dry, once for the same actions, for its exact peak."""
        asked = (choice.kept, tuple(made.actions))
        proof = _proved(choice, made, len(self.staged.choices))
        if asked not in self._realised:
            self._realised[asked] = self.realise(self.staged.region(*asked), choice.stages, budget, proof)
        return replace(self._realised[asked], stages=choice.stages, budget=budget, optimality=proof)

    def realise(
        self, region: Region | GraphRegion, stages: tuple[Stage, ...], budget: int, optimality: str
    ) -> ModelPlan:
        """Run a region's actions dry: the plan with what it really takes."""
        assert self.step.module is not None
        run = region.begin()
        prediction = predict(self.step, lambda: run)
        peak, ledger = prediction.peak, prediction.ledger
        return ModelPlan(
            region=region,
            stages=stages,
            budget=budget,
            peak_bytes=peak.bytes,
            saved_bytes=ledger.saved_at_end_of_forward or 0,
            flops=ledger.flops,
            extra_flops=ledger.recomputed_flops,
            runs=dict(run.runs),
            optimality=optimality,
            peak=peak.to_dict(),
            parameters=shapes_of_parameters(self.step.module),
        )


def _by(planner: str, plan: ModelPlan) -> ModelPlan:
    return replace(plan, optimality=f"{plan.optimality} (planner {planner})")


def _proved(choice: Choice, made: Plan, choices: int) -> str:
    """What is proved of a plan: ops that are computed again inside of kept stages are chosen by a rule of thumb."""
    if all(selection is None for selection in choice.kept):
        return made.optimality
    nothing_twice = made.optimality.startswith("optimal: nothing")
    proof = "no stage is run twice" if nothing_twice else made.optimality.removeprefix("heuristic: ")
    return (
        f"heuristic: {proof}; inside of kept stages cheap ops are computed again, chosen by minimum cuts"
        f" (best of {choices} selections)"
    )
