"""Arrays without memory against NumPy: for every function that is supported, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memback.dry.array import NoValuesError, ShapeArray
from memback.dry.memory import dry_memory, fresh_dry_memory
from memback.dry.registry import FUNCTIONS
from memback.engine.arrays import root
from memback.errors import MembackError, UsageError

FLOATS = ("float16", "float32", "float64")
DTYPES = (*FLOATS, "bool", "int8", "int32", "int64", "uint8")


class Trial(NamedTuple):
    """A function of arrays, and the arrays."""

    function: Callable[..., Any]
    arrays: list[Any]


# -- real arrays and their likes without memory


def without_memory(array: Any) -> Any:
    """The array's like: a view of a root of the same size."""
    if not isinstance(array, np.ndarray):
        return array
    base = root(array)
    like = ShapeArray(base.shape, base.dtype, base.strides)
    return like if base is array else like.view_as(array.shape, array.strides)


def outcome(function: Callable[..., Any], arrays: list[Any]) -> Any:
    try:
        with np.errstate(all="ignore"):
            return function(*arrays)
    except (ValueError, TypeError, IndexError) as error:
        return error


def owner(result: Any, arrays: list[Any]) -> Any:
    """The number of the argument whose buffer the result is in, or None where it has one of its own."""
    return next((i for i, a in enumerate(arrays) if hasattr(a, "base") and root(a) is root(result)), None)


def strides(array: Any) -> list[int]:
    """Those that matter."""
    return [s for n, s in zip(array.shape, array.strides, strict=True) if n != 1]


def check(real: Any, dry: Any, arrays: list[Any], likes: list[Any]) -> None:
    if isinstance(real, Exception):
        assert isinstance(dry, Exception), (real, dry)
    elif isinstance(real, (tuple, list)):
        assert len(real) == len(dry)
        for one, other in zip(real, dry, strict=True):
            check(one, other, arrays, likes)
    elif isinstance(real, (np.ndarray, np.generic)):
        assert isinstance(dry, ShapeArray), dry
        assert dry.shape == real.shape
        assert dry.dtype == real.dtype
        assert dry.nbytes == real.nbytes
        assert (dry.ndim, dry.size, dry.itemsize) == (real.ndim, real.size, real.itemsize)
        if isinstance(real, np.ndarray) and real.size:
            assert strides(dry) == strides(real)
            assert owner(dry, likes) == owner(real, arrays)
            assert root(dry).nbytes == root(real).nbytes
    else:
        assert dry == real


def compare(trial: Trial) -> None:
    likes = [without_memory(a) for a in trial.arrays]
    check(outcome(trial.function, trial.arrays), outcome(trial.function, likes), trial.arrays, likes)


# -- drawing


class Draw:
    """Draws arrays and arguments."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.of = draw

    def one(self, *options: Any) -> Any:
        return self.of(st.sampled_from(options))

    def size(self, least: int, most: int) -> int:
        return self.of(st.integers(least, most))

    def shape(self, least: int = 0, most: int = 4, smallest: int = 0) -> tuple[int, ...]:
        return self.of(hnp.array_shapes(min_dims=least, max_dims=most, min_side=smallest, max_side=4))

    def laid_out(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array of ones, laid out in memory in one of many ways."""
        how = self.one("rows", "rows", "rows", "permuted", "strided", "reversed", "broadcast", "part")
        if not shape or how == "rows":
            return np.ones(shape, dtype)
        d = self.size(0, len(shape) - 1)
        if how == "permuted":
            order = self.of(st.permutations(range(len(shape))))
            return np.ones([shape[i] for i in order], dtype).transpose(np.argsort(order))
        if how == "strided":
            wider = (*shape[:d], 2 * shape[d], *shape[d + 1 :])
            return np.ones(wider, dtype)[(slice(None),) * d + (slice(None, None, 2),)]
        if how == "reversed":
            return np.ones(shape, dtype)[(slice(None),) * d + (slice(None, None, -1),)]
        if how == "part":
            wider = (*shape[:d], shape[d] + 2, *shape[d + 1 :])
            return np.ones(wider, dtype)[(slice(None),) * d + (slice(1, -1),)]
        return np.broadcast_to(np.ones((*shape[:d], 1, *shape[d + 1 :]), dtype), shape)

    def array(self, least: int = 0, most: int = 4, dtypes: tuple[Any, ...] = DTYPES, smallest: int = 0) -> Any:
        return self.laid_out(self.shape(least, most, smallest), self.one(*dtypes))

    def together(self, count: int, dtypes: tuple[Any, ...] = DTYPES) -> list[Any]:
        """Arrays whose shapes broadcast; some are plain numbers."""
        shapes = self.of(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, min_side=0, max_side=3))
        arrays = [self.laid_out(shape, self.one(*dtypes)) for shape in shapes.input_shapes]
        if count > 1 and self.one(True, False, False):
            arrays[self.size(1, count - 1)] = self.one(1, 2.0, True, np.float64(3), np.int8(1))
        return arrays

    def axis(self, array: Any) -> Any:
        """None, one or several dimensions; now and then one that there is not."""
        if array.ndim == 0 or self.one(True, False, False):
            return None
        if self.one(True, True, False):
            return self.size(-array.ndim, array.ndim - 1 + self.one(0, 0, 0, 0, 1))
        return tuple(self.of(st.lists(st.integers(0, array.ndim - 1), unique=True, min_size=1)))

    def dim(self, array: Any) -> int:
        return self.size(-array.ndim, array.ndim - 1)


