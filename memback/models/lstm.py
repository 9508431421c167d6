"""A character model."""

from __future__ import annotations

from typing import Any

from memback import nn
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier, Depth

__all__ = ["LSTMModel"]

_LONGEST = 10_000
"""Steps of a sequence, each of which is a dozen calls of ops."""


class LSTMModel(Classifier):
    """An LSTM that predicts the next token; checkpoint policies cut its time steps.

    Args:
        vocabulary: number of tokens.
        width: features of a token and of the state.
        layers: number of LSTM layers.
        dtype: of the parameters.
    """

    def __init__(self, vocabulary: int, width: int, layers: Depth = 1, *, dtype: str = "float32") -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, dtype=dtype)
        self.lstm = nn.LSTM(width, width, layers, dtype=dtype)
        self.head = nn.Linear(width, vocabulary, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """Scores (n, length, vocabulary) for the token after each of ``input``, whole numbers of shape (n, length)."""
        if input.shape[1] > _LONGEST:
            raise ValueError(f"a sequence of {input.shape[1]:,} tokens: at most {_LONGEST:,} steps are run one by one")
        return self.head(self.lstm(self.tokens(input)))
