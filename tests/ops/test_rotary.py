"""What makes a rotary embedding one."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback.engine.op import OpError
from memback.ops.rotary import rotary


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 5, 6))


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_scalar_products_depend_on_the_distance_of_positions_alone(i, j, shift):
    q, k = np.random.default_rng(1).normal(size=(2, 1, 6))
    here = rotary(q, offset=i) @ rotary(k, offset=j).T
    there = rotary(q, offset=i + shift) @ rotary(k, offset=j + shift).T
    np.testing.assert_allclose(here, there, atol=1e-9)


def test_position_zero_stays_and_lengths_stay(x):
    out = rotary(x)
    np.testing.assert_array_equal(out[:, 0], x[:, 0])
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1))


def test_the_gradient_is_rotated_back(x):
    np.testing.assert_allclose(rotary.backward(rotary(x, offset=7), x, offset=7), x)


def test_an_offset_goes_on_where_a_sequence_was_cut(x):
    np.testing.assert_allclose(rotary(x[:, 3:], offset=3), rotary(x)[:, 3:])


def test_features_are_paired_half_with_half(x):
    angle = 2 * 10000.0 ** (-2 / 6)
    np.testing.assert_allclose(rotary(x)[0, 2, 1], x[0, 2, 1] * np.cos(angle) - x[0, 2, 4] * np.sin(angle), rtol=1e-12)


def test_it_keeps_nothing():
    assert rotary.saving(1, 1).names == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_stays(dtype, x):
    assert rotary(x.astype(np.dtype(dtype))).dtype == np.dtype(dtype)


def test_an_odd_number_of_features_is_an_error():
    with pytest.raises(OpError, match=r"\(..., L, E\) with E even, it has \(2, 3\)"):
        rotary(np.ones((2, 3)))
