"""Arrays that hold no memory: shape, dtype, strides and the identity of a root buffer, for a dry run.

A :class:`ShapeArray` answers NumPy's ``__array_ufunc__`` and ``__array_function__`` protocols, so that code written in
plain ``np.*`` runs on it unchanged. It counts the bytes that a real array would take, when it comes to life and when it
dies; CPython frees it exactly when it would free the real one. Where a rule of NumPy's decides a dtype or a memory
layout, NumPy itself is asked, on arrays of no or two elements a dimension, and the answer is remembered.
"""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.lib.stride_tricks import as_strided

from memback.engine.arrays import DryArray, forgotten, is_row_major, root
from memback.errors import MembackError, UsageError, shorten

__all__ = [
    "DryMemory",
    "NoValuesError",
    "ShapeArray",
    "UnsupportedError",
    "argument_like",
    "dry_memory",
    "fresh_dry_memory",
    "is_shape_array",
]


class NoValuesError(MembackError, TypeError):
    """A dry run needed a value, or met a function that it does not know."""


class UnsupportedError(NoValuesError, AttributeError):
    """An attribute that real arrays have, and arrays without memory have not."""


_MOST = 2**60
"""Bytes at once: more than any memory has, and few enough for sums of some in 64 bits."""

_MOST_OF_ONE = 2**56


def _too_large(what: str, size: int) -> UsageError:
    return UsageError(
        f"{what} would take {shorten(f'{size:,}', 60)} B, more than any memory has: make the sizes smaller"
    )


class _Buffer(weakref.ref[Any]):
    """A root buffer, by weak reference, and its bytes."""

    __slots__ = ("nbytes",)

    nbytes: int


class DryMemory:
    """Bytes of the live root buffers that a thread has made without memory, and their highest sum.

    A buffer that dies is put into a list by the interpreter itself, and counted when anybody looks next: an interrupt
    (Ctrl-C) in a function of Python's that is called then would be printed and lost.
    """

    __slots__ = ("_buffers", "_dead", "_live", "peak")

    def __init__(self) -> None:
        self._live = 0
        self._buffers: dict[int, _Buffer] = {}
        self._dead: list[_Buffer] = []
        self.peak = 0

    @property
    def live(self) -> int:
        """Bytes that are live now."""
        if self._dead:
            self._count_dead()
        return self._live

    def _count_dead(self) -> None:
        while self._dead:
            buffer = self._dead.pop()
            del self._buffers[id(buffer)]
            self._live -= buffer.nbytes

    def hold(self, array: ShapeArray) -> None:
        """A root buffer comes to life, and is counted until it dies."""
        buffer = _Buffer(array, self._dead.append)
        buffer.nbytes = array.nbytes
        self._buffers[id(buffer)] = buffer
        self.allocate(array.nbytes)

    def allocate(self, count: int) -> None:
        """``count`` bytes come to life."""
        if self._dead:
            self._count_dead()
        live = self._live = self._live + count
        if live > self.peak:
            if live > _MOST:
                raise _too_large("all arrays together", live)
            self.peak = live

    def free(self, count: int) -> None:
        """``count`` bytes die that were allocated alone."""
        self._live -= count

    def reset_peak(self) -> None:
        """Count the peak from now on."""
        self.peak = self.live


_METHODS = frozenset({"all", "any", "argmax", "argmin", "clip", "cumprod", "cumsum", "diagonal", "max", "mean", "min"})
_METHODS |= {"prod", "repeat", "squeeze", "std", "sum", "take", "var"}


class _Local(threading.local):
    def __init__(self) -> None:
        self.memory = DryMemory()


_local = _Local()


def dry_memory() -> DryMemory:
    """The running thread's :class:`DryMemory`."""
    return _local.memory


class fresh_dry_memory:
    """In the block the thread counts from nothing: what was made before it, and dies in it, is no part of the count."""

    def __init__(self) -> None:
        self._before: list[DryMemory] = []

    def __enter__(self) -> DryMemory:
        self._before.append(_local.memory)
        _local.memory = DryMemory()
        return _local.memory

    def __exit__(self, *_: object) -> None:
        _local.memory = self._before.pop()


_arguments: dict[int, tuple[weakref.ref[Any], ShapeArray]] = {}


def is_shape_array(value: object) -> bool:
    """Whether ``value`` is an array without memory."""
    return isinstance(value, ShapeArray)


