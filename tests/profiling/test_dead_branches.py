"""Steps that compute something besides their loss: the account of every mode is whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import nn, ops
from memback.profiling.mode import Mode
from memback.profiling.run import modes_of, run_of
from memback.profiling.step import Step

UNARY = (ops.tanh, ops.exp, ops.softmax, ops.relu, ops.negative, lambda x: ops.reshape(x, (2, 6)))


class Graph(nn.Module):
    """Ops on ops, of which the last alone leads to the loss; the others are dead where it does not use them."""

    def __init__(self, steps: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.w = nn.Parameter(np.full((3, 4), 0.1, np.float32))
        self.steps = steps

    def forward(self) -> Any:
        values: list[Any] = [self.w]
        for kind, i, j in self.steps:
            x, y = values[i % len(values)], values[j % len(values)]
            if kind < len(UNARY):
                values.append(UNARY[kind](x))
            else:
                values.append(ops.multiply(ops.reshape(x, (3, 4)), ops.reshape(y, (3, 4)).detach()))
        return ops.sum(values[-1])


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, len(UNARY)), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8),
    st.sampled_from(["retain-all", "full", "inference"]),
)
def test_the_rows_of_a_step_with_dead_branches_add_up(steps: list[tuple[int, int, int]], name: str) -> None:
    model = Graph(steps)
    step, (mode,) = Step(model, model), modes_of([name], None)
    dry, real = step.predict(mode), step.account(mode)
    for ledger in (dry.ledger, real.ledger):
        rows = ledger.rows
        saved = ledger.saved_at_end_of_forward or 0
        assert sum(row.saved_bytes for row in rows) == saved
        assert sum({value.buffer: value.bytes for row in rows for value in row.saved}.values()) == saved
    assert dry.ledger.saved_at_end_of_forward == real.ledger.saved_at_end_of_forward


@pytest.mark.parametrize("mode", ["retain-all", "full", "checkpoint", "inference"])
def test_a_report_can_be_made_of_a_step_that_computes_an_accuracy(mode: str) -> None:
    model = nn.Sequential(nn.Linear(64, 10))
    x, y = np.ones((32, 64), np.float32), np.zeros((32, 10), np.float32)

    def step() -> mb.Tensor:
        out = model(mb.Tensor(x))
        ops.softmax(out)  # for the log
        loss: mb.Tensor = ops.sqerr(out, y)
        return loss

    (run,) = mb.profile(model, step=step, modes=(mode,), rounds=0).runs
    # what the loss needs; with every variable also the loss and the softmax that is not used
    assert run.saved_bytes == {"retain-all": 1280 + 4 + 1280, "inference": 0}.get(mode, 1280)


def test_a_mode_is_reported_as_it_was_predicted() -> None:
    model = Graph([(0, 0, 0), (1, 0, 0)])
    made = Step(model, model).predict(Mode("retain-all"))
    run = run_of(Mode("retain-all"), made.ledger, made.peak.bytes, made.peak)
    assert run.saved_bytes == 2 * 48 + 4
    assert [value.name for layer in run.layers for value in layer.saved] == ["out", "out", "out"]
