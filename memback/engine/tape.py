"""Tensors, the tape that records their ops, and the backward pass that walks it in reverse (notes, sections 3, 4).

The mechanism names no op. A :class:`Node` is one recorded call; it keeps what the op declared and nothing else, and is
kept alive by the tensors and nodes that come after it, so a result that nobody uses frees what it saved. A
:class:`Tape` is the order in which the calls were recorded.
"""

from __future__ import annotations

import math
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from memback.dry.array import ShapeArray
from memback.engine.arrays import Array, argument_like, forgotten, is_array, is_whole, is_writeable, leaves, root
from memback.engine.checksums import Seal
from memback.engine.graph import Walk, claim
from memback.engine.hooks import Packed
from memback.engine.op import Op, OpError, Saving
from memback.engine.state import Setting, State, current
from memback.errors import MembackError, OutOfMemoryError

__all__ = [
    "AnomalyError",
    "Edge",
    "Node",
    "Observer",
    "Site",
    "Tape",
    "TapeError",
    "Tensor",
    "TensorOperators",
    "describe",
    "detect_anomaly",
    "no_grad",
    "short_path",
]

Site: TypeAlias = tuple[CodeType, int]
"""A place in the source: a code object and an instruction in it. Holds no frame, so keeps no variable alive."""


class TapeError(MembackError):
    """Backward can't be run as asked."""


class AnomalyError(MembackError):
    """A NaN or infinity appeared while anomaly checking was on."""


# -- where a call was made


class _Internal(dict[str, bool]):
    """Whether a source file is part of the engine or of NumPy: a call made there is charged to who called it."""

    _package = __file__.rpartition("engine")[0]
    _numpy = np.__file__.rpartition("__init__.py")[0]
    _users = (f"{_package}models", f"{_package}commands")

    def __missing__(self, filename: str) -> bool:
        internal = filename.startswith((self._package, self._numpy)) and not filename.startswith(self._users)
        self[filename] = internal
        return internal


_internal = _Internal()


def call_site() -> Site | None:
    """The innermost place outside the engine that led here."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        code = frame.f_code
        if not _internal[code.co_filename]:
            return code, frame.f_lasti
        frame = frame.f_back
    return None


def short_path(site: Site | None) -> str:
    """A site as ``file.py:41``, or an empty string where there is none."""
    if site is None:
        return ""
    code, instruction = site
    for start, end, line in code.co_lines():
        if start <= instruction < end and line is not None:
            return f"{code.co_filename.rpartition('/')[2]}:{line}"
    return code.co_filename.rpartition("/")[2]


def describe(op: str, path: str, site: Site | None) -> str:
    """An op call in an error: its name, layer path and source line."""
    return f"{op} (layer {path or '(top)'!r}, called at {short_path(site) or 'an unknown line'})"


# -- in-place changes: a logical clock that ticks at every change, and when each changed buffer changed last


class _Changes:
    def __init__(self) -> None:
        self.clock = 0
        self._last: dict[int, tuple[weakref.ref[Any], int, str]] = {}

    def note(self, array: Array, what: str) -> None:
        self.clock += 1
        buffer = root(array)
        key = id(buffer)
        self._last[key] = (weakref.ref(buffer, forgotten(self._last, key)), self.clock, what)

    def since(self, array: Array, time: int) -> str | None:
        """What changed the array's buffer after ``time``, if anything did."""
        entry = self._last.get(id(root(array)))
        return entry[2] if entry is not None and entry[1] > time else None


changes = _Changes()


# -- gradients


def _references_of_a_sole_local() -> int:
    alone = np.empty(0)
    return sys.getrefcount(alone)


_SOLE = _references_of_a_sole_local()


def _references(array: Any) -> tuple[int, int]:
    """References to an array, and to its base if it is a view."""
    base = array.base
    return sys.getrefcount(array), 0 if base is None else sys.getrefcount(base)


def _references_to_nobody_elses() -> frozenset[tuple[int, int]]:
    owner, view = np.empty((1, 1)), np.empty((1, 1)).reshape(1)
    return frozenset((_references(owner), _references(view)))


