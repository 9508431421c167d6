"""A step's blocks as the stages of a chain, weighed by a dry run, for memback's planners.

Between blocks that are not linked, before the first and after the last one, other code runs: *glue*, a stage that only
its caller can run, so that it is never run again. What blocks that write to others' output in place can't be told
apart from makes up one *unit* with them.
"""

from __future__ import annotations

import statistics
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from memback.bridges.torch.planning.planned import submodule
from memback.bridges.torch.recording.body import Body
from memback.bridges.torch.recording.calls import Call, calling, record
from memback.bridges.torch.recording.disturbances import is_planned_call
from memback.bridges.torch.recording.fake import DryRunError
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.storages import key, storages, tensors
from memback.bridges.torch.recording.tracking import Tracker
from memback.plans.stage import Stage
from memback.profiling.accounts import Account
from memback.profiling.mode import Mode

__all__ = ["Blocks", "find_blocks", "seconds", "weighed"]


@dataclass(frozen=True)
class Unit:
    """Neighbouring blocks that are kept or run again together; ``fixed`` ones are never run again."""

    calls: tuple[int, ...]
    linked: bool
    fixed: bool


@dataclass(frozen=True)
class Blocks:
    """A step's blocks, and how stages are made up of them.

    Attributes:
        calls: the blocks.
        units: made up of them, in order.
        stages: what each stage of the chain is: the number of a unit, or None of glue.
        kept_because: which blocks are never run again, and why; empty where there are none.
    """

    calls: tuple[Call, ...]
    units: tuple[Unit, ...]
    stages: tuple[int | None, ...]
    kept_because: str = ""

    @staticmethod
    def of(calls: Sequence[Call], ops_before: Callable[[int], int], why: Mapping[int, str]) -> Blocks:
        """``ops_before`` gives how many ops run before each block, and after the last one; ``why`` some are fixed."""
        units = _units(calls)
        stages: list[int | None] = []
        for number, unit in enumerate(units):
            if ops_before(unit.calls[0]) or (number and not unit.linked):
                stages.append(None)
            stages.append(number)
        return Blocks(tuple(calls), tuple(units), (*stages, None), _said(calls, why))

    @property
    def joined(self) -> list[bool]:
        """Whether each unit can be in a segment with the one before it."""
        return [unit.linked for unit in self.units]

    @property
    def fixed(self) -> list[bool]:
        """Whether each unit is never run again."""
        return [unit.fixed for unit in self.units]

    def of_stages(self, body: Body) -> Body:
        """A body over stages as one over units: glue is not said."""
        items: list[int | Body] = []
        for item in body:
            if isinstance(item, int):
                unit = self.stages[item]
                items += [] if unit is None else [unit]
            else:
                items.append(self.of_stages(item))
        return tuple(items)

    def of_calls(self, body: Body) -> Body:
        """A body over units as one over calls."""
        items: list[int | Body] = []
        for item in body:
            if isinstance(item, int):
                items += self.units[item].calls
            else:
                items.append(self.of_calls(item))
        return tuple(items)