CASES: dict[str, st.SearchStrategy[Trial]] = {}
COVERED: set[Any] = set()


def case(*functions: Any) -> Callable[[Callable[[Draw, Any], Trial]], None]:
    """Register a drawer of trials of each of ``functions``."""

    def register(drawer: Callable[[Draw, Any], Trial]) -> None:
        for function in functions:
            COVERED.add(function)
            name = f"{drawer.__name__.strip('_')} {function.__name__}".strip()
            CASES[name] = st.composite(lambda draw, f=function: drawer(Draw(draw), f))()

    return register


# -- universal functions

_BOTH = (np.add, np.subtract, np.multiply, np.divide, np.maximum, np.minimum, np.power, np.logaddexp, np.copysign)
_COMPARISONS = (np.greater, np.greater_equal, np.less, np.less_equal, np.equal, np.not_equal, np.logical_or)
_ONE = (np.negative, np.absolute, np.exp, np.log, np.sqrt, np.square, np.tanh, np.sin, np.cos, np.sign, np.reciprocal)
_TRUTHS = (np.isfinite, np.isnan, np.logical_not)


@case(*_ONE, *_TRUTHS, np.modf)
def _(draw: Draw, f: Any) -> Trial:
    return Trial(f, draw.together(1))


@case(*_BOTH, *_COMPARISONS)
def _(draw: Draw, f: Any) -> Trial:
    return Trial(f, draw.together(2))


@case(*_BOTH, *_COMPARISONS)
def out_of(draw: Draw, f: Any) -> Trial:
    a, b = draw.together(2, FLOATS)
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    return Trial(
        lambda a, b, out: f(a, b, out=out),
        [a, b, draw.laid_out(draw.one(shape, shape, (2, *shape), (5,)), draw.one(*DTYPES)).copy("K")],
    )


@case(np.add, np.multiply, np.maximum)
def reduce_of(draw: Draw, f: Any) -> Trial:
    x = draw.array(smallest=1)
    keywords: dict[str, Any] = {"axis": draw.axis(x), "keepdims": draw.one(True, False)}
    if draw.one(True, False):
        keywords["dtype"] = draw.one("float32", "float64")
    return Trial(lambda x: f.reduce(x, **keywords), [x])


@case(np.add, np.subtract)
def at_of(draw: Draw, f: Any) -> Trial:
    x = np.ones((3, *draw.shape(0, 2)), "float32")
    index = np.zeros(draw.shape(0, 2), draw.one("int64", "int32"))
    values = np.ones((*index.shape, *x.shape[1:]) if draw.one(True, True, False) else (5,), "float32")
    return Trial(lambda x, index, values: f.at(x, index, values), [x, index, values])


@case(np.matmul)
def _(draw: Draw, f: Any) -> Trial:
    a, b, n = draw.shape(0, 3), draw.shape(0, 3), draw.size(0, 3)
    if draw.one(True, True, True, False):
        a, b = (*a[:-1], n), (*b[:-2], n, *b[-1:]) if len(b) > 1 else (n,)
    dtypes = ("float32", "float64", "float32", "bfloat16")
    return Trial(f, [draw.laid_out(shape, draw.one(*dtypes)) for shape in (a, b)])


@case(np.vecdot)
def _(draw: Draw, f: Any) -> Trial:
    a, b = draw.shape(1, 3), draw.shape(1, 3)
    if draw.one(True, True, False):
        b = draw.one(a, a[-1:], (*(1 for _ in a[1:]), a[-1]))
    dtypes = ("float32", "float64", "float32", "float16")
    keepdims = draw.one(True, False)
    return Trial(partial(f, keepdims=keepdims), [draw.laid_out(shape, draw.one(*dtypes)) for shape in (a, b)])


