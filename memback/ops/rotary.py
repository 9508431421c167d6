"""Rotary position embedding."""

from __future__ import annotations

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.workspace import wide

__all__ = ["rotary"]


class Rotary(Op):
    """Rotate each pair of features (i, i + E/2) of the vector at position t by the angle (t + offset) base^(-2 i / E).

    Input (..., L, E) with E even; output of its shape and dtype. Features are paired half with half, as in Llama. The
    scalar product of two rotated vectors depends on the distance of their positions alone. Keeps nothing: the gradient
    is rotated back. Angles are computed in float64, their cosines and sines used in float32 at least.
    """

    name = "rotary"
    source = "Su et al. 2021, arXiv 2104.09864, Eq. 34"
    saves = {"input": ()}

    def forward(self, input: Array, base: float = 10000.0, offset: int = 0) -> Array:
        if input.ndim < 2 or input.shape[-1] % 2:
            raise ValueError(f"rotary: the input must have shape (..., L, E) with E even, it has {input.shape}")
        return _rotate(input, base, offset, backwards=False)

    def vjp(self, d_out: Array, base: float, offset: int) -> Array:
        return _rotate(d_out, base, offset, backwards=True)

    def flops(self, out: Array) -> int:
        return 3 * out.size


def _rotate(x: Array, base: float, offset: int, backwards: bool) -> Array:
    length, half = x.shape[-2], x.shape[-1] // 2
    positions = np.arange(offset, offset + length, dtype=np.float64, like=x)
    frequencies = np.power(float(base), np.arange(half, like=x) / -half)
    angles = np.empty_like(x, shape=(length, half), dtype=np.float64, order="C")
    np.multiply(positions[:, None], -frequencies if backwards else frequencies, out=angles)
    cosines, sines = (np.empty_like(angles, dtype=wide(x.dtype)) for _ in range(2))
    np.cos(angles, out=cosines, casting="same_kind")
    np.sin(angles, out=sines, casting="same_kind")
    del angles
    out = np.empty_like(x)
    _mix(x[..., :half], cosines, x[..., half:], -sines, out[..., :half])
    _mix(x[..., :half], sines, x[..., half:], cosines, out[..., half:])
    return out


def _mix(x: Array, a: Array, y: Array, b: Array, out: Array) -> None:
    """Write x a + y b into ``out``."""
    product = np.multiply(x, a)
    other = np.multiply(y, b)
    np.add(product, other, out=out, casting="same_kind")


rotary = Rotary()
