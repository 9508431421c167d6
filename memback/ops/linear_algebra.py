"""Matrix products."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.broadcasting import unbroadcast
from memback.ops.workspace import wide

__all__ = ["linear", "matmul"]


class Linear(Op):
    """a = h W + b, for an input h of shape (..., in), a weight W (in, out), and a bias b (out,) or None.

    Backward (answers 4 to 6 of the notes): dL/dh = dL/da W^T (Eq. 49), dL/dW = h^T dL/da (Eq. 53), dL/db = dL/da
    (Eq. 57), the latter two summed over the leading dimensions.
    """

    name = "linear"
    source = "Eqs. 10a, 28, 49, 53, 57"
    saves = {"input": ("weight",), "weight": ("input",), "bias": ()}
    renamed = {"h": "input", "W": "weight", "b": "bias"}
    matrix_product = True

    def forward(self, input: Array, weight: Array, bias: Array | None = None) -> Array:
        _check_linear(input.shape, weight.shape, bias)
        # one product of many rows is faster than many of few
        out = np.matmul(input if input.ndim == 2 else _rows(input), weight)
        if bias is not None:
            np.add(out, bias, out=out)
        return out if out.ndim == input.ndim else out.reshape(*input.shape[:-1], weight.shape[-1])

    def vjp(self, d_out: Array, needs: Any, input: Array, weight: Array) -> tuple[Array | None, ...]:
        flat = d_out if d_out.ndim == 2 else _rows(d_out)
        d_input = None
        if needs.input:
            d_input = np.matmul(flat, weight.T)
            d_input = d_input if flat is d_out else d_input.reshape(*d_out.shape[:-1], weight.shape[0])
        return (
            d_input,
            np.matmul((input if input.ndim == 2 else _rows(input)).T, flat) if needs.weight else None,
            _sum_of_rows(flat) if needs.bias else None,
        )

    def flops(self, input: Array, weight: Array, bias: Array | None, out: Array) -> int:
        return 2 * input.size * weight.shape[-1] + (0 if bias is None else out.size)

    def closed_jacobian(self, input: Array, weight: Array, bias: Array | None = None) -> tuple[Array | None, ...]:
        """W_{alpha j} (Eq. 39), h_alpha delta_{j beta} (Eq. 43) and delta_{j alpha} (Eq. 46), for each row of h."""
        n_out, rows = weight.shape[1], input.reshape(-1, input.shape[-1])
        a_shape = (*input.shape[:-1], n_out)
        same_row, same_out = np.eye(len(rows), dtype=weight.dtype), np.eye(n_out, dtype=weight.dtype)
        by_input = np.einsum("ij,rs->rjsi", weight, same_row).reshape(a_shape + input.shape)
        by_weight = np.einsum("ra,jb->rjab", rows, same_out).reshape(a_shape + weight.shape)
        if bias is None:
            return by_input, by_weight, None
        by_bias = np.broadcast_to(same_out, (len(rows), n_out, n_out)).reshape(a_shape + bias.shape)
        return by_input, by_weight, by_bias


def _check_linear(input: tuple[int, ...], weight: tuple[int, ...], bias: Array | None) -> None:
    if len(weight) != 2:
        raise ValueError(f"`weight` must have shape (in, out), it has {weight}")
    if input[-1:] != weight[:1]:
        raise ValueError(
            f"`input` of shape {input} has {input[-1] if input else 'no'} features, `weight` of shape {weight} takes"
            f" {weight[0]}"
        )
    if bias is not None and bias.shape != weight[1:]:
        raise ValueError(f"`bias` has shape {bias.shape}, it must have {weight[1:]}")


def _sum_of_rows(x: Array) -> Array:
    total: Array = np.add.reduce(x, axis=0, dtype=wide(x.dtype))
    return total if total.dtype == x.dtype else total.astype(x.dtype)


def _rows(x: Array) -> Array:
    """As one matrix: the leading dimensions in one."""
    return x.reshape(prod(x.shape[:-1]), x.shape[-1])


class Matmul(Op):
    """A matrix product by NumPy's rules: leading dimensions are batches and broadcast, a vector is a row or a column.

    dL/dA = dL/dC B^T and dL/dB = A^T dL/dC, summed over dimensions that were broadcast.
    """

    name = "matmul"
    source = "np.matmul; Eqs. 49 and 53 for each matrix of a batch"
    saves = {"input": ("other",), "other": ("input",)}

    def forward(self, input: Array, other: Array) -> Array:
        return np.matmul(input, other)

    def vjp(
        self, d_out: Array, needs: Any, shapes: list[tuple[int, ...]], input: Array, other: Array
    ) -> tuple[Array | None, Array | None]:
        row, column = len(shapes[0]) == 1, len(shapes[1]) == 1
        if column:
            d_out = np.expand_dims(d_out, -1)
        if row:
            d_out = np.expand_dims(d_out, -2)
        d_input = d_other = None
        if needs.input:
            right = np.expand_dims(other, -1) if column else other
            d_input = np.matmul(d_out, np.swapaxes(right, -1, -2))
            d_input = unbroadcast(d_input, (1, *shapes[0]) if row else shapes[0])
            d_input = np.reshape(d_input, shapes[0])
        if needs.other:
            left = np.expand_dims(input, -2) if row else input
            d_other = np.matmul(np.swapaxes(left, -1, -2), d_out)
            d_other = unbroadcast(d_other, (*shapes[1], 1) if column else shapes[1])
            d_other = np.reshape(d_other, shapes[1])
        return d_input, d_other

    def flops(self, input: Array, out: Array) -> int:
        return 2 * int(out.size) * input.shape[-1]


linear = Linear()
matmul = Matmul()