@case(np.add)
def operators(draw: Draw, _: Any) -> Trial:
    def run(a: Any, b: Any) -> Any:
        c = a * 2 + b / 3 - (-a) ** 2
        before = c
        c += 1
        c *= 0.5
        c -= c
        assert c is before
        return c, a > b, a == b, 1 - a, 2 / (b + 1), abs(a)

    x = draw.array(1, 3, FLOATS, smallest=1)
    return Trial(run, [x, draw.one(draw.laid_out(x.shape, draw.one(*FLOATS)), 2.0)])


# -- reductions and the like


@case(np.sum, np.prod, np.mean)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(smallest=1)
    keywords: dict[str, Any] = {"axis": draw.axis(x), "keepdims": draw.one(True, False)}
    if draw.one(True, False, False):
        keywords["dtype"] = draw.one("float32", "float64")
    return Trial(lambda x: f(x, **keywords), [x])


@case(np.max, np.min, np.amax, np.amin, np.any, np.all)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(smallest=1)
    axis, keepdims = draw.axis(x), draw.one(True, False)
    return Trial(lambda x: f(x, axis=axis, keepdims=keepdims), [x])


@case(np.var, np.std)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(smallest=1)
    axis, keepdims = draw.axis(x), draw.one(True, False)
    return Trial(lambda x: f(x, axis=axis, keepdims=keepdims), [x])


@case(np.sum, np.mean, np.max)
def result_in(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, dtypes=FLOATS, smallest=1)
    axis = draw.dim(x)
    shape = np.sum(x, axis=axis).shape
    return Trial(
        lambda x, out: f(x, axis=axis, out=out), [x, np.ones(draw.one(shape, shape, (7, 7)), draw.one(*FLOATS))]
    )


@case(np.argmax, np.argmin)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, smallest=1)
    axis, keepdims = draw.one(None, draw.dim(x)), draw.one(True, False)
    return Trial(lambda x: f(x, axis=axis, keepdims=keepdims), [x])


@case(np.cumsum, np.cumprod)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    axis = draw.one(None, draw.dim(x))
    return Trial(lambda x: f(x, axis=axis), [x])


@case(np.sort, np.argsort)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    axis = draw.one(None, draw.dim(x))
    return Trial(lambda x: f(x, axis=axis), [x])


# -- making


@case(np.empty_like, np.zeros_like, np.ones_like)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    keywords: dict[str, Any] = {"order": draw.one("K", "C", "A", "F"), "dtype": draw.one(None, "float64")}
    if draw.one(True, False):
        keywords["shape"] = draw.one(x.shape, (2, 3), 5, ())
    return Trial(lambda x: f(x, **keywords), [x])


@case(np.full_like)
def _(draw: Draw, f: Any) -> Trial:
    x, dtype = draw.array(), draw.one(None, "float32")
    return Trial(lambda x: f(x, 3, dtype=dtype), [x])


@case(np.arange)
def _(draw: Draw, f: Any) -> Trial:
    places = draw.one((5,), (2, 7), (7, 2), (1, 8, 3))
    dtype = draw.one(None, "float64", "int32")
    return Trial(lambda x: f(*places, dtype=dtype, like=x), [draw.array()])


@case(np.copy)
def _(draw: Draw, f: Any) -> Trial:
    order = draw.one("K", "C", "A", "F")
    return Trial(lambda x: (f(x, order=order), x.copy(), x.copy(order)), [draw.array()])


@case(np.copy)
def astype(draw: Draw, _: Any) -> Trial:
    dtype, copy = draw.one(*DTYPES), draw.one(True, False)
    return Trial(lambda x: x.astype(dtype, copy=copy), [draw.array()])


@case(np.ascontiguousarray)
def _(draw: Draw, f: Any) -> Trial:
    dtype = draw.one(None, "float64")
    return Trial(lambda x: f(x, dtype, like=x), [draw.array()])


@case(np.copyto)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    casting = draw.one("same_kind", "unsafe")
    source = draw.laid_out(draw.one(x.shape, x.shape[1:], (9, 9)), draw.one(*DTYPES))
    return Trial(lambda x, y: f(x, y, casting=casting), [x.copy(), draw.one(source, 2.5, 1)])


@case(np.where)
def _(draw: Draw, f: Any) -> Trial:
    condition, x, y = draw.together(3)
    return Trial(f, [condition, x, y])


@case(np.result_type)
def _(draw: Draw, f: Any) -> Trial:
    arrays = draw.together(2)
    return Trial(lambda *a: str(f(*a)), arrays)


@case(np.clip)
def _(draw: Draw, f: Any) -> Trial:
    low, high = draw.one((0, 1), (None, 1), (0.5, None), (0.5, 2), (None, None))
    return Trial(lambda x: f(x, low, high), [draw.array()])


