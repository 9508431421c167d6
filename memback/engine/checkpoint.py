"""Gradient checkpointing: keep a segment's inputs, drop what is inside, and recompute it when backward comes by.

(Griewank & Walther 2000; Chen et al. 2016, arXiv 1604.06174; Korthikanti et al. 2022, arXiv 2205.05198.)

The first run of a segment is recorded on a :class:`Sketch`, which notes which calls there were but saves nothing.
Backward runs the segment again on a :class:`Recomputation`, whose calls are wired to the very gradient slots that the
surrounding graph uses, and then walks that tape. So every gradient is summed in the order in which full retention would
have summed it, and has the same bits.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from memback.engine.arrays import buffer_bytes, is_array, leaves, root, stand_in
from memback.engine.calls import StopRecording
from memback.engine.changes import changes
from memback.engine.checksums import Seal
from memback.engine.errors import TapeError
from memback.engine.graph import stray
from memback.engine.hooks import saved_tensors_hooks
from memback.engine.node import Edge, Node, Port, node_of
from memback.engine.op import Op, Saving
from memback.engine.packed import PackedValue, unpacked
from memback.engine.site import Site, call_site, short_path
from memback.engine.state import State, current
from memback.engine.tape import Tape, walk
from memback.engine.tensor import Tensor, make

__all__ = ["CheckpointNode", "CheckpointWarning", "checkpoint", "run_segment", "tensors_in"]

Place: TypeAlias = "tuple[int, Any]"
"""An output of a segment's call: (number of the call, index among its outputs)."""

Read: TypeAlias = "tuple[weakref.ref[Any], int]"
"""A buffer from outside that a segment reads, and the time of changes at which it did first."""

Leaf: TypeAlias = "tuple[weakref.ref[Tensor], weakref.ref[Any]]"
"""A leaf that a segment uses, and the array that it had then."""

Unseen: TypeAlias = "tuple[tuple[tuple[int, ...], Any], ...]"
"""Shapes and dtypes of a segment's last call's outputs, where nobody looks at these when it is run again."""


class CheckpointWarning(UserWarning):
    """A checkpoint costs time and saves no memory."""


class Sketch(Tape):
    """The tape of a segment's first run: which calls were recorded, and the outputs to keep; no saved values."""

    transient = True

    def __init__(self, keep: Collection[str], weigh: bool) -> None:
        super().__init__()
        self._keep = keep
        self._weigh = weigh
        self._numbers: dict[Node, int] = {}
        self.calls: list[str] = []
        self.outputs: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self.unseen: Unseen | None = None
        self._made: dict[int, weakref.ref[Any]] = {}
        self._counted: dict[int, weakref.ref[Any]] = {}
        self.would_save = 0
        self.unknown = False
        self.reads: dict[int, Read] = {}
        self.leaves: dict[int, Leaf] = {}
        self.moved: set[int] = set()
        self.outside: dict[Node, None] = {}

    def keeps(self, op: Op) -> bool:
        """A call saves its residuals here only where its output is kept with them."""
        return op.name in self._keep

    def append(self, node: Node) -> None:
        """Number a call."""
        self._numbers[node] = len(self.calls)
        self.calls.append(node.name)
        self.unseen = None

    def clear(self) -> None:
        """Drop everything."""
        self._numbers.clear()
        self.outside.clear()
        self.outputs.clear()

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
        """Record that there was a call, without what it would save."""
        if op.name in self._keep:
            self.outputs[len(self.calls)] = (out, residuals)
        for edge in edges:
            if isinstance(edge, Tensor):
                self.leaves.setdefault(id(edge), (weakref.ref(edge), weakref.ref(edge.data)))
            elif edge is not None:
                self.note_used((node_of(edge),))
        for x in op.input_arrays(values):
            if is_array(x):
                self.note_read(root(x), changes.clock)
        self.moved.update(id(root(x)) for x in op.moved(values))
        outs = out if op.multiple else (out,)
        for buffer in map(root, outs):
            self._made[id(buffer)] = weakref.ref(buffer)
        saving = op.saving(needs, len(edges), values)
        if self._weigh:
            self._count(saving, op.arguments(saving, values, out, residuals))
        node = Stub(op, self, path, site, None, (), None, saving)
        self.append(node)
        if not {"out", *op.residuals} & set(saving.names):
            self.unseen = tuple([(o.shape, o.dtype) for o in outs])
        return node

    def note_read(self, buffer: Any, time: int) -> None:
        """Remember when a buffer from outside was first read: a second run must find it unchanged."""
        known = self.reads.get(id(buffer))
        if not _is(self._made, buffer) and (known is None or known[0]() is not buffer):
            self.reads[id(buffer)] = (weakref.ref(buffer), time)

    def note_used(self, nodes: Iterable[Node]) -> None:
        """Remember the calls outside whose results were used: gradients will go there."""
        self.outside.update((node, None) for node in nodes if node not in self._numbers)

    def _count(self, saving: Saving, kept: tuple[Any, ...]) -> None:
        for slot in saving.slots:
            self.unknown = self.unknown or kept[slot] is None
            for buffer in map(root, leaves(kept[slot])):
                if _is(self._made, buffer) and not _is(self._counted, buffer):
                    self._counted[id(buffer)] = weakref.ref(buffer)
                    self.would_save += buffer_bytes(buffer)

    def place(self, edge: Node | Port) -> Place | None:
        """Which output of which call an edge is, if it was made in this segment."""
        number = self._numbers.get(node_of(edge))
        return None if number is None else (number, edge.index if isinstance(edge, Port) else 0)