def _said(calls: Sequence[Call], why: Mapping[int, str]) -> str:
    """``h.0, h.1 (and 10 more), never run again: each changes the DynamicCache that it is given``."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for number, reason in why.items():
        by_reason[reason].append(calls[number].path)
    return "; ".join(
        f"{', '.join(paths[:2])}{f' and {len(paths) - 2} more' if len(paths) > 2 else ''} never run again, because"
        f" {'each' if len(paths) > 1 else 'it'} {reason}"
        for reason, paths in by_reason.items()
    )


def _units(calls: Sequence[Call]) -> list[Unit]:
    groups: list[list[int]] = []
    fixed: list[bool] = []
    for number, call in enumerate(calls):
        groups.append([number])
        fixed.append(False)
        if call.writes_to is None:
            continue
        while groups[-1][0] > call.writes_to >= 0 and calls[groups[-1][0]].linked:
            last, _ = groups.pop(), fixed.pop()
            groups[-1] += last
        fixed[-1] = fixed[-1] or call.writes_to < groups[-1][0]
    return [Unit(tuple(group), calls[group[0]].linked, is_fixed) for group, is_fixed in zip(groups, fixed, strict=True)]


def find_blocks(step: Step, patterns: Sequence[str] | None) -> Blocks:
    """The blocks of a step: what ``patterns`` of paths say, or else the tree of modules. It is run dry, forward.

    Raises:
        UsageError: there are none, or none for a pattern; or a module is compiled.
        MembackError: the step takes decisions on values.
    """
    with step.standing_in() as dry, dry.unchanged():
        dry.forward()  # a first step makes what later ones find
        with record(dry.module) as trace:
            output = dry.forward()
        return Blocks.of(trace.blocks(patterns, output), trace.ops_before, trace.fixed)


# -- weighing


class _Weigher(Tracker):
    """A tracker that knows which stage is running, and the most that is alive during each."""

    def __init__(self, step: Step, blocks: Blocks) -> None:
        super().__init__(step.arguments(), step.module, events=False)
        n = len(blocks.stages)
        self.stage = 0
        self.most = {phase: [0] * n for phase in ("forward", "backward", "recompute")}
        self.start = [0] * n
        self.cost = [0] * n
        self.given: dict[int, list[tuple[Account, int]]] = defaultdict(list)
        """By stage: (account of a storage, bytes of a gradient) of each tensor that goes on from it."""
        self.born: dict[int, tuple[int, Account]] = {}
        """By number: the stage that made it, and the account of each storage."""
        self.kept: list[list[Account]] = [[] for _ in range(n)]
        """By stage: what it has made that is alive at the end of the forward pass."""
        self.made: dict[int, tuple[int, Account]] = {}
        """``born`` at the end of the forward pass."""
        self._sequence: list[int] = []
        self.begins(0)

    def begins(self, stage: int) -> None:
        """A stage's forward begins."""
        self.stage = stage
        self.start[stage] = self._bytes
        if len(self._sequence) <= stage:
            self._sequence.append(torch._C._autograd._get_sequence_nr())

    def gives(self, stage: int, values: Any) -> None:
        """Note what goes on from a stage."""
        for tensor in tensors(values):
            gradient = tensor.numel() * tensor.element_size() if tensor.requires_grad else 0
            for storage in storages(tensor):
                account = self._accounts.get(key(storage))
                if account is not None:
                    self.given[stage].append((account, gradient))

    def forward_ended(self, result: Any = None) -> None:
        super().forward_ended(result)
        self.made = dict(self.born)
        for stage, account in self.made.values():
            if not account.closed:
                self.kept[stage].append(account)

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        before = self.flops
        out = super().run(func, args, kwargs)
        if self._phase == "forward" and not self._own:
            self.cost[self.stage] += self.flops - before + sum(tensor.numel() for tensor in tensors(out))
        return out

    def _birth(self, storage: Any, size: int, row: Any) -> None:
        super()._birth(storage, size, row)
        account = self._accounts[key(storage)]
        self.born[account.number] = self.stage, account

    def _look(self) -> None:
        super()._look()
        most = self.most[self._phase]
        most[self.stage] = max(most[self.stage], self._bytes)

    def _enter_node(self, node: Any, task: int) -> None:
        if getattr(node, "variable", None) is None and self._sequence:
            self.stage = max(bisect_right(self._sequence, node._sequence_nr()) - 1, 0)
        super()._enter_node(node, task)