class ShapeArray(DryArray, NDArrayOperatorsMixin):
    """An array without memory.

    Args:
        shape: size along each dimension.
        dtype: element type, as NumPy takes it.
        strides: bytes between neighbours along each dimension; row-major by default.
        base: the array whose buffer this one is a view of, or None if it has one of its own.

    It has no values: what needs one (``if x > 0``, ``float(x)``, ``np.asarray(x)``, boolean masks) raises
    :class:`NoValuesError`.
    """

    __slots__ = (
        "__weakref__",
        "base",
        "contiguous",
        "dtype",
        "nbytes",
        "shape",
        "size",
        "strides",
        "writeable",
    )

    def __init__(
        self,
        shape: int | Sequence[int],
        dtype: Any = "float32",
        strides: tuple[int, ...] | None = None,
        base: ShapeArray | None = None,
    ) -> None:
        self._describe(shape, dtype)
        self._lay_out(strides)
        self.base = base
        if base is None:
            _local.memory.hold(self)

    def _describe(self, shape: int | Sequence[int], dtype: Any) -> None:
        self.shape = (shape,) if isinstance(shape, int) else tuple(shape)
        self.dtype = np.dtype(dtype)
        self.strides, self.size = _rows(self.shape, self.dtype.itemsize)
        self.nbytes = self.size * self.dtype.itemsize
        self.contiguous = self.writeable = True
        if self.nbytes > _MOST_OF_ONE:
            raise _too_large(f"an array of shape {shorten(self.shape)}", self.nbytes)

    def _lay_out(self, strides: tuple[int, ...] | None) -> None:
        if strides is not None:
            self.strides = strides
            self.contiguous = is_row_major(self.shape, strides, self.dtype.itemsize)

    @classmethod
    def argument(
        cls, shape: int | Sequence[int], dtype: Any = "float32", strides: tuple[int, ...] | None = None
    ) -> ShapeArray:
        """An array that counts nowhere: it stands for memory that is there before the step."""
        array = cls.__new__(cls)
        array._describe(shape, dtype)
        array._lay_out(strides)
        array.base = None
        return array

    @classmethod
    def argument_like(cls, array: Any) -> ShapeArray:
        """What stands on a dry run for an array that was there before the step: laid out as it is, in a like buffer.

        Views of one buffer are views of one buffer here, too; each time the array is met it is the same.
        """
        if isinstance(array, ShapeArray):
            return array
        buffer = root(array)
        key, arguments = id(buffer), _arguments
        if key not in arguments:
            gone = weakref.ref(buffer, forgotten(arguments, key))
            arguments[key] = gone, cls.argument(buffer.shape, buffer.dtype, buffer.strides)
        like = arguments[key][1]
        return like if array is buffer else cls(array.shape, array.dtype, array.strides, like)

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

    def view_as(self, shape: tuple[int, ...], strides: tuple[int, ...]) -> ShapeArray:
        """A view of the same buffer."""
        view = ShapeArray(shape, self.dtype, strides, self if self.base is None else self.base)
        view.writeable = self.writeable
        return view

    def read_only(self) -> ShapeArray:
        """The array itself, which NumPy does not let be changed from now on."""
        self.writeable = False
        return self

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

    def __complex__(self) -> complex:
        raise self._no_value("complex()")

    def __contains__(self, value: object) -> bool:
        raise self._no_value("`in`")

    def __format__(self, spec: str) -> str:
        if spec:
            raise self._no_value("formatting")
        return repr(self)

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
        view = _slice(self, items)
        # by numbers alone NumPy gives a number, which an op makes an array of its own of
        return view if view.shape or _has_a_gap(items) else ShapeArray((), self.dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        if not self.writeable:
            raise ValueError("assignment destination is read-only")
        items = index if isinstance(index, tuple) else (index,)
        if any(_is_advanced(item) for item in items):
            target = _picked(self, items).shape
            _take_index_buffers(items)
        else:
            target = _slice(self, items).shape
        if broadcast(shape_of(value), target) != target:
            raise ValueError(f"could not broadcast input of shape {shape_of(value)} into shape {target}")

    # -- methods

    def astype(
        self, dtype: Any, order: str = "K", casting: str = "unsafe", subok: bool = True, copy: bool = True
    ) -> ShapeArray:
        """A copy of another type (itself where ``copy`` is False and the type is the same)."""
        dtype = np.dtype(dtype)
        if not copy and dtype == self.dtype:
            return self
        return _copy_of(self, dtype, order)

    def copy(self, order: str = "C") -> ShapeArray:
        """A copy with a buffer of its own."""
        return _copy_of(self, None, order)

    def flatten(self, order: str = "C") -> ShapeArray:
        """One dimension, in a buffer of its own."""
        return ShapeArray((self.size,), self.dtype)

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

    def ravel(self, order: str = "C") -> ShapeArray:
        """One dimension: a view where the layout allows one."""
        return _ravel(self, order)

    if TYPE_CHECKING:

        def all(self, *args: Any, **kwargs: Any) -> Any: ...
        def any(self, *args: Any, **kwargs: Any) -> Any: ...
        def argmax(self, *args: Any, **kwargs: Any) -> Any: ...
        def argmin(self, *args: Any, **kwargs: Any) -> Any: ...
        def clip(self, *args: Any, **kwargs: Any) -> Any: ...
        def cumprod(self, *args: Any, **kwargs: Any) -> Any: ...
        def cumsum(self, *args: Any, **kwargs: Any) -> Any: ...
        def diagonal(self, *args: Any, **kwargs: Any) -> Any: ...
        def max(self, *args: Any, **kwargs: Any) -> Any: ...
        def mean(self, *args: Any, **kwargs: Any) -> Any: ...
        def min(self, *args: Any, **kwargs: Any) -> Any: ...
        def prod(self, *args: Any, **kwargs: Any) -> Any: ...
        def repeat(self, *args: Any, **kwargs: Any) -> Any: ...
        def squeeze(self, *args: Any, **kwargs: Any) -> Any: ...
        def std(self, *args: Any, **kwargs: Any) -> Any: ...
        def sum(self, *args: Any, **kwargs: Any) -> Any: ...
        def take(self, *args: Any, **kwargs: Any) -> Any: ...
        def var(self, *args: Any, **kwargs: Any) -> Any: ...

    def __getattr__(self, name: str) -> Any:
        """Methods that are functions of the same name; for what else an array has, a clear refusal."""
        function = _functions.get(getattr(np, name)) if name in _METHODS else None
        if function is not None:
            return partial(function, self)
        if hasattr(np.ndarray, name) and not name.startswith("__"):
            raise UnsupportedError(f"ndarray.{name} is not supported on arrays without memory")
        raise AttributeError(f"'ShapeArray' object has no attribute {name!r}")

    def fill(self, value: Any) -> None:
        """Sets every element; nothing to do."""

    # -- protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        for value in inputs:
            if value.__class__ is not ShapeArray and _is_foreign(value.__class__):
                return NotImplemented
        out = kwargs.pop("out", None)
        if method == "__call__":
            if ufunc.signature is None:
                return _elementwise(ufunc, inputs, out, kwargs)
            if ufunc is np.matmul:
                return _matmul(inputs, out)
            if ufunc is np.vecdot:
                return _vecdot(inputs, out, **kwargs)
        elif method == "reduce":
            return _reduce(ufunc, inputs[0], out=None if out is None else out[0], **kwargs)
        elif method == "at":
            return inputs[0].__setitem__(inputs[1], inputs[2] if len(inputs) > 2 else 0)
        raise NoValuesError(f"np.{ufunc.__name__}.{method} is not supported on arrays without memory")

    def __array_function__(self, func: Callable[..., Any], types: Any, args: Any, kwargs: Any) -> Any:
        if any(map(_is_foreign, types)):
            return NotImplemented
        handler = _functions.get(func)
        if handler is None:
            raise NoValuesError(f"{_name_of(func)} is not supported on arrays without memory")
        return handler(*args, **kwargs)


argument_like = ShapeArray.argument_like


@lru_cache(maxsize=256)
def _is_foreign(kind: type) -> bool:
    """Whether values of a class have a way of their own to take part in NumPy's functions, as Tensors have."""
    own = getattr(kind, "__array_ufunc__", np.ndarray.__array_ufunc__)
    return own is not np.ndarray.__array_ufunc__ and not issubclass(kind, ShapeArray)


def _name_of(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "numpy").partition(".")[2]
    return f"np.{module}.{function.__name__}" if module in ("linalg", "fft") else f"np.{function.__name__}"


# -- shapes, strides and dtypes


@lru_cache(maxsize=8192)
def _rows(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], int]:
    """Strides of an array whose rows lie one after the other, and its size."""
    if any(n < 0 for n in shape):
        raise ValueError(f"negative dimensions are not allowed: {shape}")
    strides, step = [], itemsize
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides)), math.prod(shape)


