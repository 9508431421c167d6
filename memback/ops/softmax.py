"""Softmax, its logarithm, and the softmax of attention scores."""

from __future__ import annotations

import numpy as np

from memback import compiled
from memback.arrays import Array
from memback.op import Op

__all__ = ["attention_softmax", "log_softmax", "softmax"]


class Softmax(Op):
    """e^x_i / sum_j e^x_j over ``dim``, shifted by the maximum so that nothing overflows. Keeps its output.

    dL/dx_i = out_i (dL/dout_i - sum_j out_j dL/dout_j).
    """

    name = "softmax"
    source = "d out_j/dx_i = out_j (delta_ij - out_i)"
    saves = {"input": ("out",)}

    def forward(self, input: Array, dim: int = -1) -> Array:
        out = np.empty_like(input)
        if _is_last(dim, input) and compiled.run("softmax", input, 1.0, 0, out):
            return out
        np.subtract(input, np.max(input, axis=dim, keepdims=True), out=out)
        return _normalise(out, dim)

    def vjp(self, d_out: Array, out: Array, dim: int) -> Array:
        d_input = np.empty_like(d_out)
        if _is_last(dim, out) and compiled.run("softmax_gradient", d_out, out, 1.0, d_input):
            return d_input
        return _pull_back(d_out, out, dim, d_input)

    def flops(self, input: Array) -> int:
        return 5 * input.size


def _normalise(shifted: Array, dim: int) -> Array:
    np.exp(shifted, out=shifted)
    return np.divide(shifted, np.sum(shifted, axis=dim, keepdims=True), out=shifted)


def _is_last(dim: int, x: Array) -> bool:
    return dim in (-1, x.ndim - 1)


def _pull_back(d_out: Array, out: Array, dim: int, d_input: Array) -> Array:
    np.multiply(d_out, out, out=d_input)
    inner = np.sum(d_input, axis=dim, keepdims=True)
    np.subtract(d_out, inner, out=d_input)
    return np.multiply(d_input, out, out=d_input)


class AttentionSoftmax(Op):
    """softmax(scale input) over the last dimension, for scores (..., L, S) of attention. Keeps its output.

    With ``is_causal`` query i sees keys 0..i alone: the others get probability 0, and no gradient.
    """

    name = "attention_softmax"
    source = "Vaswani et al. 2017, arXiv 1706.03762, Eq. 1"
    saves = {"input": ("out",)}

    def forward(self, input: Array, scale: float = 1.0, is_causal: bool = False) -> Array:
        out = np.empty_like(input)
        if compiled.run("softmax", input, scale, input.shape[-2] if is_causal else 0, out):
            return out
        np.multiply(input, scale, out=out)
        if is_causal:
            rows, columns = input.shape[-2:]
            later = np.empty_like(input, shape=(rows, columns), dtype=bool)
            np.greater(np.arange(columns), np.arange(rows)[:, None], out=later)
            np.copyto(out, -np.inf, where=later)
        np.subtract(out, np.max(out, axis=-1, keepdims=True), out=out)
        return _normalise(out, -1)

    def vjp(self, d_out: Array, out: Array, scale: float) -> Array:
        d_input = np.empty_like(d_out)
        if compiled.run("softmax_gradient", d_out, out, scale, d_input):
            return d_input
        _pull_back(d_out, out, -1, d_input)
        return np.multiply(d_input, scale, out=d_input)

    def flops(self, input: Array) -> int:
        return 6 * input.size


class LogSoftmax(Op):
    """x_i - log sum_j e^x_j over ``dim``. Keeps its output.

    dL/dx_i = dL/dout_i - e^out_i sum_j dL/dout_j.
    """

    name = "log_softmax"
    source = "d out_j/dx_i = delta_ij - e^out_i"
    saves = {"input": ("out",)}

    def forward(self, input: Array, dim: int = -1) -> Array:
        out = np.subtract(input, np.max(input, axis=dim, keepdims=True))
        powers = np.exp(out)
        total = np.sum(powers, axis=dim, keepdims=True)
        return np.subtract(out, np.log(total), out=out)

    def vjp(self, d_out: Array, out: Array, dim: int) -> Array:
        total = np.sum(d_out, axis=dim, keepdims=True)
        d_input = np.exp(out)
        np.multiply(d_input, total, out=d_input)
        return np.subtract(d_out, d_input, out=d_input)

    def flops(self, input: Array) -> int:
        return 5 * input.size


attention_softmax = AttentionSoftmax()
log_softmax = LogSoftmax()
softmax = Softmax()
