"""A plan over a step's aten calls: which of the tensors that autograd saves are kept, and which are recomputed.

The step is recorded by dry runs, :mod:`memback.plans.calls` chooses, and the replay of
:mod:`memback.bridges.torch.recording.replay` carries the choice out. A plan's peak is that of a dry run of the planned
step. Beside it, each random call that is recomputed keeps the state of the CPU's random stream: the plan's *reserve*.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import msgspec
import torch

from memback.bridges.torch.planning.base import NoPlanError, Progress, TorchPlan, parameters_of, peak_as_data
from memback.bridges.torch.planning.recorded import Recording, Speed, recorded, regions
from memback.bridges.torch.recording.calls import check_all_visible
from memback.bridges.torch.recording.dry_mode import in_dry_run
from memback.bridges.torch.recording.replay import RANDOM_STATE, Region
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError, UsageError
from memback.plans.calls.planner import Choice, Planner
from memback.plans.data import Data, read
from memback.plans.model.planning import FrontierPoint
from memback.profiling.mode import Mode
from memback.units import format_bytes_short

__all__ = ["SCHEMA", "CallPlan", "CallPlanning", "PlanWarning", "Recomputed"]

SCHEMA: Literal["memback.torch-plan/2"] = "memback.torch-plan/2"

_CPU = Speed(flops=5e10, bytes=2e10)
"""Of a CPU's core, as far as it matters which calls are dear: products cost some ten times as much as other ops."""
_POINTS = 24
"""Most points of a frontier."""
_TRIES = 4
"""How often a plan is made anew for what its dry run shows."""


class PlanWarning(UserWarning):
    """A planned step takes another way than the one that its plan was made for."""


class Recomputed(Data, frozen=True):
    """Calls of one op in one module that are recomputed: how many, the bytes that they make, and their FLOPs."""

    path: str
    op: str
    calls: int
    bytes: int
    flops: int


