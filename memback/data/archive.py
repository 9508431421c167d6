"""Data from a file: an .npz archive of NumPy arrays."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.lib.format as npy

from memback.arrays import Array
from memback.data.dataset import INTEGER, Dataset, Layout, floating
from memback.errors import UsageError

__all__ = ["layout_of_npz", "load_npz"]


Header: TypeAlias = "tuple[tuple[int, ...], np.dtype[Any]]"
"""An array's shape and dtype."""


def load_npz(dtype: str = "float32", *, path: str) -> Dataset:
    """Arrays x and y from an .npz file; x_test and y_test too, or else every fifth sample is a test sample.

    Samples are rows of the first axis. Floating arrays are converted to ``dtype``. The file is data: nothing
    in it is run, and an archive of Python objects is refused.

    Raises:
        UsageError: the file can't be read, or its arrays are missing, of another kind or don't fit together.
    """
    arrays = _read(Path(path))
    x, y = _pair(arrays, "x", "y", path, dtype)
    if "x_test" in arrays or "y_test" in arrays:
        x_test, y_test = _pair(arrays, "x_test", "y_test", path, dtype)
        if x_test.shape[1:] != x.shape[1:] or y_test.shape[1:] != y.shape[1:]:
            raise UsageError(
                f"{path}: test samples have shapes {x_test.shape[1:]} and {y_test.shape[1:]}, training"
                f" samples {x.shape[1:]} and {y.shape[1:]}; they must be the same"
            )
        return Dataset("npz", x, y, x_test, y_test)
    if len(x) < 2:
        raise UsageError(f"{path}: one sample can't be split into training and test; add some, or x_test and y_test")
    test = np.arange(len(x)) % 5 == min(4, len(x) - 1)
    return Dataset("npz", x[~test], y[~test], x[test], y[test])


def layout_of_npz(dtype: str = "float32", *, path: str) -> Layout:
    """What a sample of :func:`load_npz` looks like: the file's headers are read, and nothing else of it."""
    headers = _headers(Path(path))
    described: list[Any] = []
    for name in ("x", "y"):
        shape, kind = _checked(headers, name, Path(path))
        described += [shape[1:], floating(dtype) if kind.kind == "f" else INTEGER]
    return Layout(*described)


def _headers(path: Path) -> dict[str, Header]:
    with _errors(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}


def _header(archive: zipfile.ZipFile, name: str) -> Header:
    with archive.open(name) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _read(path: Path) -> dict[str, Array]:
    with _errors(path), path.open("rb") as file:
        archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise UsageError(f"{path} is a single array; save x and y with numpy.savez(path, x=..., y=...)")
        return dict(archive)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what reading can raise into one message that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(f"There is no data file {path}; a relative path starts from the profile's folder") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UsageError(f"{path} can't be read as an .npz archive of plain arrays: {error}") from error


def _checked(headers: Mapping[str, Header], name: str, path: Path) -> Header:
    if name not in headers:
        raise UsageError(f"{path} has no array {name!r}; it has {', '.join(sorted(headers)) or 'none'}")
    shape, dtype = headers[name]
    if dtype.kind not in "biuf" or not shape:
        raise UsageError(
            f"{path}: {name} is a {dtype} array of shape {shape}; it must hold integers or floats, one sample a row"
        )
    return shape, dtype


def _pair(arrays: dict[str, Array], x_name: str, y_name: str, path: str, dtype: str) -> tuple[Array, Array]:
    headers = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    pair = []
    for name in (x_name, y_name):
        _, kind = _checked(headers, name, Path(path))
        pair.append(np.ascontiguousarray(arrays[name], floating(dtype) if kind.kind == "f" else kind))
    if len(pair[0]) != len(pair[1]) or len(pair[0]) == 0:
        raise UsageError(
            f"{path}: {x_name} has {len(pair[0])} samples, {y_name} has {len(pair[1])}; give as many of each"
        )
    return pair[0], pair[1]
