"""Folding of repeated rows: a network of 32 identical blocks is shown as one block whose numbers are sums."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from memback.profiling.report import Layer

__all__ = ["Fold", "fold", "span"]

_NUMBER = re.compile(r"(\d+)")
_LONGEST_PERIOD = 128


@dataclass(frozen=True)
class Fold:
    """One row: a layer, or several identical ones, in order."""

    layers: tuple[Layer, ...]

    @property
    def path(self) -> str:
        """The layer's path; of several, from the first to the last: ``blocks.0…31.fc``."""
        return span(self.layers[0].path, self.layers[-1].path)

    @property
    def calls(self) -> int:
        """How many calls the row stands for."""
        return sum(layer.count for layer in self.layers)


def fold(layers: Sequence[Layer]) -> list[Fold]:
    """Fold runs of three or more repetitions of identical rows; other rows stay single, and nothing is lost.

    Rows are identical if they differ only in the numbers of their path, in time, and in where their saved values
    came from.
    """
    kinds = [_kind(layer) for layer in layers]
    numbers = [_NUMBER.findall(layer.path) for layer in layers]
    folds: list[Fold] = []
    at = 0
    while at < len(layers):
        period, times = _repetition(kinds, at)
        if _better_later(kinds, numbers, at, period):
            period, times = 1, 1
        end = at + period * times
        folds += [Fold(tuple(layers[first:end:period])) for first in range(at, at + period)]
        at = end
    return folds


def _repetition(kinds: Sequence[Hashable], at: int) -> tuple[int, int]:
    """The period and the number of repetitions, from row ``at`` on, that cover the most rows; (1, 1) if none."""
    best = (1, 1)
    for period in range(1, min(_LONGEST_PERIOD, (len(kinds) - at) // 3) + 1):
        end = at + period
        while end < len(kinds) and kinds[end] == kinds[end - period]:
            end += 1
        times = (end - at) // period
        if times >= 3 and period * times > best[0] * best[1]:
            best = (period, times)
    return best


def _better_later(kinds: Sequence[Hashable], numbers: Sequence[list[str]], at: int, period: int) -> bool:
    """Whether the repetition found in the middle of a block also runs from the start of the next block on."""
    starts = [i for i in range(at, at + period) if i == 0 or numbers[i] != numbers[i - 1]]
    return bool(starts) and starts[0] > at and _repetition(kinds, starts[0])[0] == period


def _kind(layer: Layer) -> Hashable:
    return (
        _NUMBER.sub("#", layer.path),
        layer.op,
        layer.output_shape,
        layer.dtype,
        layer.saved_bytes,
        layer.shared_bytes,
        layer.parameter_bytes,
        layer.flops,
        layer.recomputed,
        layer.count,
        tuple((value.name, value.bytes) for value in layer.saved),
    )


def span(first: str, last: str) -> str:
    """Two texts that differ in numbers alone as one: ``blocks.0.fc``, ``blocks.31.fc`` give ``blocks.0…31.fc``.

    Where they differ in more than that, the first one.
    """
    mine, other = _NUMBER.split(first), _NUMBER.split(last)
    if mine[::2] != other[::2]:
        return first
    return "".join(a if a == b else f"{a}…{b}" for a, b in zip(mine, other, strict=True))
