"""The network of the notes."""

from __future__ import annotations

from typing import Any

from memback import nn, ops
from memback.engine.tensor import Tensor

__all__ = ["NotesNetwork"]


class NotesNetwork(nn.Module):
    """The notes' network: three linear layers, relu in between, half the summed squared error (Eq. 11)."""

    reduction = "sum"
    renamed = {"x": "input"}

    def __init__(self, inputs: int, hidden: int, outputs: int, *, dtype: str = "float32") -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden, dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden, hidden, dtype=dtype),
            nn.ReLU(),
            nn.Linear(hidden, outputs, dtype=dtype),
        )

    def forward(self, input: Any) -> Tensor:
        """Eqs. 11a to 11e."""
        return self.layers(input)

    def loss(self, x: Any, y: Any) -> Tensor:
        """Eq. 11f."""
        return ops.sqerr(self(x), y)
