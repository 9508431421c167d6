"""Optimisers: SGD with momentum, and AdamW. Their state is part of the training memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from memback.engine.changes import changes
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.nn.module import check_state
from memback.ops.workspace import pieces, slices

__all__ = ["SGD", "AdamW", "Optimizer"]

PIECE = 2**16
"""Elements of a parameter that are updated at a time, or one row where that is more."""


class Optimizer:
    """Base class. The state is allocated when the optimiser is made, and frozen parameters have none.

    Args:
        parameters: what to train.
        lr: the learning rate; may be changed between steps.
        slots: names of the arrays that are kept for each parameter, in its shape and dtype.

    Raises:
        ValueError: ``lr`` is not positive, or there is nothing to train.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, slots: tuple[str, ...]) -> None:
        if not lr > 0:
            raise ValueError(f"`lr` (={lr}) must be positive")
        self.parameters = [p for p in parameters if p.requires_grad]
        if not self.parameters:
            raise ValueError("there is no parameter to train: all are frozen, or there are none")
        self.lr = lr
        self.steps: tuple[int, ...] = (0,) * len(self.parameters)
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
        """Change every parameter that has a gradient, in place and in pieces, so that the workspace stays small."""
        other = current().stand_in(self)
        if other is not self:
            other.step()
            return
        self.steps = tuple(n + (p.grad is not None) for n, p in zip(self.steps, self.parameters, strict=True))
        for i, parameter in enumerate(self.parameters):
            if parameter.grad is None:
                continue
            arrays = [parameter.data, parameter.grad, *(kept[i] for kept in self.state.values())]
            for part in _parts(parameter.data):
                self._update(self.steps[i], *(_piece(array, part) for array in arrays))
            changes.note(parameter.data, f"a step of {type(self).__name__}")

    def _update(self, step: int, parameter: Any, grad: Any, *state: Any) -> None:
        """Change a piece of a parameter and of its state, in the order of the slots; ``step`` counts from 1."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state by name, as the arrays themselves, and the number of steps that each parameter has taken."""
        arrays = {f"{name}.{i}": a for name, kept in self.state.items() for i, a in enumerate(kept)}
        return {"steps": np.array(self.steps), **arrays}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, by copy.

        Raises:
            MembackError: names or shapes differ from this optimiser's; nothing is changed then.
        """
        mine = self.state_dict()
        check_state(mine, state)
        self.steps = tuple(int(n) for n in state["steps"])
        for name, array in mine.items():
            if name != "steps":
                array[...] = state[name]


def _parts(parameter: Any) -> Iterator[slice]:
    rows = parameter.shape[0] if parameter.ndim else 1
    return pieces(slices(rows, max(1, PIECE * rows // max(1, parameter.size))), like=parameter)


def _piece(array: Any, part: slice) -> Any:
    return array[part] if array.ndim else np.reshape(array, (1,))  # NumPy gives scalars for no dimensions


def _check_range(name: str, value: float, below: float = math.inf) -> None:
    if not 0 <= value < below:
        limits = "not be negative" if below == math.inf else f"lie in [0, {below:g})"
        raise ValueError(f"`{name}` (={value}) must {limits}")


class SGD(Optimizer):
    """Stochastic gradient descent by PyTorch's formulas.

    With weight decay the gradient is g + weight_decay p. With momentum m: v = m v + g (v = g at first), and the step is
    v, or g + m v with ``nesterov``. Then p -= lr step. State: one array a parameter with momentum, else none.

    Raises:
        ValueError: a negative or meaningless setting, or nothing to train.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        _check_range("momentum", momentum)
        _check_range("weight_decay", weight_decay)
        if nesterov and not momentum:
            raise ValueError("`nesterov` needs a `momentum`")
        super().__init__(parameters, lr, ("velocity",) if momentum else ())
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov

    def _update(self, step: int, parameter: Any, grad: Any, *state: Any) -> None:
        if self.weight_decay:
            decay = np.multiply(parameter, self.weight_decay)
            grad = np.add(grad, decay, out=decay)
        change = grad
        if self.momentum:
            (velocity,) = state
            np.multiply(velocity, self.momentum, out=velocity)
            np.add(velocity, grad, out=velocity)
            change = velocity
        if self.nesterov:
            ahead = np.multiply(change, self.momentum)
            change = np.add(grad, ahead, out=ahead)
        np.subtract(parameter, np.multiply(change, self.lr), out=parameter)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv 1711.05101), by PyTorch's formulas.

    p *= 1 - lr weight_decay; m and v are running means of g and g^2 with ``betas``;
    p -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps), where t counts the parameter's steps. State: two arrays a
    parameter. All of it is in the parameter's dtype, as in PyTorch: in float16 an ``eps`` below 3e-8 is 0, and where v
    is 0, too, p becomes infinite or NaN. Give a larger one there, such as 1e-4.

    Raises:
        ValueError: a negative or meaningless setting, or nothing to train.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        for i, beta in enumerate(betas):
            _check_range(f"betas[{i}]", beta, below=1)
        _check_range("eps", eps)
        _check_range("weight_decay", weight_decay)
        super().__init__(parameters, lr, ("mean", "square"))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay

    def _update(self, step: int, parameter: Any, grad: Any, *state: Any) -> None:
        mean, square = state
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
        np.divide(change, math.sqrt(1 - second**step), out=change)
        np.add(change, self.eps, out=change)
        np.divide(mean, change, out=change)
        np.multiply(change, self.lr / (1 - first**step), out=change)
        np.subtract(parameter, change, out=parameter)
