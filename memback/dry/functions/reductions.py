"""Reductions, and what runs along a dimension."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from memback.dry.array import ShapeArray, copy_of, laid_out, like_operands
from memback.dry.functions.shapes import expand_dims, moveaxis
from memback.dry.functions.universal import elementwise
from memback.dry.layout import axes_of
from memback.dry.loops import take_buffers
from memback.dry.memory import for_a_moment
from memback.dry.registry import FUNCTIONS, implements, operation

__all__ = ["reduce"]


def _reduced(shape: tuple[int, ...], axis: Any, keepdims: Any) -> tuple[int, ...]:
    axes = axes_of(axis, len(shape))
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
        made = expand_dims(made, axes)
    return made.view_as(tuple(1 if d in axes else n for d, n in enumerate(shape)), made.strides)


@operation("reduce")
def reduce(
    ufunc: np.ufunc, x: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False, **_: Any
) -> Any:
    """The result of a universal function between all elements along dimensions."""
    shape = _reduced(x.shape, axis, keepdims)
    read, given = _reduction_loop(ufunc, x.dtype, dtype)
    if out is not None:
        if out.shape != shape:
            raise ValueError(f"np.{ufunc.__name__}.reduce: out has shape {out.shape}, the result {shape}")
        made = out
    else:
        made = laid_out(np.add.reduce, (x,), shape, given, axis=axes_of(axis, len(x.shape)), keepdims=keepdims is True)
    if x.dtype != read or not x.contiguous or len(x.shape) > 2:
        spread = _spread(made, axes_of(axis, len(x.shape)), x.shape)
        take_buffers((spread, x), (given, read), x.shape, reduced=spread)
    return made


def _reduction(ufunc: np.ufunc) -> Callable[..., Any]:
    def handler(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
        return reduce(ufunc, a, axis, dtype, out, keepdims)

    return handler


FUNCTIONS[np.sum] = _reduction(np.add)
FUNCTIONS[np.prod] = _reduction(np.multiply)


def _without_dtype(ufunc: np.ufunc) -> Callable[..., Any]:
    def handler(a: Any, axis: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
        return reduce(ufunc, a, axis, None, out, keepdims)

    return handler


FUNCTIONS |= dict.fromkeys((np.max, np.amax, np.min, np.amin), _without_dtype(np.maximum))
FUNCTIONS |= dict.fromkeys((np.any, np.all), _without_dtype(np.logical_or))


_COUNT = np.intp(1)


def _divide_by_count(total: Any) -> None:
    """NumPy divides a sum in place by an integer, which takes a detour by way of float64."""
    if total.shape:
        elementwise(np.true_divide, (total, _COUNT), (total,), {"casting": "unsafe"})


@implements(np.mean)
def _mean(a: Any, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **_: Any) -> Any:
    wide = dtype
    if dtype is None and (a.dtype.kind in "iub" or a.dtype == np.float16):
        wide = np.float32 if a.dtype == np.float16 else np.float64
    total = reduce(np.add, a, axis, wide, out, keepdims)
    _divide_by_count(total)
    return total.astype(a.dtype) if dtype is None and out is None and a.dtype == np.float16 else total


@implements(np.var, np.std)
def _var(
    a: Any, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False, **_: Any
) -> Any:
    if dtype is None and a.dtype.kind in "iub":
        dtype = np.float64
    mean = reduce(np.add, a, axis, dtype, None, True)
    _divide_by_count(mean)
    deviations = elementwise(np.subtract, (a, mean), None, {})  # which are then squared in place
    total = reduce(np.add, deviations, axis, dtype, out, keepdims)
    _divide_by_count(total)
    return total


@implements(np.argmax, np.argmin)
def _argmax(a: Any, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
    made = ShapeArray(_reduced(a.shape, axis, keepdims), np.intp) if out is None else out
    last = a if axis is None else moveaxis(a, axis, -1)
    if not last.contiguous:  # NumPy brings the dimension to the end, by a copy
        for_a_moment(a.nbytes)
    return made


@implements(np.cumsum, np.cumprod)
def _cumulate(a: Any, axis: Any = None, dtype: Any = None, out: Any = None) -> Any:
    if out is not None:
        return out
    result = _reduction_loop(np.add, a.dtype, dtype)[1]
    return ShapeArray((a.size,), result) if axis is None else like_operands((a,), a.shape, result)


@implements(np.sort)
def _sort(a: Any, axis: Any = -1, *_: Any, **__: Any) -> Any:
    return ShapeArray((a.size,), a.dtype) if axis is None else copy_of(a)


@implements(np.argsort)
def _argsort(a: Any, axis: Any = -1, *_: Any, **__: Any) -> Any:
    return ShapeArray((a.size,) if axis is None else a.shape, np.intp)
