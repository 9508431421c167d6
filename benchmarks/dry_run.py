"""How long a dry run takes beside PyTorch's FakeTensorMode and its MemTracker, on the same GPT.

    python benchmarks/dry_run.py [--rounds N]

Both sides take turns in one process; medians over the rounds are printed, and ratios. memback's figure includes the full
per-layer report; FakeTensorMode's is forward and backward alone, MemTracker adds PyTorch's account of memory by module.
Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import memback as mb

MODELS = {"gpt2-small": (12, 768, 12, 8, 1024), "96 layers": (96, 12288, 96, 1, 2048)}
VOCABULARY = 50257


class Block(nn.Module):
    """A GPT block of PyTorch's own layers, with attention in separate ops."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, dtype=dtype), nn.LayerNorm(width, dtype=dtype)
        self.qkv, self.out = nn.Linear(width, 3 * width, dtype=dtype), nn.Linear(width, width, dtype=dtype)
        self.inner, self.outer = nn.Linear(width, 4 * width, dtype=dtype), nn.Linear(4 * width, width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        shape = (n, length, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, dim=-1))
        scores = q @ k.transpose(-2, -1) * shape[-1] ** -0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(n, length, width))
        return x + self.outer(nn.functional.gelu(self.inner(self.norm2(x)), approximate="tanh"))


class TorchGPT(nn.Module):
    """The same model as memback's GPT."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, dtype=dtype)
        self.positions = nn.Embedding(context, width, dtype=dtype)
        self.blocks = nn.ModuleList([Block(width, heads, dtype) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h) @ self.tokens.weight.T


def torch_step(layers: int, width: int, heads: int, batch: int, length: int, tracked: bool) -> float:
    """Seconds of forward and backward under FakeTensorMode; the model is built before."""
    with FakeTensorMode():
        model = TorchGPT(layers, width, heads, length, torch.float16)
        x = torch.zeros(batch, length, dtype=torch.int64)
        began = time.perf_counter()
        if tracked:
            tracker = MemTracker()
            tracker.track_external(model)
            with tracker:
                run(model, x)
            tracker.get_tracker_snapshot("peak")
        else:
            run(model, x)
        return time.perf_counter() - began


def run(model: nn.Module, x: torch.Tensor) -> None:
    """One step without the optimiser."""
    scores = model(x)
    nn.functional.cross_entropy(scores.flatten(0, 1), x.flatten()).backward()


def memback_step(layers: int, width: int, heads: int, batch: int, length: int) -> float:
    """Seconds of forward and backward on arrays without memory, with the whole report."""
    with mb.dry_run():
        model = mb.models.GPT(layers, width, heads, VOCABULARY, length, dtype="float16")
        x = mb.ShapeArray((batch, length), "int64")
        began = time.perf_counter()
        mb.profile(lambda: model.loss(x, x), module=model, modes=("full",)).to_dict()
        return time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    print(f"torch {torch.__version__}, memback {mb.__version__}; medians of {rounds} rounds (MemTracker: 1), seconds")
    for name, size in MODELS.items():
        sides: dict[str, Callable[[], float]] = {
            "memback": lambda size=size: memback_step(*size),
            "FakeTensorMode": lambda size=size: torch_step(*size, tracked=False),
        }
        for side in sides.values():
            side()
        times: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, step in sides.items():
                times[side].append(step())
        medians = {side: statistics.median(taken) for side, taken in times.items()}
        medians["MemTracker"] = torch_step(*size, tracked=True)
        ours = medians["memback"]
        row = "  ".join(f"{side} {taken:.3f} ({taken / ours:.1f} x)" for side, taken in medians.items())
        print(f"{name}: {row}")


if __name__ == "__main__":
    main()