@case(np.shape, np.ndim, np.size)
def _(draw: Draw, f: Any) -> Trial:
    return Trial(f, [draw.array()])


# -- shapes


def _reshaped(draw: Draw, x: Any) -> tuple[int, ...]:
    """A shape of as many elements, or (now and then) not."""
    factors: list[int] = []
    rest = x.size
    while rest > 1:
        n = draw.one(*[n for n in range(2, rest + 1) if rest % n == 0])
        factors.append(n)
        rest //= n
    shape = [*factors, *([0] if x.size == 0 else []), *([1] if draw.one(True, False) else [])]
    if shape and draw.one(True, False, False):
        shape[draw.size(0, len(shape) - 1)] = draw.one(-1, -1, 7)
    return tuple(shape)


@case(np.reshape)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    shape, order = _reshaped(draw, x), draw.one("C", "C", "C", "F", "A")
    return Trial(lambda x: (f(x, shape, order=order), x.reshape(shape), x.reshape(*(shape or [1]))), [x])


@case(np.ravel)
def _(draw: Draw, f: Any) -> Trial:
    order = draw.one("C", "C", "F")
    return Trial(lambda x: (f(x, order), x.ravel(), x.flatten()), [draw.array()])


@case(np.transpose, np.permute_dims)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    order = draw.one(None, tuple(draw.of(st.permutations(range(x.ndim)))), (0, 0), (7,))
    return Trial(lambda x: (f(x, order), x.transpose(order), x.T), [x])


@case(np.swapaxes)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    a, b = draw.dim(x), draw.dim(x) + draw.one(0, 0, 0, 9)
    return Trial(lambda x: (f(x, a, b), x.swapaxes(a, b)), [x])


@case(np.moveaxis)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    count = draw.size(1, x.ndim)
    source, target = (tuple(draw.of(st.permutations(range(x.ndim))))[:count] for _ in range(2))
    return Trial(lambda x: (f(x, source, target), f(x, source[0], target[0])), [x])


@case(np.expand_dims)
def _(draw: Draw, f: Any) -> Trial:
    axis = draw.one(0, -1, 1, (0, 2), (0, -1), 9)
    return Trial(lambda x: f(x, axis), [draw.array()])


@case(np.squeeze)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    axis = draw.axis(x)
    return Trial(lambda x: (x.squeeze(), f(x, axis)), [x])


@case(np.broadcast_to)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    shape = draw.one((2, *x.shape), x.shape, (3, *x.shape[1:]), (5,))
    return Trial(lambda x: f(x, shape), [x])


@case(np.flip)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array()
    axis = draw.axis(x)
    return Trial(lambda x: f(x, axis), [x])


@case(np.lib.stride_tricks.sliding_window_view)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, smallest=1)
    axis = draw.dim(x)
    window = draw.size(1, 4)
    return Trial(lambda x: f(x, window, axis=axis), [x])


@case(np.concatenate)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, 3)
    axis = draw.one(None, draw.dim(x))
    d = 0 if axis is None else axis % x.ndim
    other = (*x.shape[:d], draw.size(0, 3), *x.shape[d + 1 :])
    y = draw.laid_out(draw.one(other, other, other, (9, 9)), draw.one(*DTYPES))
    return Trial(lambda *a: f(a, axis=axis), [x, y] if draw.one(True, False) else [x, y, x])


@case(np.stack)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(0, 3)
    axis = draw.size(-x.ndim - 1, x.ndim)
    y = draw.laid_out(draw.one(x.shape, x.shape, x.shape, (9, 9)), draw.one(*DTYPES))
    return Trial(lambda *a: f(a, axis=axis), [x, y])


@case(np.split, np.array_split)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    axis, parts = draw.dim(x), draw.one(1, 2, 3, [1], [1, 3], [])
    return Trial(lambda x: f(x, parts, axis=axis), [x])


@case(np.tile)
def _(draw: Draw, f: Any) -> Trial:
    reps = draw.one(2, (1, 1), (2, 1, 3), 1, ())
    return Trial(lambda x: f(x, reps), [draw.array(0, 3)])


@case(np.repeat)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1)
    count, axis = draw.size(0, 3), draw.one(None, draw.dim(x))
    return Trial(lambda x: f(x, count, axis=axis), [x])


@case(np.pad)
def _(draw: Draw, f: Any) -> Trial:
    width = draw.one(1, (1, 2), ((0, 1),))
    return Trial(lambda x: f(x, width), [draw.array(1)])


@case(np.tril, np.triu)
def _(draw: Draw, f: Any) -> Trial:
    k = draw.size(-1, 1)
    return Trial(lambda x: f(x, k), [draw.array(1)])


