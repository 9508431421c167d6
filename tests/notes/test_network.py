from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from memback.engine.observer import Observer
from memback.engine.state import current
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.models import NotesNetwork
from memback.notes import network
from memback.notes.network import Problem

BATCH, PIXELS, HIDDEN, CLASSES, FLOAT = 64, 64, 128, 10, 4
H, F = BATCH * HIDDEN * FLOAT, BATCH * CLASSES * FLOAT
PARAMETERS = (PIXELS * HIDDEN + HIDDEN + HIDDEN * HIDDEN + HIDDEN + HIDDEN * CLASSES + CLASSES) * FLOAT


@pytest.fixture(scope="module")
def forward():
    return network.forward(0)


@pytest.fixture(scope="module")
def backward():
    return network.backward(0)


# -- section 3


def test_the_forward_pass_is_eq_11_on_a_batch_of_digits(forward):
    assert [step.equation for step in forward.steps] == ["11a", "11b", "11c", "11d", "11e", "11f"]
    assert [step.shape for step in forward.steps] == [(BATCH, HIDDEN)] * 4 + [(BATCH, CLASSES), ()]
    assert forward.ok


def test_each_step_keeps_what_its_backward_needs_and_its_maker_is_charged(forward):
    assert [(step.keeps, step.saved_bytes, step.shared_bytes) for step in forward.steps] == [
        (("x",), 0, 0),
        (("h₁",), H, 0),
        (("h₁", "W₂"), 0, H),
        (("h₂",), H, 0),
        (("h₂", "W₃"), F, H),
        (("f", "y"), 0, F),
    ]
    assert forward.saved_bytes == 2 * H + F


def test_arguments_are_counted_apart(forward):
    assert forward.parameter_bytes == PARAMETERS
    assert forward.input_bytes == BATCH * (PIXELS + CLASSES) * FLOAT


def test_the_jacobians_of_one_image_are_as_large_as_their_shapes_say(forward):
    linear = [(PIXELS, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, CLASSES)]
    elements = sum(outs * (ins + ins * outs + outs) for ins, outs in linear) + 2 * HIDDEN**2 + 2 * CLASSES
    assert forward.jacobian_bytes == 8 * elements


# -- section 4.2


def test_the_backward_pass_is_eq_30_with_its_slips_put_right(backward):
    assert [(step.equation, step.formula, step.yields) for step in backward.steps] == [
        ("30a", "sqerr.backward(dL/dL = 1; f, y)", ("dL/df",)),
        ("30b", "linear.backward(dL/df; h₂, W₃, b₃)", ("dL/dh₂", "dL/dW₃", "dL/db₃")),
        ("30c", "relu.backward(dL/dh₂; a₂)", ("dL/da₂",)),
        ("30d", "linear.backward(dL/da₂; h₁, W₂, b₂)", ("dL/dh₁", "dL/dW₂", "dL/db₂")),
        ("30e", "relu.backward(dL/dh₁; a₁)", ("dL/da₁",)),
        ("30f", "linear.backward(dL/da₁; x, W₁, b₁)", ("dL/dW₁", "dL/db₁")),
    ]
    assert [step.equation for step in backward.steps if step.correction] == ["30e", "30f"]


def test_each_step_uses_what_was_saved_and_frees_what_nobody_needs_any_more(backward):
    assert backward.saved_bytes == 2 * H + F
    assert [(s.uses, s.freed_bytes, s.held_bytes, s.dropped, s.dropped_bytes) for s in backward.steps] == [
        (("f", "y"), F, 2 * H, "dL/dL", FLOAT),
        (("h₂", "W₃"), 0, 2 * H, "dL/df", F),
        (("h₂",), H, H, "dL/dh₂", H),
        (("h₁", "W₂"), 0, H, "dL/da₂", H),
        (("h₁",), H, 0, "dL/dh₁", H),
        (("x",), 0, 0, "dL/da₁", H),
    ]
    assert backward.gradient_bytes == PARAMETERS
    assert backward.steps[-1].gradient_bytes == PARAMETERS
    assert backward.ok


class Traced(Observer):
    """How many bytes of arrays tracemalloc sees come and go in each step of backward."""

    def __init__(self):
        self.changes = []

    def backward_begins(self, node):
        self.before = self.array_bytes()

    def backward_ended(self, node, edges):
        self.changes.append(self.array_bytes() - self.before)

    @staticmethod
    def array_bytes():
        traces = tracemalloc.take_snapshot().traces
        return sum(trace.size for trace in traces if trace.domain == np.lib.tracemalloc_domain)


def test_tracemalloc_sees_the_same_bytes_go(backward):
    problem, traced = Problem.make(0), Traced()
    made = [F, H + (HIDDEN + 1) * CLASSES * FLOAT, H, H + (HIDDEN + 1) * HIDDEN * FLOAT, H]
    made.append((PIXELS + 1) * HIDDEN * FLOAT)
    state = current()
    before = state.observer
    tracemalloc.start()
    try:
        with Tape():
            loss = problem.model.loss(Tensor(problem.x), problem.y)
            state.observer = traced
            loss.backward()
    finally:
        state.observer = before
        tracemalloc.stop()
    gone = [step.freed_bytes + step.dropped_bytes for step in backward.steps]
    assert traced.changes == [new - old for new, old in zip(made, gone, strict=True)]


def test_what_somebody_else_holds_is_not_called_freed(monkeypatch):
    hoard = []

    class Hoarder(NotesNetwork):
        def forward(self, x):
            out = super().forward(x)
            hoard.append(out.data)
            return out

    monkeypatch.setattr(network, "NotesNetwork", Hoarder)
    section = network.backward(0)
    assert section.steps[0].freed_bytes == 0
    assert section.steps[-1].held_bytes == F
    assert [check.what for check in section.checks if not check.ok] == [
        "what is still there after each step is what the ledger has it hold",
        "nothing is held at the end",
    ]


def test_a_wrong_derivative_is_found(monkeypatch):
    relu = network.REGISTRY["relu"]
    monkeypatch.setattr(type(relu), "closed_jacobian", lambda self, a: (np.diag(np.ones_like(a)),))
    section = network.forward(0)
    assert [check.equation for check in section.checks if not check.ok] == ["13"]


# -- the problem


def test_the_seed_decides_parameters_and_batch_and_leaves_the_random_stream_alone():
    state = current()
    before = (state.seed, state.draws)
    one, same, other = (Problem.make(seed) for seed in (3, 3, 4))
    assert (state.seed, state.draws) == before
    for name, array in one.arguments.items():
        np.testing.assert_array_equal(array, same.arguments[name])
    assert not np.array_equal(one.x, other.x)
    assert not np.array_equal(one.arguments["W₁"], other.arguments["W₁"])


def test_an_observer_that_was_there_is_there_again():
    state, observer = current(), Observer()
    before, state.observer = state.observer, observer
    try:
        network.backward(0)
        assert state.observer is observer
    finally:
        state.observer = before
