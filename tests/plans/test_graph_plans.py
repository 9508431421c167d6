"""Plans for the graph of a model's calls: made from dry runs, executed for real."""

from __future__ import annotations

import gc
import json
from functools import cache

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.errors import TapeError
from memback.errors import UsageError
from memback.plans.graph import simulate
from memback.plans.graph.schedule import everything, nothing, unfold
from memback.plans.model import RESERVE, ModelPlan, NoPlanError, Planning
from memback.plans.model.graph_region import GraphRegion
from memback.plans.model.measure import predict, trace
from memback.plans.model.step_graph import graph_of
from memback.profiling import definition
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload

SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Dense(nn.Module):
    """Every block reads the outputs of all blocks before it."""

    def __init__(self, width: int = 24, blocks: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(width * (i + 1), width) for i in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        outs = [x]
        for block in self.blocks:
            outs.append(self.dropout(ops.gelu(self.norm(block(ops.concatenate(outs, dim=1))))))
        return outs[-1] + outs[1]


def dense(rows: int = 512, **kwargs) -> tuple[Dense, Step]:
    mb.manual_seed(0)
    model = Dense(**kwargs)
    x = np.random.default_rng(1).standard_normal((rows, 24)).astype(np.float32)
    return model, Step(lambda: ops.sum(model(mb.Tensor(x))), model)


@cache
def lean() -> ModelPlan:
    """The plan with the least peak for ``dense()``, found once: any such model can run it."""
    return Planning(dense()[1]).leanest("graph", 0.5)


def gradients(model: nn.Module, step: Step, retain: bool = False) -> dict[str, bytes]:
    with step.unchanged():
        mb.manual_seed(3)
        loss = step.function()
        loss.backward(retain_graph=retain)
        if retain:
            for parameter in model.parameters():
                parameter.grad = None
            loss.backward()
        return {name: parameter.grad.tobytes() for name, parameter in model.named_parameters()}


def shipped(name: str) -> Step:
    work = Workload.build(definition.load(name))
    x, y = work.batch(0)
    return Step(lambda: work.loss(x, y), work.model, work.optimizer)


def check_within_budget(step: Step, planning: Planning, seconds: float) -> list[ModelPlan]:
    """Six budgets from the least to full retention's: measured peaks within, gradients with full retention's bits."""
    full = step.account(Mode("full"))
    least = planning.leanest("graph", seconds).budget
    most = planning.everything.budget
    plans = []
    for share in SHARES:
        budget = least + int(share * (most - least))
        plan = planning.plan(budget, "graph", seconds)
        mode = Mode("checkpoint", plan)
        account = step.account(mode)
        measured, _ = step.measure(mode, account.ledger)
        assert measured.bytes <= budget
        assert measured.bytes <= plan.peak_bytes + 65536 + plan.peak_bytes // 100
        assert account.gradient_sha256 == full.gradient_sha256
        assert sum(row.saved_bytes for row in account.ledger.rows) == plan.saved_bytes
        assert account.ledger.recomputed_flops == plan.extra_flops
        plans.append(plan)
    assert not plans[-1].extra_flops
    return plans


def test_plans_of_a_dense_net_keep_to_six_budgets():
    _, step = dense(rows=4096)
    plans = check_within_budget(step, Planning(step), 1.0)
    assert plans[0].extra_flops > 0


@pytest.mark.parametrize("name", ["notes", "digits"])
def test_plans_of_small_profiles_keep_to_six_budgets(name):
    step = shipped(name)
    check_within_budget(step, Planning(step), 1.0)


@pytest.mark.long
@pytest.mark.parametrize("name", ["unet", "digits-resnet", "source-gpt", "vit"])
def test_plans_of_larger_profiles_keep_to_six_budgets(name):
    step = shipped(name)
    check_within_budget(step, Planning(step), 5.0)


@pytest.mark.parametrize("name", ["unet", "digits-resnet", "source-gpt"])
def test_the_memory_model_is_that_of_a_dry_run_with_everything_stored_and_with_nothing(name):
    work = Workload.build(definition.load(name), dry=True)
    x, y = work.batch(0)
    step = Step(lambda: work.loss(x, y), work.model, work.optimizer)
    graphed = graph_of(step, trace(step))
    for schedule in (everything(graphed.graph), nothing(graphed.graph)):
        actions = unfold(graphed.graph, schedule)
        region = graphed.region(actions)
        dry = predict(step, region.begin).peak.bytes
        assert simulate(graphed.graph, actions)[1] == pytest.approx(dry, rel=1e-3)
        assert simulate(graphed.graph, actions)[1] >= dry


def test_a_plan_for_a_graph_is_as_cheap_as_that_for_a_chain():
    _, step = dense(rows=4096)
    planning = Planning(step)
    chain = planning.leanest("chain")
    for budget in (chain.budget, (chain.budget + planning.everything.budget) // 2):
        auto = planning.plan(budget, "auto", 1.0)
        assert auto.extra_flops <= planning.plan(budget, "chain").extra_flops
        assert auto.optimality.endswith(("(planner graph)", "(planner chain)"))
        assert auto.peak_bytes <= budget


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_have_the_same_bits_with_dropout_and_a_retained_graph(dropout):
    model, step = dense(dropout=dropout)
    expected = gradients(model, step)
    nothing_stored = lean_plan(step)
    assert nothing_stored.extra_flops > 0
    for plan in (nothing_stored, Planning(step).leanest("graph", 0.5)):
        for retain in (False, True):
            with plan.apply(model):
                assert gradients(model, step, retain) == expected


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())
        self.a = nn.Sequential(nn.Linear(32, 32), nn.GELU())
        self.b = nn.Sequential(nn.Linear(32, 16), nn.GELU())

    def forward(self, x):
        h = self.trunk(x)
        return self.a(h), self.b(h)


def lean_plan(step: Step) -> ModelPlan:
    planning = Planning(step)
    graphed = planning.step_graph
    return planning.realise(graphed.region(unfold(graphed.graph, nothing(graphed.graph))), (), 0, "")


@pytest.mark.parametrize("first", [0, 1])
def test_backward_from_one_output_after_the_other(first):
    mb.manual_seed(0)
    model = TwoHeads()
    x = np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)
    step = Step(lambda: ops.sum(ops.concatenate(model(mb.Tensor(x)), dim=1)), model)

    def both(retain: bool) -> dict[str, bytes]:
        with step.unchanged():
            losses = [ops.sum(out) for out in model(mb.Tensor(x))]
            losses[first].backward(retain_graph=retain)
            losses[1 - first].backward()
            return {name: parameter.grad.tobytes() for name, parameter in model.named_parameters()}

    expected = both(True)
    with lean_plan(step).apply(model):
        assert both(True) == expected
        with pytest.raises(TapeError, match="retain_graph=True"):
            both(False)


