from __future__ import annotations

import math

import numpy as np
import pytest

from memback.notes import chain_rule


def found(graph):
    return {(row.equation, row.name): row.value for row in graph.derivatives}


@pytest.mark.parametrize("seed", range(5))
def test_every_derivative_is_the_one_by_hand(seed):
    section = chain_rule.section(seed)
    assert section.ok
    first, second, third = section.graphs

    x = first.values["x"]
    assert found(first) == pytest.approx(
        {
            ("1a", "∂f/∂x"): math.exp(x),
            ("1", "∂f/∂y"): x,
            ("2", "df/dy"): x,
            ("3", "dy/dx"): math.exp(x),
            ("3", "∂f/∂x + ∂f/∂y dy/dx"): (1 + x) * math.exp(x),
            ("3", "df/dx"): (1 + x) * math.exp(x),
        }
    )

    t = second.values["t"]
    assert second.values["f_t"] == pytest.approx(second.values["f"])
    values = found(second)
    assert values.pop(("4, 5, 7", "∂f/∂t")) is None
    assert values == pytest.approx(
        {
            ("1a", "∂f/∂x"): t**2,
            ("1", "∂f/∂y"): math.sqrt(t),
            ("6", "dx/dt"): 0.5 / math.sqrt(t),
            ("6", "dy/dt"): 2 * t,
            ("6", "∂f/∂x dx/dt + ∂f/∂y dy/dt"): 2.5 * t**1.5,
            ("6", "df/dt"): 2.5 * t**1.5,
            ("8, 9", "∂f_t/∂t"): 2.5 * t**1.5,
            ("9", "∂f/∂x ∂x/∂t + ∂f/∂y ∂y/∂t"): 2.5 * t**1.5,
        }
    )

    t = third.values["t"]
    by_x, by_y = math.exp(math.sqrt(t)) / (2 * math.sqrt(t)), math.exp(t / 2) / 2
    values = found(third)
    assert values.pop(("5", "∂x/∂t")) is None
    assert values[("6", "dx/dt")] == pytest.approx(by_x)
    assert values[("6", "dy/dt")] == pytest.approx(by_y)
    assert values[("6", "df/dt")] == pytest.approx(by_x * math.exp(t / 2) + by_y * math.exp(math.sqrt(t)))


def test_the_undefined_derivative_says_why():
    row = chain_rule.section(0).graphs[1].derivatives[0]
    assert row.difference is None
    assert "undefined" in row.error
    assert "Eq. 5" in row.error


def test_a_partial_derivative_that_should_be_undefined_but_is_not_is_found(monkeypatch):
    monkeypatch.setattr(chain_rule, "partial", chain_rule.total)
    section = chain_rule.section(0)
    failed = [check.what for check in section.checks if not check.ok]
    assert "∂f/∂t is undefined" in failed  # Eq. 4's 0 would be as wrong
    assert "∂f/∂x" in failed  # of f(x, y(x)), where the total derivative has one more term


def test_a_derivative_off_by_a_millionth_is_found(monkeypatch):
    total = chain_rule.total
    monkeypatch.setattr(chain_rule, "total", lambda f, x: total(f, x) * (1 + 1e-6))
    assert not chain_rule.section(0).ok


def test_seeds_decide_where():
    points = {chain_rule.section(seed).graphs[0].values["x"] for seed in (0, 1, 2**64 - 1)}
    assert len(points) == 3
    assert chain_rule.section(3) == chain_rule.section(3)
    assert all(np.isfinite(point) for point in points)
