from __future__ import annotations

import pytest

from memback.errors import UsageError
from memback.sweeps.html import View, payload, render
from memback.sweeps.point import failed
from tests.sweeps.small import grid, rows_of

GRID = grid("batch=2,4", "policy=none,sqrt", "dtype=float32,float64", budget=400_000)


@pytest.fixture(scope="module")
def rows():
    return rows_of(GRID)


def test_a_view_is_what_is_asked_for_and_the_first_keys_else():
    assert View.of(GRID) == View("batch", "policy", "peak")
    assert View.of(GRID, x="policy") == View("policy", "batch", "peak")
    assert View.of(GRID, y="batch", value="plan_peak") == View("policy", "batch", "plan_peak")
    assert View.of(grid("batch=1,2")) == View("batch", None, "peak")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"x": "width"}, "--x width: the grid is over batch, policy, dtype"),
        ({"y": "width"}, "--y width: the grid is over"),
        ({"x": "batch", "y": "batch"}, "--x and --y are both batch"),
        ({"value": "peek"}, "there is no value 'peek' (did you mean 'peak'?)"),
    ],
)
def test_a_view_of_what_there_is_not_is_refused(asked, message):
    with pytest.raises(UsageError) as refused:
        View.of(GRID, **asked)
    assert message in str(refused.value)


def test_the_page_gets_every_value_of_every_point_by_its_number(rows):
    sent = payload(GRID, [*rows[:5], failed(GRID.points[6], "no <b>")], View.of(GRID))
    values = {value["name"]: value["data"] for value in sent["values"]}
    assert values["peak"] == [row.full.peak_bytes for row in rows[:5]] + [None] * 3
    assert values["plan_peak"][0] == rows[0].plan.peak_bytes
    assert sent["notes"][6] == "no <b>"
    assert [axis["values"] for axis in sent["axes"]] == [["2", "4"], ["none", "sqrt"], ["float32", "float64"]]


def test_where_no_plan_fits_the_page_says_so():
    one = grid("batch=2,4", budget=1000)
    sent = payload(one, rows_of(one), View.of(one))
    assert sent["notes"] == {0: "no plan fits", 1: "no plan fits"}
    assert "plan_peak" not in [value["name"] for value in sent["values"]]


def test_what_a_row_says_is_text_in_the_page(rows):
    page = render(GRID, [*rows[:3], failed(GRID.points[3], "<script>alert(1)</script>\x1b[31m")], View.of(GRID))
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[31m" in page
    assert "connect-src" not in page
    assert "default-src 'none'" in page
