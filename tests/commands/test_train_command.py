from __future__ import annotations

import io
import json
import os
import re
import signal
import sys

import numpy as np
import pytest

from memback.commands import main
from memback.profiling import training as training_module
from memback.profiling.guard import Available
from memback.profiling.training import Training
from memback.profiling.workload import Workload

QUICK = ["train", "digits", "--set", "train.schedule=constant"]


def steps_before(monkeypatch, number, action):
    """Have ``action`` called in the middle of step ``number``."""
    loss = Workload.loss
    count = 0

    def counted(self, x, y):
        nonlocal count
        count += not self.dry  # the prediction before the first step is none
        if count == number + 1:
            action()
        return loss(self, x, y)

    monkeypatch.setattr(Workload, "loss", counted)


def fail(error):
    def action():
        raise error

    return action


def message(capsys):
    """The one line of an error."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, printed.err
    return lines[0]


def test_training_shows_loss_accuracy_speed_and_memory(capsys):
    assert main([*QUICK, "--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert "step 20" in out
    assert "test accuracy" in out
    assert "samples/s" in out
    assert "saved activations" in out
    assert "optimiser state" in out


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_shows_each_kind_of_memory_with_a_bar_of_its_share(columns, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    assert main([*QUICK, "--steps", "2"]) == 0
    first = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue()).splitlines()[:8]
    assert all(len(line) <= columns for line in first)
    bars = {line[:17].strip(): line.count("█") for line in first}
    assert bars["optimiser state"] == 40
    assert bars["parameters"] == bars["gradients"] == 20
    assert 10 < bars["saved activations"] < 20
    assert bars["process (RSS)"] == 0


def test_micro_batches_and_offload_change_memory_and_hardly_the_losses(capsys):
    def trained(*options):
        assert main([*QUICK, "--steps", "5", *options, "--json", "-"]) == 0
        return json.loads(capsys.readouterr().out)

    whole, parts, disk = trained(), trained("--micro-batches", "4"), trained("--offload")
    assert parts["micro_batches"] == 4
    assert parts["memory"]["saved activations"] < whole["memory"]["saved activations"] / 3
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-4)
    assert disk["losses"] == whole["losses"]
    assert disk["offloaded_bytes"] > 0
    assert disk["memory"]["saved activations"] < whole["memory"]["saved activations"] / 3
    assert main([*QUICK, "--steps", "2", "--offload"]) == 0
    assert "On disk:" in capsys.readouterr().out


def test_json_on_standard_output_is_all_there_is(capsys):
    assert main([*QUICK, "--steps", "5", "--json", "-"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["profile"] == "digits"
    assert result["steps"] == 5
    assert len(result["losses"]) == 5
    assert 0 <= result["accuracy"] <= 1
    assert result["memory"]["saved activations"] > 0
    assert printed.err == ""


def test_quiet_prints_nothing(capsys):
    assert main([*QUICK, "--steps", "2", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_resumed_training_goes_on_to_the_same_bits(tmp_path, capsys):
    half, whole, resumed = (str(tmp_path / name) for name in ("half", "whole", "resumed"))
    assert main([*QUICK, "--steps", "6", "--save", whole, "--quiet"]) == 0
    assert main([*QUICK, "--steps", "3", "--save", half, "--quiet"]) == 0
    assert main([*QUICK, "--steps", "6", "--resume", half, "--save", resumed, "--quiet"]) == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert main([*QUICK, "--steps", "7", "--resume", half, "--save", half, "--quiet"]) == 0


def test_a_policy_changes_no_bit(tmp_path):
    plain, sqrt = tmp_path / "plain", tmp_path / "sqrt"
    assert main([*QUICK, "--steps", "3", "--save", str(plain), "--quiet"]) == 0
    assert main([*QUICK, "--steps", "3", "--save", str(sqrt), "--policy", "sqrt", "--quiet"]) == 0
    assert plain.read_bytes() == sqrt.read_bytes()


def test_save_every_writes_along_the_way(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Training, "save", lambda self, path: saved.append(self.next_step))
    assert main([*QUICK, "--steps", "5", "--save", str(tmp_path / "file"), "--save-every", "2", "--quiet"]) == 0
    assert saved == [2, 4, 5]


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_ctrl_c_finishes_the_step_saves_it_and_can_be_resumed_to_the_same_bits(tmp_path, monkeypatch, capsys):
    path, whole = str(tmp_path / "file"), str(tmp_path / "whole")
    assert main([*QUICK, "--steps", "5", "--save", whole, "--quiet"]) == 0
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        steps_before(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([*QUICK, "--steps", "5", "--save", path]) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    printed = capsys.readouterr()
    assert f"Interrupted after step 3; continue with --resume {path}" in printed.out
    assert printed.err.strip() == "Error: Interrupted"
    assert main([*QUICK, "--steps", "5", "--resume", path, "--save", path, "--quiet"]) == 0
    assert (tmp_path / "file").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.skipif(os.name != "posix", reason="sends itself a signal")
def test_a_second_ctrl_c_stops_at_once_and_saves_no_half_step(tmp_path, monkeypatch, capsys):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("it went on")

    steps_before(monkeypatch, 1, twice)
    assert main([*QUICK, "--steps", "5", "--save", str(tmp_path / "file")]) == 130
    assert message(capsys) == "Error: Interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_loss_ends_in_one_line_and_exit_code_1(tmp_path, capsys):
    arguments = ["--set", "train.optimizer=sgd", "--set", "train.learning_rate=1e6", "--save", str(tmp_path / "file")]
    assert main([*QUICK, *arguments, "--quiet"]) == 1
    assert "training has diverged. Lower train.learning_rate (=1000000.0)" in message(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_training_that_adamw_ends_in_float16_says_why(capsys):
    assert main([*QUICK, "--dtype", "float16", "--steps", "3", "--quiet"]) == 1
    assert "AdamW's eps (=1e-08) is 0 in float16" in message(capsys)
    assert main([*QUICK, "--dtype", "float16", "--steps", "3", "--quiet", "--set", "train.optimizer=sgd"]) == 0
    assert main([*QUICK, "--dtype", "bfloat16", "--steps", "3", "--quiet"]) == 0


def test_running_out_of_memory_ends_in_one_line_and_exit_code_1(monkeypatch, capsys):
    steps_before(monkeypatch, 0, fail(MemoryError("Unable to allocate 2 GiB")))
    assert main([*QUICK, "--quiet"]) == 1
    assert "Out of memory (Unable to allocate 2 GiB)" in message(capsys)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "digits", "--policy", "squirt"], "unknown checkpoint policy 'squirt'"),
        (["train", "digits", "--policy", "every:0"], "every:k needs a whole number"),
        (["train", "digits", "--micro-batches", "65"], "65 micro-batches can't be made of a batch of 64"),
        (["train", "digits", "--steps", "0"], "0 is not in the range"),
        (["train", "digits", "--steps", "many"], "'many' is not a valid integer"),
        (["train", "digits", "--batch", "0"], "data.batch"),
        (["train", "digits", "--batch", "none"], "data.batch"),
        (["train", "digits", "--dtype", "int8"], "dtype"),
        (["train", "digits", "--set", "model.width"], "no KEY=VALUE"),
        (["train", "digits", "--set", "model.widht=8"], "widht"),
        (["train", "digits", "--set", "train.learning_rate=-1"], "learning_rate"),
        (["train", "digits", "--save-every", "3"], "--save-every needs --save FILE"),
        (["train", "digits", "--resume", "/nowhere/file"], "There is no file /nowhere/file"),
        (["train", "digits", "--save", "/nowhere/file"], "There is no folder /nowhere"),
        (["train", "gpt3-175b"], "too large to run"),
        (["train", "digts"], "digits"),
        (["train"], "Missing argument"),
    ],
)
def test_a_wrong_request_ends_in_one_line_and_exit_code_2(arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr(training_module.Training, "_step", fail(AssertionError("work began")))
    assert main(arguments) == 2
    assert expected in message(capsys)


def test_a_file_to_resume_from_that_is_foreign_or_cut_is_one_line(tmp_path, capsys):
    foreign, good, cut = (tmp_path / name for name in ("foreign", "good", "cut"))
    foreign.write_text("hello")
    assert main([*QUICK, "--resume", str(foreign)]) == 2
    assert "foreign can't be read" in message(capsys)
    assert main([*QUICK, "--steps", "1", "--save", str(good), "--quiet"]) == 0
    cut.write_bytes(good.read_bytes()[:200])
    assert main([*QUICK, "--resume", str(cut)]) == 2
    assert "cut can't be read" in message(capsys)
    assert main([*QUICK, "--steps", "1", "--resume", str(good)]) == 2
    assert "has done 1 steps already" in message(capsys)
    assert main([*QUICK, "--set", "model.hidden=[8]", "--resume", str(good)]) == 2
    assert "belongs to another training" in message(capsys)


@pytest.mark.parametrize("option", ["--save", "--json"])
def test_an_existing_file_is_refused_before_work_begins(option, tmp_path, monkeypatch, capsys):
    path = tmp_path / "file"
    path.write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr(training_module.Training, "_step", fail(AssertionError("work began")))
        assert main([*QUICK, option, str(path)]) == 2
    assert "will not overwrite without --force" in message(capsys)
    assert path.read_text() == "precious"
    assert main([*QUICK, "--steps", "1", option, str(path), "--force", "--quiet"]) == 0
    assert path.read_bytes() != b"precious"


def test_a_step_that_does_not_fit_is_refused_with_the_policies_that_would_unless_forced(monkeypatch, capsys):
    monkeypatch.setattr("memback.profiling.guard.available_memory", lambda: Available(500_000, "limit of the test"))
    steps = ["train", "digits", "--steps", "1"]
    deep = ["--batch", "1000", "--set", "model.hidden=" + str([128] * 6)]
    with monkeypatch.context() as patch:
        patch.setattr(Training, "steps", fail(AssertionError("training began")))
        assert main([*steps, *deep]) == 1
    said = message(capsys)
    assert "in mode full, but there are 488.28 KiB (500,000 B): limit of the test" in said
    assert "--force" in said
    monkeypatch.setattr("memback.profiling.guard.available_memory", lambda: Available(4_500_000, "limit of the test"))
    assert main([*steps, *deep]) == 1
    assert "Policies that would fit: --policy sqrt with" in message(capsys)
    assert main([*steps, *deep, "--policy", "sqrt", "--quiet"]) == 0
    assert main([*steps, *deep, "--force", "--quiet"]) == 0