@dataclass(frozen=True, kw_only=True)
class CallPlan(TorchPlan):
    """Which aten calls of a module's forward pass are recomputed when backward needs what they made.

    Attributes:
        funcs: the names of all calls of the forward pass, in order.
        again: the numbers of those that are recomputed.
        recomputed: what these are, by module and op.
        random: how many of them draw random numbers.
    """

    funcs: tuple[str, ...]
    again: frozenset[int]
    recomputed: tuple[Recomputed, ...]
    random: int

    def __hash__(self) -> int:
        return hash((self.name, self.budget, self.again))

    @property
    def reserve_for(self) -> str:
        """What the reserve is for."""
        return "states of the random stream, one for each random call that is recomputed, of which no op tells"

    def running(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """In the block a module runs this plan."""
        return regions(module, lambda: Region(self.funcs, self.again, draws=not in_dry_run()), self._left)

    def _left(self, region: Region) -> None:
        if region.lost is not None and self.again:
            known = self.funcs[region.lost] if region.lost < len(self.funcs) else "its end"
            warnings.warn(
                f"the forward pass takes another way than the one that the plan was made for, from call {region.lost}"
                f" of {len(self.funcs)} on (there the plan has {known}): all that follows is kept. Make a plan for this"
                " way",
                PlanWarning,
                stacklevel=2,
            )

    def code(self) -> str:
        """A Python file that runs a model so with nothing but PyTorch."""
        from memback.bridges.torch.planning.call_code import code

        return code(self)

    def to_dict(self) -> dict[str, Any]:
        ops = tuple(dict.fromkeys(self.funcs))
        number = {op: i for i, op in enumerate(ops)}
        same = {name: getattr(self, name) for name in _SAME}
        content = _File(
            schema=SCHEMA,
            ops=ops,
            calls=tuple(number[func] for func in self.funcs),
            again=tuple(sorted(self.again)),
            **same,
        )
        data: dict[str, Any] = msgspec.to_builtins(content, str_keys=True)
        return data

    @staticmethod
    def read(data: Any) -> CallPlan:
        """Read what :meth:`to_dict` gave.

        Raises:
            UsageError: it contradicts itself; the message names what is wrong.
        """
        content = read(data, _File)
        n = len(content.calls)
        if any(not 0 <= op < len(content.ops) for op in content.calls):
            raise UsageError(f"this plan is malformed: its 'calls' name ops that are not among its {len(content.ops)}")
        if any(not 0 <= call < n for call in content.again):
            raise UsageError(f"this plan is malformed: 'again' names calls that are not among its {n}")
        funcs = tuple(content.ops[op] for op in content.calls)
        same = {name: getattr(content, name) for name in _SAME}
        return CallPlan(funcs=funcs, again=frozenset(content.again), **same)


class _File(Data, frozen=True):
    schema: Literal["memback.torch-plan/2"]
    name: str
    budget: int
    peak_bytes: int
    reserve_bytes: int
    full_peak_bytes: int
    saved_bytes: int
    flops: int
    extra_flops: int
    extra_seconds: float | None
    optimality: str
    peak: dict[str, int | str]
    parameters: dict[str, tuple[int, ...]]
    recomputed: tuple[Recomputed, ...]
    random: int
    ops: tuple[str, ...]
    calls: tuple[int, ...]
    again: tuple[int, ...]


_SAME = [name for name in _File.__struct_fields__ if name not in ("schema", "ops", "calls", "again")]


class CallPlanning:
    """A step whose calls have been recorded, for which plans are made.

    Args:
        step: the module, its inputs and the loss.
        speed: of the device, for predicted seconds; without, only which calls are dear is known.
        progress: called with (what is done now, steps done, steps in all).

    Raises:
        UsageError: the module is compiled or scripted, or FSDP2 shards it.
        MembackError: the step takes decisions on values, or has ops of which a dry run does not know what they take.
    """

    def __init__(
        self, step: Step, speed: Speed | None = None, progress: Progress = lambda what, done, total: None
    ) -> None:
        check_all_visible(step.module)
        if step.strategy == "fsdp2":
            raise UsageError(
                "whole parameters of FSDP2 are there only while their block runs, so that calls of one can't be"
                ' recomputed in another: plan whole blocks with how="checkpoint"'
            )
        self.step, self._speed, self._progress = step, speed, progress
        progress("recording", 0, 3)
        self.recording: Recording = recorded(step, speed or _CPU)
        progress("planning", 1, 3)
        self.planner = Planner(self.recording.calls)
        self._ran: dict[frozenset[int], Tracker] = {}

    def full_peak_bytes(self) -> int:
        """The peak of the step without a plan."""
        return self._run(frozenset()).peak.bytes

    def plan(self, budget: int) -> CallPlan:
        """The cheapest plan within a budget (bytes) that is found.

        Raises:
            NoPlanError: none fits.
            MembackError: a dry run can't tell what the step takes.
        """
        self._check_known()
        if self.full_peak_bytes() <= budget:
            return self._realised(self.planner.everything, budget, "optimal: nothing is recomputed")
        room = budget
        for attempt in range(_TRIES):
            choice = self.planner.within(room)
            if choice is None:
                break
            over = self.takes(choice) - budget
            if over <= 0:
                return self._realised(choice, budget, self._proof(choice, budget))
            room = room - over if attempt < _TRIES - 2 else budget - self._reserve(self.recording.random)
        leanest = self.leanest
        if self.takes(leanest) > budget:
            raise NoPlanError(budget, self._realised(leanest, budget, ""))
        return self._realised(leanest, budget, self._proof(leanest, budget))

    def unplanned(self) -> CallPlan:
        """The plan that keeps everything."""
        return self._realised(self.planner.everything, 0, "")

    def frontier(self) -> list[FrontierPoint]:
        """What less memory costs: budgets rise and extra FLOPs fall strictly.

        Raises:
            MembackError: a dry run can't tell what the step takes.
        """
        self._check_known()
        most, least = self.full_peak_bytes(), self.takes(self.leanest)
        choices = [self.leanest, self.planner.everything]
        for i in range(1, _POINTS):
            found = self.planner.within(least + (most - least) * i // _POINTS)
            choices += [] if found is None else [found]
        points: list[FrontierPoint] = []
        pairs = sorted(
            (choice.judged.peak_bytes + self._reserve(choice.again), self._flops(choice.again)) for choice in choices
        )
        for budget, extra in pairs:
            if not points or extra < points[-1].extra_flops:
                points.append(FrontierPoint(budget, extra))
        return points

    # -- choices

    @cached_property
    def leanest(self) -> Choice:
        """The choice with the least peak that is found."""
        best = self.planner.leanest
        for _ in range(_TRIES):
            leaner = self.planner.within(best.judged.peak_bytes * 99 // 100)
            if leaner is None:
                break
            best = leaner
        return best

    def _proof(self, choice: Choice, budget: int) -> str:
        """How far from the least possible a choice is at most."""
        least, seconds = self.planner.least_seconds(budget), choice.judged.seconds
        if seconds <= least * (1 + 1e-9):
            return "optimal: no choice of what to keep, each value recomputed at most once, recomputes less"
        share = 100 * (seconds - least) / max(sum(self.recording.calls.costs), 1e-300)
        return (
            f"at most {share:.2g} % of a forward pass above the least for this budget, by a minimum cut of the recorded"
            " calls"
        )

    def _check_known(self) -> None:
        unknown = self._run(frozenset()).unknown
        if unknown:
            raise MembackError(
                f"a dry run does not know the size of {'; '.join(sorted(unknown))}, so that no plan can be sure to fit:"
                " apply a policy, and measure it"
            )

    def _flops(self, again: frozenset[int]) -> int:
        return sum(self.recording.flops[call] for call in again)

    def _reserve(self, again: frozenset[int]) -> int:
        on_cpu = self.step.device.type in ("cpu", "meta") and self.step.place is None
        return RANDOM_STATE * len(again & self.recording.random) if on_cpu else 0

    def takes(self, choice: Choice) -> int:
        """The budget that a choice needs: its peak, and its reserve."""
        return self._run(choice.again).peak.bytes + self._reserve(choice.again)

    def _run(self, again: frozenset[int]) -> Tracker:
        """Run a choice dry."""
        if again not in self._ran:
            self._progress(f"dry run {len(self._ran) + 1}", len(self._ran), len(self._ran) + 2)
            with self.step.standing_in() as dry:
                tracker = self._watched(dry, again)
                if tracker.left and self.step.strategy != "ddp":  # a first step makes what later ones find
                    tracker = self._watched(dry, again)
            self._ran[again] = tracker
        return self._ran[again]

    def _watched(self, dry: Step, again: frozenset[int]) -> Tracker:
        funcs = self.recording.funcs
        with regions(dry.module, lambda: Region(funcs, again, draws=False), lambda region: None), dry.unchanged():
            return dry.watch(Mode("full"), events=False)[0]

    def _realised(self, choice: Choice, budget: int, optimality: str) -> CallPlan:
        """A choice as a plan, with what its dry run shows."""
        tracker, again, recording = self._run(choice.again), choice.again, self.recording
        return CallPlan(
            name=f"plan:{format_bytes_short(budget).replace(' ', '')}",
            budget=budget,
            peak_bytes=tracker.peak.bytes,
            reserve_bytes=self._reserve(again),
            full_peak_bytes=self.full_peak_bytes(),
            saved_bytes=tracker.saved_at_end_of_forward or 0,
            flops=tracker.flops,
            extra_flops=tracker.recomputed_flops - self._run(frozenset()).recomputed_flops,
            extra_seconds=None if self._speed is None else choice.judged.seconds,
            optimality=optimality,
            peak=peak_as_data(tracker.peak),
            parameters=parameters_of(self.step.module),
            funcs=recording.funcs,
            again=again,
            recomputed=_by_op(recording, again),
            random=len(again & recording.random),
        )


def _by_op(recording: Recording, again: frozenset[int]) -> tuple[Recomputed, ...]:
    """What is recomputed, by module and op, in the order of the forward pass."""
    found: dict[tuple[str, str], list[int]] = {}
    for call in sorted(again):
        op = recording.funcs[call].removeprefix("aten.").rpartition(".")[0]
        found.setdefault((recording.paths[call], op), []).append(call)
    calls = recording.calls
    return tuple(
        Recomputed(
            path=path,
            op=op,
            calls=len(numbers),
            bytes=sum(calls.values[value].bytes for call in numbers for value in calls.makes[call]),
            flops=sum(recording.flops[call] for call in numbers),
        )
        for (path, op), numbers in found.items()
    )
