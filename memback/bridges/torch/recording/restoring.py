"""What a step moves besides gradients, as it was before: random streams, and weights that hooks move in backward."""

from __future__ import annotations

import gc
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from memback.bridges.torch.recording.heap import all_objects_seen

__all__ = ["leaves_below", "other_streams_kept", "weights_kept"]


@contextmanager
def other_streams_kept() -> Iterator[None]:
    """After the block the random streams of Python and NumPy are where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def weights_kept(weights: Sequence[torch.Tensor]) -> Iterator[None]:
    """After the block weights, and the state of their optimisers, are as before, if they have hooks that could step.

    Copies are made only where there are such hooks: they are as large as the weights.

    Warns:
        UserWarning: weights without hooks have been changed.
    """
    hooked = any(getattr(weight, "_post_accumulate_grad_hooks", None) or weight._backward_hooks for weight in weights)
    versions = [weight._version for weight in weights]
    copies = [weight.detach().clone() for weight in weights] if hooked else []
    states = [_State(optimizer) for optimizer in _optimizers(weights)] if hooked else []
    try:
        yield
    finally:
        moved = [n for n, (w, version) in enumerate(zip(weights, versions, strict=True)) if w._version != version]
        with torch.no_grad():
            for n in moved if hooked else ():
                weights[n].copy_(copies[n])
            for state in states:
                state.put_back()
        if moved and not hooked:
            warnings.warn(
                f"the step itself changes {len(moved)} of the model's parameters, which are not as they were before:"
                " leave its optimiser out of what is run, or load the model again",
                stacklevel=4,
            )


class _State:
    """What an optimiser keeps for each weight."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._state = optimizer.state
        self._before = {weight: list(_copied(named)) for weight, named in optimizer.state.items()}

    def put_back(self) -> None:
        for weight in [weight for weight in self._state if weight not in self._before]:
            del self._state[weight]
        for weight, named in self._before.items():
            self._state[weight].clear()
            for name, value, copy in named:
                self._state[weight][name] = value if copy is None else value.copy_(copy)


def _copied(named: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name, value in named.items():
        yield name, value, value.detach().clone() if isinstance(value, torch.Tensor) else None


def _optimizers(weights: Sequence[torch.Tensor]) -> list[torch.optim.Optimizer]:
    """Those that are alive and have one of the weights."""
    mine = {id(weight) for weight in weights}
    with all_objects_seen():
        # not isinstance, because that asks objects for their class, and some of PyTorch's warn when they are asked
        found = [value for value in gc.get_objects() if issubclass(type(value), torch.optim.Optimizer)]
    return [one for one in found if any(id(weight) in mine for group in one.param_groups for weight in group["params"])]


def leaves_below(loss: torch.Tensor) -> Iterator[torch.Tensor]:
    """The leaves in whose gradients a backward pass from a loss ends."""
    met, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in met:
            continue
        met.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        todo += [following for following, _ in node.next_functions]
