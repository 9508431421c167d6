"""Plans for PyTorch modules: their peaks by a count that isn't theirs, their gradients bit by bit, their optimality."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import memback.bridges.torch as bridge
from memback.bridges.torch.planning.blocks import BlockPlanning
from memback.bridges.torch.recording.body import actions_of, blocks_in, body_of, every_body, grouped, runs_again
from memback.bridges.torch.recording.step import Step
from memback.errors import MembackError, UsageError
from memback.plans import simulate
from memback.plans.stage import Stage
from memback.reports import torch_plan
from tests.bridges import torch_models as twins
from tests.bridges.counts import storage_peak


def square(y):
    return y.square().mean()


def resnet():
    torch.manual_seed(0)
    return twins.ResNet(width=8, classes=10), torch.randn(2, 3, 48, 48)


def gpt():
    torch.manual_seed(0)
    return twins.GPT(8, 32, 4, 50, 32, dropout=0.1), torch.randint(0, 50, (2, 32))


def unet():
    torch.manual_seed(0)
    return twins.UNet(width=8, depth=3), torch.randn(1, 3, 32, 32)


@cache
def planned(make):
    """A model, its input, and its planning, which are the same for all budgets."""
    module, x = make()
    return module, x, BlockPlanning(Step(module, (x,), {}, twins.cross_entropy))


def step(module, x, loss=twins.cross_entropy):
    """Loss, gradients and buffers of a step that begins with the same random numbers; buffers are put back."""
    before = [buffer.clone() for buffer in module.buffers()]
    torch.manual_seed(3)
    module.zero_grad()
    value = loss(module(x))
    value.backward()
    found = value.detach(), [p.grad.clone() for p in module.parameters()], [b.clone() for b in module.buffers()]
    with torch.no_grad():
        for buffer, was in zip(module.buffers(), before, strict=True):
            buffer.copy_(was)
    return found


def same(one, other):
    return all(
        torch.equal(a, b)
        for left, right in zip(one[1:], other[1:], strict=True)
        for a, b in zip(left, right, strict=True)
    ) and torch.equal(one[0], other[0])


@pytest.mark.parametrize("make", [resnet, gpt, unet])
@pytest.mark.parametrize("share", [0, 0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_plan_fits_and_gives_the_same_bits(make, share):
    module, x, planning = planned(make)
    low, full = planning.takes(planning.leanest), planning.takes(planning.everything)
    budget = int(low + (full - low) * share)
    plan = planning.plan(budget)
    plain = step(module, x)
    arguments = [*module.parameters(), *module.buffers(), x]
    module.zero_grad()
    with plan.apply(module):
        found = step(module, x)
        module.zero_grad()
        peak = storage_peak(lambda: twins.cross_entropy(module(x)).backward(), arguments)
        step(module, x)
    assert same(found, plain)
    assert peak == plan.peak_bytes <= plan.peak_bytes + plan.reserve_bytes <= budget
    assert plan.full_peak_bytes == full


class Stack(torch.nn.Module):
    """Blocks with what the model does itself between them, whose sizes have no common unit."""

    def __init__(self, width=64, depth=8):
        super().__init__()
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.LayerNorm(width), torch.nn.GELU())
            for _ in range(depth)
        )
        self.head = torch.nn.Linear(width, 3)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_every_budget_has_a_plan_or_names_the_least_that_has():
    module, x = Stack(), torch.randn(256, 64)
    planning = BlockPlanning(Step(module, (x,), {}, lambda y: y.mean()))
    with pytest.raises(bridge.NoPlanError) as refused:
        planning.plan(0)
    least = refused.value.minimum_bytes
    full = planning.takes(planning.everything)
    for tenths in (2, 5, 8):
        budget = full * tenths // 10
        if budget < least:
            with pytest.raises(bridge.NoPlanError) as again:
                planning.plan(budget)
            assert again.value.minimum_bytes == least
        else:
            plan = planning.plan(budget)
            assert plan.peak_bytes + plan.reserve_bytes <= budget
    with pytest.raises(bridge.NoPlanError):
        planning.plan(least - 1)
    assert planning.plan(least).peak_bytes < least
    assert planning.frontier()[0].budget == least


@pytest.mark.parametrize("make", [resnet, gpt, unet])
def test_less_than_the_least_is_refused_and_the_least_fits(make):
    _module, _x, planning = planned(make)
    with pytest.raises(
        bridge.NoPlanError, match="the leanest found needs [0-9,]+ B .* Raise the budget to that"
    ) as refused:
        planning.plan(10_000)
    least = refused.value.minimum_bytes
    assert planning.plan(least).peak_bytes < least
    with pytest.raises(bridge.NoPlanError):
        planning.plan(planning.plan(least).peak_bytes - 1)


@pytest.mark.parametrize("make", [gpt, unet])
def test_less_memory_costs_more_computation(make):
    _module, _x, planning = planned(make)
    points = planning.frontier()
    assert len(points) > 4
    assert points == sorted(points)
    assert [p.extra_flops for p in points] == sorted((p.extra_flops for p in points), reverse=True)
    assert points[-1].extra_flops == 0
    assert points[-1].budget <= planning.takes(planning.everything)
    for budget, extra in (points[1], points[len(points) // 2]):
        assert planning.plan(budget).extra_flops <= extra


# -- the cheapest


def layer(kind, width):
    if kind == "wide":
        return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
    return {
        "linear": lambda: nn.Linear(width, width),
        "act": nn.GELU,
        "norm": lambda: nn.LayerNorm(width),
        "drop": lambda: nn.Dropout(0.5),
        "relu": lambda: nn.ReLU(inplace=True),
    }[kind]()


class Loop(nn.Module):
    """A loop over blocks, with code before and after."""

    def __init__(self, kinds, width=16):
        super().__init__()
        self.first, self.blocks = nn.Linear(width, width), nn.ModuleList(Part(kind, width) for kind in kinds)

    def forward(self, x):
        x = self.first(x).tanh()
        for block in self.blocks:
            x = block(x)
        return x.sigmoid()


class Part(nn.Module):
    def __init__(self, kind, width):
        super().__init__()
        self.inner = layer(kind, width)

    def forward(self, x):
        return x + self.inner(x) if isinstance(self.inner, nn.Sequential) else self.inner(x)


CHAINS = [
    ("linear", "act", "linear"),
    ("wide", "wide", "wide"),
    ("wide", "act", "norm"),
    ("norm", "wide", "drop"),
    ("linear", "relu", "wide", "norm"),
]


@pytest.mark.parametrize("kinds", CHAINS, ids="-".join)
def test_no_segmentation_of_a_small_chain_that_fits_is_cheaper(kinds):
    torch.manual_seed(0)
    module, x = Loop(kinds), torch.randn(64, 16)
    planning = BlockPlanning(Step(module, (x,), {}, square))
    bodies = every_body(planning.blocks.joined, planning.blocks.fixed, 1000)
    truth = {}
    for body in bodies:
        judged = planning.judge(body)
        truth[body] = judged.peak.bytes + planning.reserve(body), planning.extra_cost(body)
    lean, full = min(truth.values())[0], truth[planning.everything][0]
    for tenths in range(0, 11, 2):
        budget = lean + (full - lean) * tenths // 10
        fresh = BlockPlanning(planning.step)
        fresh._judged.update(planning._judged)  # they were run dry already
        plan = fresh.plan(budget)
        cost = sum(
            times * planning.stages[planning.blocks.stages.index(plan.bounds.index(call))].forward_cost
            for call, times in plan.runs.items()
            if call in plan.bounds
        )
        assert cost == min(cost for peak, cost in truth.values() if peak <= budget)


# -- bodies


def bodies(n):
    """Bodies over n blocks, which end in a block."""
    return st.sampled_from([body for body in every_body([True] * n, [False] * n, 10_000) if isinstance(body[-1], int)])


@given(st.integers(1, 6).flatmap(bodies))
def test_a_body_is_the_schedule_that_it_carries_out(body):
    actions = list(actions_of(body))
    assert body_of(actions) == body
    n = len(list(blocks_in(body)))
    cost, _ = simulate([Stage(1, 0, 1)] * n, actions)
    assert cost == n + sum(runs_again(body).values())


def test_every_body_is_counted():
    for n, count in enumerate((2, 6, 22, 90, 394), start=1):  # the large Schröder numbers
        found = every_body([True] * n, [False] * n, 1000)
        assert len(set(found)) == len(found) == count
    assert every_body([True] * 5, [False] * 5, 393) is None
    assert every_body([True, False], [False, True], 10) == [(0, 1), ((0,), 1)]


@given(st.integers(1, 6).flatmap(bodies), st.integers(1, 5))
def test_a_cut_segment_runs_the_same_blocks(body, at):
    cut = grouped(body, lambda before, number: number != at)
    assert list(blocks_in(cut)) == list(blocks_in(body))
    assert all(at not in list(blocks_in(item))[1:] for item in cut if not isinstance(item, int))


# -- applying


def test_a_module_is_afterwards_what_it_was():
    module, _x, planning = planned(gpt)
    plan = planning.plan(planning.takes(planning.leanest))
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in module.state_dict(keep_vars=True).items()}
    attributes = [dict(vars(owner)) for owner in module.modules()]
    with plan.apply(module):
        applied = module.state_dict(keep_vars=True)
        assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in applied.items()} == before
        twin = copy.deepcopy(module)
        pickle.loads(pickle.dumps(module))
    assert [dict(vars(owner)) for owner in module.modules()] == attributes
    assert all(owner._compiled_call_impl is None for owner in twin.modules())


def test_it_can_be_applied_without_a_block_and_reverted():
    module, x, planning = planned(gpt)
    plan = planning.plan(planning.takes(planning.leanest))
    plain = step(module, x)
    plan.apply(module)
    try:
        assert same(step(module, x), plain)
        with pytest.raises(UsageError, match="runs this plan already: revert it first"):
            plan.apply(module)
        with pytest.raises(UsageError, match="runs a plan already"):
            planning.plan(planning.takes(planning.everything) - 1).apply(module)
    finally:
        plan.revert(module)
    with pytest.raises(UsageError, match="nothing to revert"):
        plan.revert(module)
    assert same(step(module, x), plain)


def test_it_is_reverted_when_the_step_fails():
    module, x, planning = planned(gpt)
    with pytest.raises(IndexError), planning.plan(planning.takes(planning.leanest)).apply(module):
        module(x + 1000)
    assert all(owner._compiled_call_impl is None for owner in module.modules())


def test_it_runs_in_evaluation_without_gradients_and_on_other_batches():
    module, x, planning = planned(resnet)
    plan = planning.plan(planning.takes(planning.leanest))
    module = copy.deepcopy(module)
    other = torch.cat([x, x])
    for training in (True, False):
        module.train(training)
        plain = step(module, other)
        with torch.no_grad():
            expected = module.eval()(x)
        module.train(training)
        with plan.apply(module):
            assert same(step(module, other), plain)
            with torch.no_grad():
                module.eval()
                assert torch.equal(module(x), expected)
                module.train(training)


def test_running_statistics_are_updated_once():
    module, x, planning = planned(resnet)
    plan = planning.plan(planning.takes(planning.leanest))
    assert any("running_mean" in name for call in plan.calls for name in call.changes)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    plain = step(module, x)[2]
    with plan.apply(module):
        assert all(map(torch.equal, step(module, x)[2], plain))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


def test_backward_can_run_twice():
    module, x, planning = planned(resnet)
    plan = planning.plan(planning.takes(planning.leanest))
    step(module, x)
    before = [buffer.clone() for buffer in module.buffers()]
    module.zero_grad()
    with plan.apply(module):
        loss = twins.cross_entropy(module(x))
        after = [buffer.clone() for buffer in module.buffers()]
        loss.backward(retain_graph=True)
        once = [parameter.grad.clone() for parameter in module.parameters()]
        loss.backward()
    assert all(torch.equal(parameter.grad, 2 * grad) for parameter, grad in zip(module.parameters(), once, strict=True))
    assert all(map(torch.equal, module.buffers(), after))
    with torch.no_grad():
        for buffer, was in zip(module.buffers(), before, strict=True):
            buffer.copy_(was)


class Counting(nn.Module):
    """What it gives depends on a buffer that it changes, and that another replaces."""

    def __init__(self, width=8):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.register_buffer("calls", torch.ones(()))
        self.register_buffer("last", torch.zeros(width))

    def forward(self, x):
        self.calls.add_(1)
        y = self.linear(x + self.last) * self.calls
        self.last = y.detach().mean(0)
        return y.tanh()


def test_buffers_on_which_a_block_depends_are_as_before_when_it_runs_again():
    torch.manual_seed(0)
    module, x = nn.Sequential(*(Counting() for _ in range(4))), torch.randn(16, 8)
    planning = BlockPlanning(Step(module, (x,), {}, square))
    twin = copy.deepcopy(module)
    body = ((0, (1, 2), 3),)
    plain = step(twin, x, square)
    with planning.realise(body, 0, "").apply(module):
        assert same(step(module, x, square), plain)
    with pytest.raises(UsageError, match=r"0 writes to 0.calls, which a few lines can't put back"):
        planning.realise(body, 0, "").code()


def test_existing_hooks_stay_at_work():
    module, x, planning = planned(gpt)
    plan = planning.plan(planning.takes(planning.leanest))
    segment = next(item for item in plan.body if not isinstance(item, int))
    block = module.get_submodule(plan.calls[next(blocks_in(segment))].path)
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, args, out: out * 2),
        block.register_forward_pre_hook(lambda m, args: seen.append(args[0].shape)),
        block.register_full_backward_hook(lambda m, gave, got: seen.append(got[0].shape)),
    ]
    try:
        plain, once = step(module, x), len(seen)
        with plan.apply(module):
            assert same(step(module, x), plain)
        assert len(seen) >= 2 * once == 4
    finally:
        for hook in hooks:
            hook.remove()


def convolutions():
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.LayerNorm(8), nn.GELU())]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 3)), torch.randn(32, 4, 8, 8)


def small_resnet():
    torch.manual_seed(0)
    return twins.ResNet((1, 2), width=8, classes=10), torch.randn(2, 3, 48, 48)


@pytest.mark.parametrize("make", [convolutions, small_resnet, gpt])
def test_under_mixed_precision_it_fits_and_gives_the_same_bits(make):
    module, x = make()
    step_of = Step(module, (x,), {}, twins.cross_entropy, torch.bfloat16)
    planning = BlockPlanning(step_of)
    low, full = planning.takes(planning.leanest), planning.takes(planning.everything)
    plan = planning.plan((low + full) // 2)
    verdict = bridge.verify(plan, module, x, loss=twins.cross_entropy, autocast=torch.bfloat16)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes == plan.peak_bytes
    assert verdict.measured_peak_bytes < verdict.full_peak_bytes == plan.full_peak_bytes


# -- what flows between blocks


class Masked(nn.Module):
    """Blocks in a loop that are all given a mask and a factor, and give a tuple, whose first part goes on."""

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.linear, self.norm = nn.Linear(width, 4 * width), nn.LayerNorm(4 * width)
            self.back = nn.Linear(4 * width, width)

        def forward(self, x, mask, *, factor=1.0, cache=None):
            h = F.gelu(self.norm(self.linear(x))) * factor
            return x + self.back(h) * mask, None

    def __init__(self, n=4, width=16):
        super().__init__()
        self.layers = nn.ModuleList(self.Block(width) for _ in range(n))

    def forward(self, x):
        mask = (x > 0).float()
        for block in self.layers:
            x, _ = block(x, mask, factor=0.5)
        return x


def segments(plan):
    return [tuple(plan.calls[i].path for i in blocks_in(item)) for item in plan.body if not isinstance(item, int)]


def test_masks_constants_and_tuples_flow_through_segments():
    torch.manual_seed(0)
    module, x = Masked(), torch.randn(32, 16, requires_grad=True)
    planning = BlockPlanning(Step(module, (x,), {}, square))
    plan = planning.realise(((0, (1, 2), 3),), 0, "")
    assert segments(plan) == [("layers.0", "layers.1", "layers.2", "layers.3")]
    verdict = bridge.verify(plan, module, x, loss=square)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    with pytest.raises(UsageError, match="more than one value flows from layers.0 to layers.1"):
        plan.code()


class Skips(nn.Module):
    """The first block's output is used again at the end."""

    def __init__(self, width=16):
        super().__init__()
        self.blocks = nn.Sequential(*(layer("wide", width) for _ in range(2)))
        self.more = nn.ModuleList(Part("wide", width) for _ in range(3))

    def forward(self, x):
        kept = x = self.more[0](x)
        for block in self.more[1:]:
            x = block(x)
        return x * kept


