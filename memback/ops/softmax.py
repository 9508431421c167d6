"""Softmax and its logarithm over one dimension."""

from __future__ import annotations

import numpy as np

from memback.arrays import Array
from memback.op import Op

__all__ = ["log_softmax", "softmax"]


class Softmax(Op):
    """e^x_i / sum_j e^x_j over ``dim``, shifted by the maximum so that nothing overflows. Keeps its output.

    dL/dx_i = out_i (dL/dout_i - sum_j out_j dL/dout_j).
    """

    name = "softmax"
    source = "d out_j/dx_i = out_j (delta_ij - out_i)"
    saves = {"input": ("out",)}

    def forward(self, input: Array, dim: int = -1) -> Array:
        out = np.subtract(input, np.max(input, axis=dim, keepdims=True))
        np.exp(out, out=out)
        return np.divide(out, np.sum(out, axis=dim, keepdims=True), out=out)

    def vjp(self, d_out: Array, out: Array, dim: int) -> Array:
        d_input = np.multiply(d_out, out)
        inner = np.sum(d_input, axis=dim, keepdims=True)
        np.subtract(d_out, inner, out=d_input)
        return np.multiply(d_input, out, out=d_input)

    def flops(self, input: Array) -> int:
        return 5 * input.size


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


log_softmax = LogSoftmax()
softmax = Softmax()
