"""Plans and reports that somebody has damaged, or made to do harm, end in one message."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memback.commands import main
from memback.errors import UsageError
from memback.plans.model.planning import ModelPlan
from memback.profiling.report import Report
from memback.sweeps.store import Store
from tests.reports import sample

PROFILE = ["source-gpt", "--set", "model.width=16", "--set", "model.layers=1", "--set", "data.sequence=16"]
PROFILE += ["--batch", "1"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("stored")
    found = {}
    for planner in ("chain", "graph"):
        found[planner] = folder / f"{planner}.json"
        arguments = ["plan", *PROFILE, "--budget", "160KiB", "--planner", planner, "--save", str(found[planner])]
        assert main([*arguments, "--quiet"]) == 0
    found["report"] = folder / "report.json"
    assert main(["profile", *PROFILE, "--dry", "-o", str(found["report"]), "--quiet"]) == 0
    return found


def opened(kind: str, file: Path) -> list[str]:
    """The command that reads a file of a kind."""
    return ["report", str(file)] if kind == "report" else ["profile", *PROFILE, "--dry", "--plan", str(file)]


def is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("Error: ")
    assert line.isprintable()
    return line


DEPTHS = [900, 100_000]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("unit", [("[", "]"), ('{"a":', "}")], ids=["lists", "tables"])
@pytest.mark.parametrize("kind", ["chain", "graph", "report"])
@pytest.mark.parametrize("place", ["all", "schema", "runs"])
def test_files_that_are_nested_too_deep_are_refused(
    place: str,
    kind: str,
    unit: tuple[str, str],
    depth: int,
    stored: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    deep = unit[0] * depth + "1" + unit[1] * depth
    if place != "all":
        content = json.loads(stored[kind].read_text(encoding="utf-8"))
        deep = json.dumps(content | {place: "HERE"}).replace('"HERE"', deep)
    file = tmp_path / "deep.json"
    file.write_text(deep, encoding="utf-8")
    assert str(file) in is_refused(opened(kind, file), capsys)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{}", b'{"schema": "\xff"}', b"\x00", b"{", b"null", b"[1]"])
@pytest.mark.parametrize("kind", ["chain", "report"])
def test_files_that_are_no_json_of_theirs_are_refused(
    kind: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    assert str(file) in is_refused(opened(kind, file), capsys)


def test_a_sweep_s_journal_that_is_nested_too_deep_is_refused(tmp_path: Path) -> None:
    from tests.sweeps.test_store import GRID

    file = tmp_path / "rows.csv"
    (tmp_path / "rows.csv.journal").write_text('{}\n{"id":' + "[" * 100_000 + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match="is no journal of a sweep"):
        Store(GRID, [str(file)], resume=True)


RED = "\x1b[31mred\x07\u202e"


def test_control_characters_of_a_report_reach_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In names that are shown, and in those that a message names."""
    content = json.loads(json.dumps(sample.report().to_dict()).replace("linear", json.dumps(RED)[1:-1]))
    file = tmp_path / "report.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    assert main(["report", str(file), "--layers"]) == 0
    printed = capsys.readouterr().out
    assert "\\x1b[31mred" in printed
    assert all(line.isprintable() for line in printed.splitlines())
    for run in content["runs"]:
        run["policy"] = RED
        run["saved_bytes"] += 1
    file.write_text(json.dumps(content), encoding="utf-8")
    is_refused(["report", str(file)], capsys)


ODD = [None, True, -1, 0, 1, 10**6, 2**64, -(2**70), 1.5, 1e308, "", "forward", RED, [], {}, [0], {"a": 1}, [[]]]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything inside a value of JSON."""
    for key in value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0):
        yield (*path, key)
        yield from places(value[key], (*path, key))


def damaged(content: Any, r: random.Random) -> Any:
    """The same with one thing in it removed, repeated, off by a little, or something else."""
    content = copy.deepcopy(content)
    *above, key = r.choice(list(places(content)))
    parent = content
    for step in above:
        parent = parent[step]
    how = r.random()
    if how < 0.2:
        del parent[key]
    elif how < 0.4 and isinstance(parent, list):
        parent.insert(0, copy.deepcopy(parent[key]))
    elif how < 0.6 and type(parent[key]) is int:
        parent[key] += r.choice([-5, -1, 1, 2])
    else:
        parent[key] = r.choice(ODD)
    return content


def holds(stored: dict[str, Path], kind: str, seeds: range) -> None:
    content = json.loads(stored[kind].read_text(encoding="utf-8"))
    refused = 0
    for seed in seeds:
        text = json.dumps(damaged(content, random.Random(seed)))
        try:
            Report.from_json(text) if kind == "report" else ModelPlan.from_dict(json.loads(text))
        except UsageError:
            refused += 1
    assert refused > len(seeds) / 4


@pytest.mark.parametrize("kind", ["chain", "graph", "report"])
def test_a_damaged_file_is_refused_or_read(kind: str, stored: dict[str, Path]) -> None:
    holds(stored, kind, range(60))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["chain", "graph", "report"])
def test_many_damaged_files_are_refused_or_read(kind: str, stored: dict[str, Path]) -> None:
    holds(stored, kind, range(100, 4000))
