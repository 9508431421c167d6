"""Optimisers: SGD with momentum, and AdamW. Their state is part of the training memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from memback.errors import MembackError
from memback.tape import Tensor, changes

__all__ = ["SGD", "AdamW", "Optimizer"]


class Optimizer:
    """Base class. The state is allocated when the optimiser is made, and frozen parameters have none.

    Args:
        parameters: what to train.
        lr: the learning rate; may be set anew between steps.

    Raises:
        ValueError: ``lr`` is not positive, or there is nothing to train.
    """

    slots: ClassVar[tuple[str, ...]] = ()
    """Names of the arrays that are kept for each parameter."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, slots: tuple[str, ...]) -> None:
        if lr <= 0:
            raise ValueError(f"`lr` (={lr}) must be positive")
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("there is no parameter to train: all are frozen")
        self.lr = lr
        self.steps = 0
        self.state = {name: [np.zeros_like(p.data) for p in self.parameters] for name in slots}

    @property
    def state_bytes(self) -> int:
        """Bytes of the state."""
        return sum(array.nbytes for arrays in self.state.values() for array in arrays)

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        """Change every parameter that has a gradient, in place; one temporary of its size at a time."""
        self.steps += 1
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is not None:
                self._update(i, parameter.data, parameter.grad)
                changes.note(parameter.data, f"a step of {type(self).__name__}")

    def _update(self, i: int, parameter: Any, grad: Any) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state by name: arrays, and the number of steps."""
        arrays = {f"{name}.{i}": a for name, kept in self.state.items() for i, a in enumerate(kept)}
        return {"steps": self.steps, **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, by copy.

        Raises:
            MembackError: names or shapes differ from this optimiser's; nothing is changed then.
        """
        mine = self.state_dict()
        if mine.keys() != state.keys():
            differing = sorted(mine.keys() ^ state.keys())
            raise MembackError(f"the state belongs to another optimiser or model: {', '.join(differing[:5])} differ")
        for name, array in mine.items():
            if np.shape(array) != np.shape(state[name]):
                raise MembackError(f"{name!r} has shape {np.shape(state[name])} in the state, here {np.shape(array)}")
        self.steps = int(state["steps"])
        for name, array in mine.items():
            if name != "steps":
                array[...] = state[name]


class SGD(Optimizer):
    """Stochastic gradient descent by PyTorch's formulas.

    With weight decay the gradient is g + weight_decay p. With momentum m: v = m v + g (v = g at first), and the step is
    v, or g + m v with ``nesterov``. Then p -= lr step. State: one array a parameter with momentum, else none.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if nesterov and not momentum:
            raise ValueError("`nesterov` needs a `momentum`")
        super().__init__(parameters, lr, ("velocity",) if momentum else ())
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def _update(self, i: int, parameter: Any, grad: Any) -> None:
        change = np.multiply(parameter, self.weight_decay)
        np.add(change, grad, out=change)
        if self.momentum:
            velocity = self.state["velocity"][i]
            np.multiply(velocity, self.momentum, out=velocity)
            np.add(velocity, change, out=velocity)
            if self.nesterov:
                np.add(change, np.multiply(velocity, self.momentum), out=change)
            else:
                np.copyto(change, velocity)
        np.multiply(change, self.lr, out=change)
        np.subtract(parameter, change, out=parameter)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101), by PyTorch's formulas.

    p *= 1 - lr weight_decay; m and v are running means of g and g^2 with ``betas``;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps). State: two arrays a parameter.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(parameters, lr, ("mean", "square"))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def _update(self, i: int, parameter: Any, grad: Any) -> None:
        mean, square = self.state["mean"][i], self.state["square"][i]
        first, second = self.betas
        np.multiply(parameter, 1 - self.lr * self.weight_decay, out=parameter)
        change = np.subtract(grad, mean)
        np.multiply(change, 1 - first, out=change)
        np.add(mean, change, out=mean)
        np.multiply(grad, grad, out=change)
        np.multiply(change, 1 - second, out=change)
        np.multiply(square, second, out=square)
        np.add(square, change, out=square)
        np.sqrt(square, out=change)
        np.divide(change, math.sqrt(1 - second**self.steps), out=change)
        np.add(change, self.eps, out=change)
        np.divide(mean, change, out=change)
        np.multiply(change, self.lr / (1 - first**self.steps), out=change)
        np.subtract(parameter, change, out=parameter)