_UNSEEN = _references_to_nobody_elses()


def _add(mine: list[Any], other: Any) -> Any:
    """mine[0] + other, written into mine[0] where nobody else can see that array."""
    old = mine.pop()
    if (
        _references(old) in _UNSEEN
        and is_whole(old)
        and is_writeable(old)
        and old.dtype == other.dtype
        and old.shape == other.shape != ()  # NumPy gives scalars, not arrays, for those
    ):
        np.add(old, other, out=old)
        return old
    return np.add(old, other)


_numbers = count()
_accumulating = threading.RLock()  # two threads may add to one leaf


class Node:
    """One recorded call: the op, what it keeps, and where the gradients of its inputs go.

    ``number`` counts calls in the order in which they were recorded, on whichever tape. ``walk`` is the walk that
    claimed this call last.
    """

    _is_leaf = _is_port = False

    __slots__ = (
        "__weakref__",
        "dtype",
        "edges",
        "grad",
        "kept",
        "number",
        "op",
        "path",
        "saving",
        "seal",
        "site",
        "tape",
        "time",
        "walk",
    )

    def __init__(
        self,
        op: Op,
        tape: Tape,
        path: str,
        site: Site | None,
        dtype: Any,
        edges: tuple[Edge | None, ...],
        kept: tuple[Any, ...] | None,
        saving: Saving | None,
    ) -> None:
        self.op = op
        self.tape = tape
        self.path = path
        self.site = site
        self.dtype = dtype
        self.edges = edges
        self.kept = kept
        self.saving = saving
        self.time = changes.clock
        self.number = next(_numbers)
        self.grad: Any = None
        self.seal: Seal | None = None
        self.walk: Walk | None = None

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op.name

    @property
    def residuals(self) -> tuple[str, ...]:
        """Names of the values that the call made besides its output; what is packed was made by packing it."""
        if type(self.kept) is Packed and self.saving is not None:
            return self.saving.names
        return self.op.residuals

    def port(self, index: Any) -> Edge:
        """The edge of output ``index``."""
        return self

    def saved(self) -> list[tuple[str, Any]]:
        """What this call keeps for backward: (name, value) pairs, as the op declared them."""
        kept, saving = self.kept, self.saving
        if kept is None or saving is None:
            return []
        return list(zip(saving.names, map(kept.__getitem__, saving.slots), strict=True))

    def needed(self) -> Iterator[tuple[str, Array]]:
        """The arrays that must not change until backward comes, as errors name them."""
        return self.saved_arrays()

    def saved_arrays(self) -> Iterator[tuple[str, Array]]:
        """Those among them that the call keeps."""
        for name, value in self.saved():
            for array in leaves(value):
                yield f"{name!r}, saved by {self.describe()} for backward,", array

    def accumulate(self, grads: list[Any], i: int) -> None:
        """Add grads[i] to the gradient of this call's output."""
        if self.kept is None:
            raise self.gone()
        grad, grads[i] = grads[i], None
        if grad.dtype != self.dtype:
            grad = grad.astype(self.dtype)
        if self.grad is None:
            self.grad = grad
        else:
            mine = [self.grad]
            self.grad = None
            self.grad = _add(mine, grad)

    def pull(self, state: State, retain: bool) -> list[Any]:
        """Take this call's output gradient through its op: one gradient an input."""
        kept = self.kept
        if not retain:
            self.kept = None
        if type(kept) is Packed:
            kept = kept.unpack()
        grads = self.op.vjp(self.take_gradients(), *kept)  # type: ignore[misc]
        return [grads] if self.op.single else list(grads)

    def has_grad(self) -> bool:
        """Whether any gradient has reached an output of this call."""
        return self.grad is not None

    def take_gradients(self) -> Any:
        """dL/d(output), which this call no longer holds then."""
        grad, self.grad = self.grad, None
        return grad

    def forget_gradients(self) -> None:
        """Drop the gradients that have arrived."""
        self.grad = None

    def forget(self) -> None:
        """Drop everything that is kept."""
        self.kept = None

    def clear(self) -> None:
        """Drop that, where gradients go, and those that have arrived."""
        self.forget()
        self.edges = ()
        self.forget_gradients()

    def describe(self) -> str:
        """The call as errors name it."""
        return describe(self.name, self.path, self.site)

    def gone(self) -> TapeError:
        """The error for a gradient that comes when nothing is kept any more."""
        return TapeError(
            f"backward through {self.describe()} a second time, or after its tape was cleared (as an exception does):"
            " its saved values are gone. Pass retain_graph=True to the first backward, or run the forward pass again."
        )

    def check(self) -> None:
        """Raise unless everything that was saved is still there and unchanged."""
        if self.kept is None:
            raise self.gone()
        if changes.clock != self.time:
            self.check_changes(self.saved_arrays())
        if self.seal is not None:
            self.check_seal()

    def check_changes(self, arrays: Iterable[tuple[str, Array]]) -> None:
        """Raise if the tape was told of a change of one of these arrays, since the call, by its name."""
        for name, array in arrays:
            if what := changes.since(array, self.time):
                raise TapeError(
                    f"{name} was changed in place by {what}. Use an out-of-place operation, or change it after"
                    " backward."
                )

    def check_seal(self) -> None:
        """Raise if anything that was sealed has changed."""
        if self.seal is not None and (name := self.seal.broken()):
            raise TapeError(
                f"{name} was changed in place by something that the tape was not told of: through .data, .numpy() or"
                " the array that a tensor was made of. Use an out-of-place operation, or change it after backward."
            )


