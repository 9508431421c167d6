from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from memback.fitting.bisection import largest


@given(st.integers(0, 300), st.integers(-2, 400), st.integers(1, 400))
def test_the_largest_is_found_and_the_next_has_been_tried(limit, start, most):
    tried = set()

    def holds(number):
        assert 1 <= number <= most
        assert number not in tried
        tried.add(number)
        return number <= limit

    found, beyond = largest(holds, start, most)
    assert found == min(limit, most)
    assert beyond == (None if limit >= most else limit + 1)
    assert {found, beyond} - {0, None} <= tried
