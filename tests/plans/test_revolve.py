from __future__ import annotations

import math
import warnings

import checkpoint_schedules
import numpy as np
import pytest

from memback.errors import UsageError
from memback.plans import Forward, Stage, chain, revolve, simulate

N, S = 300, 20


def test_the_published_values() -> None:
    assert revolve.extra_forwards(10, 3) == 15
    assert revolve.extra_forwards(32, 5) == 68
    assert revolve.extra_forwards(100, 10) == 222


def test_the_closed_form_is_the_optimum_of_the_recursion() -> None:
    """t(n, s) = min over k of k + t(n - k, s - 1) + t(k, s); with one slot, every stage runs from the start again."""
    t = np.zeros((N + 1, S + 1), np.int64)
    for n in range(1, N + 1):
        t[n, 1] = n * (n - 1) // 2
        if n > 1:
            k = np.arange(1, n)
            t[n, 2:] = (k[:, None] + t[n - k, 1:-1] + t[k, 2:]).min(axis=0)
        assert [revolve.extra_forwards(n, s) for s in range(1, S + 1)] == t[n, 1:].tolist()


def runs(n: int, slots: int, memo: dict[tuple[int, int], int]) -> int:
    """Extra forwards of the schedule, by where it puts its first checkpoint."""
    if n == 1:
        return 0
    if (n, slots) not in memo:
        k = revolve.first_checkpoint(n, slots)
        memo[n, slots] = k + runs(n - k, slots - 1, memo) + runs(k, slots, memo)
    return memo[n, slots]


def test_the_schedule_has_as_many_forwards_as_the_closed_form_says() -> None:
    memo: dict[tuple[int, int], int] = {}
    for n in range(1, N + 1):
        for slots in range(1, S + 1):
            assert runs(n, slots, memo) == revolve.extra_forwards(n, slots)


CASES = [*((n, s) for n in (1, 2, 3, 7, 10, 32) for s in (1, 2, 3, 5, 10, 40)), (N, 3), (N, 20), (100, 10)]


@pytest.mark.parametrize(("n", "slots"), CASES)
def test_the_actions_are_those_forwards_and_hold_that_many_inputs(n: int, slots: int) -> None:
    plan = revolve.schedule(n, slots)
    forwards = sum(isinstance(action, Forward) for action in plan.actions)
    assert forwards == n + revolve.extra_forwards(n, slots)
    assert plan.cost == forwards + n
    assert simulate([revolve.UNIT] * n, plan) == (plan.cost, plan.peak_bytes)
    # Besides the slots but the input's, a backward has its own input, its output and two gradients.
    assert plan.peak_bytes <= min(slots, n - 1) + 3


def theirs(n: int, snapshots: int, kind: str) -> int:
    """Forward steps of the schedule of another implementation."""
    if kind == "mixed":
        schedule = checkpoint_schedules.MixedCheckpointSchedule(
            n, snapshots, storage=checkpoint_schedules.StorageType.RAM
        )
    else:
        schedule = checkpoint_schedules.MultistageCheckpointSchedule(n, snapshots, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sum(a.n1 - a.n0 for a in schedule if isinstance(a, checkpoint_schedules.Forward))


@pytest.mark.parametrize("n", [2, 3, 5, 10, 17, 32, 60])
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8, 13])
def test_it_agrees_with_another_implementation(n: int, slots: int) -> None:
    assert theirs(n, min(slots, n), "revolve") == n + revolve.extra_forwards(n, slots)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 17, 30])
@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("saved", [0, 3])
def test_chain_reproduces_it_where_inputs_alone_are_stored(n: int, slots: int, saved: int) -> None:
    """Besides the slots but the input's, a backward has its own input, its saves, its output and two gradients."""
    stages = [Stage(1, 1, 1, saved_bytes=saved)] * n
    plan = chain.solve(stages, slots + saved + 1 + 2, save_everything=False)
    assert plan.cost == 2 * n + revolve.extra_forwards(n, slots)


@pytest.mark.parametrize("n", [2, 3, 5, 10, 17, 30])
@pytest.mark.parametrize("units", [1, 2, 3, 5, 8])
def test_chain_reproduces_mixed_schedules_of_equal_sizes(n: int, units: int) -> None:
    """Maddison 2024: a unit holds a stage's input or what its backward needs, which is its output here.

    The chain's input takes a unit there, and a backward's own input none; output and gradients are counted here alone.
    """
    stages = [Stage(1, 1, 1)] * n
    plan = chain.solve(stages, units + 1 + 2)
    assert plan.cost - n == theirs(n, min(units, n - 1), "mixed")


@pytest.mark.parametrize(("n", "slots"), [(0, 1), (1, 0), (-3, 2)])
def test_there_is_no_schedule_without_stages_or_slots(n: int, slots: int) -> None:
    for make in (revolve.extra_forwards, revolve.schedule):
        with pytest.raises(UsageError, match="at least one stage and one slot"):
            make(n, slots)


def test_the_most_stages_that_so_many_repetitions_reverse() -> None:
    for slots in range(1, 8):
        for repetitions in range(1, 6):
            n = math.comb(slots + repetitions, slots)
            assert revolve.extra_forwards(n + 1, slots) - revolve.extra_forwards(n, slots) == repetitions + 1
