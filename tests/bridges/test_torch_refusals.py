"""Plans for models that a re-run of their blocks would change: blocks are kept, or the plan is refused in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn
from torch.utils.checkpoint import checkpoint

import memback.bridges.torch as bridge
from memback.bridges.torch.planning.blocks import BlockPlanning
from memback.bridges.torch.recording.step import Step
from memback.errors import MembackError

W = 16


class Block(nn.Module):
    """A layer that also does something to what it is given."""

    def __init__(self, does: Callable[[Any, Any, Any], None] = lambda self, y, given: None) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(W), nn.Linear(W, W)
        self.does = does
        self.load: Any = None
        self.calls = 0

    def forward(self, x: Any, given: Any = None) -> Any:
        y = nn.functional.gelu(self.linear(self.norm(x)))
        self.does(self, y, given)
        return y


class Chain(nn.Module):
    def __init__(self, given: Callable[[], Any] = lambda: None, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block(**options) for _ in range(4))
        self.given = given

    def forward(self, x: Any) -> Any:
        given = self.given()
        for block in self.blocks:
            x = block(x, given)
        return x.square().mean() + (given["loss"] if isinstance(given, dict) and "loss" in given else 0)


class Cache:
    def __init__(self) -> None:
        self.layers: list[Any] = []


def loss_added(self: Any, y: Any, given: Any) -> None:
    given["loss"] = given["loss"] + y.square().mean()


def cached(self: Any, y: Any, given: Any) -> None:
    given.layers.append(y.detach())


def counted(self: Any, y: Any, given: Any) -> None:
    self.calls += 1


def added_up(self: Any, y: Any, given: Any) -> None:
    load = y.detach().sum((0, 1))
    if self.load is None:
        self.load = load
    else:
        self.load += load


X = torch.linspace(-1, 1, 8 * W).view(8, 1, W)
DISTURBING: dict[str, tuple[Callable[[], Any], str]] = {
    "a dict": (lambda: Chain(lambda: {"loss": torch.zeros(())}, does=loss_added), "changes the dict that it is given"),
    "a cache": (lambda: Chain(Cache, does=cached), "changes the Cache that it is given"),
    "a counter": (lambda: Chain(does=counted), "changes its attribute calls"),
    "a sum": (lambda: Chain(does=added_up), "writes, in place, to what was there before the blocks"),
}


def planning(module: nn.Module, *inputs: Any, kwargs: Any = None) -> BlockPlanning:
    return BlockPlanning(Step.of(module, inputs, kwargs, lambda y: y if y.dim() == 0 else y.square().mean(), None))


def gradients(module: nn.Module, *inputs: Any) -> list[Any]:
    module.zero_grad()
    loss = module(*inputs)
    (loss if loss.dim() == 0 else loss.square().mean()).backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("name", DISTURBING)
def test_blocks_that_change_what_is_not_theirs_are_never_run_again_and_the_plan_says_so(name: str) -> None:
    make, reason = DISTURBING[name]
    plain = gradients(make(), X)
    module = make()
    plan = planning(module, X).by_policy("all")
    assert plan.body == (0, 1, 2, 3)
    assert "blocks.0, blocks.1 and 2 more never run again" in plan.optimality
    assert reason in plan.optimality
    with plan.apply(module):
        assert all(map(torch.equal, gradients(module, X), plain))
    with pytest.raises(bridge.NoPlanError, match=reason):
        bridge.plan(make(), X, budget=64, loss=lambda y: y, how="checkpoint")


def test_an_attribute_that_is_computed_anew_each_time_disturbs_nobody() -> None:
    def remembered(self: Any, y: Any, given: Any) -> None:
        self.load = y.detach()

    plan = planning(Chain(does=remembered), X).by_policy("all")
    assert plan.body == ((0,), (1,), (2,), (3,))


def test_hooks_within_what_is_run_again_see_its_end() -> None:
    module = Chain()
    open_calls = []
    for block in module.blocks:
        block.linear.register_forward_pre_hook(lambda module, inputs: open_calls.append(module))
        block.linear.register_forward_hook(lambda module, inputs, output: open_calls.remove(module))
        block.register_forward_pre_hook(lambda module, inputs: open_calls.append(module))
        block.register_forward_hook(lambda module, inputs, output: open_calls.remove(module))
    plan = planning(module, X).by_policy("sqrt")
    with plan.apply(module):
        gradients(module, X)
    assert open_calls == []
    verdict = bridge.verify(plan, module, X, loss=lambda y: y)
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    assert verdict.same_gradients


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, x: Any, mask: Any = None) -> Any:
        for block in self.blocks:
            x = block(x, given=mask)
        return x


@pytest.mark.parametrize("policy", ["all", "sqrt"])
def test_a_call_with_fewer_tensors_than_planned_is_run_as_it_is_or_refused_in_words(policy: str) -> None:
    module = Masked()
    plain = gradients(module, X)
    plan = planning(module, X, kwargs={"mask": torch.ones(8, 1, W)}).by_policy(policy)
    with plan.apply(module):
        if policy == "all":
            assert all(map(torch.equal, gradients(module, X), plain))
        else:
            with pytest.raises(MembackError, match=r"blocks\.0 is given .* another way through the model"):
                gradients(module, X)


class Checkpointing(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.own = nn.ModuleList(Block() for _ in range(3))
        self.rest = nn.Sequential(*(Block() for _ in range(4)))
        self.reentrant = reentrant

    def forward(self, x: Any) -> Any:
        for block in self.own:
            x = x + checkpoint(block, x, use_reentrant=self.reentrant)
        return self.rest(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_blocks_under_the_models_own_checkpoints_are_left_to_these(reentrant: bool) -> None:
    module, x = Checkpointing(reentrant), X.clone().requires_grad_()
    plain = gradients(module, x)
    plan = planning(module, x).by_policy("all")
    assert {call.path for call in plan.calls} == {f"rest.{i}" for i in range(4)}
    with plan.apply(module):
        assert all(map(torch.equal, gradients(module, x), plain))
    verdict = bridge.verify(plan, module, x, loss=lambda y: y.square().mean())
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    assert verdict.same_gradients


def test_a_block_that_asks_whether_its_arguments_are_one_tensor_gets_one_again() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(nn.MultiheadAttention(W, 2) for _ in range(3))

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = x + block(x, x, x, need_weights=False)[0]
            return x

    module = Attention()
    plan = planning(module, X).by_policy("all")
    verdict = bridge.verify(plan, module, X, loss=lambda y: y.square().mean())
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    assert verdict.same_gradients


def test_a_step_that_differentiates_in_forward_is_planned_where_it_has_no_inference() -> None:
    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(W, W), nn.SiLU()) for _ in range(4)))

        def forward(self, x: Any) -> Any:
            x = x.detach().requires_grad_()
            y = self.blocks(x)
            (grad,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            return y.mean() + grad.square().mean()

    module = Penalised()
    for policy in ("none", "all"):
        plan = planning(module, X).by_policy(policy)
        verdict = bridge.verify(plan, module, X, loss=lambda y: y)
        assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
        assert verdict.same_gradients


def test_code_runs_blocks_whose_arguments_have_names_of_checkpoints_own() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.blocks = nn.ModuleList(Debugged() for _ in range(3))

        def forward(self, x: Any) -> Any:
            for block in self.blocks:
                x = block(hidden=x, debug=2)
            return x

    class Debugged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Block()

        def forward(self, hidden: Any, debug: int) -> Any:
            return hidden + debug * self.inner(hidden)

    module = Named()
    plain = gradients(module, X)
    plan = planning(module, X).by_policy("all")
    names: dict[str, Any] = {}
    exec(plan.code(), names)
    assert all(map(torch.equal, gradients(names["checkpointed"](module), X), plain))
