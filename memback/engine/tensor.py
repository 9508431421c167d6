"""Tensors: arrays that ops are recorded on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from memback.engine.arrays import Array, is_array, is_floating, without_values
from memback.engine.changes import changes
from memback.engine.errors import TapeError
from memback.engine.gradients import SOLE, add
from memback.engine.node import Node, Port, node_of
from memback.engine.site import call_site, short_path
from memback.engine.state import current

__all__ = ["Tensor", "TensorOperators", "make"]

_accumulating = threading.RLock()  # two threads may add to one leaf


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
        if requires_grad and not is_floating(self.data.dtype):
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
        dry = current().dry
        function(self.data if dry is None else without_values(self.data, dry))
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
                # an array with other references would change under them when this one is added to
                if grad.shape == ():
                    grad = np.array(grad) if isinstance(grad, np.generic) else grad
                self.grad = grad if sys.getrefcount(grad) == SOLE and grad.base is None else grad.copy()
            else:
                mine = [self.grad]
                self.grad = None
                self.grad = add(mine, grad)

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


def make(data: Any, node: Node | Port | None) -> Tensor:
    """A tensor for the output of a call; it requires gradients exactly where the call was recorded."""
    tensor = Tensor.__new__(Tensor)
    tensor.data = data
    tensor.grad = None
    tensor.node = node
    tensor.requires_grad = node is not None
    return tensor
