"""Record once, replay by program: the one mechanism by which values are recomputed for backward.

A *region* is a part of a forward pass: a checkpointed function, or a module under a plan. While it runs, its calls are
recorded on the tape where full retention would record them. A call that is not to keep what its backward needs is
recorded *lean*: with a :class:`Recipe` (the op, its attributes, which earlier calls made its inputs, its place in the
random stream) in place of saved values. When backward comes to such a call, the region's :class:`Program` is carried
out up to there: recipes are followed again, op by op, and fill in what the calls keep.

Python code is never run a second time, so nothing in it happens twice; the graph, and the order in which gradients are
summed, are those of full retention, so gradients are bit-identical.

(Griewank & Walther 2000; Chen et al. 2016, arXiv 1604.06174. JAX transposes a recorded program in the same way.)
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeAlias

from memback.engine.arrays import leaves, root, stand_in
from memback.engine.hooks import is_packed, unpacked
from memback.engine.op import Op
from memback.engine.state import State, current
from memback.engine.tape import Call, Edge, MultiNode, Node, Port, Site, Tape, TapeError, changes, node_of

__all__ = [
    "LEAN",
    "Held",
    "Program",
    "Recipe",
    "Recompute",
    "RecordedCall",
    "Release",
    "Replay",
    "Reverse",
    "Step",
    "replayed",
]


# -- the program


class Recompute(NamedTuple):
    """Run calls from ``start`` to ``stop`` (exclusive) again, as far as anything of the following needs them.

    ``outputs`` are stored afterwards, and so are the residuals of ``saves``; calls in ``fill`` keep what their backward
    needs.
    """

    start: int
    stop: int
    outputs: frozenset[int] = frozenset()
    fill: Collection[int] = ()
    saves: frozenset[int] = frozenset()


class Release(NamedTuple):
    """Store the outputs of these calls, and the residuals of those, no longer."""

    outputs: Collection[int] = ()
    saves: Collection[int] = ()


class Reverse(NamedTuple):
    """Backward of the calls from ``start`` to ``stop`` (exclusive). What they still lack is filled in before."""

    start: int
    stop: int


Step: TypeAlias = Recompute | Release | Reverse


@dataclass(frozen=True)
class Program:
    """What is kept of a region in forward, and what is done during backward.

    Calls are named by their number in the region.

    Attributes:
        whole: calls that keep from the start what their backward needs. All others are lean.
        outputs: calls whose outputs are stored in forward.
        saves: lean calls whose residuals are stored in forward.
        recipes: calls that can be run again.
        again: calls that are run again, as reports say it.
        steps: of backward, in order. Each call belongs to one :class:`Reverse`.
    """

    whole: Container[int]
    outputs: frozenset[int]
    saves: frozenset[int]
    recipes: Container[int]
    again: Container[int]
    steps: tuple[Step, ...]

    @cached_property
    def reversals(self) -> Mapping[int, int]:
        """By call, the index of the step that reverses it."""
        return {
            number: index
            for index, step in enumerate(self.steps)
            if isinstance(step, Reverse)
            for number in range(step.start, step.stop)
        }


# -- recorded calls


class _Lean(tuple[Any, ...]):
    """What a call keeps that was recorded lean: nothing yet."""


LEAN = _Lean()

Source: TypeAlias = "tuple[int, int | None]"
"""What made an input: (number of the call, index among its outputs, or None where it has one)."""


class _Owner(Protocol):
    """The replay of a region, as its calls see it."""

    def source(self, edge: Edge | None, array: Any) -> Source | None: ...

    def reach(self, number: int, state: State, retain: bool) -> None: ...


class Recipe:
    """How a call is run again: its values without those that earlier calls made, and which calls those are.

    ``sources`` has an entry (place among the values, number of the call, index among its outputs or None where it has
    one) for each of these; in a variadic op the place is one among its items. ``shapes`` has shape and dtype of these
    inputs, ``outs`` of the outputs.
    """

    __slots__ = ("draws", "outs", "seed", "shapes", "sources", "values")

    def __init__(
        self,
        op: Op,
        values: list[Any],
        edges: Sequence[Edge | None],
        out: Any,
        owner: _Owner,
        random: tuple[int, int],
    ) -> None:
        places = range(len(edges)) if op.variadic is not None else [i for _, i in op.array_slots]
        items = list(values[op.variadic]) if op.variadic is not None else list(values)
        self.sources: list[tuple[int, int, int | None]] = []
        self.shapes: list[tuple[tuple[int, ...], Any]] = []
        for place, edge in zip(places, edges, strict=True):
            source = owner.source(edge, items[place])
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
        self.outs = [(o.shape, o.dtype) for o in (out if op.multiple else (out,))]
        self.seed, self.draws = random

    def bind(self, op: Op, given: Callable[[int, int | None], Any], needed: Container[int] | None) -> list[Any]:
        """The call's values: inputs from earlier calls, (number, index), as ``given`` has them.

        Only those at the places ``needed`` where not all are; an array of a few bytes stands in for the others.
        """
        values = list(map(unpacked, self.values))
        items = values
        if op.variadic is not None:
            items = list(values[op.variadic])
            values[op.variadic] = items
        for (place, number, index), (shape, dtype) in zip(self.sources, self.shapes, strict=True):
            if needed is None or place in needed:
                items[place] = given(number, index)
            else:
                items[place] = stand_in(shape, dtype)
        return values

    def stand_ins(self, multiple: bool) -> Any:
        """The output's shape and dtype in a few bytes, for a call whose output nobody looks at."""
        made = tuple(stand_in(shape, dtype) for shape, dtype in self.outs)
        return made if multiple else made[0]


