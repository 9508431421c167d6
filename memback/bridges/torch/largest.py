"""The largest batch or sequence whose training step fits on a card, by dry runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from memback.bridges.torch.device.cards import CONTEXT_BYTES, Card
from memback.bridges.torch.device.exchange import place_on
from memback.bridges.torch.device.prediction import training_on
from memback.bridges.torch.loading import Loaded
from memback.bridges.torch.recording.step import Loss, Step
from memback.bridges.torch.recording.training import Optimizer
from memback.bridges.torch.source import Source
from memback.errors import MembackError, UsageError
from memback.fitting.bisection import largest
from memback.profiling.report import DeviceStep
from memback.units import format_bytes_short

__all__ = ["Found", "Trial", "find_largest"]

_MOST = 2**24


@dataclass(frozen=True)
class Trial:
    """A size that was tried, and what its training steps take on the card, in bytes."""

    size: int
    first: DeviceStep
    steady: DeviceStep
    memory_bytes: int

    @property
    def needed_bytes(self) -> int:
        """What must be there: what PyTorch's allocator reserves, and an estimate of CUDA's context."""
        return max(self.first.reserved_peak_bytes, self.steady.reserved_peak_bytes) + CONTEXT_BYTES

    @property
    def fits(self) -> bool:
        """Whether the card has as much."""
        return self.needed_bytes <= self.memory_bytes


@dataclass(frozen=True)
class Found:
    """The largest size that fits, what was tried in the order of size, and why no larger one was, if so."""

    dimension: str
    card: Card
    size: int
    trials: tuple[Trial, ...]
    limit: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": "memback.largest/1",
            "dimension": self.dimension,
            "device": self.card.name,
            "memory_bytes": self.card.memory_bytes,
            "context_bytes": CONTEXT_BYTES,
            "size": self.size,
            "limit": self.limit,
            "trials": [
                {
                    "size": one.size,
                    "first_reserved_peak_bytes": one.first.reserved_peak_bytes,
                    "steady_reserved_peak_bytes": one.steady.reserved_peak_bytes,
                    "needed_bytes": one.needed_bytes,
                    "fits": one.fits,
                }
                for one in self.trials
            ],
        }


def find_largest(
    source: Source,
    dimension: str,
    card: Card,
    optimizer: Optimizer,
    loss: Loss,
    autocast: torch.dtype | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> Found:
    """Find the largest size that fits, if what a step takes grows with it; that size and the next have been tried.

    Args:
        source: of the module and its inputs, dry.
        dimension: ``batch`` or ``sequence``.
        card: whose memory is to suffice.
        optimizer: whose update ends a step.
        loss: of the module's output.
        autocast: the dtype of automatic mixed precision.
        progress: told of each size before it is tried.

    Raises:
        MembackError: not even 1 fits, or the step can't be run.
        UsageError: the source has no such dimension.
    """
    search = _Search(source, dimension, card, optimizer, loss, autocast, progress)
    now = source.sizes.get(dimension)
    start = int(source.load().data.get(dimension, 1)) if now is None else now
    size, _ = largest(search.fits, start, _MOST)
    trials = tuple(search.trials[n] for n in sorted(search.trials))
    if size == 0:
        least = trials[0]
        raise MembackError(
            f"no {dimension} fits on cuda:{card.name}: even {dimension} {least.size} needs"
            f" {format_bytes_short(least.needed_bytes)} of {format_bytes_short(card.memory_bytes)}. Take a larger card,"
            " --dtype bf16, --lora, or an optimiser with less state"
        )
    return Found(dimension, card, size, trials, search.limits.get(size + 1, ""))


class _Search:
    def __init__(
        self,
        source: Source,
        dimension: str,
        card: Card,
        optimizer: Optimizer,
        loss: Loss,
        autocast: torch.dtype | None,
        progress: Callable[[str], None],
    ) -> None:
        self.source, self.dimension, self.card, self.optimizer = source, dimension, card, optimizer
        self.loss, self.autocast, self.progress = loss, autocast, progress
        self.trials: dict[int, Trial] = {}
        self.limits: dict[int, str] = {}
        """Sizes that the source does not have, and why."""

    def fits(self, size: int) -> bool:
        self.progress(f"{self.dimension} {size}")
        try:
            loaded = self.source.sized(self.dimension, size).load()
        except UsageError as error:
            if not self.trials:
                raise
            self.limits[size] = str(error)
            return False
        self.trials[size] = self._tried(size, loaded)
        return self.trials[size].fits

    def _tried(self, size: int, loaded: Loaded) -> Trial:
        step = Step(loaded.module, loaded.args, loaded.kwargs, self.loss, self.autocast)
        device, _ = training_on(self.card, replace(step, place=place_on(self.card)), self.optimizer)
        assert device.first is not None
        assert device.steady is not None
        return Trial(size, device.first, device.steady, self.card.memory_bytes)
