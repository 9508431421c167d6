"""Handwritten digits: 1797 images of 8x8 pixels (Alpaydin & Kaynak 1998; see DIGITS.md)."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from memback.data.dataset import INTEGER, Dataset, Layout, floating
from memback.engine.arrays import Array
from memback.errors import UsageError

__all__ = ["layout_of_digits", "load_digits"]

SIDE = 8
INK = 16
"""The largest pixel value."""


def load_digits(
    dtype: str = "float32",
    *,
    layout: Literal["flat", "image"] = "flat",
    size: Annotated[int, Meta(ge=SIDE)] = SIDE,
    target: Literal["label", "mask"] = "label",
) -> Dataset:
    """Handwritten digits, 8x8 pixels, 10 classes; every fifth of each digit is a test sample.

    ``x`` has pixels from 0 to 1 in shape (n, size²) or, as images, (n, 1, size, size), enlarged by repeating
    pixels. ``y`` is the digit (n,), or as a mask (n, size, size) 0 on paper and 1 + digit on ink: 11 classes.

    Raises:
        UsageError: ``size`` is no multiple of 8.
    """
    _check_size(size)
    with files("memback.data").joinpath("digits.npz").open("rb") as file, np.load(file) as archive:
        pixels, labels = archive["images"], archive["labels"]
    pixels = pixels.repeat(size // SIDE, axis=1).repeat(size // SIDE, axis=2)
    x = (pixels[:, None] / INK).astype(floating(dtype))
    if layout == "flat":
        x = x.reshape(len(x), -1)
    y = labels.astype(np.int64)
    test = _rank_within_class(y) % 5 == 4
    if target == "mask":
        y = np.where(pixels >= INK // 2, 1 + y[:, None, None], 0)
    return Dataset("digits", x[~test], y[~test], x[test], y[test])


def layout_of_digits(
    dtype: str = "float32", *, layout: str = "flat", size: int = SIDE, target: str = "label"
) -> Layout:
    """What a sample of :func:`load_digits` looks like."""
    _check_size(size)
    x = (size * size,) if layout == "flat" else (1, size, size)
    return Layout(x, floating(dtype), (size, size) if target == "mask" else (), INTEGER)


def _check_size(size: int) -> None:
    if size % SIDE:
        raise UsageError(f"data.size (={size}) must be a multiple of {SIDE}, the digits' own size")


def _rank_within_class(labels: Array) -> Array:
    """How many samples of the same class come before each."""
    # The file runs through the digits in turn, so every fifth of all samples would favour some digits.
    rank = np.empty_like(labels)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return rank
