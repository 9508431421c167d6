"""Recorded calls: what each keeps for backward, and where the gradients of its inputs go (notes, sections 3 and 4).

A :class:`Node` is one recorded call. It keeps what its op declared and nothing else, and is kept alive by the tensors
and nodes that come after it, so a result that is not used frees what it saved.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, Literal, Protocol

from memback.engine.arrays import Array, leaves
from memback.engine.changes import changes
from memback.engine.checksums import Seal
from memback.engine.errors import TapeError
from memback.engine.gradients import add
from memback.engine.op import Op, Saving
from memback.engine.packed import Packed
from memback.engine.site import Site, describe

__all__ = ["AnyTape", "Edge", "MultiNode", "Node", "Port", "Walk", "node_of"]

_numbers = count()


class Edge(Protocol):
    """Where a gradient goes: a call, one of a call's outputs (:class:`Port`), or a leaf tensor."""

    _is_leaf: bool
    _is_port: bool

    @property
    def grad(self) -> Any:
        """The gradient that has arrived so far, or None."""

    def accumulate(self, grads: list[Any], i: int) -> None:
        """Add grads[i] to the gradient, and have ``grads`` refer to it no more."""


class AnyTape(Protocol):
    """A tape, as far as its calls and observers know it."""

    retain: Literal["needed", "all"]
    variables: list[Any]

    def nodes(self) -> list[Node]:
        """The recorded calls that are still alive, in order."""

    def reruns(self, node: Node | None) -> bool:
        """Whether a call that was just made will be made again for its backward."""

    def backward(self, edge: Node | Port, seed: list[Any], retain_graph: bool) -> None:
        """Walk the graph in reverse from ``edge``."""

    def end_walk(self, began_here: bool) -> None:
        """Forget the calls that a walk has freed."""


class Walk:
    """A walk of a thread over the calls that it has claimed: no other thread may begin one over any of them meanwhile.

    Gradients of both would meet in the calls, and some be lost.
    """

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def end(self) -> None:
        """Release the calls to other walks."""
        self.thread = None


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
        tape: AnyTape,
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
            self.grad = add(mine, grad)

    def pull(self, state: Any, retain: bool) -> list[Any]:
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
            slots[index] = add(mine, grad)


def node_of(edge: Edge) -> Node:
    """The call that an edge belongs to, which is no leaf."""
    return edge.node if edge._is_port else edge  # type: ignore[attr-defined,return-value]
