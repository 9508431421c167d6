"""Runs a plan for a chain on a real step: every call stays where it is; what it keeps comes and goes as planned.

A planned region is the part of a forward pass whose calls the plan divides into stages. While it runs, calls of stages
that are not to be kept are recorded lean. When backward comes to a stage, the plan's actions up to its ``Backward`` are
carried out: recipes are followed again, op by op, and fill in what the calls keep. The model's code is not run a second
time, so nothing in it happens twice. The graph, and the order in which gradients are summed, are those of full
retention, so gradients have its bits.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from memback.engine.state import State
from memback.plans.actions import Backward, Drop, Forward, Keep
from memback.plans.model.recipes import LEAN, keeps_its_own, saved_places
from memback.plans.model.region import Region
from memback.plans.model.running import Run

__all__ = ["Execution"]


class Execution(Run):
    """One run of a region under a plan for the chain of its stages."""

    def __init__(self, region: Region) -> None:
        super().__init__(region.calls)
        self.region = region
        self._position = 0
        self._stage = region.stages

    # -- forward: the model runs, and says of every call what to keep

    def lean(self) -> bool:
        return not self.keeps()

    def keeps(self) -> bool:
        self._tell()
        if self.count >= len(self.region.calls):
            return True
        stage = self.region.stage_of[self.count]
        if self.region.first[stage] is not Keep.EVERYTHING:
            return False
        selection = self.region.kept[stage]
        return selection is None or self.count in selection.filled

    def may_run_again(self) -> bool:
        stage = self.region.stage_of[self.count]
        return self.region.first[stage] is not Keep.EVERYTHING or self.region.kept[stage] is not None

    def add(self, node: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        number = self.count
        super().add(node, values, out, residuals)
        if number in self.region.stored_in_forward:
            self._hold(number, node, out)
        if number + 1 in self.region.bounds:
            self._drops_until(Forward(self.region.stage_of[number], self.region.first[self.region.stage_of[number]]))

    def _drops_until(self, forward: Forward) -> None:
        """Carry out what the plan drops before, and right after, a stage has run forward."""
        actions = self.region.executed
        while self._position < len(actions):
            action = actions[self._position]
            if (isinstance(action, Forward) and action.stage > forward.stage) or isinstance(action, Backward):
                return
            if isinstance(action, Drop):
                self._carry_out(action)
            self._position += 1

    # -- backward: calls are filled in as the plan says

    def reach(self, number: int, state: State, retain: bool) -> None:
        stage = self.region.stage_of[number]
        if stage != self._stage:
            self._stage = stage
            self._until_backward(stage, state, retain)
            self._run(stage, state, range(self.region.bounds[stage], self.region.bounds[stage + 1]), outputs=False)
            if not retain:
                self._leave(stage)

    def _until_backward(self, stage: int, state: State, retain: bool) -> None:
        actions = self.region.executed
        while self._position < len(actions):
            action = actions[self._position]
            self._position += 1
            if isinstance(action, Backward):
                if action.stage == stage:
                    return
                if not retain:
                    self._leave(action.stage)
            elif isinstance(action, Drop):
                if not retain:
                    self._carry_out(action)
            else:
                self._forward_again(action, state, retain)

    def _forward_again(self, action: Forward, state: State, retain: bool) -> None:
        stage, region = action.stage, self.region
        actions = region.executed
        following = actions[self._position] if self._position < len(actions) else None
        reversed_next = following == Backward(stage)
        if reversed_next and action.keep is Keep.EVERYTHING:
            return  # the reversal fills in what is missing
        selection = region.kept[stage]
        if action.keep is not Keep.EVERYTHING:
            self._run(stage, state, fill=(), outputs=True)
        else:
            fill = range(region.bounds[stage], region.bounds[stage + 1]) if selection is None else selection.filled
            self._run(stage, state, fill, outputs=True)
        input_stays = action.keep is Keep.INPUT or (action.keep is Keep.EVERYTHING and selection is not None)
        if not retain and not input_stays:
            self._drop(region.crossing[stage])

    def _carry_out(self, drop: Drop) -> None:
        if drop.stored == "output":
            self._drop(self.region.crossing[drop.stage + 1])

    def _leave(self, stage: int) -> None:
        """A stage is being reversed, and its calls hold what they need: nothing is stored for it any more."""
        region = self.region
        selection = region.kept[stage]
        self._drop(region.crossing[stage] | region.crossing[stage + 1])
        self._drop(() if selection is None else selection.stored)
        self._drop(number for number, first in region.lasting.items() if first == stage)

    # -- running a stage again

    def _run(self, stage: int, state: State, fill: Container[int], outputs: bool) -> None:
        """Run what is needed of a stage again: to fill in what calls in ``fill`` keep, to store outputs, or both."""
        wanted = self._outputs_of(stage) if outputs else frozenset()
        work = self._work(stage, wanted, fill)
        if not work:
            return
        self._provide_inputs(stage, work, state)
        made: dict[int, Any] = {}
        with self._again(work[0].node, state):
            for task in work:
                self._do(task, made, wanted, state)

    def _outputs_of(self, stage: int) -> frozenset[int]:
        """What running a stage again leaves stored."""
        region = self.region
        inside = range(region.bounds[stage], region.bounds[stage + 1])
        selection = region.kept[stage]
        kept = frozenset() if selection is None else selection.stored
        return region.crossing[stage + 1].union(kept, (n for n in region.lasting if n in inside))

    def _work(self, stage: int, wanted: frozenset[int], fill: Container[int]) -> list[_Task]:
        """The calls that have to be run or filled in, in order; a call whose output nobody needs is not run."""
        needed = set(wanted)
        work: list[_Task] = []
        for number in reversed(range(self.region.bounds[stage], self.region.bounds[stage + 1])):
            node = self._nodes[number]()
            if node is None or node.recipe is None:
                continue
            filled = number in fill and node.kept is LEAN
            keeps_out, keeps_residuals = keeps_its_own(node) if filled else (False, False)
            run = keeps_residuals or ((keeps_out or number in needed) and number not in self._store)
            if run or filled:
                saved = None if run else saved_places(node)
                needed.update(n for place, n, _ in node.recipe.sources if saved is None or place in saved)
                work.append(_Task(number, node, run, filled))
        work.reverse()
        last: dict[int, int] = {}
        for position, task in enumerate(work):
            last.update((n, position) for _, n, _ in task.node.recipe.sources)
        for position, task in enumerate(work):
            task.used = task.number in last
            task.done = [n for _, n, _ in task.node.recipe.sources if last[n] == position]
        return work

    def _provide_inputs(self, stage: int, work: list[_Task], state: State) -> None:
        """Make what earlier stages should have left stored, if it is not: somebody takes backward another way."""
        start = self.region.bounds[stage]
        for task in work:
            saved = None if task.run else saved_places(task.node)
            for place, number, _ in task.node.recipe.sources:
                if number < start and number not in self._store and (saved is None or place in saved):
                    self._run(self.region.stage_of[number], state, fill=(), outputs=True)

    def _do(self, task: _Task, made: dict[int, Any], wanted: frozenset[int], state: State) -> None:
        node = task.node
        op, recipe = node.op, node.recipe

        def given(number: int, index: int | None) -> Any:
            out = made[number] if number in made else self._store[number].out
            return out if index is None else out[index]

        values = recipe.bind(op, given, None if task.run else saved_places(node))
        if task.run:
            out, _ = self._run_again(task.number, node, values, task.fill, task.fill, state)
            if task.used:
                made[task.number] = out
        else:
            stored = self._store.get(task.number)
            out = recipe.stand_ins(op.multiple) if stored is None else stored.out
            node.kept = op.arguments(node.saving, values, out, (None,) * len(op.residuals))
            if state.observer is not None:
                state.observer.held(node)
        if task.number in wanted and task.number not in self._store:
            self._hold(task.number, node, out)
            self._tell()
        for number in task.done:
            made.pop(number, None)


class _Task:
    """A call to be run again, to have what it keeps filled in, or both.

    ``used`` says that a later one needs its output; ``done`` are inputs that it is the last one to need.
    """

    __slots__ = ("done", "fill", "node", "number", "run", "used")

    def __init__(self, number: int, node: Any, run: bool, fill: bool) -> None:
        self.number = number
        self.node = node
        self.run = run
        self.fill = fill
        self.used = False
        self.done: list[int] = []
