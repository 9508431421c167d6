"""Imports go one way, so that a room can be understood from those before it alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import memback

ROOT = Path(memback.__file__).parent

ORDER = (
    ("_moved", "_version", "errors", "extras", "glossary", "printable"),
    ("units", "files"),
    ("engine",),
    ("dry", "ops"),
    ("nn",),
    ("models", "optim", "data"),
    ("__init__",),
    ("profiling",),
    ("notes", "plans"),
    ("reports",),
    ("fitting", "bridges"),
    ("sweeps",),
    ("commands", "pytest_plugin"),
    ("__main__",),
)
"""Modules and packages, each with those that it may not import: its own line's others, and every later line's."""

RANK = {name: rank for rank, line in enumerate(ORDER) for name in line}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What is run when a module is imported: no function's body, nothing that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_import(child)


def rooms(nodes: Iterator[ast.AST]) -> set[str]:
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "memback":
            names |= {f"memback.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("memback.")}


FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


@pytest.mark.parametrize("name", FILES)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    here = room(FILES[name])
    for other in rooms(at_import(TREES[name])) - {here}:
        assert RANK[other] < RANK[here], f"{name} imports memback.{other} when it is imported"


def test_every_room_has_its_place_in_the_order() -> None:
    there = {room(path) for path in FILES.values()}
    assert there <= set(RANK)


def test_only_their_command_uses_the_notes() -> None:
    users = [name for name in FILES if "notes" in rooms(ast.walk(TREES[name])) and room(FILES[name]) != "notes"]
    assert users == ["commands/notes.py"]
