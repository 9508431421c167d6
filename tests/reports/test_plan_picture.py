"""The picture of a plan: one line of marks a sweep, whatever the number of sweeps and stages."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback.commands import main
from memback.reports.plan import drawn

MARKS = " ·▪◂▣■"


@given(st.integers(1, 90), st.integers(1, 300), st.integers(1, 120), st.randoms(use_true_random=True))
def test_every_sweep_is_a_line_of_marks_or_counted_among_those_left_out(stages, sweeps, width, random):
    marked = [(f"sweep {i}", random.choices(MARKS, k=stages)) for i in range(sweeps)]
    *lines, empty, legend = [line for line in drawn(marked, width, "legend") if not line.startswith("A column stands")]
    assert (empty, legend) == ("", "legend")
    left_out = [int(found[1]) for line in lines if (found := re.fullmatch(r" {11}… (\d+) more …", line))]
    drawings = [line for line in lines if line.lstrip().startswith("sweep ")]
    assert len(lines) == len(drawings) + len(left_out) <= 25
    assert len(drawings) + sum(left_out) == sweeps
    for line in drawings:
        marks = line[11:]
        assert set(marks) <= set(MARKS)
        assert 1 <= len(marks) <= min(width, stages)


@pytest.mark.long
def test_plans_of_many_sweeps_over_time_steps_are_shown(capsys):
    """A stage is a time step here, and all but a few are computed again, each in a sweep of its own."""
    small = ["lstm", "--set", "model.width=8", "--set", "model.layers=1", "--batch", "1", "--planner", "chain"]
    assert main(["plan", *small, "--budget", "1KiB"]) == 1
    least = int(re.search(r"the leanest needs ([\d,]+) B", capsys.readouterr().err)[1].replace(",", ""))
    for budget in (least, least + 2**12):
        assert main(["plan", *small, "--budget", str(budget)]) == 0
        assert "◂ reversed" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.parametrize(
    ("profile", "budget"),
    [("gpt2-xl", "24GiB"), ("gpt2-xl", "16GiB"), ("lstm", "6MiB"), ("lstm", "8MiB")],
)
def test_plans_of_shipped_profiles_are_shown_however_many_their_sweeps(profile, budget, capsys):
    assert main(["plan", profile, "--budget", budget]) == 0
    shown = capsys.readouterr().out
    assert "◂ reversed" in shown
    assert profile != "lstm" or " more …" in shown
