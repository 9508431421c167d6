"""MyGrad: tensors with NumPy's names, its own softmax and losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mygrad as mg
from mygrad.nnet.activations import relu, softmax
from mygrad.nnet.losses import softmax_crossentropy

from benchmarks.engines.functional import loss_of
from benchmarks.workloads import Workload

VERSIONS = {"mygrad": mg.__version__}

XP = SimpleNamespace(
    matmul=mg.matmul,
    sum=mg.sum,
    mean=mg.mean,
    sqrt=mg.sqrt,
    tanh=mg.tanh,
    reshape=mg.reshape,
    transpose=lambda x, axes=None: mg.transpose(x, *(axes or ())),
    relu=relu,
    softmax=lambda x: softmax(x, axis=-1),
    cross_entropy=softmax_crossentropy,
)


def build(workload: Workload) -> Any:
    """Tensors made once; their gradients are dropped before each step."""
    parameters = {name: mg.tensor(array) for name, array in workload.parameters().items()}
    x, y = workload.sample()
    loss_function = loss_of(workload, XP)

    def step() -> tuple[Any, dict[str, Any]]:
        for parameter in parameters.values():
            parameter.null_grad()
        loss = loss_function(parameters, x, y)
        loss.backward()
        return loss.data, {name: p.grad for name, p in parameters.items()}

    return step
