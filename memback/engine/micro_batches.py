"""Gradient accumulation: a step on a large batch, worked off in small ones one after the other.

Saved activations and workspace are those of one micro-batch; parameter gradients are there from the first to the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from memback.engine.tensor import Tensor
from memback.errors import UsageError

__all__ = ["accumulate_gradients", "micro_batches"]

Reduction = Literal["mean", "sum"]
"""How a loss is made of those of the samples."""


def micro_batches(batch: tuple[Any, ...], count: int) -> Iterator[tuple[float, tuple[Any, ...]]]:
    """Each micro-batch with its share of the samples, the larger ones first; views of the arrays.

    Args:
        batch: arrays or Tensors with one row a sample.
        count: how many micro-batches; their sizes differ by one sample at most.

    Raises:
        UsageError: ``count`` is not between 1 and the number of samples.
    """
    samples = len(batch[0])
    if not 1 <= count <= samples:
        raise UsageError(f"{count} micro-batches can't be made of a batch of {samples}: at most one a sample")
    start = 0
    for number in range(count):
        size = samples // count + (number < samples % count)
        yield size / samples, tuple(_rows(array, start, start + size) for array in batch)
        start += size


def _rows(array: Any, start: int, stop: int) -> Any:
    return (array.data if isinstance(array, Tensor) else array)[start:stop]


def accumulate_gradients(
    loss: Callable[..., Tensor],
    *batch: Any,
    count: int,
    reduction: Reduction = "mean",
    after_forward: Callable[[], None] = lambda: None,
) -> Any:
    """Run ``loss`` forward and backward on each of ``count`` micro-batches, so that gradients add up.

    In exact arithmetic they are those of ``loss(*batch).backward()``; sums are rounded in another order, so their last
    bits differ. What looks at the batch as a whole gives other results: batch normalisation takes the statistics of
    each micro-batch, dropout draws a mask for each, and a mean over targets of which some are ignored
    (``ignore_index``) weights by samples, not by targets.

    Args:
        loss: gives the scalar loss of a batch.
        *batch: what it is called with, with one row a sample; their gradients are not computed.
        count: number of micro-batches.
        reduction: ``"mean"`` where the loss is the mean over the samples, so that each micro-batch counts by its share
            of them; ``"sum"`` where it is their sum.
        after_forward: called after each forward pass.

    Returns:
        the loss of the whole batch as an array of no dimensions.

    Raises:
        UsageError: ``count`` is not between 1 and the number of samples, or there is no such reduction.
    """
    if reduction not in ("mean", "sum"):
        raise UsageError(f"accumulate_gradients: `reduction` (={reduction!r}) must be 'mean' or 'sum'")
    total: Any = 0.0
    for share, part in micro_batches(batch, count):
        value = loss(*part)
        after_forward()
        weight = 1.0 if reduction == "sum" else share
        value.backward(np.full_like(value.data, weight))
        total = total + np.multiply(value.data, weight)
    return total
