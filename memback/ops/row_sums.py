"""Sums over the last dimension by dot products: several times as fast as NumPy's reduction of short rows.

A dot product takes x y without room for it, and the result of a row depends on that row alone. Results keep the
summed dimension as 1; those of float16 and bfloat16 are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.engine.arrays import Array
from memback.ops.workspace import wide

__all__ = ["row_dot", "row_sum"]

_dot: Any = np.vecdot
"""NumPy's own types do not know that it takes ``keepdims``."""


def row_dot(x: Array, y: Array, out: Array | None = None) -> Any:
    """The sum of x y over each row, for two arrays of one shape and type; written to ``out`` if given."""
    if _has_dot(x):
        return _dot(x, y, out=out, keepdims=True)
    return np.sum(np.multiply(x, y), axis=-1, keepdims=True, dtype=wide(x.dtype), out=out)


def row_sum(x: Array, out: Array | None = None) -> Any:
    """The sum of each row; written to ``out`` if given."""
    if _has_dot(x):
        return _dot(x, np.ones_like(x, shape=x.shape[-1:]), out=out, keepdims=True)
    return np.sum(x, axis=-1, keepdims=True, dtype=wide(x.dtype), out=out)


def _has_dot(x: Array) -> bool:
    """Whether BLAS has a dot product for the type."""
    return x.dtype.char in "fd"
