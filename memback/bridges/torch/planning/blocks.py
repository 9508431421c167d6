"""Plans over blocks: which blocks of a module are run again under checkpoints so that its step fits a budget.

What a budget counts is what a peak counts: all storages above the arguments. A plan's peak is that of a dry run of the
planned step, on tensors without memory: exactly the peak that the same step has on a CPU. Beside it, each checkpoint
keeps a copy of the state of the CPU's random stream, of which no op tells: what they take is a plan's *reserve*.

Stages say what the planner knows, and what it knows is a simplification. So plans that it proposes are all run dry, and
the cheapest of those that fit is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from msgspec import structs

from memback.bridges.torch.planning.base import NoPlanError, Progress, parameters_of, peak_as_data
from memback.bridges.torch.planning.block_plan import BlockPlan, renamed, with_glue
from memback.bridges.torch.planning.planned import running
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
from memback.bridges.torch.recording.calls import check_all_visible
from memback.bridges.torch.recording.replay import RANDOM_STATE
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError, UsageError
from memback.nn.policy import Policy
from memback.plans.chain import persistent
from memback.plans.model.planning import FrontierPoint
from memback.plans.simulate import BudgetError, simulate
from memback.plans.stage import Stage
from memback.profiling.accounts import Row
from memback.profiling.measuring import Peak
from memback.profiling.mode import Mode
from memback.units import format_bytes_short

__all__ = ["BlockPlanning"]

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


class _Judged(NamedTuple):
    """What a dry run of a body shows."""

    peak: Peak
    saved_bytes: int
    unit_saved_bytes: tuple[int, ...]
    flops: int
    extra_flops: int
    unknown: frozenset[str]


class BlockPlanning:
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
        progress: Progress = lambda what, done, total: None,
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
        return RANDOM_STATE * (1 + nested + sum(1 for _ in segments_in(body)))

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

    def unplanned(self) -> BlockPlan:
        """The plan that keeps everything."""
        return self.realise(self.everything, 0, "")

    # -- one plan

    def plan(self, budget: int) -> BlockPlan:
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
        return simulate(self.stages, list(actions_of(with_glue(renamed(body, stage_of), self.blocks.stages))))[1]

    def by_policy(self, name: str) -> BlockPlan:
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

    def realise(self, body: Body, budget: int, optimality: str) -> BlockPlan:
        """A body as a plan, with what its dry run shows."""
        judged = self.judge(body)
        peak = judged.peak
        if self.blocks.kept_because:
            optimality = f"{optimality}; {self.blocks.kept_because}".removeprefix("; ")
        return BlockPlan(
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
            peak=peak_as_data(peak),
            parameters=parameters_of(self.step.module),
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
