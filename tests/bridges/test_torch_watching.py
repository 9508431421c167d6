"""What a watched step shows is what the same step does when nobody watches."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import memback.bridges.torch as bridge
from memback.bridges.torch.profile import WatchingWarning
from memback.bridges.torch.recording.allocator import allocated
from memback.bridges.torch.recording.storages import storages, tensors
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError
from memback.profiling.report import Report
from tests.bridges.torch_models import Calls


class Scaled(nn.Module):
    """A function of an input times a parameter, summed up."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x * self.scale).sum()


class Heads(nn.Module):
    """One tensor goes into several narrow layers."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 4, bias=False) for _ in range(heads))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Any) -> Any:
        y = x * self.scale
        return sum(head(y).mean() for head in self.heads)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(64)
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        q, k, v = (of(y).unflatten(-1, (4, 16)).transpose(1, 2) for of in (self.query, self.key, self.value))
        return x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Adapted(nn.Module):
    """A frozen layer with two narrow ones beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(64, 64).requires_grad_(False)
        self.down, self.up = nn.Linear(64, 4, bias=False), nn.Linear(4, 64, bias=False)

    def forward(self, x: Any) -> Any:
        return self.base(x) + self.up(self.down(x)) + x


class Twice(torch.autograd.Function):
    """Its backward adds by itself."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad * 1 + grad * 1


def rows(*numbers: int) -> Any:
    return torch.tensor(numbers)


SQUARE = (96, 64)
STEPS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    **{f"{heads} heads": (lambda heads=heads: Heads(heads), SQUARE) for heads in (1, 2, 3, 5)},
    "attention": (lambda: nn.Sequential(*(Attention() for _ in range(3))), (2, 16, 64)),
    "adapters": (lambda: nn.Sequential(nn.Linear(64, 64), *(Adapted() for _ in range(3))), SQUARE),
    "adds of one's own": (lambda: Scaled(lambda y: Twice.apply(y) + Twice.apply(y) * 3 + y), SQUARE),
    "a product with itself": (lambda: Scaled(lambda y: y * y * (y * 2)), SQUARE),
    "one gradient for two": (lambda: Scaled(lambda y: (y + y) * y + y * 3), SQUARE),
    "expanded gradients": (lambda: Scaled(lambda y: y.sum() + y.sum() + (y * 2).sum()), SQUARE),
    "views": (lambda: Scaled(lambda y: sum(part.square().sum() for part in y.chunk(3, 1))), SQUARE),
    "transposed": (lambda: Scaled(lambda y: (y.t() @ y).sum() + (y.t() * 2).sum() + (y * 3).sum()), SQUARE),
    "gather": (lambda: Scaled(lambda y: y.gather(1, torch.zeros(96, 1, dtype=torch.int64))), SQUARE),
    "max of rows": (lambda: Scaled(lambda y: y.max(1)[0]), SQUARE),
    "sort": (lambda: Scaled(lambda y: y.sort(1)[0]), SQUARE),
    "index": (lambda: Scaled(lambda y: y.index_select(0, rows(0, 2, 2))), SQUARE),
    "take": (lambda: Scaled(lambda y: y.take(rows(1, 2))), SQUARE),
    "maximum": (lambda: Scaled(lambda y: torch.maximum(y, y * 2)), SQUARE),
    "scatter_reduce": (
        lambda: Scaled(lambda y: y.scatter_reduce(0, torch.zeros(1, 64, dtype=torch.int64), y[:1] * 2, "amax")),
        SQUARE,
    ),
}

SCRATCH = {"transposed", "sort", "scatter_reduce"}
"""Those whose kernels take memory for themselves, which is in no storage."""


def step(module: Any, x: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    module(x).square().mean().backward()


@pytest.mark.parametrize("name", STEPS)
def test_a_watched_step_adds_gradients_where_an_unwatched_one_does(name: str) -> None:
    make, shape = STEPS[name]
    torch.manual_seed(0)
    module, x = make(), torch.randn(shape)
    step(module, x)
    grads = [parameter.grad.clone() for parameter in module.parameters() if parameter.requires_grad]
    module.zero_grad()
    given_out = allocated(lambda: step(module, x), x.device)
    module.zero_grad()
    run = bridge.profile(module, x, loss=lambda y: y.square().mean(), modes=("full",), rounds=1).runs[0]
    assert given_out is not None
    assert run.measured_peak_bytes == run.predicted_peak_bytes
    if name in SCRATCH:
        assert run.measured_peak_bytes <= given_out.peak_bytes
    else:
        assert run.measured_peak_bytes == pytest.approx(given_out.peak_bytes, abs=64)
    tracker = Tracker(module=module)
    with tracker:
        step(module, x)
    assert all(map(torch.equal, grads, (p.grad for p in module.parameters() if p.requires_grad)))


# -- what is found, and how it is called


X = torch.ones(4, 8)
BYTES = 4 * 8 * 4


def full(module: Any, *inputs: Any, **options: Any) -> Any:
    """A real run whose prediction holds, and which is that of a dry profile."""
    run = bridge.profile(module, *inputs, rounds=1, modes=("full",), **options).runs[0]
    dry = bridge.profile(module, *inputs, dry=True, modes=("full",), **options).runs[0]
    assert run.measured_peak_bytes == run.predicted_peak_bytes == dry.predicted_peak_bytes
    assert run.saved_bytes == dry.saved_bytes
    assert run.left_bytes == dry.left_bytes
    return run


@pytest.mark.parametrize("layer", [lambda: nn.Linear(8, 8), lambda: nn.Sequential(nn.Linear(8, 8), nn.Tanh())])
def test_a_reentrant_checkpoint_within_a_residual_is_watched(layer: Any) -> None:
    module = nn.ModuleList(layer() for _ in range(3))

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = module

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = x + checkpoint(block, x, use_reentrant=True)
            return x

    x = torch.randn(4, 8, requires_grad=True)
    run = full(Residual(), x, loss=lambda y: y.square().mean())
    assert run.recomputed_flops


@dataclass
class State:
    hidden: Any
    extra: Any = None


class Bag(OrderedDict[str, Any]):
    """A dict of a kind that PyTorch does not know."""


@pytest.mark.parametrize(
    "wrap", [lambda y: State(y), lambda y: Bag(y=y), lambda y: MappingProxyType({"y": State([y])})]
)
def test_tensors_are_found_in_what_pytorch_does_not_look_into(wrap: Any) -> None:
    x = torch.ones(4, 8, requires_grad=True)
    assert list(tensors(wrap(x))) == [x]
    module = Calls(lambda self, x: wrap(self.second(self.first(x).tanh())))
    run = full(module, X)  # the loss is the sum of all that is found
    assert run.saved_bytes == BYTES
    assert run.gradient_bytes == sum(p.nbytes for p in module.parameters())


def test_zeros_that_have_no_memory_are_none() -> None:
    zeros = torch._efficientzerotensor((4, 8), dtype=torch.float32)
    assert zeros.untyped_storage().nbytes()
    assert storages(zeros) == []


def test_rows_of_a_shared_module_are_called_as_the_one_that_calls_it_has_it() -> None:
    shared = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
    one, other = nn.Sequential(shared), nn.Sequential(nn.Identity(), shared)
    rows = bridge.profile(nn.Sequential(one, other), X, dry=True, modes=("full",)).runs[0].layers
    assert [row.path for row in rows if row.op == "tanh"] == ["0.0.1", "1.1.1"]


def test_transforms_that_nobody_sees_through_are_named_with_the_line() -> None:
    module = Calls(lambda self, x: torch.func.grad(lambda v: self.first(v).square().sum())(x).square().mean())
    for options in ({"dry": True}, {"rounds": 1}):
        with pytest.raises(MembackError, match=r"uses torch\.func.*test_torch_watching"):
            bridge.profile(module, X, modes=("full",), **options)


# -- what a step leaves behind


def test_what_stays_after_a_step_is_in_the_report_and_no_saved_activation() -> None:
    def keeps(self: Any, x: Any) -> Any:
        y = self.first(x)
        self.last = y.detach() * 2
        return self.second(y)

    module = Calls(keeps)
    run = full(module, X)
    assert run.left_bytes == BYTES
    assert run.left == ("output of mul",)
    assert run.saved_bytes == BYTES
    report = bridge.profile(module, X, dry=True, modes=("full",))
    assert (
        f"full leaves {BYTES} B behind after the step, made by output of mul."
        in report._repr_mimebundle_()["text/plain"]
    )
    assert Report.from_json(json.dumps(report.to_dict())).runs[0].left_bytes == BYTES


def test_gradients_of_leaves_wherever_they_are_are_not_left_behind() -> None:
    outside = nn.Linear(8, 8)
    with Tracker() as tracker:
        outside(X).sum().backward()
    tracker.finish()
    assert tracker.left == {}


def test_a_dry_run_is_that_of_a_later_step_where_the_first_one_makes_what_others_find() -> None:
    def counts(self: Any, x: Any) -> Any:
        y = self.first(x).tanh()
        load = y.detach().sum(0)
        if getattr(self, "load", None) is None:
            self.load = load
        else:
            self.load += load
        return self.second(y)

    assert full(Calls(counts), X).left_bytes == 0


# -- modes


def penalised(self: Any, x: Any) -> Any:
    """A step that differentiates in its forward pass."""
    x = x.detach().requires_grad_()
    y = self.second(self.first(x).tanh())
    (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    return y.mean() + grad.square().mean()


@pytest.mark.parametrize("dry", [True, False])
def test_a_mode_that_cannot_run_is_a_row_that_says_why(dry: bool) -> None:
    report = bridge.profile(Calls(penalised), X, dry=dry, rounds=1)
    assert [run.mode for run in report.runs] == ["retain-all", "full"]
    assert "does not require grad" in report.not_run["inference"]
    text = report._repr_mimebundle_()["text/plain"]
    assert "inference can't be run: " in text
    with pytest.raises(MembackError if dry else RuntimeError, match="does not require grad"):
        bridge.profile(Calls(penalised), X, dry=dry, rounds=1, modes=("inference",))


def test_inference_that_differentiates_is_over_when_the_step_is() -> None:
    def force(self: Any, x: Any) -> Any:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.second(self.first(x).tanh()).sum(), x)
        return grad.square().mean()

    run = bridge.profile(Calls(force), X, rounds=1, modes=("inference",)).runs[0]
    assert run.saved_bytes == 0


def test_it_is_said_where_a_watched_step_takes_more() -> None:
    with pytest.warns(WatchingWarning, match="while it was watched") as said:
        bridge.profile(Scaled(lambda y: y.cumprod(1)), torch.rand(SQUARE), rounds=1, modes=("full",))
    assert {warning.filename for warning in said if warning.category is WatchingWarning} == {__file__}


@pytest.mark.parametrize("dry", [False, True])
def test_what_a_mode_retains_by_itself_is_not_left_behind(dry: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.GELU(), torch.nn.LayerNorm(64))
    report = bridge.profile(module, torch.ones(8, 64), modes=["retain-all", "full"], dry=dry)
    assert [run.left_bytes for run in report.runs] == [0, 0]
    assert report.runs[0].saved_bytes > report.runs[1].saved_bytes > 0
