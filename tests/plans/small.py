"""The small models' steps, and a planning of each: it is made once, and what it has found once it keeps."""

from __future__ import annotations

from functools import cache

import memback as mb
from memback.nn import Module
from memback.plans.model import Planning
from memback.profiling.step import Step
from tests.models.small import MODELS, batch


def made(name: str) -> tuple[Module, Step]:
    """(model, step on it)"""
    mb.manual_seed(3)
    model, (x, y) = MODELS[name]("float32"), batch(name, "float32")
    return model, Step(lambda: model.loss(x, y), model)


@cache
def planning_of(name: str) -> Planning:
    """The same for every test that asks, its model and its step (``planning.step``) included."""
    return Planning(made(name)[1])
