"""Arrays that hold no memory: shape, dtype, strides and the identity of a root buffer, for a dry run.

A :class:`ShapeArray` answers NumPy's ``__array_ufunc__`` and ``__array_function__`` protocols, so that code written in
plain ``np.*`` runs on it unchanged. It counts the bytes that a real array would take, when it comes to life and when it
dies; CPython frees it exactly when it would free the real one. Where a rule of NumPy's decides a dtype or a memory
layout, NumPy itself is asked, on arrays of no or two elements a dimension, and the answer is remembered.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

from memback.errors import MembackError

__all__ = ["DryMemory", "NoValuesError", "ShapeArray", "dry_memory", "is_shape_array"]


class NoValuesError(MembackError, TypeError):
    """A dry run needed a value, or met a function that it does not know."""


class DryMemory:
    """Bytes of the live root buffers that a thread has made without memory, and their highest sum."""

    __slots__ = ("live", "peak")

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0

    def allocate(self, count: int) -> None:
        """``count`` bytes come to life."""
        self.live += count
        if self.live > self.peak:
            self.peak = self.live

    def free(self, count: int) -> None:
        """``count`` bytes die."""
        self.live -= count

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        self.peak = self.live


class _Local(threading.local):
    def __init__(self) -> None:
        self.memory = DryMemory()


_local = _Local()


def dry_memory() -> DryMemory:
    """The running thread's :class:`DryMemory`."""
    return _local.memory


def is_shape_array(value: object) -> bool:
    """Whether ``value`` is an array without memory."""
    return isinstance(value, ShapeArray)


