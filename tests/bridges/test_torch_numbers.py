"""Saved bytes and peaks of PyTorch modules, beside counts by other means, PyTorch's allocators and memback's engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import memback as mb
import memback.bridges.torch as bridge
from memback import models
from tests.bridges import torch_models as twins
from tests.bridges.counts import kept_bytes, storage_peak

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@dataclass(frozen=True)
class Case:
    """A model, its input's shape and dtype, and the type of mixed precision."""

    make: Callable[[], Any]
    shape: tuple[int, ...]
    dtype: Any = torch.float32
    autocast: Any = None

    def build(self, device: str = "cpu") -> tuple[Any, Any]:
        torch.manual_seed(0)
        kind = self.dtype
        x = torch.zeros(self.shape, dtype=kind) if kind is torch.int64 else torch.randn(self.shape)
        with torch.device(device):
            return self.make(), x.to(device)

    def forward(self, module: Any, x: Any) -> Any:
        with torch.autocast(x.device.type, self.autocast, enabled=self.autocast is not None):
            return twins.cross_entropy(module(x))

    def step(self, module: Any, x: Any) -> None:
        for parameter in module.parameters():
            parameter.grad = None
        self.forward(module, x).backward()

    def profile(self, module: Any, x: Any, **options: Any) -> Any:
        return bridge.profile(module, x, loss=twins.cross_entropy, autocast=self.autocast, rounds=1, **options)


def frozen() -> nn.Module:
    module = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())))
    for number in (0, 1, 2, 4):
        for parameter in module[number].parameters():
            parameter.requires_grad = False
    return module


def gpt(**options: Any) -> Callable[[], Any]:
    return lambda: twins.GPT(layers=3, width=32, heads=4, vocabulary=50, context=16, **options)


TOKENS = {"shape": (2, 16), "dtype": torch.int64}
CASES = {
    "ResNet-50": Case(twins.ResNet, (2, 3, 32, 32)),
    "GPT": Case(gpt(), **TOKENS),
    "GPT without dropout": Case(gpt(dropout=0.0), **TOKENS),
    "GPT in mixed precision": Case(gpt(), **TOKENS, autocast=torch.bfloat16),
    "GPT under checkpoints": Case(gpt(reentrant=False), **TOKENS),
    "U-Net": Case(lambda: twins.UNet(4, 3), (2, 3, 16, 16)),
    "U-Net, channels last": Case(lambda: twins.UNet(4, 2).to(memory_format=torch.channels_last), (2, 3, 16, 16)),
    "frozen parameters": Case(frozen, (4, 8)),
    "GRU": Case(lambda: nn.Sequential(nn.Embedding(9, 8), nn.GRU(8, 6, 2, batch_first=True), First()), **TOKENS),
    "encoder": Case(lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8)),
}


class First(nn.Module):
    """The first of what it is given."""

    def forward(self, pair: Any) -> Any:
        return pair[0]


@pytest.mark.parametrize("name", CASES)
def test_saved_bytes_and_peaks_are_those_that_other_counts_find_and_that_a_dry_run_predicts(name):
    case = CASES[name]
    module, x = case.build()
    real = {run.mode: run for run in case.profile(module, x).runs}
    arguments = [*module.parameters(), *module.buffers(), x]

    torch.manual_seed(0)
    assert real["full"].saved_bytes == kept_bytes(lambda: case.forward(module, x), arguments)
    assert real["full"].measured_peak_bytes == storage_peak(lambda: case.step(module, x), arguments)
    with torch.no_grad():
        assert real["inference"].measured_peak_bytes == storage_peak(lambda: case.forward(module, x), arguments)

    dry = {run.mode: run for run in case.profile(module, x, dry=True).runs}
    for mode, run in real.items():
        assert dry[mode].saved_bytes == run.saved_bytes
        assert dry[mode].predicted_peak_bytes == run.predicted_peak_bytes == run.measured_peak_bytes
        assert dry[mode].layers == tuple(run.layers)
        assert dry[mode].peak == run.peak
    assert real["retain-all"].saved_bytes > real["full"].saved_bytes
    assert real["retain-all"].gradient_sha256 == real["full"].gradient_sha256


RANDOM_STATE = torch.get_rng_state().nbytes


@pytest.mark.parametrize(
    ("name", "unseen"), [("GPT", 0), ("GPT under checkpoints", RANDOM_STATE), ("frozen parameters", 0)]
)
def test_the_allocator_gives_out_what_the_storages_hold(name, unseen):
    module, x = CASES[name].build()
    full, inference = CASES[name].profile(module, x, modes=("full", "inference")).runs
    assert full.allocator_peak_bytes == full.measured_peak_bytes + unseen
    assert inference.allocator_peak_bytes == inference.measured_peak_bytes + unseen


@pytest.mark.parametrize("name", ["ResNet-50", "U-Net"])
def test_the_allocator_gives_out_more_where_kernels_have_scratch_memory(name):
    module, x = CASES[name].build()
    for run in CASES[name].profile(module, x, modes=("full", "inference")).runs:
        assert run.allocator_peak_bytes >= run.measured_peak_bytes


