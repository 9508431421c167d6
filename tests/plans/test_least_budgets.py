"""The least budget that a planner names where nothing fits: it works, and no budget below it does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import memback as mb
from memback.plans.model import RESERVE, NoPlanError, Planning
from memback.profiling.step import Step
from tests.models.small import MODELS
from tests.plans.small import planning_of
from tests.profiling.networks import ROWS, WIDTH, Model, Network, networks


def planning_for(network: Network) -> Planning:
    mb.manual_seed(0)
    model = Model(network)
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(network.dtype)
    return Planning(Step(lambda: model.loss(x, np.zeros(ROWS, np.int64)), model))


def fits(planning: Planning, planner: str, budget: int) -> bool:
    try:
        plan = planning.plan(budget, planner)
    except NoPlanError:
        return False
    assert plan.peak_bytes + RESERVE <= budget
    return True


def is_least(planning: Planning, planner: str, probes: int) -> None:
    with pytest.raises(NoPlanError) as refused:
        planning.plan(0, planner)
    least = refused.value.minimum_bytes
    assert fits(planning, planner, least)
    below = {least - 1, least - 2, *(least - least * i // probes for i in range(1, probes))}
    assert [budget for budget in below if fits(planning, planner, budget)] == []


PLANNERS = ["chain", "revolve", "uniform"]


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", MODELS)
def test_the_stated_minimum_of_a_model_is_the_least_budget_that_works(name: str, planner: str) -> None:
    is_least(planning_of(name), planner, 6)


@pytest.mark.long
@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("name", MODELS)
def test_no_budget_of_many_below_the_stated_minimum_of_a_model_works(name: str, planner: str) -> None:
    is_least(planning_of(name), planner, 60)


def network(*parts: object, stem: bool = True, loss: str = "mse") -> Network:
    return Network(parts, stem, loss, "float32", None)


SURPRISING = {
    "keeping everything is leanest": network(
        "every:1",
        ("unrecorded", ("checkpoint", ("leaky_relu",))),
        ("checkpoint that keeps products", ("linear without bias",)),
        loss="sqerr",
    ),
    "another schedule than the simulation's leanest is": network(
        "none",
        ("sqrt", ("none", ("dropout of seeds",), ("negative",), ("linear without bias",)), ("tanh",), ("detached",)),
    ),
    "ops alone are recomputed": network(
        "none",
        ("checkpoint", ("layer_norm",)),
        ("unrecorded", ("gated", ("gated", ("softmax",), ("twice",)), ("branches", ("slices",), ("layer_norm",)))),
        ("gated", ("softplus",), ("reused", ("layer_norm",))),
        stem=False,
        loss="cross_entropy",
    ),
}
"""Networks whose leanest plan is not the one that takes least by the planner's own figures."""


@pytest.mark.parametrize("name", SURPRISING)
def test_the_stated_minimum_is_that_of_runs_and_not_of_the_planner_s_figures(name: str) -> None:
    is_least(planning_for(SURPRISING[name]), "chain", 40)


@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(networks)
def test_the_stated_minimum_is_the_least_budget_that_works(network: Network) -> None:
    is_least(planning_for(network), "chain", 20)


@pytest.mark.long
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(networks)
def test_the_stated_minimum_is_the_least_budget_that_works_for_many_networks(network: Network) -> None:
    is_least(planning_for(network), "chain", 40)


@pytest.mark.long
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(networks)
def test_the_stated_minimum_of_graphs_is_the_least_budget_that_works(network: Network) -> None:
    is_least(planning_for(network), "auto", 20)
