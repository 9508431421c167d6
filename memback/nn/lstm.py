"""Long short-term memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from memback import ops
from memback.checkpoint import run_segment
from memback.nn import init
from memback.nn.module import Module
from memback.policy import Policy
from memback.tape import Tensor

__all__ = ["LSTM", "LSTMLayer"]


class LSTMLayer(Module):
    """One layer over time (Hochreiter & Schmidhuber 1997; Gers et al. 2000).

    Gates i, f, g, o from x W_x + h W_h + b; c' = sigma(f) c + sigma(i) tanh(g) and h' = sigma(o) tanh(c'). The inputs'
    part is one product for all steps.
    """

    is_chain = True

    def __init__(self, input_size: int, hidden_size: int, policy: Policy, *, dtype: Any = "float32") -> None:
        super().__init__()
        fill = init.uniform(hidden_size)
        self.weight_x = init.parameter((input_size, 4 * hidden_size), dtype, fill)
        self.weight_h = init.parameter((hidden_size, 4 * hidden_size), dtype, fill)
        self.bias = init.parameter((4 * hidden_size,), dtype, fill)
        self.hidden_size, self.policy = hidden_size, policy

    def forward(self, x: Any) -> Tensor:
        n, length, _ = x.shape
        inputs = ops.split(ops.linear(x, self.weight_x, self.bias), 1, dim=1)
        h = c = init.zeros((n, 1, self.hidden_size), like=x)
        outputs = []
        for start, stop, checkpointed in self.policy.segments(length):
            steps = self._steps(inputs[start:stop])
            run = run_segment(steps, (h, c), {}, self.policy.keep, warn=False) if checkpointed else steps(h, c)
            h, c, output = run
            outputs.append(output)
        return outputs[0] if len(outputs) == 1 else ops.concatenate(outputs, dim=1)

    def _steps(self, inputs: Sequence[Any]) -> Callable[[Any, Any], tuple[Any, Any, Any]]:
        """Steps that take h and c and give the last ones, and all h."""

        def run(h: Any, c: Any) -> tuple[Any, Any, Any]:
            outputs = []
            for gates_x in inputs:
                gates = ops.add(gates_x, ops.linear(h, self.weight_h))
                i, f, g, o = ops.split(gates, self.hidden_size, dim=-1)
                c = ops.add(ops.multiply(ops.sigmoid(f), c), ops.multiply(ops.sigmoid(i), ops.tanh(g)))
                h = ops.multiply(ops.sigmoid(o), ops.tanh(c))
                outputs.append(h)
            return h, c, ops.concatenate(outputs, dim=1)

        return run


class LSTM(Module):
    """Layers of LSTM over (n, length, input_size): the last layer's outputs, (n, length, hidden_size).

    The time steps of each layer are a chain: a checkpoint policy cuts them into segments.
    """

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

    def forward(self, x: Any) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
