from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn

import memback.bridges.torch as bridge


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Sequential(nn.LayerNorm(128), nn.GELU()), nn.Linear(128, 10))


def test_a_dry_run_predicts_what_a_real_one_shows():
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    real, dry = (
        bridge.profile(mlp(), x, loss=lambda f: nn.functional.cross_entropy(f, y), dry=dry, rounds=1)
        for dry in (False, True)
    )
    for found, predicted in zip(real.runs, dry.runs, strict=True):
        assert found.layers == predicted.layers
        assert found.measured_peak_bytes == found.predicted_peak_bytes == predicted.predicted_peak_bytes
