"""``mb.plan``: the cheapest way to run a model's step within a budget of bytes.

What a budget counts is what a peak counts: saved and recomputed activations, gradients of activations and parameters,
and workspace, above the arguments. A plan's own peak is that of a dry run of the planned step, exact as every dry run
is in what arrays hold. What Python allocates for its own objects while an op runs is in no array: ``RESERVE`` bytes of
every budget are left for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from memback.errors import MembackError
from memback.plans.actions import Action, GraphAction, Plan
from memback.plans.budget import Budget
from memback.plans.chain import persistent
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.measure import Choice, StepStages, measure, planned, predict, trace
from memback.plans.model.mixing import Mixing
from memback.plans.model.policies import policy_plans
from memback.plans.model.region import Region, Selection
from memback.plans.model.replay import run_region
from memback.plans.registry import WHOLE
from memback.plans.registry import planner as planner_of
from memback.plans.saved import SavedPlan, check_parameters
from memback.plans.segments import recorded
from memback.plans.simulate import BudgetError, Chain, finish
from memback.plans.stage import Stage
from memback.profiling.calling import step_of
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.units import format_bytes, format_bytes_short

if TYPE_CHECKING:
    from memback.engine.tensor import Tensor
    from memback.nn.module import Module
    from memback.optim import Optimizer
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

RESERVE = 16 * 1024
"""Bytes of a budget that a plan leaves free for memory that no array holds."""

TIME_LIMIT = 5.0
"""Seconds for the search for a graph's plan."""

KEEPING_EVERYTHING = frozenset({"chain", "exact", "all", *WHOLE})
"""Planners that compute nothing again where all that backward needs fits the budget."""

_REFINEMENTS = 3
_PROBES = 8
_MIXTURES = 64
"""Points of the frontier between plans that keep stages in one way."""


class NoPlanError(MembackError):
    """No plan fits the budget; ``minimum_bytes`` is the least for which the planner has one.

    ``seconds`` is how long the leanest plan was searched for, where time ended the search or could have.
    """

    def __init__(self, budget: int, minimum: ModelPlan, seconds: float | None = None) -> None:
        self.budget = budget
        self.minimum_bytes = minimum.budget
        made_of = _made_of(minimum.peak)
        leanest = "the leanest" if seconds is None else f"the leanest found in {seconds:g} s"
        super().__init__(
            f"no plan fits {format_bytes(budget)}: {leanest} needs {format_bytes(minimum.budget)}, which is"
            f" {made_of}, reserve {format_bytes(RESERVE)}. Raise the budget to that, or make the step smaller (its"
            " batch, its model)"
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
        check_parameters(self.parameters, _parameters(module), type(module).__name__)

    def to_dict(self) -> dict[str, Any]:
        from memback.plans.model.files import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Any) -> ModelPlan:
        from memback.plans.model.files import from_dict

        return from_dict(data)


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


def _parameters(module: Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


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

    @cached_property
    def policies(self) -> list[ModelPlan]:
        """What the policies do that find something in the model, as plans."""
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
        if planner in WHOLE:
            from memback.plans.model import graph_plans

            return graph_plans.PLANNERS[planner](self, budget, time_limit)
        if planner in KEEPING_EVERYTHING and self.everything.budget <= budget:
            return replace(self.everything, budget=budget)
        found = self._cheapest(budget, planner)
        if found is None:
            found = self.leanest(planner)
            if found.budget > budget:
                raise NoPlanError(budget, found)
        return replace(found, budget=budget)

    def leanest(self, planner: str = "chain", time_limit: float = TIME_LIMIT) -> ModelPlan:
        """The plan with the least peak that the planner finds; a graph's within ``time_limit`` seconds. Found once."""
        asked = (planner, time_limit)
        if asked not in self._leanest:
            self._leanest[asked] = self._find_leanest(planner, time_limit)
        return self._leanest[asked]

    def _find_leanest(self, planner: str, time_limit: float) -> ModelPlan:
        if planner in WHOLE:
            from memback.plans.model import graph_plans

            return graph_plans.leanest(self, planner, time_limit)
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
        """Run a plan dry, the same actions once: what it really takes."""
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
            peak={"phase": peak.interval.phase, "path": peak.interval.path, "op": peak.interval.op, **peak.parts},
            parameters=_parameters(self.step.module),
        )


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


def _made_of(peak: Mapping[str, Any]) -> str:
    sizes = {name: size for name, size in peak.items() if isinstance(size, int) and size}
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    return f"{parts} (in {peak['phase']}, {peak['op']} of layer {peak['path'] or '(top)'!r})"


def knee(points: Sequence[FrontierPoint]) -> FrontierPoint:
    """The point that is farthest below the straight line from the frontier's first point to its last one."""
    first, last = points[0], points[-1]
    width, height = max(last.budget - first.budget, 1), max(first.extra_flops - last.extra_flops, 1e-300)

    def below(point: FrontierPoint) -> float:
        across = (point.budget - first.budget) / width
        return 1 - across - (point.extra_flops - last.extra_flops) / height

    return max(points, key=below)