def test_a_value_that_is_used_elsewhere_is_not_amid_a_segment():
    torch.manual_seed(0)
    module, x = Skips(), torch.randn(8, 16)
    planning = BlockPlanning(Step(module, (x,), {}, square))
    assert planning.blocks.joined == [False, False, True]
    assert segments(planning.by_policy("every:3")) == []
    assert segments(planning.by_policy("all")) == [("more.0",), ("more.1",), ("more.2",)]


class Branching(nn.Module):
    """Takes another way through its blocks when it is told to."""

    def __init__(self, width=16):
        super().__init__()
        self.blocks = nn.ModuleList(Part("wide", width) for _ in range(3))
        self.way = "plain"

    def forward(self, x):
        order = reversed(self.blocks) if self.way == "backwards" else self.blocks
        values = [x]
        for block in order:
            values.append(block(values[-1]) if self.way != "other" else block(values[-1] * 1))
        return sum(values[1:]) if self.way == "sum" else values[-1]


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ("sum", "the value between blocks.0 and blocks.1 is used by other code"),
        ("other", "the value between blocks.0 and blocks.1 is used by other code"),
        ("backwards", "blocks.2 is called where the plan has that of blocks.0"),
    ],
)
def test_another_way_through_the_model_is_an_error_and_no_wrong_number(way, message):
    torch.manual_seed(0)
    module, x = Branching(), torch.randn(8, 16)
    plan = BlockPlanning(Step(module, (x,), {}, square)).realise(((0, 1, 2),), 0, "")
    plain = step(module, x, square)
    with plan.apply(module):
        module.way = way
        with pytest.raises(MembackError, match=message):
            module(x)
        module.way = "plain"
        assert same(step(module, x, square), plain)


