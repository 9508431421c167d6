"""The source of Python's own standard library as bytes, for next-byte prediction."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta

from memback.data.dataset import INTEGER, Dataset, Layout
from memback.errors import MembackError, UsageError

__all__ = ["layout_of_python_source", "load_python_source"]

_NOT_PYTHONS_OWN = {"site-packages", "dist-packages", "__pycache__"}


def load_python_source(
    dtype: str = "float32",
    *,
    sequence: Annotated[int, Meta(ge=1)] = 128,
    limit: Annotated[int, Meta(ge=2)] = 2**20,
) -> Dataset:
    """Bytes of Python's standard library; the target is the next byte (256 classes).

    ``x`` and ``y`` have shape (n, sequence), ``y`` one byte ahead. The first ``limit`` bytes of the installed
    .py files in sorted order are cut into windows, the last tenth of which are test samples. They are the
    same for the same installation. ``dtype`` is of no effect.

    Raises:
        MembackError: this installation comes without its source.
        UsageError: there are fewer than two windows.
    """
    text = np.frombuffer(_read(Path(sysconfig.get_path("stdlib")), limit), np.uint8)
    windows = (len(text) - 1) // sequence
    if windows < 2:
        raise UsageError(
            f"data.sequence (={sequence}) is too long for {len(text)} bytes of source: two windows must fit;"
            f" use at most {(len(text) - 1) // 2}, or a larger data.limit (={limit})"
        )
    used = windows * sequence
    x, y = text[:used].reshape(windows, sequence), text[1 : used + 1].reshape(windows, sequence)
    train = windows - max(1, windows // 10)
    return Dataset("python-source", x[:train], y[:train], x[train:], y[train:])


def layout_of_python_source(dtype: str = "float32", *, sequence: int = 128, limit: int = 2**20) -> Layout:
    """What a sample of :func:`load_python_source` looks like."""
    return Layout((sequence,), INTEGER, (sequence,), INTEGER)


def _read(folder: Path, limit: int) -> bytes:
    text = bytearray()
    for path in _sources(folder):
        text += path.read_bytes()
        if len(text) >= limit:
            break
    if len(text) < 2:
        raise MembackError(f"There are no .py files in {folder}; install Python's standard library with its source")
    return bytes(text[:limit])


def _sources(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _NOT_PYTHONS_OWN)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))
