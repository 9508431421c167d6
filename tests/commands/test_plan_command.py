"""``memback plan``, and plans in the commands that run a step."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from memback.commands import main
from memback.plans.model.planning import RESERVE, ModelPlan

SMALL = [
    *("--set", "model.width=16", "--set", "model.layers=2", "--batch", "2"),
    *("--set", "data.sequence=32", "--set", "data.limit=20000"),
]
GPT = ["source-gpt", *SMALL]
DEEP = ["--set", "model.layers=7"]
TIGHT = "350000"
"""Bytes: a budget in which GPT has to compute something again."""


def found(capsys, *arguments):
    assert main([*arguments, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def refused(capsys, *arguments):
    """Exit code and the one message."""
    code = main(list(arguments))
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, printed.err
    return code, lines[0]


def test_a_plan_is_shown_with_its_budget_peak_cost_and_proof(capsys, monkeypatch):
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        argv = ["plan", "deep-mlp", "--set", "model.depth=20", "--budget", "12MiB", "--planner", "chain"]
        assert main(argv) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= int(columns)
        for part in ("budget        12,582,912", "Recomputed:", "Proof: ", "forward  ▪", "◂ reversed", "its input"):
            assert part in out


@pytest.mark.parametrize("columns", ["80", "120"])
def test_a_graph_s_plan_is_shown_by_its_nodes(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(["plan", *GPT, "--budget", TIGHT, "--planner", "graph"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= int(columns)
    for part in ("Proof: ", "over a fixed order", "Nodes", "forward keeps", "its output", "again  ", "or run again"):
        assert part in out


def test_the_json_is_a_plan_that_mb_reads(capsys, tmp_path):
    data = found(capsys, "plan", *GPT, "--budget", "1MiB", "--save", str(tmp_path / "plan.json"))
    plan = ModelPlan.from_dict(data["plan"])
    assert plan == ModelPlan.load(tmp_path / "plan.json")
    assert plan.peak_bytes + RESERVE <= plan.budget == 2**20


def test_the_frontier_is_shown_with_its_knee(capsys):
    assert main(["plan", *GPT, "--frontier"]) == 0
    out = capsys.readouterr().out
    assert out.count("knee") == 2
    points = found(capsys, "plan", *GPT, "--frontier")["frontier"]
    budgets = [point["budget"] for point in points]
    assert budgets == sorted(budgets)
    assert [p["extra_flops"] for p in points] == sorted((p["extra_flops"] for p in points), reverse=True)


def test_time_predicts_seconds_from_a_real_run(capsys):
    data = found(capsys, "plan", *GPT, "--budget", TIGHT, "--time")
    assert data["seconds"]["predicted_extra"] > 0
    assert data["seconds"]["step"] > 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([*GPT], 2, "needs --budget BYTES .* or --frontier"),
        ([*GPT, "--budget", "lots"], 2, "lots"),
        ([*GPT, "--budget", "1KiB"], 1, "the leanest found in 5 s needs .* reserve"),
        ([*GPT, "--budget", "1MiB", "--planner", "best"], 2, "unknown planner 'best'; there are chain"),
        ([*GPT, "--frontier", "--save", "x.json"], 2, "--save needs --budget"),
        ([*GPT, *DEEP, "--budget", TIGHT, "--planner", "graph"], 2, "it takes at most 70. Use the planner 'chain'"),
        (["gpt2-small", "--budget", "8GiB", "--time"], 2, "can only be predicted: leave out --time"),
    ],
)
def test_what_can_t_be_planned_is_refused(capsys, arguments, code, message):
    got, line = refused(capsys, "plan", *arguments)
    assert got == code
    assert re.search(message, line)


def test_profile_takes_a_budget_and_a_plan(capsys, tmp_path):
    file = str(tmp_path / "plan.json")
    assert main(["plan", *GPT, "--budget", TIGHT, "--save", file, "--quiet"]) == 0
    for option in (["--budget", TIGHT], ["--plan", file]):
        runs = found(capsys, "profile", *GPT, "--rounds", "1", *option)["runs"]
        modes = {run["mode"]: run for run in runs}
        assert modes["checkpoint"]["policy"].startswith("plan:")
        assert modes["checkpoint"]["measured_peak_bytes"] <= int(TIGHT)
        assert modes["checkpoint"]["gradient_sha256"] == modes["full"]["gradient_sha256"]
        assert modes["checkpoint"]["recomputed_flops"] > 0


def test_training_within_a_budget_gives_the_same_bits(tmp_path):
    weights = []
    for number, option in enumerate(([], ["--budget", TIGHT])):
        file = tmp_path / f"{number}.safetensors"
        assert main(["train", *GPT, "--steps", "3", "--save", str(file), "--quiet", *option]) == 0
        weights.append(load_file(file))
    assert weights[0].keys() == weights[1].keys()
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])


@pytest.mark.parametrize("command", ["profile", "train"])
def test_a_policy_and_a_budget_contradict_each_other(capsys, command):
    code, line = refused(capsys, command, *GPT, "--policy", "sqrt", "--budget", "1MiB")
    assert code == 2
    assert "--policy and --budget contradict each other" in line


def test_a_plan_for_another_model_is_refused(capsys, tmp_path):
    file = str(tmp_path / "plan.json")
    assert main(["plan", *GPT, "--budget", "1MiB", "--save", file, "--quiet"]) == 0
    code, line = refused(
        capsys, "train", "source-gpt", *SMALL, "--set", "model.layers=3", "--plan", file, "--steps", "1"
    )
    assert code == 2
    assert "made for another model" in line
