from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from memback import commands
from memback.commands import main

ROOT = Path(commands.__file__).parents[2]
SMALL = ["sweep", "digits", "--grid", "batch=2,4,8", "--grid", "policy=none,sqrt", "--workers", "1"]
LONG = ["sweep", "source-gpt", "--set", "model.layers=2", "--grid", "batch=$N", "--grid", "policy=sqrt,all"]


def read(file):
    with open(file, newline="") as lines:
        return list(csv.DictReader(lines))


def message(capsys):
    """The one line of an error."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, printed.err
    return lines[0]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_answer_is_tables_that_fit_the_terminal(capsys, monkeypatch, columns, tmp_path):
    monkeypatch.setenv("COLUMNS", columns)
    command = [*SMALL, "--budget", "170KiB"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "digits: 6 points (3 batch × 2 policy), 6 done"
    for title in ("Points", "Best and worst", "What fits its budget"):
        assert title in out.splitlines()
    assert max(map(len, out.splitlines())) <= int(columns)


def test_many_points_are_shown_by_value_and_what_failed_with_its_reason(capsys):
    batches = ",".join(map(str, range(1, 25)))
    assert main(["sweep", "digits", "--grid", f"batch={batches}", "--grid", "policy=sqrt,selective:attention"]) == 0
    out = capsys.readouterr().out
    assert "24 done, 24 failed" in out
    assert "Points" not in out.splitlines()
    assert "By value" in out.splitlines()
    assert "… 8 more values of batch" in out
    assert "policy 'selective:attention' finds" in out.partition("What failed")[2]


def test_json_has_the_grid_every_row_and_how_many_of_what(capsys):
    assert main([*SMALL, "--budget", "1MiB", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "memback.sweep/1"
    assert data["profile"] == "digits"
    assert data["grid"] == [{"key": "batch", "values": [2, 4, 8]}, {"key": "policy", "values": ["none", "sqrt"]}]
    expected = {"points": 6, "done": 6, "failed": 0, "lost": 0, "plans_fit": 6, "no_plan_fits": 0}
    assert data["summary"] == expected
    assert [(row["batch"], row["policy"]) for row in data["points"]] == [
        (batch, policy) for batch in (2, 4, 8) for policy in ("none", "sqrt")
    ]
    for row in data["points"]:
        parts = ("saved", "gradients", "recomputed", "outputs", "workspace")
        for mode in ("full", "checkpoint", "inference"):
            assert row[f"{mode}_peak_bytes"] == sum(row[f"{mode}_peak_{part}"] for part in parts)


def test_quiet_prints_nothing_and_the_file_has_the_rows(capsys, tmp_path):
    file = tmp_path / "sweep.csv"
    assert main([*SMALL, "--quiet", "-o", str(file)]) == 0
    assert capsys.readouterr() == ("", "")
    assert [row["point"] for row in read(file)] == list("012345")
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]


def test_a_sweep_that_is_done_is_run_no_further_and_can_be_shown_in_other_formats(capsys, tmp_path, monkeypatch):
    file, page = tmp_path / "sweep.csv", tmp_path / "sweep.html"
    assert main([*SMALL, "--quiet", "-o", str(file)]) == 0
    before = file.read_bytes()
    monkeypatch.setattr("memback.sweeps.point.run", None)
    assert main([*SMALL, "-o", str(file), "-o", str(page), "--resume"]) == 0
    assert "6 of 6 points were there already" in capsys.readouterr().out
    assert file.read_bytes() == before
    assert "memory of many variants" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits"], "Missing option '--grid'"),
        (["digits", "--grid", "batch"], "--grid 'batch' is no KEY=VALUE,VALUE"),
        (["digits", "--grid", "batch=1,"], "has an empty value"),
        (["digits", "--grid", "btach=1"], "did you mean 'batch'?"),
        (["digits", "--grid", "batch=1", "--grid", "model.hidden=big"], "--grid: model.hidden (='big') must be"),
        (["digits", "--grid", "batch=1", "--policy", "squirt"], "--policy: checkpoint.policy: unknown"),
        (["digits", "--grid", "batch=1", "--budget", "much"], "byte size 'much'"),
        (["digits", "--grid", "batch=1", "--budget", "1MiB", "--planner", "best"], "unknown planner 'best'"),
        (["digits", "--grid", "batch=1", "--planner", "sqrt"], "--planner needs a budget"),
        (["digits", "--grid", "policy=none", "--policy", "sqrt"], "--policy and --grid policy contradict"),
        (["digits", "--grid", "budget=1MiB", "--budget", "2MiB"], "--budget and --grid budget contradict"),
        (["digits", "--grid", "batch=1", "--resume"], "--resume needs the file with the rows"),
        (["digits", "--grid", "batch=1", "--x", "batch"], "--x: there is no heat-map; add -o FILE.html"),
        (["digits", "--grid", "batch=1", "-o", "s.html", "--x", "dtype"], "--x dtype: the grid is over batch"),
        (["digits", "--grid", "batch=1", "-o", "s.html", "--value", "peek"], "did you mean 'peak'?"),
        (["digits", "--grid", "batch=1", "-o", "s.xlsx"], "let its name end in .parquet or .csv"),
        (["digits", "--grid", "batch=1", "-o", "no/s.csv"], "There is no folder no"),
        (["digits", "--grid", "batch=1", "--workers", "0"], "0 is not in the range"),
        (["digits", "--grid", "batch=1", "--workers", "1", "--scheduler", "tcp://x:1"], "contradict each other"),
        (["nothing", "--grid", "batch=1"], "no profile 'nothing'"),
    ],
)
def test_a_wrong_request_ends_in_one_line_before_anything_is_run(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("memback.sweeps.point.run", None)
    assert main(["sweep", *arguments]) == 2
    assert expected in message(capsys)
    assert not list(tmp_path.iterdir())


def test_where_no_point_could_be_the_command_fails_with_the_reason(capsys):
    assert main(["sweep", "gpt2-small", "--grid", "model.width=7,11", "--workers", "1"]) == 1
    assert "no point could be run: profile gpt2-small: `width` (=7) must be divisible" in message(capsys)


def test_rows_as_csv_and_a_heat_map_need_nothing_of_the_extra(tmp_path):
    code = (
        "import sys; from memback.commands import main; code = main(sys.argv[1:]);"
        "print(code, sorted({'dask', 'distributed', 'pyarrow'} & set(sys.modules)))"
    )
    options = ["--quiet", "-o", str(tmp_path / "sweep.csv"), "-o", str(tmp_path / "sweep.html")]
    result = subprocess.run(
        [sys.executable, "-c", code, *SMALL, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "0 []\n"


# -- cut off


def start(file, points, *options):
    """A sweep that takes a while, in a process of its own."""
    arguments = [word.replace("$N", ",".join(map(str, range(1, points + 1)))) for word in LONG]
    return subprocess.Popen(
        [sys.executable, "-m", "memback", *arguments, "--workers", "2", "-o", str(file), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a job in the background ignores it, and so would what it starts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for_rows(process, file):
    """Until some points are in the journal; gives the processes that run the others."""
    journal = Path(f"{file}.journal")
    while not (journal.exists() and len(journal.read_bytes().splitlines()) > 2):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return psutil.Process(process.pid).children(recursive=True)


posix = pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")


@posix
def test_a_sweep_that_is_killed_goes_on_and_no_point_is_lost_or_there_twice(tmp_path):
    file, points = tmp_path / "sweep.csv", 10
    process = start(file, points)
    others = wait_for_rows(process, file)
    process.kill()
    process.communicate()
    if file.exists():  # it may have been cut off before that was written first
        assert {row["status"] for row in read(file)} == {"done"}
    kept = len(Path(f"{file}.journal").read_bytes().splitlines()) - 1
    assert 0 < kept < 2 * points
    assert not psutil.wait_procs(others, timeout=60)[1], "processes outlive the sweep"

    again = start(file, points, "--resume")
    out, errors = again.communicate()
    assert (again.returncode, errors) == (0, "")
    there = int(out.partition(" of ")[0])
    assert there >= kept
    rows = read(file)
    assert [int(row["point"]) for row in rows] == list(range(2 * points))
    assert {row["status"] for row in rows} == {"done"}
    left = [path.name for path in tmp_path.iterdir() if not path.match(".memback-*.tmp")]  # amid which it was killed
    assert left == ["sweep.csv"]


@posix
def test_ctrl_c_ends_with_130_one_line_and_a_file_of_what_is_finished(tmp_path):
    file = tmp_path / "sweep.csv"
    process = start(file, 30)
    others = wait_for_rows(process, file)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors.strip()) == (130, "Error: Interrupted")
    assert 0 < len(read(file)) < 60
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.csv"]
    assert not psutil.wait_procs(others, timeout=60)[1]