@case(np.diagonal)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(2, smallest=1)
    offset, axes = draw.size(-2, 2), draw.one((0, 1), (1, 0), (-1, 0))
    return Trial(lambda x: f(x, offset, *axes), [x])


@case(np.packbits, np.unpackbits)
def _(draw: Draw, f: Any) -> Trial:
    dtype = "uint8" if f is np.unpackbits else draw.one("bool", "uint8")
    x = draw.laid_out(draw.shape(1), dtype)
    axis = draw.one(None, draw.dim(x))
    keywords = {"count": draw.one(None, 3)} if f is np.unpackbits else {}
    return Trial(lambda x: f(x, axis=axis, **keywords), [x])


# -- picking


@case(np.take)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, smallest=1)
    axis = draw.one(None, draw.dim(x))
    index = draw.laid_out(draw.shape(0, 2), draw.one("int64", "int32", "uint8")) * 0
    return Trial(lambda x, i: f(x, i, axis=axis), [x, index])


@case(np.take_along_axis)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, smallest=1)
    axis = draw.dim(x)
    d = axis % x.ndim
    index = np.zeros((*x.shape[:d], draw.size(0, 3), *x.shape[d + 1 :]), draw.one("int64", "int32"))
    return Trial(lambda x, i: f(x, i, axis), [x, index])


@case(np.put_along_axis)
def _(draw: Draw, f: Any) -> Trial:
    x = draw.array(1, smallest=1).copy()
    axis = draw.dim(x)
    index = np.zeros((*x.shape[: axis % x.ndim], 1, *x.shape[axis % x.ndim + 1 :]), draw.one("int64", "int32"))
    return Trial(lambda x, i: f(x, i, 1, axis), [x, index])


def _index(draw: Draw, x: Any, arrays: list[Any]) -> Any:
    """One item of an index: a position, a slice, a new dimension, the rest, or an array of positions."""
    kind = draw.one("int", "slice", "slice", "slice", "new", "rest", "array", "array")
    if kind == "int":
        return draw.size(-3, 3)
    if kind == "slice":
        return slice(draw.one(None, 0, 1, -2), draw.one(None, 2, -1), draw.one(None, None, 1, 2, -1))
    if kind == "array":
        arrays.append(np.zeros(draw.one((), (2,), (2,), (3, 1), (0,)), draw.one("int64", "int32")))
        return len(arrays) - 1, "array"
    return None if kind == "new" else Ellipsis


def _filled(items: list[Any], arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arrays[i[0]] if isinstance(i, tuple) else i for i in items)


@case(np.take)
def index_by(draw: Draw, _: Any) -> Trial:
    x = draw.array(1, smallest=1)
    arrays: list[Any] = [x]
    items = [_index(draw, x, arrays) for _ in range(draw.size(1, 4))]
    return Trial(lambda *a: a[0][_filled(items, a)], arrays)


@case(np.take)
def assign_by(draw: Draw, _: Any) -> Trial:
    x = draw.array(1, smallest=1).copy()
    arrays: list[Any] = [x, draw.one(np.ones(()), np.ones(3), np.ones((2, 2)), 1.0)]
    items = [_index(draw, x, arrays) for _ in range(draw.size(1, 3))]

    def run(*a: Any) -> None:
        a[0][_filled(items, a)] = a[1]

    return Trial(run, arrays)


# -- the tests


@pytest.mark.parametrize("name", CASES)
def test_it_agrees_with_numpy_in_shape_type_layout_buffer_and_bytes(name: str) -> None:
    @settings(max_examples=25)
    @given(CASES[name])
    def run(trial: Trial) -> None:
        compare(trial)

    run()


def test_every_function_that_is_supported_has_been_compared() -> None:
    assert set(FUNCTIONS) - COVERED == set()


# -- the most bytes that a function takes at a time, NumPy's own buffers and copies included

_BLOCK = (2, 1024, 64)
_INDEX = np.arange(1024) // 2
_MANY = np.arange(2**15) % 1024


def _block(dtype: str = "float32") -> Any:
    return np.ones(_BLOCK, dtype)


