"""Where parameters and buffers come from: the one place that makes them, with memory or, on a dry run, without.

Values are drawn from a generator that derives from memback's own random stream, one draw a parameter, so that
``mb.manual_seed`` decides them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from memback.nn.module import Parameter
from memback.shape_array import ShapeArray
from memback.state import current

__all__ = ["Fill", "buffer", "constant", "normal", "parameter", "uniform"]

Fill: TypeAlias = "Callable[[np.random.Generator, tuple[int, ...]], Any]"  # a string: numpy.random takes long to load
"""Gives an array's values from a generator and a shape."""


def parameter(shape: Sequence[int], dtype: Any, fill: Fill) -> Parameter:
    """A trainable parameter."""
    return Parameter(_make(tuple(shape), dtype, fill))


def buffer(shape: Sequence[int], dtype: Any, value: float) -> Any:
    """An array that belongs to the state but is not trained."""
    return _make(tuple(shape), dtype, constant(value))


def _make(shape: tuple[int, ...], dtype: Any, fill: Fill) -> Any:
    if min(shape, default=1) < 1:
        raise ValueError(f"a parameter of shape {shape} has no elements: every size must be at least 1")
    dtype = _dtype(dtype)
    state = current()
    if state.dry:
        state.draw()
        return ShapeArray.argument(shape, dtype)
    values = fill(np.random.Generator(np.random.Philox(key=np.array(state.draw(), np.uint64))), shape)
    return np.asarray(values).astype(dtype, copy=False)


def _dtype(dtype: Any) -> np.dtype[Any]:
    if dtype == "bfloat16":
        import ml_dtypes  # noqa: F401 - teaches NumPy the name

    return np.dtype(dtype)


def constant(value: float) -> Fill:
    """Every element the same."""
    return lambda generator, shape: np.full(shape, value, np.float32)


def normal(deviation: float) -> Fill:
    """Normally distributed around 0."""
    return lambda generator, shape: generator.standard_normal(shape, np.float32) * np.float32(deviation)


def uniform(fan_in: int) -> Fill:
    """Uniform in +-1/sqrt(fan_in): PyTorch's default for weights and biases of linear layers and convolutions."""
    bound = 1 / math.sqrt(max(1, fan_in))
    return lambda generator, shape: generator.uniform(-bound, bound, shape)
