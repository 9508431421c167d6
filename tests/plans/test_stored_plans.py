"""Plans that an earlier version wrote are read, run, and written again byte for byte: nobody writes the files anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.errors import UsageError
from memback.plans.model.planning import ModelPlan
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from tests.models.small import MODELS, batch

STORED = Path(__file__).parent / "stored"


def small(name: str) -> Step:
    mb.manual_seed(3)
    model = MODELS[name]("float32")
    x, y = batch(name, "float32")
    return Step(lambda: model.loss(x, y), model)


def mlp() -> Step:
    mb.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(5) for layer in (nn.Linear(32, 32), nn.ReLU())))
    x = np.linspace(-1, 1, 256 * 32, dtype=np.float32).reshape(256, 32)
    return Step(lambda: ops.sum(model(mb.Tensor(x))), model)


STEPS = {"chain": lambda: small("gpt"), "exact": mlp, "graph": mlp}
"""The step that each file has a plan for; the file has the planner's name."""


@pytest.mark.parametrize("name", STEPS)
def test_a_stored_plan_is_written_again_with_the_same_bytes(name: str, tmp_path: Path) -> None:
    plan = ModelPlan.load(STORED / f"{name}.json")
    plan.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (STORED / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", STEPS)
def test_a_stored_plan_runs_as_it_says_and_changes_no_bit(name: str) -> None:
    plan = ModelPlan.load(STORED / f"{name}.json")
    step = STEPS[name]()
    full = step.account(Mode("full"))
    with plan.apply(step.module):
        account = step.account(Mode("checkpoint"))
        peak = step.predict(Mode("checkpoint")).peak.bytes
    assert account.gradient_sha256 == full.gradient_sha256
    assert account.ledger.recomputed_flops == plan.extra_flops > 0
    assert peak == plan.peak_bytes


@pytest.mark.parametrize(
    ("name", "place", "field"),
    [
        ("chain", "$.stages[1]", "saved_bytes"),
        ("chain", "$.actions[0]", "keep"),
        ("graph", "$.graph.nodes[2]", "workspace"),
        ("graph", "$.graph.actions[0]", "saves"),
        ("graph", "$.graph", "before"),
    ],
)
def test_a_field_that_is_left_out_is_named_with_its_place(name: str, place: str, field: str) -> None:
    content = json.loads((STORED / f"{name}.json").read_bytes())
    owner = content
    for part in re.findall(r"\w+", place):
        owner = owner[int(part) if part.isdigit() else part]
    del owner[field]
    message = f"this plan is malformed: Object missing required field `{field}` - at `{place}`"
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        ModelPlan.from_dict(content)
