"""Random numbers in any shape: nothing to learn, but the memory of real data."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from msgspec import Meta

from memback.data.dataset import INTEGER, Dataset, Layout, floating
from memback.engine.arrays import Array

__all__ = ["layout_of_random", "load_random"]

Positive = Annotated[int, Meta(ge=1)]


def load_random(
    dtype: str = "float32",
    *,
    shape: list[Positive],
    task: Literal["classification", "regression", "segmentation", "sequence"] = "classification",
    outputs: list[Positive] | None = None,
    classes: Positive = 10,
    samples: Annotated[int, Meta(ge=2)] = 64,
    seed: Annotated[int, Meta(ge=0)] = 0,
) -> Dataset:
    """Seeded noise of a given sample shape, for any task; a fifth are test samples.

    ``x`` is (n, *shape), standard normal. ``y`` is (n,) in [0, classes) for classification, (n, *shape[1:])
    likewise for segmentation of images (channels first), and standard normal of shape (n, *outputs), by
    default that of x, for regression. For sequences both are classes, in shape (n, *shape).
    """
    random = np.random.default_rng(seed)

    def normal(size: list[int]) -> Array:
        return random.standard_normal((samples, *size), np.float32).astype(floating(dtype))

    def label(size: list[int]) -> Array:
        return random.integers(classes, size=(samples, *size))

    sample = layout_of_random(dtype, shape=shape, task=task, outputs=outputs)
    x = label(shape) if task == "sequence" else normal(shape)
    y = normal([*sample.y_shape]) if task == "regression" else label([*sample.y_shape])
    train = samples - max(1, samples // 5)
    return Dataset("random", x[:train], y[:train], x[train:], y[train:])


def layout_of_random(
    dtype: str = "float32",
    *,
    shape: list[int],
    task: str = "classification",
    outputs: list[int] | None = None,
    classes: int = 10,
    samples: int = 64,
    seed: int = 0,
) -> Layout:
    """What a sample of :func:`load_random` looks like."""
    numbers = floating(dtype)
    if task == "regression":
        return Layout(tuple(shape), numbers, tuple(shape if outputs is None else outputs), numbers)
    target = {"classification": [], "segmentation": shape[1:], "sequence": shape}[task]
    return Layout(tuple(shape), INTEGER if task == "sequence" else numbers, tuple(target), INTEGER)
