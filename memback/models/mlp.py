"""Multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier, Depth, activation_of
from memback.nn import init

__all__ = ["MLP"]

_SLOPES = {"leaky_relu": 1.01, "tanh": 2.0, "sigmoid": 0.5}
"""Of f(z) - f(-z) at 0; 1 for all other activations."""


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
        initialisation: ``uniform`` in +-1/sqrt(inputs of the layer), PyTorch's default, with which every relu layer
            divides the mean square of the gradient by 6, so that a network of many layers learns nothing; or
            ``looks_linear`` (:func:`memback.nn.init.looks_linear`), with which signals and gradients keep their size.
            Weights of variance 2/inputs (He et al. 2015, arXiv 1502.01852, as Glorot & Bengio 2010 for tanh) keep it
            too, but after 100 layers all samples look the same.
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
        initialisation: Literal["uniform", "looks_linear"] = "uniform",
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if (hidden is None and (width is None or depth is None)) or (hidden is not None and (width or depth)):
            raise ValueError("give either `hidden`, a list of widths, or `width` and `depth`")
        if objective not in ("cross_entropy", "sqerr"):
            raise ValueError(f"`objective` (={objective!r}) must be 'cross_entropy' or 'sqerr'")
        if initialisation not in ("uniform", "looks_linear"):
            raise ValueError(f"`initialisation` (={initialisation!r}) must be 'uniform' or 'looks_linear'")
        widths = [inputs, *(hidden if hidden is not None else [width or 0] * (depth or 0)), outputs]
        last = len(widths) - 2

        def linear(number: int, a: int, b: int) -> nn.Module:
            fill = None
            if initialisation == "looks_linear":
                fill = init.looks_linear(number > 0, number < last, _SLOPES.get(activation, 1.0))
            return nn.Linear(a, b, dtype=dtype, fill=fill)

        *inner, outer = (linear(number, a, b) for number, (a, b) in enumerate(pairwise(widths)))
        self.layers = nn.Sequential(*(nn.Sequential(layer, activation_of(activation)) for layer in inner), outer)
        self.objective = objective
        self.reduction = "sum" if objective == "sqerr" else "mean"

    def forward(self, input: Any) -> Tensor:
        if input.ndim > 2:
            input = ops.reshape(input, (input.shape[0], -1))
        return self.layers(input)

    def loss(self, x: Any, y: Any) -> Tensor:
        return ops.sqerr(self(x), y) if self.objective == "sqerr" else super().loss(x, y)