class ShapeArray(NDArrayOperatorsMixin):
    """An array without memory.

    Args:
        shape: size along each dimension.
        dtype: element type, as NumPy takes it.
        strides: bytes between neighbours along each dimension; row-major by default.
        base: the array whose buffer this one is a view of, or None if it has one of its own.

    It has no values: what needs one (``if x > 0``, ``float(x)``, ``np.asarray(x)``, boolean masks) raises
    :class:`NoValuesError`.
    """

    __slots__ = ("__weakref__", "_memory", "base", "dtype", "nbytes", "shape", "size", "strides")

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float32",
        strides: tuple[int, ...] | None = None,
        base: ShapeArray | None = None,
    ) -> None:
        self.base = base
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize
        self.strides = row_major(self.shape, self.dtype.itemsize) if strides is None else strides
        if base is None:
            self._memory = _local.memory
            self._memory.allocate(self.nbytes)

    @classmethod
    def argument(cls, shape: int | Sequence[int], dtype: Any = "float32") -> ShapeArray:
        """An array that counts nowhere: it stands for memory that is there before the step."""
        array = cls.__new__(cls)
        array._memory = DryMemory()
        array.base = None
        array.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        array.dtype = np.dtype(dtype)
        array.size = math.prod(array.shape)
        array.nbytes = array.size * array.dtype.itemsize
        array.strides = row_major(array.shape, array.dtype.itemsize)
        return array

    def __del__(self) -> None:
        if self.base is None:
            self._memory.free(self.nbytes)

    # -- what an ndarray also has

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return int(self.dtype.itemsize)

    @property
    def T(self) -> ShapeArray:
        """The transpose, a view."""
        return self.transpose()

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie row by row without gaps."""
        return is_row_major(self.shape, self.strides, self.dtype.itemsize)

    def view_as(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> ShapeArray:
        """A view of the same buffer."""
        return ShapeArray(shape, self.dtype, strides, self if self.base is None else self.base)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an array without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[ShapeArray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"ShapeArray({self.shape}, {self.dtype.name!r})"

    # -- values, of which there are none

    def _no_value(self, what: str) -> NoValuesError:
        return NoValuesError(
            f"{what} needs the values of {self!r}, and on a dry run arrays have none. Take decisions on shapes and"
            " dtypes instead, or run on real arrays"
        )

    def __bool__(self) -> bool:
        raise self._no_value("a condition")

    def __float__(self) -> float:
        raise self._no_value("float()")

    def __int__(self) -> int:
        raise self._no_value("int()")

    def __index__(self) -> int:
        raise self._no_value("an index")

    def item(self, *_: Any) -> Any:
        """Raises: there is no value."""
        raise self._no_value(".item()")

    def tolist(self) -> Any:
        """Raises: there are no values."""
        raise self._no_value(".tolist()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self._no_value("making a real array (np.asarray, or a NumPy function that takes no substitute)")

    # -- indexing

    def __getitem__(self, index: Any) -> ShapeArray:
        items = index if isinstance(index, tuple) else (index,)
        if any(_is_advanced(item) for item in items):
            return _take_advanced(self, items)
        return _slice(self, items)

    def __setitem__(self, index: Any, value: Any) -> None:
        items = index if isinstance(index, tuple) else (index,)
        if any(_is_advanced(item) for item in items):
            with _uncounted():
                target = _take_advanced(self, items).shape
        else:
            target = _slice(self, items).shape
        if broadcast(shape_of(value), target) != target:
            raise ValueError(f"could not broadcast input of shape {shape_of(value)} into shape {target}")

    # -- methods

    def astype(self, dtype: Any, copy: bool = True, **_: Any) -> ShapeArray:
        """A copy of another type (itself where ``copy`` is False and the type is the same)."""
        dtype = np.dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        return like_operands((self,), self.shape, dtype)

    def copy(self, order: str = "C") -> ShapeArray:
        """A copy with a buffer of its own."""
        return ShapeArray(self.shape, self.dtype)

    def reshape(self, *shape: Any, **_: Any) -> ShapeArray:
        """A view where the layout allows one, else a copy, as in NumPy."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        return _reshape(self, wanted)

    def transpose(self, *axes: Any) -> ShapeArray:
        """A view with the dimensions in another order."""
        order = axes[0] if len(axes) == 1 and (axes[0] is None or isinstance(axes[0], (tuple, list))) else axes
        return _transpose(self, order or None)

    def swapaxes(self, a: int, b: int) -> ShapeArray:
        """A view with two dimensions exchanged."""
        return _swapaxes(self, a, b)

    def ravel(self, *_: Any) -> ShapeArray:
        """One dimension: a view where the layout allows one."""
        return _reshape(self, (-1,))

    def sum(self, *args: Any, **kwargs: Any) -> ShapeArray:
        """As ``np.sum``."""
        return np.sum(self, *args, **kwargs)

    def mean(self, *args: Any, **kwargs: Any) -> ShapeArray:
        """As ``np.mean``."""
        return np.mean(self, *args, **kwargs)

    def max(self, *args: Any, **kwargs: Any) -> ShapeArray:
        """As ``np.max``."""
        return np.max(self, *args, **kwargs)

    def fill(self, value: Any) -> None:
        """Sets every element; nothing to do."""

    # -- protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        out = kwargs.pop("out", None)
        if method == "__call__":
            if ufunc.signature is None:
                return _elementwise(ufunc, inputs, out, kwargs)
            if ufunc is np.matmul:
                return _matmul(inputs, out)
        elif method == "reduce":
            return _reduce(ufunc, inputs[0], out=None if out is None else out[0], **kwargs)
        elif method == "at":
            return None
        raise NoValuesError(f"np.{ufunc.__name__}.{method} is not supported on arrays without memory")

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        handler = _functions.get(func)
        if handler is None:
            raise NoValuesError(
                f"np.{func.__name__} is not supported on arrays without memory; memback.shape_array lists what is"
            )
        return handler(*args, **kwargs)


class _uncounted:
    """Leaves the peak alone: what is made in the block would not be made for real."""

    def __enter__(self) -> None:
        self._peak = _local.memory.peak

    def __exit__(self, *_: object) -> None:
        _local.memory.peak = self._peak


# -- shapes, strides and dtypes