class RecordedCall(Node):
    """A call in a region: the region's replay, the call's number in it, and how it is run again."""

    __slots__ = ("index", "recipe", "replay")

    replay: _Owner | None
    index: int
    recipe: Recipe | None

    def saved(self) -> list[tuple[str, Any]]:
        return [] if self.kept is LEAN else super().saved()

    def check(self) -> None:
        if self.kept is not LEAN or self.recipe is None:
            super().check()
        else:
            self.check_inputs()

    def needed(self) -> Iterator[tuple[str, Any]]:
        return self._inputs() if self.kept is LEAN else self.saved_arrays()

    def _inputs(self) -> Iterator[tuple[str, Any]]:
        if self.recipe is None:
            return
        values = self.recipe.values
        moved = {id(root(array)) for array in self.op.moved(values)}
        for value in values:
            for array in leaves(value):
                if id(root(array)) not in moved:
                    yield f"an input of {self.describe()}, which is needed to recompute it for backward,", array

    def check_inputs(self) -> None:
        """Raise unless the inputs that no call of the region made are unchanged, so that the call can be run again."""
        if changes.clock != self.time:
            self.check_changes(self._inputs())
        self.check_seal()

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Have the replay fill in what the call keeps, and take its output gradient through its op."""
        lean = self.kept is LEAN
        if self.replay is not None:
            self.replay.reach(self.index, state, retain)
            if not retain:
                self.replay, self.recipe = None, None
        grads = super().pull(state, retain)
        if retain and lean:
            self.kept = LEAN  # the next backward recomputes it again
        return grads

    def forget(self) -> None:
        """Drop everything that is kept, and what the program stores."""
        super().forget()
        self.replay, self.recipe = None, None


class _MultiCall(RecordedCall, MultiNode):
    """A call with several outputs in a region."""

    __slots__ = ()


class Held(Node):
    """What is stored of a call, as long as the program says so."""

    __slots__ = ("out",)

    def __init__(self, call: Node, out: Any) -> None:
        super().__init__(call.op, call.tape, call.path, call.site, None, (), (), None)
        self.out = out

    @property
    def name(self) -> str:
        return "checkpoint"

    @property
    def residuals(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.saved() if is_packed(value))

    def saved(self) -> list[tuple[str, Any]]:
        return [(f"output of {self.op.name}", self.out)]


class _HeldResiduals(Held):
    """The residuals of a call, None for those that its backward does not need."""

    __slots__ = ()

    def __init__(self, call: Any, residuals: tuple[Any, ...]) -> None:
        wanted = set(call.saving.names)
        kept = tuple(r if name in wanted else None for name, r in zip(call.op.residuals, residuals, strict=True))
        super().__init__(call, kept)

    @property
    def residuals(self) -> tuple[str, ...]:
        return self.op.residuals

    def saved(self) -> list[tuple[str, Any]]:
        return [(name, r) for name, r in zip(self.op.residuals, self.out, strict=True) if r is not None]


def _keeps(call: Any) -> tuple[bool, bool]:
    """Whether a call keeps its output, and whether it keeps residuals: not every call of an op with some makes them."""
    names = set(call.saving.names)
    keeps_residuals = bool(names & set(call.op.residuals)) and call.op.has_residuals(call.recipe.values)
    return "out" in names, keeps_residuals


def _saved_places(call: Any) -> Container[int]:
    """The inputs that a call keeps, by their places in its recipe."""
    places = frozenset(call.saving.layout[slot] for slot in call.saving.slots)
    if call.op.variadic is None:
        return places
    return range(len(call.op.input_arrays(call.recipe.values))) if call.op.variadic in places else range(0)


# -- the replay


@dataclass(slots=True)
class _Task:
    """A call to be run again, to have what it keeps filled in, or both.

    ``sources`` are the calls whose outputs it needs; ``used`` says that a later one needs its own, ``done`` are those
    that it is the last one to need.
    """

    number: int
    call: Any
    run: bool
    fill: bool
    saves: bool
    sources: list[int] = field(default_factory=list)
    used: bool = False
    done: list[int] = field(default_factory=list)


class Replay:
    """One run of a region, from its first call to the end of its backward.

    A subclass says what is kept of each call when the region runs, and has the program when it has run.
    """

    program: Program
    records_all = False
    """Whether calls that need no gradient have a number and a recipe too, so that their outputs need not be kept."""

    def __init__(self) -> None:
        self.count = 0
        self.runs: Counter[int] = Counter()
        """How often each call was run again."""
        self._calls: list[Callable[[], Any]] = []
        self._plain: dict[int, tuple[weakref.ref[Any], Source]] = {}
        self._store: dict[int, Held] = {}
        self._saves: dict[int, _HeldResiduals] = {}
        self._untold: list[Held] = []
        self._position = 0

    # -- forward: the region runs, and asks of every call what to keep

    def lean(self, op: Op) -> bool:
        """Whether the next call is recorded lean."""
        raise NotImplementedError

    def keeps_residuals(self, op: Op) -> bool:
        """Whether the next call makes the residuals that it declares."""
        raise NotImplementedError

    def may_run_again(self) -> bool:
        """Whether the next call needs a recipe."""
        raise NotImplementedError

    def runs_again(self, call: Any) -> bool:
        """Whether a call is run again, as reports say it."""
        raise NotImplementedError

    def expect(self, op: Op, path: str, out: Any) -> None:
        """Raise unless a call is the next one that the region may make."""

    def segment(self, keep: Collection[str]) -> AbstractContextManager[Any]:
        """The region's code runs what would be a checkpointed segment."""
        return nullcontext()

    def add(self, call: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        """Take a call into the region."""
        self._calls.append(weakref.ref(call))
        self.count += 1

    def add_plain(self, call: Any, out: Any) -> None:
        """Take a call into the region that needs no gradient: no graph keeps it alive, nor tells what it has made."""
        self._calls.append(lambda: call)
        for index, array in enumerate(out if call.op.multiple else (out,)):
            source = self.count, index if call.op.multiple else None
            self._plain[id(array)] = weakref.ref(array), source
        self.count += 1

    def source(self, edge: Edge | None, array: Any = None) -> Source | None:
        """What made an input, if it was made in this region."""
        if edge is None:
            known = self._plain.get(id(array)) if self._plain else None
            if array is None or known is None or known[0]() is not array:
                return None
            call = self._calls[known[1][0]]()
            return None if changes.since(array, call.time) else known[1]  # what was changed can't be made again
        if edge._is_leaf:
            return None
        node: Any = node_of(edge)  # type: ignore[arg-type]
        if getattr(node, "replay", None) is not self:
            return None
        return node.index, edge.index if isinstance(edge, Port) else None

    def finish(self) -> None:
        """The region has run."""
        self._tell()

    # -- backward: what calls keep is filled in as the program says

    def reach(self, number: int, state: State, retain: bool) -> None:
        """Backward has come to a call: carry out the program up to it, and fill in what it keeps."""
        reversal = self.program.reversals[number]
        if reversal >= self._position:
            self._carry_out(reversal, state, retain)
        call = self._calls[number]()
        if call.kept is LEAN:  # another backward has been here, and has kept the graph
            self._position = 0
            self._carry_out(reversal, state, retain)

    def _carry_out(self, reversal: int, state: State, retain: bool) -> None:
        """Carry out the program up to a reversal, and what is released at once then."""
        steps = self.program.steps
        while self._position <= reversal or (self._position < len(steps) and _releases(steps[self._position])):
            step = steps[self._position]
            self._position += 1
            if isinstance(step, Recompute):
                self._recompute(step, state, retain)
            elif isinstance(step, Release):
                if not retain:
                    self._release(step)
            elif self._position > reversal:
                self._recompute(Recompute(*step, fill=range(*step)), state, retain)

    def _release(self, step: Release) -> None:
        for number in step.outputs:
            self._store.pop(number, None)
        for number in step.saves:
            self._saves.pop(number, None)

    def _recompute(self, step: Recompute, state: State, retain: bool) -> None:
        """Run again what a step needs; a call whose output nobody needs is not run."""
        work = self._work(step)
        if not work:
            return
        made: dict[int, Any] = {}
        with self._again(work[0].call, state):
            for task in work:
                self._do(task, made, step.outputs, state)

    def _work(self, step: Recompute) -> list[_Task]:
        """The calls that have to be run or filled in, in order."""
        work: list[_Task] = []
        used: set[int] = set()
        numbers = iter(range(step.stop - 1, step.start - 1, -1))
        number = next(numbers, None)
        while number is not None:
            task = self._task(number, step, used)
            if task is not None:
                work.append(task)
                saved = None if task.run else _saved_places(task.call)
                task.sources = [n for place, n, _ in task.call.recipe.sources if saved is None or place in saved]
                used.update(task.sources)
            number = next(numbers, None)
            if number is None:  # what earlier ones should have left stored, if somebody takes backward another way
                first = work[-1].number if work else step.start
                missing = [n for n in used if n < min(first, step.start) and n not in self._store]
                number = max(missing, default=None)
        work.reverse()
        last: dict[int, int] = {}
        for position, task in enumerate(work):
            last.update((n, position) for n in task.sources)
        for position, task in enumerate(work):
            task.used = task.number in last
            task.done = [n for n in task.sources if last[n] == position]
        return work

    def _task(self, number: int, step: Recompute, used: set[int]) -> _Task | None:
        """What is to be done of a call, if anything is."""
        call = self._calls[number]()
        there = number in self._store
        if call is None or call.recipe is None:
            if number in used and not there:
                raise TapeError(
                    f"call {number} of a region{'' if call is None else f', {call.describe()},'} would have to be run"
                    " again for backward, but an earlier backward has freed it. Pass retain_graph=True to that one, or"
                    " run the forward pass again."
                )
            return None
        fill = number in step.fill and call.kept is LEAN
        keeps_out, keeps_residuals = _keeps(call) if fill else (False, False)
        saves = number in step.saves and number not in self._saves
        run = saves or (keeps_residuals and number not in self._saves)
        run = run or ((keeps_out or number in used or number in step.outputs) and not there)
        return _Task(number, call, run, fill, saves) if run or fill else None

    def _do(self, task: _Task, made: dict[int, Any], outputs: Container[int], state: State) -> None:
        call, number = task.call, task.number
        op, recipe = call.op, call.recipe

        def given(number: int, index: int | None) -> Any:
            out = made[number] if number in made else unpacked(self._store[number].out)
            return out if index is None else out[index]

        values = recipe.bind(op, given, None if task.run else _saved_places(call))
        if task.run:
            out = self._run_again(task, values, state)
            if task.used:
                made[number] = out
        else:
            stored = self._store.get(number)
            out = recipe.stand_ins(op.multiple) if stored is None else unpacked(stored.out)
            call.kept = op.arguments(call.saving, values, out, self._residuals(number, op))
            if state.observer is not None:
                state.observer.held(call)
        if number in outputs and number not in self._store:
            self._hold(number, call, out)
        self._tell()
        for n in task.done:
            made.pop(n, None)

    def _residuals(self, number: int, op: Op) -> tuple[Any, ...]:
        held = self._saves.get(number)
        return (None,) * len(op.residuals) if held is None else tuple(map(unpacked, held.out))

    def _run_again(self, task: _Task, values: list[Any], state: State) -> Any:
        """Run a call again: its output. What it keeps is filled in where that is asked for."""
        call, number = task.call, task.number
        op, observer = call.op, state.observer
        call.check_inputs()
        self.runs[number] += 1
        state.path, state.seed, state.draws = call.path, call.recipe.seed, call.recipe.draws
        if observer is not None:
            observer.forward_begins(op)
        out, residuals = op.run(values, task.saves or (task.fill and number not in self._saves))
        if task.fill:
            if number in self._saves:
                residuals = self._residuals(number, op)
            call.kept = op.arguments(call.saving, values, out, residuals)
        if observer is not None:
            filled = call if task.fill else None
            observer.forward_ended(Call(op, values, out, residuals, call.path, call.site, filled, call.tape))
        if task.saves:
            self._hold_residuals(number, call, residuals)
        return out

    @contextmanager
    def _again(self, call: Any, state: State) -> Iterator[None]:
        """Calls are run again in the block, ``call`` the first of them."""
        observer = state.observer
        if observer is not None:
            observer.recompute_begins(call)
        before = state.path, state.seed, state.draws, state.recomputing
        state.recomputing = True
        try:
            yield
        finally:
            state.path, state.seed, state.draws, state.recomputing = before
        if observer is not None:
            observer.recompute_ended(call)

    # -- what is stored

    def _hold(self, number: int, call: Any, out: Any) -> None:
        held = self._store[number] = Held(call, out)
        self._untold.append(held)

    def _hold_residuals(self, number: int, call: Any, residuals: tuple[Any, ...]) -> None:
        held = _HeldResiduals(call, residuals)
        if held.saved():
            self._saves[number] = held
            self._untold.append(held)

    def _tell(self) -> None:
        """Tell the observer what was stored, once it has been told of the calls that made it."""
        observer = current().observer
        while self._untold:
            held = self._untold.pop(0)
            if observer is not None:
                observer.held(held)


def _releases(step: Step) -> bool:
    return isinstance(step, Release)


# -- recording


class _RegionTape(Tape):
    """Records the calls of a region on the tape around it, as its replay wants them."""

    def __init__(self, outer: Tape, replay: Replay) -> None:
        super().__init__()
        self._outer = outer
        self.replay = replay
        self._random = (0, 0)
        self._lean = False

    def reruns(self, node: Node | None) -> bool:
        return node is not None and self.replay.runs_again(node)

    def segment(self, keep: Collection[str]) -> AbstractContextManager[Any]:
        return self.replay.segment(keep)

    def clear(self) -> None:
        self._outer.clear()

    def keeps(self, op: Op, needs: int) -> bool:
        state, replay = current(), self.replay
        self._random = (state.seed, state.draws)
        if not needs:
            return False
        replay._tell()
        self._lean = replay.lean(op)
        return not self._lean or replay.keeps_residuals(op)

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
        """Record one call, with what it keeps or with how to run it again."""
        replay = self.replay
        replay.expect(op, path, out)
        saving = op.saving(needs, len(edges), values)
        kept = LEAN if self._lean else op.arguments(saving, values, out, residuals)
        kind = _MultiCall if op.multiple else RecordedCall
        dtype = tuple(o.dtype for o in out) if op.multiple else out.dtype
        call: Any = kind(op, self._outer, path, site, dtype, edges, kept, saving)
        call.replay, call.index = replay, replay.count
        call.recipe = Recipe(op, values, edges, out, replay, self._random) if replay.may_run_again() else None
        self._outer.append(call)
        replay.add(call, values, out, residuals)
        return call

    def pass_by(
        self, op: Op, values: list[Any], out: Any, edges: tuple[Edge | None, ...], path: str, site: Site | None
    ) -> None:
        replay = self.replay
        if not replay.records_all:
            return
        call = RecordedCall(op, self._outer, path, site, None, (), None, None)
        call.replay, call.index = None, replay.count  # the replay holds the call, and a cycle would outlive both
        call.recipe = Recipe(op, values, edges, out, replay, self._random)
        replay.add_plain(call, out)


def replayed(replay: Replay, outer: Tape, forward: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run ``forward`` as a region of the tape ``outer``."""
    with _RegionTape(outer, replay):
        out = forward(*args, **kwargs)
        replay.finish()
    return out
