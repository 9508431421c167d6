from __future__ import annotations

import gc

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.profiling.passes import Mode, Step


class Cycle:
    """Garbage that only a collection frees, with an array without memory in it."""

    def __init__(self):
        self.array = mb.ShapeArray((1000, 1000))
        self.me = self


@pytest.mark.parametrize("when", ["before", "during"])
def test_garbage_of_earlier_dry_runs_changes_no_prediction(when):
    model = nn.Linear(64, 64)
    collect = [False]

    def function():
        if collect[0]:
            gc.collect()
        return ops.sum(ops.relu(model(mb.Tensor(np.ones((32, 64), np.float32)))))

    step = Step(function, model)
    gc.disable()
    try:
        expected = step.predict(Mode("full")).peak.bytes
        Cycle()
        collect[0] = when == "during"
        assert step.predict(Mode("full")).peak.bytes == expected
    finally:
        gc.enable()
