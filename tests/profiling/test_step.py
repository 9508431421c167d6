from __future__ import annotations

import gc

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.profiling.definition import load
from memback.profiling.mode import Mode
from memback.profiling.step import Step
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


# -- inputs and parameters that are views

IMAGES = np.ones((32, 32, 32, 8), np.float32)
SHARED = np.ones((2, 300, 200), np.float32)


def _of(array, function):
    """A module whose one parameter is an array, and a step that is a function of it."""
    model = nn.Module()
    model.weight = nn.module.Parameter(array)
    return Step(lambda: ops.sum(function(model.weight)), model)


def _with_input(array, function):
    model = nn.Linear(4, 4)
    one = np.ones((1, 4), np.float32)
    return Step(lambda: ops.sum(model(one)) + ops.sum(function(mb.Tensor(array))), model)


VIEWS = {
    "channels last": _with_input(IMAGES.transpose(0, 3, 1, 2), lambda x: ops.tanh(ops.reshape(x, (32, -1)))),
    "by columns": _with_input(np.asfortranarray(SHARED), lambda x: ops.exp(ops.reshape(x, (-1,)))),
    "from the last on": _with_input(SHARED[:, ::-1], lambda x: ops.reshape(x, (2, -1))),
    "every other": _with_input(SHARED[..., ::2], lambda x: ops.reshape(x, (2, -1))),
    "repeated": _with_input(np.broadcast_to(SHARED[0, 0], (400, 200)), lambda x: ops.reshape(x, (-1,))),
    "a transposed parameter": _of(SHARED[0].T, lambda w: ops.reshape(ops.tanh(w), (-1,))),
    "a part of a parameter": _of(SHARED[0, :, 10:], lambda w: ops.multiply(ops.reshape(w, (-1,)), 2.0)),
}


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("mode", ["full", "inference"])
def test_views_are_foreseen_as_they_lie_in_memory(name, mode):
    step, mode = VIEWS[name], Mode(mode)
    account, prediction = step.account(mode), step.predict(mode)
    measured, _ = step.measure(mode, account.ledger)
    assert prediction.ledger.saved_at_end_of_forward == account.ledger.saved_at_end_of_forward
    assert prediction.peak.bytes <= measured.bytes <= prediction.peak.bytes + 16 * 1024


def test_inputs_that_share_a_buffer_share_it_on_a_dry_run():
    model = nn.Linear(200, 4)
    first, second = SHARED
    step = Step(lambda: ops.sum(model(mb.Tensor(first))) + ops.sum(model(mb.Tensor(second))), model)
    real, dry = step.account(Mode("full")).ledger, step.predict(Mode("full")).ledger
    assert real.input_bytes == dry.input_bytes == SHARED.nbytes


def test_a_plan_for_images_with_their_channels_last_holds_its_budget():
    model = nn.Linear(32 * 32 * 8, 4)
    images = IMAGES.transpose(0, 3, 1, 2)

    def step():
        return ops.sum(model(ops.reshape(mb.Tensor(images), (32, -1))))

    with pytest.raises(mb.MembackError, match="no plan fits"):
        mb.plan(model, step=step, budget=IMAGES.nbytes)
    assert mb.plan(model, step=step, budget=2 * IMAGES.nbytes).peak_bytes > IMAGES.nbytes