def test_nothing_is_left_behind_after_backward():
    model, step = dense()
    plan = lean()
    runs = []

    def begin():
        runs.append(plan.region.begin())
        return runs[-1]

    gc.collect()
    gc.disable()
    try:
        from memback.plans.model.measure import planned

        with planned(model, begin), step.unchanged():
            step.function().backward()
        run = runs[-1]
        assert not run._store
        assert not run._saves
        assert not run._untold
        nodes = [call() for call in run._calls]
        assert nodes == [None] * len(nodes)
    finally:
        gc.enable()


def test_a_cleared_tape_drops_what_a_plan_stores():
    model, step = dense()
    with lean().apply(model), mb.Tape() as tape:
        loss = step.function()
        assert tape.saved_bytes > 0
        tape.clear()
        assert tape.saved_bytes == 0
        with pytest.raises(TapeError, match="its saved values are gone"):
            loss.backward()


def test_an_input_that_is_changed_in_place_is_an_error():
    mb.manual_seed(0)
    model = Dense()
    x = mb.Tensor(np.ones((512, 24), np.float32))
    with lean().apply(model):
        loss = ops.sum(model(x))
        x.copy_(np.zeros((512, 24), np.float32))
        with pytest.raises(TapeError, match="changed in place"):
            loss.backward()


def test_a_plan_survives_its_file(tmp_path):
    model, step = dense()
    expected = gradients(model, step)
    plan = lean()
    assert ModelPlan.from_dict(plan.to_dict()) == plan
    plan.save(tmp_path / "plan.json")
    loaded = ModelPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    with loaded.apply(model):
        assert gradients(model, step) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["graph"]["actions"].pop(), "this plan can't be run: action"),
        (lambda d: d["bounds"].pop(), "'bounds' do not cut its calls into its nodes"),
        (lambda d: d["graph"]["makers"].__setitem__(0, 3), "'makers' are not one call of each node"),
        (lambda d: d["graph"]["views"].append(d["graph"]["makers"][0]), "'views' are no calls"),
        (lambda d: d["graph"]["running"][0]["alive"].append(99), "'running' names a node beyond"),
        (lambda d: d["graph"]["nodes"][0].__setitem__("uses", [5]), "node 0 uses"),
        (lambda d: d["runs"].__setitem__("999", 1), "a call beyond"),
        (lambda d: d["graph"].__setitem__("mine", 1), "malformed"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(change, message):
    data = json.loads(json.dumps(lean().to_dict()))
    change(data)
    with pytest.raises(UsageError, match=message):
        ModelPlan.from_dict(data)


def test_a_plan_for_another_model_or_other_inputs_is_refused():
    other, _ = dense(blocks=3)
    with pytest.raises(UsageError, match="made for another model"), lean().apply(other):
        pass
    same, longer = dense(rows=100)
    with lean().apply(same), pytest.raises(UsageError, match="other inputs: call 0"):
        longer.function()


def test_a_graph_that_is_too_large_is_refused_by_graph_and_left_to_chain_by_auto():
    mb.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(80) for layer in (nn.Linear(8, 8), nn.ReLU())))
    x = mb.ShapeArray((64, 8), "float32")
    planning = Planning(Step(lambda: ops.sum(model(mb.Tensor(x))), model))
    budget = planning.leanest("chain").budget
    with pytest.raises(UsageError, match="takes too long for 160 calls that make 80 nodes; it takes at most"):
        planning.plan(budget, "graph")
    assert planning.plan(budget, "auto").optimality.endswith("(planner chain)")
    assert planning.leanest("auto").budget == budget


def test_a_budget_below_the_least_is_refused_with_that():
    _, step = dense()
    planning = Planning(step)
    with pytest.raises(NoPlanError) as raised:
        planning.plan(1000, "graph", 0.5)
    assert raised.value.minimum_bytes > 1000
    assert planning.plan(raised.value.minimum_bytes, "graph", 0.5).peak_bytes <= raised.value.minimum_bytes
    with pytest.raises(NoPlanError) as auto:
        planning.plan(1000, "auto", 0.5)
    assert auto.value.minimum_bytes <= raised.value.minimum_bytes


def test_the_public_function_takes_the_planner_and_keeps_everything_where_it_fits():
    model, _ = dense()
    x = mb.ShapeArray((512, 24), "float32")
    plan = mb.plan(model, x, budget="1GiB", planner="graph")
    assert plan.extra_flops == 0
    tight = mb.plan(model, x, budget=plan.peak_bytes - 50_000 + RESERVE, planner="graph", time_limit=1.0)
    assert isinstance(tight.region, GraphRegion)
    assert tight.runs
    assert tight.peak_bytes <= plan.peak_bytes - 50_000
