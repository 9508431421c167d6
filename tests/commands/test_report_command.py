from __future__ import annotations

import json

import pytest

from memback.commands import main
from memback.reports import WRITERS
from tests.reports import sample


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "stored.json"
    sample.report().save(path)
    return path


def error(capsys):
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


def test_without_a_file_the_report_is_shown(stored, capsys):
    assert main(["report", str(stored)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint:sqrt" in out
    assert "4,214,784" in out


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_a_stored_report_is_written_in_any_format_as_the_report_itself_would_be(suffix, stored, tmp_path, capsys):
    path, direct = tmp_path / f"again{suffix}", tmp_path / f"direct{suffix}"
    assert main(["report", str(stored), "-o", str(path)]) == 0
    sample.report().save(direct)
    assert path.read_bytes() == direct.read_bytes()
    assert f"Wrote {path}" in capsys.readouterr().out.replace("\n", "")


def test_json_goes_to_standard_output_alone(stored, capsys):
    assert main(["report", str(stored), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == sample.report().to_dict()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "cut off"),
        (b'{"schema": "memback.rep', "cut off"),
        (b"\xff\xfe", "whole JSON document"),
        (b"[1, 2]", "not a report"),
        (b'{"format": "har"}', "it has no `schema`"),
        (b'{"schema": "memback.report/99"}', "newer schema"),
        (b'{"schema": "memback.diff/1"}', "not a report"),
        (b'{"schema": "memback.report/1"}', "missing required field"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(content, reason, tmp_path, capsys):
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    assert main(["report", str(path), "-o", str(tmp_path / "out.html")]) == 2
    assert reason in error(capsys)
    assert not (tmp_path / "out.html").exists()


def test_a_stored_report_that_was_cut_off_anywhere_is_refused(stored, tmp_path, capsys):
    whole = stored.read_bytes()
    cut = tmp_path / "cut.json"
    for end in range(0, len(whole) - 2, len(whole) // 40):
        cut.write_bytes(whole[:end])
        assert main(["report", str(cut), "--quiet"]) == 2
    assert "cut off" in error(capsys)


@pytest.mark.parametrize(("name", "reason"), [("x.pdf", "No report format"), ("stored.json", "without --force")])
def test_a_file_that_can_not_be_written_is_refused(name, reason, stored, tmp_path, capsys):
    assert main(["report", str(stored), "-o", str(tmp_path / name)]) == 2
    assert reason in error(capsys)


def test_a_report_that_is_not_there_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path / "missing.json")]) == 2
    assert "no such file" in error(capsys)
