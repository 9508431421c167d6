"""Partial and total derivatives, on the compute graphs of the notes' section 1."""

from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import nn, ops


def leaf(*values, shape=()):
    return mb.Tensor(np.array(values, float).reshape(shape or len(values)), requires_grad=True)


@pytest.fixture
def f_of_x_and_y_of_x():
    """f(x, y(x)) with f = x y and y = e^x (Eq. 3)."""
    x = leaf(0.7)
    y = ops.exp(x)
    return ops.multiply(x, y), x, y


def test_the_total_derivative_adds_what_comes_through_y(f_of_x_and_y_of_x):
    f, x, y = f_of_x_and_y_of_x
    value = np.exp(0.7)
    assert mb.partial(f, x).item() == pytest.approx(value)
    assert mb.partial(f, y).item() == pytest.approx(0.7)
    assert mb.total(f, y).item() == pytest.approx(mb.partial(f, y).item())  # Eq. 2
    assert mb.partial(y, x).item() == pytest.approx(value)
    chain = mb.partial(f, x) + mb.partial(f, y) * mb.total(y, x)  # Eq. 3
    assert mb.total(f, x).item() == pytest.approx(chain.item()) == pytest.approx(value + 0.7 * value)


def test_the_partial_derivative_by_what_is_no_direct_argument_is_undefined_and_the_total_is_not():
    t = leaf(0.5)
    x, y = ops.exp(t), ops.tanh(t)
    f = ops.multiply(x, y)
    with pytest.raises(mb.UndefinedDerivativeError) as caught:
        mb.partial(f, t)
    for part in (
        "no direct argument of multiply",
        "test_derivatives.py:",
        "not zero but undefined",
        "Eq. 5",
        "mb.total",
    ):
        assert part in str(caught.value)
    chain = mb.partial(f, x) * mb.total(x, t) + mb.partial(f, y) * mb.total(y, t)  # Eq. 6
    assert mb.total(f, t).item() == pytest.approx(chain.item())


def test_other_variables_may_lie_in_between():
    t = leaf(0.5)
    a, b = ops.sigmoid(t), ops.exp(t)
    x, y = ops.tanh(ops.multiply(a, b)), ops.multiply(b, 2.0)
    f = ops.add(x, y)
    step = 1e-6

    def value(at):
        a, b = 1 / (1 + np.exp(-at)), np.exp(at)
        return np.tanh(a * b) + 2 * b

    expected = (value(0.5 + step) - value(0.5 - step)) / (2 * step)
    assert mb.total(f, t).item() == pytest.approx(expected, rel=1e-8)


def test_shapes_are_those_of_a_jacobian():
    h, W, b = leaf(1, 2, 3), leaf(*range(12), shape=(3, 4)), leaf(0, 0, 0, 0)
    a = ops.linear(h, W, b)
    for x, jacobian in zip((h, W, b), ops.linear.jacobian(h.data, W.data, b.data), strict=True):
        np.testing.assert_array_equal(mb.partial(a, x), jacobian)
        np.testing.assert_array_equal(mb.total(a, x), jacobian)


def test_an_output_among_several_has_its_own_derivatives():
    x = leaf(1, 2, 3, 4)
    first, second = ops.split(ops.multiply(x, 3.0), 2)
    np.testing.assert_array_equal(mb.total(second, x), [[0, 0, 3, 0], [0, 0, 0, 3]])
    np.testing.assert_array_equal(mb.total(first, x), [[3, 0, 0, 0], [0, 3, 0, 0]])
    x = leaf(1, 2, 3, 4)
    _, second = ops.split(x, 2)
    np.testing.assert_array_equal(mb.partial(second, x), [[0, 0, 1, 0], [0, 0, 0, 1]])


def test_a_derivative_by_itself_is_one_and_by_what_does_not_lead_there_zero():
    x, other = leaf(1, 2), leaf(3.0)
    y = ops.exp(x)
    np.testing.assert_array_equal(mb.total(x, x), np.eye(2))
    np.testing.assert_array_equal(mb.total(y, y), np.eye(2))
    ops.exp(other)
    np.testing.assert_array_equal(mb.total(y, other), np.zeros((2, 1)))


def test_backward_runs_afterwards_as_if_nothing_had_been_asked():
    def gradient(ask):
        x = leaf(0.3, 0.4)
        y = ops.exp(x)
        f = ops.sum(ops.multiply(x, y))
        if ask:
            mb.partial(y, x)
            mb.total(f, x)
            mb.total(f, y)
        assert x.grad is None
        f.backward()
        return x.grad

    np.testing.assert_array_equal(gradient(True), gradient(False))


def test_gradients_that_are_there_stay():
    x = leaf(2.0)
    ops.sum(ops.multiply(x, x)).backward()
    f = ops.exp(x)
    mb.total(f, x)
    np.testing.assert_array_equal(x.grad, [4.0])


def test_the_total_derivative_passes_through_a_checkpoint_and_leaves_no_gradient_behind():
    mb.manual_seed(0)
    inner, outer = nn.Linear(2, 3, dtype="float64"), nn.Linear(3, 2, dtype="float64")
    x = leaf(0.3, -0.4, shape=(1, 2))

    def derivative(run):
        h = ops.tanh(x)
        f = outer(run(lambda h: ops.tanh(inner(h)), h))
        return f, h, mb.total(f, x), mb.total(f, h)

    f, _, by_x, by_h = derivative(mb.checkpoint)
    for tensor in (x, *inner.parameters(), *outer.parameters()):
        assert tensor.grad is None
    plain = derivative(lambda function, h: function(h))
    np.testing.assert_array_equal(by_x, plain[2])
    np.testing.assert_array_equal(by_h, plain[3])
    ops.sum(f).backward()
    assert inner.weight.grad is not None


def test_the_same_tensor_in_two_places_has_no_one_partial_derivative():
    x = leaf(3.0)
    square = ops.multiply(x, x)
    with pytest.raises(mb.TapeError, match=r"x is argument 0 and 1 of multiply .* give the places different tensors"):
        mb.partial(square, x)
    assert mb.total(square, x).item() == 6.0


def test_a_checkpoint_changes_nothing_about_which_arguments_are_direct():
    x = leaf(3.0, 4.0)
    f = mb.checkpoint(lambda x: ops.exp(ops.exp(x)), x)
    with pytest.raises(mb.TapeError, match="no direct argument of exp"):
        mb.partial(f, x)


@pytest.mark.parametrize("derivative", [mb.partial, mb.total])
def test_what_is_no_tensor_or_was_not_recorded_is_told_so(derivative):
    x = leaf(1.0)
    f = ops.exp(x)
    with pytest.raises(mb.TapeError, match="`x` must be a Tensor, not ndarray"):
        derivative(f, x.data)
    with pytest.raises(mb.TapeError, match="`f` must be a Tensor, not float"):
        derivative(2.0, x)
    with mb.no_grad():
        unrecorded = ops.exp(x)
    with pytest.raises(mb.TapeError, match="f is the output of no recorded op"):
        derivative(unrecorded, x)


def test_after_backward_there_is_nothing_left_to_differentiate():
    x = leaf(1.0)
    f = ops.exp(x)
    f.backward()
    for derivative in (mb.partial, mb.total):
        with pytest.raises(mb.TapeError, match="saved values are gone"):
            derivative(f, x)
    assert x.grad == pytest.approx(np.e)


def test_an_empty_value_has_an_empty_derivative():
    x = leaf(shape=(0, 2))
    f = ops.exp(x)
    assert mb.partial(f, x).shape == mb.total(f, x).shape == (0, 2, 0, 2)
