"""What an op costs besides its arithmetic, counted in calls: the same number each time, which seconds are not."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes  # noqa: F401 - as in a process that has bfloat16, where an op looks for it
import numpy as np
import pytest

import memback as mb
from memback import models
from memback.engine.tape import Tape

DEPTH, WIDTH = 20, 16


def _step() -> tuple[int, Counter[str]]:
    """Ops, and calls, of a step through twenty hidden layers of sixteen, with a batch of one: overhead alone."""
    model = models.MLP(WIDTH, WIDTH, width=WIDTH, depth=DEPTH, objective="sqerr")
    x, y = (np.ones((1, WIDTH), np.float32) for _ in range(2))
    model.loss(x, y).backward()  # what is found out once is found out
    model.zero_grad()
    with Tape() as tape:
        made: list[mb.Tensor] = []
        forward = _calls(lambda: made.append(model.loss(x, y)))
        return len(tape), forward + _calls(made[0].backward)


def _in_a_new_thread(function: Callable[[], Any]) -> Any:
    """Where no other test has left a tape."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _calls(function: Callable[[], object]) -> Counter[str]:
    """How often Python functions (``call``) and built-in ones (``c_call``) are called."""
    counted: Counter[str] = Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        counted[event] += 1

    before = sys.getprofile()
    gc.collect()
    gc.disable()  # or it would free, and so call, what other tests have left
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
        gc.enable()
    return counted


def test_an_op_forward_and_backward_takes_no_more_calls_than_it_has_to() -> None:
    ops, counted = _in_a_new_thread(_step)
    assert ops == 2 * DEPTH + 2
    assert counted["call"] <= 32 * ops
    assert counted["c_call"] <= 23 * ops


def test_every_step_takes_the_same_calls() -> None:
    assert _in_a_new_thread(_step) == _in_a_new_thread(_step)


# -- start


def _modules(code: str) -> set[str]:
    """What is loaded after ``code`` has run in a new process."""
    code += "\nimport sys\nsys.stderr.write(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split())


def test_importing_memback_loads_next_to_nothing_besides_numpy() -> None:
    loaded = _modules("import memback") - _modules("import numpy")
    others = {name.partition(".")[0] for name in loaded} - {"memback"}
    assert others <= {"__future__", "copy", "dataclasses", "fnmatch", "threading", "copyreg", "keyword", "inspect"}


@pytest.mark.parametrize(
    "package", ["models", "plans", "profiling", "reports", "commands", "notes", "data", "optim", "engine.allocator"]
)
def test_parts_that_an_import_does_not_need_are_loaded_when_they_are_used(package: str) -> None:
    assert not any(name.startswith(f"memback.{package}") for name in _modules("import memback"))


HELP = """
import runpy, sys
sys.argv, sys.stdout = ["memback", "--help"], open(__import__("os").devnull, "w")
try:
    runpy.run_module("memback", run_name="__main__")
except SystemExit:
    pass
"""


def test_help_does_not_load_what_only_a_command_needs() -> None:
    loaded = _modules(HELP)
    assert "rich_click" in loaded
    assert not {"msgspec", "psutil", "ml_dtypes", "safetensors", "numpy.random", "plotly", "torch", "highspy"} & loaded
    assert not any(name.startswith(("memback.profiling", "memback.plans", "memback.models")) for name in loaded)


def test_the_count_sees_a_call_more() -> None:
    extra = mb.ops.relu.forward
    array = np.ones(1)
    assert _calls(lambda: extra(array))["call"] == _calls(lambda: None)["call"] + 1
