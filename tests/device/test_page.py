"""The page on how true predictions are is that of the stored figures, and these are within what it promises."""

from __future__ import annotations

import re

import pytest

from tests.device.cases import CASES
from tests.device.page import PAGE, misses, page, stored

FIGURES = stored()


def test_the_page_is_that_of_the_stored_figures() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.device.page --write"


def test_every_case_is_predicted_and_on_the_page() -> None:
    assert list(FIGURES["predicted"]) == list(FIGURES["expected"]["cases"]) == list(CASES)
    rows = re.findall(r"^\| (?:\*\*)?([\w-]+ (?:fp32|amp|bf16) .*?)(?:\*\*)? \|", page(), re.MULTILINE)
    assert sorted(rows) == sorted(name.replace(" h200", "") for name in CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_is_as_close_as_the_page_promises(name: str) -> None:
    assert misses(FIGURES["predicted"][name], FIGURES["expected"]["cases"][name]) == []


def test_a_figure_that_is_too_far_off_is_a_miss() -> None:
    observed = dict.fromkeys(("forward_bytes", "allocated_peak_bytes", "reserved_peak_bytes"), 10**9)
    near = observed | {"forward_bytes": 10**9 + 3 * 10**6, "reserved_peak_bytes": int(1.019e9)}
    far = observed | {"forward_bytes": 10**9 + 4 * 10**6, "reserved_peak_bytes": int(0.979e9)}
    both = {"first": observed, "steady": observed}
    assert misses({"first": near, "steady": near}, both) == []
    assert misses({"first": near, "steady": far}, both) == ["steady.forward_bytes", "steady.reserved_peak_bytes"]


@pytest.mark.parametrize("row", FIGURES["published"], ids=lambda row: row["what"])
def test_what_others_have_measured_is_near_what_is_predicted(row: dict[str, float]) -> None:
    assert row["predicted"] == pytest.approx(row["measured"], rel=0.06)
    assert row["url"].startswith("https://")  # type: ignore[attr-defined]
