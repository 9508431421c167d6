"""What the documentation's pages tell their readers to do works as it stands there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from memback.commands import main
from memback.engine.op import REGISTRY
from memback.plans import PLANNERS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [str(path.relative_to(DOCS)) for path in sorted(DOCS.rglob("*.md"))]
RUN = re.compile(r'^```(python|console) exec="on".*?\n(.*?)^```', re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """Pages register ops and planners."""
    known = dict(REGISTRY), dict(PLANNERS)
    yield
    for registry, before in zip((REGISTRY, PLANNERS), known, strict=True):
        registry.clear()
        registry.update(before)


def blocks(page: str) -> list[tuple[str, str]]:
    return RUN.findall((DOCS / page).read_text(encoding="utf-8"))


LARGE = {"how-to/fit-in-8-gib.md"}
"""Pages about models whose plans take their time; the site's build runs them, too."""


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.long] * (page in LARGE)) for page in PAGES if blocks(page)]
)
def test_a_page_s_code_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    for kind, code in blocks(page):
        if kind == "python":
            exec(compile(code, page, "exec", dont_inherit=True), names)
            continue
        for line in code.splitlines():
            command = shlex.split(line.removeprefix("$ "))
            if command[0] == "memback":
                assert main(command[1:]) == 0, line


def run_on_what_a_page_adds(
    module: str, page: str, head: str, only: str, folder: Path
) -> subprocess.CompletedProcess[str]:
    """The tests of what is registered, run on what a page adds to it."""
    code = "\n\n".join(code for kind, code in blocks(page) if kind == "python")
    (folder / "test_followed.py").write_text(f"{code}\n\n{head}\nfrom {module} import *\n", encoding="utf-8")
    options = ["-q", "-x", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", only, str(folder / "test_followed.py")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_op_of_the_page_passes_the_tests_of_every_op(tmp_path: Path) -> None:
    page = "how-to/add-an-op.md"
    case = re.search(
        r"^```python\n(_one_argument\(.*?\))\n```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE
    )
    assert case is not None
    head = f"""
from tests.ops.cases import Draw, _one_argument
{case[1]}
Softsign.__module__ = "memback.ops.softsign"
"""
    done = run_on_what_a_page_adds("tests.ops.test_every_op", page, head, "softsign", tmp_path)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 8


def test_the_planner_of_the_page_passes_the_tests_of_every_planner(tmp_path: Path) -> None:
    done = run_on_what_a_page_adds("tests.plans.test_planners", "how-to/add-a-planner.md", "", "halves", tmp_path)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 4


def test_the_workflow_of_the_ci_page_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "profiles" / "digits.toml", "model.toml")
    commands = re.findall(r"^ +(?:run: )?memback (.*)", (DOCS / "ci.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["profile", "profile", "diff"]
    for command in commands:
        assert main(shlex.split(command)) == 0
    assert Path("diff.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", sorted(DOCS.rglob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(notebook: Path) -> None:
    stored = json.loads(notebook.read_text(encoding="utf-8"))
    assert stored["nbformat"] == 4
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = re.findall(r"[\w-]*: ([\w/-]+\.(?:md|ipynb))$", site, re.MULTILINE)
    notebooks = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.ipynb")]
    assert sorted(pages) == sorted([*PAGES, *notebooks])
