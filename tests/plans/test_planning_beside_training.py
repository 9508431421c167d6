"""A plan that one thread makes for a model does not disturb another that trains it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops, optim
from memback.dry.array import ShapeArray
from memback.profiling.mode import Mode
from memback.profiling.step import Step, dry_arguments

X, Y = np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32), np.zeros((16, 4), np.float32)


def make() -> nn.Sequential:
    mb.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4)
    )


def step_of(model: nn.Module) -> Callable[[], mb.Tensor]:
    return lambda: ops.sqerr(model(mb.Tensor(X)), Y)


def train(model: nn.Module, optimizer: Any, steps: int) -> None:
    step = step_of(model)
    for _ in range(steps):
        optimizer.zero_grad()
        step().backward()
        optimizer.step()


def everything(model: nn.Module, optimizer: Any) -> bytes:
    arrays = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
    return b"".join(a.tobytes() for a in [*arrays, *optimizer.state_dict().values()])


def in_another_thread(function: Callable[[], Any]) -> Any:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


@pytest.mark.parametrize("make_optimizer", [optim.AdamW, lambda p: optim.SGD(p, lr=0.1, momentum=0.9)])
def test_training_in_the_midst_of_a_dry_run_has_the_bits_that_it_has_alone(make_optimizer: Any) -> None:
    alone, model = make(), make()
    optimizers = [make_optimizer(m.parameters()) for m in (alone, model)]
    train(alone, optimizers[0], 3)
    train(model, optimizers[1], 1)

    def step() -> mb.Tensor:
        out = model(mb.Tensor(X))
        in_another_thread(lambda: train(model, optimizers[1], 1))
        loss: mb.Tensor = ops.sqerr(out, Y)
        return loss

    planned = Step(step, model, optimizers[1])
    planned.predict(Mode("full"))
    mb.plan(model, step=step_of(model), budget="1MiB", optimizer=optimizers[1])
    train(model, optimizers[1], 1)
    assert everything(model, optimizers[1]) == everything(alone, optimizers[0])


def test_a_thread_that_trains_all_the_while_gets_no_error_and_the_right_bits() -> None:
    alone, model = make(), make()
    optimizers = [optim.AdamW(m.parameters()) for m in (alone, model)]
    errors: list[BaseException] = []
    done = 0
    stop = threading.Event()

    def run() -> None:
        nonlocal done
        try:
            while not stop.is_set() or done < 3:
                train(model, optimizers[1], 1)
                done += 1
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        plans = [mb.plan(model, step=step_of(model), budget="1MiB", optimizer=optimizers[1]) for _ in range(2)]
    finally:
        stop.set()
        thread.join(60)
    assert not errors
    train(alone, optimizers[0], done)
    assert everything(model, optimizers[1]) == everything(alone, optimizers[0])
    quiet = mb.plan(alone, step=step_of(alone), budget="1MiB", optimizer=optimizers[0])
    assert {(p.peak_bytes, p.extra_flops) for p in plans} == {(quiet.peak_bytes, quiet.extra_flops)}


def test_the_thread_of_a_dry_run_sees_stand_ins_and_the_others_the_arrays() -> None:
    model = make()
    optimizer = optim.AdamW(model.parameters())
    weight = model[0].weight
    data, steps = weight.data, optimizer.steps
    weight.grad = np.ones_like(data)
    with dry_arguments(model, optimizer):
        assert isinstance(weight.data, ShapeArray)
        assert weight.grad is None
        assert in_another_thread(lambda: weight.data) is data
        assert (in_another_thread(lambda: weight.grad) == 1).all()
        weight.grad = ShapeArray(data.shape)
        optimizer.step()
        model.zero_grad()
        in_another_thread(lambda: setattr(weight, "grad", None))
    assert weight.data is data
    assert weight.grad is None
    assert optimizer.steps == steps
    assert "data" not in vars(nn.Parameter)
