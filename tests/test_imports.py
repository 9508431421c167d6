"""Imports go one way, so that a room can be understood from those before it alone.

Those for a type checker alone count as all others. Those in functions, for what few calls need, count where nothing
else is said.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import memback

ROOT = Path(memback.__file__).parent

ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "": (
        ("_moved", "_version", "errors", "extras", "glossary", "printable"),
        ("units", "files"),
        ("engine",),
        ("dry", "ops"),
        ("nn",),
        ("models", "optim", "data"),
        ("profiling",),
        ("notes", "plans"),
        ("__init__", "reports"),
        ("fitting",),
        ("bridges",),
        ("sweeps",),
        ("commands", "pytest_plugin"),
        ("__main__",),
    ),
    "dry": (
        ("layout", "memory", "registry"),
        ("array", "loops"),
        ("functions", "mode"),
        ("__init__",),
    ),
    "plans": (
        ("budget", "data", "linear_program", "saved"),
        ("actions", "stage"),
        ("simulate",),
        ("links",),
        ("segments",),
        ("calls", "chain", "graph"),
        ("registry",),
        ("model",),
        ("__init__",),
    ),
    "bridges/torch": (
        ("recording",),
        ("loading",),
        ("hugging_face",),
        ("source",),
        ("device",),
        ("planning",),
        ("largest", "profile"),
        ("profile_step",),
        ("ranks",),
        ("__init__",),
    ),
}
"""By folder, what is in it, each with those that it may not import: its own line's others, and every later line's."""

LATE = {
    # a report writes itself, and shows itself in a terminal and a notebook, by formats that are built on it
    "memback.profiling.report": {"memback.reports", "memback.reports.html", "memback.reports.text"},
    # a plan gives itself as a file and as code
    "memback.bridges.torch.planning.base": {"memback.bridges.torch.planning.plan_files"},
    "memback.bridges.torch.planning.block_plan": {
        "memback.bridges.torch.planning.code",
        "memback.bridges.torch.planning.plan_files",
    },
    "memback.bridges.torch.planning.call_plan": {"memback.bridges.torch.planning.call_code"},
    "memback.plans.model.model_plan": {"memback.plans.model.files"},
}
"""By module, imports in its functions of modules that need it."""

RANKS = {folder: {name: rank for rank, line in enumerate(lines) for name in line} for folder, lines in ROOMS.items()}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("memback", *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def statements(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """The imports in a module, each with whether it is in a function, so that it is done when that is called."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, late
        yield from statements(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def modules_in(statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
    """The modules of memback that a statement imports, or imports names of."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    else:
        within = [f"{statement.module}.{alias.name}" for alias in statement.names]
        names = [name if name in MODULES else statement.module or "" for name in within]
    yield from (name for name in names if name in MODULES)


def imports(late: bool) -> dict[str, set[str]]:
    """By module, what it imports: all that its functions do when they are called, or all else."""
    return {
        name: {
            other
            for statement, is_late in statements(ast.parse(path.read_text(encoding="utf-8")))
            if is_late == late
            for other in modules_in(statement)
        }
        for name, path in MODULES.items()
    }


AT_ONCE, IN_FUNCTIONS = imports(late=False), imports(late=True)


def places(name: str) -> tuple[str, ...]:
    """Where a module is: its folders, and what it is called in the last."""
    return MODULES[name].relative_to(ROOT).with_suffix("").parts


def goes_up(name: str, other: str) -> str | None:
    """The folder in which an import goes against the order of the rooms; None where there is none."""
    for depth, (here, there) in enumerate(zip(places(name), places(other), strict=False)):
        if here != there:
            folder = "/".join(places(name)[:depth])
            ranks = RANKS.get(folder)
            return f"memback/{folder}" if ranks is not None and ranks[there] >= ranks[here] else None
    return None


def test_imports_for_a_type_checker_are_seen_and_those_in_functions_told_apart() -> None:
    code = "if TYPE_CHECKING:\n    from memback.engine import tape\ndef f():\n    import memback.errors"
    seen = [(list(modules_in(statement)), late) for statement, late in statements(ast.parse(code))]
    assert seen == [(["memback.engine.tape"], False), (["memback.errors"], True)]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_comes_before_it(name: str) -> None:
    for other in AT_ONCE[name] | IN_FUNCTIONS[name] - LATE.get(name, set()):
        assert goes_up(name, other) is None, f"{name} imports {other}: against the order in {goes_up(name, other)}"


def test_no_module_needs_one_that_needs_it() -> None:
    needed = {name: AT_ONCE[name] | IN_FUNCTIONS[name] - LATE.get(name, set()) for name in MODULES}
    try:
        TopologicalSorter(needed).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("name", LATE)
def test_a_late_import_is_an_exception_only_where_it_would_close_a_circle(name: str) -> None:
    assert LATE[name] <= IN_FUNCTIONS[name] - AT_ONCE[name]
    for other in LATE[name]:
        assert name in needs(other)


def needs(name: str) -> set[str]:
    """All that a module needs to be imported."""
    found = [name]
    for known in found:
        found += [other for other in AT_ONCE[known] if other not in found]
    return set(found)


@pytest.mark.parametrize("folder", ROOMS)
def test_every_room_has_its_place_in_the_order(folder: str) -> None:
    depth = len(Path(folder).parts)
    there = [places(name) for name in MODULES]
    assert {parts[depth] for parts in there if "/".join(parts[:depth]) == folder} == set(RANKS[folder])


def test_every_folder_of_folders_has_an_order() -> None:
    nested = {"/".join(places(name)[:depth]) for name in MODULES for depth in range(len(places(name)) - 1)}
    assert nested - {"bridges"} <= set(ROOMS)


def test_only_their_command_uses_the_notes() -> None:
    notes = {name for name in MODULES if name.startswith("memback.notes")}
    users = [name for name in MODULES if name not in notes and (AT_ONCE[name] | IN_FUNCTIONS[name]) & notes]
    assert users == ["memback.commands.notes"]
