"""Gradients against central differences in float64, at a few entries of each array."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

import memback as mb
from memback.engine.state import current
from memback.notes.differences import column


def check_gradients(
    loss: Callable[[], mb.Tensor], tensors: Mapping[str, mb.Tensor], entries: int = 3, tolerance: float = 1e-6
) -> None:
    """dL/d(tensor) at random entries of each tensor; ``loss`` draws the same random numbers each time."""
    state = current()
    random = (state.seed, state.draws)

    def evaluate() -> mb.Tensor:
        state.seed, state.draws = random
        return loss()

    for tensor in tensors.values():
        assert tensor.dtype == np.float64
        tensor.grad = None
    evaluate().backward()
    choice = np.random.default_rng(0)
    for name, tensor in tensors.items():
        assert tensor.grad is not None, f"{name} has no gradient"
        assert tensor.grad.shape == tensor.shape
        for number in choice.choice(tensor.size, min(entries, tensor.size), replace=False):
            index = np.unravel_index(number, tensor.shape)
            expected = _difference(evaluate, tensor.data, index)
            found = tensor.grad[index]
            assert abs(found - expected) <= tolerance * max(1.0, abs(expected)), f"{name}[{index}]: {found}, {expected}"


def _difference(evaluate: Callable[[], mb.Tensor], array: np.ndarray, index: tuple[np.intp, ...]) -> float:
    def loss(values: np.ndarray) -> np.ndarray:
        array[...] = values
        return evaluate().data

    before = array.copy()
    with mb.no_grad():
        difference = column(loss, before, index)
    array[...] = before
    return float(difference)
