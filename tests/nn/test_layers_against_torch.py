"""Layers beside PyTorch's layers of the same name, from the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-9, atol=1e-11)


def compare(torch: Any, ours: nn.Module, theirs: Any, x: Any) -> None:
    """Outputs, dL/dx and the gradients of parameters, for L the sum of the squared outputs.

    Parameters pair up by their names, which are PyTorch's; only the weight of a linear layer is transposed.
    """
    mine, other = mb.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, expected = ours(mine), theirs(other)
    close(out.data, expected)
    ops.sum(out * out).backward()
    (expected * expected).sum().backward()
    close(mine.grad, other.grad)
    found = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        close(found[name].grad.T if isinstance(theirs, torch.nn.Linear) else found[name].grad, parameter.grad)
    for name, buffer in theirs.named_buffers():
        if name in dict(ours.named_buffers()):
            close(dict(ours.named_buffers())[name], buffer)


def load(torch: Any, ours: nn.Module, theirs: Any) -> None:
    """Give PyTorch's layer memback's state."""
    state = ours.state_dict()
    if isinstance(theirs, torch.nn.Linear):
        state = {name: array.T for name, array in state.items()}
    theirs.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=False)


SHAPES = {
    "linear": (4, 3, 5),
    "image": (3, 4, 6, 7),
    "sequence": (3, 4, 6),
    "rows": (5, 4),
    "scores": (2, 5),
}

LAYERS = {
    "Linear": (lambda n, k: n.Linear(5, 3, **k), "linear"),
    "Linear without bias": (lambda n, k: n.Linear(5, 3, bias=False, **k), "linear"),
    "Conv2d": (lambda n, k: n.Conv2d(4, 6, 3, padding=1, **k), "image"),
    "Conv2d in groups": (lambda n, k: n.Conv2d(4, 6, (3, 2), (2, 1), (1, 0), (1, 2), 2, **k), "image"),
    "LayerNorm": (lambda n, k: n.LayerNorm([6, 7], **k), "image"),
    "RMSNorm": (lambda n, k: n.RMSNorm(7, eps=1e-5, **k), "image"),
    "GroupNorm": (lambda n, k: n.GroupNorm(2, 4, **k), "image"),
    "BatchNorm1d of rows": (lambda n, k: n.BatchNorm1d(4, **k), "rows"),
    "BatchNorm1d of sequences": (lambda n, k: n.BatchNorm1d(4, momentum=0.3, **k), "sequence"),
    "BatchNorm2d": (lambda n, k: n.BatchNorm2d(4, eps=1e-3, **k), "image"),
    "MaxPool2d": (lambda n, k: n.MaxPool2d(3, 2, 1), "image"),
    "AvgPool2d": (lambda n, k: n.AvgPool2d(2), "image"),
    "Upsample": (lambda n, k: n.Upsample(scale_factor=2, mode="bilinear"), "image"),
    "ReLU": (lambda n, k: n.ReLU(), "image"),
    "LeakyReLU": (lambda n, k: n.LeakyReLU(0.2), "image"),
    "GELU": (lambda n, k: n.GELU(), "image"),
    "GELU by a tanh": (lambda n, k: n.GELU("tanh"), "image"),
    "SiLU": (lambda n, k: n.SiLU(), "image"),
    "Sigmoid": (lambda n, k: n.Sigmoid(), "image"),
    "Tanh": (lambda n, k: n.Tanh(), "image"),
    "Softplus": (lambda n, k: n.Softplus(), "image"),
    "Softmax": (lambda n, k: n.Softmax(dim=1), "image"),
    "Flatten": (lambda n, k: n.Flatten(), "image"),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_pytorchs_layer_of_its_name(torch, name):
    make, shape = LAYERS[name]
    ours, theirs = make(nn, {"dtype": "float64"}), make(torch.nn, {"dtype": torch.float64})
    for number, parameter in enumerate(ours.parameters()):
        parameter.data[...] = numbers(*parameter.shape, seed=number + 1)
    load(torch, ours, theirs)
    compare(torch, ours, theirs, numbers(*SHAPES[shape]))


def test_an_embedding_is_pytorchs(torch):
    ours, theirs = nn.Embedding(5, 3, dtype="float64"), torch.nn.Embedding(5, 3, dtype=torch.float64)
    load(torch, ours, theirs)
    tokens = np.array([[1, 4, 1], [0, 1, 2]])
    out, expected = ours(tokens), theirs(torch.tensor(tokens))
    weights = numbers(*out.shape)
    out.backward(weights)
    expected.backward(torch.tensor(weights))
    close(out.data, expected)
    close(ours.weight.grad, theirs.weight.grad)


def test_dropout_drops_the_same_share_and_scales_alike(torch):
    x = np.ones((400, 250))
    found, expected = nn.Dropout(0.3)(x), torch.nn.Dropout(0.3)(torch.tensor(x)).numpy()
    np.testing.assert_array_equal(np.unique(found), np.unique(expected))
    assert np.mean(found == 0) == pytest.approx(np.mean(expected == 0), abs=0.01)


def test_running_statistics_follow_pytorchs_over_several_steps_and_serve_in_evaluation(torch):
    ours, theirs = nn.BatchNorm2d(4, dtype="float64"), torch.nn.BatchNorm2d(4, dtype=torch.float64)
    for step in range(5):
        x = numbers(3, 4, 2, 2, seed=step) * (step + 1) + step
        ours(mb.Tensor(x))
        theirs(torch.tensor(x))
        close(ours.running_mean, theirs.running_mean)
        close(ours.running_var, theirs.running_var)
    ours.eval()
    theirs.eval()
    compare(torch, ours, theirs, numbers(3, 4, 2, 2, seed=9))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("inputs", "hidden"), [(3, 3), (5, 2), (1, 4)])
def test_lstm_is_pytorchs(torch, layers, inputs, hidden):
    ours = nn.LSTM(inputs, hidden, layers, dtype="float64")
    theirs = torch.nn.LSTM(inputs, hidden, layers, batch_first=True, dtype=torch.float64)
    pairs = {}
    for number, layer in enumerate(ours.layers):
        pairs |= {
            f"weight_ih_l{number}": (layer.weight_x, True),
            f"weight_hh_l{number}": (layer.weight_h, True),
            f"bias_ih_l{number}": (layer.bias, False),
        }
        getattr(theirs, f"bias_hh_l{number}").data.zero_()  # the sum of both is the one bias here
    for name, (parameter, transposed) in pairs.items():
        getattr(theirs, name).data.copy_(torch.tensor(parameter.data.T if transposed else parameter.data))
    x = numbers(2, 7, inputs)
    mine, other = mb.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, (expected, _) = ours(mine), theirs(other)
    close(out.data, expected)
    ops.sum(out * out).backward()
    (expected * expected).sum().backward()
    close(mine.grad, other.grad)
    for name, (parameter, transposed) in pairs.items():
        close(parameter.grad.T if transposed else parameter.grad, getattr(theirs, name).grad)


@pytest.mark.parametrize("form", ["plain", "fused", "tiled"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_multi_head_attention_is_pytorchs(torch, form, causal, bias):
    width, heads, length = 12, 3, 5
    ours = nn.MultiHeadAttention(width, heads, causal=causal, attention=form, bias=bias, dtype="float64")
    theirs = torch.nn.MultiheadAttention(width, heads, bias=bias, batch_first=True, dtype=torch.float64)
    parts = [ours.query, ours.key, ours.value]
    theirs.in_proj_weight.data.copy_(torch.tensor(np.concatenate([part.weight.data.T for part in parts])))
    theirs.out_proj.weight.data.copy_(torch.tensor(ours.out.weight.data.T))
    if bias:
        theirs.in_proj_bias.data.copy_(torch.tensor(np.concatenate([part.bias.data for part in parts])))
        theirs.out_proj.bias.data.copy_(torch.tensor(ours.out.bias.data))
    x = numbers(2, length, width)
    mine, other = mb.Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) if causal else None
    out, (expected, _) = ours(mine), theirs(other, other, other, attn_mask=hidden, need_weights=False)
    close(out.data, expected)
    ops.sum(out * out).backward()
    (expected * expected).sum().backward()
    close(mine.grad, other.grad)
    close(np.concatenate([part.weight.grad.T for part in parts]), theirs.in_proj_weight.grad)
    close(ours.out.weight.grad.T, theirs.out_proj.weight.grad)
    if bias:
        close(np.concatenate([part.bias.grad for part in parts]), theirs.in_proj_bias.grad)
        close(ours.out.bias.grad, theirs.out_proj.bias.grad)
