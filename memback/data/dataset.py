"""Samples in memory, and the batches that a training run takes from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from memback.engine.arrays import Array

__all__ = ["INTEGER", "Dataset", "Layout", "floating"]

Batch: TypeAlias = tuple[Array, Array]


class Layout(NamedTuple):
    """What one sample looks like: shapes, and the dtypes in which a batch gives them. Known before any data is read."""

    x_shape: tuple[int, ...]
    x_dtype: np.dtype[Any]
    y_shape: tuple[int, ...]
    y_dtype: np.dtype[Any]

    def batch(self, size: int) -> tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]:
        """(shape, dtype) of ``x`` and of ``y`` in a batch of ``size`` samples."""
        return ((size, *self.x_shape), self.x_dtype), ((size, *self.y_shape), self.y_dtype)


@dataclass(frozen=True)
class Dataset:
    """Inputs ``x`` and targets ``y``, one sample a row of the first axis, split into training and test.

    Floating arrays have the dtype that was asked for. Integers may be stored in fewer bits than the int64 in
    which a batch gives them.
    """

    name: str
    x_train: Array
    y_train: Array
    x_test: Array
    y_test: Array

    def batch(self, size: int, seed: int, step: int) -> Batch:
        """The ``size`` training samples of one step, as ``(x, y)``.

        Batches are cut from an endless sequence of epochs, each a permutation that derives from (seed, epoch) alone. So
        every batch is full, every sample appears equally often, and a resumed run sees the batches that it would have
        seen.
        """
        chosen = _choose(len(self.x_train), size, seed, step)
        return _wide(self.x_train[chosen]), _wide(self.y_train[chosen])

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """The training batches from step ``start`` on, without end."""
        for step in count(start):
            yield self.batch(size, seed, step)

    def test_batches(self, size: int) -> Iterator[Batch]:
        """The test samples once, in their order; the last batch may be smaller."""
        for start in range(0, len(self.x_test), size):
            stop = start + size
            yield _wide(self.x_test[start:stop]), _wide(self.y_test[start:stop])


INTEGER = np.dtype(np.int64)
"""In which batches give whole numbers."""


def floating(name: str) -> np.dtype[Any]:
    """The floating dtype of this name, bfloat16 among them."""
    if name == "bfloat16":
        import ml_dtypes  # noqa: F401 - teaches NumPy the name

    return np.dtype(name)


def _wide(array: Array) -> Array:
    return array.astype(INTEGER) if array.dtype.kind in "biu" else array


def _choose(samples: int, size: int, seed: int, step: int) -> Array:
    first, last = step * size, (step + 1) * size
    parts = [
        _permutation(samples, seed, epoch)[max(first - epoch * samples, 0) : last - epoch * samples]
        for epoch in range(first // samples, (last - 1) // samples + 1)
    ]
    return np.concatenate(parts)


@lru_cache(maxsize=2)
def _permutation(samples: int, seed: int, epoch: int) -> Array:
    order = np.random.default_rng((seed, epoch)).permutation(samples)
    order.flags.writeable = False
    return order