PEAKS: dict[str, Trial] = {
    "add": Trial(np.add, [_block(), _block()]),
    "add of two types": Trial(np.add, [_block(), _block("float64")]),
    "add of a row of another type": Trial(np.add, [_block(), np.ones(64)]),
    "add of a transpose of another type": Trial(np.add, [_block().transpose(0, 2, 1), np.ones((2, 64, 1024))]),
    "add of two transposes": Trial(np.add, [_block().T, _block("float64").T]),
    "add of every other element": Trial(np.add, [_block()[..., ::2], np.ones((2, 1024, 32))]),
    "where of a row": Trial(np.where, [np.ones(64, bool), _block(), _block("float64")]),
    "a column times a row of another type": Trial(np.multiply, [np.ones((1024, 1), "float32"), np.ones(64)]),
    "add into another type": Trial(lambda x, y: np.add(x, x, out=y), [_block(), _block("float64")]),
    "add of bfloat16 and a number": Trial(lambda x: np.add(x, 1.0), [_block("bfloat16")]),
    "multiply by a mask": Trial(np.multiply, [_block(), _block("bool")]),
    "subtract a row": Trial(np.subtract, [_block(), np.ones(64, "float32")]),
    "subtract a column": Trial(np.subtract, [_block(), np.ones((1024, 1), "float32")]),
    "subtract a long row": Trial(np.subtract, [_block(), np.ones((1024, 64), "float32")]),
    "multiply parts of rows": Trial(lambda x: x[..., :32] * x[..., 32:], [_block("float64")]),
    "multiply a part of a row in place": Trial(lambda x: np.multiply(x, x, out=x), [_block("float64")[..., :32]]),
    "multiply by a transpose": Trial(np.multiply, [_block()[0], np.ones((64, 1024), "float32").T]),
    "square of parts of rows": Trial(lambda x: np.square(x[..., :32]), [_block("float64")]),
    "sum of all parts of rows": Trial(lambda x: np.sum(x[..., :32]), [_block("float64")]),
    "sum over pixels of a part": Trial(lambda x: np.sum(x, (0, 2, 3)), [np.ones((16, 64, 8, 8))[:, :32]]),
    "add into images of a batch": Trial(
        lambda x, y: np.add(x, 0, out=np.swapaxes(y, 0, 1)),
        [np.ones((16, 3, 64, 64), "float32"), np.ones((3, 16, 64, 64), "float32")],
    ),
    "add of a column into images of a batch": Trial(
        lambda x, b, y: np.add(x, b, out=np.swapaxes(y, 0, 1)),
        [np.ones((16, 3, 50, 60), "float32"), np.ones((16, 1, 1, 1), "float32"), np.ones((3, 16, 50, 60), "float32")],
    ),
    "add of two types in rows of a hundred": Trial(np.add, [np.ones((200, 100)), np.ones((200, 100), "float32")]),
    "greater into numbers": Trial(lambda x, y: np.greater(x, 0, out=y), [_block(), _block()]),
    "logaddexp": Trial(lambda x: np.logaddexp(x, np.zeros(())), [_block()]),
    "exp of a transpose": Trial(np.exp, [_block().transpose(2, 0, 1)]),
    "sum": Trial(lambda x: np.sum(x, 0), [_block()]),
    "sum of a transpose": Trial(lambda x: np.sum(x, 0), [_block().T]),
    "sum in another type": Trial(lambda x: np.sum(x, 0, dtype="float32"), [_block("float16")]),
    "mean": Trial(lambda x: np.mean(x, 0), [_block()]),
    "mean of float16": Trial(lambda x: np.mean(x, 0), [_block("float16")]),
    "mean of integers": Trial(lambda x: np.mean(x, 0), [_block("int32")]),
    "var": Trial(lambda x: np.var(x, 0), [_block()]),
    "max": Trial(lambda x: np.max(x, 0), [_block()]),
    "argmax along the last": Trial(lambda x: np.argmax(x, -1), [_block()]),
    "argmax along the first": Trial(lambda x: np.argmax(x, 0), [_block()]),
    "argmax of a transpose": Trial(lambda x: np.argmax(x, -1), [_block().T]),
    "where": Trial(np.where, [_block("bool"), _block(), _block()]),
    "where of two types": Trial(np.where, [_block("bool"), _block(), _block("float64")]),
    "copyto": Trial(np.copyto, [_block(), _block("float16")]),
    "astype": Trial(lambda x: x.astype("float16"), [_block().T]),
    "packbits": Trial(np.packbits, [_block("bool")]),
    "packbits of a transpose": Trial(np.packbits, [_block("bool").T]),
    "unpackbits": Trial(np.unpackbits, [np.ones(2**17, "uint8")]),
    "take": Trial(lambda x, i: np.take(x, i, axis=1), [_block(), _INDEX]),
    "take of a transpose": Trial(lambda x, i: np.take(x, i, axis=1), [_block().transpose(2, 1, 0), _INDEX]),
    "take by int32": Trial(lambda x, i: np.take(x, i, axis=1), [_block(), _INDEX.astype("int32")]),
    "picking": Trial(lambda x, i: x[:, i], [_block(), _INDEX]),
    "picking by int32": Trial(lambda x, i: x[0, i], [_block(), _INDEX.astype("int32")]),
    "picking one by one by int32": Trial(lambda x, i: x[i, i], [_block()[0], (_MANY % 64).astype("int32")]),
    "picking rows and columns": Trial(lambda x, i, j: x[i[:, None], j], [_block()[0], _INDEX, _INDEX % 64]),
    "an assignment by int32": Trial(
        lambda x, i, y: x.__setitem__(i, y), [_block()[0], _MANY.astype("int32"), np.ones((2**15, 64), "float32")]
    ),
    "add.at by int32": Trial(
        lambda x, i, y: np.add.at(x, i, y), [_block()[0], _MANY.astype("int32"), np.ones((2**15, 64), "float32")]
    ),
    "take_along_axis": Trial(
        lambda x, i: np.take_along_axis(x, i, 1), [np.ones((2**15, 3), "float32"), np.zeros((2**15, 1), "int64")]
    ),
    "take_along_axis by bytes": Trial(
        lambda x, i: np.take_along_axis(x, i, 1), [np.ones((2**12, 3, 8)), np.zeros((2**12, 1, 8), "uint8")]
    ),
    "put_along_axis": Trial(
        lambda x, i, y: np.put_along_axis(x, i, y, 1),
        [np.ones((2**15, 3)), np.zeros((2**15, 1), "int64"), np.ones((2**15, 1))],
    ),
    "sum over one": Trial(lambda x: np.sum(x[:, :1], 1), [_block()[..., :32]]),
    "max over one of a row repeated": Trial(
        lambda x: np.max(np.broadcast_to(x, (1, 1024, 64)), 0), [np.ones((1024, 1))]
    ),
    "max of rows from the last on": Trial(lambda x: np.max(x[::-1], 1), [np.ones((64, 1, 4000), "float32")]),
    "sum of images in another type": Trial(lambda x: np.sum(x, (0, 2), dtype="float32"), [_block("float16")]),
    "sum of long rows in another type": Trial(lambda x: np.sum(x, 0, dtype="float32"), [np.ones((3, 5000), "float16")]),
    "sum of bfloat16": Trial(lambda x: np.sum(x, -1, dtype="float32"), [_block("bfloat16")]),
    "matmul": Trial(lambda x: x @ x.swapaxes(1, 2), [_block()]),
    "matmul of slices": Trial(lambda x: x[:, ::2, ::2] @ x[:, ::2, ::2].swapaxes(1, 2), [_block()]),
    "matmul of two types": Trial(lambda x, y: x @ y.swapaxes(1, 2), [_block(), _block("float64")]),
    "vecdot": Trial(np.vecdot, [_block(), _block()]),
    "vecdot of slices": Trial(lambda x: np.vecdot(x[:, ::2, ::2], x[:, 1::2, ::2]), [_block()]),
    "vecdot of two types": Trial(np.vecdot, [_block(), _block("float64")]),
    "concatenate": Trial(lambda x, y: np.concatenate([x, y], 1), [_block(), _block("float64")]),
    "stack": Trial(lambda x: np.stack([x, x], 1), [_block()]),
    "reshape of a transpose": Trial(lambda x: x.T.reshape(-1), [_block()]),
    "tril": Trial(np.tril, [_block()]),
    "add.at": Trial(lambda x, i, v: np.add.at(x, i, v), [np.ones((1024, 64), "float32"), _INDEX, _block()[0]]),
    "an assignment": Trial(lambda x, y: x.__setitem__(slice(None), y), [_block(), _block("float64")]),
}
SMALL = 16 * 1024
"""Bytes of iterators and results without dimensions, which are Python's own objects."""


