"""Sums, means and extremes over dimensions, with PyTorch's ``dim`` and ``keepdim``.

Sums of float16 and bfloat16 are accumulated in float32 and rounded once, here and in every op.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.workspace import average, wide

__all__ = ["max", "mean", "sum", "var"]

Dim: TypeAlias = "int | Sequence[int] | None"


class _Reduction(Op):
    def flops(self, input: Array) -> int:
        return input.size


def _axes(dim: Dim, ndim: int) -> tuple[int, ...]:
    dims = range(ndim) if dim is None else (dim,) if isinstance(dim, (int, np.integer)) else tuple(dim)
    for d in dims:
        if not -ndim <= d < ndim:
            raise ValueError(f"`dim` (={d}) is out of range for an input of {ndim} dimensions")
    return tuple(sorted(d % ndim for d in dims))


def _stretch(grad: Array, shape: tuple[int, ...], dim: Dim) -> Array:
    """A gradient of a reduction's output, repeated over the dimensions that were reduced: a view."""
    axes = _axes(dim, len(shape))
    kept = tuple(1 if d in axes else n for d, n in enumerate(shape))
    return np.broadcast_to(np.reshape(grad, kept), shape)


def _count(shape: tuple[int, ...], dim: Dim) -> int:
    return prod(shape[d] for d in _axes(dim, len(shape)))


class Sum(_Reduction):
    """Sum over ``dim`` (all by default), in the input's dtype. Keeps nothing."""

    name = "sum"
    source = "d(sum x)/dx_i = 1"
    saves = {"input": ()}

    def forward(self, input: Array, dim: Dim = None, keepdim: bool = False) -> Array:
        total = np.sum(input, axis=_axes(dim, input.ndim), keepdims=keepdim, dtype=wide(input.dtype))
        return total.astype(input.dtype, copy=False)

    def vjp(self, d_out: Array, shapes: list[tuple[int, ...]], dim: Dim) -> Array:
        return _stretch(d_out, shapes[0], dim)


class Mean(_Reduction):
    """Mean over ``dim`` (all by default). Keeps nothing."""

    name = "mean"
    source = "d(mean x)/dx_i = 1/n"
    saves = {"input": ()}

    def forward(self, input: Array, dim: Dim = None, keepdim: bool = False) -> Array:
        return average(input, _axes(dim, input.ndim), keepdim)

    def vjp(self, d_out: Array, shapes: list[tuple[int, ...]], dim: Dim) -> Array:
        share = np.divide(d_out, _count(shapes[0], dim), dtype=wide(d_out.dtype))  # float16 counts to 65,504
        return _stretch(share.astype(d_out.dtype, copy=False), shapes[0], dim)


class Var(_Reduction):
    """Variance over ``dim``, divided by n - correction. Keeps its input; the mean is recomputed in backward."""

    name = "var"
    source = "d(var x)/dx_i = 2 (x_i - mean) / (n - correction)"
    saves = {"input": ("input",)}

    def forward(self, input: Array, dim: Dim = None, correction: int = 1, keepdim: bool = False) -> Array:
        axes = _axes(dim, input.ndim)
        squares = _centred(input, axes)
        np.multiply(squares, squares, out=squares)
        total = np.sum(squares, axis=axes, keepdims=keepdim)
        total = np.divide(total, _count(input.shape, dim) - correction)
        return total.astype(input.dtype)

    def vjp(self, d_out: Array, input: Array, dim: Dim, correction: int) -> Array:
        d_input = _centred(input, _axes(dim, input.ndim))
        np.multiply(d_input, 2 / (_count(input.shape, dim) - correction), out=d_input)
        return np.multiply(d_input, _stretch(d_out, input.shape, dim), out=d_input)

    def flops(self, input: Array) -> int:
        return 4 * input.size


def _centred(x: Array, axes: tuple[int, ...]) -> Array:
    return np.subtract(x, np.mean(x, axis=axes, keepdims=True, dtype=wide(x.dtype)))


class Max(Op):
    """Maximum over one dimension, or of everything; the first of equal elements gets the gradient.

    Keeps the place of the maximum, in the smallest integer type that can count that far. (PyTorch spreads the gradient
    of a maximum of everything evenly over equal elements.)
    """

    name = "max"
    source = "out = x_k with the largest x_k: d out/dx_i = delta_ik"
    saves = {"input": ("place",)}
    residuals = ("place",)

    def forward(
        self, input: Array, dim: int | None = None, keepdim: bool = False, *, keep: bool
    ) -> tuple[Array, Array | None]:
        if dim is not None and not isinstance(dim, (int, np.integer)):
            raise ValueError(f"`dim` (={dim}) must be one dimension or None, which is all of them")
        axis = None if dim is None else _axes(int(dim), input.ndim)[0]
        out = np.max(input, axis=axis, keepdims=keepdim)
        if not keep:
            return out, None
        length = input.size if axis is None else input.shape[axis]
        place = np.argmax(input, axis=axis, keepdims=True)
        return out, np.asarray(place) if length < 1 else place.astype(np.min_scalar_type(length - 1))

    def vjp(self, d_out: Array, place: Array, shapes: list[tuple[int, ...]], dim: int | None) -> Array:
        shape = shapes[0]
        axis = None if dim is None else _axes(dim, len(shape))[0]
        d_input = np.zeros_like(d_out, shape=(prod(shape),) if axis is None else shape)
        if axis is None:
            np.put_along_axis(d_input, np.reshape(place, (1,)), np.reshape(d_out, (1,)), 0)
            return np.reshape(d_input, shape)
        np.put_along_axis(d_input, place, np.reshape(d_out, place.shape), axis)
        return d_input

    def flops(self, input: Array) -> int:
        return input.size


max = Max()
mean = Mean()
sum = Sum()
var = Var()
