"""``memback.bridges.torch.plan``: the cheapest way to run a PyTorch module's step within a budget of bytes.

What a budget counts is what a peak counts: all storages above the arguments. A plan's peak is that of a dry run of the
planned step, on tensors without memory: exactly the peak that the same step has on a CPU. Beside it, each checkpoint
keeps a copy of the state of the CPU's random stream, of which no op tells: what they take is a plan's *reserve*.

Stages say what the planner knows, and what it knows is a simplification. So plans that it proposes are all run dry, and
the cheapest of those that fit is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from msgspec import structs

from memback.bridges.torch.planning.planned import running, submodule
from memback.bridges.torch.planning.stages import Blocks, find_blocks, seconds, weighed
from memback.bridges.torch.recording.body import (
    Body,
    actions_of,
    blocks_in,
    body_of,
    every_body,
    grouped,
    runs_again,
    segments_in,
)
from memback.bridges.torch.recording.calls import Call, check_all_visible
from memback.bridges.torch.recording.step import Loss, Step, sum_of_outputs
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError, UsageError
from memback.nn.policy import Policy
from memback.plans.actions import Action
from memback.plans.budget import Budget
from memback.plans.chain import persistent
from memback.plans.model.planning import FrontierPoint
from memback.plans.saved import SavedPlan, check_parameters
from memback.plans.simulate import BudgetError, simulate
from memback.plans.stage import Stage
from memback.profiling.accounts import Row
from memback.profiling.measuring import Peak
from memback.profiling.mode import Mode
from memback.units import format_bytes, format_bytes_short

__all__ = ["NoPlanError", "Planning", "TorchPlan", "Verdict", "frontier", "plan", "planned_by"]

_RANDOM_STATE = 5056
"""Bytes of the state of the CPU's random stream, of which ``torch.get_rng_state`` gives a copy."""

_EVERY = 400
"""Most plans of a short chain that are looked through for the cheapest."""
_RUNS = 200
"""Most dry runs that looking through them takes."""
_HALVINGS = 7
"""How often the bytes that the planner of chains is given are halved between too many and too few."""
_ROUNDS, _TRIES = 3, 4
"""How often a plan for a long chain is bettered at most, and how many plans are tried each time."""
_LEANEST = 24
"""Plans of a short chain, those that look leanest, of which the leanest is taken."""
_POINTS = 24
"""Most points of a frontier: each is a dry run."""

_Progress = Callable[[str, int, int], None]


class NoPlanError(MembackError):
    """No plan fits the budget; ``minimum_bytes`` is the least for which one was found."""

    def __init__(self, budget: int, leanest: TorchPlan) -> None:
        self.budget = budget
        self.minimum_bytes = leanest.peak_bytes + leanest.reserve_bytes
        peak = leanest.peak
        parts = {name: size for name, size in peak.items() if isinstance(size, int) and size}
        parts |= {"reserve": leanest.reserve_bytes} if leanest.reserve_bytes else {}
        made_of = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        super().__init__(
            f"no plan fits {format_bytes(budget)}: the leanest found needs {format_bytes(self.minimum_bytes)}, which is"
            f" {made_of} (in {peak['phase']}, {peak['op']} of layer {peak['path'] or '(top)'!r}). Raise the budget to"
            " that, name smaller blocks, or make the step smaller (its batch, its model)"
            + (f". {leanest.optimality}" if leanest.optimality else "")
        )


