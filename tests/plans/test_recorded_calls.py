"""Plans over recorded calls: what is chosen fits, and no bound is above it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memback.plans.calls import Planner, RecordedCalls, Timeline, Value


def step(costs, sizes, reads, needed, replayable) -> RecordedCalls:
    """A step of calls that make a value each: backward needs the ``needed`` ones, those of later calls first."""
    n = len(costs)
    ends = 2 * n
    readers = {i: [c for c in range(n) if i in reads[c]] for i in range(n)}
    values = []
    turn: dict[int, int] = {}
    for position, call in enumerate(reversed(range(n))):
        turn[call] = n + position
    for i in range(n):
        alone = float(max(readers[i], default=i)) + 0.25
        needs = (float(turn[i]),) if needed[i] else ()
        freed = turn[i] + 0.75 if needed[i] else alone
        values.append(Value(i, sizes[i], float(i), alone, freed, needs))
    return RecordedCalls(
        costs=costs,
        products=[cost > 2 for cost in costs],
        reads=reads,
        makes=[(i,) for i in range(n)],
        replayable=replayable,
        values=values,
        rest=np.zeros(ends + 1, dtype=np.int64),
        begins=[float(i) for i in range(n + 1)],
        kinds=[(cost, size) for cost, size in zip(costs, sizes, strict=True)],
    )


@st.composite
def steps(draw, most=9):
    n = draw(st.integers(2, most))
    costs = [float(draw(st.integers(1, 9))) for _ in range(n)]
    sizes = [draw(st.integers(1, 20)) for _ in range(n)]
    reads = [tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=2)))) if i else () for i in range(n)]
    needed = [draw(st.booleans()) for _ in range(n)]
    replayable = [draw(st.integers(0, 4)) > 0 for _ in range(n)]
    return step(costs, sizes, reads, needed, replayable)


def every(calls):
    """The judgement of each choice that can be carried out."""
    timeline = Timeline(calls)
    able = [c for c in range(len(calls)) if calls.replayable[c]]
    for size in range(len(able) + 1):
        for chosen in combinations(able, size):
            yield timeline.judge(set(chosen))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(steps(), st.floats(0.3, 1.0))
def test_what_is_chosen_fits_and_lies_between_the_bound_and_nothing_cheaper_than_brute_force(calls, share):
    planner = Planner(calls)
    budget = int(share * planner.judged(()).judged.peak_bytes)
    best = min((j.seconds for j in every(calls) if j.peak_bytes <= budget), default=None)
    choice = planner.within(budget)
    if best is None:
        assert choice is None
        return
    assert planner.least_seconds(budget) <= best + 1e-9
    if choice is not None:
        assert choice.judged.peak_bytes <= budget
        assert choice.judged.seconds >= best - 1e-9


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps())
def test_the_leanest_choice_is_no_worse_than_keeping_all_or_recomputing_all_that_can_be(calls):
    planner = Planner(calls)
    all_of_it = planner.judged([c for c in range(len(calls)) if calls.replayable[c]])
    leanest = planner.leanest.judged.peak_bytes
    assert leanest <= min(planner.judged(()).judged.peak_bytes, all_of_it.judged.peak_bytes)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(steps())
def test_more_room_never_costs_more_seconds_than_the_same_choice_did(calls):
    planner = Planner(calls)
    full, spent = planner.judged(()).judged.peak_bytes, float("inf")
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        choice = planner.within(int(share * full))
        if choice is not None:
            assert choice.judged.seconds <= spent + 1e-9
            spent = choice.judged.seconds


def test_a_chain_of_equal_blocks_drops_what_is_cheap_and_wide_first():
    # each block: a narrow product (dear), a wide product (dear), and a wide activation (cheap) that backward needs, too
    costs, sizes, reads, needed = [], [], [], []
    for block in range(6):
        last = 3 * block - 1
        costs += [9.0, 9.0, 1.0]
        sizes += [4, 16, 16]
        reads += [(last,) if block else (), (3 * block,), (3 * block + 1,)]
        needed += [True, True, True]
    calls = step(costs, sizes, reads, needed, [True] * 18)
    planner = Planner(calls)
    choice = planner.within(int(0.7 * planner.judged(()).judged.peak_bytes))
    assert choice is not None
    assert {call % 3 for call in choice.again} == {2}


def test_a_value_that_is_written_to_later_is_recomputed_with_what_has_become_of_it():
    calls = step([1.0, 1.0, 1.0], [8, 8, 8], [(), (0,), (1,)], [False, True, True], [True, True, True])
    values = [calls.values[0].__class__(0, 8, 0.0, 1.0, 1.0, (), 1), *calls.values[1:]]
    written = RecordedCalls(**{**vars(calls), "values": values})
    assert written.recomputed({1}) == set()
    assert written.recomputed({0, 1}) == {0, 1}


@pytest.mark.parametrize("budget", [0, 1])
def test_nothing_fits_no_room(budget):
    calls = step([1.0, 1.0], [8, 8], [(), (0,)], [True, True], [True, True])
    assert Planner(calls).within(budget) is None
