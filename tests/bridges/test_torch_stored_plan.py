"""A plan for a PyTorch module that an earlier version wrote is read, run, and written again with the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import memback.bridges.torch as bridge
from tests.bridges import torch_models as twins

STORED = Path(__file__).parent.parent / "plans" / "stored" / "torch.json"


def test_a_stored_plan_runs_as_it_says_and_is_written_again_with_the_same_bytes(tmp_path: Path) -> None:
    plan = bridge.TorchPlan.load(STORED)
    torch.manual_seed(0)
    module, x = twins.GPT(5, 32, 4, 50, 32, dropout=0.1), torch.randint(0, 50, (2, 32))
    verdict = bridge.verify(plan, module, x, loss=twins.cross_entropy)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == plan.peak_bytes < verdict.full_peak_bytes
    plan.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == STORED.read_bytes()
