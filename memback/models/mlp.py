"""Multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from memback import nn, ops
from memback.models.classifier import Classifier, Depth, activation_of
from memback.tape import Tensor

__all__ = ["MLP"]


class MLP(Classifier):
    """A multilayer perceptron; each hidden layer is a unit of one chain, which checkpoint policies cut.

    Args:
        inputs: features of a sample; samples of more dimensions are flattened.
        outputs: classes, or target features.
        hidden: widths of the hidden layers; or
        width: their common width, and
        depth: their number.
        activation: after each hidden layer.
        objective: ``cross_entropy``, or ``sqerr`` (Eq. 10b) for targets of the output's shape.
        dtype: of the parameters.

    Raises:
        ValueError: neither ``hidden`` nor ``width`` and ``depth`` are given, or both.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        hidden: list[int] | None = None,
        width: int | None = None,
        depth: Depth | None = None,
        activation: str = "relu",
        objective: str = "cross_entropy",
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if (hidden is None and (width is None or depth is None)) or (hidden is not None and (width or depth)):
            raise ValueError("give either `hidden`, a list of widths, or `width` and `depth`")
        if objective not in ("cross_entropy", "sqerr"):
            raise ValueError(f"`objective` (={objective!r}) must be 'cross_entropy' or 'sqerr'")
        widths = [inputs, *(hidden if hidden is not None else [width or 0] * (depth or 0))]
        pairs = pairwise(widths)
        units = [nn.Sequential(nn.Linear(a, b, dtype=dtype), activation_of(activation)) for a, b in pairs]
        self.layers = nn.Sequential(*units, nn.Linear(widths[-1], outputs, dtype=dtype))
        self.objective = objective
        self.reduction = "sum" if objective == "sqerr" else "mean"

    def forward(self, x: Any) -> Tensor:
        if x.ndim > 2:
            x = ops.reshape(x, (x.shape[0], -1))
        return self.layers(x)

    def loss(self, x: Any, y: Any) -> Tensor:
        return ops.sqerr(self(x), y) if self.objective == "sqerr" else super().loss(x, y)