@dataclass(frozen=True)
class TorchPlan(SavedPlan):
    """Which blocks of a module keep what their backward needs, and which are run again.

    Attributes:
        name: what reports call it.
        calls: the blocks, in the order of their calls.
        body: how they are run, see :mod:`memback.bridges.torch.recording.body`.
        bounds: the number of the first call of each unit, of blocks that are run together in any case.
        stages: what the planner knew; sizes in bytes, costs in FLOPs (and one a number written), or in seconds.
        units: which unit each stage is; None of glue, which is code between blocks.
        budget: in bytes.
        peak_bytes: of the whole step, above the arguments, exactly.
        reserve_bytes: of the states of random streams beside that; both together are within the budget.
        full_peak_bytes: the peak without a plan.
        saved_bytes: at the end of the forward pass.
        unit_saved_bytes: of these, what ops of each unit have made; the rest, other code has.
        flops: of one forward pass.
        extra_flops: of what is run again.
        extra_seconds: for what is run again, as predicted from timed stages; None where nothing was timed.
        optimality: what is known of the plan.
        peak: what the peak is made of, in bytes by category, and where it is.
        parameters: the model's parameters and their shapes, which tell whether a model is the one that this is for.
    """

    name: str
    calls: tuple[Call, ...]
    body: Body
    bounds: tuple[int, ...]
    stages: tuple[Stage, ...]
    units: tuple[int | None, ...]
    budget: int
    peak_bytes: int
    reserve_bytes: int
    full_peak_bytes: int
    saved_bytes: int
    unit_saved_bytes: tuple[int, ...]
    flops: int
    extra_flops: int
    extra_seconds: float | None
    optimality: str
    peak: Mapping[str, int | str]
    parameters: Mapping[str, tuple[int, ...]]
    _applied: dict[int, ExitStack] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __hash__(self) -> int:
        return hash((self.name, self.budget, self.body))

    @property
    def runs(self) -> Mapping[int, int]:
        """How often each block is run again, by its number."""
        return runs_again(self.body)

    @property
    def reserve_for(self) -> str:
        """What the reserve is for."""
        return "copies of the random stream's state, one a checkpoint, of which no op tells"

    @property
    def staged(self) -> Body:
        """The body over stages, glue among them."""
        stage_of = {unit: stage for stage, unit in enumerate(self.units) if unit is not None}
        unit_of = {call: unit for unit, call in enumerate(self.bounds)}

        stages = {call: stage_of[unit] for call, unit in unit_of.items()}
        return _with_glue(_renamed(self.body, stages), self.units)

    @property
    def actions(self) -> tuple[Action, ...]:
        """The schedule over the stages."""
        return tuple(actions_of(self.staged))

    def apply(self, module: torch.nn.Module) -> _Applied:
        """Have a module run this plan: in a ``with`` block, or until :meth:`revert`.

        Gradients have the same bits as without it, parameters and buffers are the same tensors, and its code stays as
        it is. Hooks of a block run whenever the block does, so again with what is run again.

        Raises:
            UsageError: the plan was made for another model, or the module runs a plan already, or can't be looked into.
        """
        self.check(module)
        if id(module) in self._applied:
            raise UsageError(f"this {type(module).__name__} runs this plan already: revert it first")
        stack = ExitStack()
        stack.enter_context(running(module, self.calls, self.body))
        self._applied[id(module)] = stack
        return _Applied(self, module)

    def revert(self, module: torch.nn.Module) -> None:
        """Have a module run as it did before :meth:`apply`.

        Raises:
            UsageError: it does not run this plan.
        """
        stack = self._applied.pop(id(module), None)
        if stack is None:
            raise UsageError(f"this {type(module).__name__} does not run this plan, so there is nothing to revert")
        stack.close()

    def check(self, module: torch.nn.Module) -> None:
        """Raise unless a module has the blocks and the parameters that the plan was made for.

        Raises:
            UsageError: it has not; the message names the first difference.
        """
        check_parameters(self.parameters, _parameters(module), type(module).__name__)
        for call in self.calls:
            submodule(module, call.path)

    def code(self) -> str:
        """A few lines of Python that run a model so with nothing but ``torch.utils.checkpoint``.

        Raises:
            UsageError: what flows between its blocks is more than such lines can say.
        """
        from memback.bridges.torch.planning.code import code

        return code(self)

    def to_dict(self) -> dict[str, Any]:
        from memback.bridges.torch.planning.plan_files import to_dict

        return to_dict(self)

    @classmethod
    def from_dict(cls, data: Any) -> TorchPlan:
        from memback.bridges.torch.planning.plan_files import from_dict

        return from_dict(data)


class _Applied(AbstractContextManager[TorchPlan]):
    """A plan that a module runs, until the block ends."""

    def __init__(self, plan: TorchPlan, module: torch.nn.Module) -> None:
        self._plan, self._module = plan, module
        self._blocks = 0

    def __enter__(self) -> TorchPlan:
        self._blocks += 1
        return self._plan

    def __exit__(self, *_: object) -> None:
        self._blocks -= 1
        if not self._blocks and id(self._module) in self._plan._applied:
            self._plan.revert(self._module)


def _renamed(body: Body, names: Mapping[int, int]) -> Body:
    """A body under other numbers, without the blocks that have none."""
    kept = (item for item in body if not isinstance(item, int) or item in names)
    return tuple(names[item] if isinstance(item, int) else _renamed(item, names) for item in kept)


