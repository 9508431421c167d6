"""Shapes and strides: how NumPy lays out what it makes.

Where a rule of NumPy's decides, NumPy itself is asked, on arrays of no or two elements a dimension, and the answer is
remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from memback.engine.arrays import DryArray, is_row_major

__all__ = [
    "axes_of",
    "broadcast",
    "broadcast_strides",
    "elementwise_result",
    "is_column_major",
    "is_plain",
    "kind_of",
    "miniature",
    "order_of",
    "ranks",
    "row_major",
    "rows",
    "shape_of",
    "strides_in_order",
]


@lru_cache(maxsize=8192)
def rows(shape: tuple[int, ...], itemsize: int) -> tuple[tuple[int, ...], int]:
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
    return rows(shape, itemsize)[0]


def is_column_major(a: Any) -> bool:
    """Whether the elements lie column by column without gaps, and not row by row as well."""
    return not a.contiguous and is_row_major(a.shape[::-1], a.strides[::-1], a.dtype.itemsize)


def is_plain(operand: Any) -> bool:
    """Whether an operand is a number, or an array whose elements lie row by row."""
    if isinstance(operand, DryArray):
        return operand.contiguous
    return not isinstance(operand, np.ndarray) or operand.flags.c_contiguous


def shape_of(value: Any) -> tuple[int, ...]:
    """Shape of an array or of a number."""
    shape = getattr(value, "shape", None)
    return np.shape(value) if shape is None else shape


def kind_of(value: Any) -> Any:
    """What decides about a result's dtype: an array's dtype; of a Python number only its type (it is weak)."""
    return value.dtype if hasattr(value, "dtype") else type(value)


@lru_cache(maxsize=4096)
def _broadcast(shapes: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return np.broadcast_shapes(*shapes)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that these broadcast to."""
    first = shapes[0]
    if all(shape == first for shape in shapes):
        return first
    return _broadcast(shapes)


def broadcast_strides(shape: tuple[int, ...], own: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """Strides over ``shape`` of an array that is broadcast to it."""
    lead = len(shape) - len(own)
    return (0,) * lead + tuple([0 if n == 1 else s for n, s in zip(own, strides, strict=True)])


def axes_of(axis: Any, ndim: int) -> tuple[int, ...]:
    """Dimensions by their numbers from the first on; all for None."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    for a in axes:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis {a} is out of bounds for an array of {ndim} dimensions")
    return tuple(a % ndim for a in axes)


def miniature(array: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of the smallest array that is laid out like ``array``."""
    shape, strides = shape_of(array), getattr(array, "strides", ())
    return tuple([min(n, 2) for n in shape]), ranks(strides)


def ranks(strides: tuple[int, ...]) -> tuple[int, ...]:
    """Small strides in the same order of size."""
    found = {stride: 8 * 4**rank for rank, stride in enumerate(sorted({abs(s) for s in strides if s}))}
    return tuple([found.get(abs(s), 0) for s in strides])


@lru_cache(maxsize=4096)
def order_of(
    function: Callable[..., Any], miniatures: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], **options: Any
) -> tuple[int, ...]:
    """In which order NumPy lays out the dimensions of a new result of these operands, outermost first."""
    ground = np.zeros(8 * 4 ** max((len(s) for s, _ in miniatures), default=0) + 8, np.uint8)
    made = function(*(as_strided(ground[:1], s, t) for s, t in miniatures), **options)
    return tuple(sorted(range(made.ndim), key=lambda d: -abs(made.strides[d]) if made.shape[d] != 1 else -math.inf))


def elementwise_result(*operands: Any) -> Any:
    """An array as NumPy makes it for the result of an elementwise function of real operands."""
    flags: Any = [["readonly"]] * len(operands) + [["writeonly", "allocate"]]
    everything: Any = [*operands, None]
    return np.nditer(everything, flags=["external_loop", "refs_ok", "zerosize_ok"], op_flags=flags).operands[-1]


def strides_in_order(shape: tuple[int, ...], order: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Strides of an array without gaps whose dimensions lie in this order, outermost first."""
    strides = [0] * len(shape)
    step = itemsize
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)
