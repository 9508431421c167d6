"""What models that choose among classes have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

import numpy as np
from msgspec import Meta

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.errors import shorten

__all__ = ["Classifier", "Depth", "activation_of"]

Depth: TypeAlias = Annotated[int, Meta(le=10_000)]
"""A number of layers, which are made one by one."""


class Classifier(nn.Module):
    """A model whose output holds a score for each class along ``class_dim``; trained by cross-entropy."""

    class_dim = -1
    renamed = {"x": "input"}

    def loss(self, x: Any, y: Any) -> Tensor:
        """Mean cross-entropy of the classes ``y``, whole numbers of the output's shape without ``class_dim``."""
        scores = self(x)
        if self.class_dim == -1 and scores.ndim > 2:
            scores = ops.transpose(scores, 1, 2)
        return ops.cross_entropy(scores, y)

    def correct(self, x: Any, y: Any) -> Any:
        """For each target whether the highest score is its class."""
        return np.equal(np.argmax(self(x).data, axis=self.class_dim), y)


def activation_of(name: str) -> nn.Module:
    """An activation layer by name.

    Raises:
        ValueError: there is none of this name.
    """
    choices: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "leaky_relu": nn.LeakyReLU,
        "gelu": nn.GELU,
        "gelu_tanh": lambda: nn.GELU("tanh"),
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "softplus": nn.Softplus,
    }
    if name not in choices:
        raise ValueError(f"`activation` (={shorten(repr(name))}) must be one of {', '.join(choices)}")
    return choices[name]()
