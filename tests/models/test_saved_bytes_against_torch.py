"""What ``full`` saves, beside what PyTorch keeps of the same model: never more, and where it is less, why, to the byte.

PyTorch's account is its own: distinct storages seen by ``saved_tensors_hooks``, without parameters, buffers and inputs.
Op by op the two keep the same things: a product its inputs, relu, tanh, sigmoid and softmax their output, gelu, silu
and softplus their input, normalisations their input and two numbers a mean, dropout a byte an element, cross-entropy
the softmax (PyTorch: its logarithm) and the number of targets. Where memback keeps less:

- max_pool2d keeps where in the kernel the maximum was in one byte, PyTorch in an int64 of the whole image;
- the LSTM's first step has no state to forget, PyTorch's multiplies zeros by the forget gate and keeps both;
- rms_norm keeps one number a row; on a CPU PyTorch composes it, and keeps the normalised rows too.

Where memback keeps more: the mean and 1/deviation of float16 and bfloat16 rows, which it has in float32, as PyTorch has
on a GPU; on a CPU PyTorch has them in two bytes.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import memback as mb
from memback import models
from tests.models.small import DATA, LLAMA, MODELS, batch

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def twins(torch):
    from tests.models import torch_twins

    return torch_twins


@dataclass(frozen=True)
class Family:
    """A model, the name of its batch in ``small``, and its twin ``(twins, scope, x, y) -> loss``.

    ``difference`` gives the bytes saved beyond what PyTorch keeps from the bytes of a number: none or less than none.
    """

    make: Callable[[str], Any]
    batch: str
    twin: Callable[..., Any]
    difference: Callable[[int], int] = lambda number: 0


def _mlp(activation: str, function: Callable[[Any], Any]) -> Family:
    return Family(
        lambda dtype: models.MLP(4, 3, width=5, depth=5, activation=activation, dtype=dtype),
        "mlp",
        lambda twins, p, x, y: twins.mlp(p, x, y, function(twins)),
    )


def _gpt(heads: int = 2, difference: Callable[[int], int] = lambda number: 0, **options: Any) -> Family:
    named = {"attention": options.get("form", "plain"), "dropout": options.get("dropout", 0.0)}
    return Family(
        lambda dtype: models.GPT(3, 8, heads, 7, 6, **named, dtype=dtype),
        "gpt",
        lambda twins, p, x, y: twins.gpt(p, x, y, heads, **options),
        difference,
    )


def _pooled(pixels: int) -> Callable[[int], int]:
    """One byte instead of eight for each pixel that comes out of a max_pool2d."""
    return lambda number: -7 * pixels


_WIDE = ("mean", "rstd", "counted")
"""Saved values that are float32 at least: statistics of norms, and the number of targets, which float16 can't hold."""

FAMILIES = {
    "notes network": Family(MODELS["notes_network"], "notes_network", lambda twins, *args: twins.notes_network(*args)),
    "mlp relu": _mlp("relu", lambda twins: twins.torch.relu),
    "mlp leaky_relu": _mlp("leaky_relu", lambda twins: twins.F.leaky_relu),
    "mlp tanh": _mlp("tanh", lambda twins: twins.torch.tanh),
    "mlp sigmoid": _mlp("sigmoid", lambda twins: twins.torch.sigmoid),
    "mlp gelu": _mlp("gelu", lambda twins: twins.F.gelu),
    "mlp gelu_tanh": _mlp("gelu_tanh", lambda twins: lambda a: twins.F.gelu(a, approximate="tanh")),
    "mlp silu": _mlp("silu", lambda twins: twins.F.silu),
    "mlp softplus": _mlp("softplus", lambda twins: twins.F.softplus),
    "mlp sqerr": Family(
        lambda dtype: models.MLP(4, 3, hidden=[6, 5], objective="sqerr", dtype=dtype),
        "notes_network",
        lambda twins, p, x, y: twins.mlp(p, x, y, twins.torch.relu, twins.sqerr),
    ),
    "gpt plain": _gpt(),
    "gpt dropout": _gpt(dropout=0.2),
    "gpt fused": _gpt(form="fused"),
    "gpt tiled": _gpt(form="tiled"),
    "llama": Family(
        MODELS["llama"],
        "llama",
        lambda twins, p, x, y: twins.gpt(p, x, y, LLAMA_HEADS, form="tiled", rotary=True),
        lambda number: -number * NORMS * 3 * 6 * 8,
    ),
    "resnet18": Family(MODELS["resnet18"], "resnet18", lambda twins, *args: twins.resnet(*args)),
    "resnet50": Family(
        MODELS["resnet50"], "resnet50", lambda twins, *args: twins.resnet(*args, large=True), _pooled(2 * 16 * 16)
    ),
    "unet": Family(
        MODELS["unet"], "unet", lambda twins, *args: twins.unet(*args), _pooled(2 * 2 * 4 * 4 + 2 * 4 * 2 * 2)
    ),
    "lstm": Family(
        MODELS["lstm"], "lstm", lambda twins, *args: twins.lstm(*args), lambda number: -number * 2 * 2 * 3 * 5
    ),
    "vit": Family(MODELS["vit"], "vit", lambda twins, p, x, y: twins.vit(p, x, y, 2, 0.1)),
}
LLAMA_HEADS, NORMS = 4, 7
assert LLAMA["norm"] == "rms"
assert {family.batch for family in FAMILIES.values()} == set(DATA) - {"gpt-fused-bits"}


