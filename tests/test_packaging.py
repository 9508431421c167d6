from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from memback._version import __version__
from memback.extras import REQUIREMENTS, how_to_install

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


def test_a_message_asks_for_the_libraries_that_the_extras_ask_for(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    asked_for = [line for name in ("fast", "hf", "plots", "sweep", "torch") for line in extras[name]]
    assert sorted(REQUIREMENTS.values()) == sorted(asked_for)
    assert all(requirement.startswith(f"{name}>=") for name, requirement in REQUIREMENTS.items())
    assert how_to_install("numba", "torch") == f"pip install '{REQUIREMENTS['numba']}' '{REQUIREMENTS['torch']}'"


INSTALL = re.compile(r"(?:\bpip|PIP\)?|\buv)\b[^\n`]*? (?:install|wheel|add) ([^\n`]*)")
NAME = re.compile(r"[A-Za-z][\w.-]*(?=$|[\[<>=!~])")
WITH_A_VALUE = {"-c", "-r", "-w", "--wheel-dir"}


def named(line: str) -> set[str]:
    """Distributions that a line has pip take from the package index; paths, files and options are none."""
    found = set()
    for asked in INSTALL.findall(line):
        words = iter(re.split(r"\s+", re.split(r"[;|&#]|, | \\$", asked)[0].strip()))
        for word in words:
            if word in WITH_A_VALUE:
                next(words, None)
                continue
            word = word.strip("'\",.:()")
            if "/" not in word and not word.endswith(".whl") and (name := NAME.match(word)):
                found.add(canonicalize_name(name[0]))
    return found


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("$ pip install memback", {"memback"}),
        ("needs it: pip install 'memback[torch]', or", {"memback"}),
        ("run: python -m pip install -c ci/constraints.txt ci/memback_profiler-0.1.0-py3-none-any.whl", set()),
        ("$ python -m pip install .  # or '.[torch]'", set()),
        ("python -m pip wheel --no-deps --wheel-dir dist .", set()),
        ("(``pip install 'numba>=0.63'``)", {"numba"}),
        ("\t$(PIP) torch==2.13.0", set()),
    ],
)
def test_what_a_line_installs_is_seen(line: str, names: set[str]) -> None:
    assert named(line) == names


def texts() -> list[Path]:
    """All that tells people or machines what to install, but for the changelog, and what the tests above look at."""
    found = [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".cff", ".yml", ".txt"}]
    found += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    for folder in ("memback", "docs", "benchmarks", "profiles"):
        found += [
            path for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".py", ".ipynb", ".jinja", ".js"}
        ]
    return [path for path in found if path.is_file() and path.name not in {"extras.py", Path(__file__).name}]


def test_nothing_installs_a_distribution_that_is_not_known(project: dict[str, Any]) -> None:
    """Neither another project's of the name ``memback``, nor this one's from an index that does not have it yet."""
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    known = {canonicalize_name(Requirement(line).name) for group in groups for line in group}
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert named(line) <= known, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
            assert not re.search(r"\bmemback\[(?:fast|hf|plots|sweep|torch|test|docs|browser)\]", line), (
                f"{path}:{number}"
            )


def test_pages_name_the_wheel_of_this_version() -> None:
    named_in = [re.findall(r"memback_profiler-([\d.]+\d)", path.read_text(encoding="utf-8")) for path in texts()]
    assert {version for versions in named_in for version in versions} == {__version__}


def test_the_licence_and_the_citation_are_of_this_version(project: dict[str, Any]) -> None:
    assert project["name"] == "memback-profiler"
    assert project["license"] == "MIT AND CC-BY-4.0"  # the code, and the data of the digits
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 the memback authors\n")
    citation = (ROOT / "CITATION.cff").read_text()
    for line in ("cff-version: 1.2.0", "title: memback", f"version: {__version__}", "license: MIT"):
        assert f"\n{line}\n" in f"\n{citation}"
    assert "urls" not in project  # there is no place yet that one could name


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[zipfile.ZipFile, tarfile.TarFile]:
    """The wheel and the source distribution, as pip has them built."""
    pytest.importorskip("hatchling", reason="needs the extra test")
    folder = tmp_path_factory.mktemp("dist")
    for kind in ("wheel", "sdist"):
        code = f"import sys; from hatchling import build; build.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True, capture_output=True)
    stem = f"memback_profiler-{__version__}"
    return zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl"), tarfile.open(folder / f"{stem}.tar.gz")


def test_the_licence_travels_with_the_wheel_and_the_source(built: tuple[zipfile.ZipFile, tarfile.TarFile]) -> None:
    wheel, source = built
    info = f"memback_profiler-{__version__}.dist-info"
    metadata_of = wheel.read(f"{info}/METADATA").decode()
    for line in ("Name: memback-profiler", "License-Expression: MIT AND CC-BY-4.0", "License-File: LICENSE"):
        assert f"\n{line}\n" in metadata_of
    assert "Project-URL" not in metadata_of
    names = set(wheel.namelist())
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/memback/data/DIGITS.md", "memback/__init__.py"} <= names
    assert {f"memback/profiles/{path.name}" for path in (ROOT / "profiles").iterdir()} <= names
    assert "memback = memback.commands:main" in wheel.read(f"{info}/entry_points.txt").decode()
    top = f"memback_profiler-{__version__}"
    files = ("LICENSE", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "README.md", "pyproject.toml", "cli.py")
    assert {f"{top}/{name}" for name in files} <= set(source.getnames())


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
