"""Import paths of version 0.1 still lead to their names."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

import memback
from memback._moved import MOVED
from memback.engine.checkpoint import checkpoint

DIVIDED = {
    "memback.arrays": (
        "Array Buffer argument_like buffer_bytes distinct_bytes forgotten is_array is_whole "
        "is_writeable leaves root stand_in"
    ),
    "memback.ledger": (
        "CATEGORIES EXCHANGED Account Accounts Buffer Category Event Interval Ledger Row SavedValue Tape peak_of"
    ),
    "memback.packing": "Packed PackedValue saved_tensors_hooks",
    "memback.profiling.passes": "MODES DryLedger Mode Peak Prediction RssSampler Seconds Step dry_arguments",
    "memback.shape_array": (
        "DryMemory NoValuesError ShapeArray UnsupportedError dry_memory fresh_dry_memory is_shape_array"
    ),
    "memback.tape": (
        "AnomalyError Edge Node Observer Site Tape TapeError Tensor TensorOperators describe "
        "detect_anomaly no_grad short_path"
    ),
}
"""By the path of a module that is in several now, the public names that it had."""


@pytest.mark.parametrize("path", MOVED)
def test_an_old_path_leads_to_every_public_name_that_it_had(path: str) -> None:
    old = import_module(path)
    for home in map(import_module, MOVED[path]):
        for name in home.__all__:
            with pytest.warns(DeprecationWarning, match=f"{path}.{name} is in {home.__name__} now"):
                assert getattr(old, name) is getattr(home, name)


@pytest.mark.parametrize("path", DIVIDED)
def test_every_public_name_of_a_divided_module_is_in_one_of_those_that_it_became(path: str) -> None:
    homes = [import_module(home) for home in MOVED[path]]
    assert [name for name in DIVIDED[path].split() if sum(name in home.__all__ for home in homes) != 1] == []


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
