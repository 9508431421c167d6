"""Runs a plan on a real step: every call stays where it is on the tape, and what it keeps comes and goes as planned.

A planned region is the part of a forward pass whose calls the plan divides into stages. While it runs, calls of stages
that are not to be kept are recorded *lean*: with a recipe (the op, its attributes, which earlier calls made its inputs,
its place in the random stream) instead of saved values. When backward comes to a stage, the plan's actions up to its
``Backward`` are carried out: recipes are followed again, op by op, and fill in what the calls keep. The model's code
is not run a second time, so nothing in it happens twice. The graph, and the order in which gradients are summed, are
those of full retention, so gradients have its bits.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from memback.arrays import leaves
from memback.errors import UsageError
from memback.op import Op
from memback.plans.actions import Action, Backward, Drop, Forward, Keep
from memback.state import State, current
from memback.tape import (
    Call,
    Edge,
    MultiNode,
    Node,
    Port,
    Site,
    Tape,
    TapeError,
    Tensor,
    changes,
    node_of,
)

__all__ = ["CallShape", "Execution", "PlannedCall", "Region", "run_region"]


class _Lean(tuple[Any, ...]):
    """What a call keeps that was recorded lean: nothing yet."""


_LEAN = _Lean()


class Recipe:
    """How a call is made again: its values without those that earlier calls made, and which calls those are.

    ``sources`` has an entry (place among the values, number of the call, index among its outputs or None where it has
    one) for each of these; in a variadic op the place is one among its items. ``shapes`` has shape and dtype of these
    inputs, ``outs`` of the outputs; ``arrays`` are the other inputs.
    """

    __slots__ = ("arrays", "draws", "outs", "seed", "shapes", "sources", "values")

    def __init__(
        self,
        op: Op,
        values: list[Any],
        edges: Sequence[Edge | None],
        out: Any,
        owner: Execution,
        random: tuple[int, int],
    ) -> None:
        places = range(len(edges)) if op.variadic is not None else [i for _, i in op.array_slots]
        items = list(values[op.variadic]) if op.variadic is not None else list(values)
        self.sources: list[tuple[int, int, int | None]] = []
        self.shapes: list[tuple[tuple[int, ...], Any]] = []
        for place, edge in zip(places, edges, strict=True):
            source = owner.source(edge)
            if source is not None:
                self.sources.append((place, *source))
                self.shapes.append((items[place].shape, items[place].dtype))
                items[place] = None
        if op.variadic is not None:
            values = [*values]
            values[op.variadic] = items
            self.values: list[Any] = values
        else:
            self.values = items
        self.arrays = [a for value in items for a in leaves(value)]
        self.outs = [(o.shape, o.dtype) for o in (out if op.multiple else (out,))]
        self.seed, self.draws = random

    def bind(self, op: Op, given: Callable[[int, int | None], Any], needed: Container[int] | None) -> list[Any]:
        """The call's values: inputs from earlier calls, (number, index), as ``given`` has them.

        Only those at the places ``needed`` where not all are; an array of a few bytes stands in for the others.
        """
        values = list(self.values)
        items = values
        if op.variadic is not None:
            items = list(values[op.variadic])
            values[op.variadic] = items
        for (place, number, index), (shape, dtype) in zip(self.sources, self.shapes, strict=True):
            if needed is None or place in needed:
                items[place] = given(number, index)
            else:
                items[place] = _stand_in(shape, dtype)
        return values

    def stand_ins(self, multiple: bool) -> Any:
        """The output's shape and dtype in a few bytes, for a call whose output nobody looks at."""
        made = tuple(_stand_in(shape, dtype) for shape, dtype in self.outs)
        return made if multiple else made[0]


def _stand_in(shape: tuple[int, ...], dtype: Any) -> Any:
    return np.broadcast_to(np.zeros((), dtype), shape)


