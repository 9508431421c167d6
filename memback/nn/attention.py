"""Multi-head attention."""

from __future__ import annotations

import math
from typing import Any, Literal

from memback import ops
from memback.engine.tensor import Tensor
from memback.nn.layers import Linear
from memback.nn.module import Module

__all__ = ["AttentionCore", "MultiHeadAttention"]


Form = Literal["plain", "fused", "tiled"]


class AttentionCore(Module):
    """softmax(q k^T / sqrt(d)) v for queries (n, heads, length, d) and keys and values (n, kv_heads, length, d).

    ``plain`` is four ops, as in the textbooks: product, softmax, dropout, product; each keeps what it needs, which for
    a heads, length s and batch b in two-byte numbers is 5 a s^2 b bytes with dropout (Korthikanti et al. 2022, arXiv
    2205.05198). ``fused`` is one op, which does not keep the dropped-out probabilities: 3 a s^2 b. ``tiled`` keeps
    nothing that grows with s^2 (Dao et al. 2022, arXiv 2205.14135).

    A module of its own, so that the policy ``match:*.core`` recomputes this part alone: Korthikanti's selective
    recomputation.

    Raises:
        ValueError: another form; dropout in the tiled one.
    """

    renamed = {"q": "query", "k": "key", "v": "value"}

    def __init__(self, form: Form, causal: bool, dropout: float, mask: Literal["bool", "bits", "seed"]) -> None:
        super().__init__()
        if form not in ("plain", "fused", "tiled"):
            raise ValueError(f"`attention` (={form!r}) must be 'plain', 'fused' or 'tiled'")
        if form == "tiled" and dropout:
            raise ValueError("tiled attention has no dropout: set `dropout` to 0, or `attention` to 'plain'")
        self.form, self.causal, self.p, self.mask = form, causal, dropout, mask

    def forward(self, query: Any, key: Any, value: Any) -> Tensor:
        p = self.p if self.training else 0.0
        if self.form == "tiled":
            return ops.tiled_attention(query, key, value, is_causal=self.causal)
        if self.form == "fused":
            return ops.scaled_dot_product_attention(
                query, key, value, dropout_p=p, is_causal=self.causal, mask=self.mask
            )
        return self._plain(query, key, value, p)

    def _plain(self, q: Any, k: Any, v: Any, p: float) -> Any:
        n, heads, length, size = q.shape
        shared = k.shape[1]
        if shared != heads:  # a group of heads has its keys and values in common
            q = ops.reshape(q, (n, shared, heads // shared, length, size))
            k, v = (ops.reshape(x, (n, shared, 1, length, size)) for x in (k, v))
        scores = ops.matmul(q, ops.transpose(k, -2, -1))
        probabilities = ops.attention_softmax(scores, 1 / math.sqrt(size), self.causal)
        del scores
        if p:
            probabilities = ops.dropout(probabilities, p, mask=self.mask)
        return ops.reshape(ops.matmul(probabilities, v), (n, heads, length, size))


class MultiHeadAttention(Module):
    """Self-attention of (n, length, width) with ``heads`` heads; fewer ``kv_heads`` share keys and values.

    Raises:
        ValueError: ``width`` is not divisible by ``heads``, or ``heads`` by ``kv_heads``.
    """

    renamed = {"x": "input"}

    def __init__(
        self,
        width: int,
        heads: int,
        kv_heads: int | None = None,
        *,
        causal: bool = False,
        attention: Form = "plain",
        dropout: float = 0.0,
        mask: Literal["bool", "bits", "seed"] = "bool",
        rotary: bool = False,
        bias: bool = True,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if width % heads:
            raise ValueError(f"`width` (={width}) must be divisible by `heads` (={heads})")
        if heads % kv_heads:
            raise ValueError(f"`heads` (={heads}) must be divisible by `kv_heads` (={kv_heads})")
        self.heads, self.kv_heads, self.size, self.rotary = heads, kv_heads, width // heads, rotary
        self.query = Linear(width, width, bias, dtype=dtype)
        self.key = Linear(width, kv_heads * self.size, bias, dtype=dtype)
        self.value = Linear(width, kv_heads * self.size, bias, dtype=dtype)
        self.core = AttentionCore(attention, causal, dropout, mask)
        self.out = Linear(width, width, bias, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        return self.out(self._merge(self.core(*self._heads(input))))

    def _heads(self, x: Any) -> tuple[Any, Any, Any]:
        """Queries, keys and values of (n, heads, length, size). Three products and not one, so that rotation can free
        what it replaces: as views of one array, the values would keep it alive.
        """
        q, k = self._split(self.query(x)), self._split(self.key(x))
        if self.rotary:
            q, k = ops.rotary(q), ops.rotary(k)
        return q, k, self._split(self.value(x))

    def _split(self, x: Any) -> Any:
        n, length, width = x.shape
        return ops.transpose(ops.reshape(x, (n, length, width // self.size, self.size)), 1, 2)

    @staticmethod
    def _merge(x: Any) -> Any:
        n, heads, length, size = x.shape
        return ops.reshape(ops.transpose(x, 1, 2), (n, length, heads * size))