def test_a_block_that_is_called_again_and_again():
    torch.manual_seed(0)
    block = Part("wide", 16)
    module, x = nn.Sequential(*([block] * 5)), torch.randn(32, 16)
    planning = BlockPlanning(Step(module, (x,), {}, square))
    assert [call.number for call in planning.blocks.calls] == list(range(5))
    plan = planning.realise(((0, 1), (2, 3), 4), 0, "")
    verdict = bridge.verify(plan, module, x, loss=square)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    with pytest.raises(UsageError, match="0 is called 5 times"):
        plan.code()


# -- which blocks


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (["h.*"], [f"h.{i}" for i in range(8)]),
        (["ln_f", "h.[67]"], ["h.6", "h.7", "ln_f"]),
        (["h.0.attn", "h.0"], ["h.0"]),
    ],
)
def test_blocks_are_named_by_patterns(patterns, paths):
    module, x, _ = planned(gpt)
    blocks = BlockPlanning(Step(module, (x,), {}, twins.cross_entropy), patterns).blocks
    assert [call.path for call in blocks.calls] == paths


def test_blocks_are_found_where_the_tree_of_modules_has_them():
    paths = [call.path for call in planned(resnet)[2].blocks.calls]
    assert paths[:6] == ["conv1", "bn1", "relu", "maxpool", "layers.0.0", "layers.0.1"]
    assert len(paths) == 4 + 16 + 2
    assert all(
        call.linked for call in planned(gpt)[2].blocks.calls if call.path.startswith("h.") and call.path != "h.0"
    )