def _is(known: dict[int, weakref.ref[Any]], buffer: Any) -> bool:
    ref = known.get(id(buffer))
    return ref is not None and ref() is buffer


class Stub(Node):
    """A call of a segment's first run. Gradients reach its repetition, never the stub."""

    __slots__ = ()

    def port(self, index: Any) -> Edge:
        return Port(self, index)

    def gone(self) -> TapeError:
        """The error for a result that got out of its segment by a side door."""
        return TapeError(
            f"{self.describe()} was called inside a checkpointed function, and its result was used outside other than"
            " by being returned: return it from the function, so that gradients can reach it"
        )


class Recomputation(Tape):
    """The tape of a segment's second run. It keeps its calls alive: the segment's own variables are gone by then."""

    recalls = True

    def __init__(self, segment: CheckpointNode) -> None:
        super().__init__()
        self._segment = segment
        self.calls: list[Node] = []

    @property
    def complete(self) -> bool:  # type: ignore[override]
        """Whether every call is there again."""
        return len(self.calls) == len(self._segment.calls)

    def clear(self) -> None:
        """Drop everything that was saved."""
        for node in self.calls:
            node.forget()
        self.calls.clear()

    def append(self, node: Node) -> None:
        """Add a call, which must be the one that the first run made at this point."""
        expected, number = self._segment.calls, len(self.calls)
        if expected[number] != node.name:
            raise TapeError(
                f"a checkpointed function did not repeat itself: call {number} of its first run was"
                f" {expected[number]}, of its second {node.describe()}. It must not depend on anything that changes"
                " between forward and backward (train/eval mode, a counter, NumPy's own random numbers)"
            )
        self.calls.append(node)

    def recall(self, op: Op) -> tuple[Any, tuple[Any, ...]] | None:
        """An output that was kept; or a stand-in for the last one, where only its inputs are needed again."""
        segment, number = self._segment, len(self.calls)
        if number in segment.outputs:
            out, residuals = unpacked(segment.outputs[number])
            return out, residuals
        if number == len(segment.calls) - 1 and segment.unseen is not None:
            dry = current().dry
            made = tuple(stand_in(shape, dtype, dry) for shape, dtype in segment.unseen)
            return made if op.multiple else made[0], (None,) * len(op.residuals)
        return None


