"""What a watched step shows is what the same step does when nobody watches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import torch.nn.functional as F
from torch import nn

import memback.bridges.torch as bridge
from memback.bridges.torch.allocator import allocated
from memback.bridges.torch.tracking import Tracker


class Scaled(nn.Module):
    """A function of an input times a parameter, summed up."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x * self.scale).sum()


class Heads(nn.Module):
    """One tensor goes into several narrow layers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 4, bias=False) for _ in range(heads))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Any) -> Any:
        y = x * self.scale
        return sum(head(y).mean() for head in self.heads)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        q, k, v = (of(y).unflatten(-1, (4, 16)).transpose(1, 2) for of in (self.query, self.key, self.value))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Adapted(nn.Module):
    """A frozen layer with two narrow ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x: Any) -> Any:
        return self.base(x) + self.up(self.down(x)) + x


class Twice(torch.autograd.Function):
    """Its backward adds by itself."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 1 + grad * 1


def rows(*numbers: int) -> Any:
    return torch.tensor(numbers)


SQUARE = (96, 64)
STEPS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    **{f"{heads} heads": (lambda heads=heads: Heads(heads), SQUARE) for heads in (1, 2, 3, 5)},
    "attention": (lambda: nn.Sequential(*(Attention() for _ in range(3))), (2, 16, 64)),
    "adapters": (lambda: nn.Sequential(nn.Linear(64, 64), *(Adapted() for _ in range(3))), SQUARE),
    "adds of one's own": (lambda: Scaled(lambda y: Twice.apply(y) + Twice.apply(y) * 3 + y), SQUARE),
    "a product with itself": (lambda: Scaled(lambda y: y * y * (y * 2)), SQUARE),
    "one gradient for two": (lambda: Scaled(lambda y: (y + y) * y + y * 3), SQUARE),
    "expanded gradients": (lambda: Scaled(lambda y: y.sum() + y.sum() + (y * 2).sum()), SQUARE),
    "views": (lambda: Scaled(lambda y: sum(part.square().sum() for part in y.chunk(3, 1))), SQUARE),
    "transposed": (lambda: Scaled(lambda y: (y.t() @ y).sum() + (y.t() * 2).sum() + (y * 3).sum()), SQUARE),
    "gather": (lambda: Scaled(lambda y: y.gather(1, torch.zeros(96, 1, dtype=torch.int64))), SQUARE),
    "max of rows": (lambda: Scaled(lambda y: y.max(1)[0]), SQUARE),
    "sort": (lambda: Scaled(lambda y: y.sort(1)[0]), SQUARE),
    "index": (lambda: Scaled(lambda y: y.index_select(0, rows(0, 2, 2))), SQUARE),
    "take": (lambda: Scaled(lambda y: y.take(rows(1, 2))), SQUARE),
    "maximum": (lambda: Scaled(lambda y: torch.maximum(y, y * 2)), SQUARE),
    "scatter_reduce": (
        lambda: Scaled(lambda y: y.scatter_reduce(0, torch.zeros(1, 64, dtype=torch.int64), y[:1] * 2, "amax")),
        SQUARE,
    ),
}

SCRATCH = {"transposed", "sort", "scatter_reduce"}
"""Those whose kernels take memory for themselves, which is in no storage."""


def step(module: Any, x: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    module(x).square().mean().backward()


@pytest.mark.parametrize("name", STEPS)
def test_a_watched_step_adds_gradients_where_an_unwatched_one_does(name: str) -> None:
    make, shape = STEPS[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape)
    step(module, x)
    grads = [parameter.grad.clone() for parameter in module.parameters() if parameter.requires_grad]
    module.zero_grad()
    given_out = allocated(lambda: step(module, x), x.device)
    module.zero_grad()
    run = bridge.profile(module, x, loss=lambda y: y.square().mean(), modes=("full",), rounds=1).runs[0]
    assert given_out is not None
    assert run.measured_peak_bytes == run.predicted_peak_bytes
    if name in SCRATCH:
        assert run.measured_peak_bytes <= given_out.peak_bytes
    else:
        assert run.measured_peak_bytes == pytest.approx(given_out.peak_bytes, abs=64)
    tracker = Tracker(module=module)
    with tracker:
        step(module, x)
    assert all(map(torch.equal, grads, (p.grad for p in module.parameters() if p.requires_grad)))
