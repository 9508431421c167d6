"""No engine: the workload's matrix products alone, as memback lays them out, into arrays that are there already.

Whatever is built on NumPy takes at least this long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.workloads import GPTSize, MLPSize, Workload

VERSIONS: dict[str, str] = {}

Product = tuple[Any, Any]


def build(workload: Workload) -> Callable[[], None]:
    """All products of forward and backward, each on operands of its own."""
    size, rng = workload.size, np.random.default_rng(0)
    drawn = _mlp(size, rng) if isinstance(size, MLPSize) else _gpt(size, rng)
    products = [(left, right, np.matmul(left, right)) for left, right in drawn]

    def step() -> None:
        for left, right, out in products:
            np.matmul(left, right, out=out)

    return step


def _mlp(size: MLPSize, rng: np.random.Generator) -> Iterator[Product]:
    for number, (n_in, n_out) in enumerate(pairwise(size.widths)):
        yield from _linear(rng, size.batch, n_in, n_out, to_input=number > 0)


def _linear(rng: np.random.Generator, rows: int, n_in: int, n_out: int, to_input: bool = True) -> Iterator[Product]:
    h, weight, d_out = (
        rng.standard_normal(shape, np.float32) for shape in ((rows, n_in), (n_in, n_out), (rows, n_out))
    )
    yield h, weight
    yield h.T, d_out
    if to_input:
        yield d_out, weight.T


def _gpt(size: GPTSize, rng: np.random.Generator) -> Iterator[Product]:
    rows, d = size.batch * size.length, size.width
    for _ in range(size.layers):
        for n_in, n_out in (*[(d, d)] * 4, (d, 4 * d), (4 * d, d)):
            yield from _linear(rng, rows, n_in, n_out)
        yield from _attention(size, rng)
    yield from _linear(rng, rows, d, size.vocabulary)


def _attention(size: GPTSize, rng: np.random.Generator) -> Iterator[Product]:
    shape = (size.batch, size.length, size.heads, size.width // size.heads)
    query, key, value, d_out = (rng.standard_normal(shape, np.float32).swapaxes(1, 2) for _ in range(4))
    scores = rng.standard_normal((size.batch, size.heads, size.length, size.length), np.float32)
    yield query, key.swapaxes(-1, -2)
    yield scores, value
    yield d_out, value.swapaxes(-1, -2)
    yield scores.swapaxes(-1, -2), d_out
    yield scores, key
    yield scores.swapaxes(-1, -2), query
