"""Vision transformer."""

from __future__ import annotations

from typing import Any

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier, Depth
from memback.models.gpt import Block, FeedForward
from memback.nn import init

__all__ = ["ViT"]


class ViT(Classifier):
    """A vision transformer (Dosovitskiy et al. 2020, arXiv 2010.11929); its blocks are a chain, its patches averaged.

    Args:
        image: height and width of the images in pixels.
        patch: of a patch; must divide ``image``.
        channels: of the images.
        classes: number of classes.
        layers: number of blocks.
        width: features of a patch.
        heads: attention heads.
        dropout: probability, on embeddings, attention and both branches.
        dtype: of the parameters.

    Raises:
        ValueError: ``image`` is not divisible by ``patch``.
    """

    def __init__(
        self,
        image: int,
        patch: int,
        channels: int,
        classes: int,
        layers: Depth,
        width: int,
        heads: int,
        dropout: float = 0.0,
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if image % patch:
            raise ValueError(f"`image` (={image}) must be divisible by `patch` (={patch})")

        def normalise(features: int) -> nn.Module:
            return nn.LayerNorm(features, dtype=dtype)

        def block() -> Block:
            attention = nn.MultiHeadAttention(width, heads, dropout=dropout, dtype=dtype)
            return Block(
                width, attention, FeedForward(width, None, "gelu", True, dtype), normalise, nn.Dropout(dropout)
            )

        self.patches = nn.Conv2d(channels, width, patch, stride=patch, dtype=dtype)
        self.positions = init.parameter(((image // patch) ** 2, width), dtype, init.normal(0.02))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*[block() for _ in range(layers)])
        self.norm = normalise(width)
        self.head = nn.Linear(width, classes, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """Scores (n, classes) for images (n, channels, image, image)."""
        return self.head(ops.mean(self.norm(self.blocks(self._embed(input))), 1))

    def _embed(self, x: Any) -> Tensor:
        patches = self.patches(x)
        rows = ops.reshape(patches, (*patches.shape[:2], -1))
        return self.dropout(ops.add(ops.transpose(rows, 1, 2), self.positions))