def test_what_has_no_blocks_is_refused():
    with pytest.raises(UsageError, match="Linear calls no submodules that could be blocks; name those"):
        bridge.plan(nn.Linear(4, 4), torch.ones(2, 4), budget=1000, how="checkpoint")
    module, x, _ = planned(gpt)
    with pytest.raises(UsageError, match=r"no call of a submodule matches blocks pattern 'g.\*'; there are drop, h.0,"):
        bridge.plan(module, x, budget=1000, blocks=["g.*"])


def test_what_is_compiled_is_refused():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1]._compiled_call_impl = module[1].forward  # as module.compile() does
    with pytest.raises(UsageError, match=r"submodule 1 is compiled.*before its compile\(\) was called"):
        bridge.plan(module, torch.ones(2, 4), budget=1000)


# -- policies, the report, time


def test_the_report_runs_policies_and_plans_as_a_mode():
    module, x, planning = planned(gpt)
    for policy in ("sqrt", planning.plan(planning.takes(planning.leanest))):
        report = bridge.profile(module, x, loss=twins.cross_entropy, modes=["full"], policy=policy, rounds=1)
        full, again = report.runs
        assert again.mode == "checkpoint"
        assert again.policy == (policy if isinstance(policy, str) else policy.name)
        assert again.gradient_sha256 == full.gradient_sha256
        assert again.measured_peak_bytes == again.predicted_peak_bytes < full.measured_peak_bytes
        assert again.recomputed_flops > 0
    with pytest.raises(UsageError, match="there are none, every:k, sqrt and all"):
        bridge.profile(module, x, policy="selective")


