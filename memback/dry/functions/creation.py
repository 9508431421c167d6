"""New arrays like others."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memback.dry.array import ShapeArray, copy_of, laid_out
from memback.dry.functions.shapes import reshape
from memback.dry.layout import is_column_major, strides_in_order
from memback.dry.registry import FUNCTIONS, implements

__all__ = ["new_like"]


@implements(np.empty_like, np.zeros_like, np.ones_like)
def new_like(a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **_: Any) -> Any:
    """A new array of like layout, or of another shape."""
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if shape is None:
        return copy_of(a, dtype, order)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if order == "F" or (order == "A" and is_column_major(a)):
        return ShapeArray(shape, dtype, strides_in_order(shape, range(len(shape))[::-1], dtype.itemsize))
    if order == "K" and len(shape) == a.ndim:
        return laid_out(_empty_of_same_order, (a,), shape, dtype)
    return ShapeArray(shape, dtype)


def _empty_of_same_order(a: Any) -> Any:
    return np.empty_like(a, shape=(2,) * a.ndim)


FUNCTIONS |= {
    np.full_like: lambda a, fill_value, *args, **kwargs: new_like(a, *args, **kwargs),
    np.copy: lambda a, order="K", **_: copy_of(a, None, order),
}


@implements(np.arange)
def _arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None, **_: Any) -> Any:
    first, last = (0, start) if stop is None else (start, stop)
    return ShapeArray((max(0, math.ceil((last - first) / step)),), np.arange(0, dtype=dtype).dtype)


@implements(np.ascontiguousarray)
def _ascontiguousarray(a: Any, dtype: Any = None, **_: Any) -> Any:
    dtype = a.dtype if dtype is None else np.dtype(dtype)
    if not a.contiguous or dtype != a.dtype:
        return ShapeArray(a.shape or (1,), dtype)
    return a if a.shape else reshape(a, (1,))
