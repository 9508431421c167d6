from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from memback.plans import BudgetError, Forward, Keep, Stage, chain, exact, simulate
from memback.plans.chain.table_solver import TableSolver
from memback.plans.simulate import Chain
from tests.plans.chains import chains, mixed, schedules

Point = tuple[int, float]


def pareto(points: set[Point]) -> list[Point]:
    best: list[Point] = []
    for peak, cost in sorted(points):
        if not best or cost < best[-1][1]:
            best.append((peak, cost))
    return best


def brute_force(stages: list[Stage], input_bytes: int, save_everything: bool) -> list[Point]:
    """(peak, cost) of the best of all persistent schedules."""
    every = schedules(0, len(stages), save_everything)
    return pareto({(peak, cost) for cost, peak in (simulate(stages, actions, input_bytes) for actions in every)})


def random_chain(seed: int) -> tuple[list[Stage], int]:
    r = random.Random(seed)
    n = r.choice([1, 2, 3, 3, 4, 4, 5]) if seed % 50 else 6
    stages = mixed(1, seed) * n if seed % 4 == 0 else mixed(n, seed)
    return stages, r.choice([0, 0, 4])


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.long) for part in range(1, 4))])
def test_it_is_the_best_of_all_persistent_schedules(part: int) -> None:
    """On 1,000 chains: the frontier has every point of brute force and no other, and solve gives each."""
    for seed in range(part * 250, part * 250 + 250):
        stages, input_bytes = random_chain(seed)
        save_everything = seed % 5 != 0
        best = brute_force(stages, input_bytes, save_everything)
        assert chain.frontier(stages, input_bytes, save_everything) == best, seed
        for budget in {best[0][0], best[len(best) // 2][0], max(best[0][0], best[-1][0] - 1)}:
            plan = chain.solve(stages, budget, input_bytes, save_everything)
            assert plan.cost == max(point for point in best if point[0] <= budget)[1], seed
            assert plan.peak_bytes <= budget
            assert plan.optimality.startswith("optimal")
            assert "rounded" not in plan.optimality
        with pytest.raises(BudgetError) as raised:
            chain.solve(stages, best[0][0] - 1, input_bytes, save_everything)
        assert raised.value.minimum_bytes == best[0][0]


def test_it_is_the_best_of_those_that_keep_everything_of_stages_that_cannot_be_run_again() -> None:
    for seed in range(300):
        r = random.Random(seed)
        stages, input_bytes = random_chain(seed)
        stages = [
            replace(stage, sweeps=r.random() < 0.6, sweep_workspace=r.choice([None, 0, r.randint(0, 9)]))
            for stage in stages
        ]
        points = set()
        for actions in schedules(0, len(stages)):
            if all(stages[a.stage].sweeps for a in actions if isinstance(a, Forward) and a.keep is not Keep.EVERYTHING):
                cost, peak = simulate(stages, actions, input_bytes)
                points.add((peak, cost))
        best = pareto(points)
        assert chain.frontier(stages, input_bytes) == best, seed
        assert chain.solve(stages, best[0][0], input_bytes).cost == best[0][1]
        with pytest.raises(BudgetError):
            chain.solve(stages, best[0][0] - 1, input_bytes)


def test_no_schedule_at_all_is_costlier_than_the_best_persistent_one_and_some_are_cheaper() -> None:
    cheaper = 0
    for seed in range(60):
        stages, input_bytes = random_chain(seed)
        for budget, cost in chain.frontier(stages, input_bytes)[:2]:
            plan = exact.solve(stages, budget, input_bytes)
            assert simulate(stages, plan, input_bytes) == (plan.cost, plan.peak_bytes)
            assert plan.peak_bytes <= budget
            assert plan.cost <= cost
            cheaper += plan.cost < cost
    assert cheaper > 0


def test_exact_finds_less_memory_than_any_persistent_schedule_where_there_is() -> None:
    for seed in range(40):
        stages, input_bytes = random_chain(seed)
        with pytest.raises(BudgetError) as raised:
            exact.solve(stages, -1, input_bytes)
        least = raised.value.minimum_bytes
        assert least <= chain.frontier(stages, input_bytes)[0][0]
        assert exact.solve(stages, least, input_bytes).peak_bytes == least


def is_consistent(stages: list[Stage], input_bytes: int = 0, save_everything: bool = True) -> list[Point]:
    points = chain.frontier(stages, input_bytes, save_everything)
    for (peak, cost), (next_peak, next_cost) in pairwise(points):
        assert peak < next_peak
        assert cost > next_cost
    with pytest.raises(BudgetError) as raised:
        chain.solve(stages, points[0][0] - 1, input_bytes, save_everything)
    assert raised.value.minimum_bytes == points[0][0]
    for peak, cost in points if len(points) < 12 else random.Random(0).sample(points, 12):
        plan = chain.solve(stages, peak, input_bytes, save_everything)
        assert (plan.peak_bytes, plan.cost) == (peak, cost)
    return points


@settings(max_examples=60)
@given(chains(longest=14), st.booleans())
def test_the_frontier_is_monotone_and_solve_gives_its_points(case: tuple[list[Stage], int], everything: bool) -> None:
    is_consistent(*case, everything)


def test_the_frontier_of_sizes_without_a_common_unit_is_consistent_too() -> None:
    points = is_consistent(mixed(40, 3, largest=10**9 + 7))
    assert len(points) > 20


def uneven(n: int, seed: int) -> list[Stage]:
    """Stages whose sizes are of very different magnitudes, so that rounding raises small ones most."""
    r = random.Random(seed)

    def size() -> int:
        return r.choice([0, r.randint(0, 100), r.randint(0, 10**6), r.randint(0, 10**9)])

    return [
        Stage(
            r.randint(1, 9),
            1,
            size(),
            saved_bytes=size(),
            forward_workspace=size(),
            backward_workspace=size(),
            parameter_gradient_bytes=size(),
            sweeps=r.random() < 0.8,
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize(("n", "seed"), [(25, 13), (25, 62), (35, 19), (40, 10)])
def test_the_least_budget_gives_the_leanest_plan_where_sizes_are_rounded(n: int, seed: int) -> None:
    stages = uneven(n, seed)
    with pytest.raises(BudgetError) as raised:
        chain.solve(stages, 0)
    least = raised.value.minimum_bytes
    assert chain.solve(stages, least).peak_bytes == least
    for budget in (least + 1, least + least // 1000, least + least // 50):
        assert least <= chain.solve(stages, budget).peak_bytes <= budget
    with pytest.raises(BudgetError):
        chain.solve(stages, least - 1)


def test_the_frontier_of_a_long_chain_of_stages_alike_is_consistent_too() -> None:
    assert len(is_consistent([Stage(1, 2, 1000, saved_bytes=777, forward_workspace=50)] * 150)) > 20


def test_the_frontier_of_a_grouped_chain_is_consistent_too() -> None:
    points = chain.frontier(mixed(210, 4, largest=10**6 + 3))
    assert len(points) > 10
    peak, cost = points[len(points) // 2]
    plan = chain.solve(mixed(210, 4, largest=10**6 + 3), peak)
    assert (plan.peak_bytes, plan.cost) == (peak, cost)


def test_rounding_and_grouping_are_said() -> None:
    odd = mixed(30, 1, largest=10**9 + 7)
    budget = chain.frontier(odd)[3][0]
    text = chain.solve(odd, budget).optimality
    assert text.startswith("near-optimal: optimal among persistent schedules, but for sizes rounded to multiples of")
    assert chain.solve(odd, 10**12).optimality == "optimal: nothing is run twice"
    long = mixed(201, 1)
    with pytest.raises(BudgetError, match="the leanest schedule by groups of stages of this chain of 201") as raised:
        chain.solve(long, 0)
    text = chain.solve(long, raised.value.minimum_bytes).optimality
    assert "groups of stages" in text
    assert text.startswith("heuristic")
    assert (
        chain.solve(mixed(10, 1), chain.frontier(mixed(10, 1))[1][0]).optimality == "optimal among persistent schedules"
    )


def test_rounded_sizes_cost_little() -> None:
    """The same sizes in units of a byte and of nearly a MiB: the second can't be planned for exactly."""
    for seed in range(5):
        small = mixed(25, seed, largest=20)
        unit = 10**6 + 3
        large = [
            Stage(
                s.forward_cost,
                s.backward_cost,
                s.output_bytes * unit,
                s.saved_bytes * unit,
                None if s.gradient_bytes is None else s.gradient_bytes * unit,
                s.forward_workspace * unit + 1,
                s.backward_workspace * unit,
                s.parameter_gradient_bytes * unit,
            )
            for s in small
        ]
        points = chain.frontier(small)
        for peak, cost in points[:: max(1, len(points) // 5)]:
            plan = chain.solve(large, peak * unit + 1)
            assert plan.peak_bytes <= peak * unit + 1
            assert plan.cost <= 1.03 * cost


def test_stages_alike_cost_the_same_from_either_table() -> None:
    for saved, work in ((0, 0), (3, 1), (1, 5)):
        stages = [Stage(1, 1, 2, saved_bytes=saved, gradient_bytes=1, forward_workspace=work)] * 40
        most = chain.solve(stages, 10**6).peak_bytes
        tabled = TableSolver(Chain(stages), most, True)
        assert tabled.exact
        for budget in range(tabled.minimum_bytes, most, 7):
            assert chain.solve(stages, budget).cost == tabled.solve(budget).cost
