"""Elementwise arithmetic with broadcasting, and the activations."""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.arrays import Array
from memback.op import Op
from memback.ops.broadcasting import unbroadcast

__all__ = ["add", "multiply", "relu"]


class Add(Op):
    """x + y."""

    name = "add"
    source = "d(x + y)/dx = d(x + y)/dy = 1"
    saves = {"x": (), "y": ()}

    def forward(self, x: Array, y: Array) -> Array:
        return np.add(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(d_out, shapes[0]) if needs.x else None,
            unbroadcast(d_out, shapes[1]) if needs.y else None,
        )

    def flops(self, out: Array) -> int:
        return out.size


class Multiply(Op):
    """x y: to differentiate by one factor, the other one is kept."""

    name = "multiply"
    source = "d(xy)/dx = y"
    saves = {"x": ("y",), "y": ("x",)}

    def forward(self, x: Array, y: Array) -> Array:
        return np.multiply(x, y)

    def vjp(self, d_out: Array, needs: Any, shapes: Any, x: Array, y: Array) -> tuple[Array | None, Array | None]:
        return (
            unbroadcast(np.multiply(d_out, y), shapes[0]) if needs.x else None,
            unbroadcast(np.multiply(d_out, x), shapes[1]) if needs.y else None,
        )

    def flops(self, out: Array) -> int:
        return out.size


class Relu(Op):
    """max(a, 0), whose derivative at 0 is 0 (Eqs. 17, 18). Keeps its output, which the next layer keeps anyway."""

    name = "relu"
    source = "Eqs. 17-23, 27"
    saves = {"a": ("out",)}

    def forward(self, a: Array) -> Array:
        return np.maximum(a, 0)

    def vjp(self, d_out: Array, out: Array) -> Array:
        return np.multiply(d_out, np.greater(out, 0))

    def flops(self, out: Array) -> int:
        return out.size

    def closed_jacobian(self, a: Array) -> tuple[Array]:
        """delta_{j alpha} Theta(a_j) (Eq. 20)."""
        step = np.greater(a, 0).astype(a.dtype)
        return (np.diag(step.reshape(-1)).reshape(a.shape + a.shape),)


add = Add()
multiply = Multiply()
relu = Relu()
