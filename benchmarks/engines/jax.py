"""JAX: value_and_grad under jit, compiled before anything is timed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.engines.functional import loss_of
from benchmarks.workloads import Workload

VERSIONS = {"jax": jax.__version__}


def _cross_entropy(scores: Any, y: Any) -> Any:
    rows = jnp.arange(scores.shape[0])
    return -jnp.mean(jax.nn.log_softmax(scores)[rows, y])


XP = SimpleNamespace(
    matmul=jnp.matmul,
    sum=jnp.sum,
    mean=jnp.mean,
    sqrt=jnp.sqrt,
    tanh=jnp.tanh,
    reshape=jnp.reshape,
    transpose=jnp.transpose,
    relu=jax.nn.relu,
    softmax=jax.nn.softmax,
    cross_entropy=_cross_entropy,
)


def build(workload: Workload) -> Any:
    """One compiled function; a step waits until everything is there."""
    parameters = {name: jnp.asarray(array) for name, array in workload.parameters().items()}
    x, y = map(jnp.asarray, workload.sample())
    function = jax.jit(jax.value_and_grad(loss_of(workload, XP)))

    def step() -> tuple[Any, Any]:
        return jax.block_until_ready(function(parameters, x, y))

    np.asarray(step()[0])
    return step
