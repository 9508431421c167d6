"""Every planner in the registry."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import plans
from memback.errors import MembackError, UsageError
from memback.plans import PLANNERS, BudgetError, Plan, Stage, exact, planner, simulate
from tests.plans.chains import chains, mixed

NAMES = [*PLANNERS, "uniform:3"]
ENOUGH = 10**12
each = pytest.mark.parametrize("name", NAMES)


@each
@settings(max_examples=40)
@given(case=chains(longest=exact.LONGEST - 3), share=st.floats(0, 1))
def test_every_plan_can_be_done_within_its_budget(name: str, case: tuple[list[Stage], int], share: float) -> None:
    stages, input_bytes = case
    solve = planner(name)
    most = PLANNERS["all"](stages, ENOUGH, input_bytes)
    with pytest.raises(BudgetError) as raised:
        solve(stages, input_bytes - 1, input_bytes)
    least = raised.value.minimum_bytes
    assert least == raised.value.peak.live.total
    for budget in {least, least + round(share * (most.peak_bytes - least)), ENOUGH}:
        if budget >= least:
            plan = solve(stages, budget, input_bytes)
            assert simulate(stages, plan, input_bytes) == (plan.cost, plan.peak_bytes)
            assert plan.peak_bytes <= budget
            assert plan.cost >= most.cost
            assert Plan.from_dict(plan.to_dict()) == plan
    if least:
        with pytest.raises(BudgetError):
            solve(stages, least - 1, input_bytes)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "exact"])
def test_a_chain_of_many_stages_is_planned(name: str) -> None:
    stages = mixed(60, 7)
    for budget in (120, 250, 400, 700, ENOUGH):
        refused = None
        try:
            plan = planner(name)(stages, budget)
        except BudgetError as error:
            refused = error.minimum_bytes
            continue
        finally:
            assert refused is None or refused > budget
        assert simulate(stages, plan) == (plan.cost, plan.peak_bytes)
        assert plan.peak_bytes <= budget
    assert plan.peak_bytes < ENOUGH


@cache
def frontier_of(seed: int) -> list[tuple[int, float]]:
    return plans.chain.frontier(mixed(20, seed))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("exact", "chain")])
def test_no_planner_of_persistent_schedules_is_cheaper_than_chain(name: str) -> None:
    for seed in range(6):
        for budget, cost in frontier_of(seed)[::8]:
            with suppress(BudgetError):
                assert planner(name)(mixed(20, seed), budget).cost >= cost


@each
def test_the_same_request_is_refused_with_the_same_error(name: str) -> None:
    with pytest.raises(UsageError, match="a chain without stages"):
        planner(name)([], ENOUGH)
    with pytest.raises(UsageError, match="input_bytes must be from 0 up, not -1"):
        planner(name)(mixed(3, 0), ENOUGH, -1)


@each
def test_a_planner_says_what_it_does_in_one_line(name: str) -> None:
    line = (PLANNERS[name.partition(":")[0]].__doc__ or "").partition("\n")[0]
    assert 20 < len(line) < 115


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "unknown planner 'best'; there are chain, exact, revolve, uniform"),
        ("chain:3", "unknown planner 'chain:3'"),
        ("uniform:0", "uniform:k needs a whole number k of stages from 1 up, not '0'"),
        ("uniform:", "not ''"),
        ("uniform:²", "not '²'"),
    ],
)
def test_an_unknown_planner_is_named(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        planner(name)


def test_a_chain_that_is_too_long_to_search_is_refused() -> None:
    with pytest.raises(UsageError, match="a chain of 9 stages; give it at most 8, or use the planner 'chain'"):
        exact.solve(mixed(9, 0), ENOUGH)
    with pytest.raises(UsageError, match="at least one stage, not 0"):
        plans.uniform.solve(mixed(3, 0), ENOUGH, length=0)


def test_without_a_length_uniform_takes_the_cheapest_that_fits() -> None:
    stages = [Stage(1, 1, 1, saved_bytes=3)] * 30
    for budget in range(20, 130, 5):
        costs = []
        for k in range(1, 31):
            try:
                costs.append(planner(f"uniform:{k}")(stages, budget).cost)
            except BudgetError:
                continue
        if costs:
            assert planner("uniform")(stages, budget).cost == min(costs)


def test_revolve_says_where_it_is_a_heuristic() -> None:
    assert planner("revolve")([Stage(1, 1, 1)] * 9, 8).optimality.startswith("optimal for")
    assert planner("revolve")(mixed(9, 0), ENOUGH).optimality.startswith("heuristic")


def test_public_names() -> None:
    assert mb.plans is plans
    assert sorted(plans.__all__) == sorted(set(plans.__all__))
    for name in plans.__all__:
        assert hasattr(plans, name)
    assert callable(plans.simulate)
    assert issubclass(BudgetError, MembackError)