@CUDA
@pytest.mark.parametrize(
    ("make", "shape", "dtype"),
    [
        (twins.ResNet, (16, 3, 224, 224), torch.float32),
        (twins.GPT, (2, 1024), torch.int64),
        (twins.UNet, (4, 3, 256, 256), torch.float32),
    ],
)
def test_the_peak_is_that_of_the_allocator_of_a_gpu(make, shape, dtype):
    case = Case(make, shape, dtype)
    module, x = case.build("cuda")
    case.step(module, x)  # the libraries' own workspaces stay
    for parameter in module.parameters():
        parameter.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case.step(module, x)
    torch.cuda.synchronize()
    expected = torch.cuda.max_memory_allocated() - before
    for parameter in module.parameters():
        parameter.grad = None
    run = case.profile(module, x, modes=("full",)).runs[0]
    for found in (run.measured_peak_bytes, run.predicted_peak_bytes, run.allocator_peak_bytes):
        assert abs(found - expected) <= 0.01 * expected + 2 * 2**20


# -- real sizes, of which nothing is held


LARGE = {
    "ResNet-50, 64 images": Case(twins.ResNet, (64, 3, 224, 224)),
    "GPT-2 small, 8 x 1024 tokens": Case(twins.GPT, (8, 1024), torch.int64),
    "U-Net, 4 images": Case(twins.UNet, (4, 3, 256, 256)),
}


@pytest.mark.parametrize("name", LARGE)
def test_models_of_real_size_are_profiled_without_memory(name):
    case = LARGE[name]
    with FakeTensorMode():
        module, x = case.build()
    report = case.profile(module, x, modes=("full",))  # dry, since the module is
    arguments = [*module.parameters(), *module.buffers(), x]
    with x.fake_mode:
        assert report.runs[0].saved_bytes == kept_bytes(lambda: case.forward(module, x), arguments)
        assert report.runs[0].predicted_peak_bytes == storage_peak(lambda: case.step(module, x), arguments)
    assert report.runs[0].saved_bytes > 2**30


# -- beside memback's own engine


class Twin(nn.Module):
    """A model of memback's in PyTorch, over the same parameters."""

    def __init__(self, model: Any, function: Callable[..., Any], **buffers: Any) -> None:
        super().__init__()
        self.function, self.names = function, {name: name.replace(".", "/") for name, _ in model.named_parameters()}
        self.values = nn.ParameterDict(
            {self.names[name]: nn.Parameter(torch.tensor(p.data)) for name, p in model.named_parameters()}
        )
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer)

    def forward(self, x: Any, y: Any) -> Any:
        from tests.models.torch_twins import Scope

        tensors = {name: self.values[key] for name, key in self.names.items()}
        return self.function(Scope(tensors | dict(self.named_buffers())), x, y)


def both(model: Any, twin: Twin, x: Any, y: Any) -> tuple[Any, Any]:
    ours = mb.profile(model, step=lambda: model.loss(x, y), modes=("full",), rounds=1)
    theirs = bridge.profile(twin, torch.tensor(x), torch.tensor(y), modes=("full",), rounds=1)
    return ours.runs[0], theirs.runs[0]


def by_op(run: Any) -> Counter[str]:
    saved: Counter[str] = Counter()
    for layer in run.layers:
        saved[layer.op] += layer.saved_bytes
    return +saved


def test_an_mlp_saves_what_memback_saves_op_by_op():
    from tests.models import torch_twins

    rng = np.random.default_rng(0)
    model = models.MLP(4, 3, width=5, depth=5)
    x, y = rng.normal(size=(6, 4)).astype(np.float32), rng.integers(0, 3, 6)
    ours, theirs = both(model, Twin(model, lambda p, x, y: torch_twins.mlp(p, x, y, torch.relu)), x, y)
    assert theirs.saved_bytes == ours.saved_bytes
    assert by_op(ours) == {"relu": 5 * 6 * 5 * 4, "cross_entropy": 6 * 3 * 4 + 4}
    # Cross-entropy is two ops in PyTorch: one keeps the logarithm of the softmax, the other the number of targets.
    assert by_op(theirs) == {"relu": 5 * 6 * 5 * 4, "_log_softmax": 6 * 3 * 4, "nll_loss_forward": 4}
    assert theirs.loss == pytest.approx(ours.loss)


def test_a_gpt_saves_what_memback_saves_op_by_op():
    from tests.models import torch_twins

    model = models.GPT(3, 8, 2, 7, 6)
    tokens = np.random.default_rng(0).integers(0, 7, (4, 6))
    later = torch.ones(6, 6, dtype=torch.bool).triu(1)
    twin = Twin(model, lambda p, x, y: torch_twins.gpt(p, x, y, 2), later=later)
    ours, theirs = both(model, twin, tokens, tokens)
    assert theirs.saved_bytes == ours.saved_bytes
    found, expected = by_op(theirs), by_op(ours)
    same = {"add": "add", "native_layer_norm": "layer_norm", "_softmax": "attention_softmax", "gelu": "gelu"}
    for torchs, membacks in same.items():
        assert found.pop(torchs) == expected.pop(membacks)
    # PyTorch copies what a product of many matrices is given into a row; memback keeps what linear gave, a view of it.
    assert found.pop("addmm") + found.pop("clone") == expected.pop("linear") + expected.pop("reshape")
    # Cross-entropy is two ops in PyTorch, the logarithm of the softmax and the number of targets.
    assert found.pop("_log_softmax") + found.pop("nll_loss2d_forward") == expected.pop("cross_entropy")
    assert not found
    assert not expected
