"""Every shipped profile that trains learns something in its first steps."""

from __future__ import annotations

import numpy as np
import pytest

from memback.profiling.definition import load, shipped
from memback.profiling.training import Training
from memback.profiling.workload import Workload

FALLS = {
    "deep-mlp": (12, 5.0),
    "digits": (40, 3.0),
    "digits-resnet": (25, 4.0),
    "long-context": (10, 1.1),
    "lstm": (30, 1.5),
    "notes": (400, 1.5),
    "source-gpt": (30, 1.4),
    "unet": (30, 1.25),
    "vit": (120, 1.3),
}
"""Steps of each profile, and by which factor the loss is lower after them: the mean of the last five, since batches
differ."""


def test_each_profile_that_trains_has_a_factor() -> None:
    assert set(FALLS) == {name for name in shipped() if not load(name).dry}


@pytest.mark.long
@pytest.mark.parametrize("name", FALLS)
def test_the_loss_falls_by_the_stated_factor(name: str) -> None:
    steps, factor = FALLS[name]
    losses = [result.loss for result in Training(Workload.build(load(name))).steps(steps)]
    assert factor * np.mean(losses[-5:]) < losses[0]
