"""Views of other shapes, and copies where no view is possible."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from memback.dry.array import NoValuesError, ShapeArray
from memback.dry.layout import axes_of, broadcast, is_column_major, row_major
from memback.dry.registry import FUNCTIONS, implements

__all__ = ["expand_dims", "moveaxis", "reshape", "transpose"]


FUNCTIONS |= {np.shape: lambda a: a.shape, np.ndim: lambda a: len(a.shape)}


@implements(np.size)
def _size(a: Any, axis: Any = None) -> Any:
    return a.size if axis is None else a.shape[axis]


@implements(np.reshape)
def reshape(a: Any, shape: Any = None, order: str = "C", **_: Any) -> Any:
    """A view where the layout allows one, else a copy."""
    if order == "F" or (order == "A" and is_column_major(a)):
        flipped = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)[::-1]
        return transpose(reshape(transpose(a), flipped))
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


@implements(np.ravel)
def _ravel(a: Any, order: str = "C") -> Any:
    if order == "K":
        raise NoValuesError('np.ravel with order="K" is not supported on arrays without memory; use "C" or "F"')
    rows = transpose(a) if order == "F" or (order == "A" and is_column_major(a)) else a
    return reshape(rows, (-1,)) if rows.contiguous else ShapeArray((a.size,), a.dtype)


@implements(np.transpose, np.permute_dims)
def transpose(a: Any, axes: Any = None) -> Any:
    """A view with the dimensions in another order."""
    order = tuple(reversed(range(a.ndim))) if axes is None else axes_of(tuple(axes), a.ndim)
    if sorted(order) != list(range(a.ndim)):
        raise ValueError(f"axes {axes} are no permutation of an array's {a.ndim} dimensions")
    return a.view_as(tuple(a.shape[d] for d in order), tuple(a.strides[d] for d in order))


@implements(np.swapaxes)
def _swapaxes(a: Any, axis1: int, axis2: int) -> Any:
    order = list(range(a.ndim))
    i, j = axes_of((axis1, axis2), a.ndim)
    order[i], order[j] = order[j], order[i]
    return transpose(a, order)


@implements(np.moveaxis)
def moveaxis(a: Any, source: Any, destination: Any) -> Any:
    """A view with some dimensions in other places."""
    sources, destinations = axes_of(source, a.ndim), axes_of(destination, a.ndim)
    order = [d for d in range(a.ndim) if d not in sources]
    for place, d in sorted(zip(destinations, sources, strict=True)):
        order.insert(place, d)
    return transpose(a, order)


@implements(np.expand_dims)
def expand_dims(a: Any, axis: Any) -> Any:
    """A view with dimensions of size 1 besides."""
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = axes_of(tuple(axes), a.ndim + len(axes))
    rest = iter(range(a.ndim))
    picked = [None if d in axes else next(rest) for d in range(a.ndim + len(axes))]
    return a.view_as(
        tuple(1 if d is None else a.shape[d] for d in picked), tuple(0 if d is None else a.strides[d] for d in picked)
    )


@implements(np.squeeze)
def _squeeze(a: Any, axis: Any = None) -> Any:
    axes = [d for d, n in enumerate(a.shape) if n == 1] if axis is None else axes_of(axis, a.ndim)
    if any(a.shape[d] != 1 for d in axes):
        raise ValueError(f"cannot squeeze axis {axis} of shape {a.shape}: its size is not one")
    rest = [d for d in range(a.ndim) if d not in axes]
    return a.view_as(tuple(a.shape[d] for d in rest), tuple(a.strides[d] for d in rest))


@implements(np.broadcast_to)
def _broadcast_to(array: Any, shape: Any, subok: bool = False) -> Any:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if broadcast(array.shape, shape) != shape:
        raise ValueError(f"cannot broadcast shape {array.shape} to {shape}")
    lead = len(shape) - array.ndim
    strides = (0,) * lead + tuple(
        s if n == m else 0 for n, m, s in zip(array.shape, shape[lead:], array.strides, strict=True)
    )
    return array.view_as(shape, strides).read_only()


@implements(np.flip)
def _flip(m: Any, axis: Any = None) -> Any:
    axes = axes_of(axis, m.ndim)
    return m.view_as(m.shape, tuple(-s if d in axes else s for d, s in enumerate(m.strides)))


@implements(np.lib.stride_tricks.sliding_window_view)
def _sliding_window_view(x: Any, window_shape: Any, axis: Any = None, **_: Any) -> Any:
    windows = (window_shape,) if isinstance(window_shape, int) else tuple(window_shape)
    axes = axes_of(axis, x.ndim)
    shape = list(x.shape)
    for d, n in zip(axes, windows, strict=True):
        if not 0 <= n <= shape[d]:
            raise ValueError(f"a window of {n} does not lie within dimension {d} of size {shape[d]}")
        shape[d] -= n - 1
    return x.view_as((*shape, *windows), (*x.strides, *(x.strides[d] for d in axes))).read_only()


@implements(np.diagonal)
def _diagonal(a: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    i, j = axes_of((axis1, axis2), a.ndim)
    n = max(min(a.shape[i] + min(offset, 0), a.shape[j] - max(offset, 0)), 0)
    rest = [d for d in range(a.ndim) if d not in (i, j)]
    shape, strides = (*(a.shape[d] for d in rest), n), (*(a.strides[d] for d in rest), a.strides[i] + a.strides[j])
    return a.view_as(shape, strides).read_only()
