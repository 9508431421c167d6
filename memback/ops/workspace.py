"""Keeping an op's workspace small: work in pieces that fit into the processor's cache, in a type wide enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np

from memback.engine.arrays import DryArray

__all__ = ["PIECE", "accumulator", "average", "in_wide_parts", "parts", "pieces", "slices", "wide"]

T = TypeVar("T")

PIECE = 2**16
"""Elements worked on at a time: 256 KiB of float32, of which a few fit into a core's second cache."""


def wide(dtype: Any) -> Any:
    """The type in which sums of ``dtype`` are accumulated: float32 for float16 and bfloat16, otherwise itself."""
    return np.dtype(np.float32) if dtype.itemsize < 4 and dtype.kind in "fV" else dtype


def accumulator(dtype: Any) -> Any:
    """The ``dtype`` to pass to NumPy's sums and means: the wide type for a narrow one, else None."""
    return None if wide(dtype) == dtype else wide(dtype)


def average(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean in the dtype of ``x`` (float64 for integers), accumulated in a wide type and rounded once."""
    dtype = accumulator(x.dtype)
    mean = np.mean(x, axis=axis, keepdims=keepdims, dtype=dtype)
    return mean if dtype is None else mean.astype(x.dtype)


def slices(n: int, step: int) -> Iterator[slice]:
    """The range 0..n in pieces of ``step``; the last one may be shorter."""
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def pieces(steps: Iterable[T], like: Any) -> Iterator[T]:
    """The steps of a loop of which none takes more memory than the first, and none keeps any for the next.

    Without memory (``like`` is a :class:`~memback.engine.arrays.DryArray`) the first stands for all of them.
    """
    return islice(steps, 1) if isinstance(like, DryArray) else iter(steps)


def parts(x: Any) -> Iterator[Any]:
    """Indices that cut ``x`` along its first dimension into parts of about :data:`PIECE` elements, or one step each."""
    if x.size <= PIECE:
        return iter((...,))
    length = x.shape[0]
    return pieces(slices(length, max(1, PIECE * length // x.size)), like=x)


def in_wide_parts(function: Callable[..., Any], dim: int, *arrays: Any) -> Any:
    """``function`` of arrays of one shape, which works along ``dim`` and gives such an array in the wide type.

    Where the arrays' own type is narrow it sees a part of them at a time, and what it gives is rounded to that type.
    """
    x = arrays[0]
    if wide(x.dtype) == x.dtype:
        return function(*arrays)
    out = np.empty_like(x)
    for part in parts(x) if dim % x.ndim else (...,):
        np.copyto(out[part], function(*[array[part] for array in arrays]), casting="same_kind")
    return out