def row_major(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of an array whose rows lie one after the other."""
    return _rows(shape, itemsize)[0]


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


class _Loop(NamedTuple):
    """The types in which a universal function works on operands of given types."""

    inputs: tuple[np.dtype[Any], ...]
    outputs: tuple[np.dtype[Any], ...]
    converts: bool
    """Whether an input is of another type."""


@lru_cache(maxsize=4096)
def _loop(ufunc: np.ufunc, kinds: tuple[Any, ...], dtype: Any = None) -> _Loop:
    operands = tuple(np.dtype(bool) if kind is bool else kind for kind in kinds)
    asked: Any = {} if dtype is None else {"signature": (None,) * ufunc.nin + (np.dtype(dtype),) * ufunc.nout}
    found = ufunc.resolve_dtypes((*operands, *(None,) * ufunc.nout), **asked)
    inputs, outputs = found[: ufunc.nin], found[ufunc.nin :]
    pairs = zip(operands, inputs, strict=True)
    return _Loop(inputs, outputs, any(isinstance(kind, np.dtype) and kind != wanted for kind, wanted in pairs))


class _Operand(NamedTuple):
    """An operand of a loop: how it lies in memory, in elements of which sizes, and what the loop does with it."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    """Of the loop's type."""
    converted: bool
    """Whether the operand is of another type."""
    reduced: bool
    """Whether the loop adds up in it: it has one element where others have many."""


def _take_buffers(
    operands: Sequence[Any], wanted: Sequence[np.dtype[Any]], shape: tuple[int, ...], reduced: Any = None
) -> None:
    """Count the buffers through which NumPy passes some operands of a loop over ``shape``, ``wanted`` their types.

    The operand ``reduced``, if there is one, is what the loop reduces the others to.
    """
    layouts = tuple(
        [
            _Operand(o.shape, o.strides, dtype.itemsize, o.dtype != dtype, o is reduced)
            for o, dtype in zip(operands, wanted, strict=True)
            if getattr(o, "size", 1) > 1
        ]
    )
    _for_a_moment(_buffer_bytes(layouts, shape))


@lru_cache(maxsize=4096)
def _buffer_bytes(operands: tuple[_Operand, ...], shape: tuple[int, ...]) -> int:
    """Bytes of those buffers (as of NumPy 2.3; older versions have fewer).

    An operand has one if it is converted, or if its elements do not lie at one distance from each other for as long as
    a buffer is (a broadcast row, a part of each row). A buffer is as long as some inner dimensions of the loop, of at
    most ``np.getbufsize()`` elements: those for which (1 + buffers) / length is the least, the longest of equals. A
    reduction's loop goes on over one more dimension than its buffers, if that is where the result begins to be
    repeated, or ceases to be; there, an operand needs no buffer for the jumps between its inner dimensions.
    """
    if not operands:
        return 0
    strides = [_broadcast_strides(shape, o.shape, o.strides) for o in operands]
    order = _order(_elementwise_result, tuple((tuple(min(n, 2) for n in shape), _ranks(s)) for s in strides))
    dimensions = _joined(shape, strides, order)
    if not dimensions:
        return 0
    most = np.getbufsize()
    cost = 1 + sum(o.converted for o in operands)
    even = [1] * len(operands)  # inner dimensions over which each operand's elements lie at one distance
    turns = [0] * len(operands)  # the dimension at which each begins or ceases to be repeated
    size = dimensions[0][0]
    best, best_cost, best_size, best_core = 0, cost, size, 1
    for d, ((inner, before), (outer, after)) in enumerate(pairwise(dimensions), 1):
        if any(turns) or (size >= most and cost > 1):
            break
        for i, operand in enumerate(operands):
            if even[i] == d:
                if inner * before[i] == after[i]:
                    even[i] += 1
                    continue
                cost += not operand.converted
            if operand.reduced and 0 in (before[i], after[i]):
                turns[i] = d
        core, size = size, size * outer
        if cost * best_size <= best_cost * (min(size, most) if cost > 1 else size):
            best, best_cost, best_size, best_core = d, cost, size, core
    repeats = best > 0 and best in turns
    buffered = 0
    for i, operand in enumerate(operands):
        jumps = repeats and (
            turns[i] == best
            or (even[i] == best and not operand.converted)
            or (dimensions[best][1][i] == 0 and even[i] <= best)
        )
        if operand.converted or even[i] + jumps <= best:
            buffered += operand.itemsize
    return buffered * (best_size if best_size <= most else best_core * (most // best_core))


def _joined(
    shape: tuple[int, ...], strides: Sequence[tuple[int, ...]], order: tuple[int, ...]
) -> list[tuple[int, tuple[int, ...]]]:
    """A loop's dimensions from the inside out, each with every operand's stride; those that go on alike are one."""
    joined: list[tuple[int, tuple[int, ...]]] = []
    for d in reversed(order):
        if shape[d] == 1:
            continue
        own = tuple([s[d] for s in strides])
        if joined and all(joined[-1][0] * s == t for s, t in zip(joined[-1][1], own, strict=True)):
            joined[-1] = (joined[-1][0] * shape[d], joined[-1][1])
        else:
            joined.append((shape[d], own))
    return joined


def _broadcast_strides(shape: tuple[int, ...], own: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    lead = len(shape) - len(own)
    return (0,) * lead + tuple([0 if n == 1 else s for n, s in zip(own, strides, strict=True)])


def _for_a_moment(count: int) -> None:
    """Bytes that a function takes and gives back before it returns."""
    memory = _local.memory
    memory.allocate(count)
    memory.free(count)


def _miniature(array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the smallest array that is laid out like ``array``."""
    shape, strides = shape_of(array), getattr(array, "strides", ())
    return tuple([min(n, 2) for n in shape]), _ranks(strides)


def _ranks(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Small strides in the same order of size."""
    ranks = {stride: 8 * 4**rank for rank, stride in enumerate(sorted({abs(s) for s in strides if s}))}
    return tuple([ranks.get(abs(s), 0) for s in strides])


@lru_cache(maxsize=4096)
def _order(
    function: Callable[..., Any], miniatures: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], **options: Any
) -> tuple[int, ...]:
    """In which order NumPy lays out the dimensions of a new result of these operands, outermost first."""
    ground = np.zeros(8 * 4 ** max((len(s) for s, _ in miniatures), default=0) + 8, np.uint8)
    made = function(*(as_strided(ground[:1], s, t) for s, t in miniatures), **options)
    return tuple(sorted(range(made.ndim), key=lambda d: -abs(made.strides[d]) if made.shape[d] != 1 else -math.inf))


def _laid_out(
    function: Callable[..., Any], operands: Sequence[Any], shape: tuple[int, ...], dtype: Any, **options: Any
) -> ShapeArray:
    """A new array of ``shape``, laid out as ``function`` of real operands would lay it out."""
    if all(map(_is_plain, operands)) or math.prod(shape) == 0:
        return ShapeArray(shape, dtype)
    dtype = np.dtype(dtype)
    order = _order(function, tuple(map(_miniature, operands)), **options)
    return ShapeArray(shape, dtype, _strides_in_order(shape, order, dtype.itemsize))


def _elementwise_result(*operands: Any) -> Any:
    flags: Any = [["readonly"]] * len(operands) + [["writeonly", "allocate"]]
    everything: Any = [*operands, None]
    return np.nditer(everything, flags=["external_loop", "refs_ok", "zerosize_ok"], op_flags=flags).operands[-1]


def like_operands(operands: Sequence[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> ShapeArray:
    """A new array of ``shape``, laid out as NumPy lays out the result of an elementwise function of ``operands``."""
    if all(map(_is_plain, operands)):
        return ShapeArray(shape, dtype)
    return _laid_out(_elementwise_result, [o for o in operands if shape_of(o)], shape, dtype)


def _copy_of(a: Any, dtype: Any = None, order: str | None = "K") -> ShapeArray:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if order == "F" or (order == "A" and _is_column_major(a)):
        return ShapeArray(a.shape, dtype, _strides_in_order(a.shape, range(a.ndim)[::-1], dtype.itemsize))
    return _laid_out(np.copy, (a,), a.shape, dtype) if order in ("K", None) else ShapeArray(a.shape, dtype)


def _is_column_major(a: Any) -> bool:
    return not a.contiguous and is_row_major(a.shape[::-1], a.strides[::-1], a.dtype.itemsize)


def _is_plain(operand: Any) -> bool:
    if isinstance(operand, ShapeArray):
        return operand.contiguous
    return not isinstance(operand, np.ndarray) or operand.flags.c_contiguous


def _strides_in_order(shape: tuple[int, ...], order: Sequence[int], itemsize: int) -> tuple[int, ...]:
    strides = [0] * len(shape)
    step = itemsize
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


# -- universal functions


def _elementwise(ufunc: np.ufunc, inputs: tuple[Any, ...], out: Any, kwargs: dict[str, Any]) -> Any:
    loop = _loop(ufunc, tuple(map(_kind, inputs)), kwargs.get("dtype"))
    shape, simple = _common(inputs)
    if out is None:
        make = ShapeArray if simple else partial(like_operands, inputs)
        results = tuple([make(shape, dtype) for dtype in loop.outputs])
        if loop.converts or not simple:
            _take_buffers(inputs, loop.inputs, shape)
        return results[0] if len(results) == 1 else results
    results = tuple(
        [
            like_operands(inputs, shape, dtype) if target is None else target
            for target, dtype in zip(out, loop.outputs, strict=True)
        ]
    )
    converts = loop.converts
    for target, dtype in zip(results, loop.outputs, strict=True):
        _check_out(ufunc.__name__, target, shape, dtype, kwargs.get("casting", "same_kind"))
        simple = simple and target.shape == shape and _is_plain(target)
        converts = converts or target.dtype != dtype
    if converts or not simple:
        _take_buffers((*inputs, *results), (*loop.inputs, *loop.outputs), results[0].shape)
    return results[0] if len(results) == 1 else results


def _common(operands: Sequence[Any]) -> tuple[tuple[int, ...], bool]:
    """The shape to which operands broadcast, and whether they are plain numbers or lie row by row in that shape."""
    shape: tuple[int, ...] = ()
    simple = True
    for operand in operands:
        own = shape_of(operand)
        if own == ():
            continue
        simple = simple and _is_plain(operand)
        if shape == ():
            shape = own
        elif own != shape:
            shape, simple = _broadcast((shape, own)), False
    return shape, simple


def _check_out(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], casting: Any = "same_kind") -> None:
    if out.shape != shape and broadcast(out.shape, shape) != out.shape:
        raise ValueError(f"np.{name}: out has shape {out.shape}, the result {shape}")
    if out.dtype != dtype and not np.can_cast(dtype, out.dtype, casting):
        raise TypeError(f"np.{name}: a result of type {dtype} can't be cast to out's {out.dtype}")
    if isinstance(out, ShapeArray) and not out.writeable:
        raise ValueError("output array is read-only")


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
    (dtype,) = _loop(np.matmul, (_kind(a), _kind(b))).outputs
    return _product("matmul", inputs, shape, dtype, out)


def _vecdot(inputs: tuple[Any, ...], out: Any, keepdims: bool = False) -> Any:
    (*batch, length), (*_, other) = shape_of(inputs[0]), shape_of(inputs[1])
    if length != other:
        raise ValueError(f"vecdot: rows of {length} and of {other} do not fit")
    (dtype,) = _loop(np.vecdot, tuple(map(_kind, inputs))).outputs
    shape = (*broadcast(tuple(batch), shape_of(inputs[1])[:-1]), *((1,) if keepdims else ()))
    return _product("vecdot", inputs, shape, dtype, out)


def _product(name: str, inputs: tuple[Any, ...], shape: tuple[int, ...], dtype: np.dtype[Any], out: Any) -> Any:
    # NumPy converts whole operands, not a piece at a time as in elementwise functions
    converted = [ShapeArray(shape_of(x), dtype) for x in inputs if _kind(x) != dtype]
    if out is not None and out[0] is not None:
        _check_out(name, out[0], shape, dtype)
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
def _reduction_loop(ufunc: np.ufunc, kind: Any, dtype: Any) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """The types that a reduction reads and gives."""
    asked: Any = {} if dtype is None else {"signature": (np.dtype(dtype), None, None)}
    _, read, given = ufunc.resolve_dtypes((None, kind, None), **asked, reduction=True)
    return read, given


def _spread(made: Any, axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """A reduction's result as its loop sees it: repeated over the dimensions that are reduced."""
    if len(made.shape) != len(shape):
        made = _expand_dims(made, axes)
    return made.view_as(tuple(1 if d in axes else n for d, n in enumerate(shape)), made.strides)


def _reduce(
    ufunc: np.ufunc, x: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False, **_: Any
) -> Any:
    shape = _reduced(x.shape, axis, keepdims)
    read, given = _reduction_loop(ufunc, x.dtype, dtype)
    if out is not None:
        if out.shape != shape:
            raise ValueError(f"np.{ufunc.__name__}.reduce: out has shape {out.shape}, the result {shape}")
        made = out
    else:
        made = _laid_out(np.add.reduce, (x,), shape, given, axis=_axes(axis, len(x.shape)), keepdims=keepdims is True)
    if x.dtype != read or not x.contiguous or len(x.shape) > 2:
        spread = _spread(made, _axes(axis, len(x.shape)), x.shape)
        _take_buffers((spread, x), (given, read), x.shape, reduced=spread)
    return made


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
    return _reduce(np.logical_or, a, axis, None, out, keepdims)


_functions[np.any] = _functions[np.all] = _truth


_COUNT = np.intp(1)


def _divide_by_count(total: Any) -> None:
    """NumPy divides a sum in place by an integer, which takes a detour by way of float64."""
    if total.shape:
        _elementwise(np.true_divide, (total, _COUNT), (total,), {"casting": "unsafe"})


@_implements(np.mean)
def _mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
    wide = dtype
    if dtype is None and (a.dtype.kind in "iub" or a.dtype == np.float16):
        wide = np.float32 if a.dtype == np.float16 else np.float64
    total = _reduce(np.add, a, axis, wide, out, keepdims)
    _divide_by_count(total)
    return total.astype(a.dtype) if dtype is None and out is None and a.dtype == np.float16 else total


@_implements(np.var, np.std)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, **_: Any
) -> Any:
    if dtype is None and a.dtype.kind in "iub":
        dtype = np.float64
    mean = _reduce(np.add, a, axis, dtype, None, True)
    _divide_by_count(mean)
    deviations = _elementwise(np.subtract, (a, mean), None, {})  # which are then squared in place
    total = _reduce(np.add, deviations, axis, dtype, out, keepdims)
    _divide_by_count(total)
    return total


@_implements(np.argmax, np.argmin)
def _argmax(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
    made = ShapeArray(_reduced(a.shape, axis, keepdims), np.intp) if out is None else out
    last = a if axis is None else _moveaxis(a, axis, -1)
    if not last.contiguous:  # NumPy brings the dimension to the end, by a copy
        _for_a_moment(a.nbytes)
    return made


@_implements(np.cumsum, np.cumprod)
def _cumulate(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    if out is not None:
        return out
    result = _reduction_loop(np.add, a.dtype, dtype)[1]
    return ShapeArray((a.size,), result) if axis is None else like_operands((a,), a.shape, result)


@_implements(np.sort)
def _sort(a: Any, axis: Any = -1, *_: Any, **__: Any) -> Any:
    return ShapeArray((a.size,), a.dtype) if axis is None else _copy_of(a)


@_implements(np.argsort)
def _argsort(a: Any, axis: Any = -1, *_: Any, **__: Any) -> Any:
    return ShapeArray((a.size,) if axis is None else a.shape, np.intp)


@_implements(np.empty_like, np.zeros_like, np.ones_like)
def _new_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **_: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if shape is None:
        return _copy_of(a, dtype, order)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if order == "F" or (order == "A" and _is_column_major(a)):
        return ShapeArray(shape, dtype, _strides_in_order(shape, range(len(shape))[::-1], dtype.itemsize))
    if order == "K" and len(shape) == a.ndim:
        return _laid_out(_empty_of_same_order, (a,), shape, dtype)
    return ShapeArray(shape, dtype)


def _empty_of_same_order(a: Any) -> Any:
    return np.empty_like(a, shape=(2,) * a.ndim)


@_implements(np.full_like)
def _full_like(
    a: Any, fill_value: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **_: Any
) -> Any:
    return _new_like(a, dtype, order, subok, shape)


@_implements(np.arange)
def _arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None, **_: Any) -> Any:
    first, last = (0, start) if stop is None else (start, stop)
    return ShapeArray((max(0, math.ceil((last - first) / step)),), np.arange(0, dtype=dtype).dtype)


@_implements(np.copy)
def _copy(a: Any, order: str = "K", **_: Any) -> Any:
    return _copy_of(a, None, order)


@_implements(np.ascontiguousarray)
def _ascontiguousarray(a: Any, dtype: Any = None, **_: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if not a.contiguous or dtype != a.dtype:
        return ShapeArray(a.shape or (1,), dtype)
    return a if a.shape else _reshape(a, (1,))


@_implements(np.copyto)
def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    shape = broadcast(shape_of(src), shape_of(where))
    if broadcast(shape, dst.shape) != dst.shape:
        raise ValueError(f"np.copyto: could not broadcast shape {shape} into shape {dst.shape}")
    _check_copy(dst.dtype, _kind(src), casting)


@lru_cache(maxsize=1024)
def _check_copy(target: np.dtype[Any], kind: Any, casting: Any) -> None:
    np.copyto(np.zeros(1, target), np.zeros(1, kind) if isinstance(kind, np.dtype) else kind(1), casting=casting)


@_implements(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if len(choices) != 2:
        raise NoValuesError("np.where with one argument needs values; on a dry run arrays have none")
    operands = (condition, *choices)
    dtype = np.result_type(*[c.dtype if hasattr(c, "dtype") else c for c in choices])
    made = like_operands(operands, broadcast(*map(shape_of, operands)), dtype)
    _take_buffers(operands, (np.dtype(bool), dtype, dtype), made.shape)
    return made


@_implements(np.result_type)
def _result_type(*values: Any) -> Any:
    return np.result_type(*[v.dtype if isinstance(v, ShapeArray) else v for v in values])


@_implements(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **_: Any) -> Any:
    if out is not None:
        return out
    limits = [None if limit is None else _sample(_kind(limit)) for limit in (a_min, a_max)]
    operands = [x for x in (a, a_min, a_max) if x is not None]
    return like_operands(operands, broadcast(*map(shape_of, operands)), np.clip(_sample(a.dtype), *limits).dtype)


def _sample(kind: Any) -> Any:
    return np.empty(0, kind) if isinstance(kind, np.dtype) else kind(1)


@_implements(np.shape)
def _shape(a: Any) -> Any:
    return a.shape


@_implements(np.ndim)
def _ndim(a: Any) -> Any:
    return len(a.shape)


@_implements(np.size)
def _size(a: Any, axis: Any = None) -> Any:
    return a.size if axis is None else a.shape[axis]


# -- shapes


@_implements(np.reshape)
def _reshape(a: Any, shape: Any = None, order: str = "C", **_: Any) -> Any:
    if order == "F" or (order == "A" and _is_column_major(a)):
        flipped = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)[::-1]
        return _transpose(_reshape(_transpose(a), flipped))
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
    if order == "K":
        raise NoValuesError('np.ravel with order="K" is not supported on arrays without memory; use "C" or "F"')
    rows = _transpose(a) if order == "F" or (order == "A" and _is_column_major(a)) else a
    return _reshape(rows, (-1,)) if rows.contiguous else ShapeArray((a.size,), a.dtype)


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
    return array.view_as(shape, strides).read_only()


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
        if not 0 <= n <= shape[d]:
            raise ValueError(f"a window of {n} does not lie within dimension {d} of size {shape[d]}")
        shape[d] -= n - 1
    return x.view_as((*shape, *windows), (*x.strides, *(x.strides[d] for d in axes))).read_only()


@_implements(np.concatenate)
def _concatenate(arrays: Any, axis: int | None = 0, out: Any = None, dtype: Any = None, **_: Any) -> Any:
    arrays = list(arrays)
    dtype = np.result_type(*[a.dtype for a in arrays]) if dtype is None else np.dtype(dtype)
    if axis is None:
        return ShapeArray((sum(math.prod(shape_of(a)) for a in arrays),), dtype) if out is None else out
    first = shape_of(arrays[0])
    (d,) = _axes(axis, len(first))
    for array in arrays[1:]:
        other = shape_of(array)
        if len(other) != len(first) or any(n != m for i, (n, m) in enumerate(zip(first, other, strict=True)) if i != d):
            raise ValueError(f"cannot concatenate shapes {first} and {other} along axis {d}")
    shape = (*first[:d], sum(shape_of(a)[d] for a in arrays), *first[d + 1 :])
    return _laid_out(_concatenated, arrays, shape, dtype, axis=d) if out is None else out


def _concatenated(*arrays: Any, axis: int) -> Any:
    return np.concatenate(arrays, axis)


@_implements(np.stack)
def _stack(arrays: Any, axis: int = 0, out: Any = None, **_: Any) -> Any:
    arrays = list(arrays)
    first = shape_of(arrays[0])
    if any(shape_of(a) != first for a in arrays):
        raise ValueError(f"cannot stack arrays of different shapes {sorted({shape_of(a) for a in arrays})}")
    (d,) = _axes(axis, len(first) + 1)
    return _concatenate([_expand_dims(a, d) if is_shape_array(a) else np.expand_dims(a, d) for a in arrays], d, out)


@_implements(np.split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    (d,) = _axes(axis, ary.ndim)
    if isinstance(indices_or_sections, int) and ary.shape[d] % indices_or_sections:
        raise ValueError(f"cannot split {ary.shape[d]} into {indices_or_sections} equal parts")
    return _array_split(ary, indices_or_sections, d)


@_implements(np.array_split)
def _array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    (d,) = _axes(axis, ary.ndim)
    n = ary.shape[d]
    if isinstance(indices_or_sections, int):
        step, longer = divmod(n, indices_or_sections)
        lengths = [step + 1] * longer + [step] * (indices_or_sections - longer)
        cuts = list(accumulate(lengths))[:-1]
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
    shape = tuple(n + a + b for n, (a, b) in zip(array.shape, widths, strict=True))
    return _new_like(array, None, "A", shape=shape)


@_implements(np.tril, np.triu)
def _triangle(m: Any, k: int = 0) -> Any:
    mask = ShapeArray(m.shape[-2:] if m.ndim > 1 else m.shape * 2, bool)  # NumPy makes this mask, then selects by it
    return like_operands((mask, m), broadcast(m.shape, mask.shape), m.dtype)


@_implements(np.diagonal)
def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    i, j = _axes((axis1, axis2), a.ndim)
    n = max(min(a.shape[i] + min(offset, 0), a.shape[j] - max(offset, 0)), 0)
    rest = [d for d in range(a.ndim) if d not in (i, j)]
    shape, strides = (*(a.shape[d] for d in rest), n), (*(a.strides[d] for d in rest), a.strides[i] + a.strides[j])
    return a.view_as(shape, strides).read_only()


@_implements(np.packbits)
def _packbits(a: Any, axis: Any = None, bitorder: str = "big") -> Any:
    if axis is None:
        made = ShapeArray((-(-a.size // 8),), np.uint8)
        if not a.contiguous:
            _for_a_moment(a.nbytes)
        return made
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
    converted = _convert_index(indices)
    whole = None if a.contiguous else ShapeArray(a.shape, a.dtype)  # NumPy takes from rows that lie side by side
    shape = shape_of(indices)
    if axis is not None:
        (d,) = _axes(axis, len(a.shape))
        shape = (*a.shape[:d], *shape, *a.shape[d + 1 :])
    made = ShapeArray(shape, a.dtype) if out is None else out
    del converted, whole
    return made


@_implements(np.take_along_axis)
def _take_along_axis(arr: Any, indices: Any, axis: Any = -1) -> Any:
    return arr[_along_axis(arr, indices, axis)]


@_implements(np.put_along_axis)
def _put_along_axis(arr: Any, indices: Any, values: Any, axis: Any) -> None:
    arr[_along_axis(arr, indices, axis)] = values


def _along_axis(arr: Any, indices: Any, axis: int) -> tuple[Any, ...]:
    """The index that NumPy puts together: of each other dimension all places, in arrays of their own."""
    (d,) = _axes(axis, arr.ndim)
    return tuple(
        indices if i == d else ShapeArray((n,), np.intp).reshape((1,) * i + (n,) + (1,) * (arr.ndim - i - 1))
        for i, n in enumerate(arr.shape)
    )


def _convert_index(index: Any) -> Any:
    """np.take converts an integer index to NumPy's own pointer-sized type first, which takes memory for a moment."""
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
            _check_bounds(int(item), a.shape[d], d)
        d += 1
    return a.view_as(tuple(shape), tuple(strides))


def _has_a_gap(items: tuple[Any, ...]) -> bool:
    """Whether an index leaves dimensions out by name, as x[0, ...] does: then NumPy gives a view without dimensions."""
    return any(item is Ellipsis for item in items)


def _check_bounds(i: int, n: int, d: int) -> None:
    if not -n <= i < n:
        raise IndexError(f"index {i} is out of bounds for dimension {d} of size {n}")


def _take_advanced(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    result = _picked(a, items)
    result = ShapeArray(result.shape, a.dtype, result.strides)
    _take_index_buffers(items)
    return result


def _take_index_buffers(items: tuple[Any, ...]) -> None:
    """Count the buffers through which NumPy reads arrays of indices that are of another type than its own."""
    arrays = [item if hasattr(item, "strides") else np.asarray(item) for item in items if _is_advanced(item)]
    _take_buffers(arrays, [np.dtype(np.intp)] * len(arrays), broadcast(*map(shape_of, arrays)))


def _picked(a: ShapeArray, items: tuple[Any, ...]) -> ShapeArray:
    """An array that takes no memory, of the shape, type and layout of the elements that are picked."""
    items = _expand_ellipsis(a.ndim, items)
    for item in items:
        if _is_advanced(item) and np.dtype(_kind_of_index(item)) == bool:
            raise NoValuesError("a boolean mask selects by value; on a dry run arrays have none. Use np.where")
    for d, item in enumerate(item for item in items if item is not None):
        if isinstance(item, int):
            _check_bounds(item, a.shape[d], d)
    # integers beside arrays are arrays of no dimensions, as in NumPy
    places = [i for i, item in enumerate(items) if item is not None and not isinstance(item, slice)]
    picked = broadcast(*[shape_of(items[i]) for i in places])
    plain: list[Any] = [slice(None) if i in places else item for i, item in enumerate(items)]
    rest = _slice(a, tuple(plain))
    kept = [n for i, n in enumerate(rest.shape) if i not in places]
    adjacent = places == list(range(places[0], places[-1] + 1))
    before = places[0] if adjacent else 0
    shape = (*kept[:before], *picked, *kept[before:])
    if before == 0 and rest.contiguous:
        return ShapeArray.argument(shape, a.dtype)
    strides = _strides_of_picked(_miniature(rest), tuple(places), shape, a.dtype.itemsize, len(picked))
    return ShapeArray.argument(shape, a.dtype, strides)


def _strides_of_picked(
    miniature: tuple[tuple[int, ...], tuple[int, ...]],
    places: tuple[int, ...],
    shape: tuple[int, ...],
    itemsize: int,
    ndim: int,
) -> tuple[int, ...]:
    """Picked elements are laid out first by the indices, then as the array is."""
    return _strides_in_order(shape, _order(_pick, (miniature,), places=places, ndim=ndim), itemsize)


def _pick(a: Any, places: tuple[int, ...], ndim: int) -> Any:
    index: list[Any] = [slice(None)] * a.ndim
    for place in places:
        index[place] = np.zeros((2,) * ndim, np.intp)
    return a[tuple(index)]


def _kind_of_index(item: Any) -> Any:
    return item.dtype if hasattr(item, "dtype") else np.asarray(item).dtype
