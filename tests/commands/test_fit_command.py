from __future__ import annotations

import json
import shlex

import pytest

from memback.commands import main

SMALL = [
    *("--set", "model.layers=1", "--set", "model.width=32", "--set", "model.heads=2"),
    *("--set", "model.context=32", "--set", "data.sequence=32", "--set", "data.limit=20000"),
]
TINY = ["fit", "source-gpt", *SMALL, "--budget", "800KiB"]


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    from memback.fitting import fit

    monkeypatch.setattr(fit, "measure_machine", lambda dtype: fit.Machine(50e9, 1e9, 2e9, str(tmp_path)))


def result(capsys, *arguments, code=0):
    assert main([*arguments, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


def message(capsys):
    """The one line of an error."""
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    lines = [line for line in printed.err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, printed.err
    return lines[0]


@pytest.mark.parametrize("columns", ["80", "120"])
def test_the_answer_is_a_table_with_commands_to_paste(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert main(TINY) == 0
    out = capsys.readouterr().out
    assert "the fastest first" in out
    assert "time lost" in out
    commands = [line for line in out.splitlines() if "memback train" in line]
    table = out.split("memback train")[0].splitlines()
    assert all(len(line) <= int(columns) for line in table)
    assert [line.split()[0] for line in commands] == [str(n + 1) for n in range(len(commands))]
    assert "--micro-batches" in out


def test_every_command_that_is_printed_trains_within_the_budget(capsys):
    found = result(capsys, *TINY)
    assert len(found["options"]) >= 3
    for option in found["options"]:
        program, *words = shlex.split(option["command"])
        assert program == "memback"
        assert main([*words, "--steps", "1", "--quiet"]) == 0, option["command"]
        assert option["peak_bytes"] <= found["budget_bytes"]


def test_a_profile_that_can_only_be_predicted_gets_commands_that_predict(capsys):
    found = result(capsys, "fit", "long-32k-plain", "--set", "model.layers=1", "--budget", "14GiB")
    assert found["options"]
    for option in found["options"]:
        program, *words = shlex.split(option["command"])
        assert program == "memback"
        assert words[0] in ("fit", "plan")
        if words[0] == "fit":
            again = result(capsys, *words)
            assert again["fits"]
            assert again["options"][0]["peak_bytes"] == option["peak_bytes"]


def test_json_says_what_each_option_is_made_of(capsys):
    found = result(capsys, *TINY)
    assert found["schema"] == "memback.fit/1"
    assert found["fits"] is True
    assert found["now"]["peak_bytes"] > found["budget_bytes"]
    for option in found["options"]:
        parts = [size for size in option["peak"].values() if isinstance(size, int)]
        assert sum(parts) == option["peak_bytes"]
    assert found["leanest"] is None


def test_what_fits_already_is_said_in_a_sentence(capsys):
    assert main(["fit", "digits", "--budget", "1GiB"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("digits fits as it is (nothing changed)")
    assert len(out.splitlines()) <= 2


def test_a_budget_that_nothing_meets_is_an_error_with_the_minimum(capsys):
    found = result(capsys, "fit", "digits", "--budget", "1KiB", code=1)
    assert found["fits"] is False
    assert found["options"] == []
    assert main(["fit", "digits", "--budget", "1KiB"]) == 1
    said = message(capsys)
    assert f"{found['leanest']['peak_bytes']:,} B" in said
    assert "It is made of" in said


def test_quiet_prints_nothing(capsys):
    assert main([*TINY, "--quiet"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("what", ["batch", "depth", "sequence"])
def test_the_largest_size_is_found_and_its_command_fits(capsys, what):
    arguments = ["fit", "source-gpt", *SMALL, "--budget", "1.5MiB", "--find", what]
    found = result(capsys, *arguments)
    assert found["find"] == what
    assert found["next_peak_bytes"] > found["budget_bytes"] >= found["option"]["peak_bytes"]
    _, *words = shlex.split(found["option"]["command"])
    assert main([*words, "--steps", "1", "--quiet"]) == 0
    assert main(arguments) == 0
    assert f"the largest {what} that fits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["digits"], "Missing option '--budget'"),
        (["digits", "--budget", "much"], "byte size 'much'"),
        (["nothing", "--budget", "1MiB"], "no profile 'nothing'"),
        (["digits", "--budget", "1MiB", "--find", "width"], "'width' is not one of"),
        (["digits", "--budget", "1MiB", "--find", "sequence"], "no sequences"),
        (["digits", "--budget", "1MiB", "--plan"], "--plan belongs to --find"),
        (["digits", "--budget", "1MiB", "--policy", "squirt"], "unknown checkpoint policy"),
        (["digits", "--budget", "1MiB", "--policy", "selective:attention"], "finds nothing to checkpoint"),
        (["digits", "--budget", "1MiB", "--micro-batches", "65"], "the batch has 64 samples"),
    ],
)
def test_a_wrong_request_ends_in_one_line_and_exit_code_2(capsys, arguments, expected):
    assert main(["fit", *arguments]) == 2
    assert expected in message(capsys)
