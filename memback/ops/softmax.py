"""Softmax, its logarithm, and the softmax of attention scores."""

from __future__ import annotations

from functools import partial

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops import compiled
from memback.ops.row_sums import row_dot, row_sum
from memback.ops.workspace import in_wide_parts, parts, wide

__all__ = ["attention_softmax", "log_softmax", "softmax"]


class Softmax(Op):
    """e^x_i / sum_j e^x_j over ``dim``, shifted by the maximum so that nothing overflows. Keeps its output.

    dL/dx_i = out_i (dL/dout_i - sum_j out_j dL/dout_j).
    """

    name = "softmax"
    source = "d out_j/dx_i = out_j (delta_ij - out_i)"
    saves = {"input": ("out",)}

    def forward(self, input: Array, dim: int = -1) -> Array:
        return in_wide_parts(partial(_softmax, dim), dim, input)

    def vjp(self, d_out: Array, out: Array, dim: int) -> Array:
        return in_wide_parts(partial(_softmax_gradient, dim), dim, d_out, out)

    def flops(self, input: Array) -> int:
        return 5 * input.size


def _softmax(dim: int, x: Array) -> Array:
    out = np.empty_like(x, dtype=wide(x.dtype))
    if _is_last(dim, x) and compiled.run("softmax", x, 1.0, 0, out):
        return out
    np.subtract(x, np.max(x, axis=dim, keepdims=True), out=out, dtype=out.dtype)
    return _normalise(out, dim)


def _softmax_gradient(dim: int, d_out: Array, out: Array) -> Array:
    d_input = np.empty_like(d_out, dtype=wide(d_out.dtype))
    if _is_last(dim, out) and compiled.run("softmax_gradient", d_out, out, 1.0, d_input):
        return d_input
    return _pull_back(d_out, out, dim, d_input)


def _normalise(shifted: Array, dim: int) -> Array:
    np.exp(shifted, out=shifted)
    share = row_sum(shifted) if _is_last(dim, shifted) else np.sum(shifted, axis=dim, keepdims=True)
    np.reciprocal(share, out=share)
    return np.multiply(shifted, share, out=shifted)


def _is_last(dim: int, x: Array) -> bool:
    return dim in (-1, x.ndim - 1)


def _pull_back(d_out: Array, out: Array, dim: int, d_input: Array) -> Array:
    if _is_last(dim, out):
        inner = row_dot(d_out, out)
    else:
        inner = np.sum(np.multiply(d_out, out, out=d_input, dtype=d_input.dtype), axis=dim, keepdims=True)
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
        highest = _highest(input) if is_causal else None
        for part in parts(input):
            p = _room(out[part])
            np.multiply(input[part], scale, out=p, dtype=p.dtype)
            if highest is not None:
                np.fmin(p, highest[part], out=p)
            np.subtract(p, np.max(p, axis=-1, keepdims=True), out=p)
            _store(_normalise(p, -1), out[part])
            del p  # before the next part's
        return out

    def vjp(self, d_out: Array, out: Array, scale: float) -> Array:
        d_input = np.empty_like(d_out)
        if compiled.run("softmax_gradient", d_out, out, scale, d_input):
            return d_input
        for part in parts(d_out):
            d_scores = _pull_back(d_out[part], out[part], -1, _room(d_input[part]))
            _store(np.multiply(d_scores, scale, out=d_scores), d_input[part])
            del d_scores
        return d_input

    def flops(self, input: Array) -> int:
        return 6 * input.size


def _room(out: Array) -> Array:
    """Where to calculate what belongs into ``out``: there, or in an array of the wide type."""
    return out if out.dtype == wide(out.dtype) else np.empty_like(out, dtype=wide(out.dtype))


def _store(made: Array, out: Array) -> None:
    """Round what was calculated in :func:`_room`."""
    if made.dtype != out.dtype:
        np.copyto(out, made, casting="same_kind")


def _highest(scores: Array) -> Array:
    """What each score may be at most: -inf where the key comes after the query, and inf where it does not."""
    rows, columns = scores.shape[-2:]
    highest = np.full_like(scores, np.inf, shape=(rows, columns))
    keys, queries = np.arange(columns, like=scores), np.arange(rows, like=scores)
    later = np.greater(keys, queries[:, None], out=np.empty_like(highest, dtype=bool))
    del keys, queries
    np.copyto(highest, -np.inf, where=later)
    return np.broadcast_to(highest, scores.shape)


class LogSoftmax(Op):
    """x_i - log sum_j e^x_j over ``dim``. Keeps its output.

    dL/dx_i = dL/dout_i - e^out_i sum_j dL/dout_j.
    """

    name = "log_softmax"
    source = "d out_j/dx_i = delta_ij - e^out_i"
    saves = {"input": ("out",)}

    def forward(self, input: Array, dim: int = -1) -> Array:
        return in_wide_parts(partial(_log_softmax, dim), dim, input)

    def vjp(self, d_out: Array, out: Array, dim: int) -> Array:
        return in_wide_parts(partial(_log_softmax_gradient, dim), dim, d_out, out)

    def flops(self, input: Array) -> int:
        return 5 * input.size


def _log_softmax(dim: int, x: Array) -> Array:
    out = np.subtract(x, np.max(x, axis=dim, keepdims=True), dtype=wide(x.dtype))
    powers = np.exp(out)
    total = np.sum(powers, axis=dim, keepdims=True)
    return np.subtract(out, np.log(total), out=out)


def _log_softmax_gradient(dim: int, d_out: Array, out: Array) -> Array:
    total = np.sum(d_out, axis=dim, keepdims=True, dtype=wide(d_out.dtype))
    d_input = np.exp(out, dtype=wide(out.dtype))
    np.multiply(d_input, total, out=d_input)
    return np.subtract(d_out, d_input, out=d_input)


attention_softmax = AttentionSoftmax()
log_softmax = LogSoftmax()
softmax = Softmax()
