from __future__ import annotations

from dataclasses import replace

import pytest

from memback.notes import exercises


@pytest.mark.parametrize("seed", range(3))
def test_every_answer_holds_every_way(seed):
    section = exercises.section(seed)
    assert section.ok
    assert [e.equation for e in section.exercises] == ["39", "43", "46", "49", "53", "57"]
    assert [e.sum_equation for e in section.exercises] == ["38", "42", "", "48", "51", "55"]
    assert len(section.checks) == 6 * 2 + 5


@pytest.mark.parametrize("number", range(1, 7))
def test_a_wrong_answer_is_found_by_each_comparison(number, monkeypatch):
    questions = list(exercises._QUESTIONS)
    right = questions[number - 1]
    questions[number - 1] = replace(right, solve=lambda layer: right.solve(layer) + 1e-5)
    monkeypatch.setattr(exercises, "_QUESTIONS", tuple(questions))
    for exercise in exercises.section(0).exercises:
        assert all(check.ok is (exercise.number != number) for check in exercise.checks)


def test_the_slip_of_eq_44_is_told():
    (told,) = [e for e in exercises.section(0).exercises if e.correction]
    assert told.number == 3
    assert "by b, not by h" in told.correction
