from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest

from memback.commands import main
from memback.notes import SECTIONS, jacobians, network

QUICK = ["notes", "--section", "4.2"]


def run(capsys, *arguments):
    assert main(["notes", *arguments]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


def refuse(*_, **__):
    raise AssertionError("work began")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(jacobians, "ROUNDS", 2)


@pytest.fixture
def wrong_relu(monkeypatch):
    """relu.jacobian with the slope 1 everywhere."""
    relu = network.REGISTRY["relu"]
    monkeypatch.setattr(type(relu), "closed_jacobian", lambda self, a: (np.diag(np.ones_like(a)),))


def test_the_help_lists_it(capsys):
    assert main(["--help"]) == 0
    assert " notes " in capsys.readouterr().out


def test_all_sections_are_shown_in_the_notes_order_with_the_notes_slips_and_all_checks_hold(capsys):
    out = run(capsys)
    assert re.findall(r"^(\S+)  .* ─+$", out, re.MULTILINE) == list(SECTIONS)
    assert out.splitlines()[-1].endswith("checks hold.")
    assert "FAILED" not in out
    for slip in (
        "Eq. 30e repeats the arguments of Eq. 30c; they are dL/dh₁ and a₁.",
        "Eq. 30f names dL/dW₂ and dL/db₂ as its results; they are dL/dW₁ and dL/db₁.",
        "Section 4.1 names Eq. 21 as the form that takes O(D) operations; it is Eq. 23.",
        "The left side of Eq. 44 is by b, not by h.",
        "at a = 0 the derivative of relu is 0",
    ):
        assert slip in " ".join(out.split())


def test_sections_can_be_chosen(capsys):
    out = run(capsys, "--section", "5", "--section", "4.2")
    assert re.findall(r"^(\S+)  .* ─+$", out, re.MULTILINE) == ["4.2", "5"]


def test_the_bytes_of_eq_30_are_shown(capsys):
    lines = [line.split() for line in run(capsys, "--section", "4.2").splitlines()]
    freed = {line[0]: line[-3:-1] for line in lines if line and line[0].startswith("30")}
    assert freed == {
        "30a": ["2,560", "65,536"],
        "30b": ["0", "65,536"],
        "30c": ["32,768", "32,768"],
        "30d": ["0", "32,768"],
        "30e*": ["32,768", "0"],
        "30f*": ["0", "0"],
    }


def test_json_on_standard_output_is_all_that_is_there(capsys):
    found = json.loads(run(capsys, "--json", "-", "--seed", "7"))
    assert found["schema"] == "memback.notes/1"
    assert found["seed"] == 7
    assert found["ok"] is True
    assert list(found["sections"]) == list(SECTIONS)
    assert sum(step["freed_bytes"] for step in found["sections"]["4.2"]["steps"]) == 67 * 2**10 - 512


def test_json_in_a_file_comes_with_the_text(capsys, tmp_path):
    path = tmp_path / "notes.json"
    assert "30a" in run(capsys, "--section", "4.2", "--json", str(path))
    assert list(json.loads(path.read_text())["sections"]) == ["4.2"]


def test_an_existing_file_is_refused_before_work_begins(capsys, monkeypatch, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text("precious")
    monkeypatch.setitem(SECTIONS, "4.2", refuse)
    assert main([*QUICK, "--json", str(path)]) == 2
    assert "will not overwrite without --force" in capsys.readouterr().err
    assert path.read_text() == "precious"


def test_a_clock_too_coarse_for_any_of_it_fails_nothing(capsys, monkeypatch):
    compare = jacobians.compare
    monkeypatch.setattr(jacobians, "compare", lambda *args, rounds: compare(*args, clock=lambda: 0.0, rounds=1))
    lines = [line.split() for line in run(capsys, "--section", "4.1").splitlines()]
    powers = [line[2:] for line in lines if line[:2] == ["grows", "as"]]
    assert powers == [["D^2.00", "D^1.00", "–", "–"], ["D^2.99", "D^1.99", "–", "–"]]


def test_quiet_prints_nothing(capsys):
    assert run(capsys, "--quiet", "--section", "4.2", "--section", "5") == ""


def test_the_seed_decides_all_but_the_times(capsys):
    chosen = [f"--section={name}" for name in SECTIONS if name not in ("4.1", "4.3")]
    first, again = (run(capsys, *chosen, "--json", "-", "--seed", "3") for _ in range(2))
    other = run(capsys, *chosen, "--json", "-", "--seed", str(2**64 - 1))
    assert first == again
    assert json.loads(first)["sections"]["3"]["loss"] != json.loads(other)["sections"]["3"]["loss"]


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_no_line_is_longer_than_the_terminal_and_no_cell_is_cut(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = run(capsys, *(f"--section={name}" for name in SECTIONS if name != "4.3"))
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= max(columns, 80)
    assert all(line == line.rstrip() for line in out.splitlines())


def test_a_pipe_gets_no_colours(capsys):
    assert "\x1b" not in run(capsys, "--section", "4.2")


@pytest.mark.parametrize("colour", [True, False])
def test_a_terminal_gets_colours_unless_no_color_is_set(colour, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not colour:
        monkeypatch.setenv("NO_COLOR", "1")
    assert main(QUICK) == 0
    assert ("\x1b[32m" in terminal.getvalue()) is colour


def test_where_nothing_but_ascii_can_be_shown_partial_and_total_stay_apart(monkeypatch):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["notes"]) == 0
    stream.flush()
    out = raw.getvalue().decode("ascii")
    assert "\\x" not in out
    assert "\\u" not in out
    assert "Df/Dx dx/dt + Df/Dy dy/dt" in out


def test_a_check_that_fails_is_told_with_exit_code_1_and_the_json_is_there(capsys, tmp_path, wrong_relu):
    path = tmp_path / "notes.json"
    assert main(["notes", "--section", "3", "--json", str(path)]) == 1
    printed = capsys.readouterr()
    assert "FAILED" in printed.out
    assert "checks hold" not in printed.out
    (line,) = printed.err.splitlines()
    assert line.startswith("Error: 1 of 2 checks do not hold: the chain rule on explicit Jacobians")
    assert "Eq. 13" in line
    found = json.loads(path.read_text())
    assert found["ok"] is False
    assert found["sections"]["3"]["ok"] is False


def test_a_check_that_fails_is_told_even_if_quiet(capsys, wrong_relu):
    assert main(["notes", "--section", "3", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "do not hold" in printed.err


@pytest.mark.parametrize("wrong", [["--section", "2"], ["--seed", "-1"], ["--seed", "some"], ["--seed", str(2**64)]])
def test_a_wrong_request_is_exit_code_2(wrong, capsys):
    assert main(["notes", *wrong]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