class MultiNode(Node):
    """A recorded call with several outputs: ``grad`` and ``dtype`` have one entry for each."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        self.grad = [None] * len(self.dtype)

    def port(self, index: Any) -> Edge:
        return Port(self, index)

    def has_grad(self) -> bool:
        return any(grad is not None for grad in self.grad)

    def take_gradients(self) -> Any:
        grads = tuple(self.grad)
        self.forget_gradients()
        return grads


class Port:
    """One output of a call with several: ``node.grad[index]`` is its gradient."""

    __slots__ = ("index", "node")

    _is_leaf, _is_port = False, True

    def __init__(self, node: Node, index: Any) -> None:
        self.node = node
        self.index = index

    @property
    def grad(self) -> Any:
        """dL/d(this output) so far."""
        return self.node.grad[self.index]

    def accumulate(self, grads: list[Any], i: int) -> None:
        """Add grads[i] to the gradient of this output."""
        if self.node.kept is None:
            raise self.node.gone()
        grad, grads[i] = grads[i], None
        slots, index, dtype = self.node.grad, self.index, self.node.dtype[self.index]
        if grad.dtype != dtype:
            grad = grad.astype(dtype)
        if slots[index] is None:
            slots[index] = grad
        else:
            mine = [slots[index]]
            slots[index] = None
            slots[index] = _add(mine, grad)


# -- tensors


class TensorOperators:
    """Operators and methods that are ops; :mod:`memback.ops.operators` fills them in, since this module names no op."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: object) -> Array: ...  # type: ignore[override]
        def __ne__(self, other: object) -> Array: ...  # type: ignore[override]
        def __contains__(self, value: Any) -> bool: ...
        def __lt__(self, other: Any) -> Array: ...
        def __le__(self, other: Any) -> Array: ...
        def __gt__(self, other: Any) -> Array: ...
        def __ge__(self, other: Any) -> Array: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __iter__(self) -> Iterator[Tensor]: ...
        def abs(self) -> Tensor: ...
        def exp(self) -> Tensor: ...
        def log(self) -> Tensor: ...
        def sqrt(self) -> Tensor: ...
        def relu(self) -> Tensor: ...
        def sigmoid(self) -> Tensor: ...
        def tanh(self) -> Tensor: ...
        def softmax(self, dim: int = -1) -> Tensor: ...
        def sum(self, dim: Any = None, keepdim: bool = False) -> Tensor: ...
        def mean(self, dim: Any = None, keepdim: bool = False) -> Tensor: ...
        def var(self, dim: Any = None, correction: int = 1, keepdim: bool = False) -> Tensor: ...
        def max(self, dim: int | None = None, keepdim: bool = False) -> Tensor: ...
        def transpose(self, dim0: int, dim1: int) -> Tensor: ...
        def split(self, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]: ...

    reshape: Any
    permute: Any
    __array__: Any
    __array_function__: Any
    __array_ufunc__: Any


