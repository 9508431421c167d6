"""Names and paths are shown as they are, by every subcommand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memback.commands import main

NAME = "[/x][bold]a[/bold]:bomb:[link=http://x]\x1b[31m\x9b2J"
SHOWN = r"[/x][bold]a[/bold]:bomb:[link=http://x]\x1b[31m\x9b2J"
FILE = "[b]:bomb:[red]"

PROFILE = f"""
name = {json.dumps(NAME)}
model = {{ name = "mlp", inputs = 8, outputs = 10, hidden = [16, 16, 16, 16] }}
data = {{ name = "random", shape = [8], batch = 256 }}
train = {{ steps = 2 }}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    Path("p.toml").write_text(PROFILE.replace("\x9b", "\\u009b"), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["train", "p.toml", "--save", f"{FILE}.st", "--json", f"{FILE}.json"], [f"{FILE}.st", f"{FILE}.json"]),
        (
            ["profile", "p.toml", "--dry", "-o", f"{FILE}.html", "-o", "x.csv", "--json", "y"],
            [f"{FILE}.html", "x.csv", "y"],
        ),
        (["plan", "p.toml", "--budget", "100KB", "--save", f"{FILE}.plan"], [f"{FILE}.plan"]),
        (["fit", "p.toml", "--budget", "1MB", "--json", FILE], [FILE]),
        (["fit", "p.toml", "--budget", "100KB", "--json", FILE], [FILE]),
        (["fit", "p.toml", "--find", "batch", "--budget", "100KB"], []),
        (["sweep", "p.toml", "--grid", "batch=1,2", "--workers", "1", "-o", f"{FILE}.csv"], [f"{FILE}.csv"]),
    ],
    ids=lambda value: value[0] if value else "",
)
def test_no_name_is_read_as_markup(
    arguments: list[str], files: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert SHOWN in shown
    assert not any(c for c in shown if not c.isprintable() and c != "\n")
    assert {path.name for path in folder.iterdir()} == {"p.toml", *files}
    for file in files:
        if "." in file and not file.endswith(".json"):
            assert f" {file}" in shown


def test_stored_files_are_shown_by_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.json", "b.json"):
        assert main(["profile", "p.toml", "--dry", "-o", name]) == 0
    capsys.readouterr()
    assert main(["report", "a.json", "-o", f"{FILE}.md"]) == 0
    assert main(["diff", "a.json", "b.json", "-o", f"{FILE}.txt"]) == 0
    shown = capsys.readouterr().out
    assert f"Wrote {FILE}.md\n" in shown
    assert f"Wrote {FILE}.txt\n" in shown


def test_json_on_standard_output_has_no_control_characters(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "p.toml", "--dry", "--json", "-"]) == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["profile"]["name"] == NAME
    assert not any(c for c in shown if not c.isprintable() and c != "\n")