class CheckpointNode(Node):
    """A checkpointed segment on the surrounding tape. It keeps the segment's inputs, and outputs of ops in ``keep``."""

    __slots__ = ("calls", "function", "leaves", "moved", "outputs", "outside", "random", "reads", "unseen")

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tape: Tape,
        state: State,
        site: Site | None,
    ) -> None:
        # a checkpoint is no op: what Node would ask its op, it answers itself
        super().__init__(None, tape, state.path, site, {}, (), _copies((args, kwargs)), None)  # type: ignore[arg-type]
        self.grad = {}
        self.function = function
        self.random = (state.seed, state.draws)
        self.calls: list[str] = []
        self.outputs: dict[int, tuple[Any, tuple[Any, ...]]] = {}
        self.leaves: dict[int, Leaf] = {}
        self.moved: set[int] = set()
        self.outside: tuple[Node, ...] = ()
        self.reads: list[Read] = []
        self.unseen: Unseen | None = None

    @property
    def name(self) -> str:
        """What the record calls it."""
        return "checkpoint"

    @property
    def residuals(self) -> tuple[str, ...]:
        if self.kept is None:
            return ()
        named = [*_named_values(self.function, *self.kept), *self._named_outputs()]
        return tuple(name for name, value in named if _is_packed(value))

    def adopt(self, sketch: Sketch, out: Any) -> Any:
        """Take over what the first run showed, and give the outputs as the surrounding graph sees them."""
        self.calls, self.unseen, self.reads = sketch.calls, sketch.unseen, [*sketch.reads.values()]
        self.outputs, sketch.outputs = sketch.outputs, {}
        self.outside, self.moved, self.leaves = tuple(sketch.outside), sketch.moved, sketch.leaves

        def outer(tensor: Tensor) -> Tensor:
            place = None if tensor.node is None else sketch.place(tensor.node)
            if place is None:
                return tensor
            self.dtype[place] = tensor.data.dtype
            self.grad[place] = None
            return make(tensor.data, Port(self, place))

        out = _map_tensors(out, outer)
        sketch.clear()  # its stubs and it refer to each other: not even their bookkeeping shall wait for a collection
        return out

    def pack(self, packing: saved_tensors_hooks) -> None:
        """Keep the inputs, and the outputs that are kept, as the hooks give them."""
        self.kept = _map_tensors(self.kept, lambda tensor: _packed_tensor(packing, tensor))
        self.outputs = {number: packing.packed(value) for number, value in self.outputs.items()}

    def port(self, index: Any) -> Edge:
        return Port(self, index)

    def has_grad(self) -> bool:
        return any(grad is not None for grad in self.grad.values())

    def take_gradients(self) -> Any:
        grads = self.grad
        self.forget_gradients()
        return grads

    def forget_gradients(self) -> None:
        self.grad = dict.fromkeys(self.dtype)

    def forget(self) -> None:
        self.kept, self.outputs, self.reads, self.unseen = None, {}, [], None
        self.outside, self.leaves = (), {}
        self.function = _forgotten  # which may hold activations that it closes over

    def saved(self) -> list[tuple[str, Any]]:
        """The inputs by name, and the outputs that are kept."""
        if self.kept is None:
            return []
        return [*_named_arrays(self.function, *self.kept), *self._named_outputs()]

    def _named_outputs(self) -> Iterator[tuple[str, Any]]:
        for number, (out, residuals) in self.outputs.items():
            yield f"{self.calls[number]} (call {number})", [out, *(r for r in residuals if r is not None)]

    def needed(self) -> Iterator[tuple[str, Any]]:
        yield from self.saved_arrays()
        for ref, _ in self.reads:
            buffer = ref()
            if buffer is not None and id(buffer) not in self.moved:
                yield f"an array of shape {buffer.shape}, used inside {self.describe()} and needed again", buffer

    def check(self) -> None:
        super().check()
        for tensor, data in self.leaves.values():
            if (leaf := tensor()) is not None and leaf.data is not data():
                raise TapeError(
                    f"a tensor of shape {leaf.shape}, used inside {self.describe()} and needed again to recompute it,"
                    " was given another array (its .data was set). Set it after backward."
                )

    def check_changes(self, arrays: Iterable[tuple[str, Any]]) -> None:
        """Raise also where something that the segment read from outside, a parameter say, has changed since."""
        super().check_changes(arrays)
        for ref, time in self.reads:
            buffer = ref()
            if buffer is not None and (what := changes.since(buffer, time)):
                raise TapeError(
                    f"an array of shape {buffer.shape}, used inside {self.describe()} and needed again to recompute it,"
                    f" was changed in place by {what}. Change it after backward."
                )

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Run the segment again and walk its tape; the inputs' gradients arrive where they belong by themselves."""
        grads = self.take_gradients()
        nodes = self.recompute(state)
        if (other := stray(nodes, {*nodes, *self.outside})) is not None:
            raise TapeError(
                f"{self.describe()}: on its second run the function used the result of {other.describe()}, which it had"
                " not on its first, so no gradient would reach that. It must use the same tensors each time, and record"
                " on no tape of its own"
            )
        if not retain:
            self.forget()
        for (number, index), grad in grads.items():
            if grad is not None:
                box = [grad]
                nodes[number].port(index).accumulate(box, 0)
        grads.clear()
        del grad
        walk(nodes, state, retain=False)
        return []

    def recompute(self, state: State) -> list[Node]:
        """Run the segment again; its calls, with all that they save."""
        args, kwargs = _copies(_map_packed(self.kept))
        tape = Recomputation(self)
        observer = state.observer
        if observer is not None:
            observer.recompute_begins(self)
        with self._as_before(state), tape:
            try:
                self.function(*args, **kwargs)
            except StopRecording:
                if not tape.complete:
                    raise
        if not tape.complete:
            raise TapeError(
                f"{self.describe()}: the function recorded {len(self.calls)} calls on its first run and"
                f" {len(tape.calls)} on its second; it must not depend on anything that changes in between"
            )
        if observer is not None:
            observer.recompute_ended(self)
        nodes, tape.calls = tape.calls, []
        return nodes

    @contextmanager
    def _as_before(self, state: State) -> Iterator[None]:
        before = state.path, state.seed, state.draws, state.recomputing
        state.path, (state.seed, state.draws), state.recomputing = self.path, self.random, True
        try:
            yield
        finally:
            state.path, state.seed, state.draws, state.recomputing = before


