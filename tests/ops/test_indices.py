"""Whole numbers that pick rows or classes: those that count from the end in NumPy are mistakes here, as in PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import ops


@pytest.mark.parametrize("token", [-1, 3])
def test_an_embedding_refuses_tokens_that_it_does_not_have(token):
    with pytest.raises(mb.MembackError, match=rf"`input` holds {token}, it must lie between 0 and 2"):
        ops.embedding(mb.Tensor(np.array([[0, token]])), mb.Tensor(np.ones((3, 2))))


@pytest.mark.parametrize("target", [-1, 3])
def test_cross_entropy_refuses_classes_that_there_are_none_of(target):
    with pytest.raises(mb.MembackError, match=rf"`target` holds {target}, it must lie between 0 and 2"):
        ops.cross_entropy(mb.Tensor(np.ones((2, 3))), np.array([0, target]))


def test_a_class_to_ignore_may_be_any_number():
    scores = np.array([[1.0, 2.0, 0.0], [5.0, 1.0, 1.0]])
    assert ops.cross_entropy(scores, np.array([1, -1]), ignore_index=-1) == ops.cross_entropy(scores[:1], np.array([1]))
    assert ops.cross_entropy(scores, np.array([-1, -1]), ignore_index=-1) == 0


def test_no_row_at_all_is_no_mistake():
    assert ops.embedding(np.zeros((2, 0), int), np.ones((3, 4))).shape == (2, 0, 4)


@pytest.mark.parametrize("width", [3, 64, 100])
def test_gradients_of_rows_are_added_in_the_order_of_the_numbers(width):
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 5, (4, 6))
    weight = mb.Tensor(np.zeros((5, width), np.float32), requires_grad=True)
    d_out = rng.standard_normal((4, 6, width)).astype(np.float32)
    ops.embedding(numbers, weight).backward(d_out)
    expected = np.zeros((5, width), np.float32)
    np.add.at(expected, numbers, d_out)
    assert np.array_equal(weight.grad, expected)
