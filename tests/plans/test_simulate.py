"""The memory model, by examples worked out by hand."""

from __future__ import annotations

import pickle
import re

import pytest

from memback.errors import UsageError
from memback.plans import (
    Backward,
    BudgetError,
    Drop,
    Forward,
    IllegalActionError,
    Keep,
    Plan,
    Stage,
    Stored,
    chain,
    simulate,
)

NOTHING, INPUT, EVERYTHING = Keep
TWO = [
    Stage(2, 3, 10, saved_bytes=100, forward_workspace=1000, parameter_gradient_bytes=7),
    Stage(5, 7, 20, saved_bytes=200, gradient_bytes=4, backward_workspace=5000, parameter_gradient_bytes=9),
]
ALL = [Forward(0, EVERYTHING), Forward(1, EVERYTHING), Backward(1), Backward(0)]


def peak(actions: list, stages: list[Stage] = TWO, input_bytes: int = 0) -> int:
    return simulate(stages, actions, input_bytes)[1]


def test_every_byte_of_a_backward_counts() -> None:
    held, gradients = 10 + 100 + 20 + 200, 4 + 10
    assert simulate(TWO, ALL) == (2 + 3 + 5 + 7, held + gradients + 9 + 5000)


def test_a_forward_counts_its_output_its_saves_and_its_workspace() -> None:
    wide = [Stage(1, 1, 10, saved_bytes=100, forward_workspace=9000)]
    assert peak([Forward(0, EVERYTHING), Backward(0)], wide) == 10 + 100 + 9000


def test_a_sweep_can_have_a_workspace_of_its_own() -> None:
    stages = [Stage(1, 1, 10, saved_bytes=100, forward_workspace=30, sweep_workspace=9000), Stage(1, 1, 10)]
    assert peak([Forward(0, EVERYTHING), Forward(1, EVERYTHING), Backward(1), Backward(0)], stages) == 10 + 100 + 30
    swept = [Forward(0, INPUT), Forward(1, EVERYTHING), Backward(1), Forward(0, EVERYTHING), Backward(0)]
    assert peak(swept, stages) == 10 + 9000


def test_a_stage_that_cannot_be_run_again_keeps_everything() -> None:
    stages = [Stage(1, 1, 10, sweeps=False), Stage(1, 1, 10)]
    with pytest.raises(IllegalActionError, match="stage 0 can't be run again, so it has to keep everything"):
        peak([Forward(0, INPUT), Forward(1, EVERYTHING), Backward(1), Forward(0, EVERYTHING), Backward(0)], stages)
    assert peak([Forward(0, EVERYTHING), Forward(1, EVERYTHING), Backward(1), Backward(0)], stages) == 40


def test_the_input_is_an_argument_unless_it_has_a_size_and_then_it_has_a_gradient_too() -> None:
    first = [Stage(1, 1, 10, saved_bytes=100)]
    actions = [Forward(0, EVERYTHING), Backward(0)]
    assert peak(actions, first) == 10 + 100 + 10
    assert peak(actions, first, input_bytes=50) == 50 + 10 + 100 + 10 + 50


def test_parameter_gradients_live_on_while_earlier_stages_run_again() -> None:
    stages = [Stage(1, 1, 10, forward_workspace=10_000), Stage(1, 1, 10, parameter_gradient_bytes=3)]
    actions = [Forward(0, INPUT), Forward(1, EVERYTHING), Backward(1), Forward(0, EVERYTHING), Backward(0)]
    assert peak(actions, stages) == 10 + 10_000 + 10 + 3


def test_keeping_nothing_drops_the_input_and_keeping_the_input_does_not() -> None:
    stages = [Stage(1, 1, 10), Stage(1, 1, 20), Stage(1, 1, 40, forward_workspace=10_000)]
    lean = [Forward(0, INPUT), Forward(1, NOTHING), Forward(2, EVERYTHING), Backward(2)]
    rest = [Forward(0, EVERYTHING), Forward(1, EVERYTHING), Backward(1), Backward(0)]
    assert peak([*lean, *rest], stages) == 20 + 40 + 10_000
    lean[1] = Forward(1, INPUT)
    assert peak([*lean, Forward(1, EVERYTHING), Backward(1), Forward(0, EVERYTHING), Backward(0)], stages) == 10_070


def test_a_backward_leaves_its_input_only_to_a_stage_whose_saves_are_held() -> None:
    actions = [Forward(0, INPUT), Forward(1, EVERYTHING), Backward(1), Backward(0)]
    with pytest.raises(IllegalActionError, match="the saves of stage 0 are not held"):
        simulate(TWO, actions)
    again = [Forward(0, EVERYTHING), Backward(0)]
    assert simulate(TWO, [*actions[:3], *again])[0] == 2 + 5 + 7 + 2 + 3


