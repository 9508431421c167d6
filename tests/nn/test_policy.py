"""A policy applies to any model: what its gradients and figures are is what they are in a Sequential of its blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.state import current
from memback.nn.policy import Policy
from memback.profiling.report import Report, Run
from tests.models.small import MODELS

WIDTH, DEPTH = 8, 7
X = np.random.default_rng(0).standard_normal((4, WIDTH)).astype(np.float32)
POLICIES = ("none", "all", "selective", "sqrt", "every:1", "every:2", "every:3", "every:7", "every:9")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.dropout, self.outer = nn.Linear(WIDTH, 3 * WIDTH), nn.Dropout(0.3), nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, input: Any, scale: float = 1.0) -> Any:
        return ops.add(input, self.outer(self.dropout(ops.tanh(ops.multiply(self.inner(input), scale)))))


class Stack(nn.Module):
    """Blocks in a loop, one child down."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.add_module("layers", nn.ModuleList(Residual() for _ in range(DEPTH)))

    def forward(self, x: Any) -> Any:
        for layer in self.body._modules["layers"].children():
            x = layer(x)
        return x


class Attributes(nn.Module):
    """Blocks as attributes, no container; one of them is called twice, and one takes an argument of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = Residual(), Residual(), Residual()

    def forward(self, x: Any) -> Any:
        return self.last(self.middle(self.middle(self.first(x)), scale=0.5))


class AsSequential(nn.Module):
    """The same blocks in a Sequential."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Any) -> Any:
        return self.blocks(x)


class Scaled(nn.Module):
    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, input: Any) -> Any:
        return self.block(input, scale=0.5)


def looped() -> tuple[nn.Module, nn.Module, Any]:
    model = Stack()
    return model, AsSequential(list(model.body._modules["layers"].children())), "body.layers.*"


def called_twice() -> tuple[nn.Module, nn.Module, Any]:
    model = Attributes()
    blocks = [model.first, model.middle, Scaled(model.middle), model.last]
    return model, AsSequential(blocks), ["first", "middle", "middle", "last"]


SHAPES: dict[str, Callable[[], tuple[nn.Module, nn.Module, Any]]] = {"looped": looped, "called twice": called_twice}


def gradients(model: nn.Module, *policies: Any) -> list[bytes]:
    mb.manual_seed(3)
    model.zero_grad()
    for policy in policies:
        policy.__enter__()
    loss = ops.sum(model(ops.multiply(mb.Tensor(X), 2.0)))
    loss.backward()
    for policy in policies:
        policy.__exit__(None, None, None)
    return [loss.data.tobytes(), *(p.grad.tobytes() for p in model.parameters())]


def figures(run: Run) -> tuple[Any, ...]:
    return run.saved_bytes, run.peak.total_bytes, run.flops, run.recomputed_flops


def profile(model: nn.Module, policy: Policy) -> Report:
    def step() -> mb.Tensor:
        return ops.sum(model(ops.multiply(mb.Tensor(X), mb.Tensor(np.ones_like(X), requires_grad=True))))

    with mb.dry_run():
        return mb.profile(model, step=step, modes=("full", "checkpoint", "inference"), policy=policy)


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_named_blocks_are_bit_identical(shape: str, text: str) -> None:
    model, _, names = SHAPES[shape]()
    policy = nn.Policy.parse(text, names)
    assert gradients(model, policy.apply(model)) == gradients(model)
    assert all(module._runner is None for module in model.modules())


