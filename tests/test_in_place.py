"""``x += y`` and its kin, ``==``, and tensors as keys: what PyTorch means by them, nothing else in silence."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import nn, ops
from memback.dry.array import ShapeArray

OPERATORS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]] = {
    "+=": (operator.iadd, operator.add),
    "-=": (operator.isub, operator.sub),
    "*=": (operator.imul, operator.mul),
    "/=": (operator.itruediv, operator.truediv),
    "**=": (operator.ipow, operator.pow),
    "@=": (operator.imatmul, operator.matmul),
}
TWO = np.array([[2.0, 0.5], [1.0, 3.0]])


def leaf(value: Any = TWO, dtype: Any = np.float64) -> mb.Tensor:
    return mb.Tensor(np.array(value, dtype), requires_grad=True)


# -- where nothing is recorded


@pytest.mark.parametrize("symbol", OPERATORS)
@pytest.mark.parametrize("other", [TWO.T.copy(), mb.Tensor(TWO.T.copy())], ids=["array", "tensor"])
def test_under_no_grad_the_array_itself_is_changed(symbol: str, other: Any) -> None:
    change, apart = OPERATORS[symbol]
    x = leaf()
    buffer, expected = x.data, apart(TWO, TWO.T)
    with mb.no_grad():
        result = change(x, other)
    assert result is x
    assert x.data is buffer
    assert x.requires_grad
    assert x.node is None
    np.testing.assert_array_equal(buffer, expected)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_training_loop_of_ones_own_trains(dtype: Any) -> None:
    model = nn.Linear(3, 1, dtype=dtype)
    before = [p.data.copy() for p in model.parameters()]
    ops.sum(model(mb.Tensor(np.ones((2, 3), dtype)))).backward()
    with mb.no_grad():
        for p in model.parameters():
            p -= 0.5 * p.grad
    for p, old in zip(model.parameters(), before, strict=True):
        np.testing.assert_array_equal(p.data, old - np.multiply(p.grad, 0.5).astype(dtype))
        assert p.dtype == dtype


def test_a_tensor_that_needs_no_gradient_is_changed_in_place_while_the_tape_records() -> None:
    total = mb.Tensor(np.zeros(2))
    buffer = total.data
    for _ in range(3):
        total += np.ones(2)
    np.testing.assert_array_equal(buffer, [3.0, 3.0])


def test_backward_sees_that_a_saved_value_was_changed_in_place() -> None:
    x, y = leaf(), mb.Tensor(np.ones((2, 2)))
    out = ops.sum(ops.multiply(x, y))
    y *= 2.0
    with pytest.raises(
        mb.TapeError, match=r"'other', saved by multiply .* was changed in place by \*= at test_in_place.py"
    ):
        out.backward()


def test_a_parameter_that_is_changed_between_forward_and_backward_is_an_error() -> None:
    x, w = leaf(), leaf()
    out = ops.sum(ops.multiply(x, w))
    with mb.no_grad():
        w -= 0.1
    with pytest.raises(mb.TapeError, match="was changed in place by -= at"):
        out.backward()


@pytest.mark.parametrize("real", [True, False], ids=["real", "dry"])
def test_a_dry_run_changes_no_values(real: bool) -> None:
    x = leaf() if real else mb.Tensor(ShapeArray((2, 2), np.float64), requires_grad=True)
    with mb.dry_run(), mb.no_grad():
        x -= 0.1 * ShapeArray((2, 2), np.float64)
        x *= 2.0
        x.copy_(np.zeros((2, 2)))
        x[0] = 7.0
    if real:
        np.testing.assert_array_equal(x.data, TWO)


@pytest.mark.parametrize(
    ("data", "change", "reason"),
    [
        (np.arange(3), lambda x: operator.itruediv(x, 2), r"`/=` at .* can't change int64\[3\] in place: Cannot cast"),
        (np.ones(3), lambda x: operator.iadd(x, np.ones((2, 3))), r"can't change float64\[3\] in place: .*shape"),
        (np.broadcast_to(1.0, (3,)), lambda x: operator.iadd(x, 1), r"in place: .*read-only"),
    ],
)
def test_what_can_not_be_done_in_place_says_why_and_what_to_do(data: Any, change: Any, reason: str) -> None:
    with pytest.raises(mb.OpError, match=reason) as caught:
        change(mb.Tensor(data))
    assert "for a new tensor" in str(caught.value)


# -- where the tape records


@pytest.mark.parametrize("symbol", OPERATORS)
def test_a_leaf_that_requires_gradients_is_not_changed_where_the_tape_records(symbol: str) -> None:
    x = leaf()
    with pytest.raises(mb.TapeError, match=r"would change a leaf that requires gradients .* under mb\.no_grad\(\)"):
        OPERATORS[symbol][0](x, 2.0 if symbol != "@=" else TWO)
    np.testing.assert_array_equal(x.data, TWO)


@pytest.mark.parametrize("symbol", OPERATORS)
def test_a_result_becomes_the_new_one_for_whoever_holds_it(symbol: str) -> None:
    x, y = leaf(), leaf(TWO.T + 1)
    change, apart = OPERATORS[symbol]
    h = ops.exp(x)
    held, data = h, h.data.copy()
    saved = ops.sum(ops.multiply(h, y))  # keeps h as it was
    change(h, y)
    ops.add(saved, ops.sum(held)).backward()
    a, b = leaf(), leaf(TWO.T + 1)
    g = ops.exp(a)
    ops.add(ops.sum(ops.multiply(g, b)), ops.sum(apart(g, b))).backward()
    np.testing.assert_array_equal(held.data, apart(data, TWO.T + 1))
    np.testing.assert_allclose(x.grad, a.grad, rtol=1e-12)
    np.testing.assert_allclose(y.grad, b.grad, rtol=1e-12)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(["+=", "-=", "*="]), st.integers(0, 3), st.integers(0, 3)), max_size=8))
def test_steps_in_place_have_the_values_and_the_gradients_of_steps_apart(steps: list[tuple[str, int, int]]) -> None:
    results = []
    for which in (0, 1):
        leaves = [leaf(TWO + k) for k in range(4)]
        values = [ops.add(x, 0.5) for x in leaves]
        for symbol, i, j in steps:
            values[i] = OPERATORS[symbol][which](values[i], values[j])
        total = values[0]
        for value in values[1:]:
            total = ops.add(total, value)
        ops.sum(total).backward()
        results.append([*(v.data for v in values), *(x.grad for x in leaves)])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_an_in_place_step_that_would_change_the_type_or_the_shape_is_an_error() -> None:
    h = ops.exp(leaf(dtype=np.float32))
    with pytest.raises(mb.OpError, match=r"can't change float32\[2, 2\] in place: the result is float64\[2, 2\]"):
        h += TWO
    with pytest.raises(mb.OpError, match=r"the result is float32\[3, 2, 2\]"):
        h += np.ones((3, 1, 1), np.float32)


@pytest.mark.parametrize("retain", [False, True])
def test_a_checkpoint_computes_again_from_its_arguments_as_they_were(retain: bool) -> None:
    def block(h: mb.Tensor) -> mb.Tensor:
        g = ops.exp(h)
        g *= h
        out: mb.Tensor = ops.tanh(ops.exp(g))
        return out

    def run(recompute: bool) -> Any:
        x = leaf(0.1 * TWO)
        h = ops.add(x, 0.0)
        out = mb.checkpoint(block, h) if recompute else block(h)
        h += 1.0
        loss = ops.add(ops.sum(out), ops.sum(h))
        if retain:
            loss.backward(retain_graph=True)
        loss.backward()
        return x.grad

    assert run(True).tobytes() == run(False).tobytes()


# -- comparisons


@pytest.mark.parametrize("dry", [False, True])
def test_equality_compares_elements(dry: bool) -> None:
    data = np.array([0.0, 1.0, 0.0])
    x, y = mb.Tensor(data, requires_grad=True), np.array([0.0, 2.0, 1.0])
    if dry:
        x = mb.Tensor(ShapeArray((3,)))
        assert (x == 0).dtype == bool
        assert (x != x).shape == (3,)
        return
    np.testing.assert_array_equal(x == 0, data == 0)
    np.testing.assert_array_equal(x != 0, data != 0)
    np.testing.assert_array_equal(x == 0, data == 0)
    for other in (y, mb.Tensor(y), [0.0, 2.0, 1.0]):
        np.testing.assert_array_equal(x == other, data == y)
        np.testing.assert_array_equal(x != other, data != y)
    np.testing.assert_array_equal(y == x, data == y)
    np.testing.assert_array_equal(ops.where(x == 0, 1.0, x).data, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="broadcast"):
        x == np.ones(2)  # noqa: B015


def test_nothing_that_is_no_number_equals_a_tensor() -> None:
    x = leaf()
    assert (x == None) is False  # noqa: E711
    assert (x != None) is True  # noqa: E711
    assert (x == "sum") is False
    assert (x != "sum") is True


def test_a_tensor_is_a_key_by_itself() -> None:
    x, y = leaf(), leaf()
    names = {x: "x", y: "y"}
    assert names[x] == "x"
    assert names[y] == "y"
    assert len({x, y, x}) == 2
    assert x in names
    assert x in [y, x][1:]


def test_in_asks_for_an_element() -> None:
    x = mb.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert 5.0 in x
    assert 6.0 not in x
    with mb.Tape() as tape:
        assert np.float64(2) in x
        assert len(tape) == 0
