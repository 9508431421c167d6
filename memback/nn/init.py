"""Where parameters and buffers come from: the one place that makes them, with memory or, on a dry run, without.

Values are drawn from a generator that derives from memback's own random stream, one draw a parameter, so that
``mb.manual_seed`` decides them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

from memback.engine.state import current
from memback.nn.module import Parameter

__all__ = ["Fill", "buffer", "constant", "looks_linear", "normal", "parameter", "uniform"]

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
    if state.dry is not None:
        state.draw()
        return state.dry.argument(shape, dtype)
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


def looks_linear(mirrored_in: bool = True, mirrored_out: bool = True, slope: float = 1.0) -> Fill:
    """An orthogonal matrix in mirrored pairs (Balduzzi et al. 2017, arXiv 1702.08591), for weights of shape (in, out).

    Outputs come in pairs z and -z, and the next layer weighs the pair f(z) and f(-z) by w and -w. For relu, gelu, silu
    and softplus f(z) - f(-z) = z, so a network of any depth begins as a rotation: signals and gradients keep their size
    and their directions. Where a size is odd, its last feature repeats the first, and weighs 0 in the next layer.

    Args:
        mirrored_in: whether inputs are such pairs: not those of the first layer.
        mirrored_out: whether outputs are to be: not those of the last layer.
        slope: of f(z) - f(-z) at 0, by which weights of mirrored inputs are divided.
    """

    def fill(generator: np.random.Generator, shape: tuple[int, ...]) -> Any:
        rows, columns = shape
        inner = max(1, rows // 2) if mirrored_in else rows
        outer = max(1, columns // 2) if mirrored_out else columns
        pairs = _orthogonal(generator, inner, outer)
        pairs = np.concatenate([pairs, -pairs], 1) if mirrored_out else pairs
        pairs = np.concatenate([pairs, -pairs]) / np.float32(slope) if mirrored_in else pairs
        weight = np.zeros(shape, np.float32)
        weight[: len(pairs), : pairs.shape[1]] = pairs[:rows, :columns]
        weight[:, pairs.shape[1] :] = weight[:, :1]
        return weight

    return fill


def _orthogonal(generator: np.random.Generator, rows: int, columns: int) -> Any:
    """Orthonormal rows or columns, whichever are fewer, of no preferred direction (Saxe et al. 2013, 1312.6120)."""
    long, short = max(rows, columns), min(rows, columns)
    q, r = np.linalg.qr(generator.standard_normal((long, short), np.float32))
    q = q * np.sign(np.diagonal(r))
    return q if rows >= columns else q.T
