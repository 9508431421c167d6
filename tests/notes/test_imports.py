from __future__ import annotations

import ast
from pathlib import Path

import memback

ROOT = Path(memback.__file__).parent
LATER = ("memback.plans", "memback.reports", "memback.commands", "memback.bridges")


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def test_the_notes_use_nothing_that_comes_after_profiling():
    files = list((ROOT / "notes").glob("*.py"))
    assert len(files) > 5
    for file in files:
        assert not [name for name in imported(file) if name.startswith(LATER)], file


def test_only_their_command_uses_the_notes():
    users = [
        file.relative_to(ROOT).as_posix()
        for file in ROOT.rglob("*.py")
        if file.parent.name != "notes" and any(name.startswith("memback.notes") for name in imported(file))
    ]
    assert users == ["commands/notes.py"]
