"""Long short-term memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memback import ops
from memback.engine.tensor import Tensor
from memback.nn import init
from memback.nn.module import Module
from memback.nn.policy import Policy, run_chain

__all__ = ["LSTM", "LSTMLayer"]


class LSTMLayer(Module):
    """One layer over time (Hochreiter & Schmidhuber 1997; Gers et al. 2000): inputs and outputs (n, size), one a step.

    Gates i, f, g, o = x W_x + h W_h + b; c' = sigma(f) c + sigma(i) tanh(g) and h' = sigma(o) tanh(c'). The first h and
    c are zero. Step by step, so that gradients are bit-identical wherever a checkpoint policy cuts.
    """

    is_chain = True

    def __init__(self, input_size: int, hidden_size: int, policy: Policy, *, dtype: Any = "float32") -> None:
        super().__init__()
        fill = init.uniform(hidden_size)
        self.weight_x = init.parameter((input_size, 4 * hidden_size), dtype, fill)
        self.weight_h = init.parameter((hidden_size, 4 * hidden_size), dtype, fill)
        self.bias = init.parameter((4 * hidden_size,), dtype, fill)
        self.hidden_size, self.policy = hidden_size, policy

    def forward(self, inputs: Sequence[Any]) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = run_chain(
            [self._step] * len(inputs), (None, None, tuple(inputs), ()), self.policy
        )[3]
        return outputs

    def _step(self, h: Any, c: Any, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Consume the next input and append an output. All that a step needs is an argument, so that a checkpoint
        accounts for everything that it keeps.
        """
        i, f, g, o = ops.split(self._gates(inputs[0], h), self.hidden_size, dim=-1)
        new = ops.multiply(ops.sigmoid(i), ops.tanh(g))
        c = new if c is None else ops.add(ops.multiply(ops.sigmoid(f), c), new)
        h = ops.multiply(ops.sigmoid(o), ops.tanh(c))
        return h, c, inputs[1:], (*outputs, h)

    def _gates(self, x: Any, h: Any) -> Any:
        gates = ops.linear(x, self.weight_x, self.bias)
        return gates if h is None else ops.add(gates, ops.linear(h, self.weight_h))


class LSTM(Module):
    """Layers of LSTM over (n, length, input_size): the last layer's outputs, (n, length, hidden_size).

    The time steps of each layer are a chain: a checkpoint policy cuts them into segments.

    Args:
        input_size: features of an input.
        hidden_size: features of the state and of an output.
        num_layers: number of layers.
        checkpoint: the policy for the time steps of each layer.
        dtype: of the parameters.

    Raises:
        UsageError: an unknown policy.
    """

    renamed = {"x": "input"}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        checkpoint: str | Policy = "none",
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        policy = Policy.parse(checkpoint)
        self.layers = []
        for number in range(num_layers):
            layer = LSTMLayer(input_size if number == 0 else hidden_size, hidden_size, policy, dtype=dtype)
            self.add_module(f"layers.{number}", layer)
            self.layers.append(layer)

    def forward(self, input: Any) -> Tensor:
        n, _, size = input.shape
        steps: Sequence[Any] = [ops.reshape(step, (n, size)) for step in ops.split(input, 1, dim=1)]
        for layer in self.layers:
            steps = layer(steps)
        return ops.stack(steps, dim=1)
