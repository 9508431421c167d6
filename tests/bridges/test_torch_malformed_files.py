"""Plans for PyTorch modules, and shapes of inputs: read, or refused in one short message."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from memback.bridges import torch as bridge
from memback.bridges.torch.planning.plan import TorchPlan
from memback.bridges.torch.recording.inputs import parse_inputs
from tests.malformed.judge import hold, numbered, refusal
from tests.malformed.mutations import as_json, changed_bytes, changed_values, texts

INPUTS = ("8x3x224x224", "8x1024:int64", "mask=8x1024:bool", "1:float8_e4m3fn")


@pytest.fixture(scope="module")
def plan() -> bytes:
    block = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh())
    module = torch.nn.Sequential(*(block for _ in range(6)))
    return as_json(bridge.plan(module, torch.ones(512, 64), budget="1MiB", how="checkpoint").to_dict())


@numbered(60)
def test_plans(numbers: range, plan: bytes, tmp_path: Path) -> None:
    hold(numbers, tmp_path / "p.json", lambda n: changed_bytes(plan, n), TorchPlan.load)


@numbered(60)
def test_values_in_plans(numbers: range, plan: bytes, tmp_path: Path) -> None:
    data = json.loads(plan)
    hold(numbers, tmp_path / "p.json", lambda n: as_json(changed_values(data, n)), TorchPlan.load)


@numbered(60)
def test_inputs(numbers: range) -> None:
    said = [refusal(lambda n=n: parse_inputs([texts(n, INPUTS)])) for n in numbers]
    assert any(said)
