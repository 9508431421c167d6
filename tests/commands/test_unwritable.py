"""A file that can't be written is noticed before the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memback.commands import main
from memback.profiling.workload import Workload

FOLDER = Path("/proc/self")  # where not even the system's administrator may make a file

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs a folder that can't be written to")


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "digits", "--save"],
        ["train", "digits", "--json"],
        ["profile", "digits", "-o"],
        ["profile", "digits", "--force", "--json"],
        ["plan", "digits", "--budget", "1MiB", "--save"],
        ["fit", "digits", "--budget", "1MiB", "--json"],
        ["sweep", "digits", "--grid", "batch=1,2", "-o"],
        ["sweep", "digits", "--grid", "batch=1,2", "--json"],
        ["notes", "--json"],
        ["list", "--json"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
def test_nothing_is_run_where_what_comes_out_could_not_be_written(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr(Workload, "build", run)
    suffix = "csv" if arguments[0] == "sweep" else "json"
    assert main([*arguments, str(FOLDER / f"x.{suffix}")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"Error: Could not write {FOLDER}/x.{suffix}")


def test_a_file_that_is_resumed_from_must_be_writable_to_be_saved_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "state"
    link.symlink_to(FOLDER / "x.st")
    assert main(["train", "digits", "--save", str(link), "--resume", str(link)]) == 1
    assert "Could not write" in capsys.readouterr().err
