"""Data from a file: an .npz archive of NumPy arrays."""

from __future__ import annotations

import math
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.lib.format as npy

from memback.data.dataset import INTEGER, Dataset, Layout, floating
from memback.engine.arrays import Array
from memback.errors import UsageError, shorten
from memback.files import check_regular

__all__ = ["layout_of_npz", "load_npz"]


_NAMES = ("x", "y", "x_test", "y_test")

_MOST_DEFLATED = 1032
"""Bytes that one byte of an archive can stand for (RFC 1951: a match of 258 bytes in 2 bits)."""

_DAMAGED = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, struct.error),
    *(SyntaxError, tokenize.TokenError, TypeError, RecursionError),  # of a header, which is a literal
    *(NotImplementedError, RuntimeError),  # another compression, a password
)
"""What reading a damaged archive can raise."""

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
    """Describe a sample of :func:`load_npz` from the file's headers alone."""
    headers = _headers(Path(path))
    described: list[Any] = []
    for name in ("x", "y"):
        shape, kind = _checked(headers, name, Path(path))
        described += [shape[1:], floating(dtype) if kind.kind == "f" else INTEGER]
    return Layout(*described)


def _headers(path: Path) -> dict[str, Header]:
    with _opened(path) as archive:
        return {name: _header(archive, member) for name, member in _members(archive, path).items()}


def _read(path: Path) -> dict[str, Array]:
    """The arrays of these names. Every header is checked against the file before anything is allocated."""
    with _opened(path) as archive:
        arrays = {}
        for name, member in _members(archive, path).items():
            _header(archive, member)
            with archive.open(member) as file:
                arrays[name] = npy.read_array(file, allow_pickle=False)
        return arrays


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with _errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of headers that Python 2 has written
        check_regular(path)
        with path.open("rb") as file:
            if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
                raise UsageError(f"{path} is a single array; save x and y with numpy.savez(path, x=..., y=...)")
            with zipfile.ZipFile(file) as archive:
                yield archive


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive with these arrays, by the array's name.

    Raises:
        UsageError: one is missing.
    """
    named = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    wanted = _NAMES if {"x_test", "y_test"} & named.keys() else _NAMES[:2]
    for name in wanted:
        if name not in named:
            there = shorten(", ".join(sorted(named)) or "none")
            raise UsageError(f"{path} has no array {name!r}; it has {there}")
    return {name: named[name] for name in wanted}


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    """The shape and dtype in an array's header, if the file can hold as much.

    Raises:
        ValueError: it can't, or the header is none.
    """
    packed = min(member.compress_size, os.fstat(archive.fp.fileno()).st_size)  # type: ignore[union-attr]
    with archive.open(member) as file:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        try:
            shape, _, dtype = read(file)
        except MemoryError:
            raise ValueError(f"the header of {member.filename} is nested too deeply") from None
        begins = file.tell()
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"{member.filename} has the shape {shorten(shape)}")
    claimed = begins + math.prod(shape) * dtype.itemsize
    if claimed > packed * (1 if member.compress_type == zipfile.ZIP_STORED else _MOST_DEFLATED):
        raise ValueError(f"{member.filename} says that it has {shorten(f'{claimed:,}')} B, but {packed:,} B are there")
    return shape, dtype


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    """Turn what reading can raise into one message that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise UsageError(
            f"There is no data file {shorten(path)}; a relative path starts from the profile's folder"
        ) from None
    except _DAMAGED as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{shorten(path)} can't be read as an .npz archive of plain arrays: {shorten(why)}") from error


def _checked(headers: Mapping[str, Header], name: str, path: Path) -> Header:
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
