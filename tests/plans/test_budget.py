"""A budget may be a share of the full peak wherever it may be bytes."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memback as mb
from memback import nn
from memback.commands import main
from memback.errors import UsageError
from memback.plans.budget import Budget

PROFILE = """
[model]
name = "mlp"
inputs = 64
hidden = [256, 256, 256, 256, 256, 256]
outputs = 10

[data]
name = "digits"
batch = 512
"""


@given(st.integers(1, 10**9), st.integers(0, 999), st.integers(0, 2**50))
def test_a_share_is_exact_and_rounded_down(whole: int, thousandths: int, peak: int) -> None:
    share = Fraction(whole * 1000 + thousandths, 100_000)
    found = Budget.read(f"{whole}.{thousandths:03} %").bytes(lambda: peak)
    assert found <= share * peak < found + 1


def test_bytes_stay_bytes_and_ask_for_no_peak() -> None:
    def never() -> int:
        raise AssertionError

    assert [Budget.read(size).bytes(never) for size in (7, 7.5, "7", "1.5KiB")] == [7, 7, 7, 1536]


@pytest.mark.parametrize("text", ["0%", "%", "-5%", "75%%", "7x%", "1e3%", "0.000%", "75% of it", "٣%"])
def test_what_is_no_share_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(UsageError, match="is no share of the full peak; write it as 75% or 12.5%"):
        Budget.read(text)


def test_plans_in_python_take_shares() -> None:
    model = nn.Sequential(*(layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.Tanh())))
    x = np.ones((256, 64), np.float32)
    full = mb.profile(model, step=lambda: mb.ops.sum(model(mb.Tensor(x))), modes=("full",), rounds=1).runs[0]
    assert full.predicted_peak_bytes is not None
    plan = mb.plan(model, x, budget="80%")
    assert plan.peak_bytes < plan.budget == full.predicted_peak_bytes * 8 // 10


def test_commands_take_shares_of_the_same_peak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.toml").write_text(PROFILE, encoding="utf-8")

    def told(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--json", "-"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    planned = told("plan", "p.toml", "--budget", "85%")
    full = planned["full_peak_bytes"]
    budget = full * 85 // 100
    assert planned["plan"]["budget"] == budget
    assert told("fit", "p.toml", "--budget", "85%")["budget_bytes"] == budget
    profiled = told("profile", "p.toml", "--budget", "85%", "--dry")["runs"]
    assert max(r["predicted_peak_bytes"] for r in profiled if r["mode"] == "checkpoint") <= budget
