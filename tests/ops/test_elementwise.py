from __future__ import annotations

import numpy as np
import pytest

from memback import ops

NEEDS = ops.power._needs_type(True, False)


@pytest.mark.parametrize("exponent", [0, 0.0, np.zeros(3)])
def test_a_number_to_the_power_of_zero_has_derivative_zero_even_at_zero(exponent):
    d_x = ops.power.backward(np.ones(3), np.array([0.0, 2.0, -1.0]), exponent)[0]
    np.testing.assert_array_equal(d_x, np.zeros(3))


@pytest.mark.parametrize("exponent", [2, 1.5, np.float32([2.0])])
def test_a_power_of_float32_numbers_is_differentiated_in_float32(exponent):
    x = np.float32([0.5, 2.0])
    assert ops.power.vjp(x, NEEDS, [(2,), ()], x, exponent, None)[0].dtype == np.float32


def test_by_its_exponent_the_power_of_a_negative_number_has_no_derivative_and_that_of_zero_none_to_add():
    d_exponent = ops.power.backward(np.ones(3), np.array([-2.0, 0.0, 2.0]), np.array([2.0, 2.0, 2.0]))[1]
    np.testing.assert_array_equal(d_exponent, [np.nan, 0, 4 * np.log(2)])
