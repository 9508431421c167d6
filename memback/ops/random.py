"""Random ops."""

from __future__ import annotations

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.masks import Mask, MaskForm, apply_mask, check_dropout, draw_mask

__all__ = ["dropout"]


class Dropout(Op):
    """x m / (1 - p), with each m 0 with probability p and 1 otherwise.

    The output has the input's shape and dtype. Keeps the mask alone, as ``mask`` says: a byte an element, a bit, or
    only its random key; all three are the same mask. If p = 0, or not in training, the output is the input itself and
    nothing is kept. Where no backward will follow no mask is made.
    """

    name = "dropout"
    source = "Srivastava et al. 2014, JMLR 15(56); Hinton et al. 2012, arXiv 1207.0580"
    residuals = ("kept",)
    saves = {"input": ("kept",)}

    def forward(
        self, input: Array, p: float = 0.5, training: bool = True, mask: MaskForm = "bool", keep: bool = True
    ) -> tuple[Array, Mask | None]:
        check_dropout(p, mask)
        if not training or p == 0:
            return input[...], None
        kept = draw_mask(input, 1, input.size, p, mask if keep else "seed")
        return self._masked(input, kept, p), kept if keep else None

    def _masked(self, x: Array, kept: Mask, p: float) -> Array:
        out = np.empty_like(x, shape=x.shape, order="C")
        np.copyto(out, x)
        apply_mask(out, kept, p)
        return out

    def vjp(self, d_out: Array, kept: Mask | None, p: float) -> Array:
        return d_out if kept is None else self._masked(d_out, kept, p)

    def flops(self, out: Array, p: float, training: bool) -> int:
        return 2 * out.size if training and p else 0

    def makes_residuals(self, p: float, training: bool) -> bool:
        return training and p > 0


dropout = Dropout()
