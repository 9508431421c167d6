"""Blocks that change how the engine runs: each ends with what it began with, however often its object is entered."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import ops
from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory, fresh_dry_memory
from memback.engine.state import State, current


def same(x: Any) -> Any:
    return x


BLOCKS = {
    "no_grad": mb.no_grad,
    "detect_anomaly": mb.detect_anomaly,
    "dry_run": mb.dry_run,
    "Tape": mb.Tape,
    "saved_tensors_hooks": lambda: mb.saved_tensors_hooks(same, same),
    "save_on_disk": mb.save_on_disk,
}


def settings(state: State) -> list[Any]:
    return [state.tape, state.anomaly, state.dry, state.packing, state.observer]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_is_entered_in_itself_ends_as_it_began(name: str) -> None:
    block, outside = BLOCKS[name](), settings(current())
    with block:
        inside = settings(current())
        with block:
            assert settings(current()) == inside
        assert settings(current()) == inside
    assert settings(current()) == outside != inside


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_is_entered_in_itself_ends_as_it_began_after_an_exception(name: str) -> None:
    block, outside = BLOCKS[name](), settings(current())
    with pytest.raises(KeyError), block, block:
        raise KeyError
    assert settings(current()) == outside


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_that_two_threads_are_in_ends_in_each_as_it_began_there(name: str) -> None:
    block, entered, leave = BLOCKS[name](), threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        before = settings(current())
        with block:
            entered.set()
            leave.wait(30)
        seen.append(settings(current()) == before)

    outside = settings(current())
    thread = threading.Thread(target=other)
    with block:
        thread.start()
        entered.wait(30)
    assert settings(current()) == outside
    leave.set()
    thread.join()
    assert seen == [True]


def test_saved_activations_go_to_disk_in_the_rest_of_a_block_that_was_entered_in_itself() -> None:
    x = mb.Tensor(np.linspace(0, 1, 2000), requires_grad=True)
    disk = mb.save_on_disk()
    with disk:
        with disk:
            pass
        loss = ops.sum(ops.tanh(x))
        assert disk.bytes_stored == x.nbytes
        loss.backward()
    np.testing.assert_array_equal(x.grad, 1 - np.tanh(x.data) ** 2)


def test_dry_memory_counts_again_what_was_counted_before_a_block_that_was_entered_in_itself() -> None:
    before, block = dry_memory(), fresh_dry_memory()
    with block as outer:
        with block as inner:
            held = ShapeArray(10)
        assert dry_memory() is outer
    assert dry_memory() is before
    assert (inner.live, outer.live) == (held.nbytes, 0)


# -- checks for anomalies on a dry run


def step(x: mb.Tensor) -> mb.Tensor:
    total: mb.Tensor = ops.sum(ops.tanh(ops.multiply(x, x)))
    return total


def test_a_dry_run_goes_through_under_detect_anomaly() -> None:
    with mb.detect_anomaly(), mb.dry_run():
        x = mb.Tensor(ShapeArray((3, 4)), requires_grad=True)
        step(x).backward()
        assert x.grad.shape == (3, 4)


def test_the_check_for_anomalies_takes_the_memory_on_a_dry_run_that_it_takes_for_real() -> None:
    model = mb.nn.Sequential(mb.nn.Linear(64, 64), mb.nn.Tanh(), mb.nn.Linear(64, 64))
    data = np.ones((512, 64), np.float32)
    with mb.detect_anomaly():
        report = mb.profile(model, step=lambda: ops.sum(model(mb.Tensor(data))), rounds=0)
    for run in report.runs:
        assert run.predicted_peak_bytes == pytest.approx(run.measured_peak_bytes, rel=0.01)
