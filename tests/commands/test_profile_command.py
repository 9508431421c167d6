from __future__ import annotations

import dataclasses
import json

import pytest

from memback.commands import main
from memback.data import REGISTRY as DATA
from memback.data import Dataset
from memback.profiling import definition, step
from memback.profiling.definition import load
from memback.profiling.guard import Available
from memback.profiling.workload import Workload
from tests.reports.test_html import data

QUICK = ["profile", "notes", "--rounds", "1"]


def message(capsys):
    """The one line of an error."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, printed.err
    return lines[0]


def refuse(*_, **__):
    raise AssertionError("work began")


def report(capsys, *arguments):
    assert main([*arguments, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return json.loads(printed.out)


def labels(found):
    return [(run["mode"], run["policy"]) for run in found["runs"]]


def test_every_mode_is_shown_with_the_profiles_policy(capsys):
    assert main(QUICK) == 0
    out = capsys.readouterr().out
    for label in ("retain-all", "full", "checkpoint:sqrt", "inference"):
        assert label in out


def test_json_on_standard_output_is_the_whole_report_and_nothing_else(capsys):
    found = report(capsys, *QUICK)
    assert found["schema"] == "memback.report/1"
    assert labels(found) == [("retain-all", None), ("full", None), ("checkpoint", "sqrt"), ("inference", None)]
    for run in found["runs"]:
        assert sum(layer["saved_bytes"] for layer in run["layers"]) == run["saved_bytes"]
        assert run["seconds"] is not None
        assert run["measured_peak_bytes"] > 0


def test_modes_and_a_policy_can_be_chosen(capsys):
    chosen = ("--mode", "full", "--mode", "checkpoint", "--policy", "every:2")
    assert labels(report(capsys, *QUICK, *chosen)) == [("full", None), ("checkpoint", "every:2")]


def test_settings_reach_the_model_and_the_data(capsys):
    changed = ("--batch", "3", "--dtype", "float32", "--set", "model.hidden=5", "--mode", "full")
    found = report(capsys, *QUICK, *changed)
    assert found["profile"]["dtype"] == "float32"
    assert found["profile"]["data"]["batch"] == 3
    assert found["runs"][0]["layers"][0]["output_shape"] == [3, 5]


def test_a_dry_run_allocates_nothing_and_measures_nothing(monkeypatch, capsys):
    monkeypatch.setattr(step.Step, "account", refuse)
    monkeypatch.setattr(step.Step, "measure", refuse)
    found = report(capsys, "profile", "digits", "--dry")
    for run in found["runs"]:
        assert run["predicted_peak_bytes"] > 0
        assert run["measured_peak_bytes"] is None
        assert run["seconds"] is None
        assert run["loss"] is None


@pytest.mark.parametrize("name", ["digits", "source-gpt", "unet", "notes", "vit-l16"])
def test_a_dry_run_reads_no_data(name, monkeypatch, capsys):
    for loader in DATA:
        monkeypatch.setitem(DATA, loader, refuse)
    monkeypatch.setattr(Dataset, "batch", refuse)
    profile = load(name)
    monkeypatch.setattr(definition, "load", lambda _: profile)
    found = report(capsys, "profile", name, "--dry", "--mode", "full")
    assert found["arguments"]["input_bytes"] > 0


def test_a_run_that_parts_from_its_prediction_says_so(monkeypatch, capsys):
    predict = step.Step.predict

    def predict_less(self, mode):
        found = predict(self, mode)
        less = {**found.peak.parts, "workspace": 0, "saved": 0}
        peak = dataclasses.replace(found.peak, bytes=sum(less.values()), parts=less)
        return dataclasses.replace(found, peak=peak)

    quick = ["profile", "digits", "--rounds", "1", "--mode", "full", "--batch", "1000"]
    assert main(quick) == 0
    assert "does not hold" not in capsys.readouterr().out
    monkeypatch.setattr(step.Step, "predict", predict_less)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert main(quick) == 0
    shown = capsys.readouterr().out
    assert "does not hold" in shown
    assert "\x1b[1;31m" in shown


def test_a_dry_run_predicts_what_a_real_one_measures(capsys):
    dry, real = report(capsys, "profile", "digits", "--dry"), report(capsys, "profile", "digits", "--rounds", "1")
    for one, other in zip(dry["runs"], real["runs"], strict=True):
        for key in ("saved_bytes", "predicted_peak_bytes", "flops", "recomputed_flops"):
            assert one[key] == other[key]


def test_a_profile_that_is_too_large_is_only_predicted(capsys):
    found = report(capsys, "profile", "resnet50", "--mode", "full")
    assert found["runs"][0]["measured_peak_bytes"] is None


def test_quiet_prints_nothing(capsys):
    assert main([*QUICK, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".json", ".md", ".csv", ".txt"])
def test_the_report_is_written_in_the_format_of_the_files_name(suffix, tmp_path, capsys):
    path = tmp_path / f"report{suffix}"
    assert main([*QUICK, "-o", str(path), "--quiet"]) == 0
    assert path.stat().st_size > 100
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_layers_shows_a_table_of_every_mode_without_folding(capsys):
    assert main([*QUICK, "--layers"]) == 0
    out = capsys.readouterr().out
    for path in ("layers.0", "layers.2", "layers.4"):
        assert path in out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--mode", "fulll"], "unknown mode 'fulll'"),
        (["--policy", "squirt"], "unknown checkpoint policy 'squirt'"),
        (["--policy", "every"], "every:k needs a whole number"),
        (["--policy", "every:0"], "every:k needs a whole number"),
        (["--policy", "sqrt:3"], "takes no argument"),
        (["--policy", "match:nothing.*"], "finds nothing to checkpoint"),
        (["--mode", "full", "--policy", "sqrt"], "add --mode checkpoint"),
        (["--batch", "0"], "data.batch"),
        (["--batch", "-1"], "data.batch"),
        (["--batch", "many"], "data.batch"),
        (["--dtype", "int8"], "dtype"),
        (["--rounds", "0"], "0 is not in the range"),
        (["--set", "model.hidden"], "no KEY=VALUE"),
        (["--set", "=3"], "no KEY=VALUE"),
        (["--set", "model.hiden=3"], "hiden"),
        (["--set", "model.hidden=wide"], "model.hidden"),
        (["--set", "nothing.at=all"], "no section nothing"),
        (["--set", "model.name=transformer"], "transformer"),
        (["-o", "report.pdf"], ".pdf"),
        (["-o", "/nowhere/report.json"], "There is no folder /nowhere"),
        (["--json", "/nowhere/report.json"], "There is no folder /nowhere"),
    ],
)
def test_a_wrong_request_ends_in_one_line_and_exit_code_2(arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr(step.Step, "account", refuse)
    assert main(["profile", "notes", *arguments]) == 2
    assert expected in message(capsys)


@pytest.mark.parametrize("name", ["digts", "missing.toml", "/nowhere/profile.toml"])
def test_an_unknown_profile_is_one_line(name, capsys):
    assert main(["profile", name]) == 2
    assert name.removesuffix(".toml") in message(capsys)


@pytest.mark.parametrize(("option", "name"), [("--json", "report.json"), ("-o", "report.md")])
def test_an_existing_file_is_refused_before_work_begins(option, name, tmp_path, monkeypatch, capsys):
    path = tmp_path / name
    path.write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr(step.Step, "account", refuse)
        assert main([*QUICK, option, str(path)]) == 2
    assert "will not overwrite without --force" in message(capsys)
    assert path.read_text() == "precious"
    assert main([*QUICK, option, str(path), "--force", "--quiet"]) == 0
    assert "precious" not in path.read_text()


def test_a_model_that_refuses_its_values_is_one_line(capsys):
    assert main(["profile", "vit", "--set", "model.patch=5"]) == 2
    assert "`image` (=32) must be divisible by `patch` (=5)" in message(capsys)


def test_what_does_not_fit_is_refused_with_what_would_unless_forced(monkeypatch, capsys):
    monkeypatch.setattr("memback.profiling.guard.available_memory", lambda: Available(10_000, "free memory"))
    with monkeypatch.context() as patch:
        patch.setattr(step.Step, "account", refuse)
        assert main(["profile", "digits"]) == 1
    assert "in mode retain-all" in message(capsys)
    assert main([*QUICK, "--force", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (MemoryError("Unable to allocate 2 GiB"), 1, "Out of memory (Unable to allocate 2 GiB)"),
        (KeyboardInterrupt(), 130, "Interrupted"),
    ],
)
def test_a_step_that_can_not_go_on_writes_nothing(error, code, expected, tmp_path, monkeypatch, capsys):
    loss = Workload.loss

    def fail(self, x, y):
        if self.dry:
            return loss(self, x, y)
        raise error

    monkeypatch.setattr(Workload, "loss", fail)
    assert main([*QUICK, "--json", str(tmp_path / "report.json")]) == code
    assert expected in message(capsys)
    assert list(tmp_path.iterdir()) == []


def test_the_frontier_of_plans_is_in_the_report_in_every_format_and_below_the_plan_that_was_chosen(
    tmp_path, capsys, monkeypatch
):
    small = ["--set", "model.depth=20", "--batch", "512", "--dry"]
    files = {suffix: tmp_path / f"report{suffix}" for suffix in (".json", ".html", ".md", ".txt")}
    written = [part for file in files.values() for part in ("-o", str(file))]
    assert main(["profile", "deep-mlp", *small, "--frontier", "--budget", "4MiB", *written]) == 0
    stored = json.loads(files[".json"].read_text())
    points = stored["frontier"]
    assert len(points) > 3
    assert [peak for peak, _ in points] == sorted(peak for peak, _ in points)
    assert [cost for _, cost in points] == sorted((cost for _, cost in points), reverse=True)

    runs = {run["mode"]: run for run in stored["runs"]}
    full, planned = runs["full"], runs["checkpoint"]
    assert points[-1][0] >= full["predicted_peak_bytes"]
    assert points[-1][1] == full["recomputed_flops"] == 0
    fitting = [cost for peak, cost in points if peak <= 4 * 2**20]
    assert 0 < planned["recomputed_flops"] <= min(fitting)

    page = data(files[".html"].read_text(encoding="utf-8"))
    assert page["frontier"] == points
    assert points[page["knee"]] in points[1:-1]
    for text in (capsys.readouterr().out, files[".md"].read_text(), files[".txt"].read_text()):
        assert "Memory against computation" in text
        assert f"{points[0][0]:,}" in text
        assert "knee" in text

    again = tmp_path / "again.html"
    assert main(["report", str(files[".json"]), "-o", str(again)]) == 0
    capsys.readouterr()  # says where it wrote, however long that is
    assert data(again.read_text(encoding="utf-8"))["frontier"] == points
    for columns in ("80", "120"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(["report", str(files[".json"])]) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= int(columns)