def test_what_is_dropped_can_be_made_again() -> None:
    drops = [Forward(0, EVERYTHING), Drop(0, Stored.SAVES), Drop(0, Stored.OUTPUT)]
    assert simulate(TWO, [*drops, *ALL])[0] == 2 + 17


@pytest.mark.parametrize(
    ("actions", "index", "reason"),
    [
        ([Forward(1, INPUT)], 0, "the input of stage 1 is not held"),
        ([Forward(2, INPUT)], 0, "there is no stage 2 in a chain of 2"),
        ([Forward(-1, INPUT)], 0, "there is no stage -1"),
        ([Forward(0, NOTHING)], 0, "the chain's input belongs to its caller"),
        ([Forward(0, INPUT), Forward(0, INPUT)], 1, "the output of stage 0 is held already"),
        ([Forward(0, EVERYTHING), Drop(0, Stored.OUTPUT), Forward(0, EVERYTHING)], 2, "the saves of stage 0 are held"),
        ([Forward(0, EVERYTHING), Backward(0)], 1, "stage 1 has to be reversed first"),
        ([Forward(0, INPUT), Forward(1, INPUT), Backward(1)], 2, "the saves of stage 1 are not held"),
        ([Forward(0, INPUT), Forward(1, EVERYTHING), Drop(0, Stored.OUTPUT), Backward(1)], 3, "the input of stage 1"),
        ([Forward(0, INPUT), Forward(1, EVERYTHING), Drop(1, Stored.OUTPUT), Backward(1)], 3, "the output of stage 1"),
        ([*ALL[:3], Forward(1, INPUT)], 3, "stage 1 has been reversed already"),
        ([*ALL[:3], Backward(1)], 3, "stage 1 has been reversed already"),
        ([Drop(0, Stored.OUTPUT)], 0, "the output of stage 0 is not held"),
        ([Drop(0, Stored.SAVES)], 0, "the saves of stage 0 are not held"),
        ([], 0, "stage 1 has not been reversed"),
        (ALL[:3], 3, "stage 0 has not been reversed"),
    ],
)
def test_the_first_illegal_action_is_named(actions: list, index: int, reason: str) -> None:
    with pytest.raises(IllegalActionError, match=re.escape(reason)) as raised:
        simulate(TWO, actions)
    assert raised.value.index == index
    assert raised.value.action == (actions[index] if index < len(actions) else None)


def test_a_plan_is_judged_as_its_actions_are() -> None:
    plan = chain.solve(TWO, 10**6)
    assert simulate(TWO, plan) == simulate(TWO, plan.actions) == (plan.cost, plan.peak_bytes)


def test_costs_are_summed_exactly() -> None:
    assert simulate([Stage(0.1, 0.2, 1)] * 10, chain.solve([Stage(0.1, 0.2, 1)] * 10, 1000))[0] == 3.0


def test_a_plan_survives_its_data_and_wrong_data_is_named() -> None:
    plan = Plan((*ALL, Drop(1, Stored.SAVES)), 3.5, 7, "none")
    assert Plan.from_dict(plan.to_dict()) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    for wrong, message in (
        ({"do": "jump"}, "action 0 of the plan must be"),
        ({"do": "forward", "stage": "x", "keep": "input"}, "'stage' of action 0"),
        ({"do": "forward", "stage": True, "keep": "input"}, "'stage' of action 0"),
        ({"do": "forward", "stage": 1, "keep": "all"}, "'keep' of action 0 of the plan must be one of nothing, input"),
        ({"do": "backward", "stage": 1, "more": 2}, "exactly do, stage"),
    ):
        with pytest.raises(UsageError, match=message):
            Plan.from_dict(plan.to_dict() | {"actions": [wrong]})
    with pytest.raises(UsageError, match="the plan must be an object"):
        Plan.from_dict([])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"forward_cost": -1}, "forward_cost of a stage must be a finite number from 0 up, not -1"),
        ({"backward_cost": float("nan")}, "backward_cost"),
        ({"output_bytes": 1.5}, "output_bytes of a stage must be a whole number of bytes"),
        ({"saved_bytes": -1}, "saved_bytes"),
    ],
)
def test_a_stage_refuses_what_is_no_size_or_cost(wrong: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Stage(**{"forward_cost": 1, "backward_cost": 1, "output_bytes": 1} | wrong)


def test_a_budget_error_says_what_the_memory_is_made_of() -> None:
    with pytest.raises(BudgetError, match=r"needs 5,253 B .* budget of 10 B .*backward of stage 1") as raised:
        chain.solve(TWO, 10)
    error = raised.value
    assert error.minimum_bytes == error.peak.live.total
    assert "workspace 5,000 B" in str(error)
