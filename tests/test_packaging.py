from __future__ import annotations

import os
import re
import tomllib
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from memback._version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def needed(requirements: list[str], found: set[str]) -> set[str]:
    """Names of all that these requirements bring with them, of what is installed here."""
    for requirement in map(Requirement, requirements):
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not wanted or name in found:
            continue
        try:
            further = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        found.add(name)
        needed(further, found)
    return found


def test_every_dependency_is_pinned_and_the_pin_satisfies_it(project: dict[str, Any], pinned: dict[str, str]) -> None:
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        assert requirement.specifier.contains(Version(pinned[canonicalize_name(requirement.name)]))


def test_what_the_dependencies_need_is_pinned_too(project: dict[str, Any], pinned: dict[str, str]) -> None:
    requirements = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    found = needed(requirements, set())
    assert {"numpy", "pytest", "iniconfig"} <= found
    assert found <= set(pinned)


def test_the_version_has_one_source_and_a_line_in_the_changelog(project: dict[str, Any]) -> None:
    assert "version" not in project
    assert project["dynamic"] == ["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[(Unreleased|{re.escape(__version__)})\]", changelog, re.MULTILINE)


def test_what_is_no_code_travels_with_the_package() -> None:
    package = files("memback")
    page = [f"reports/page/{name}" for name in ("report.html.jinja", "macros.html.jinja", "style.css", "app.js")]
    for name in ("py.typed", "data/digits.npz", "data/DIGITS.md", "reports/page/notebook.html.jinja", *page):
        assert package.joinpath(name).is_file()
    assert "CC BY 4.0" in package.joinpath("data/DIGITS.md").read_text()


@pytest.mark.skipif(os.name != "posix", reason="permissions of a POSIX system")
def test_the_script_that_checks_everything_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_every_make_target_says_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## \w", makefile, re.MULTILINE), target
