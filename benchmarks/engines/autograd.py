"""autograd: value_and_grad of NumPy code."""

from __future__ import annotations

from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import autograd.numpy as anp
from autograd import value_and_grad

from benchmarks.engines.functional import loss_of
from benchmarks.workloads import Workload

VERSIONS = {"autograd": version("autograd")}


def _softmax(x: Any) -> Any:
    powers = anp.exp(x - anp.max(x, axis=-1, keepdims=True))
    return powers / anp.sum(powers, axis=-1, keepdims=True)


def _cross_entropy(scores: Any, y: Any) -> Any:
    shifted = scores - anp.max(scores, axis=-1, keepdims=True)
    chosen = shifted[anp.arange(len(y)), y]
    return anp.mean(anp.log(anp.sum(anp.exp(shifted), axis=-1)) - chosen)


XP = SimpleNamespace(
    matmul=anp.matmul,
    sum=anp.sum,
    mean=anp.mean,
    sqrt=anp.sqrt,
    tanh=anp.tanh,
    reshape=anp.reshape,
    transpose=anp.transpose,
    relu=lambda x: anp.maximum(x, 0),
    softmax=_softmax,
    cross_entropy=_cross_entropy,
)


def build(workload: Workload) -> Any:
    """The gradient by the dictionary of parameters."""
    parameters, (x, y) = workload.parameters(), workload.sample()
    function = value_and_grad(loss_of(workload, XP))
    return lambda: function(parameters, x, y)
