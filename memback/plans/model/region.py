"""A region whose calls are divided into a chain of stages, and what a plan does with these."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile, zip_longest

from memback.engine.program import Instruction, Program, Recompute, Release, Reverse
from memback.errors import UsageError
from memback.plans.actions import Action, Backward, Drop, Forward, Keep
from memback.plans.data import Data
from memback.plans.model.replay import CallShape, PlanReplay
from memback.plans.segments import inputs_alone, recorded

__all__ = ["Region", "Selection"]


class Selection(Data, frozen=True):
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

    def begin(self) -> PlanReplay:
        """One run of the region."""
        return PlanReplay(self.calls, self.program)

    # -- the program

    @cached_property
    def program(self) -> Program:
        """What is kept of each call, and what is run again before which reversal.

        Raises:
            UsageError: the plan does not begin by running every stage once, in order.
        """
        n = len(self.calls)
        whole = frozenset(k for k in range(n) if self._is_whole(k))
        lean = frozenset(range(n)) - whole
        can = frozenset(k for i in range(self.stages) if self._is_lean(i) for k in self._calls_of(i))
        return Program(whole, self._stored_in_forward(), frozenset(), can, lean, tuple(self._steps()))

    def _is_lean(self, stage: int) -> bool:
        """Whether anything of a stage may have to be run again."""
        return self.first[stage] is not Keep.EVERYTHING or self.kept[stage] is not None

    def _is_whole(self, number: int) -> bool:
        """Whether a call keeps all that its backward needs."""
        stage = self.stage_of[number]
        selection = self.kept[stage]
        return self.first[stage] is Keep.EVERYTHING and (selection is None or number in selection.filled)

    def _calls_of(self, stage: int) -> range:
        return range(self.bounds[stage], self.bounds[stage + 1])

    def _stored_in_forward(self) -> frozenset[int]:
        """The calls whose outputs are stored when the model itself runs them."""
        lean = [i for i in range(self.stages) if self._is_lean(i)]
        if not lean:
            return frozenset()
        wanted = set(self.lasting)
        for i in lean:
            if self.first[i] is not Keep.NOTHING:
                wanted |= self.crossing[i]
            selection = self.kept[i]
            if self.first[i] is Keep.EVERYTHING and selection is not None:
                wanted |= selection.stored
        for action in self._forward_part():
            if isinstance(action, Drop) and action.stored == "output":
                wanted -= self.crossing[action.stage + 1]
        return frozenset(wanted)

    def _forward_part(self) -> Iterator[Action]:
        return takewhile(lambda action: not isinstance(action, Backward), self.executed)

    def _steps(self) -> Iterator[Instruction]:
        actions = self.executed[len(list(self._forward_part())) :]
        for action, following in zip_longest(actions, actions[1:]):
            stage = action.stage
            calls, selection = self._calls_of(stage), self.kept[stage]
            if isinstance(action, Backward):
                yield Reverse(calls.start, calls.stop)
                yield Release(self._done_after(stage))
            elif isinstance(action, Drop):
                if action.stored == "output":
                    yield Release(self.crossing[stage + 1])
            elif action.keep is not Keep.EVERYTHING or following != Backward(stage):  # else the reversal fills it in
                fill: Collection[int] = ()
                if action.keep is Keep.EVERYTHING:
                    fill = calls if selection is None else selection.filled
                yield Recompute(calls.start, calls.stop, self._outputs_of(stage), fill)
                if action.keep is Keep.NOTHING or (action.keep is Keep.EVERYTHING and selection is None):
                    yield Release(self.crossing[stage])

    def _outputs_of(self, stage: int) -> frozenset[int]:
        """What running a stage again leaves stored."""
        selection = self.kept[stage]
        kept = frozenset[int]() if selection is None else selection.stored
        return self.crossing[stage + 1].union(kept, (n for n in self.lasting if n in self._calls_of(stage)))

    def _done_after(self, stage: int) -> frozenset[int]:
        """What is of no more use once the calls of a stage that is reversed hold what they need."""
        selection = self.kept[stage]
        kept = frozenset[int]() if selection is None else selection.stored
        lasting = (number for number, first in self.lasting.items() if first == stage)
        return self.crossing[stage].union(self.crossing[stage + 1], kept, lasting)


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