def test_the_rows_of_a_plan_add_up_to_what_is_saved():
    planning = planned(unet)[2]
    plan = planning.by_policy("every:3")
    table = torch_plan.blocks(plan)
    sizes = [int(row.cells[2].text.replace(",", "")) for row in table.rows]
    assert table.rows[-1].cells[0].text == "total"
    assert sum(sizes[:-1]) == sizes[-1] == plan.saved_bytes
    assert sum(plan.unit_saved_bytes) < plan.saved_bytes


def test_policies_cut_the_chain_of_blocks():
    _module, _x, planning = planned(gpt)
    by_four = segments(planning.by_policy("every:4"))
    assert by_four[-1] == ("h.5", "h.6", "h.7", "ln_f")[-len(by_four[-1]) :]
    assert planning.by_policy("none").runs == {}
    assert len(segments(planning.by_policy("all"))) == len(planning.blocks.units)


def test_time_can_be_what_is_saved():
    module, x = Loop(["wide"] * 4), torch.randn(64, 16)
    planning = BlockPlanning(Step(module, (x,), {}, square), timed=True)
    plan = planning.plan(planning.takes(planning.leanest))
    assert 0 < plan.extra_seconds < 1
    assert all(stage.forward_cost > 0 for stage, unit in zip(plan.stages, plan.units, strict=True) if unit is not None)
    with torch.device("meta"):
        dry = Loop(["wide"] * 4)
    with pytest.raises(UsageError, match="can't be timed"):
        bridge.plan(dry, torch.randn(64, 16, device="meta"), loss=square, budget=10**6, timed=True)


