"""The workloads on which engines are compared: sizes, parameters and batches, the same arrays for every engine.

One step is a forward pass, the loss and the gradients of all parameters, in float32.

W1  a wide multilayer perceptron: nearly all of it matrix products
W2  a deep one: 32 layers, many arrays of half a megabyte
W3  a GPT: everything else that takes time in a transformer
W4  a tiny one: nothing but the overhead of each op
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

__all__ = ["WORKLOADS", "GPTSize", "MLPSize", "Workload"]


@dataclass(frozen=True)
class MLPSize:
    """Linear layers of the given widths with a ReLU between them, and half the summed squared error (Eq. 10b)."""

    widths: tuple[int, ...]
    batch: int

    @property
    def layers(self) -> int:
        """Number of linear layers."""
        return len(self.widths) - 1

    def layer_names(self) -> list[str]:
        """Names of the linear layers as memback's MLP has them: the hidden ones are in units of two layers each."""
        return [f"layers.{i}.0" for i in range(self.layers - 1)] + [f"layers.{self.layers - 1}"]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (n_in, n_out) in zip(self.layer_names(), pairwise(self.widths), strict=True):
            shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (n_in, n_out), (n_out,)
        return shapes

    def sample(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Inputs and targets."""
        sizes = (self.batch, self.widths[0]), (self.batch, self.widths[-1])
        return tuple(rng.standard_normal(size, np.float32) for size in sizes)  # type: ignore[return-value]


@dataclass(frozen=True)
class GPTSize:
    """A GPT with learned positions, tanh-GELU and tied embeddings, and the mean cross-entropy of the next token."""

    layers: int
    width: int
    heads: int
    length: int
    batch: int
    vocabulary: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameters by name."""
        d = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "tokens.weight": (self.vocabulary, d),
            "positions.weight": (self.length, d),
        }
        for i in range(self.layers):
            for name, shape in _block_shapes(d):
                shapes[f"blocks.{i}.{name}"] = shape
        return shapes | {"norm.weight": (d,), "norm.bias": (d,)}

    def sample(self, rng: np.random.Generator) -> tuple[Any, Any]:
        """Tokens and the tokens after them."""
        tokens = rng.integers(0, self.vocabulary, (self.batch, self.length + 1))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def _block_shapes(d: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for norm in ("norm1", "norm2"):
        yield from ((f"{norm}.weight", (d,)), (f"{norm}.bias", (d,)))
    for name in ("query", "key", "value", "out"):
        yield from ((f"attention.{name}.weight", (d, d)), (f"attention.{name}.bias", (d,)))
    yield from (("mlp.inner.weight", (d, 4 * d)), ("mlp.inner.bias", (4 * d,)))
    yield from (("mlp.outer.weight", (4 * d, d)), ("mlp.outer.bias", (d,)))


@dataclass(frozen=True)
class Workload:
    """A named size, and how often it is run in a row."""

    name: str
    title: str
    size: MLPSize | GPTSize
    steps: int
    """Steps in a row in each round."""

    def parameters(self) -> dict[str, Any]:
        """Parameters by name, the same numbers whoever asks."""
        rng = np.random.default_rng(1)
        return {name: _draw(rng, name, shape) for name, shape in self.size.shapes().items()}

    def sample(self) -> tuple[Any, Any]:
        """Inputs and targets, the same numbers whoever asks."""
        return self.size.sample(np.random.default_rng(2))


def _draw(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Any:
    if len(shape) == 1:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.1)
        return values + np.float32(1) if "norm" in name and name.endswith("weight") else values
    scale = 0.02 if "tokens" in name or "positions" in name else (2 / shape[0]) ** 0.5
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", "MLP 784-2048-2048-10, batch 256", MLPSize((784, 2048, 2048, 10), 256), 4),
        Workload("W2", "MLP 32 × 512, batch 256", MLPSize((512,) * 33, 256), 2),
        Workload("W3", "GPT, 4 layers, width 256, 8 × 128 tokens", GPTSize(4, 256, 4, 128, 8, 1000), 1),
        Workload("W4", "MLP 20 × 16, batch 1", MLPSize((16,) * 22, 1), 200),
    )
}