def _forgotten() -> None:
    """Stands in place of a function that will not be run again."""


def checkpoint(function: Callable[..., Any], *args: Any, keep: Collection[str] = (), **kwargs: Any) -> Any:
    """Run ``function(*args, **kwargs)``, keeping only its arguments for backward, which runs it again.

    Gradients have the same bits as without it. Nests; random ops draw the same numbers again; side effects guarded by
    :func:`memback.is_recomputing` (batch norm's running statistics) happen once. The function may use parameters that
    are not among its arguments, and its arguments may be frozen.

    Args:
        function: what to run. It must do the same when called again, and return every tensor that is used outside.
        *args: its arguments; tensors may be nested in tuples, lists and dicts.
        **kwargs: likewise.
        keep: names of ops whose outputs are kept as well and not computed again (selective recomputation,
            Korthikanti et al. 2022).

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
    """What :func:`checkpoint` does; a policy, which has chosen its segments on purpose, runs it without warnings."""
    state = current()
    outer = state.tape
    if outer is None:
        return function(*args, **kwargs)
    if not state.checkpointing:
        with outer.segment(keep):
            return function(*args, **kwargs)
    node = CheckpointNode(function, args, kwargs, outer, state, call_site())
    sketch = Sketch(keep, weigh=warn)
    try:
        with sketch:
            out = function(*args, **kwargs)
    except BaseException:
        outer.clear()
        raise
    if warn:
        _warn_if_useless(node, sketch)
    if not sketch.calls:
        return out
    out = node.adopt(sketch, out)
    outer.append(node)
    if isinstance(outer, Sketch):
        for ref, time in node.reads:
            if (buffer := ref()) is not None:
                outer.note_read(buffer, time)
        outer.note_used(node.outside)
        outer.moved |= node.moved
        outer.leaves = {**node.leaves, **outer.leaves}
        node.forget()
    elif state.packing is not None and not state.recomputing:
        node.pack(state.packing)
    if state.anomaly:
        node.seal = Seal(node.needed())
    if state.observer is not None:
        state.observer.held(node)
    if outer.complete:
        raise StopRecording
    return out


def _warn_if_useless(node: CheckpointNode, sketch: Sketch) -> None:
    if not sketch.calls:
        reason = "nothing in it requires gradients, so nothing would be saved anyway"
    else:
        made = [t for t in tensors_in(node.kept) if t.node is not None]
        held = sum(buffer_bytes(b) for b in {id(b): b for b in (root(t.data) for t in made)}.values())
        if sketch.unknown or sketch.would_save > held:
            return
        reason = f"its calls would keep {sketch.would_save:,} bytes, its inputs take {held:,}"
    warnings.warn(
        f"the checkpoint of {_function_name(node.function)} at {short_path(node.site)} saves no memory: {reason}."
        " Checkpoint a longer segment, or none",
        CheckpointWarning,
        stacklevel=4,
    )


# -- arguments and results, in which tensors may be nested


def _map_tensors(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, (tuple, list)):
        items = [_map_tensors(item, change) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: _map_tensors(value, change) for key, value in tree.items()}
    return tree


def _copies(tree: Any) -> Any:
    """The same with tensors that nobody else can make another value of, as ``x += y`` does; a leaf stays itself."""
    copies: dict[int, Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        if tensor.requires_grad and tensor.node is None:
            return tensor
        return copies.setdefault(id(tensor), make(tensor.data, tensor.node))

    return _map_tensors(tree, copy)


class _PackedTensor(tuple[Any, ...]):
    """A tensor whose data is packed: (the data, the call that made it)."""

    __slots__ = ()


def _packed_tensor(packing: saved_tensors_hooks, tensor: Tensor) -> Any:
    if tensor.requires_grad and tensor.node is None:
        return tensor  # a leaf, which is to get the gradient itself
    data = packing.packed(tensor.data)
    return tensor if data is tensor.data else _PackedTensor((data, tensor.node))


def _is_packed(tree: Any) -> bool:
    if isinstance(tree, dict):
        return any(map(_is_packed, tree.values()))
    if isinstance(tree, (tuple, list)):
        return isinstance(tree, (_PackedTensor, PackedValue)) or any(map(_is_packed, tree))
    return False


def _map_packed(tree: Any) -> Any:
    """Arguments as they were before their tensors were packed."""
    if isinstance(tree, _PackedTensor):
        data, node = tree
        return make(data.unpack(), node)
    if isinstance(tree, (tuple, list)):
        items = [_map_packed(item) for item in tree]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    if isinstance(tree, dict):
        return {key: _map_packed(value) for key, value in tree.items()}
    return tree


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors nested in tuples, lists and dicts."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from tensors_in(item)
    elif isinstance(tree, dict):
        yield from tensors_in(list(tree.values()))


def _arrays(tree: Any) -> Iterator[Any]:
    if isinstance(tree, Tensor):
        yield tree.data
    elif is_array(tree):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for item in tree:
            yield from _arrays(item)
    elif isinstance(tree, dict):
        yield from _arrays(list(tree.values()))


def _named_values(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[tuple[str, Any]]:
    try:
        parameters = inspect.signature(function).parameters.values()
        names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        names = []
    names += [f"input {i}" for i in range(len(names), len(args))]
    return [*zip(names, args, strict=False), *kwargs.items()]


def _named_arrays(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    for name, value in _named_values(function, args, kwargs):
        arrays = list(_arrays(value))
        if arrays:
            yield name, arrays[0] if len(arrays) == 1 else arrays


def _function_name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", None) or type(function).__name__
