"""Functions of NumPy that write wrongly into some strided arrays (2.2 to 2.4 at least): none is called in that way."""

from __future__ import annotations

import ast
from pathlib import Path

import memback

FAULTY = {"isfinite", "isinf", "isnan", "negative", "signbit"}


def test_functions_that_write_wrongly_into_strided_arrays_write_into_their_own_operand_or_a_new_array():
    """``np.isnan(np.zeros(16), out=np.ones(32, bool)[::2])`` leaves True behind.

    In place, on an array without gaps, they are right.
    """
    calls = 0
    for file in Path(memback.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in FAULTY:
                calls += 1
                targets = [ast.dump(k.value) for k in call.keywords if k.arg == "out"]
                assert targets in ([], [ast.dump(call.args[0])]), f"{file.name}:{call.lineno}"
                assert len(call.args) == 1, f"{file.name}:{call.lineno}"
    assert calls > 5
