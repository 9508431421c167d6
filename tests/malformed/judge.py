"""What must hold of whatever is read."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memback.errors import UsageError

__all__ = ["LONGEST", "hold", "numbered", "refusal"]

LONGEST = 1500
"""Characters of a message."""

MOST = 48 * 2**20
"""Bytes that reading a small file may take."""


def numbered(few: int, more: int = 1000) -> Any:
    """Changes 0 to ``few`` always, and three times ``more`` of them in the tests that take long."""
    long = [
        pytest.param(range(start, start + more), marks=pytest.mark.long, id=f"{start}")
        for start in range(1000, 1000 + 3 * more, more)
    ]
    return pytest.mark.parametrize("numbers", [pytest.param(range(few), id="few"), *long])


def refusal(read: Callable[[], Any]) -> str | None:
    """What is said against something, or None; anything but a refusal is raised."""
    said = None
    tracemalloc.start()
    try:
        read()
    except UsageError as error:
        said = str(error)
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < MOST
    assert said is None or 0 < len(said) <= LONGEST, f"{said:.500}"
    return said


def hold(numbers: range, file: Path, change: Callable[[int], bytes], read: Callable[[Path], Any]) -> None:
    """Each change of a file is read or refused, and some are refused; the folder stays as it is."""
    messages = []
    for number in numbers:
        data = change(number)
        file.write_bytes(data)
        messages.append(refusal(lambda: read(file)))
        assert file.read_bytes() == data
        assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert any(messages)
