from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

from memback.glossary import MODES, TERMS
from memback.profiling.report import Run
from memback.reports.html import render
from tests.reports import sample

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_readme_has_the_same_glossary() -> None:
    table = README.split("| term | meaning |\n|---|---|\n")[1].split("\n\n")[0]
    assert [tuple(line.strip("| ").split(" | ")) for line in table.splitlines()] == list(TERMS.items())


def test_the_readme_says_the_same_of_the_modes() -> None:
    words = re.sub(r"\s+", " ", README)
    for mode, meaning in MODES.items():
        assert re.search(rf"\*\*{mode}(:POLICY)?\*\* {re.escape(meaning)}", words), mode
    assert set(MODES) == set(get_args(get_type_hints(Run)["mode"]))


def test_every_html_report_has_the_glossary() -> None:
    page = re.sub(r"</?(code|em)>", "", render(sample.report()))
    for term, meaning in TERMS.items():
        plain = re.sub(r"[`*]", "", meaning).replace("'", "&#39;")
        assert f"<dt>{term}</dt><dd>{plain}</dd>" in page
