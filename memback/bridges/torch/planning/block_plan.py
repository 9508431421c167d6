"""A plan over a module's blocks: which keep what their backward needs, and which are run again under checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from memback.bridges.torch.planning.base import TorchPlan
from memback.bridges.torch.planning.planned import running, submodule
from memback.bridges.torch.recording.body import Body, actions_of, blocks_in, runs_again
from memback.bridges.torch.recording.calls import Call
from memback.plans.actions import Action
from memback.plans.stage import Stage

__all__ = ["BlockPlan", "renamed", "with_glue"]


@dataclass(frozen=True, kw_only=True)
class BlockPlan(TorchPlan):
    """Which blocks of a module keep what their backward needs, and which are run again.

    Hooks of a block run whenever the block does, so again with what is run again.

    Attributes:
        calls: the blocks, in the order of their calls.
        body: how they are run, see :mod:`memback.bridges.torch.recording.body`.
        bounds: the number of the first call of each unit, of blocks that are run together in any case.
        stages: what the planner knew; sizes in bytes, costs in FLOPs (and one a number written), or in seconds.
        units: which unit each stage is; None of glue, which is code between blocks.
        unit_saved_bytes: of the saved bytes, what ops of each unit have made; the rest, other code has.
    """

    calls: tuple[Call, ...]
    body: Body
    bounds: tuple[int, ...]
    stages: tuple[Stage, ...]
    units: tuple[int | None, ...]
    unit_saved_bytes: tuple[int, ...]

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
        stages = {call: stage_of[unit] for unit, call in enumerate(self.bounds)}
        return with_glue(renamed(self.body, stages), self.units)

    @property
    def actions(self) -> tuple[Action, ...]:
        """The schedule over the stages."""
        return tuple(actions_of(self.staged))

    def running(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """In the block a module runs this plan."""
        return running(module, self.calls, self.body)

    def check(self, module: torch.nn.Module) -> None:
        """Raise unless a module has the blocks and the parameters that the plan was made for.

        Raises:
            UsageError: it has not; the message names the first difference.
        """
        super().check(module)
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


def renamed(body: Body, names: Mapping[int, int]) -> Body:
    """A body under other numbers, without the blocks that have none."""
    kept = (item for item in body if not isinstance(item, int) or item in names)
    return tuple(names[item] if isinstance(item, int) else renamed(item, names) for item in kept)


def with_glue(body: Body, units: Sequence[int | None]) -> Body:
    """A body over stages with the stages that are no unit, each kept, in their places."""
    items = list(body)
    for stage, unit in enumerate(units):
        if unit is None:
            at = next((i for i, item in enumerate(items) if next(blocks_in((item,))) > stage), len(items))
            items.insert(at, stage)
    return tuple(items)
