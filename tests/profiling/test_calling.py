"""``mb.profile`` and ``mb.plan`` take the module first; the order of earlier versions is accepted, never misread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.profiling.report import Report

X = np.ones((4, 3), np.float32)
OLD = "the module comes first now, the step by name"


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh())


def figures(report: Report) -> list[tuple[str, int, int]]:
    return [(run.label, run.saved_bytes, run.peak.total_bytes) for run in report.runs]


def profile(*args: Any, **named: Any) -> Report:
    with mb.dry_run():
        return mb.profile(*args, **named)


def test_inputs_or_a_step_that_calls_the_module_on_them_give_the_same(model: nn.Module) -> None:
    by_step = profile(model, step=lambda: ops.sum(model(mb.Tensor(X))), modes=["full"])
    assert figures(profile(model, X, modes=["full"])) == figures(by_step)


OLD_CALLS: dict[str, Callable[[Any, Any], Report]] = {
    "by place": lambda step, model: profile(step, model, ["full"], "all"),
    "by name": lambda step, model: profile(step, module=model, modes=["full"], policy="all"),
    "some of each": lambda step, model: profile(step, model, modes=["full"], policy="all"),
}


@pytest.mark.parametrize("old", OLD_CALLS)
def test_the_order_of_earlier_versions_is_accepted_with_a_warning(model: nn.Module, old: str) -> None:
    def step() -> mb.Tensor:
        return ops.sum(model(mb.Tensor(X)))

    with pytest.warns(DeprecationWarning, match=OLD) as caught:
        report = OLD_CALLS[old](step, model)
    assert caught[0].filename == __file__
    assert figures(report) == figures(profile(model, step=step, modes=["full"], policy="all"))


def test_a_step_alone_is_given_by_name(model: nn.Module) -> None:
    def step() -> mb.Tensor:
        return ops.sum(ops.tanh(mb.Tensor(X, requires_grad=True)))

    with pytest.warns(DeprecationWarning, match=OLD):
        before = profile(step, modes=["full"])
    assert figures(before) == figures(profile(step=step, modes=["full"]))


WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "a step as an input": (lambda model, step: profile(model, step), "an input of the module is a function: .* step="),
    "a module as a step": (
        lambda model, step: profile(model, model),
        "an input of the module is a Sequential: .* step=",
    ),
    "a plan's step": (lambda model, step: mb.plan(model, step, budget="1MiB"), "an input of the module is a function"),
    "nothing": (lambda model, step: profile(), "nothing to run"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_could_be_misread_is_refused(model: nn.Module, wrong: str) -> None:
    call, message = WRONG[wrong]
    with pytest.raises(mb.UsageError, match=message):
        call(model, lambda: ops.sum(model(mb.Tensor(X))))


def test_inputs_beside_a_step_are_not_used_and_a_warning_says_so(model: nn.Module) -> None:
    def step() -> mb.Tensor:
        return ops.sum(model(mb.Tensor(X)))

    with pytest.warns(DeprecationWarning, match="inputs beside a step are not used"):
        plan = mb.plan(model, X[:1], step=step, budget="1MiB")
    assert plan.peak_bytes == mb.plan(model, step=step, budget="1MiB").peak_bytes


def test_an_old_call_that_says_a_thing_twice_is_refused(model: nn.Module) -> None:
    with (
        pytest.warns(DeprecationWarning, match=OLD),
        pytest.raises(mb.UsageError, match=r"modes given twice, by place and by name"),
    ):
        profile(lambda: ops.sum(model(mb.Tensor(X))), model, ["full"], modes=["full"])
