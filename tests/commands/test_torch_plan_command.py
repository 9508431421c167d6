from __future__ import annotations

import json

import pytest

from memback.commands import main

GPT = ["torch", "tests.bridges.torch_models:small_gpt", "--input", "8x8:int64"]

pytestmark = pytest.mark.torch


@pytest.fixture(autouse=True)
def torch():
    return pytest.importorskip("torch")


def run(capsys, *arguments):
    code = main([*GPT, *arguments])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    return code, printed


def refusal(capsys, *arguments):
    code, printed = run(capsys, *arguments)
    assert printed.out == ""
    return code, printed.err.splitlines()[0].removeprefix("Error: ")


SHOWN = {"calls": ("Recomputed in backward", "h.*"), "checkpoint": ("its input", "sweep by sweep")}


def test_a_plan_for_a_card_says_whether_a_step_fits_with_it(capsys):
    asked = ["--budget", "90%", "--dry", "--device", "cuda:t4", "--optimizer", "adamw", "--mode", "full"]
    code, printed = run(capsys, *asked)
    assert (code, printed.err) == (0, "")
    for words in ("Predicted time:", "Recomputed in backward", "With the plan a steady step fits"):
        assert words in " ".join(printed.out.split())
    device = json.loads(run(capsys, *asked, "--json", "-")[1].out)["device"]
    assert 0 < device["planned"]["allocated_peak_bytes"] <= device["steady"]["allocated_peak_bytes"]
    assert device["planned"]["forward_bytes"] < device["steady"]["forward_bytes"]


def test_blocks_are_not_planned_on_a_card(capsys):
    code, message = refusal(capsys, "--policy", "sqrt", "--dry", "--device", "cuda:t4")
    assert code == 2
    assert message.startswith("on a card plans are over calls")


@pytest.mark.parametrize("how", SHOWN)
def test_a_plan_is_shown_saved_verified_and_used_again(tmp_path, capsys, monkeypatch, how):
    monkeypatch.setenv("COLUMNS", "80")
    file, report = str(tmp_path / "plan.json"), tmp_path / "report.json"
    saving = ["--save", file, "--rounds", "1", "-o", str(report)]
    code, printed = run(capsys, "--budget", "120KiB", "--how", how, *saving)
    assert (code, printed.err) == (0, "")
    for words in ("plan:120.00KiB", "Peak at", "of full retention's", *SHOWN[how], f"Saved {file}"):
        assert words in printed.out
    assert max(map(len, printed.out.splitlines())) <= max(80, len(f"Saved {file}"), len(f"Wrote {report}"))
    runs = {run["mode"]: run for run in json.loads(report.read_bytes())["runs"]}
    planned = json.loads((tmp_path / "plan.json").read_bytes())
    again, full = runs["checkpoint"], runs["full"]
    assert again["policy"] == "plan:120.00KiB"
    assert again["measured_peak_bytes"] == again["predicted_peak_bytes"] == planned["peak_bytes"] < 122880
    assert full["measured_peak_bytes"] == planned["full_peak_bytes"] > 122880
    assert again["gradient_sha256"] == full["gradient_sha256"]

    code, printed = run(capsys, "--plan", file, "--dry", "--mode", "full", "--json", "-")
    assert code == 0
    assert json.loads(printed.out)["runs"][1]["predicted_peak_bytes"] == planned["peak_bytes"]


def test_the_frontier_is_shown_and_written(capsys):
    code, printed = run(capsys, "--frontier")
    assert code == 0
    assert "Memory against computation" in printed.out
    assert "knee" in printed.out
    assert "Modes" not in printed.out
    code, printed = run(capsys, "--frontier", "--json", "-")
    points = json.loads(printed.out)["frontier"]
    assert points == sorted(points, key=lambda point: point["budget"])
    assert points[-1]["extra_flops"] == 0


@pytest.mark.parametrize(("how", "function"), [("calls", "apply"), ("checkpoint", "checkpointed")])
def test_code_is_printed_and_nothing_else(capsys, how, function):
    asked = ["--budget", "120KiB", "--how", how, "--code"]
    code, printed = run(capsys, *asked)
    assert (code, printed.err) == (0, "")
    names = {}
    exec(printed.out, names)
    assert callable(names[function])
    assert json.loads(run(capsys, *asked, "--json", "-")[1].out)["code"] == printed.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--how", "calls"], "--how needs something to plan: give --budget BYTES or --frontier"),
        (["--how", "calls", "--blocks", "h.*", "--budget", "75%"], "--how calls knows no blocks: leave out --blocks"),
    ],
)
def test_ways_to_plan_that_contradict_other_options_are_refused(capsys, options, said):
    code, message = refusal(capsys, *options)
    assert code == 2
    assert message.startswith(said)


def test_a_policy_is_a_mode_of_the_report(capsys):
    code, printed = run(capsys, "--policy", "every:2", "--blocks", "h.*", "--dry", "--json", "-")
    assert code == 0
    assert [(r["mode"], r["policy"]) for r in json.loads(printed.out)["runs"]] == [
        ("retain-all", None),
        ("full", None),
        ("checkpoint", "every:2"),
        ("inference", None),
    ]


def test_a_budget_that_nothing_fits_is_a_failure(capsys):
    code, message = refusal(capsys, "--budget", "1KiB")
    assert code == 1
    assert message.startswith("no plan fits 1,024 B (0.000977 MiB): the leanest found needs ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "1MiB", "--policy", "sqrt"], "--policy and --budget contradict each other: give one of them"),
        (["--budget", "lots"], "byte size 'lots' is not a number with a unit"),
        (["--policy", "selective"], "policy 'selective' is none for PyTorch modules; there are none, every:k, sqrt"),
        (["--policy", "best"], "unknown checkpoint policy 'best'"),
        (["--save", "x.json"], "--save needs --budget"),
        (["--code"], "--code needs a plan: give --budget BYTES, --policy NAME or --plan FILE"),
        (["--frontier", "--policy", "sqrt"], "--frontier shows all plans: leave out"),
        (["--time"], "--time needs --budget"),
        (["--time", "--dry", "--budget", "1MiB"], "--time runs blocks for real and --dry runs nothing"),
        (["--blocks", "h.*"], "--blocks needs something to plan"),
        (["--blocks", "g.*", "--budget", "1MiB"], "no call of a submodule matches blocks pattern 'g.*'"),
        (["--plan", "no-such-file.json"], "no-such-file.json can't be read: No such file or directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_request_says_why(arguments, message, capsys):
    code, said = refusal(capsys, *arguments)
    assert code == 2
    assert said.startswith(message)


def test_a_budget_may_be_a_share_of_the_full_peak(capsys):
    code, printed = run(capsys, "--budget", "75%", "--dry", "--mode", "full", "--json", "-")
    assert code == 0
    full, planned = json.loads(printed.out)["runs"]
    assert planned["predicted_peak_bytes"] <= 0.75 * full["predicted_peak_bytes"]
    code, message = refusal(capsys, "--budget", "0%")
    assert (code, message) == (2, "budget '0%' is no share of the full peak; write it as 75% or 12.5%")
