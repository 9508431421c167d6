from __future__ import annotations

import json

import pytest

from memback.commands import main


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored")
    paths = folder / "a.json", folder / "b.json"
    for path, batch in zip(paths, ("64", "96"), strict=True):
        assert main(["profile", "digits", "--dry", "--quiet", "--batch", batch, "-o", str(path)]) == 0
    return [str(path) for path in paths]


def test_it_says_what_grew_and_why(stored, capsys):
    assert main(["diff", *stored]) == 0
    out = capsys.readouterr().out
    for words in ("full, saved bytes", "+50.00 %", "The peak of full", "Why the peak of full changed", "relu"):
        assert words in out


@pytest.mark.parametrize(("limit", "code"), [("60%", 0), ("50%", 0), ("49%", 1), ("1MiB", 0), ("10KiB", 1)])
def test_past_the_limit_the_exit_code_is_1(limit, code, stored, capsys):
    assert main(["diff", *stored, "--fail-above", limit, "--quiet"]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("memory grew past the limit" in printed.err) == bool(code)
    assert ("full: saved bytes grew" in printed.err) == bool(code)


def test_less_memory_breaks_no_limit(stored):
    assert main(["diff", *reversed(stored), "--fail-above", "0%", "--quiet"]) == 0


@pytest.mark.parametrize("suffix", [".md", ".txt", ".json"])
def test_it_is_written_even_past_the_limit(suffix, stored, tmp_path):
    path = tmp_path / f"diff{suffix}"
    assert main(["diff", *stored, "--fail-above", "5%", "--quiet", "-o", str(path)]) == 1
    text = path.read_text(encoding="utf-8")
    if suffix == ".json":
        assert json.loads(text)["runs"][1]["saved_bytes"]["kind"] == "grew"
    else:
        assert "full: saved bytes grew" in text
        assert "102,148" in text


def test_markdown_is_ready_for_a_pull_request(stored, tmp_path):
    path = tmp_path / "diff.md"
    assert main(["diff", *stored, "--fail-above", "5%", "--quiet", "-o", str(path)]) == 1
    text = path.read_text(encoding="utf-8")
    assert text.startswith("> **Past the limit.** ")
    assert text.count("<details>") == text.count("</details>") > 0
    assert "| full, saved bytes | 68,100 | 102,148 | **+34,048** | **+50.00 %** |" in text


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--fail-above", "much"], "write it as 5%"), (["-o", "diff.html"], "No format of a comparison for diff.html")],
)
def test_a_wrong_request_is_one_line(arguments, reason, stored, capsys):
    assert main(["diff", *stored, *arguments]) == 2
    assert reason in capsys.readouterr().err
