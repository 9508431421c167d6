"""Loops that Numba compiles: what takes NumPy many passes over the data, in one or two.

Imported only by :mod:`memback.compiled`. Each kernel takes dense float32 arrays, writes into those that come last and
makes none, so that it has no workspace at all. All are compiled when this module is imported and kept on disk for the
next process: compiling in the middle of a measured step would be counted as that step's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types

__all__ = ["KERNELS", "Kernel"]


class Kernel(NamedTuple):
    """A compiled function, and what it takes for arrays: place among its arguments, dtype, number of dimensions."""

    function: Callable[..., None]
    arrays: tuple[tuple[int, np.dtype[Any], int], ...]


KERNELS: dict[str, Kernel] = {}
"""The kernels by name."""

F = np.float32
_ELEMENTS, _ROWS = (types.Array(types.float32, n, "C", readonly=True) for n in (1, 2))
_ELEMENTS_OUT, _ROWS_OUT = types.float32[::1], types.float32[:, ::1]

# Neither may NaN be taken for impossible, nor may a sum be put in another order than it is written in, which would undo
# the rounding in `_exp`; only sums over rows may, since that is what makes them fast.
_ELEMENT_MATHS = {"contract", "nsz", "arcp"}
_ROW_MATHS = {*_ELEMENT_MATHS, "reassoc"}


def _kernel(*signature: Any, maths: set[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def compile(function: Callable[..., None]) -> Callable[..., None]:
        decorate = njit(types.void(*signature), fastmath=maths, error_model="numpy", nogil=True, cache=True)
        arrays = tuple(
            (place, np.dtype(str(kind.dtype)), kind.ndim)
            for place, kind in enumerate(signature)
            if isinstance(kind, types.Array)
        )
        KERNELS[function.__name__] = Kernel(decorate(function), arrays)
        return function

    return compile


# -- e^x: x = n log 2 + r, a polynomial for e^r (Cephes, expf.c: relative error 1.7e-7), 2^n by its bits

_LOWEST, _HIGHEST = F(-87.33), F(88.72)
_LOG2_E, _ROUND = F(1.4426950408889634), F(1.5 * 2**23)
_LOG_2, _LOG_2_REST = F(0.693359375), F(-2.12194440e-4)
_P0, _P1, _P2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
_P3, _P4, _P5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
_ZERO, _ONE = F(0), F(1)


@njit(types.float32(types.float32), fastmath=_ELEMENT_MATHS, error_model="numpy", cache=True)
def _exp(x: Any) -> Any:
    y = _LOWEST if x < _LOWEST else x
    y = _HIGHEST if y > _HIGHEST else y
    shifted = y * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = y - n * _LOG_2
    r = r - n * _LOG_2_REST
    p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
    p = p * (r * r) + r + _ONE
    power = np.int32((F(shifted).view(np.int32) + np.int32(127)) << np.int32(23)).view(F)
    return _ZERO if x < _LOWEST else p * power


# -- GELU by a tanh: x (1 + tanh u) / 2 = x / (1 + e^-2u) with 2u = x (_CUBIC x^2 + _LINEAR)

_LINEAR = F(2 * (2 / np.pi) ** 0.5)
_CUBIC = F(0.044715 * 2 * (2 / np.pi) ** 0.5)
_SLOPE_CUBIC = F(3 * 0.044715 * 2 * (2 / np.pi) ** 0.5)


@_kernel(_ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def gelu_tanh(x: Any, out: Any) -> None:
    for i in range(x.size):
        v = x[i]
        out[i] = v / (_ONE + _exp(-v * (_CUBIC * (v * v) + _LINEAR)))


@_kernel(_ELEMENTS, _ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def gelu_tanh_gradient(d_out: Any, x: Any, d_x: Any) -> None:
    for i in range(x.size):
        v = x[i]
        square = v * v
        gate = _ONE / (_ONE + _exp(-v * (_CUBIC * square + _LINEAR)))
        d_x[i] = d_out[i] * (gate + gate * (_ONE - gate) * (v * (_SLOPE_CUBIC * square + _LINEAR)))


# -- layer norm of the rows of a matrix, formulas as in memback.ops.normalisation


@_kernel(_ROWS, _ELEMENTS, _ELEMENTS, types.float32, _ELEMENTS_OUT, _ELEMENTS_OUT, _ROWS_OUT, maths=_ROW_MATHS)
def layer_norm(x: Any, weight: Any, bias: Any, eps: Any, mean: Any, rstd: Any, out: Any) -> None:
    n, width = x.shape
    share = _ONE / F(width)
    for i in range(n):
        total = _ZERO
        for j in range(width):
            total += x[i, j]
        centre = total * share
        squares = _ZERO
        for j in range(width):
            z = x[i, j] - centre
            squares += z * z
        scale = _ONE / np.sqrt(squares * share + eps)
        mean[i] = centre
        rstd[i] = scale
        for j in range(width):
            out[i, j] = (x[i, j] - centre) * scale * weight[j] + bias[j]


@_kernel(_ROWS, _ROWS, _ELEMENTS, _ELEMENTS, _ELEMENTS, _ROWS_OUT, maths=_ROW_MATHS)
def layer_norm_gradient(d_out: Any, x: Any, weight: Any, mean: Any, rstd: Any, d_x: Any) -> None:
    n, width = x.shape
    share = _ONE / F(width)
    for i in range(n):
        centre, scale = mean[i], rstd[i]
        along_one = along_z = _ZERO
        for j in range(width):
            g = d_out[i, j] * weight[j]
            along_one += g
            along_z += g * ((x[i, j] - centre) * scale)
        along_one *= share
        along_z *= share
        for j in range(width):
            d_x[i, j] = scale * (d_out[i, j] * weight[j] - along_one - (x[i, j] - centre) * scale * along_z)


@_kernel(_ROWS, _ROWS, _ELEMENTS, _ELEMENTS, _ELEMENTS_OUT, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def layer_norm_sums(d_out: Any, x: Any, mean: Any, rstd: Any, d_weight: Any, d_bias: Any) -> None:
    n, width = x.shape
    for i in range(n):
        centre, scale = mean[i], rstd[i]
        for j in range(width):
            d_weight[j] += d_out[i, j] * ((x[i, j] - centre) * scale)
            d_bias[j] += d_out[i, j]


# -- softmax(scale x) over each row of a matrix; where `length` is not 0, row i sees columns 0..i mod length alone


@_kernel(_ROWS, types.float32, types.int64, _ROWS_OUT, maths=_ROW_MATHS)
def softmax(x: Any, scale: Any, length: Any, out: Any) -> None:
    n, width = x.shape
    for i in range(n):
        seen = min(width, i % length + 1) if length else width
        top = F(-np.inf)
        for j in range(seen):
            top = max(top, x[i, j] * scale)
        total = _ZERO
        for j in range(seen):
            power = _exp(x[i, j] * scale - top)
            out[i, j] = power
            total += power
        for j in range(seen):
            out[i, j] /= total
        for j in range(seen, width):
            out[i, j] = _ZERO / total  # not zero where the others are no numbers


@_kernel(_ROWS, _ROWS, types.float32, _ROWS_OUT, maths=_ROW_MATHS)
def softmax_gradient(d_out: Any, out: Any, scale: Any, d_x: Any) -> None:
    n, width = out.shape
    for i in range(n):
        inner = _ZERO
        for j in range(width):
            inner += d_out[i, j] * out[i, j]
        for j in range(width):
            d_x[i, j] = (d_out[i, j] - inner) * out[i, j] * scale


# -- rows that are picked by number


@_kernel(_ROWS, types.Array(types.int64, 1, "C", readonly=True), _ROWS_OUT, maths=_ELEMENT_MATHS)
def add_rows(rows: Any, numbers: Any, out: Any) -> None:
    for i in range(numbers.size):
        k = numbers[i]
        for j in range(rows.shape[1]):
            out[k, j] += rows[i, j]
