"""Loops compiled by Numba: one or two passes over the data where NumPy takes many.

Imported only by :mod:`memback.ops.compiled`. Each kernel takes dense float32 arrays, writes into those that come last
and
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
_ELEMENT_MATHS = {"contract", "nsz"}
_ROW_MATHS = {*_ELEMENT_MATHS, "reassoc"}


def _compiled(signature: Any, maths: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        options: dict[str, Any] = {"fastmath": maths, "error_model": "numpy", "nogil": True}
        try:
            return njit(signature, cache=True, **options)(function)
        except RuntimeError:  # there is no folder where it could be kept
            return njit(signature, **options)(function)

    return compile


def _kernel(*signature: Any, maths: set[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(function: Callable[..., None]) -> Callable[..., None]:
        arrays = tuple(
            (place, np.dtype(str(kind.dtype)), kind.ndim)
            for place, kind in enumerate(signature)
            if isinstance(kind, types.Array)
        )
        KERNELS[function.__name__] = Kernel(_compiled(types.void(*signature), maths)(function), arrays)
        return function

    return register


# -- e^x: x = n log 2 + r, a polynomial for e^r (Cephes, expf.c: relative error 1.7e-7), 2^n by its bits

_LOWEST, _HIGHEST = F(-87.33), F(88.72)
_LOG2_E, _ROUND = F(1.4426950408889634), F(1.5 * 2**23)
_LOG_2, _LOG_2_REST = F(0.693359375), F(-2.12194440e-4)
_P0, _P1, _P2 = F(1.9875691500e-4), F(1.3981999507e-3), F(8.3334519073e-3)
_P3, _P4, _P5 = F(4.1665795894e-2), F(1.6666665459e-1), F(5.0000001201e-1)
_ZERO, _ONE = F(0), F(1)


@_compiled(types.float32(types.float32), _ELEMENT_MATHS)
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


# -- GELU: x Phi(x) with Phi(x) = erfc(-x / sqrt 2) / 2, erfc(y) e^(y^2) a rational function of y > 0 (Cody 1969, whose
# -- coefficients for 0.46875 to 4 also serve from 0 on, where erfc is of the size of 1)

_HALF, _ROOT_HALF, _FARTHEST = F(0.5), F(0.5**0.5), F(10)
_DENSITY = F((2 * np.pi) ** -0.5)
_N0, _N1, _N2 = F(1.23033935479799725e03), F(2.05107837782607147e03), F(1.71204761263407058e03)
_N3, _N4, _N5 = F(8.81952221241769090e02), F(2.98635138197400131e02), F(6.61191906371416295e01)
_N6, _N7, _N8 = F(8.88314979438837594e00), F(5.64188496988670089e-1), F(2.15311535474403846e-8)
_D0, _D1, _D2 = F(1.23033935480374942e03), F(3.43936767414372164e03), F(4.36261909014324716e03)
_D3, _D4, _D5 = F(3.29079923573345963e03), F(1.62138957456669019e03), F(5.37181101862009858e02)
_D6, _D7 = F(1.17693950891312499e02), F(1.57449261107098347e01)


@_compiled(types.float32(types.float32, types.float32), _ELEMENT_MATHS)
def _phi(x: Any, bell: Any) -> Any:
    """The normal distribution; ``bell`` is e^(-x^2 / 2)."""
    y = (-x if x < _ZERO else x) * _ROOT_HALF
    y = _FARTHEST if y > _FARTHEST else y
    top = (((((((_N8 * y + _N7) * y + _N6) * y + _N5) * y + _N4) * y + _N3) * y + _N2) * y + _N1) * y + _N0
    bottom = (((((((y + _D7) * y + _D6) * y + _D5) * y + _D4) * y + _D3) * y + _D2) * y + _D1) * y + _D0
    tail = _HALF * bell * (top / bottom)
    return tail if x < _ZERO else _ONE - tail


@_kernel(_ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def gelu_none(x: Any, out: Any) -> None:
    for i in range(x.size):
        v = x[i]
        out[i] = v * _phi(v, _exp(-_HALF * v * v))


@_kernel(_ELEMENTS, _ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def gelu_none_gradient(d_out: Any, x: Any, d_x: Any) -> None:
    for i in range(x.size):
        v = x[i]
        bell = _exp(-_HALF * v * v)
        d_x[i] = d_out[i] * (_phi(v, bell) + v * bell * _DENSITY)


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


# -- SiLU: x / (1 + e^-x)


@_kernel(_ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def silu(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = x[i] / (_ONE + _exp(-x[i]))


@_kernel(_ELEMENTS, _ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def silu_gradient(d_out: Any, x: Any, d_x: Any) -> None:
    for i in range(x.size):
        gate = _ONE / (_ONE + _exp(-x[i]))
        d_x[i] = d_out[i] * (gate + gate * (_ONE - gate) * x[i])


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


# -- RMS norm of the rows of a matrix


@_kernel(_ROWS, _ELEMENTS, types.float32, _ELEMENTS_OUT, _ROWS_OUT, maths=_ROW_MATHS)
def rms_norm(x: Any, weight: Any, eps: Any, rstd: Any, out: Any) -> None:
    n, width = x.shape
    share = _ONE / F(width)
    for i in range(n):
        squares = _ZERO
        for j in range(width):
            squares += x[i, j] * x[i, j]
        scale = _ONE / np.sqrt(squares * share + eps)
        rstd[i] = scale
        for j in range(width):
            out[i, j] = x[i, j] * scale * weight[j]


@_kernel(_ROWS, _ROWS, _ELEMENTS, _ELEMENTS, _ROWS_OUT, maths=_ROW_MATHS)
def rms_norm_gradient(d_out: Any, x: Any, weight: Any, rstd: Any, d_x: Any) -> None:
    n, width = x.shape
    share = _ONE / F(width)
    for i in range(n):
        scale = rstd[i]
        along_z = _ZERO
        for j in range(width):
            along_z += d_out[i, j] * weight[j] * (x[i, j] * scale)
        along_z *= share
        for j in range(width):
            d_x[i, j] = scale * (d_out[i, j] * weight[j] - x[i, j] * scale * along_z)


@_kernel(_ROWS, _ROWS, _ELEMENTS, _ELEMENTS_OUT, maths=_ELEMENT_MATHS)
def rms_norm_sums(d_out: Any, x: Any, rstd: Any, d_weight: Any) -> None:
    n, width = x.shape
    for i in range(n):
        scale = rstd[i]
        for j in range(width):
            d_weight[j] += d_out[i, j] * (x[i, j] * scale)


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
