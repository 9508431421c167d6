"""Import paths of version 0.1 still lead to their names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import memback
from memback._moved import MOVED
from memback.engine.checkpoint import checkpoint


@pytest.mark.parametrize("path", MOVED)
def test_an_old_path_leads_to_every_public_name_that_it_had(path: str) -> None:
    old = import_module(path)
    for home in map(import_module, MOVED[path]):
        for name in home.__all__:
            with pytest.warns(DeprecationWarning, match=f"{path}.{name} is in {home.__name__} now"):
                assert getattr(old, name) is getattr(home, name)


def test_a_function_keeps_its_name_when_the_old_module_of_that_name_is_imported() -> None:
    import_module("memback.checkpoint")
    assert memback.checkpoint is checkpoint


def test_a_name_that_never_was_is_an_import_error() -> None:
    code = "from memback.tape import nothing"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert "ImportError: cannot import name 'nothing' from 'memback.tape'" in said


def test_memback_itself_uses_no_old_path() -> None:
    code = (
        "import memback, memback.plans.model, memback.commands, memback.reports, memback.sweeps;"
        f"import sys; assert not {{*sys.modules}} & {set(MOVED) - {'memback.checkpoint'}!r}"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