def _measured(trial: Trial) -> int:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        trial.function(*trial.arrays)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _predicted(trial: Trial) -> int:
    likes = [without_memory(a) for a in trial.arrays]
    memory = dry_memory()
    memory.reset_peak()
    before = memory.live
    trial.function(*likes)
    return memory.peak - before


@pytest.mark.parametrize("name", PEAKS)
def test_the_peak_within_a_function_is_numpys(name: str) -> None:
    trial = PEAKS[name]
    trial.function(*trial.arrays)
    predicted = _predicted(trial)
    assert predicted <= _measured(trial) <= predicted + SMALL


# -- lives


def test_bytes_live_as_long_as_an_array_or_a_view_of_it() -> None:
    before = dry_memory().live
    x = ShapeArray((100, 10))
    assert dry_memory().live - before == 4000
    view = x.T[2:, ::2]
    del x
    assert dry_memory().live - before == 4000
    copy = view.reshape(-1)[:3]
    del view
    assert dry_memory().live - before == 8 * 50 * 4
    del copy
    assert dry_memory().live == before
    view = np.broadcast_to(ShapeArray((10,)), (7, 10))[3]
    assert dry_memory().live - before == 40
    del view
    assert dry_memory().live == before


def test_temporaries_die_where_real_ones_do() -> None:
    x = ShapeArray.argument((1000,))
    memory, before = dry_memory(), dry_memory().live
    memory.reset_peak()
    y = np.exp(np.exp(np.exp(x)))
    assert memory.peak - before == 8000
    assert memory.live - before == 4000
    y += np.exp(y)
    assert memory.live - before == 4000


