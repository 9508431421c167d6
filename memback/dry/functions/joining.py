"""Arrays put together, and taken apart."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from memback.dry.array import NoValuesError, ShapeArray, is_shape_array, laid_out
from memback.dry.functions.creation import new_like
from memback.dry.functions.shapes import expand_dims
from memback.dry.layout import axes_of, shape_of
from memback.dry.registry import implements

__all__ = ["concatenate"]


@implements(np.concatenate)
def concatenate(arrays: Any, axis: int | None = 0, out: Any = None, dtype: Any = None, **_: Any) -> Any:
    """Arrays one after the other along a dimension."""
    arrays = list(arrays)
    dtype = np.result_type(*[a.dtype for a in arrays]) if dtype is None else np.dtype(dtype)
    if axis is None:
        return ShapeArray((sum(math.prod(shape_of(a)) for a in arrays),), dtype) if out is None else out
    first = shape_of(arrays[0])
    (d,) = axes_of(axis, len(first))
    for array in arrays[1:]:
        other = shape_of(array)
        if len(other) != len(first) or any(n != m for i, (n, m) in enumerate(zip(first, other, strict=True)) if i != d):
            raise ValueError(f"cannot concatenate shapes {first} and {other} along axis {d}")
    shape = (*first[:d], sum(shape_of(a)[d] for a in arrays), *first[d + 1 :])
    return laid_out(_concatenated, arrays, shape, dtype, axis=d) if out is None else out


def _concatenated(*arrays: Any, axis: int) -> Any:
    return np.concatenate(arrays, axis)


@implements(np.stack)
def _stack(arrays: Any, axis: int = 0, out: Any = None, **_: Any) -> Any:
    arrays = list(arrays)
    first = shape_of(arrays[0])
    if any(shape_of(a) != first for a in arrays):
        raise ValueError(f"cannot stack arrays of different shapes {sorted({shape_of(a) for a in arrays})}")
    (d,) = axes_of(axis, len(first) + 1)
    return concatenate([expand_dims(a, d) if is_shape_array(a) else np.expand_dims(a, d) for a in arrays], d, out)


@implements(np.split)
def _split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    (d,) = axes_of(axis, ary.ndim)
    if isinstance(indices_or_sections, int) and ary.shape[d] % indices_or_sections:
        raise ValueError(f"cannot split {ary.shape[d]} into {indices_or_sections} equal parts")
    return _array_split(ary, indices_or_sections, d)


@implements(np.array_split)
def _array_split(ary: Any, indices_or_sections: Any, axis: int = 0) -> Any:
    (d,) = axes_of(axis, ary.ndim)
    n = ary.shape[d]
    if isinstance(indices_or_sections, int):
        step, longer = divmod(n, indices_or_sections)
        lengths = [step + 1] * longer + [step] * (indices_or_sections - longer)
        cuts = list(accumulate(lengths))[:-1]
    else:
        cuts = [int(i) for i in indices_or_sections]
    edges = [0, *cuts, n]
    return [ary[(slice(None),) * d + (slice(a, b),)] for a, b in pairwise(edges)]


@implements(np.tile)
def _tile(A: Any, reps: Any) -> Any:
    reps = (reps,) if isinstance(reps, int) else tuple(reps)
    ndim = max(len(reps), A.ndim)
    reps, shape = (1,) * (ndim - len(reps)) + reps, (1,) * (ndim - A.ndim) + A.shape
    return ShapeArray(tuple(n * r for n, r in zip(shape, reps, strict=True)), A.dtype)


@implements(np.repeat)
def _repeat(a: Any, repeats: Any, axis: Any = None) -> Any:
    if not isinstance(repeats, int):
        raise NoValuesError("np.repeat with a count for each element needs values; on a dry run arrays have none")
    if axis is None:
        return ShapeArray((a.size * repeats,), a.dtype)
    (d,) = axes_of(axis, a.ndim)
    return ShapeArray((*a.shape[:d], a.shape[d] * repeats, *a.shape[d + 1 :]), a.dtype)


@implements(np.pad)
def _pad(array: Any, pad_width: Any, mode: str = "constant", **_: Any) -> Any:
    widths = np.broadcast_to(np.asarray(pad_width), (array.ndim, 2)).tolist()
    shape = tuple(n + a + b for n, (a, b) in zip(array.shape, widths, strict=True))
    return new_like(array, None, "A", shape=shape)
