"""Named arrays in safetensors files: a state on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from memback.errors import UsageError, shorten
from memback.files import check_regular, write_atomically

__all__ = ["read", "write"]


def write(
    path: str | os.PathLike[str],
    arrays: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write arrays and texts by name, whole or not at all.

    Raises:
        UsageError: the file exists and ``overwrite`` is false, or there is no such folder.
        MembackError: the system does not let it be written.
    """
    from safetensors.numpy import save

    content = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_atomically(path, save(content, dict(metadata or {})), overwrite)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The arrays of a safetensors file by name, and its texts.

    Raises:
        UsageError: there is no such file, or it is no whole safetensors file.
    """
    import ml_dtypes  # noqa: F401 - teaches NumPy bfloat16, which the file may hold
    from safetensors import SafetensorError, safe_open

    try:
        check_regular(path)
    except OSError as error:
        raise UsageError(f"There is no file {shorten(path)}, or none that can be read: {error.strerror}") from None
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} can't be read: it is no safetensors file, or not a whole one ({shorten(error)})"
        ) from error
