from __future__ import annotations

import itertools

import numpy as np
import pytest

from memback.notes import jacobians
from memback.notes.jacobians import CASES, Case

RELU, LINEAR = CASES
FLOAT = 4
ELEMENTS = {"relu": lambda d: d, "linear": lambda d: d + d * d + d}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_bytes_are_those_of_the_shapes_and_grow_by_one_power_of_d_more(case):
    growth = jacobians.compare(case, seed=0, rounds=1)
    assert growth.same.ok
    assert growth.ratio.ok
    for cost in growth.costs:
        assert cost.gradient_bytes == FLOAT * ELEMENTS[case.op](cost.size)
        assert cost.jacobian_bytes == cost.size * cost.gradient_bytes
    assert growth.jacobian_bytes_exponent == pytest.approx(growth.backward_bytes_exponent + 1, abs=0.02)
    assert growth.backward_bytes_exponent == pytest.approx(1 if case is RELU else 2, abs=0.02)


def test_jacobians_beyond_the_limit_are_not_made(monkeypatch):
    made = []
    real = jacobians.jacobians
    monkeypatch.setattr(jacobians, "jacobians", lambda op, inputs: made.append(inputs[0].size) or real(op, inputs))
    growth = jacobians.compare(RELU, seed=0, limit_bytes=FLOAT * 512**2, rounds=1)
    assert max(made) == 512
    assert {cost.size for cost in growth.costs if cost.jacobian_seconds is None} == {s for s in RELU.sizes if s > 512}


class Clock:
    """Time that passes by what is computed: a fixed cost and a power of D."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self._advance(monkeypatch, "summed", 2, of=lambda made, d_out: d_out.size)
        self._advance(monkeypatch, "by_backward", 1, of=lambda op, d_out, inputs: d_out.size)

    def _advance(self, monkeypatch, name, power, of):
        real = getattr(jacobians, name)

        def slow(*args):
            self.now += 100 + of(*args) ** power
            return real(*args)

        monkeypatch.setattr(jacobians, name, slow)

    def __call__(self):
        return self.now


def test_exponents_are_of_the_time_beyond_what_any_call_costs(monkeypatch):
    growth = jacobians.compare(RELU, seed=0, clock=Clock(monkeypatch), rounds=3)
    assert growth.jacobian_exponent == pytest.approx(2, abs=1e-3)
    assert growth.backward_exponent == pytest.approx(1, abs=1e-3)
    assert growth.costs[1].jacobian_seconds == 100 + 128**2
    assert growth.costs[1].backward_seconds == 100 + 128


def test_one_slow_round_does_not_change_a_median(monkeypatch):
    clock = Clock(monkeypatch)
    calls = itertools.count()

    def disturbed():
        if next(calls) == 7:
            clock.now += 1e9
        return clock.now

    growth = jacobians.compare(RELU, seed=0, clock=disturbed, rounds=3)
    assert growth.backward_exponent == pytest.approx(1, abs=1e-3)


def noise():
    rng = np.random.default_rng(0)
    return lambda: float(rng.normal())


@pytest.mark.parametrize("clock", [lambda: 0.0, noise()], ids=["stands still", "noise"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op)
def test_no_time_however_wrong_fails_a_check(case, clock):
    small = Case(case.op, case.ranks, case.explicit, case.direct, (1, 8, 16, 32))
    growth = jacobians.compare(small, seed=0, clock=clock, rounds=2)
    assert growth.same.ok
    assert growth.ratio.ok


def test_without_time_there_is_no_exponent():
    growth = jacobians.compare(RELU, seed=0, clock=lambda: 1.0, rounds=1)
    assert growth.jacobian_exponent is None
    assert growth.backward_exponent is None


def test_gradients_that_differ_are_found(monkeypatch):
    real = jacobians.by_backward
    monkeypatch.setattr(
        jacobians, "by_backward", lambda *args: tuple(np.multiply(g, np.float32(1.001)) for g in real(*args))
    )
    assert not jacobians.compare(LINEAR, seed=0, rounds=1).same.ok


def test_relu_has_slope_0_at_0_and_another_one_is_found(monkeypatch):
    assert jacobians._at_zero().ok
    relu = jacobians.REGISTRY["relu"]
    monkeypatch.setattr(type(relu), "closed_jacobian", lambda self, a: (np.diag(np.greater_equal(a, 0) * 1.0),))
    assert not jacobians._at_zero().ok


def test_the_slip_about_eq_23_is_told():
    assert "it is Eq. 23" in RELU.correction
    assert RELU.direct == "Eq. 23"