class PlannedCall(Node):
    """A call in a planned region: the region's execution, the call's number in it, and how it is made again."""

    __slots__ = ("execution", "index", "recipe")

    execution: Execution | None
    index: int
    recipe: Recipe | None

    def saved(self) -> list[tuple[str, Any]]:
        return [] if self.kept is _LEAN else super().saved()

    def check(self) -> None:
        if self.kept is not _LEAN or self.recipe is None:
            super().check()
            return
        for array in self.recipe.arrays:
            if what := changes.since(array, self.time):
                raise TapeError(
                    f"an input of {self.describe()}, which its plan computes again for backward, was changed in place"
                    f" by {what}. Use an out-of-place operation, or change it after backward."
                )

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Have what the call keeps filled in, if it is not there, and take its output gradient through its op."""
        if self.execution is not None:
            self.execution.reach(self.index, state, retain)
            if not retain:
                self.execution, self.recipe = None, None
        return super().pull(state, retain)

    def forget(self) -> None:
        """Drop everything that is kept, and what the plan stores."""
        super().forget()
        self.execution, self.recipe = None, None


class PlannedMultiCall(PlannedCall, MultiNode):
    """A call with several outputs in a planned region."""

    __slots__ = ()


class _Held(Node):
    """What a call gave (a tuple where it has several outputs), as long as the plan stores it."""

    __slots__ = ("out",)

    def __init__(self, call: Node, out: Any) -> None:
        super().__init__(call.op, call.tape, call.path, call.site, None, (), (), None)
        self.out = out

    @property
    def name(self) -> str:
        return "checkpoint"

    @property
    def residuals(self) -> tuple[str, ...]:
        return ()

    def saved(self) -> list[tuple[str, Any]]:
        return [(f"output of {self.op.name}", self.out)]


class CallShape(NamedTuple):
    """What a call in a planned region must be: its op, layer path, and the shapes and dtypes of its outputs."""

    op: str
    path: str
    outputs: tuple[tuple[tuple[int, ...], str], ...]

    @classmethod
    def of(cls, op: Op, path: str, out: Any) -> CallShape:
        """The shape of a call that has run."""
        return cls(op.name, path, tuple((o.shape, o.dtype.name) for o in (out if op.multiple else (out,))))

    def matches(self, other: CallShape) -> bool:
        """Whether another call is the same, whatever its layer is called where the model is a part of another one."""
        return self.op == other.op and self.outputs == other.outputs

    def __str__(self) -> str:
        outputs = ", ".join(f"{dtype}[{', '.join(map(str, shape))}]" for shape, dtype in self.outputs)
        return f"{self.op} (layer {self.path or '(top)'!r}) giving {outputs}"


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


class Execution:
    """One run of a planned region, from its first call to the end of its backward."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.count = 0
        self._nodes: list[weakref.ref[Any]] = []
        self._store: dict[int, _Held] = {}
        self._untold: list[_Held] = []
        self.runs: Counter[int] = Counter()
        """How often each call was run again."""
        self._position = 0
        self._stage = region.stages

    # -- forward: the model runs, and says of every call what to keep

    def keeps(self) -> bool:
        """Whether what the next call keeps is kept now; otherwise it is recorded lean."""
        self._tell()
        if self.count >= len(self.region.calls):
            return True
        stage = self.region.stage_of[self.count]
        if self.region.first[stage] is not Keep.EVERYTHING:
            return False
        selection = self.region.kept[stage]
        return selection is None or self.count in selection.filled

    def may_run_again(self) -> bool:
        """Whether the plan, as it stands, runs the next call again, or computes from its inputs what others keep."""
        stage = self.region.stage_of[self.count]
        return self.region.first[stage] is not Keep.EVERYTHING or self.region.kept[stage] is not None

    def expect(self, op: Op, path: str, out: Any) -> None:
        """Raise unless a call is the next one of the plan.

        Raises:
            UsageError: it is another, so the plan was made for another model or other inputs.
        """
        shape = CallShape.of(op, path, out)
        calls = self.region.calls
        if self.count >= len(calls) or not calls[self.count].matches(shape):
            wanted = calls[self.count] if self.count < len(calls) else "the end of the model"
            raise UsageError(
                f"this plan was made for another model or other inputs: call {self.count} is {shape}, the plan has"
                f" {wanted} there. Make a plan for this one"
            )

    def add(self, node: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        """Take a call into the region."""
        number = self.count
        self._nodes.append(weakref.ref(node))
        self.count += 1
        if number in self.region.stored_in_forward:
            self._hold(number, node, out)
        if number + 1 in self.region.bounds:
            self._drops_until(Forward(self.region.stage_of[number], self.region.first[self.region.stage_of[number]]))

    def source(self, edge: Edge | None) -> tuple[int, int | None] | None:
        """(number of the call, index among its outputs if it has several) of an input that was made in this region."""
        if edge is None or isinstance(edge, Tensor):
            return None
        node = node_of(edge)
        if getattr(node, "execution", None) is not self:
            return None
        return node.index, edge.index if isinstance(edge, Port) else None  # type: ignore[attr-defined]

    def finish(self) -> None:
        """The region's forward is over.

        Raises:
            UsageError: calls of the plan are missing.
        """
        self._tell()
        if self.count < len(self.region.calls):
            raise UsageError(
                f"this plan was made for another model or other inputs: it has {len(self.region.calls)} calls, of which"
                f" the model has made {self.count}. Make a plan for this one"
            )

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
        """Backward has come to a call: carry out the plan up to the reversal of its stage."""
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

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._store.pop(number, None)

    def _hold(self, number: int, node: Any, out: Any) -> None:
        held = self._store[number] = _Held(node, out)
        self._untold.append(held)

    def _tell(self) -> None:
        """Tell the observer what was stored, once it has been told of the calls that made it."""
        observer = current().observer
        while self._untold:
            held = self._untold.pop(0)
            if observer is not None:
                observer.held(held)

    # -- running a stage again

    def _run(self, stage: int, state: State, fill: Container[int], outputs: bool) -> None:
        """Run what is needed of a stage again: to fill in what calls in ``fill`` keep, to store outputs, or both."""
        wanted = self._outputs_of(stage) if outputs else frozenset()
        work = self._work(stage, wanted, fill)
        if not work:
            return
        self._provide_inputs(stage, work, state)
        observer = state.observer
        if observer is not None:
            observer.recompute_begins(work[0].node)
        before = state.path, state.seed, state.draws, state.recomputing
        state.recomputing = True
        made: dict[int, Any] = {}
        try:
            for task in work:
                self._do(task, made, wanted, state)
        finally:
            state.path, state.seed, state.draws, state.recomputing = before
        if observer is not None:
            observer.recompute_ended(work[0].node)

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
            filled = number in fill and node.kept is _LEAN
            keeps_out, keeps_residuals = _keeps_its_own(node) if filled else (False, False)
            run = keeps_residuals or ((keeps_out or number in needed) and number not in self._store)
            if run or filled:
                saved = None if run else _saved_places(node)
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
            saved = None if task.run else _saved_places(task.node)
            for place, number, _ in task.node.recipe.sources:
                if number < start and number not in self._store and (saved is None or place in saved):
                    self._run(self.region.stage_of[number], state, fill=(), outputs=True)

    def _do(self, task: _Task, made: dict[int, Any], wanted: frozenset[int], state: State) -> None:
        node, observer = task.node, state.observer
        op, recipe = node.op, node.recipe

        def given(number: int, index: int | None) -> Any:
            out = made[number] if number in made else self._store[number].out
            return out if index is None else out[index]

        values = recipe.bind(op, given, None if task.run else _saved_places(node))
        filled = node if task.fill else None
        if task.run:
            self.runs[task.number] += 1
            state.path, state.seed, state.draws = node.path, recipe.seed, recipe.draws
            if observer is not None:
                observer.forward_begins(op)
            out, residuals = op.run(values, task.fill)
            if task.used:
                made[task.number] = out
        else:
            stored = self._store.get(task.number)
            out = recipe.stand_ins(op.multiple) if stored is None else stored.out
            residuals = (None,) * len(op.residuals)
        if task.fill:
            node.kept = op.arguments(node.saving, values, out, residuals)
        if observer is not None and task.run:
            observer.forward_ended(Call(op, values, out, residuals, node.path, node.site, filled, node.tape, False))
        elif observer is not None:
            observer.held(node)
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


def _keeps_its_own(node: Any) -> tuple[bool, bool]:
    """Whether a call keeps its output, and whether it keeps residuals."""
    names = set(node.saving.names)
    return "out" in names, bool(names & set(node.op.residuals))


def _saved_places(node: Any) -> frozenset[int] | range:
    """The inputs that a call keeps, by their places in its recipe."""
    places = frozenset(node.saving.layout[slot] for slot in node.saving.slots)
    if node.op.variadic is None:
        return places
    return range(len(node.op.input_arrays(node.recipe.values))) if node.op.variadic in places else range(0)


# -- the region


class _RegionTape(Tape):
    """Records the calls of a region on the tape around it, as the plan wants them."""

    def __init__(self, outer: Tape, execution: Execution) -> None:
        super().__init__()
        self._outer_tape = outer
        self._execution = execution
        self._random = (0, 0)
        self._lean = False

    def reruns(self, node: Node | None) -> bool:
        return node is not None and node.kept is _LEAN

    def clear(self) -> None:
        self._outer_tape.clear()

    def keeps(self, op: Op) -> bool:
        state = current()
        self._random = (state.seed, state.draws)
        self._lean = not self._execution.keeps()
        return not self._lean

    def record(
        self,
        op: Op,
        values: list[Any],
        out: Any,
        residuals: tuple[Any, ...],
        needs: int,
        edges: tuple[Edge | None, ...],
        path: str,
        site: Site | None,
    ) -> Node:
        """Record one call, with what it keeps or with how to make it again."""
        execution = self._execution
        execution.expect(op, path, out)
        lean = self._lean
        saving = op.saving(needs, len(edges))
        kept = _LEAN if lean else op.arguments(saving, values, out, residuals)
        kind = PlannedMultiCall if op.multiple else PlannedCall
        dtype = tuple(o.dtype for o in out) if op.multiple else out.dtype
        node: Any = kind(op, self._outer_tape, path, site, dtype, edges, kept, saving)
        node.execution, node.index = execution, execution.count
        again = execution.may_run_again()
        node.recipe = Recipe(op, values, edges, out, execution, self._random) if again else None
        self._outer_tape.append(node)
        execution.add(node, values, out, residuals)
        return node


def run_region(
    begin: Callable[[], Execution], forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run ``forward`` as a planned region; plainly where there is no tape, or checkpoints are off or around it."""
    state = current()
    outer = state.tape
    if outer is None or not state.checkpointing or outer.retain == "all" or outer.transient or state.recomputing:
        return forward(*args, **kwargs)
    execution = begin()
    state.checkpointing = False  # the plan stands in place of the model's own checkpoints
    try:
        with _RegionTape(outer, execution):
            out = forward(*args, **kwargs)
            execution.finish()
    finally:
        state.checkpointing = True
    return out
