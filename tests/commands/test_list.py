from __future__ import annotations

import json
from pathlib import Path

import pytest

from memback.commands import main
from memback.data import REGISTRY as DATA
from memback.engine import op
from memback.nn.policy import POLICIES
from memback.plans import PLANNERS, WHOLE
from memback.profiling.definition import shipped

KINDS = ["profiles", "models", "data", "ops", "policies", "planners"]


def test_json_on_standard_output_is_all_there_is_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    from memback import models

    assert main(["list", "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == KINDS
    planners = {*PLANNERS, *WHOLE}
    for kind, known in zip(KINDS, (shipped(), models.REGISTRY, DATA, op.REGISTRY, POLICIES, planners), strict=True):
        assert {entry["name"] for entry in found[kind]} == set(known)


def test_everything_that_is_listed_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json", "-"]) == 0
    for kind, entries in json.loads(capsys.readouterr().out).items():
        for entry in entries:
            assert len(entry["description"]) > 10, f"{kind}: {entry['name']} has no description"


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= columns
    for name in (*KINDS, *shipped(), *POLICIES, *PLANNERS, *WHOLE):
        assert name in printed
    assert "\x1b" not in printed


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_a_json_file_is_not_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "list.json"
    assert main(["list", "--json", str(target), "--quiet"]) == 0
    first = target.read_text()
    target.write_text("mine")
    assert main(["list", "--json", str(target)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "will not overwrite without --force" in printed.err
    assert target.read_text() == "mine"
    assert main(["list", "--json", str(target), "--force", "--quiet"]) == 0
    assert target.read_text() == first
