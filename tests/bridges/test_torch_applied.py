"""A plan that a PyTorch module runs in a block, which may be entered again."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import memback.bridges.torch as bridge
from memback.errors import UsageError


def test_a_block_that_is_entered_in_itself_runs_the_plan_to_the_end_of_the_outer_one() -> None:
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
    module, x = torch.nn.Sequential(*layers), torch.randn(256, 64)
    plan = bridge.plan(module, x, budget="2MiB")
    block = plan.apply(module)
    with block:
        with block:
            pass
        with pytest.raises(UsageError, match="runs this plan already"):
            plan.apply(module)
    with plan.apply(module):
        module(x).sum().backward()
