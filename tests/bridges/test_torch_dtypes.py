"""Inputs' types that a real run refuses are refused by a dry one, and no others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch (make test-torch)")
pytestmark = pytest.mark.torch

import torch.nn.functional as F
from torch import nn

from memback.bridges.torch.recording.fake import faked


class Function(nn.Module):
    """A function of an input and a parameter of shape (4, 4)."""

    def __init__(self, function: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Any) -> Any:
        return self.function(x, self.weight)


MODULES = {
    "linear": (nn.Linear(4, 3), (2, 4)),
    "linear of sequences": (nn.Linear(4, 3), (2, 5, 4)),
    "conv": (nn.Conv2d(4, 8, 3), (2, 4, 8, 8)),
    "grouped conv": (nn.Conv2d(4, 8, 3, groups=4), (2, 4, 8, 8)),
    "transposed conv": (nn.ConvTranspose2d(4, 8, 3), (2, 4, 8, 8)),
    "layer norm": (nn.LayerNorm(4), (2, 4)),
    "rms norm": (nn.RMSNorm(4), (2, 4)),
    "batch norm": (nn.BatchNorm1d(4), (2, 4)),
    "embedding": (nn.Embedding(10, 4), (2, 4)),
    "lstm": (nn.LSTM(4, 3), (2, 1, 4)),
    "gelu": (nn.GELU(), (2, 4)),
    "relu": (Function(lambda x, w: F.relu(x) * w), (4, 4)),
    "softmax": (Function(lambda x, w: F.softmax(x, -1) * w), (4, 4)),
    "matmul": (Function(lambda x, w: x @ w), (4, 4)),
    "bmm": (Function(lambda x, w: torch.bmm(x, w.expand(2, 4, 4))), (2, 4, 4)),
    "attention": (Function(lambda x, w: F.scaled_dot_product_attention(x, w[None], w[None])), (1, 4, 4)),
    "add": (Function(torch.add), (4, 4)),
    "in place": (Function(lambda x, w: x.mul_(w)), (4, 4)),
    "where": (Function(lambda x, w: torch.where(x > 0, w, 0.0)), (4, 4)),
    "gather": (Function(lambda x, w: w.gather(1, x)), (4, 2)),
    "index": (Function(lambda x, w: w[x]), (3,)),
    "masked fill": (Function(lambda x, w: w.masked_fill(x, 0.0)), (4, 4)),
    "cross-entropy": (Function(lambda x, w: F.cross_entropy(w, x)), (4,)),
    "binary cross-entropy": (Function(lambda x, w: F.binary_cross_entropy(torch.sigmoid(w), x)), (4, 4)),
    "max pool": (Function(lambda x, w: F.max_pool2d(x, 2) * w[:2, :2]), (1, 4, 4)),
    "interpolate": (Function(lambda x, w: F.interpolate(x, scale_factor=2) * w[0, 0]), (1, 1, 4, 4)),
    "concatenate": (Function(lambda x, w: torch.cat([x, w])), (4, 4)),
    "mean": (Function(lambda x, w: x.mean() * w), (4, 4)),
    "mean in floats": (Function(lambda x, w: x.mean(dtype=torch.float32) * w), (4, 4)),
    "sort": (Function(lambda x, w: x.sort()[0] * w), (4, 4)),
    "norm": (Function(lambda x, w: x.norm() * w), (4, 4)),
    "index add": (Function(lambda x, w: torch.zeros(4, 4, dtype=torch.float64).index_add(0, x, w)), (4,)),
    "dropout": (Function(lambda x, w: F.dropout(x, 0.5) * w), (4, 4)),
}
TYPES = ["float32", "float64", "bfloat16", "int64", "int32", "uint8", "bool"]


def refusal(module: nn.Module, x: Any, dry: bool) -> str | None:
    module = copy.deepcopy(module)
    try:
        if dry:
            with faked(module, (x,)) as (inputs,):
                run(module, inputs)
        else:
            run(module, x)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        return str(error)
    return None


def run(module: nn.Module, x: Any) -> None:
    out = module(x)
    out = out[0] if isinstance(out, tuple) else out
    if out.requires_grad:
        out.sum().backward()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", MODULES)
def test_a_dry_run_refuses_the_types_that_a_real_run_refuses_and_no_others(name: str, dtype: str) -> None:
    if (name, dtype) == ("cross-entropy", "uint8"):
        pytest.skip("PyTorch's own fake backward refuses what its kernel takes")
    module, shape = MODULES[name]
    x = torch.zeros(shape, dtype=getattr(torch, dtype))
    real, dry = refusal(module, x.clone(), dry=False), refusal(module, x.clone(), dry=True)
    assert (real is None) == (dry is None), f"real: {real}; dry: {dry}"


def test_the_check_takes_no_memory() -> None:
    size = 2**20
    module = Function(lambda x, w: x.new_zeros(size, size).sum() * w + x.repeat(size, size).sum())
    assert refusal(module, torch.zeros(4, 4, dtype=torch.int64), dry=True) is None


def test_the_check_draws_no_random_numbers() -> None:
    module = Function(lambda x, w: F.dropout(x.to(w.dtype), 0.5) @ w)
    before = torch.get_rng_state()
    assert refusal(module, torch.zeros(4, 4, dtype=torch.int64), dry=True) is None
    assert torch.equal(torch.get_rng_state(), before)
