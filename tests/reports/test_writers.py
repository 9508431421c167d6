from __future__ import annotations

from pathlib import Path

import pytest

from memback.errors import UsageError
from memback.reports import WRITERS, check, renderer, write
from tests.reports import sample

PICTURES = {".svg", ".png", ".speedscope.json"}
"""Formats with less in them, which have tests of their own."""


@pytest.mark.parametrize("suffix", sorted(WRITERS.keys() - PICTURES))
def test_every_format_holds_the_exact_totals(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"report{suffix}"
    report = sample.report()
    report.save(path)
    text = path.read_text(encoding="utf-8").replace(",", "")
    for run in report.runs:
        for total in (run.saved_bytes, run.predicted_peak_bytes, run.measured_peak_bytes):
            assert str(total) in text


def test_the_longer_of_two_suffixes_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WRITERS, ".layers.json", "memback.reports.csv:render")
    assert renderer("a.layers.json").__module__ == "memback.reports.csv"
    assert renderer("A.JSON").__module__ == "memback.reports.json"


@pytest.mark.parametrize("name", ["report", "report.xls", ".jsn"])
def test_an_unknown_suffix_is_refused_with_those_that_there_are(name: str, tmp_path: Path) -> None:
    for refuse in (check, lambda path: write(sample.report(), path)):
        with pytest.raises(UsageError, match=r"No report format for .*\.json, \.md, \.csv"):
            refuse(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_file_that_exists_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    path.write_text("mine")
    for refuse in (check, sample.report().save):
        with pytest.raises(UsageError, match="without --force"):
            refuse(path)
    assert path.read_text() == "mine"
    check(path, force=True)
    sample.report().save(path, force=True)
    assert "4,214,784" in path.read_text(encoding="utf-8")