def test_arguments_count_nowhere() -> None:
    before = dry_memory().live
    x = ShapeArray.argument((1000,))
    view = x[3:]
    assert dry_memory().live == before
    del x, view
    assert dry_memory().live == before


def test_no_memory_is_taken_for_an_array_larger_than_any_machine() -> None:
    tracemalloc.start()
    try:
        x = ShapeArray((2**20, 2**20, 2**10), "float64")
        y = np.sum(np.add(np.transpose(x), 1), axis=0)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert x.nbytes == 2**53
    assert y.shape == (2**20, 2**20)


# -- what is refused

X = ShapeArray.argument((3, 4))


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: np.linalg.inv(X), "np.linalg.inv"),
        (lambda: np.fft.fft(X), "np.fft.fft"),
        (lambda: np.einsum("ij->i", X), "np.einsum"),
        (lambda: np.unique(X), "np.unique"),
        (lambda: np.nonzero(X), "np.nonzero"),
        (lambda: np.add.accumulate(X), "np.add.accumulate"),
        (lambda: np.multiply.outer(X, X), "np.multiply.outer"),
        (lambda: np.add.reduceat(X, [0]), "np.add.reduceat"),
        (lambda: X.nonzero(), "ndarray.nonzero"),
        (lambda: X.tobytes(), "ndarray.tobytes"),
        (lambda: X.view("int32"), "ndarray.view"),
    ],
)
def test_what_is_not_supported_is_named_and_makes_no_real_array(function: Callable[[], Any], name: str) -> None:
    with pytest.raises(NoValuesError, match=f"^{name} is not supported on arrays without memory"):
        function()


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda: bool(X), "a condition"),
        (lambda: 1 if X[0, 0] > 0 else 2, "a condition"),
        (lambda: float(X[0, 0]), r"float\(\)"),
        (lambda: int(X[0, 0]), r"int\(\)"),
        (lambda: complex(X[0, 0]), r"complex\(\)"),
        (lambda: [1, 2][X[0, 0]], "an index"),
        (lambda: range(X[0, 0]), "an index"),
        (lambda: X.item(), r"\.item\(\)"),
        (lambda: X.tolist(), r"\.tolist\(\)"),
        (lambda: np.asarray(X), "making a real array"),
        (lambda: np.array([X, X]), "making a real array"),
        (lambda: sum(float(v) for v in X[0]), r"float\(\)"),
        (lambda: 3.0 in X, "`in`"),
        (lambda: f"{X[0, 0]:.2f}", "formatting"),
        (lambda: X[X > 0], "a boolean mask"),
        (lambda: np.where(X > 0), "np.where with one argument"),
        (lambda: np.repeat(X, [1, 2, 3], axis=0), "np.repeat with a count for each element"),
    ],
)
def test_what_needs_values_says_so(function: Callable[[], Any], what: str) -> None:
    with pytest.raises(NoValuesError, match=f"^{what}.*(arrays have none|take decisions)"):
        function()


def test_refusals_are_errors_of_memback_and_of_python() -> None:
    assert issubclass(NoValuesError, MembackError)
    assert issubclass(NoValuesError, TypeError)
    assert not hasattr(X, "tobytes")
    assert not hasattr(X, "nothing_at_all")
    assert getattr(X, "__array_interface__", None) is None


def test_iterating_gives_rows_which_are_views() -> None:
    rows = list(X)
    assert [row.shape for row in rows] == [(4,)] * 3
    assert all(root(row) is X for row in rows)
    with pytest.raises(TypeError, match="without dimensions"):
        len(X[0, 0])


def test_an_array_shows_its_shape_and_type() -> None:
    assert repr(X) == "ShapeArray((3, 4), 'float32')"
    assert f"{X}" == repr(X)


def test_more_than_any_memory_is_refused_at_one_array_or_at_many() -> None:
    with pytest.raises(
        UsageError, match=r"an array of shape \(1099511627776, 1099511627776\) would take .* B, more than"
    ):
        ShapeArray((2**40, 2**40), "float32")
    with fresh_dry_memory() as memory:
        with pytest.raises(UsageError, match=r"all arrays together would take 1,\d+,.* B, more than any memory has"):
            [ShapeArray((2**54,), "float32") for _ in range(20)]
        assert memory.live == 0