@contextmanager
def _told(
    step: Step, blocks: Blocks, trains: bool, begins: Callable[[int], None], gives: Callable[[int, Any], None]
) -> Iterator[None]:
    """In the block each stage of a step is told of as it begins, and what it gives to the next one.

    A step that ``trains`` has no blocks where gradients are off.
    """
    stage_of = {unit: stage for stage, unit in enumerate(blocks.stages) if unit is not None}
    first = {unit.calls[0]: stage_of[number] for number, unit in enumerate(blocks.units)}
    last = {unit.calls[-1]: stage_of[number] for number, unit in enumerate(blocks.units)}
    modules = [submodule(step.module, call.path) for call in blocks.calls]
    cursor, inside = 0, False

    def called(module: Any, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        nonlocal cursor, inside
        if inside or cursor == len(modules) or modules[cursor] is not module or (trains and not is_planned_call()):
            return original(*args, **kwargs)
        number, inside = cursor, True
        cursor += 1
        if number in first:
            stage = first[number]
            if stage and blocks.stages[stage - 1] is None:
                gives(stage - 1, (args, kwargs))
            begins(stage)
        try:
            output = original(*args, **kwargs)
        finally:
            inside = False
        if number in last:
            gives(last[number], output)
            begins(last[number] + 1)
        return output

    with calling(list({id(module): module for module in modules}.values()), called):
        yield


def _weigh(step: Step, blocks: Blocks, mode: Mode) -> _Weigher:
    with step.standing_in() as dry, dry.unchanged():
        weigher = _Weigher(dry, blocks)
        with _told(dry, blocks, mode.trains, weigher.begins, weigher.gives), weigher:
            dry.run(mode, weigher.forward_ended if mode.trains else lambda loss: None)
        for parameter in dry.module.parameters():
            if parameter.grad is not None:
                weigher.gives(-1, parameter.grad)
        weigher.finish()
    return weigher


def weighed(step: Step, blocks: Blocks) -> list[Stage]:
    """The stages, weighed by two dry runs. Sizes are in bytes; costs are FLOPs, and one for each number written.

    Backward runs once whatever the plan, so it costs nothing here.
    """
    n = len(blocks.stages)
    full = _weigh(step, blocks, Mode("full"))
    try:
        swept = _weigh(step, blocks, Mode("inference"))
    except DryRunError:
        swept = full  # of a step that differentiates in its forward pass
    outputs, counted = [0] * n, set[int]()
    gradients = [0] * n
    saved = [0] * n
    for stage in range(n):
        for account, gradient in full.given[stage]:
            gradients[stage] += gradient
            if account.number in full.made and account.number not in counted:
                counted.add(account.number)
                outputs[stage] += account.bytes
    for stage in range(n):
        saved[stage] = sum(account.bytes for account in full.kept[stage] if account.number not in counted)
    owed = [0] * n
    for account, _ in full.given[-1]:
        if account.number in full.born:
            owed[full.born[account.number][0]] += account.bytes
    return [
        Stage(
            forward_cost=full.cost[i],
            backward_cost=0,
            output_bytes=outputs[i],
            saved_bytes=saved[i],
            gradient_bytes=gradients[i],
            forward_workspace=max(full.most["forward"][i] - full.start[i] - outputs[i] - saved[i], 0),
            sweep_workspace=max(swept.most["forward"][i] - swept.start[i] - outputs[i], 0),
            backward_workspace=max(
                full.most["backward"][i]
                - sum(outputs[: i + 1])
                - sum(saved[: i + 1])
                - gradients[i]
                - (gradients[i - 1] if i else 0)
                - sum(owed[i:]),
                0,
            ),
            parameter_gradient_bytes=owed[i],
            sweeps=blocks.stages[i] is not None and not blocks.units[blocks.stages[i] or 0].fixed,
        )
        for i in range(n)
    ]


# -- time


def seconds(step: Step, blocks: Blocks, rounds: int = 3) -> list[float]:
    """Of each stage's forward, on the real thing: the median of so many rounds, after one that does not count."""
    taken = [_timed(step, blocks) for _ in range(rounds + 1)][1:]
    return [statistics.median(times) for times in zip(*taken, strict=True)]


def _timed(step: Step, blocks: Blocks) -> list[float]:
    """Seconds of each stage's forward in one run."""
    began = [0.0] * (len(blocks.stages) + 1)

    def begins(stage: int) -> None:
        began[stage] = step.now()

    with step.unchanged(), torch.enable_grad(), _told(step, blocks, True, begins, lambda stage, values: None):
        begins(0)
        loss = step.forward()
        begins(len(blocks.stages))
        del loss
    return [after - before for before, after in pairwise(began)]
