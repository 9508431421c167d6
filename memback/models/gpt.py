"""GPT: a decoder-only transformer, in its first form and in llama's."""

from __future__ import annotations

from typing import Any, Literal

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier, Depth, activation_of

__all__ = ["GPT", "Block"]

Mask = Literal["bool", "bits", "seed"]


class FeedForward(nn.Module):
    """Two linear layers with an activation, four times as wide in between; or SwiGLU's three (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int | None, activation: str, bias: bool, dtype: str) -> None:
        super().__init__()
        self.gated = activation == "swiglu"
        inner = (4 * width if not self.gated else 8 * width // 3) if hidden is None else hidden
        self.inner = nn.Linear(width, inner, bias, dtype=dtype)
        if self.gated:
            self.gate = nn.Linear(width, inner, bias, dtype=dtype)
        self.activation = nn.SiLU() if self.gated else activation_of(activation)
        self.outer = nn.Linear(inner, width, bias, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        if self.gated:
            return self.outer(ops.multiply(self.activation(self.gate(input)), self.inner(input)))
        return self.outer(self.activation(self.inner(input)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), with dropout on both branches."""

    renamed = {"x": "input"}

    def __init__(
        self, width: int, attention: nn.Module, feed_forward: nn.Module, norm: Any, dropout: nn.Module
    ) -> None:
        super().__init__()
        self.norm1 = norm(width)
        self.attention = attention
        self.norm2 = norm(width)
        self.mlp = feed_forward
        self.dropout = dropout

    def forward(self, input: Any) -> Tensor:
        input = ops.add(input, self.dropout(self.attention(self.norm1(input))))
        return ops.add(input, self.dropout(self.mlp(self.norm2(input))))


class GPT(Classifier):
    """GPT (Radford et al. 2019): predicts the next token; its blocks are one chain, which checkpoint policies cut.

    Args:
        layers: number of blocks.
        width: features of a token.
        heads: attention heads.
        vocabulary: number of tokens.
        context: longest sequence.
        dropout: probability, on embeddings, attention and both branches.
        mask: how dropout keeps its masks: a byte or a bit an element, or only a seed.
        activation: of the feed-forward layers; ``swiglu`` gives llama's gated ones.
        hidden: their inner width; 4 width (8/3 width for ``swiglu``) by default.
        attention: ``plain`` (four ops), ``fused`` (one op that keeps less), or ``tiled`` (linear in the sequence).
        norm: ``layer`` or ``rms``.
        kv_heads: heads of keys and values, fewer for grouped-query attention.
        rotary: rotary positions instead of learned ones.
        bias: whether linear layers have biases.
        tied: whether the output layer shares the token embedding.
        dtype: of the parameters.

    Raises:
        ValueError: arguments that contradict each other.
    """

    def __init__(
        self,
        layers: Depth,
        width: int,
        heads: int,
        vocabulary: int,
        context: int,
        dropout: float = 0.0,
        mask: Mask = "bool",
        activation: str = "gelu_tanh",
        attention: Literal["plain", "fused", "tiled"] = "plain",
        norm: Literal["layer", "rms"] = "layer",
        kv_heads: int | None = None,
        rotary: bool = False,
        hidden: int | None = None,
        bias: bool = True,
        tied: bool = True,
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if norm not in ("layer", "rms"):
            raise ValueError(f"`norm` (={norm!r}) must be 'layer' or 'rms'")
        make_norm = nn.LayerNorm if norm == "layer" else nn.RMSNorm

        def normalise(features: int) -> nn.Module:
            return make_norm(features, dtype=dtype)

        def block() -> Block:
            core = nn.MultiHeadAttention(
                width,
                heads,
                kv_heads,
                causal=True,
                attention=attention,
                dropout=dropout,
                mask=mask,
                rotary=rotary,
                bias=bias,
                dtype=dtype,
            )
            feed_forward = FeedForward(width, hidden, activation, bias, dtype)
            return Block(width, core, feed_forward, normalise, nn.Dropout(dropout, mask))

        self.context = context
        self.tokens = nn.Embedding(vocabulary, width, dtype=dtype, deviation=0.02)
        self.positions = None if rotary else nn.Embedding(context, width, dtype=dtype, deviation=0.02)
        self.dropout = nn.Dropout(dropout, mask)
        self.blocks = nn.Sequential(*[block() for _ in range(layers)])
        self.norm = normalise(width)
        self.head = None if tied else nn.Linear(width, vocabulary, bias=False, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """Scores (n, length, vocabulary) for the token after each of ``input``, whole numbers of shape (n, length)."""
        return self._scores(self.norm(self.blocks(self._embed(input))))

    def _embed(self, x: Any) -> Tensor:
        length = x.shape[-1]
        if length > self.context:
            raise ValueError(f"a sequence of {length} tokens is longer than `context` (={self.context})")
        h = self.tokens(x)
        if self.positions is not None:
            h = ops.add(h, ops.getitem(self.positions.weight, (slice(0, length),)))
        return self.dropout(h)

    def _scores(self, h: Any) -> Tensor:
        if self.head is not None:
            return self.head(h)
        return ops.linear(h, ops.transpose(self.tokens.weight, 0, 1))

    def loss(self, x: Any, y: Any = None) -> Tensor:
        """Mean cross-entropy of the next tokens: ``y``, or where it is not given those of ``x`` itself."""
        if y is None:
            x, y = _part(x, slice(None, -1)), _part(x, slice(1, None))
        return super().loss(x, y)


def _part(x: Any, columns: slice) -> Any:
    data = x.data if isinstance(x, Tensor) else x
    return data[:, columns]
