"""A run of a planned region: its calls come in as the model makes them, and are run again as the plan wants.

What chains of stages and graphs of nodes have in common: the calls' order is checked against the plan's, what is stored
is held where the ledger sees it, and calls are run again under their own layer path and place in the random stream.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from memback.engine.node import Edge, Node, Port, node_of
from memback.engine.observer import Call
from memback.engine.op import Op
from memback.engine.site import Site
from memback.engine.state import State, current
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.errors import UsageError
from memback.plans.model.recipes import LEAN, CallShape, Held, PlannedCall, PlannedMultiCall, Recipe

__all__ = ["Run", "run_region"]


class Run:
    """One run of a planned region, from its first call to the end of its backward.

    Args:
        calls: what each call must be, in order.
    """

    def __init__(self, calls: Sequence[CallShape]) -> None:
        self.calls_planned = calls
        self.count = 0
        self.runs: Counter[int] = Counter()
        """How often each call was run again."""
        self._nodes: list[weakref.ref[Any]] = []
        self._store: dict[int, Held] = {}
        self._untold: list[Held] = []

    # -- forward: the model runs, and asks of every call what to keep

    def keeps(self) -> bool:
        """Whether the next call makes what it keeps."""
        raise NotImplementedError

    def lean(self) -> bool:
        """Whether the next call is recorded lean."""
        raise NotImplementedError

    def may_run_again(self) -> bool:
        """Whether the plan, as it stands, runs the next call again, or computes from its inputs what others keep."""
        raise NotImplementedError

    def runs_again(self, node: Any) -> bool:
        """Whether the plan runs a call again."""
        return bool(node.kept is LEAN)

    def expect(self, op: Op, path: str, out: Any) -> None:
        """Raise unless a call is the next one of the plan.

        Raises:
            UsageError: it is another, so the plan was made for another model or other inputs.
        """
        shape = CallShape.of(op, path, out)
        calls = self.calls_planned
        if self.count >= len(calls) or not calls[self.count].matches(shape):
            wanted = calls[self.count] if self.count < len(calls) else "the end of the model"
            raise UsageError(
                f"this plan was made for another model or other inputs: call {self.count} is {shape}, the plan has"
                f" {wanted} there. Make a plan for this one"
            )

    def add(self, node: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        """Take a call into the region."""
        self._nodes.append(weakref.ref(node))
        self.count += 1

    def source(self, edge: Edge | None) -> tuple[int, int | None] | None:
        """(number of the call, index among its outputs if it has several) of an input that was made in this region."""
        if edge is None or isinstance(edge, Tensor):
            return None
        node = node_of(edge)
        if getattr(node, "execution", None) is not self:
            return None
        return node.index, edge.index if isinstance(edge, Port) else None  # type: ignore[attr-defined]

    def segment(self, keep: Collection[str]) -> AbstractContextManager[None]:
        """The model's own code runs what would be a segment without the plan."""
        return nullcontext()

    def finish(self) -> None:
        """The region's forward is over.

        Raises:
            UsageError: calls of the plan are missing.
        """
        self._tell()
        if self.count < len(self.calls_planned):
            raise UsageError(
                f"this plan was made for another model or other inputs: it has {len(self.calls_planned)} calls, of"
                f" which the model has made {self.count}. Make a plan for this one"
            )

    # -- backward: calls are filled in as the plan says

    def reach(self, number: int, state: State, retain: bool) -> None:
        """Backward has come to a call: carry out the plan up to it, and fill in what it keeps."""
        raise NotImplementedError

    @contextmanager
    def _again(self, node: Any, state: State) -> Iterator[None]:
        """Calls are run again in the block, ``node`` the first of them."""
        observer = state.observer
        if observer is not None:
            observer.recompute_begins(node)
        before = state.path, state.seed, state.draws, state.recomputing
        state.recomputing = True
        try:
            yield
        finally:
            state.path, state.seed, state.draws, state.recomputing = before
        if observer is not None:
            observer.recompute_ended(node)

    def _run_again(
        self, number: int, node: Any, values: list[Any], keep: bool, fill: bool, state: State
    ) -> tuple[Any, tuple[Any, ...]]:
        """Run a call again: its output and, with ``keep``, residuals; with ``fill`` it then keeps what it needs."""
        op, recipe, observer = node.op, node.recipe, state.observer
        node.check_inputs()
        self.runs[number] += 1
        state.path, state.seed, state.draws = node.path, recipe.seed, recipe.draws
        if observer is not None:
            observer.forward_begins(op)
        out, residuals = op.run(values, keep)
        if fill:
            node.kept = op.arguments(node.saving, values, out, residuals)
        if observer is not None:
            filled = node if fill else None
            observer.forward_ended(Call(op, values, out, residuals, node.path, node.site, filled, node.tape, False))
        return out, residuals

    # -- what is stored

    def _drop(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._store.pop(number, None)

    def _hold(self, number: int, node: Any, out: Any) -> None:
        held = self._store[number] = Held(node, out)
        self._untold.append(held)

    def _tell(self) -> None:
        """Tell the observer what was stored, once it has been told of the calls that made it."""
        observer = current().observer
        while self._untold:
            held = self._untold.pop(0)
            if observer is not None:
                observer.held(held)


class _RegionTape(Tape):
    """Records the calls of a region on the tape around it, as the plan wants them."""

    def __init__(self, outer: Tape, execution: Run) -> None:
        super().__init__()
        self._outer_tape = outer
        self._execution = execution
        self._random = (0, 0)
        self._lean = False

    def reruns(self, node: Node | None) -> bool:
        return node is not None and self._execution.runs_again(node)

    def segment(self, keep: Collection[str]) -> AbstractContextManager[None]:
        return self._execution.segment(keep)

    def clear(self) -> None:
        self._outer_tape.clear()

    def keeps(self, op: Op) -> bool:
        state = current()
        self._random = (state.seed, state.draws)
        self._lean = self._execution.lean()
        return self._execution.keeps()

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
        saving = op.saving(needs, len(edges), values)
        kept = LEAN if lean else op.arguments(saving, values, out, residuals)
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
    begin: Callable[[], Run], forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
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
