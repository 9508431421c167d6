from __future__ import annotations

import gc

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.profiling.definition import load
from memback.profiling.passes import Mode, Step
from memback.profiling.workload import Workload


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


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_update_that_is_known_from_an_earlier_dry_run_takes_as_much_as_one_that_is_not(optimizer):
    profile = load("digits").with_overrides({"train.optimizer": optimizer, "train.momentum": "0.9", "data.batch": "1"})
    step = Workload.build(profile, dry=True).predicted_step()
    first, again = (step.predict(Mode("full")).ledger for _ in range(2))
    assert first.peaks == again.peaks
    assert first.intervals == again.intervals
    assert first.peaks[-2] > sum(first.intervals[-2].start), "the update takes nothing"
    fresh = Workload.build(profile, dry=True).predicted_step().predict(Mode("checkpoint", "all")).ledger
    assert step.predict(Mode("checkpoint", "all")).ledger.peaks == fresh.peaks