def row_major(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides of an array whose rows lie one after the other."""
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def is_row_major(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> bool:
    """Whether an array's elements lie row by row without gaps (strides of dimensions of size 1 do not matter)."""
    step = itemsize
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        if n != 1:
            if stride != step:
                return n == 0
            step *= n
    return True


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of an array or of a number."""
    shape = getattr(value, "shape", None)
    return np.shape(value) if shape is None else shape


@lru_cache(maxsize=4096)
def _broadcast(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return np.broadcast_shapes(*shapes)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that these broadcast to."""
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    return _broadcast(shapes)


def _kind(value: Any) -> Any:
    """What decides about a result's dtype: an array's dtype; of a Python number only its type (it is weak)."""
    return value.dtype if hasattr(value, "dtype") else type(value)


def _sample(kind: Any) -> Any:
    return np.empty(0, kind) if isinstance(kind, np.dtype) else kind(1)


@lru_cache(maxsize=4096)
def _result_dtypes(ufunc: np.ufunc, kinds: tuple[Any, ...], dtype: Any) -> tuple[np.dtype[Any], ...]:
    kwargs = {} if dtype is None else {"dtype": dtype}
    results = ufunc(*map(_sample, kinds), **kwargs)
    return tuple(r.dtype for r in (results if isinstance(results, tuple) else (results,)))


def _miniature(array: Any, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the smallest array that is laid out like ``array`` in relation to others."""
    shape, strides = shape_of(array), getattr(array, "strides", ())
    ranks = {stride: 8 * 4**rank for rank, stride in enumerate(sorted({abs(s) for s in strides if s}))}
    small = tuple(min(n, 2) for n in shape)
    return small, tuple(ranks.get(abs(s), 0) for s in strides)


@lru_cache(maxsize=4096)
def _order(miniatures: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> tuple[int, ...]:
    """In which order NumPy lays out the dimensions of a new result of these operands, outermost first."""
    ground = np.zeros(8 * 4 ** max((len(s) for s, _ in miniatures), default=0) + 8, np.uint8)
    operands = [as_strided(ground[:1], s, t) for s, t in miniatures]
    flags: Any = [["readonly"]] * len(operands) + [["writeonly", "allocate"]]
    everything: Any = [*operands, None]
    iterator = np.nditer(everything, flags=["external_loop", "refs_ok", "zerosize_ok"], op_flags=flags)
    made = iterator.operands[-1]
    return tuple(sorted(range(made.ndim), key=lambda d: -abs(made.strides[d]) if made.shape[d] != 1 else -math.inf))


def like_operands(operands: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShapeArray:
    """A new array of ``shape``, laid out as NumPy lays out the result of an elementwise function of ``operands``."""
    if all(map(_is_plain, operands)):
        return ShapeArray(shape, dtype)
    arrays = [o for o in operands if shape_of(o)]
    order = _order(tuple(_miniature(o, len(shape)) for o in arrays))
    return ShapeArray(shape, dtype, _strides_in_order(shape, order, dtype.itemsize))


def _is_plain(operand: Any) -> bool:
    if isinstance(operand, ShapeArray):
        return operand.contiguous
    return not isinstance(operand, np.ndarray) or operand.flags.c_contiguous


def _strides_in_order(shape: tuple[int, ...], order: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [0] * len(shape)
    step = itemsize
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


# -- universal functions


def _elementwise(ufunc: np.ufunc, inputs: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
    shape = broadcast(*[shape_of(x) for x in inputs])
    dtypes = _result_dtypes(ufunc, tuple(map(_kind, inputs)), kwargs.get("dtype"))
    if out is not None:
        for target, dtype in zip(out, dtypes, strict=True):
            if target is not None:
                _check_out(ufunc.__name__, target, shape, dtype)
        if all(target is not None for target in out):
            return out[0] if len(out) == 1 else out
    results = tuple(
        like_operands(inputs, shape, dtype) if out is None or out[i] is None else out[i]
        for i, dtype in enumerate(dtypes)
    )
    return results[0] if len(results) == 1 else results


def _check_out(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if broadcast(out.shape, shape) != out.shape:
        raise ValueError(f"np.{name}: out has shape {out.shape}, the result {shape}")
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"np.{name}: a result of type {dtype} can't be cast to out's {out.dtype}")


def _matmul(inputs: tuple[Any, ...], out: Any) -> Any:
    a, b = inputs
    a_shape, b_shape = shape_of(a), shape_of(b)
    if not a_shape or not b_shape:
        raise ValueError("matmul: an operand has no dimension")
    left = (1, *a_shape) if len(a_shape) == 1 else a_shape
    right = (*b_shape, 1) if len(b_shape) == 1 else b_shape
    if left[-1] != right[-2]:
        raise ValueError(f"matmul: shapes {a_shape} and {b_shape} do not fit: {left[-1]} columns, {right[-2]} rows")
    batch = broadcast(left[:-2], right[:-2])
    rows = () if len(a_shape) == 1 else (left[-2],)
    columns = () if len(b_shape) == 1 else (right[-1],)
    shape = (*batch, *rows, *columns)
    (dtype,) = _result_dtypes(np.matmul, (_kind(a), _kind(b)), None)
    # NumPy converts whole operands, not a piece at a time as in elementwise functions
    converted = [ShapeArray(shape_of(x), dtype) for x in (a, b) if _kind(x) != dtype]
    if out is not None and out[0] is not None:
        _check_out("matmul", out[0], shape, dtype)
        return out[0]
    made = ShapeArray(shape, dtype)
    del converted
    return made


def _axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of bounds for an array of {ndim} dimensions")
    return tuple(a % ndim for a in axes)


def _reduced(shape: tuple[int, ...], axis: Any, keepdims: Any) -> tuple[int, ...]:
    axes = _axes(axis, len(shape))
    if keepdims is True:  # NumPy passes on a marker where the caller gave nothing
        return tuple(1 if d in axes else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in axes)


@lru_cache(maxsize=1024)
def _reduced_dtype(ufunc: np.ufunc, kind: Any, dtype: Any) -> np.dtype[Any]:
    sample = np.ones((1, 1), kind)
    return np.asarray(ufunc.reduce(sample, axis=0, dtype=dtype)).dtype


def _reduce(
    ufunc: np.ufunc, x: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False, **_: Any
) -> Any:
    shape = _reduced(x.shape, axis, keepdims)
    result = np.dtype(dtype) if dtype is not None else _reduced_dtype(ufunc, x.dtype, None)
    if out is not None:
        _check_out(ufunc.__name__, out, shape, result)
        return out
    return ShapeArray(shape, result)


# -- functions of the array module

_functions: dict[Callable[..., Any], Callable[..., Any]] = {}


def _implements(*functions: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            _functions[function] = handler
        return handler

    return register


def _reduction(ufunc: np.ufunc) -> Callable[..., Any]:
    def handler(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
        return _reduce(ufunc, a, axis, dtype, out, keepdims)

    return handler


_functions[np.sum] = _reduction(np.add)
_functions[np.prod] = _reduction(np.multiply)


def _extremum(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
    return _reduce(np.maximum, a, axis, None, out, keepdims)


_functions[np.max] = _functions[np.amax] = _functions[np.min] = _functions[np.amin] = _extremum


def _truth(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
    return _reduce(np.logical_or, a, axis, np.dtype(bool), out, keepdims)


_functions[np.any] = _functions[np.all] = _truth


@_implements(np.mean)
def _mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
    result = np.dtype(dtype) if dtype is not None else (a.dtype if a.dtype.kind not in "iub" else np.dtype(float))
    return _reduce(np.add, a, axis, result, out, keepdims)


@_implements(np.var, np.std)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, **_: Any
) -> Any:
    mean = _mean(a, axis, dtype, None, True)
    deviations = _elementwise(np.subtract, (a, mean), None, {})  # NumPy makes these, and squares them in place
    return _reduce(np.add, deviations, axis, mean.dtype, out, keepdims)


@_implements(np.argmax, np.argmin)
def _argmax(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
    if out is not None:
        return out
    return ShapeArray(_reduced(a.shape, axis, keepdims), np.intp)


@_implements(np.cumsum, np.cumprod)
def _cumulate(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    if out is not None:
        return out
    shape = (a.size,) if axis is None else a.shape
    return ShapeArray(shape, dtype or _reduced_dtype(np.add, a.dtype, None))


@_implements(np.sort)
def _sort(a: Any, *_: Any, **__: Any) -> Any:
    return ShapeArray(a.shape, a.dtype)


@_implements(np.argsort)
def _argsort(a: Any, *_: Any, **__: Any) -> Any:
    return ShapeArray(a.shape, np.intp)


@_implements(np.empty_like, np.zeros_like, np.ones_like)
def _new_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **_: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if shape is None:
        return like_operands((a,), shape_of(a), dtype) if order == "K" else ShapeArray(a.shape, dtype)
    return ShapeArray(shape, dtype)


@_implements(np.full_like)
def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **_: Any
) -> Any:
    return _new_like(a, dtype, order, subok, shape)


@_implements(np.copy)
def _copy(a: Any, order: str = "K", **_: Any) -> Any:
    return like_operands((a,), a.shape, a.dtype) if order == "K" else ShapeArray(a.shape, a.dtype)


@_implements(np.ascontiguousarray)
def _ascontiguousarray(a: Any, dtype: Any = None, **_: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    return a if a.contiguous and dtype == a.dtype else ShapeArray(a.shape, dtype)


@_implements(np.arange)
def _arange(*args: Any, dtype: Any = None, **_: Any) -> Any:
    return np.arange(*args, dtype=dtype)  # a vector of positions is small, and its values may be needed


@_implements(np.copyto)
def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    _check_out("copyto", dst, shape_of(src), getattr(src, "dtype", dst.dtype))


@_implements(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if len(choices) != 2:
        raise NoValuesError("np.where with one argument needs values; on a dry run arrays have none")
    dtype = np.result_type(*[c.dtype if hasattr(c, "dtype") else c for c in choices])
    return like_operands((condition, *choices), broadcast(*map(shape_of, (condition, *choices))), dtype)


@_implements(np.result_type)
def _result_type(*values: Any) -> Any:
    return np.result_type(*[v.dtype if isinstance(v, ShapeArray) else v for v in values])


@_implements(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **_: Any) -> Any:
    return like_operands((a,), a.shape, a.dtype) if out is None else out


@_implements(np.shape)
def _shape(a: Any) -> Any:
    return a.shape


@_implements(np.ndim)
def _ndim(a: Any) -> Any:
    return len(a.shape)


@_implements(np.size)
def _size(a: Any, axis: Any = None) -> Any:
    return a.size if axis is None else a.shape[axis]


@_implements(np.shares_memory, np.may_share_memory)
def _shares(a: Any, b: Any, *_: Any) -> bool:
    return (getattr(a, "base", None) or a) is (getattr(b, "base", None) or b)


# -- shapes


@_implements(np.reshape)
def _reshape(a: Any, shape: Any = None, order: str = "C", **_: Any) -> Any:
    shape = (shape,) if isinstance(shape, (int, np.integer)) else tuple(int(n) for n in shape)
    if shape.count(-1) == 1:
        rest = -math.prod(shape)
        if rest == 0 or a.size % rest:
            raise ValueError(f"cannot reshape array of size {a.size} into shape {shape}")
        shape = tuple(a.size // rest if n == -1 else n for n in shape)
    if math.prod(shape) != a.size:
        raise ValueError(f"cannot reshape array of size {a.size} into shape {shape}")
    if a.contiguous:
        return a.view_as(shape, row_major(shape, a.itemsize))
    strides = _strides_without_copy(a.shape, a.strides, shape, a.itemsize)
    return ShapeArray(shape, a.dtype) if strides is None else a.view_as(shape, strides)


def _strides_without_copy(
    shape: tuple[int, ...], strides: tuple[int, ...], new: tuple[int, ...], itemsize: int
) -> tuple[int, ...] | None:
    """Strides of the reshaped view, or None where NumPy has to copy: it is asked, on memory that is never touched."""
    dummy = as_strided(np.ndarray((), np.void(itemsize).dtype, buffer=_untouched()), shape, strides)
    try:
        return np.reshape(dummy, new, copy=False).strides
    except ValueError:
        return None


@lru_cache(maxsize=1)
def _untouched() -> bytes:
    return bytes(64)


@_implements(np.ravel)
def _ravel(a: Any, order: str = "C") -> Any:
    return _reshape(a, (-1,))


@_implements(np.transpose, np.permute_dims)
def _transpose(a: Any, axes: Any = None) -> Any:
    order = tuple(reversed(range(a.ndim))) if axes is None else _axes(tuple(axes), a.ndim)
    if sorted(order) != list(range(a.ndim)):
        raise ValueError(f"axes {axes} are no permutation of an array's {a.ndim} dimensions")
    return a.view_as(tuple(a.shape[d] for d in order), tuple(a.strides[d] for d in order))


@_implements(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    order = list(range(a.ndim))
    i, j = _axes((axis1, axis2), a.ndim)
    order[i], order[j] = order[j], order[i]
    return _transpose(a, order)


@_implements(np.moveaxis)
def _moveaxis(a: Any, source: Any, destination: Any) -> Any:
    sources, destinations = _axes(source, a.ndim), _axes(destination, a.ndim)
    order = [d for d in range(a.ndim) if d not in sources]
    for place, d in sorted(zip(destinations, sources, strict=True)):
        order.insert(place, d)
    return _transpose(a, order)


@_implements(np.expand_dims)
def _expand_dims(a: Any, axis: Any) -> Any:
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = _axes(tuple(axes), a.ndim + len(axes))
    rest = iter(range(a.ndim))
    picked = [None if d in axes else next(rest) for d in range(a.ndim + len(axes))]
    return a.view_as(
        tuple(1 if d is None else a.shape[d] for d in picked), tuple(0 if d is None else a.strides[d] for d in picked)
    )


@_implements(np.squeeze)
def _squeeze(a: Any, axis: Any = None) -> Any:
    axes = [d for d, n in enumerate(a.shape) if n == 1] if axis is None else _axes(axis, a.ndim)
    if any(a.shape[d] != 1 for d in axes):
        raise ValueError(f"cannot squeeze axis {axis} of shape {a.shape}: its size is not one")
    rest = [d for d in range(a.ndim) if d not in axes]
    return a.view_as(tuple(a.shape[d] for d in rest), tuple(a.strides[d] for d in rest))


@_implements(np.broadcast_to)
def _broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if broadcast(array.shape, shape) != shape:
        raise ValueError(f"cannot broadcast shape {array.shape} to {shape}")
    lead = len(shape) - array.ndim
    strides = (0,) * lead + tuple(
        s if n == m else 0 for n, m, s in zip(array.shape, shape[lead:], array.strides, strict=True)
    )
    return array.view_as(shape, strides)


@_implements(np.flip)
def _flip(m: Any, axis: Any = None) -> Any:
    axes = _axes(axis, m.ndim)
    return m.view_as(m.shape, tuple(-s if d in axes else s for d, s in enumerate(m.strides)))


@_implements(np.lib.stride_tricks.sliding_window_view)
def _sliding_window_view(x: Any, window_shape: Any, axis: Any = None, **_: Any) -> Any:
    windows = (window_shape,) if isinstance(window_shape, int) else tuple(window_shape)
    axes = _axes(axis, x.ndim)
    shape = list(x.shape)
    for d, n in zip(axes, windows, strict=True):
        shape[d] -= n - 1
    return x.view_as((*shape, *windows), (*x.strides, *(x.strides[d] for d in axes)))


@_implements(np.concatenate)
def _concatenate(arrays: Any, axis: int | None = 0, out: Any = None, dtype: Any = None, **_: Any) -> Any:
    arrays = list(arrays)
    (d,) = _axes(axis, len(shape_of(arrays[0])))
    first = shape_of(arrays[0])
    for array in arrays[1:]:
        other = shape_of(array)
        if len(other) != len(first) or any(n != m for i, (n, m) in enumerate(zip(first, other, strict=True)) if i != d):
            raise ValueError(f"cannot concatenate shapes {first} and {other} along axis {d}")
    shape = (*first[:d], sum(shape_of(a)[d] for a in arrays), *first[d + 1 :])
    dtype = np.result_type(*[a.dtype for a in arrays]) if dtype is None else np.dtype(dtype)
    return ShapeArray(shape, dtype) if out is None else out


@_implements(np.stack)
def _stack(arrays: Any, axis: int = 0, out: Any = None, **_: Any) -> Any:
    arrays = list(arrays)
    first = shape_of(arrays[0])
    if any(shape_of(a) != first for a in arrays):
        raise ValueError(f"cannot stack arrays of different shapes {sorted({shape_of(a) for a in arrays})}")
    (d,) = _axes(axis, len(first) + 1)
    dtype = np.result_type(*[a.dtype for a in arrays])
    return ShapeArray((*first[:d], len(arrays), *first[d:]), dtype) if out is None else out


@_implements(np.split, np.array_split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    (d,) = _axes(axis, ary.ndim)
    n = ary.shape[d]
    if isinstance(indices_or_sections, int):
        step, rest = divmod(n, indices_or_sections)
        if rest:
            raise ValueError(f"cannot split {n} into {indices_or_sections} equal parts")
        cuts = list(range(step, n, step))
    else:
        cuts = [int(i) for i in indices_or_sections]
    edges = [0, *cuts, n]
    return [ary[(slice(None),) * d + (slice(a, b),)] for a, b in pairwise(edges)]


@_implements(np.tile)
def _tile(A: Any, reps: Any) -> Any:
    reps = (reps,) if isinstance(reps, int) else tuple(reps)
    ndim = max(len(reps), A.ndim)
    reps, shape = (1,) * (ndim - len(reps)) + reps, (1,) * (ndim - A.ndim) + A.shape
    return ShapeArray(tuple(n * r for n, r in zip(shape, reps, strict=True)), A.dtype)


@_implements(np.repeat)
def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    if not isinstance(repeats, int):
        raise NoValuesError("np.repeat with a count for each element needs values; on a dry run arrays have none")
    if axis is None:
        return ShapeArray((a.size * repeats,), a.dtype)
    (d,) = _axes(axis, a.ndim)
    return ShapeArray((*a.shape[:d], a.shape[d] * repeats, *a.shape[d + 1 :]), a.dtype)


@_implements(np.pad)
def _pad(array: Any, pad_width: Any, mode: str = "constant", **_: Any) -> Any:
    widths = np.broadcast_to(np.asarray(pad_width), (array.ndim, 2)).tolist()
    return ShapeArray(tuple(n + a + b for n, (a, b) in zip(array.shape, widths, strict=True)), array.dtype)


@_implements(np.tril, np.triu)
def _triangle(m: Any, k: int = 0) -> Any:
    mask = ShapeArray(m.shape[-2:], bool)  # NumPy makes this mask, then selects by it
    return ShapeArray(broadcast(m.shape, mask.shape), m.dtype)


@_implements(np.diagonal)
def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    i, j = _axes((axis1, axis2), a.ndim)
    n = max(min(a.shape[i] + min(offset, 0), a.shape[j] - max(offset, 0)), 0)
    rest = [d for d in range(a.ndim) if d not in (i, j)]
    return a.view_as((*(a.shape[d] for d in rest), n), (*(a.strides[d] for d in rest), a.strides[i] + a.strides[j]))


@_implements(np.packbits)
def _packbits(a: Any, axis: Any = None, bitorder: str = "big") -> Any:
    if axis is None:
        return ShapeArray((-(-a.size // 8),), np.uint8)
    (d,) = _axes(axis, a.ndim)
    return ShapeArray((*a.shape[:d], -(-a.shape[d] // 8), *a.shape[d + 1 :]), np.uint8)


@_implements(np.unpackbits)
def _unpackbits(a: Any, axis: Any = None, count: Any = None, bitorder: str = "big") -> Any:
    if axis is None:
        return ShapeArray((a.size * 8 if count is None else count,), np.uint8)
    (d,) = _axes(axis, a.ndim)
    return ShapeArray((*a.shape[:d], a.shape[d] * 8 if count is None else count, *a.shape[d + 1 :]), np.uint8)


# -- picking elements


def _is_advanced(item: Any) -> bool:
    return isinstance(item, (ShapeArray, np.ndarray, list)) and shape_of(item) is not None


@_implements(np.take)
def _take(a: Any, indices: Any, axis: Any = None, out: Any = None, mode: str = "raise") -> Any:
    _convert_index(indices)
    shape = shape_of(indices)
    if axis is not None:
        (d,) = _axes(axis, a.ndim)
        shape = (*a.shape[:d], *shape, *a.shape[d + 1 :])
    return ShapeArray(shape, a.dtype) if out is None else out


@_implements(np.take_along_axis)
def _take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Any:
    converted = _convert_index(indices)
    (d,) = _axes(axis, len(arr.shape))
    shape = broadcast(tuple(1 if i == d else n for i, n in enumerate(arr.shape)), shape_of(indices))
    result = ShapeArray(shape, arr.dtype)
    del converted
    return result


@_implements(np.put_along_axis)
def _put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    _convert_index(indices)


def _convert_index(index: Any) -> Any:
    """NumPy converts an integer index to its own pointer-sized type first, which takes memory for a moment."""
    dtype = getattr(index, "dtype", None)
    return None if dtype is None or dtype == np.intp else ShapeArray(shape_of(index), np.intp)


def _expand_ellipsis(ndim: int, items: tuple[Any, ...]) -> tuple[Any, ...]:
    used = sum(1 for item in items if item is not None and item is not Ellipsis)
    if used > ndim:
        raise IndexError(f"too many indices: {used} for an array of {ndim} dimensions")
    fill = (slice(None),) * (ndim - used)
    for i, item in enumerate(items):
        if item is Ellipsis:
            return items[:i] + fill + items[i + 1 :]
    return items + fill


def _slice(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    shape, strides, d = [], [], 0
    for item in _expand_ellipsis(a.ndim, items):
        if item is None:
            shape.append(1)
            strides.append(0)
            continue
        if isinstance(item, slice):
            start, stop, step = item.indices(a.shape[d])
            shape.append(len(range(start, stop, step)))
            strides.append(a.strides[d] * step)
        else:
            i = int(item)
            if not -a.shape[d] <= i < a.shape[d]:
                raise IndexError(f"index {i} is out of bounds for dimension {d} of size {a.shape[d]}")
        d += 1
    return a.view_as(tuple(shape), tuple(strides))


def _take_advanced(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    items = _expand_ellipsis(a.ndim, items)
    arrays = [item if _is_advanced(item) else None for item in items]
    for item in items:
        if _is_advanced(item) and np.dtype(_kind_of_index(item)) == bool:
            raise NoValuesError("a boolean mask selects by value; on a dry run arrays have none. Use np.where")
    converted = [_convert_index(item) for item in arrays if item is not None]
    # integers beside arrays are arrays of no dimensions, as in NumPy
    places = [i for i, item in enumerate(items) if item is not None and not isinstance(item, slice)]
    picked = broadcast(*[shape_of(items[i]) for i in places])
    plain: list[Any] = [slice(None) if i in places else item for i, item in enumerate(items)]
    rest = _slice(a, tuple(plain)).shape
    kept = [n for i, n in enumerate(rest) if i not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    before = places[0] if adjacent else 0
    result = ShapeArray((*kept[:before], *picked, *kept[before:]), a.dtype)
    del converted
    return result


def _kind_of_index(item: Any) -> Any:
    return item.dtype if hasattr(item, "dtype") else np.asarray(item).dtype