class Step:
    """The same training step in memback and in PyTorch, from the same parameters and with the same dropout."""

    def __init__(self, twins: Any, family: Family, dtype: str, frozen: float = 0.0, seed: int = 0) -> None:
        mb.manual_seed(seed)
        self.twins, self.family = twins, family
        self.model = family.make(dtype)
        choose = random.Random(seed)
        for parameter in self.model.parameters():
            parameter.requires_grad = choose.random() >= frozen
        kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        self.x, self.y = batch(family.batch, kind)
        self.tensors = {name: self.tensor(array) for name, array in self.model.named_buffers()}
        for name, parameter in self.model.named_parameters():
            self.tensors[name] = self.tensor(parameter.data).requires_grad_(parameter.requires_grad)
        self.inputs = [self.tensor(self.x), self.tensor(self.y)]

    def tensor(self, array: Any) -> Any:
        torch = self.twins.torch
        if array.dtype.name == "bfloat16":
            return torch.tensor(array.astype(np.float32)).bfloat16()
        return torch.tensor(array)

    def ours(self) -> tuple[Any, Any]:
        """The loss and the tape after memback's forward pass."""
        mb.manual_seed(5)
        with mb.Tape() as tape:
            return self.model.loss(self.x, self.y), tape

    def theirs(self, dropout: Any = None) -> Any:
        """PyTorch's loss."""
        return self.family.twin(self.twins, self.twins.Scope(self.tensors, dropout), *self.inputs)

    def kept(self) -> int:
        return self.twins.kept_bytes(self.theirs, self.tensors, self.inputs)


def saved_bytes(step: Step) -> int:
    loss, tape = step.ours()
    saved = tape.saved_bytes
    del loss
    return saved


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_gradients_and_running_statistics_are_those_of_pytorch(twins, name):
    step = Step(twins, FAMILIES[name], "float64")
    mb.manual_seed(5)
    expected = step.theirs(twins.memback_dropout)
    expected.backward()
    loss, _ = step.ours()
    loss.backward()
    assert float(loss.data) == pytest.approx(expected.item(), rel=1e-12)
    for key, parameter in step.model.named_parameters():
        _close(parameter.grad, step.tensors[key].grad, key)
    for key, array in step.model.named_buffers():
        _close(array, step.tensors[key], key)


def _close(found: Any, expected: Any, name: str) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_full_saves_what_pytorch_keeps_and_less_where_it_can_be_told(twins, name, dtype):
    step = Step(twins, FAMILIES[name], dtype)
    difference = FAMILIES[name].difference(np.dtype(dtype).itemsize)
    assert difference <= 0
    assert saved_bytes(step) == step.kept() + difference


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", FAMILIES)
def test_two_byte_numbers_differ_by_statistics_of_norms_and_the_loss_s_count_at_most(twins, name, dtype):
    step = Step(twins, FAMILIES[name], dtype)
    loss, tape = step.ours()
    statistics = sum(value.bytes for row in tape.rows() for value in row.saved if value.name in _WIDE)
    assert tape.saved_bytes - statistics // 2 <= step.kept()
    del loss


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FAMILIES)
def test_with_frozen_parameters_full_saves_no_more_than_pytorch_keeps(twins, name, seed):
    step = Step(twins, FAMILIES[name], "float32", frozen=0.6, seed=seed)
    assert saved_bytes(step) <= step.kept()


def test_with_frozen_parameters_an_mlp_saves_what_pytorch_keeps(twins):
    for seed in range(10):
        step = Step(twins, FAMILIES["mlp relu"], "float32", frozen=0.5, seed=seed)
        assert saved_bytes(step) == step.kept()


# -- at the size of real models, of which neither holds a byte


LARGE = {
    "GPT-2 small, 8 x 1024 tokens": (
        lambda: models.GPT(12, 768, 12, 50257, 1024, dropout=0.1),
        ((8, 1024), "int64", (8, 1024)),
        lambda twins, p, x, y: twins.gpt(p, x, y, 12, 0.1),
        0,
    ),
    "ResNet-50, 256 images": (
        lambda: models.ResNet(50, classes=1000, stem="large"),
        ((256, 3, 224, 224), "float32", (256,)),
        lambda twins, p, x, y: twins.resnet(p, x, y, large=True),
        _pooled(256 * 64 * 56 * 56)(4),
    ),
    "ViT-L/16, 64 images": (
        lambda: models.ViT(224, 16, 3, 1000, 24, 1024, 16),
        ((64, 3, 224, 224), "float32", (64,)),
        lambda twins, p, x, y: twins.vit(p, x, y, 16),
        0,
    ),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_dry_run_predicts_what_pytorch_would_keep_of_a_real_model(twins, name):
    make, (shape, dtype, targets), twin, difference = LARGE[name]
    meta = {"device": "meta"}
    with mb.dry_run():
        model = make()
        with mb.Tape() as tape:
            loss = model.loss(mb.ShapeArray.argument(shape, dtype), mb.ShapeArray.argument(targets, "int64"))
            saved = tape.saved_bytes
        del loss
        tensors = {n: twins.torch.empty(p.shape, requires_grad=True, **meta) for n, p in model.named_parameters()}
        tensors |= {n: twins.torch.empty(b.shape, **meta) for n, b in model.named_buffers()}
    inputs = [
        twins.torch.empty(shape, dtype=getattr(twins.torch, dtype), **meta),
        twins.torch.empty(targets, dtype=twins.torch.int64, **meta),
    ]
    kept = twins.kept_bytes(lambda: twin(twins, twins.Scope(tensors), *inputs), tensors, inputs)
    assert saved == kept + difference
