"""Record once, replay by program: the one mechanism by which values are recomputed for backward.

A *region* is a part of a forward pass: a checkpointed function, or a module under a plan. While it runs, its calls are
recorded on the tape where full retention would record them. A call that is not to keep what its backward needs is
recorded *lean*: with a recipe (:mod:`memback.engine.recipe`) in place of saved values. When backward comes to such a
call, the region's program (:mod:`memback.engine.program`) is carried out up to there: recipes are followed again, op by
op, and fill in what the calls keep.

Python code is never run a second time, so nothing in it happens twice; the graph, and the order in which gradients are
summed, are those of full retention, so gradients are bit-identical.

(Griewank & Walther 2000; Chen et al. 2016, arXiv 1604.06174. JAX transposes a recorded program in the same way.)
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from memback.engine.changes import changes
from memback.engine.errors import TapeError
from memback.engine.node import Edge, Node, Port, node_of
from memback.engine.observer import Call
from memback.engine.op import Op
from memback.engine.packed import unpacked
from memback.engine.program import Program, Recompute, Release
from memback.engine.recipe import (
    LEAN,
    MultiCall,
    Recipe,
    RecordedCall,
    Source,
    StoredOutput,
    StoredResiduals,
    keeps_own,
    saved_places,
)
from memback.engine.site import Site
from memback.engine.state import State, current
from memback.engine.tape import Tape

__all__ = ["Replay", "replaying"]


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

    A subclass says what is kept of each call when the region runs, by default everything, and has the program when it
    has run.
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
        self._store: dict[int, StoredOutput] = {}
        self._saves: dict[int, StoredResiduals] = {}
        self._untold: list[StoredOutput] = []
        self._position = 0

    # -- forward: the region runs, and asks of every call what to keep

    def lean(self, op: Op) -> bool:
        """Whether the next call is recorded lean."""
        return False

    def keeps_residuals(self, op: Op) -> bool:
        """Whether the next call makes the residuals that it declares."""
        return True

    def may_run_again(self) -> bool:
        """Whether the next call needs a recipe."""
        return False

    def runs_again(self, call: Any) -> bool:
        """Whether a call is run again, as reports say it."""
        return False

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

    def source(self, edge: Edge | None, array: Any) -> Source | None:
        """What made an input, if it was made in this region."""
        if edge is None:
            known = self._plain.get(id(array)) if self._plain else None
            made = None if known is None else known[0]()
            if known is None or made is None or made is not array:
                return None
            made_at: int = self._calls[known[1][0]]().time
            return None if changes.since(made, made_at) else known[1]  # what was changed can't be made again
        if edge._is_leaf:
            return None
        node: Any = node_of(edge)
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
        while self._position <= reversal or (
            self._position < len(steps) and isinstance(steps[self._position], Release)
        ):
            step = steps[self._position]
            self._position += 1
            if isinstance(step, Recompute):
                self._recompute(step, state, retain)
            elif isinstance(step, Release):
                if not retain:
                    self._release(step)
            elif self._position > reversal and any(map(self._is_lean, range(*step))):
                self._recompute(Recompute(*step, fill=range(*step)), state, retain)

    def _is_lean(self, number: int) -> bool:
        call = self._calls[number]()
        return call is not None and call.kept is LEAN

    def _release(self, step: Release) -> None:
        for number in step.outputs:
            self._store.pop(number, None)
        for number in step.saves:
            self._saves.pop(number, None)

    def _recompute(self, step: Recompute, state: State, retain: bool) -> None:
        """Run again what a step needs; a call whose output is not needed is not run."""
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
                saved = None if task.run else saved_places(task.call)
                task.sources = [n for place, n, _ in task.call.recipe.sources if saved is None or place in saved]
                used.update(task.sources)
            number = next(numbers, None)
            if number is None:  # what earlier ones should have left stored, if backward goes another way
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
        keeps_out, keeps_residuals = keeps_own(call) if fill else (False, False)
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

        values = recipe.bind(op, given, None if task.run else saved_places(call))
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

    def clear(self) -> None:
        """Store nothing any longer: the tape was cleared."""
        self._store.clear()
        self._saves.clear()

    def _hold(self, number: int, call: Any, out: Any) -> None:
        held = self._store[number] = StoredOutput(call, out)
        self._untold.append(held)

    def _hold_residuals(self, number: int, call: Any, residuals: tuple[Any, ...]) -> None:
        held = StoredResiduals(call, residuals)
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
        kind = MultiCall if op.multiple else RecordedCall
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


@contextmanager
def replaying(replay: Replay, outer: Tape) -> Iterator[None]:
    """The block runs a region of the tape ``outer``."""
    with _RegionTape(outer, replay):
        yield
        replay.finish()
