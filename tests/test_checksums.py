"""Under ``detect_anomaly`` a change of what backward needs is found, though nobody told the tape of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.dry.array import ShapeArray
from memback.engine.state import at_path
from memback.plans.model.planning import Planning
from memback.profiling.step import Step


def leaf(*shape: int, seed: int = 0) -> mb.Tensor:
    return mb.Tensor(np.random.default_rng(seed).standard_normal(shape), requires_grad=True)


EDITS: dict[str, Callable[[mb.Tensor], None]] = {
    "data": lambda x: x.data.__setitem__(0, 7.0),
    "numpy": lambda x: x.numpy().fill(0.0),
    "a view": lambda x: x.data.reshape(-1)[-1:].fill(3.0),
    "one bit": lambda x: x.data.view(np.uint8).reshape(-1).__setitem__(3, x.data.view(np.uint8).reshape(-1)[3] ^ 1),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_saved_value_that_was_changed_through_its_array_is_an_error(edit: str) -> None:
    x, y = leaf(4, 3), leaf(4, 3, seed=1)
    with mb.detect_anomaly(), at_path("head"):
        out = ops.multiply(x, y)
        EDITS[edit](y)
        with pytest.raises(mb.TapeError) as caught:
            ops.sum(out).backward()
    message = str(caught.value)
    assert "'other', saved by multiply (layer 'head', called at test_checksums.py:" in message
    assert "was changed in place by something that the tape was not told of: through .data, .numpy()" in message
    assert x.grad is None


@pytest.mark.parametrize("view", [lambda a: a[1], lambda a: a.T, lambda a: a[:, ::2], lambda a: a[..., None]])
def test_of_a_view_the_elements_that_it_has_count(view: Callable[[Any], Any]) -> None:
    base = np.arange(12.0).reshape(4, 3)
    with mb.detect_anomaly():
        x = mb.Tensor(np.ones(view(base).shape), requires_grad=True)
        out = ops.sum(ops.multiply(x, view(base)))
        base[0, 1] = 99.0  # in the transpose and the last view alone
        seen = (view(base) == 99.0).any()
        if seen:
            with pytest.raises(mb.TapeError, match="not told of"):
                out.backward()
        else:
            out.backward()


def test_what_nobody_changes_and_what_the_tape_was_told_of_is_as_ever() -> None:
    with mb.detect_anomaly():
        x, y = leaf(3), leaf(3, seed=1)
        loss = ops.sum(ops.tanh(ops.multiply(x, y)))
        loss.backward(retain_graph=True)
        loss.backward()
        out = ops.multiply(x, y)
        y.copy_(np.zeros(3))
        with pytest.raises(mb.TapeError, match="'other', saved by multiply .* was changed in place by copy_ at"):
            ops.sum(out).backward()


def test_without_the_check_nothing_is_looked_at() -> None:
    x, y = leaf(3), leaf(3, seed=1)
    out = ops.multiply(x, y)
    y.data[0] = 7.0
    ops.sum(out).backward()
    assert x.grad[0] == 7.0


@pytest.mark.parametrize("edited", ["weight", "argument"])
def test_a_checkpoint_does_not_compute_again_from_what_has_changed(edited: str) -> None:
    layer, x = nn.Linear(3, 3, dtype=np.float64), leaf(4, 3)
    h = ops.tanh(x)
    with mb.detect_anomaly():
        out = mb.checkpoint(lambda a: ops.tanh(layer(ops.exp(a))), h)
        (layer.weight if edited == "weight" else h).data[0] += 1.0
        what = "'weight', an input of linear" if edited == "weight" else "'input', an input of exp"
        with pytest.raises(mb.TapeError, match=rf"{what} .*not told of"):
            ops.sum(out).backward()


@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_recomputes_from_the_array_that_a_leaf_had_in_forward(nested: bool) -> None:
    def gradient(run: Any) -> Any:
        mb.manual_seed(0)
        layer, x = nn.Linear(3, 3, dtype=np.float64), leaf(4, 3)
        layer.weight.data = leaf(3, 3, seed=2).data

        def block(a: mb.Tensor) -> mb.Tensor:
            out: mb.Tensor = ops.tanh(layer(ops.exp(a)))
            return out

        def outer(a: mb.Tensor) -> mb.Tensor:
            out: mb.Tensor = ops.exp(run(block, ops.tanh(a)))
            return out

        out = run(outer if nested else block, x)
        layer.weight.data = layer.weight.data + 1.0
        ops.sum(out).backward()
        return x.grad

    plain = gradient(lambda function, *args: function(*args))
    np.testing.assert_array_equal(gradient(mb.checkpoint), plain)


def test_a_plan_does_not_compute_again_from_what_has_changed() -> None:
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.Tanh())))
    data = np.ones((256, 64), np.float32)

    def step() -> mb.Tensor:
        total: mb.Tensor = ops.sum(model(mb.Tensor(data)))
        return total

    plan = mb.plan(model, step=step, budget=Planning(Step(step, model)).leanest().budget)
    with plan.apply(model), mb.detect_anomaly():
        step().backward()
        loss = step()
        model[2].weight.data[0] += 1.0
        with pytest.raises(mb.TapeError, match=r"(an input of|saved by) linear \(layer '2'.*not told of"):
            loss.backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_running_statistics_may_move_between_forward_and_backward_of_training(recompute: bool) -> None:
    norm = nn.BatchNorm1d(3, dtype=np.float64)
    x = leaf(4, 3)

    def block(h: mb.Tensor) -> mb.Tensor:
        out: mb.Tensor = ops.tanh(norm(ops.tanh(h)))
        return out

    with mb.detect_anomaly():
        one, two = (mb.checkpoint(block, h) if recompute else block(h) for h in (x, ops.multiply(x, 2.0)))
        ops.sum(ops.add(one, two)).backward()
    plain = mb.Tensor(x.data, requires_grad=True)
    ops.sum(ops.add(block(plain), block(ops.multiply(plain, 2.0)))).backward()
    assert x.grad.tobytes() == plain.grad.tobytes()


def test_packed_values_are_compared_as_they_are_kept() -> None:
    x = leaf(40, 30)
    with mb.detect_anomaly(), mb.save_on_disk(min_bytes=0):
        h = ops.exp(x)
        loss = ops.sum(ops.tanh(h))
        h.data[0] = 5.0  # what is in the file stays as it was
        loss.backward()
    np.testing.assert_allclose(x.grad[1:], (np.exp(x.data) * (1 - np.tanh(np.exp(x.data)) ** 2))[1:], rtol=1e-12)


def test_a_dry_run_takes_the_memory_of_the_comparison_and_looks_at_nothing() -> None:
    with mb.detect_anomaly(), mb.dry_run():
        x, y = (mb.Tensor(ShapeArray((3, 4)), requires_grad=True) for _ in range(2))
        ops.sum(ops.multiply(x, ops.transpose(ops.tanh(ops.reshape(y, (4, 3))), 0, 1))).backward()
        assert y.grad.shape == (3, 4)
