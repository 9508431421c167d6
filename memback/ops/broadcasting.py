"""Undoing NumPy's broadcasting in backward."""

from __future__ import annotations

import numpy as np

from memback.engine.arrays import Array
from memback.ops.workspace import wide

__all__ = ["unbroadcast"]


def unbroadcast(grad: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``grad`` over the dimensions along which an input of ``shape`` was repeated: dL/d(input)."""
    if grad.shape == shape:
        return grad
    lead = grad.ndim - len(shape)
    stretched = tuple(i + lead for i, n in enumerate(shape) if n == 1 and grad.shape[i + lead] != 1)
    summed = np.sum(grad, axis=(*range(lead), *stretched), dtype=wide(grad.dtype))
    return np.reshape(summed.astype(grad.dtype, copy=False), shape)
