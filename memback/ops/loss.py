"""Losses: scalars at which backward begins."""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.arrays import Array
from memback.op import Op

__all__ = ["sqerr"]


class Sqerr(Op):
    """Half the summed squared error, L = 1/2 sum_i (f_i - y_i)^2, with gradients for both f and y."""

    name = "sqerr"
    source = "Eqs. 10b, 29"
    saves = {"f": ("f", "y"), "y": ("f", "y")}

    def forward(self, f: Array, y: Array) -> Array:
        difference = np.subtract(f, y)
        np.multiply(difference, difference, out=difference)
        return np.multiply(np.sum(difference), 0.5)

    def vjp(self, d_out: Array, needs: Any, f: Array, y: Array) -> tuple[Array | None, Array | None]:
        d_f = np.subtract(f, y)
        np.multiply(d_f, d_out, out=d_f)
        return (d_f if needs.f else None), (np.negative(d_f) if needs.y else None)

    def flops(self, f: Array) -> int:
        return 3 * f.size + 1

    def closed_jacobian(self, f: Array, y: Array) -> tuple[Array, Array]:
        """dL/df_i = f_i - y_i and dL/dy_i = y_i - f_i, from Eq. 10b."""
        return np.subtract(f, y), np.subtract(y, f)


sqerr = Sqerr()
