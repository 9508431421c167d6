"""memback itself."""

from __future__ import annotations

from typing import Any

import memback as mb
from benchmarks.workloads import MLPSize, Workload

VERSIONS = {"memback": mb.__version__}


def build(workload: Workload) -> Any:
    """The workload as a model of memback's own."""
    model = make_model(workload)
    model.load_state_dict(workload.parameters())
    x, y = workload.sample()
    parameters = dict(model.named_parameters())

    def step() -> tuple[Any, dict[str, Any]]:
        for p in parameters.values():
            p.grad = None
        loss = model.loss(x, y)
        loss.backward()
        return loss.data, {name: p.grad for name, p in parameters.items()}

    return step


def make_model(workload: Workload) -> Any:
    """The model, with its own parameters."""
    size = workload.size
    if isinstance(size, MLPSize):
        return mb.models.MLP(size.widths[0], size.widths[-1], hidden=list(size.widths[1:-1]), objective="sqerr")
    return mb.models.GPT(size.layers, size.width, size.heads, size.vocabulary, size.length)
