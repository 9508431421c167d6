"""Gradient checkpointing: keep a segment's inputs, drop what is inside, and recompute it when backward comes to it.

(Griewank & Walther 2000; Chen et al. 2016, arXiv 1604.06174; Korthikanti et al. 2022, arXiv 2205.05198.)

A checkpointed function runs once. Its calls are recorded lean, and its program is written when it has run: recompute
all of it before its reversal, but for the outputs of the ops in ``keep`` (:mod:`memback.engine.replay`). A checkpoint
in a checkpoint is a part of the same program: when the outer segment is recomputed, the inner one keeps its inputs.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from memback.engine.arrays import buffer_bytes, distinct_bytes, is_array, leaves, root
from memback.engine.hooks import saved_tensors_hooks
from memback.engine.op import Op
from memback.engine.packed import PackedValue
from memback.engine.program import Instruction, Program, Recompute, Release, Reverse
from memback.engine.recipe import StoredOutput
from memback.engine.replay import Replay, replaying
from memback.engine.site import Site, call_site, short_path
from memback.engine.state import State, current
from memback.engine.tensor import Tensor

__all__ = ["CheckpointWarning", "checkpoint", "run_segment", "segment", "tensors_in"]


class CheckpointWarning(UserWarning):
    """A checkpoint costs time and saves no memory."""


def checkpoint(function: Callable[..., Any], *args: Any, keep: Collection[str] = (), **kwargs: Any) -> Any:
    """Run ``function(*args, **kwargs)``, keeping only its inputs for backward, which recomputes what is inside.

    Gradients are bit-identical to those without it. The function runs once: its ops are run again from the record of
    the first run, random ops with the same numbers, so the function may have side effects. It may use parameters that
    are not among its arguments, its arguments may be frozen, and checkpoints nest.

    Args:
        function: what to run.
        *args: its arguments; tensors may be nested in tuples, lists and dicts.
        **kwargs: likewise.
        keep: names of ops whose outputs are kept as well and not recomputed (selective recomputation, Korthikanti et
            al. 2022).

    Returns:
        What ``function`` returns.

    Warns:
        CheckpointWarning: nothing in the function needs gradients, or it would have saved no more than its arguments.

    Source: Chen et al. 2016, arXiv 1604.06174; Griewank & Walther 2000 for nesting.
    """
    return run_segment(function, args, kwargs, keep, warn=True)


def run_segment(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], keep: Collection[str], warn: bool
) -> Any:
    """Run a function as :func:`checkpoint` does; a policy chooses its segments itself, and asks for no warnings."""
    with segment(keep, function, args, kwargs, warn) as made:
        out = function(*args, **kwargs)
    if warn and made is not None:
        _warn_if_useless(made, function, (args, kwargs))
    return out


@contextmanager
def segment(
    keep: Collection[str],
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    weigh: bool = False,
) -> Iterator[Segment | None]:
    """The block is a checkpointed segment, which begins with a call of ``function`` on these arguments.

    Gives the segment; None where there is no tape, or where the region around it decides what is recomputed. Only with
    ``weigh`` the segment knows in the end what it would have saved.
    """
    state = current()
    outer = state.tape
    if outer is None:
        yield None
        return
    try:
        if outer.replay is not None or not state.checkpointing:
            with outer.segment(keep) as inner:
                yield inner
        else:
            names: dict[int, str] = {}
            if state.observer is not None:
                names.update((id(array), name) for name, array in _named_arrays(function, args, kwargs))
            replay = Segments(keep, weigh, names, state.path, call_site())
            with replaying(replay, outer):
                yield replay.whole
    except BaseException:
        outer.clear()
        raise


@dataclass(eq=False)
class Segment:
    """Calls from ``start`` to ``stop`` (exclusive) that are recomputed, but for outputs of ops in ``keep``.

    ``would_save`` are the bytes that its calls would keep of what they make, None where a call did not tell.
    """

    start: int
    keep: frozenset[str]
    stop: int = 0
    inner: list[Segment] = field(default_factory=list)
    recorded: int = 0
    would_save: int | None = 0

    @property
    def pieces(self) -> Iterator[range | Segment]:
        """Its inner segments, and the ranges of calls between them, in order."""
        start = self.start
        for segment in self.inner:
            if start < segment.start:
                yield range(start, segment.start)
            yield segment
            start = segment.stop
        if start < self.stop:
            yield range(start, self.stop)

    @property
    def own(self) -> Iterator[int]:
        """Its calls that are in no inner segment."""
        for piece in self.pieces:
            if isinstance(piece, range):
                yield from piece


class _Inputs(StoredOutput):
    """What a segment keeps from outside of it: (name, array) pairs."""

    __slots__ = ()

    def saved(self) -> list[tuple[str, Any]]:
        return list(self.out)


class Segments(Replay):
    """A checkpointed function, with the checkpoints in it."""

    records_all = True

    def __init__(self, keep: Collection[str], weigh: bool, names: dict[int, str], path: str, site: Site | None) -> None:
        super().__init__()
        self.whole = Segment(0, frozenset(keep), would_save=0 if weigh else None)
        self._names = names
        self._where = path, site
        self._open = [self.whole]
        self._made: dict[int, weakref.ref[Any]] = {}
        self._counted: dict[int, weakref.ref[Any]] = {}
        self._inputs: dict[Segment, StoredOutput] = {}
        self._steps: list[Instruction] = []
        self._recomputes: dict[int, Segment] = {}
        """By the number of a step, the segment that it recomputes."""

    # -- forward

    def lean(self, op: Op) -> bool:
        return True

    def keeps_residuals(self, op: Op) -> bool:
        return self._is_kept(op)

    def _is_kept(self, op: Op) -> bool:
        return len(self._open) == 1 and op.name in self.whole.keep

    def may_run_again(self) -> bool:
        return True

    def runs_again(self, call: Any) -> bool:
        return True

    @contextmanager
    def segment(self, keep: Collection[str]) -> Iterator[Segment]:
        segment = Segment(self.count, frozenset(keep), would_save=None if self.whole.would_save is None else 0)
        self._open.append(segment)
        try:
            yield segment
        finally:
            self._open.pop()
        segment.stop = self.count
        if segment.recorded:
            self._open[-1].inner.append(segment)

    def add(self, call: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        number = self.count
        super().add(call, values, out, residuals)
        for segment in self._open:
            segment.recorded += 1
        if self.whole.would_save is not None:
            self._weigh(call, values, out, residuals)
        if self._is_kept(call.op):
            self._hold(number, call, out)
            self._hold_residuals(number, call, residuals)

    def _weigh(self, call: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        """Count what a call would keep of what the region makes."""
        op, saving = call.op, call.saving
        for array in leaves(out):
            self._made[id(root(array))] = weakref.ref(root(array))
        kept = op.arguments(saving, values, out, residuals)
        for slot in saving.slots:
            known = kept[slot] is not None
            new = [b for b in map(root, leaves(kept[slot])) if _is(self._made, b) and not _is(self._counted, b)]
            self._counted.update((id(buffer), weakref.ref(buffer)) for buffer in new)
            for segment in self._open:
                if segment.would_save is not None:
                    segment.would_save = segment.would_save + sum(map(buffer_bytes, new)) if known else None

    def finish(self) -> None:
        self.whole.stop = self.count
        kept = frozenset(self._store)
        self._write(self.whole, kept)
        every = range(self.count)
        self.program = Program((), kept, frozenset(self._saves), every, every, tuple(self._steps))
        if self.whole.recorded:
            self._pack()
            self._keep_inputs(self.whole)
        for known in (self._plain, self._made, self._counted, self._names):
            known.clear()
        super().finish()

    def _write(self, segment: Segment, kept: frozenset[int]) -> None:
        """Write the program of a segment: recompute all but ``kept``, then reverse it, its inner segments in turn."""
        reads = {inner: self._reads(inner) for inner in segment.inner}
        chosen = {inner: self._chosen(inner) for inner in segment.inner}
        outputs = frozenset[int]().union(*reads.values(), *chosen.values())
        saves = frozenset[int]().union(*chosen.values())
        self._recomputes[len(self._steps)] = segment
        self._steps += [
            Recompute(segment.start, segment.stop, outputs, frozenset(segment.own), saves),
            Release(kept - outputs, kept),
        ]
        for piece in reversed(list(segment.pieces)):
            if isinstance(piece, range):
                self._steps.append(Reverse(piece.start, piece.stop))
                continue
            self._write(piece, chosen[piece])
            read = reads.pop(piece)
            self._steps.append(Release(read.difference(*reads.values())))

    def _reads(self, segment: Segment) -> frozenset[int]:
        """The calls before a segment whose outputs its calls use."""
        calls = (self._calls[number]() for number in range(segment.start, segment.stop))
        sources = (n for call in calls if call is not None for _, n, _ in call.recipe.sources)
        return frozenset(n for n in sources if n < segment.start)

    def _chosen(self, segment: Segment) -> frozenset[int]:
        """The calls of a segment whose outputs it keeps."""
        calls = ((number, self._calls[number]()) for number in segment.own)
        return frozenset(n for n, call in calls if call is not None and call.op.name in segment.keep and call.edges)

    # -- what is kept from outside

    def _recipes(self, segment: Segment) -> Iterator[tuple[Any, Any]]:
        for number in range(segment.start, segment.stop):
            call = self._calls[number]()
            if call is not None and call.recipe is not None:
                yield call, call.recipe

    def _keep_inputs(self, segment: Segment) -> None:
        """Tell the observer of what the recipes of a segment hold: arrays that no call of the region has made."""
        if current().observer is None:
            return
        inputs: dict[int, tuple[str, Any]] = {}
        first: Any = None
        for call, recipe in self._recipes(segment):
            first = first or call
            for name, value in zip(call.op.parameters, recipe.values, strict=True):
                for array in _items(value):
                    inputs.setdefault(id(array), (self._names.get(id(array), f"{name} of {call.name}"), array))
        if first is not None:
            held = self._inputs[segment] = _Inputs(first, list(inputs.values()))
            held.path, held.site = self._where
            self._untold.append(held)

    def _pack(self) -> None:
        """Pack what is kept by the hooks on saved tensors, if there are any, each array once."""
        packing = current().packing
        if packing is None:
            return
        known: dict[int, tuple[Any, Any]] = {}
        for _, recipe in self._recipes(self.whole):
            recipe.values = _packed(recipe.values, packing, known)
        for held in (*self._store.values(), *self._saves.values()):
            held.out = _packed(held.out, packing, known)
        for array, value in known.values():
            if id(array) in self._names:
                self._names[id(value)] = self._names[id(array)]

    def clear(self) -> None:
        super().clear()
        self._inputs.clear()

    def _recompute(self, step: Recompute, state: State, retain: bool) -> None:
        super()._recompute(step, state, retain)
        segment = self._recomputes.get(self._position - 1)
        if segment is None or retain:
            return
        for number in segment.own:
            if (call := self._calls[number]()) is not None:
                call.recipe = None
        for inner in segment.inner:
            self._keep_inputs(inner)
        self._tell()
        self._inputs.pop(segment, None)


def _is(known: dict[int, weakref.ref[Any]], buffer: Any) -> bool:
    ref = known.get(id(buffer))
    return ref is not None and ref() is buffer


def _packed(value: Any, packing: saved_tensors_hooks, known: dict[int, tuple[Any, Any]]) -> Any:
    """A value with its activations packed, each array once: ``known`` has what was packed so far."""
    if is_array(value):
        if id(value) not in known:
            known[id(value)] = value, packing.packed(value)
        return known[id(value)][1]
    if type(value) in (tuple, list):
        return type(value)(_packed(item, packing, known) for item in value)
    return value


def _items(value: Any) -> Iterator[Any]:
    """The arrays in a value of a recipe, packed or not."""
    if is_array(value) or isinstance(value, PackedValue):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _items(item)


def _warn_if_useless(segment: Segment, function: Callable[..., Any], inputs: Any) -> None:
    if not segment.recorded:
        reason = "nothing in it requires gradients, so nothing would be saved anyway"
    else:
        made = [tensor for tensor in tensors_in(inputs) if tensor.node is not None]
        held = distinct_bytes(tensor.data for tensor in made)
        if segment.would_save is None or segment.would_save > held:
            return
        reason = f"its calls would keep {segment.would_save:,} bytes, its inputs take {held:,}"
    name = getattr(function, "__qualname__", None) or type(function).__name__
    warnings.warn(
        f"the checkpoint of {name} at {short_path(call_site())} saves no memory: {reason}."
        " Checkpoint a longer segment, or none",
        CheckpointWarning,
        stacklevel=4,
    )


# -- arguments and results, in which tensors may be nested


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors nested in tuples, lists and dicts."""
    return (item for item in _nested(tree) if isinstance(item, Tensor))


def _nested(tree: Any) -> Iterator[Any]:
    """What is nested in tuples, lists and dicts."""
    if isinstance(tree, (tuple, list, dict)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _nested(item)
    else:
        yield tree


def _named_arrays(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The arrays among arguments, by the names of the function's parameters."""
    try:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        names = []
    names += [f"input {i}" for i in range(len(names), len(args))]
    for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
        for item in _nested(value):
            if isinstance(item, Tensor) or is_array(item):
                yield name, item.data if isinstance(item, Tensor) else item
