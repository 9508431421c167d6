"""PyTorch, eager, on the CPU: its own layers, its fused attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.workloads import GPTSize, MLPSize, Workload

VERSIONS = {"torch": torch.__version__}


def build(workload: Workload) -> Any:
    """The workload with ``nn.Linear`` and its like; gradients of weights are given back as (in, out)."""
    size = workload.size
    model = MLP(size) if isinstance(size, MLPSize) else GPT(size)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in workload.parameters().items():
            value = torch.from_numpy(array)
            named[name].copy_(value.T if is_linear(name) else value)
    x, y = map(torch.from_numpy, workload.sample())

    def step() -> tuple[Any, dict[str, Any]]:
        for p in named.values():
            p.grad = None
        loss = model.loss(x, y)
        loss.backward()
        return loss.detach().numpy(), _Gradients(named)

    return step


def is_linear(name: str) -> bool:
    """Whether a parameter is the weight of a linear layer, which PyTorch keeps as (out, in)."""
    return name.endswith("weight") and not any(part in name for part in ("norm", "tokens", "positions"))


class _Gradients(dict[str, Any]):
    """The gradients by name, as arrays when they are asked for."""

    def __init__(self, named: dict[str, Any]) -> None:
        super().__init__({name: p.grad for name, p in named.items()})

    def arrays(self) -> dict[str, Any]:
        return {name: (grad.T if is_linear(name) else grad).numpy() for name, grad in self.items()}


class MLP(nn.Module):
    """Linear layers and ReLUs."""

    def __init__(self, size: MLPSize) -> None:
        super().__init__()
        pairs = list(zip(size.widths[:-1], size.widths[1:], strict=True))
        units = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairs[:-1]]
        self.layers = nn.Sequential(*units, nn.Linear(*pairs[-1]))

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Half the summed squared error."""
        return 0.5 * F.mse_loss(self.layers(x), y, reduction="sum")


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, size: GPTSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.query, self.key, self.value, self.out = (nn.Linear(size.width, size.width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        shape = (n, length, self.heads, width // self.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(out.transpose(1, 2).reshape(n, length, width))


class FeedForward(nn.Module):
    """Two linear layers and a GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outer(F.gelu(self.inner(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then feed-forward, each after a norm and beside an identity."""

    def __init__(self, size: GPTSize) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size.width), nn.LayerNorm(size.width)
        self.attention, self.mlp = Attention(size), FeedForward(size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A GPT with tied embeddings."""

    def __init__(self, size: GPTSize) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Embedding(size.length, size.width)
        self.blocks = nn.Sequential(*[Block(size) for _ in range(size.layers)])
        self.norm = nn.LayerNorm(size.width)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        h = self.norm(self.blocks(self.tokens(x) + self.positions.weight[: x.shape[1]]))
        return F.cross_entropy(F.linear(h, self.tokens.weight).flatten(0, 1), y.flatten())
