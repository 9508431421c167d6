"""What weights begin with, and what becomes of signals and gradients in many layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import models, ops


def mlp(initialisation: str, width: int = 16, depth: int = 100, dtype: str = "float64", **arguments: Any) -> models.MLP:
    mb.manual_seed(0)
    return models.MLP(width, 8, width=width, depth=depth, initialisation=initialisation, dtype=dtype, **arguments)


def inputs(samples: int, width: int) -> Any:
    return np.random.default_rng(0).standard_normal((samples, width))


def gradients(model: models.MLP, width: int) -> list[float]:
    """The mean square of the gradient of each hidden layer's bias, from the first layer on."""
    out = model(mb.Tensor(inputs(64, width)))
    ops.sum(ops.multiply(out, np.random.default_rng(1).standard_normal(out.shape))).backward()
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    return [float(np.mean(np.square(p.grad))) for p in biases[:-1]]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "softplus"])
def test_a_network_that_looks_linear_begins_as_a_rotation_however_deep(activation: str) -> None:
    model = mlp("looks_linear", activation=activation)
    matrix = model(mb.Tensor(np.eye(16))).data
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(8), atol=1e-4)
    x = 3 * inputs(8, 16)
    np.testing.assert_allclose(model(mb.Tensor(x)).data, x @ matrix, atol=1e-4)


APART = {"relu": 5, "leaky_relu": 5, "gelu": 5, "silu": 5, "softplus": 5, "tanh": 300, "sigmoid": 300}
"""How far mean squares of 100 layers may be apart; uniform weights with relu give 6^100."""


@pytest.mark.parametrize("activation", APART)
@pytest.mark.parametrize("width", [15, 16])
def test_gradients_keep_their_size_through_a_network_that_looks_linear(activation: str, width: int) -> None:
    found = gradients(mlp("looks_linear", width, activation=activation), width)
    assert max(found) < APART[activation] * min(found)


def test_a_relu_layer_with_weights_uniform_in_its_inputs_divides_the_mean_square_of_gradients_by_six() -> None:
    found = gradients(mlp("uniform", width=256, depth=12), 256)
    layers = len(found) - 1
    assert (found[-1] / found[0]) ** (1 / layers) == pytest.approx(6, rel=0.15)


def test_networks_without_hidden_layers_and_with_narrow_ones_begin_with_orthonormal_weights() -> None:
    mb.manual_seed(0)
    single = models.MLP(6, 3, hidden=[], initialisation="looks_linear", dtype="float64")
    weight = single.layers[0].weight.data
    np.testing.assert_allclose(weight.T @ weight, np.eye(3), atol=1e-6)
    narrow = models.MLP(6, 3, hidden=[1, 1], initialisation="looks_linear")
    assert all(np.isfinite(p.data).all() and p.data.shape for p in narrow.parameters())


def test_an_initialisation_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`initialisation` \(='he'\) must be 'uniform' or 'looks_linear'"):
        mlp("he")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dry_network_that_looks_linear_has_the_parameters_of_a_real_one(dtype: str) -> None:
    real = mlp("looks_linear", 5, 3, dtype)
    with mb.dry_run():
        dry = mlp("looks_linear", 5, 3, dtype)
    assert [(p.shape, p.dtype) for p in dry.parameters()] == [(p.shape, p.dtype) for p in real.parameters()]
