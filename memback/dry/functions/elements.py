"""Functions of each element that are no universal functions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from memback.dry.array import NoValuesError, ShapeArray, like_operands
from memback.dry.layout import axes_of, broadcast, kind_of, shape_of
from memback.dry.loops import take_buffers
from memback.dry.memory import for_a_moment
from memback.dry.registry import implements

__all__: list[str] = []


@implements(np.copyto)
def _copyto(dst: Any, src: Any, casting: str = "same_kind", where: Any = True) -> None:
    shape = broadcast(shape_of(src), shape_of(where))
    if broadcast(shape, dst.shape) != dst.shape:
        raise ValueError(f"np.copyto: could not broadcast shape {shape} into shape {dst.shape}")
    _check_copy(dst.dtype, kind_of(src), casting)


@lru_cache(maxsize=1024)
def _check_copy(target: np.dtype[Any], kind: Any, casting: Any) -> None:
    np.copyto(np.zeros(1, target), np.zeros(1, kind) if isinstance(kind, np.dtype) else kind(1), casting=casting)


@implements(np.where)
def _where(condition: Any, *choices: Any) -> Any:
    if len(choices) != 2:
        raise NoValuesError("np.where with one argument needs values; on a dry run arrays have none")
    operands = (condition, *choices)
    dtype = np.result_type(*[c.dtype if hasattr(c, "dtype") else c for c in choices])
    made = like_operands(operands, broadcast(*map(shape_of, operands)), dtype)
    take_buffers(operands, (np.dtype(bool), dtype, dtype), made.shape)
    return made


@implements(np.result_type)
def _result_type(*values: Any) -> Any:
    return np.result_type(*[v.dtype if isinstance(v, ShapeArray) else v for v in values])


@implements(np.clip)
def _clip(a: Any, a_min: Any = None, a_max: Any = None, out: Any = None, **_: Any) -> Any:
    if out is not None:
        return out
    limits = [None if limit is None else _sample(kind_of(limit)) for limit in (a_min, a_max)]
    operands = [x for x in (a, a_min, a_max) if x is not None]
    return like_operands(operands, broadcast(*map(shape_of, operands)), np.clip(_sample(a.dtype), *limits).dtype)


def _sample(kind: Any) -> Any:
    return np.empty(0, kind) if isinstance(kind, np.dtype) else kind(1)


@implements(np.tril, np.triu)
def _triangle(m: Any, k: int = 0) -> Any:
    mask = ShapeArray(m.shape[-2:] if m.ndim > 1 else m.shape * 2, bool)  # NumPy makes this mask, then selects by it
    return like_operands((mask, m), broadcast(m.shape, mask.shape), m.dtype)


@implements(np.packbits)
def _packbits(a: Any, axis: Any = None, bitorder: str = "big") -> Any:
    if axis is None:
        made = ShapeArray((-(-a.size // 8),), np.uint8)
        if not a.contiguous:
            for_a_moment(a.nbytes)
        return made
    (d,) = axes_of(axis, a.ndim)
    return ShapeArray((*a.shape[:d], -(-a.shape[d] // 8), *a.shape[d + 1 :]), np.uint8)


@implements(np.unpackbits)
def _unpackbits(a: Any, axis: Any = None, count: Any = None, bitorder: str = "big") -> Any:
    if axis is None:
        return ShapeArray((a.size * 8 if count is None else count,), np.uint8)
    (d,) = axes_of(axis, a.ndim)
    return ShapeArray((*a.shape[:d], a.shape[d] * 8 if count is None else count, *a.shape[d + 1 :]), np.uint8)