class Tensor(TensorOperators):
    """An array that ops are recorded on.

    Args:
        data: an array, or anything that ``np.asarray`` takes. It is not copied.
        requires_grad: whether dL/d(this) is wanted. Only floating-point tensors can.

    ``grad`` is dL/d(this) as a plain array of ``data``'s shape and dtype, or None. Operators broadcast as in NumPy and
    are recorded like the functions of :mod:`memback.ops`; so are the functions of NumPy that are ops (``np.exp(x)``,
    ``np.stack([x, y])``), and all others are refused. ``==``, ``<`` and the like compare elements and give a plain
    array; as a key of a dict a tensor is itself.

    ``x += y`` and its kin change ``data`` in place under :class:`no_grad`, and wherever neither side requires
    gradients. Where the tape records, ``x`` becomes the result of a new call, which views of it that were made before
    do not see; of a leaf that requires gradients it is an error then.

    Raises:
        TypeError: gradients are asked of a tensor that is not of a floating-point type.
    """

    __slots__ = ("__weakref__", "data", "grad", "node", "requires_grad")

    _is_leaf, _is_port = True, False  # as the end of an edge
    __hash__ = object.__hash__  # by identity, though == compares elements

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        self.data: Any = data if is_array(data) else np.asarray(data)
        self.grad: Any = None
        self.node: Node | Port | None = None
        self.requires_grad = requires_grad
        if requires_grad and not _is_floating(self.data.dtype):
            raise TypeError(f"only floating-point tensors can require gradients, not {self.data.dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each dimension."""
        shape: tuple[int, ...] = self.data.shape
        return shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = self.data.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.data.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements (of the view, where it is one)."""
        return int(self.data.nbytes)

    def __len__(self) -> int:
        return len(self.data)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({self.data!r}{grad})"

    def numpy(self) -> Any:
        """The plain array, sharing memory. A change made to it is not seen by the in-place check."""
        return self.data

    def item(self) -> Any:
        """The value of a one-element tensor as a Python number."""
        return self.data.item()

    def detach(self) -> Tensor:
        """The same data, cut off from the tape."""
        return Tensor(self.data)

    def copy_(self, values: Any) -> Tensor:
        """Overwrite the data in place, and say so to the tape: a saved value that changed is an error in backward."""
        values = values.data if isinstance(values, Tensor) else values
        self.change(lambda target: target.__setitem__(..., values), f"copy_ at {short_path(call_site())}")
        return self

    def change(self, function: Callable[[Any], None], what: str) -> None:
        """Have ``function`` change the data in place, and tell the tape ``what`` it was. A dry run changes nothing."""
        function(_without_values(self.data) if current().dry else self.data)
        changes.note(self.data, what)

    def __setitem__(self, index: Any, values: Any) -> None:
        if self.node is not None or (self.requires_grad and current().tape is not None):
            raise TapeError(
                "assignment into a tensor that requires gradients is not recorded: build the value with ops.where or"
                " ops.concatenate, or assign under no_grad()"
            )
        values = values.data if isinstance(values, Tensor) else values
        self.change(lambda target: target.__setitem__(index, values), f"an assignment at {short_path(call_site())}")

    def accumulate(self, grads: list[Any], i: int) -> None:
        """Add grads[i] to ``grad`` of this leaf."""
        grad, grads[i] = grads[i], None
        if grad.dtype != self.data.dtype:
            grad = grad.astype(self.data.dtype)
        with _accumulating:
            if self.grad is None:
                # an array that somebody else also sees would change under their hands when this one is added to
                if grad.shape == ():
                    grad = np.array(grad) if isinstance(grad, np.generic) else grad
                self.grad = grad if sys.getrefcount(grad) == _SOLE and grad.base is None else grad.copy()
            else:
                mine = [self.grad]
                self.grad = None
                self.grad = _add(mine, grad)

    def backward(self, gradient: Any = None, retain_graph: bool = False, create_graph: bool = False) -> None:
        """Compute dL/d(leaf) for every leaf that requires it, where L is this tensor (Eq. 30).

        Args:
            gradient: dL/d(this), of this tensor's shape; needed unless this is a scalar (where dL/dL = 1, Eq. 29b).
            retain_graph: keep the saved values so that backward can be run again.
            create_graph: higher derivatives; not supported.

        Raises:
            TapeError: this is not a scalar and no gradient is given; nothing that requires gradients led here; a value
                was freed by an earlier backward, or changed in place; higher derivatives are asked for.
        """
        if create_graph:
            raise TapeError(
                f"backward from {self._origin()} with create_graph: higher derivatives are out of memback's scope; it"
                " differentiates once"
            )
        if not self.requires_grad:
            raise TapeError(
                "backward from a tensor that nothing with requires_grad=True led to; was the forward pass run under"
                " no_grad()?"
            )
        if gradient is None:
            if self.size != 1:
                raise TapeError(
                    f"backward from {self._origin()}, of shape {self.shape}, needs `gradient`, dL/d(this) of that"
                    " shape: only a scalar loss has dL/dL = 1"
                )
            gradient = np.ones_like(self.data)
        gradient = gradient.data if isinstance(gradient, Tensor) else gradient
        gradient = gradient if is_array(gradient) else np.asarray(gradient, self.dtype)
        if gradient.shape != self.shape:
            raise TapeError(f"`gradient` has shape {gradient.shape}, but {self._origin()} has {self.shape}")
        seed = [gradient]
        del gradient
        if self.node is None:
            self.accumulate(seed, 0)
        else:
            node_of(self.node).tape.backward(self.node, seed, retain_graph)

    def _origin(self) -> str:
        """Where this tensor comes from, as errors name it."""
        return "a leaf" if self.node is None else f"the output of {node_of(self.node).describe()}"


Edge: TypeAlias = "Node | Port | Tensor"
"""Where a gradient goes: the call that made the value, or the leaf tensor itself."""


def _is_floating(dtype: Any) -> bool:
    return bool(dtype.kind == "f" or dtype.name == "bfloat16")


def node_of(edge: Node | Port) -> Node:
    """The call that an edge belongs to."""
    return edge.node if edge._is_port else edge  # type: ignore[union-attr,return-value]


# -- observers


class Observer:
    """Told of everything that happens on a thread while it is installed in the thread's state. Does nothing itself."""

    def forward_begins(self, op: Op) -> None:
        """``op`` is about to run forward."""

    def forward_ended(self, call: Call) -> None:
        """An op has run forward."""

    def forward_failed(self) -> None:
        """The op that had begun raised an exception."""

    def backward_begins(self, node: Node) -> None:
        """``node`` is about to be taken backward."""

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        """``node`` was taken backward; its gradients have been added to ``edges``."""

    def recompute_begins(self, node: Node) -> None:
        """A checkpoint's segment is about to be run again."""

    def recompute_ended(self, node: Node) -> None:
        """A checkpoint's segment was run again; its backward begins."""

    def held(self, node: Node) -> None:
        """A node that is no op's call (a checkpoint) was recorded."""

    def backward_pass_begins(self) -> None:
        """The walk over a tape begins; the forward pass is complete."""

    def backward_pass_ended(self) -> None:
        """The walk is over, and what it was told to free is freed."""

    def update_begins(self) -> None:
        """The optimiser is about to change the parameters."""

    def update_ended(self) -> None:
        """The optimiser has changed the parameters."""


class Call:
    """What an observer is told of one forward call. Lives only as long as the observer is looking at it."""

    __slots__ = ("node", "op", "out", "path", "residuals", "site", "tape", "values")

    def __init__(
        self,
        op: Op,
        values: list[Any],
        out: Any,
        residuals: tuple[Any, ...],
        path: str,
        site: Site | None,
        node: Node | None,
        tape: Tape | None,
    ) -> None:
        self.op = op
        self.values = values
        self.out = out
        self.residuals = residuals
        self.path = path
        self.site = site
        self.node = node
        self.tape = tape


# -- the tape


class Tape(Setting):
    """The record of a forward pass, in order.

    Used as a context manager it becomes the thread's current tape; each thread has one of its own from the start.

    Args:
        retain: ``"needed"``: each call keeps what its backward needs. ``"all"``: besides, every variable of the
            forward pass stays until the backward pass is over (section 4.3 of the notes, read literally).
    """

    field = "tape"
    replay: Any = None
    """The :class:`memback.engine.replay.Replay` of the region that this tape records, if it records one."""

    def __init__(self, retain: Literal["needed", "all"] = "needed") -> None:
        super().__init__()
        self.retain = retain
        self._nodes: list[weakref.ref[Node]] = []
        self._prune_at = 1024
        self.variables: list[Any] = []

    def value(self) -> Tape:
        """The tape itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__()
        if kind is not None:
            self.clear()

    def nodes(self) -> list[Node]:
        """The recorded calls that are still alive, in order."""
        return [node for ref in self._nodes if (node := ref()) is not None]

    def __len__(self) -> int:
        return sum(node.kept is not None for node in self.nodes())

    def clear(self) -> None:
        """Drop everything that was saved. Backward from a tensor recorded before is then an error."""
        for node in self.nodes():
            node.clear()
        self._nodes.clear()
        self.variables.clear()

    def keeps(self, op: Op, needs: int) -> bool:
        """Whether a call of ``op`` is to make its residuals, where bits of ``needs`` say what is differentiated."""
        return needs != 0

    def reruns(self, node: Node | None) -> bool:
        """Whether a call that was just made (``node``, if it was recorded) is run again for backward."""
        return False

    def segment(self, keep: Collection[str]) -> AbstractContextManager[Any]:
        """The block runs a segment that a checkpoint would recompute, all but the outputs of the ops in ``keep``."""
        return nullcontext()

    def pass_by(
        self, op: Op, values: list[Any], out: Any, edges: tuple[Edge | None, ...], path: str, site: Site | None
    ) -> None:
        """Take note, in a region, of a call that needs no gradient and is not recorded."""

    def append(self, node: Node) -> None:
        """Add a call to the record. The tape does not keep it alive: its tensors do."""
        self._nodes.append(weakref.ref(node))
        if len(self._nodes) > self._prune_at:
            self._nodes = [ref for ref in self._nodes if ref() is not None]
            self._prune_at = max(1024, 2 * len(self._nodes))

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
        """Record one call and what its op declares to keep."""
        saving = op.saving(needs, len(edges), values)
        kept = op.arguments(saving, values, out, residuals)
        if op.multiple:
            node: Node = MultiNode(op, self, path, site, tuple(o.dtype for o in out), edges, kept, saving)
        else:
            node = Node(op, self, path, site, out.dtype, edges, kept, saving)
        self.append(node)
        return node

    def backward(self, edge: Node | Port, seed: list[Any], retain_graph: bool) -> None:
        """Walk the graph in reverse from ``edge``, whose gradient is ``seed[0]``: it may lie on other tapes, too."""
        state = current()
        with walking(node_of(edge)) as nodes:
            tapes, mine = {node.tape for node in nodes}, node_of(edge).walk
            try:
                if state.observer is not None:
                    state.observer.backward_pass_begins()
                node_of(edge).check()
                edge.accumulate(seed, 0)
                walk(nodes, state, retain_graph)
            except BaseException:
                for claimed in (n for tape in tapes for n in tape.nodes() if n.walk is mine):
                    claimed.clear()
                self.clear()
                raise
        if not retain_graph:
            for tape in tapes:
                tape._nodes = [ref for ref in tape._nodes if (node := ref()) is not None and node.kept is not None]
                if tape is self or not tape._nodes:
                    tape.variables.clear()
        if state.observer is not None:
            state.observer.backward_pass_ended()


@contextmanager
def walking(origin: Node) -> Iterator[list[Node]]:
    """The calls that gradients from ``origin`` can reach, in order; in the block no other thread may walk over them.

    Raises:
        TapeError: another thread does already.
    """
    mine = Walk()
    try:
        nodes = claim(origin, mine)
        if nodes is None:
            raise TapeError(
                f"backward from {origin.describe()} while another thread takes a part of its graph backward: gradients"
                " of both would mix. Let one end before the other begins, or run a forward pass in each thread"
            )
        yield nodes
    finally:
        mine.end()


def walk(nodes: list[Node], state: State, retain: bool) -> None:
    """Take ``nodes`` backward, last first; each is freed as soon as it is done (unless ``retain``)."""
    observer = state.observer
    while nodes:
        node = nodes.pop()
        if not node.has_grad():
            continue
        node.check()
        if observer is not None:
            observer.backward_begins(node)
        edges = node.edges
        if not retain:
            node.edges = ()
        try:
            grads = node.pull(state, retain)
        except MembackError:
            raise
        except MemoryError as error:
            raise _out_of_memory(f"the backward of {node.describe()}", error) from error
        except Exception as error:
            raise OpError(f"the backward of {node.describe()} failed: {error}") from error
        if state.anomaly:
            _check_gradients(node, grads)
        for i, edge in enumerate(edges):
            if edge is not None and grads[i] is not None:
                edge.accumulate(grads, i)
        if observer is not None:
            observer.backward_ended(node, edges)


def _check_gradients(node: Node, grads: list[Any]) -> None:
    for i, grad in enumerate(grads):
        if grad is not None and not _is_finite(grad):
            raise AnomalyError(f"the backward of {node.describe()} gave NaN or infinity for its input {i}")


def _check_output(name: str, out: Any, path: str, site: Site | None) -> None:
    for array in out if isinstance(out, (tuple, list)) else (out,):
        if _is_floating(array.dtype) and not _is_finite(array):
            raise AnomalyError(f"{describe(name, path, site)} gave NaN or infinity")


def _is_finite(array: Array) -> bool:
    """Whether no element is NaN or infinite; what has no values is finite, by way of the memory that a look takes."""
    finite: Any = np.isfinite(array).all()
    return isinstance(finite, ShapeArray) or bool(finite)


# -- calling an op


def record(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``op`` forward and, where an input requires gradients and a tape is there, record the call."""
    state = current()
    tape, observer = state.tape, state.observer
    try:
        values = op.bind(args, kwargs)
        if op.variadic is None:
            edges, needs, tensors = _unwrap(values, op.array_slots)
        else:
            edges, needs, tensors = _unwrap_sequence(values, op.variadic)
    except OpError as error:
        if tape is not None:
            tape.clear()
        raise OpError(f"{describe(op.name, state.path, call_site())}: {error}") from None
    if state.dry:
        _forget_values(op, values)
    if tape is None:
        needs = 0
    keep = tape is not None and tape.keeps(op, needs)
    site = call_site() if needs or observer is not None else None
    if observer is not None:
        observer.forward_begins(op)
    try:
        out, residuals = op.run(values, keep)
        if state.anomaly:
            _check_output(op.name, out, state.path, site)
        node = None
        if needs and tape is not None:
            node = tape.record(op, values, out, residuals, needs, edges, state.path, site)
        elif tape is not None and tape.replay is not None:
            tape.pass_by(op, values, out, edges, state.path, site)
        if state.packing is not None:
            state.packing.called(op, values, out, residuals, node)
        if state.anomaly and node is not None:
            node.seal = Seal(node.needed())
    except BaseException as error:
        if observer is not None:
            observer.forward_failed()
        if tape is not None:
            tape.clear()
        if isinstance(error, MemoryError) and not isinstance(error, MembackError):
            raise _out_of_memory(describe(op.name, state.path, site or call_site()), error) from error
        if not _is_for_the_op_to_explain(error):
            raise
        raise _failure(op, values, error, state.path, site or call_site()) from error
    if observer is not None:
        observer.forward_ended(Call(op, values, out, residuals, state.path, site, node, tape))
    if tape is not None and tape.retain == "all":
        tape.variables.append(out)
    if not tensors:
        return out
    return _wrap(out, node) if op.multiple else make(out, node)


def _is_for_the_op_to_explain(error: BaseException) -> bool:
    """Whether an exception says nothing by itself of the call that raised it, and may be told as another type."""
    if isinstance(error, MembackError):
        return isinstance(error, OpError)
    return isinstance(error, Exception)


def _out_of_memory(what: str, error: MemoryError) -> OutOfMemoryError:
    """The same as memback's error: which call it was, and what it asked for."""
    from memback.units import format_bytes

    shape, dtype = getattr(error, "shape", None), getattr(error, "dtype", None)
    if shape is None or dtype is None:
        return OutOfMemoryError(
            f"{what} found no more memory ({str(error) or 'of a size that is not known'}). Use a smaller batch, a"
            " checkpoint policy or a plan"
        )
    size = math.prod(shape) * dtype.itemsize
    return OutOfMemoryError(
        f"{what} found no more memory: it asked for {format_bytes(size)}, {dtype}[{', '.join(map(str, shape))}]. Use a"
        " smaller batch, a checkpoint policy or a plan",
        size,
    )


def _unwrap_sequence(values: list[Any], place: int) -> tuple[tuple[Edge | None, ...], int, bool]:
    """As :func:`_unwrap`, of an op whose inputs are the sequence at ``place``."""
    items = values[place] = list(values[place])
    return _unwrap(items, [(1 << k, k) for k in range(len(items))])


def _unwrap(values: list[Any], slots: Sequence[tuple[int, int]]) -> tuple[tuple[Edge | None, ...], int, bool]:
    """Replace Tensors among ``values`` by their arrays: (edges, mask of inputs to differentiate, any Tensor)."""
    edges: list[Edge | None] = []
    needs, tensors = 0, False
    for bit, i in slots:
        value = values[i]
        edge: Edge | None = None
        if isinstance(value, Tensor):
            values[i] = value.data
            tensors = True
            if value.requires_grad:
                needs |= bit
                edge = value if value.node is None else value.node
        elif isinstance(value, (list, np.generic)):
            values[i] = np.asarray(value)
        edges.append(edge)
    return tuple(edges), needs, tensors


def _forget_values(op: Op, values: list[Any]) -> None:
    """On a dry run an op is given no real array: what the caller holds counts as an argument, without its values."""
    if op.variadic is not None:
        values[op.variadic] = [_without_values(v) for v in values[op.variadic]]
    for _, i in op.array_slots:
        values[i] = _without_values(values[i])


def _without_values(value: Any) -> Any:
    return argument_like(value) if isinstance(value, np.ndarray) else value


def _wrap(out: tuple[Any, ...], node: Node | None) -> tuple[Tensor, ...]:
    return tuple(make(o, None if node is None else Port(node, i)) for i, o in enumerate(out))


def make(data: Any, node: Node | Port | None) -> Tensor:
    """A tensor for the output of a call; it requires gradients exactly where the call was recorded."""
    tensor = Tensor.__new__(Tensor)
    tensor.data = data
    tensor.grad = None
    tensor.node = node
    tensor.requires_grad = node is not None
    return tensor


def _failure(op: Op, values: list[Any], error: BaseException, path: str, site: Site | None) -> OpError:
    given = ", ".join(
        f"{name} {_summary(value)}" for name, value in zip(op.parameters, values, strict=True) if value is not None
    )
    return OpError(f"{describe(op.name, path, site)}: {error}; it was given {given}")


def _summary(value: Any) -> str:
    if is_array(value):
        return f"{value.dtype}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)) and any(map(is_array, value)):
        return f"({', '.join(map(_summary, value))})"
    return repr(value)


State.new_tape.append(Tape)
current().tape = Tape()
Op.record = staticmethod(record)


# -- modes


class no_grad(Setting):
    """Run the block without a tape (inference): nothing is saved, every value dies at its last use."""

    field = "tape"

    def value(self) -> None:
        """No tape."""


class detect_anomaly(Setting):
    """Check every output and every gradient in the block; the first NaN or infinity raises :class:`AnomalyError`.

    Besides, what is saved in the block is compared with its checksum when backward comes to it, so that a change of
    which the tape knows nothing (through ``.data``, say) raises :class:`TapeError`. Costs time and a byte an element.
    """

    field = "anomaly"
