"""A region whose calls are divided into a chain of stages, and what a plan does with these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from memback.errors import UsageError
from memback.plans.actions import Action, Backward, Drop, Forward, Keep
from memback.plans.model.recipes import CallShape
from memback.plans.segments import inputs_alone, recorded

__all__ = ["Region", "Selection"]


class Selection(NamedTuple):
    """What is kept of a stage in place of everything: the outputs of calls in ``stored``, and what the calls in
    ``filled`` keep; what the others keep is computed again from that.
    """

    stored: frozenset[int]
    filled: frozenset[int]


@dataclass(frozen=True)
class Region:
    """How the calls of a region are divided into stages, and what is done with these.

    Attributes:
        calls: what each call must be, in order.
        bounds: stage i is the calls from ``bounds[i]`` to ``bounds[i + 1]`` (exclusive).
        crossing: by boundary, the calls whose outputs are activation i: made before it and used by the stage after it.
        lasting: calls whose outputs are used beyond the next stage, which are stored at all times; and the first stage
            after their own that uses them, after whose reversal they are not needed any more.
        kept: by stage, what is kept where a plan keeps "everything" of it; None where it really is everything.
        actions: of the plan. The last stage is kept from the first: its backward follows at once.

    Saves that a plan drops again, or whose stage's input or output it drops, are not kept in the first place.
    """

    calls: tuple[CallShape, ...]
    bounds: tuple[int, ...]
    crossing: tuple[frozenset[int], ...]
    lasting: Mapping[int, int]
    kept: tuple[Selection | None, ...]
    actions: tuple[Action, ...]

    def keeping_everything(self) -> Region:
        """The same region, with all kept that backward needs."""
        return replace(self, kept=(None,) * self.stages, actions=tuple(recorded(0, self.stages)))

    def keeping_inputs(self) -> Region:
        """The same region, with nothing kept of a stage but its input."""
        return replace(self, kept=(None,) * self.stages, actions=tuple(inputs_alone(self.stages)))

    @cached_property
    def executed(self) -> tuple[Action, ...]:
        """The actions as they are carried out."""
        return tuple(_without_waste(self.actions))

    @property
    def stages(self) -> int:
        """Number of stages in the region."""
        return len(self.bounds) - 1

    @cached_property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of each call."""
        return tuple(i for i, (a, b) in enumerate(pairwise(self.bounds)) for _ in range(a, b))

    @cached_property
    def first(self) -> tuple[Keep, ...]:
        """What the forward pass keeps of each stage. A stage whose saves would be dropped again keeps its input alone.

        Raises:
            UsageError: the plan does not begin by running every stage once, in order.
        """
        first: list[Keep] = []
        for action in self.executed:
            if isinstance(action, Backward):
                break
            if isinstance(action, Forward):
                if action.stage != len(first):
                    raise UsageError(
                        f"this plan can't be run: it does {action} before every stage has run forward once, in order"
                    )
                first.append(action.keep)
        return tuple(first)

    @cached_property
    def stored_in_forward(self) -> frozenset[int]:
        """The calls whose outputs are stored when the model itself runs them."""
        lean = [keep is not Keep.EVERYTHING or self.kept[i] is not None for i, keep in enumerate(self.first)]
        if not any(lean):
            return frozenset()
        wanted = set(self.lasting)
        for i, keep in enumerate(self.first):
            if lean[i] and keep is not Keep.NOTHING:
                wanted |= self.crossing[i]
            selection = self.kept[i]
            if keep is Keep.EVERYTHING and selection is not None:
                wanted |= selection.stored
        return frozenset(wanted)


def _without_waste(actions: Sequence[Action]) -> list[Action]:
    """The same plan, for calls that hold their stage's input and output themselves.

    Saves that are dropped unused are not made. Those of a stage whose input or output is dropped while they are held
    would hold on to it: they are not made either, and filled in from what is there when the stage is reversed.
    """
    result = list(actions)
    holding: dict[int, int] = {}
    dropped: set[int] = set()
    for index, action in enumerate(actions):
        stage = action.stage
        let_go: tuple[int, ...] = ()
        if isinstance(action, Forward):
            if action.keep is Keep.NOTHING:
                let_go = (stage - 1, stage)
        elif isinstance(action, Drop):
            let_go = (stage,) if action.stored == "saves" else (stage, stage + 1)
            if action.stored == "saves":
                dropped.add(index)
        else:
            holding.pop(stage, None)
        for held in let_go:
            if held in holding:
                result[holding.pop(held)] = Forward(held, Keep.INPUT)
        if isinstance(action, Forward) and action.keep is Keep.EVERYTHING:
            holding[stage] = index
    return [action for index, action in enumerate(result) if index not in dropped]