def _with_glue(body: Body, units: Sequence[int | None]) -> Body:
    """A body over stages with the stages that are no unit, each kept, in their places."""
    items = list(body)
    for stage, unit in enumerate(units):
        if unit is None:
            at = next((i for i, item in enumerate(items) if next(blocks_in((item,))) > stage), len(items))
            items.insert(at, stage)
    return tuple(items)


def _parameters(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


class _Judged(NamedTuple):
    """What a dry run of a body shows."""

    peak: Peak
    saved_bytes: int
    unit_saved_bytes: tuple[int, ...]
    flops: int
    extra_flops: int
    unknown: frozenset[str]


class Planning:
    """A step whose blocks have been found and weighed, for which plans are made.

    Args:
        step: the module, its inputs and the loss.
        patterns: of the blocks' paths, see :func:`plan`.
        timed: whether costs are seconds, of stages run for real, instead of FLOPs.
        progress: called with (what is done now, steps done, steps in all).

    Raises:
        UsageError: there are no blocks; or a step without memory can't be timed; or the module is compiled or scripted.
        MembackError: the step takes decisions on values.
    """

    def __init__(
        self,
        step: Step,
        patterns: Sequence[str] | None = None,
        timed: bool = False,
        progress: _Progress = lambda what, done, total: None,
    ) -> None:
        if timed and step.dry:
            raise UsageError("a step without memory can't be run, so its stages can't be timed: leave timed out")
        check_all_visible(step.module)
        self.step = step
        self.timed = timed
        self.progress = progress
        progress("blocks", 0, 3)
        self.blocks: Blocks = find_blocks(step, patterns)
        progress("weights of stages", 1, 3)
        self.stages: list[Stage] = weighed(step, self.blocks)
        if timed:
            progress("times of stages", 2, 3)
            times = seconds(step, self.blocks)
            self.stages = [structs.replace(s, forward_cost=t) for s, t in zip(self.stages, times, strict=True)]
        self._judged: dict[Body, _Judged] = {}

    def full_peak_bytes(self) -> int:
        """The peak of the step without a plan."""
        return self.judge(self.everything).peak.bytes

    # -- bodies over units

    def judge(self, body: Body) -> _Judged:
        """Run a body dry."""
        if body not in self._judged:
            self.progress(f"dry run {len(self._judged) + 1}", len(self._judged), len(self._judged) + 2)
            with self.step.standing_in() as dry:
                tracker = self._watched(dry, body)
                if tracker.left:  # a first step makes what later ones find
                    tracker = self._watched(dry, body)
            self._judged[body] = _Judged(
                tracker.peak,
                tracker.saved_at_end_of_forward or 0,
                self._by_unit(tracker.rows),
                tracker.flops,
                tracker.recomputed_flops,
                frozenset(tracker.unknown),
            )
        return self._judged[body]

    def _watched(self, dry: Step, body: Body) -> Tracker:
        with running(dry.module, self.blocks.calls, self.blocks.of_calls(body)), dry.unchanged():
            return dry.watch(Mode("full"), events=False)[0]

    def _by_unit(self, rows: Sequence[Row]) -> tuple[int, ...]:
        """Saved bytes by the unit whose ops have made them; of one that is called several times, its first call's."""
        unit_of: dict[str, int] = {}
        for number, unit in enumerate(self.blocks.units):
            for call in unit.calls:
                unit_of.setdefault(self.blocks.calls[call].path, number)
        saved = [0] * len(self.blocks.units)
        for row in rows:
            parts = row.path.split(".")
            lineage = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            unit_number = next((unit_of[path] for path in lineage if path in unit_of), None)
            if unit_number is not None:
                saved[unit_number] += row.saved_bytes
        return tuple(saved)

    def takes(self, body: Body) -> int:
        """The budget that a body needs: its peak, and its reserve."""
        return self.judge(body).peak.bytes + self.reserve(body)

    def reserve(self, body: Body) -> int:
        """Bytes of copies of the random stream's state: one a checkpoint, another while it is run within one."""
        if self.step.device.type not in ("cpu", "meta") or not any(True for _ in segments_in(body)):
            return 0
        nested = sum(1 for segment in segments_in(body) for _ in segments_in(segment))
        return _RANDOM_STATE * (1 + nested + sum(1 for _ in segments_in(body)))

    def extra_cost(self, body: Body) -> float:
        """What is run again, in the stages' unit."""
        costs = {unit: self.stages[stage].forward_cost for stage, unit in enumerate(self.blocks.stages)}
        return sum(costs[unit] * times for unit, times in sorted(runs_again(body).items()))

    def least_saved(self, body: Body) -> int:
        """Bytes that are alive at the end of the forward pass in any case, and so in the peak."""
        stage_of = {unit: stage for stage, unit in enumerate(self.blocks.stages) if unit is not None}
        kept = [stage_of[item] for item in body if isinstance(item, int)]
        kept += [stage for stage, unit in enumerate(self.blocks.stages) if unit is None]
        return sum(self.stages[stage].saved_bytes for stage in kept)

    @property
    def everything(self) -> Body:
        """Nothing is run again."""
        return tuple(range(len(self.blocks.units)))

    # -- one plan

    def plan(self, budget: int) -> TorchPlan:
        """The cheapest plan within a budget (bytes) that is found.

        Raises:
            NoPlanError: none fits.
            MembackError: a dry run can't tell what the step takes.
        """
        self._check_known()
        if self.takes(self.everything) <= budget:
            return self.realise(self.everything, budget, "optimal: nothing is run twice")
        proposed = self._proposed(budget)
        if proposed is None:
            leanest = self.leanest
            if self.takes(leanest) > budget:
                raise NoPlanError(budget, self.realise(leanest, budget, ""))
            proposed = leanest
        if self._every is not None:
            cheapest, proved = self._cheapest_of_all(proposed, budget)
            if proved:
                return self.realise(cheapest, budget, "optimal: of all ways to run these blocks, no cheaper one fits")
            proposed = cheapest
        return self.realise(self._bettered(proposed, budget), budget, self._claim)

    def _check_known(self) -> None:
        unknown = self.judge(self.everything).unknown
        if unknown:
            raise MembackError(
                f"a dry run does not know the size of {'; '.join(sorted(unknown))}, so that no plan can be sure to fit:"
                " apply a policy, and measure it"
            )

    @property
    def _claim(self) -> str:
        return "heuristic: the cheapest of the plans run dry, which optimal schedules of the blocks' sizes proposed"

    @cached_property
    def _every(self) -> list[Body] | None:
        return every_body(self.blocks.joined, self.blocks.fixed, _EVERY)

    @cached_property
    def _rooms(self) -> tuple[int, int]:
        """The least bytes for which the planner of chains has a plan, and those with which nothing is gained."""
        most = persistent.solve(self.stages, 2**62).peak_bytes
        try:
            persistent.solve(self.stages, 0)
        except BudgetError as error:
            return error.minimum_bytes, most
        return 0, most

    def _solved(self, room: int) -> Body:
        """What the planner of chains makes of so many bytes, as it counts them."""
        return self.blocks.of_stages(body_of(persistent.solve(self.stages, room).actions))

    def _proposed(self, budget: int) -> Body | None:
        """The cheapest body that fits, of those for more and more room, which the planner counts otherwise."""
        low, high = self._rooms
        best: Body | None = None
        for _ in range(_HALVINGS):
            room = (low + high) // 2 if best is not None or high < self._rooms[1] else min(max(budget, low), high)
            body = self._solved(room)
            if self._fits_bound(body, budget) and self.takes(body) <= budget:
                best, low = min(best or body, body, key=self._rank), room
            else:
                high = room
        return best

    def _fits_bound(self, body: Body, budget: int) -> bool:
        return self.least_saved(body) + self.reserve(body) <= budget

    def _cheapest_of_all(self, known: Body, budget: int) -> tuple[Body, bool]:
        """The cheapest of all bodies, and whether that is proved; ``known`` is one that fits."""
        most, runs = self._rank(known), 0
        for body in sorted(self._every or (), key=self._rank):
            if self._rank(body) >= most:
                break
            if not self._fits_bound(body, budget):
                continue
            runs += body not in self._judged
            if runs > _RUNS:
                return known, False
            if self.takes(body) <= budget:
                return body, True
        return known, True

    def _rank(self, body: Body) -> tuple[float, int]:
        return self.extra_cost(body), sum(1 for _ in segments_in(body))

    def _bettered(self, body: Body, budget: int) -> Body:
        """A body with less run again, as long as one near to it fits."""
        for _ in range(_ROUNDS):
            near = {other for other in _nearby(body) if self._rank(other) < self._rank(body)}
            order = sorted((other for other in near if self._fits_bound(other, budget)), key=self._rank)
            found = next((other for other in order[-_TRIES:] if self.takes(other) <= budget), None)
            if found is None:
                break
            body = found
        return body

    @cached_property
    def leanest(self) -> Body:
        """The body with the least peak of those that are tried, and of those that are proposed for less."""
        least, most = self._rooms
        rooms = (least + (most - least) * i // 16 for i in range(4))
        tried = [*map(self._solved, rooms), *(self._policy(Policy.parse(name)) for name in ("all", "sqrt"))]
        tried += [self.everything, *sorted(self._every or (), key=self._simulated_peak)[:_LEANEST]]
        best = min(dict.fromkeys(tried), key=lambda body: (self.takes(body), self._rank(body)))
        while (leaner := self._proposed(self.takes(best) - 1)) is not None:
            best = leaner
        return best

    def _simulated_peak(self, body: Body) -> int:
        """The peak as the planner of chains counts it, without a dry run."""
        stage_of = {unit: stage for stage, unit in enumerate(self.blocks.stages) if unit is not None}
        return simulate(self.stages, list(actions_of(_with_glue(_renamed(body, stage_of), self.blocks.stages))))[1]

    def by_policy(self, name: str) -> TorchPlan:
        """The plan of a policy: ``none``, ``every:k``, ``sqrt`` or ``all``.

        Raises:
            UsageError: there is no such policy for PyTorch's modules.
        """
        policy = Policy.parse(name)
        if policy.pattern is not None or policy.keep_products:
            raise UsageError(f"policy {name!r} is none for PyTorch modules; there are none, every:k, sqrt and all")
        body = self._policy(policy)
        return replace(self.realise(body, 0, f"policy {policy.name}"), name=policy.name, budget=self.takes(body))

    def _policy(self, policy: Policy) -> Body:
        """Segments of neighbouring units, cut wherever these are not linked, without those that can't be run again."""
        units = self.blocks.units
        body: list[int | Body] = []
        for start, stop, checkpointed in policy.segments(len(units)):
            numbers = tuple(range(start, stop))
            body += [numbers] if checkpointed else numbers

        def joined(before: int, number: int) -> bool:
            return units[number].linked and not units[number].fixed and not units[before].fixed

        cut = grouped(tuple(body), joined)
        return tuple(
            item[0] if not isinstance(item, int) and len(item) == 1 and units[_first(item)].fixed else item
            for item in cut
        )

    def realise(self, body: Body, budget: int, optimality: str) -> TorchPlan:
        """A body as a plan, with what its dry run shows."""
        judged = self.judge(body)
        peak = judged.peak
        if self.blocks.kept_because:
            optimality = f"{optimality}; {self.blocks.kept_because}".removeprefix("; ")
        return TorchPlan(
            name=f"plan:{format_bytes_short(budget).replace(' ', '')}",
            calls=self.blocks.calls,
            body=self.blocks.of_calls(body),
            bounds=tuple(unit.calls[0] for unit in self.blocks.units),
            stages=tuple(self.stages),
            units=self.blocks.stages,
            budget=budget,
            peak_bytes=peak.bytes,
            reserve_bytes=self.reserve(body),
            full_peak_bytes=self.judge(self.everything).peak.bytes,
            saved_bytes=judged.saved_bytes,
            unit_saved_bytes=judged.unit_saved_bytes,
            flops=judged.flops,
            extra_flops=judged.extra_flops,
            extra_seconds=self.extra_cost(body) if self.timed else None,
            optimality=optimality,
            peak={"phase": peak.interval.phase, "path": peak.interval.path, "op": peak.interval.op, **peak.parts},
            parameters=_parameters(self.step.module),
        )

    # -- the whole curve

    def frontier(self) -> list[FrontierPoint]:
        """What less memory costs, each point from a dry run: budgets rise and extra FLOPs fall strictly.

        Raises:
            MembackError: a dry run can't tell what the step takes.
        """
        self._check_known()
        least, most = self._rooms
        rooms = (least + (most - least) * i // _POINTS for i in range(_POINTS))
        bodies = dict.fromkeys([*map(self._solved, rooms), self.leanest, self.everything])
        points: list[FrontierPoint] = []
        for budget, extra in sorted((self.takes(body), self.judge(body).extra_flops) for body in bodies):
            if not points or extra < points[-1].extra_flops:
                points.append(FrontierPoint(budget, extra))
        return points


def _first(item: int | Body) -> int:
    return next(blocks_in((item,)))


def _nearby(body: Body) -> Iterator[Body]:
    """Bodies with one segment less, or with one that begins later or ends earlier."""
    for i, item in enumerate(body):
        before, after = body[:i], body[i + 1 :]
        if isinstance(item, int):
            continue
        yield (*before, *item, *after)
        if len(item) > 1:
            yield (*before, item[0], item[1:], *after)
            if isinstance(item[-2], int):
                yield (*before, item[:-1], item[-1], *after)
        for inside in _nearby(item):
            if isinstance(inside[-1], int):
                yield (*before, inside, *after)


# -- what is public


def plan(
    module: torch.nn.Module,
    *inputs: Any,
    budget: str | int,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    blocks: Sequence[str] | None = None,
    timed: bool = False,
    autocast: torch.dtype | None = None,
    progress: _Progress = lambda what, done, total: None,
) -> TorchPlan:
    """The cheapest plan whose peak is within a budget. Nothing is run or allocated, unless stages are to be timed.

    Args:
        module: any module; of those that are compiled, the one that was.
        inputs: what it is called with: tensors (fake ones, and those of the device ``meta``, too), and anything else.
        budget: the largest peak above the arguments, in bytes, as ``"2GiB"``, or as ``"75%"`` of the full peak.
        loss: gives the loss, a tensor of one number, from what the module gives; by default the sum of its numbers.
        kwargs: what it is called with by name.
        blocks: patterns of the paths of submodules that may be run again, as in a shell: ``["encoder.layer.*"]``. By
            default the calls within the module that lead to its ``Sequential`` and ``ModuleList`` members, and those.
        timed: whether to run stages for real and to find the plan that takes the least time, instead of FLOPs.
        autocast: the dtype of automatic mixed precision in the forward pass.
        progress: called with (what is done now, steps done, steps in all).

    Raises:
        NoPlanError: nothing fits; it says what would, and what memory is made of there.
        UsageError: a malformed budget; there are no blocks; the module is compiled.
        MembackError: the step takes decisions on values, or has ops of which a dry run does not know what they take.
    """
    wanted = Budget.read(budget)
    planning = Planning(Step.of(module, inputs, kwargs, loss, autocast), blocks, timed, progress)
    return planning.plan(wanted.bytes(planning.full_peak_bytes))


def frontier(
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    blocks: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    progress: _Progress = lambda what, done, total: None,
) -> list[FrontierPoint]:
    """What less memory costs: (budget in bytes, FLOPs that are computed again), each point of a plan that was run dry.

    Args and errors are those of :func:`plan`.
    """
    step = Step.of(module, inputs, kwargs, loss, autocast)
    return Planning(step, blocks, progress=progress).frontier()


def planned_by(step: Step, policy: str | TorchPlan) -> TorchPlan:
    """The plan that a policy's name stands for; a plan is one already.

    Raises:
        UsageError: there is no such policy, or the step has no blocks.
    """
    return policy if isinstance(policy, TorchPlan) else Planning(step).by_policy(policy)


# -- is it true


@dataclass(frozen=True)
class Verdict:
    """What a run showed of a plan.

    Attributes:
        predicted_peak_bytes: what the plan says.
        measured_peak_bytes: of the storages of the planned step, for real.
        allocator_peak_bytes: what PyTorch's allocator gave out at most in it, scratch memory of kernels included, which
            is in no storage; None where it does not tell.
        full_peak_bytes: measured of the step without the plan.
        same_gradients: whether the gradients of all parameters have the same bits with and without it.
    """

    predicted_peak_bytes: int
    measured_peak_bytes: int
    allocator_peak_bytes: int | None
    full_peak_bytes: int
    same_gradients: bool


def verify(
    plan: TorchPlan,
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Verdict:
    """Run a module's step for real with a plan and without it, and compare."""
    step = Step.of(module, inputs, kwargs, loss, autocast)
    with step.unchanged():
        step.run(Mode("full"))  # a first step makes what later ones find
    full = step.account(Mode("full"))
    with plan.apply(module):
        planned, allocated = step.account(Mode("full")), step.allocated(Mode("full"))
        measured = planned.tracker.peak.bytes
        if planned.tracker.left:  # what adds up from step to step shows in a second one
            measured = max(measured, step.account(Mode("full")).tracker.peak.bytes)
    return Verdict(
        predicted_peak_bytes=plan.peak_bytes,
        measured_peak_bytes=measured,
        allocator_peak_bytes=None if allocated is None else allocated.peak_bytes,
        full_peak_bytes=full.tracker.peak.bytes,
        same_gradients=full.gradient_sha256 == planned.gradient_sha256,
    )