def test_a_plan_is_made_without_memory():
    module, x = Loop(["wide"] * 4), torch.randn(64, 16)
    with torch.device("meta"):
        dry = Loop(["wide"] * 4)
    budget = BlockPlanning(Step(module, (x,), {}, square)).plan(2**40).peak_bytes - 1
    plans = [bridge.plan(m, x.to(m.first.weight.device), loss=square, budget=budget) for m in (module, dry)]
    assert plans[0] == plans[1]


class Dense(nn.Module):
    """Layers that are given a list of all that those before them have given."""

    class Layer(nn.Module):
        def __init__(self, channels, growth):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1)

        def forward(self, features):
            return self.conv(F.relu(self.norm(torch.cat(features, 1))))

    def __init__(self, layers=4, channels=4, growth=2):
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(channels + i * growth, growth) for i in range(layers))

    def forward(self, x):
        features = [x]
        for each in self.layers:
            features.append(each(features))
        return torch.cat(features, 1)


class Translating(nn.Module):
    """An encoder, whose output every layer of the decoder is given."""

    def __init__(self):
        super().__init__()
        self.both = nn.Transformer(16, 2, 2, 3, 32, batch_first=True, dropout=0.1)

    def forward(self, x):
        return self.both(x, x[:, 1:])


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (Dense, torch.ones(2, 4, 8, 8).cumsum(3)),
        (Translating, torch.ones(2, 6, 16).cumsum(2)),
        (
            lambda: nn.Sequential(*(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)) for _ in range(4))),
            torch.eye(8),
        ),
        (
            lambda: nn.Sequential(
                *(
                    each
                    for _ in range(3)
                    for each in (
                        nn.Conv2d(4, 4, 3, padding=1),
                        nn.InstanceNorm2d(4, track_running_stats=True),
                        nn.ELU(inplace=True),
                    )
                )
            ),
            torch.ones(2, 4, 8, 8).cumsum(3),
        ),
    ],
    ids=["dense", "transformer", "spectral-norm", "in-place"],
)
@pytest.mark.parametrize("policy", ["all", "sqrt"])
def test_all_kinds_of_models_give_the_same_bits_under_policies(make, x, policy):
    torch.manual_seed(0)
    module = make()
    plan = BlockPlanning(Step(module, (x,), {}, square)).by_policy(policy)
    assert plan.runs
    before = [buffer.clone() for buffer in module.buffers()]
    verdict = bridge.verify(plan, module, x, loss=square)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes
    assert all(map(torch.equal, module.buffers(), before))


def test_a_step_of_unknown_size_gets_no_plan_but_policies():
    module, x = nn.Sequential(nn.Embedding(9, 4, sparse=True)), torch.zeros(3, dtype=torch.int64)
    options = {"loss": square, "blocks": ["0"]}
    with pytest.raises(MembackError, match="does not know the size of .*, so that no plan can be sure to fit"):
        bridge.plan(module, x, budget="1MiB", **options)


@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(4), lambda: nn.LayerNorm(8), lambda: nn.GroupNorm(2, 4)])
def test_statistics_in_mixed_precision_are_predicted(norm):
    module, x = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), norm()), torch.ones(2, 4, 8, 8).cumsum(3)
    report = bridge.profile(module, x, modes=["full"], autocast=torch.bfloat16, rounds=1)
    run = report.runs[0]
    assert run.predicted_peak_bytes == run.measured_peak_bytes