@pytest.mark.parametrize("text", POLICIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_figures_of_named_blocks_are_those_of_a_sequential(shape: str, text: str) -> None:
    model, twin, names = SHAPES[shape]()
    ours, theirs = profile(model, nn.Policy.parse(text, names)), profile(twin, nn.Policy.parse(text))
    for mine, other in zip(ours.runs, theirs.runs, strict=True):
        assert figures(mine) == figures(other), mine.mode


@pytest.mark.parametrize("text", ["all", "selective", "sqrt"])
def test_blocks_in_a_list_are_segments_of_their_own_where_they_are_not_named(text: str) -> None:
    model, twin, _ = looped()
    alone = "selective" if text == "selective" else "all"
    ours, theirs = profile(model, nn.Policy.parse(text)), profile(twin, nn.Policy.parse(alone))
    assert figures(ours.runs[1]) == figures(theirs.runs[1])


def test_a_model_without_containers_is_refused_until_its_blocks_are_named() -> None:
    model = Attributes()
    with (
        pytest.raises(mb.UsageError, match="policy 'sqrt' finds nothing to checkpoint in Attributes.*name its blocks"),
        nn.Policy.parse("sqrt").apply(model),
    ):
        pass


class Peeking(Stack):
    """Does something between blocks, which ``between`` says."""

    def __init__(self, between: Callable[[Any], Any]) -> None:
        super().__init__()
        self.between = between

    def forward(self, x: Any) -> Any:
        for layer in self.body._modules["layers"].children():
            x = self.between(layer(x))
        return x


def _random(x: Any) -> Any:
    ops.dropout(mb.Tensor(X), 0.5)
    return x


PEEKS: dict[str, Callable[[Any], Any]] = {
    "ops": lambda x: ops.reshape(ops.add(x, 1.0), x.shape),
    "an operator": lambda x: mb.Tensor(X) + x * 2.0,
    "the values": lambda x: x * float(x.data.mean()),
    "a side door": lambda x: ops.add(x, ops.tanh(x)) if bool(x.data.any()) else x,
    "random numbers": lambda x: ops.dropout(_random(x), 0.5),
}


@pytest.mark.parametrize("text", ["all", "every:3", "sqrt"])
@pytest.mark.parametrize("peek", PEEKS)
def test_what_a_model_does_between_blocks_is_a_part_of_their_segment(peek: str, text: str) -> None:
    model = Peeking(PEEKS[peek])
    assert gradients(model, nn.Policy.parse(text, "body.layers.*").apply(model)) == gradients(model)


def test_a_block_that_is_called_outside_of_its_model_runs_as_ever() -> None:
    model = Attributes()
    with nn.Policy.parse("every:3", ["first", "middle", "middle", "middle", "last"]).apply(model):
        before = current().tape
        ops.sum(model.middle(model.first(mb.Tensor(X)))).backward()
        assert current().tape is before


class Skipping(Attributes):
    """Gives the last block the output of the first one, or leaves it out."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way

    def forward(self, x: Any) -> Any:
        first = self.first(x)
        middle = self.middle(first)
        return ops.add(self.last(first), middle) if self.way == "back" else middle


@pytest.mark.parametrize("text", ["all", "every:3"])
def test_a_block_may_get_an_earlier_output(text: str) -> None:
    model = Skipping("back")
    assert gradients(model, nn.Policy.parse(text, ["first", "middle", "last"]).apply(model)) == gradients(model)


@pytest.mark.parametrize("text", ["all", "every:2", "every:3"])
def test_a_model_that_calls_fewer_blocks_than_are_named_is_refused(text: str) -> None:
    model = Skipping("out")
    with (
        nn.Policy.parse(text, ["first", "middle", "last"]).apply(model),
        pytest.raises(mb.UsageError, match="the model called 2 of 3 named blocks, up to 'middle'"),
    ):
        model(mb.Tensor(X))


def test_a_block_in_a_loop_of_its_own_is_named_as_often_as_it_is_called() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Residual()

        def forward(self, x: Any) -> Any:
            for _ in range(5):
                x = self.block(x)
            return x

    model = Recurrent()
    policy = nn.Policy.parse("every:2", ["block"] * 5)
    assert gradients(model, policy.apply(model)) == gradients(model)
    twin = AsSequential([model.block] * 5)
    for mine, other in zip(profile(model, policy).runs, profile(twin, nn.Policy.parse("every:2")).runs, strict=True):
        assert figures(mine) == figures(other)


def test_a_forward_pass_that_failed_leaves_nothing_behind() -> None:
    model, _, names = looped()
    policy = nn.Policy.parse("every:3", names)
    expected = gradients(model)
    with policy.apply(model):
        with pytest.raises(mb.OpError):
            model(mb.Tensor(np.ones((4, WIDTH + 1), np.float32)))
        assert gradients(model) == expected


WRONG: dict[str, tuple[str, Any, str]] = {
    "no such block": (
        "sqrt",
        "blocks.*",
        r"no module of Attributes is called 'blocks\.\*'; its children are first, mid",
    ),
    "one in another": ("sqrt", ["first", "first.inner"], "block 'first.inner' lies inside of block 'first'"),
    "names twice over": ("match:first", "first", "policy 'match:first' selects modules by their names: it takes no"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_names_that_can_not_be_right_are_refused(wrong: str) -> None:
    text, names, message = WRONG[wrong]
    model = Attributes()
    with pytest.raises(mb.UsageError, match=message), nn.Policy.parse(text, names).apply(model):
        pass


def test_blocks_that_are_called_in_another_order_are_refused() -> None:
    model = Attributes()
    with (
        nn.Policy.parse("sqrt", ["first", "middle", "last"]).apply(model),
        pytest.raises(mb.UsageError, match="'middle' is called where 'last' is the next of the blocks"),
    ):
        model(mb.Tensor(X))


@pytest.mark.parametrize("name", MODELS)
def test_applying_a_policy_by_its_name_or_as_an_object_is_one_thing(name: str) -> None:
    model = MODELS[name]("float32")
    before = [(m._runner, getattr(m, "policy", None)) for m in model.modules()]
    with nn.Policy.parse("every:2").apply(model):
        assert [(m._runner, getattr(m, "policy", None)) for m in model.modules()] != before
    assert [(m._runner, getattr(m, "policy", None)) for m in model.modules()] == before
