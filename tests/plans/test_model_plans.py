"""Plans for real models: they fit, they change no bit, and they are refused where they do not belong."""

from __future__ import annotations

import gc
import json
import tracemalloc
import weakref
from itertools import pairwise

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.op import REGISTRY
from memback.plans import BudgetError
from memback.plans.actions import Backward, Drop, Forward, Keep, Stored
from memback.plans.model.measure import measure, planned, trace
from memback.plans.model.planning import RESERVE, ModelPlan, NoPlanError, Planning, knee
from memback.plans.model.region import Region
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.units import parse_bytes
from tests.models.small import MODELS
from tests.plans.small import made, planning_of

SHARES = (0.0, 0.3, 0.7, 1.0)
"""Budgets between the least that there is a plan for and full retention's peak."""


def budgets(planning):
    least, most = planning.leanest().budget, planning.everything.budget
    return [least + int(share * (most - least)) for share in SHARES]


def mlp(depth=8, width=32, **options):
    mb.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())), **options)


X = np.random.default_rng(0).standard_normal((256, 32)).astype(np.float32)


def gradients(model):
    return {name: p.grad.copy() for name, p in model.named_parameters()}


def trained(model, x=X):
    model.zero_grad()
    ops.sum(model(mb.Tensor(x))).backward()
    return gradients(model)


def same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


# -- truth


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_fits_changes_no_bit_and_keeps_what_it_says(name):
    planning = planning_of(name)
    step, model = planning.step, planning.step.module
    full = step.account(Mode("full"))
    for budget in budgets(planning):
        plan = planning.plan(budget, "chain")
        assert plan.peak_bytes + RESERVE <= budget
        with plan.apply(model):
            account = step.account(Mode("checkpoint"))
            prediction = step.predict(Mode("checkpoint"))
        assert account.gradient_sha256 == full.gradient_sha256
        assert account.loss == full.loss
        rows = sum(row.saved_bytes for row in account.ledger.rows)
        assert rows == account.ledger.saved_at_end_of_forward == plan.saved_bytes
        assert account.ledger.recomputed_flops == plan.extra_flops
        assert prediction.peak.bytes == plan.peak_bytes


@pytest.mark.parametrize("name", ["gpt", "resnet18", "unet", "vit"])
def test_side_effects_happen_once_and_dropout_draws_the_same_masks(name):
    buffers, plan = [], planning_of(name).leanest()
    for planned_too in (False, True):
        model, step = made(name)
        with plan.apply(model) if planned_too else mb.Tape():
            loss = step.function()
        loss.backward()
        buffers.append({n: b.tobytes() for n, b in model.named_buffers()} | {"loss": loss.data.tobytes()})
    assert buffers[0] == buffers[1]


@pytest.mark.parametrize("planner", ["chain", "revolve", "uniform:2", "uniform", "sqrt", "all"])
def test_every_planner_s_plan_runs(planner):
    model = mlp()
    expected = trained(model)
    planning = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model))
    plan = planning.plan(planning.everything.budget, planner)
    with plan.apply(model):
        assert same(trained(model), expected)


def test_the_exact_planner_s_plan_runs_its_drops_too():
    model = mlp(depth=5)
    expected = trained(model)
    planning = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model))
    plan = planning.leanest("exact")
    assert plan.extra_flops > 0
    assert any(isinstance(action, Drop) for action in plan.actions)
    assert ModelPlan.from_dict(plan.to_dict()) == plan
    with plan.apply(model):
        assert same(trained(model), expected)


KEPT_IN_VAIN = [
    Forward(0, Keep.INPUT),
    Forward(1, Keep.EVERYTHING),
    Forward(2, Keep.EVERYTHING),
    Backward(2),
    Drop(1, Stored.SAVES),
    Drop(1, Stored.OUTPUT),
    Forward(1, Keep.EVERYTHING),
    Backward(1),
    Forward(0, Keep.EVERYTHING),
    Backward(0),
]
OUTPUT_DROPPED = [
    Forward(0, Keep.INPUT),
    Forward(1, Keep.INPUT),
    Forward(2, Keep.EVERYTHING),
    Drop(0, Stored.OUTPUT),
    Backward(2),
    Forward(0, Keep.INPUT),
    Forward(1, Keep.EVERYTHING),
    Backward(1),
    Forward(0, Keep.EVERYTHING),
    Backward(0),
]


@pytest.mark.parametrize("actions", [KEPT_IN_VAIN, OUTPUT_DROPPED])
def test_what_a_plan_drops_is_made_again(actions):
    model = mlp(depth=3)
    expected = trained(model)
    step = Step(lambda: ops.sum(model(mb.Tensor(X))), model)
    staged = measure(step, trace(step))
    region = staged.region((None,) * 3, actions)
    with planned(model, region.begin):
        assert same(trained(model), expected)


def test_ops_inside_of_kept_stages_are_chosen_by_what_they_cost():
    with mb.dry_run():
        model = mb.models.GPT(4, 64, 4, 100, 32)
        tokens = mb.ShapeArray((4, 32), "int64")
        planning = Planning(Step(lambda: model.loss(tokens, tokens), model))
    assert len(planning.staged.choices) > 1
    plan = planning.plan(int(0.8 * planning.everything.budget), "chain")
    region = plan.region
    mixed = [i for i, kept in enumerate(region.kept) if kept is not None and region.first[i] is Keep.EVERYTHING]
    inside = [number for i in mixed for number in range(region.bounds[i], region.bounds[i + 1])]
    again = {region.calls[number].op for number in inside if plan.runs.get(number)}
    assert "gelu" in again
    assert not again & {op.name for op in REGISTRY.values() if op.matrix_product}


@pytest.mark.parametrize("training", [False, True])
def test_a_product_in_front_of_a_dropout_is_run_again_only_for_its_mask(training):
    mb.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5)) for _ in range(4)]
    for block in blocks:
        block.train(training)
    model = nn.Sequential(*blocks)
    planning = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model))
    plan = planning.realise(planning.staged.skeleton.keeping_inputs(), (), 0, "")
    assert plan.region.stages == 4
    products = sum(count for number, count in plan.runs.items() if plan.region.calls[number].op == "linear")
    assert products == (3 if training else 0)


def test_frozen_layers_are_no_part_of_a_plan():
    model = mlp()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    expected = trained_frozen(model)
    assert "0.weight" not in expected
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest()
    with plan.apply(model):
        assert same(trained_frozen(model), expected)


def trained_frozen(model):
    model.zero_grad()
    ops.sum(model(mb.Tensor(X))).backward()
    return {n: p.grad.copy() for n, p in model.named_parameters() if p.grad is not None}


def test_a_plan_for_a_chain_in_the_middle_of_a_model():
    inner = mlp()
    first, last = nn.Linear(32, 32), nn.Linear(32, 4)

    def step():
        return ops.sum(last(inner(first(mb.Tensor(X)))))

    step().backward()
    expected = gradients(inner) | {"first": first.weight.grad.copy()}
    plan = mb.plan(inner, step=step, budget=Planning(Step(step, inner)).leanest().budget)
    for module in (inner, first, last):
        module.zero_grad()
    with plan.apply(inner):
        step().backward()
    assert same(gradients(inner) | {"first": first.weight.grad}, expected)


# -- use


def test_plan_takes_inputs_and_a_written_budget_and_allocates_nothing():
    model = mlp(depth=12)
    least = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest().budget
    plan = mb.plan(model, X, budget="1MiB")
    assert least < plan.budget == parse_bytes("1MiB")
    with mb.dry_run():
        dry = mlp(depth=12)
        assert mb.plan(dry, mb.ShapeArray(X.shape, X.dtype), budget="1MiB") == plan


def test_a_sequential_runs_a_plan_as_its_checkpoint():
    model = mlp()
    expected = trained(model)
    planning = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model))
    plan = planning.leanest()
    other = mlp(checkpoint=plan)
    with mb.Tape() as tape:
        loss = ops.sum(other(mb.Tensor(X)))
        assert tape.saved_bytes == plan.saved_bytes
    loss.backward()
    assert same(gradients(other), expected)
    with pytest.raises(mb.UsageError, match=r"another model: 0\.weight has shape \(32, 32\)"):
        nn.Sequential(nn.Linear(3, 3), checkpoint=plan)


def test_profile_shows_a_plan_beside_the_other_modes():
    planning = planning_of("gpt")
    plan, step, model = planning.leanest(), planning.step, planning.step.module
    report = mb.profile(model, step=step.function, policy=plan, rounds=1)
    checkpoint = next(run for run in report.runs if run.mode == "checkpoint")
    full = next(run for run in report.runs if run.mode == "full")
    assert checkpoint.policy == plan.name
    assert checkpoint.predicted_peak_bytes == plan.peak_bytes
    assert checkpoint.gradient_sha256 == full.gradient_sha256


def test_the_frontier_is_monotone_and_each_of_its_points_can_be_planned():
    planning = planning_of("gpt")
    points = planning.frontier()
    assert len(points) > 3
    for one, other in pairwise(points):
        assert one.budget < other.budget
        assert one.extra_flops > other.extra_flops
    assert knee(points) in points
    for point in points[:: max(1, len(points) // 5)]:
        assert planning.plan(point.budget, "chain").extra_flops <= point.extra_flops


def test_a_planned_step_leaves_no_objects_behind_that_a_later_measurement_would_count():
    model = mlp(depth=60)
    plan = mb.plan(model, X, budget="1GiB", planner="chain")
    with plan.apply(model):
        trained(model)  # whatever is made once
        gc.collect()
        tracemalloc.start()
        try:
            trained(model)
            gc.collect()  # which empties Python's lists of free objects, too
            left = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    ours = left.filter_traces([tracemalloc.Filter(True, "*/memback/plans/*")])
    assert [str(trace) for trace in ours.traces] == []


def test_outside_of_training_a_plan_does_nothing():
    model = mlp()
    plan = mb.plan(model, X, budget="1MiB")
    with plan.apply(model), mb.no_grad():
        assert not model(mb.Tensor(X)).requires_grad
    expected = trained(model)
    model.zero_grad()
    with plan.apply(model):
        mb.checkpoint(lambda x: ops.sum(model(x)), mb.Tensor(X)).backward()
    assert same(gradients(model), expected)


# -- what the tape promises


def test_backward_twice_needs_retain_graph_with_a_plan_too():
    model = mlp()
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest()
    expected = trained(model)
    with plan.apply(model):
        loss = ops.sum(model(mb.Tensor(X)))
    for last in (False, True):
        model.zero_grad()
        loss.backward(retain_graph=not last)
        assert same(gradients(model), expected)
    with pytest.raises(mb.TapeError, match="second time"):
        loss.backward()


def test_derivatives_inside_of_a_planned_region():
    model = mlp(depth=3, width=4)
    x = mb.Tensor(X[:2, :4], requires_grad=True)
    expected = mb.total(model(x), x)
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X[:2, :4], requires_grad=True))), model)).leanest()
    with plan.apply(model):
        out = model(x)
        assert np.array_equal(mb.total(out, x), expected)
        ops.sum(out).backward()
    assert x.grad is not None


def test_an_input_that_changes_before_it_is_used_again_is_an_error():
    model = mlp()
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest()
    with plan.apply(model):
        loss = ops.sum(model(mb.Tensor(X)))
    model[2].weight.copy_(0.5)
    with pytest.raises(mb.TapeError, match=r"linear \(layer '2'.*changed in place by copy_"):
        loss.backward()


def test_an_exception_in_a_planned_forward_frees_everything_and_leaves_the_tape_usable():
    model = mlp()
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest()
    refs = []

    class Broken(Exception):
        pass

    def fail(x):
        refs.append(weakref.ref(x.data))
        raise Broken

    forward, model[6].forward = model[6].forward, fail
    with pytest.raises(Broken), plan.apply(model):
        model(mb.Tensor(X))
    model[6].forward = forward
    assert refs[0]() is None
    with plan.apply(model):
        assert same(trained(model), trained(mlp()))


def test_a_result_that_nobody_uses_frees_what_its_plan_stored_without_a_collection():
    model = mlp()
    plan = Planning(Step(lambda: ops.sum(model(mb.Tensor(X))), model)).leanest()
    gc.disable()
    try:
        with mb.Tape() as tape, plan.apply(model):
            loss = ops.sum(model(mb.Tensor(X)))
            assert tape.saved_bytes == plan.saved_bytes > 0
            del loss
            assert tape.saved_bytes == 0
    finally:
        gc.enable()


# -- refusals


def test_a_budget_below_the_minimum_names_it_and_what_it_is_made_of():
    model = mlp(depth=12)
    with pytest.raises(NoPlanError) as caught:
        mb.plan(model, X, budget="100KiB")
    assert "recomputed" in str(caught.value)
    assert "gradients" in str(caught.value)
    plan = mb.plan(model, X, budget=caught.value.minimum_bytes)
    assert plan.peak_bytes + RESERVE == caught.value.minimum_bytes
    with pytest.raises(NoPlanError):
        mb.plan(model, X, budget=caught.value.minimum_bytes - 1)


def test_other_inputs_than_the_plan_s_are_refused_by_the_call_that_differs():
    model = mlp()
    plan = mb.plan(model, X, budget="1MiB")
    wrong = r"call 0 is linear \(layer '0'\) giving float32\[5, 32\]"
    with plan.apply(model), pytest.raises(mb.UsageError, match=wrong):
        model(mb.Tensor(X[:5]))


def test_a_model_with_other_parameters_is_refused_at_once():
    plan = mb.plan(mlp(), X, budget="1MiB")
    with pytest.raises(mb.UsageError, match="made for another model"), plan.apply(mlp(depth=9)):
        pass


def test_a_forward_that_stops_early_is_refused():
    model = mlp()
    plan = mb.plan(model, X, budget="1MiB")
    model._modules.popitem()
    with (
        planned(model, plan.region.begin),
        pytest.raises(mb.UsageError, match="16 calls, of which the model has made 15"),
    ):
        model(mb.Tensor(X))


def test_a_step_must_call_its_module_exactly_once():
    model = mlp()
    with pytest.raises(mb.UsageError, match="calls Sequential more than once"):
        mb.plan(model, budget="1MiB", step=lambda: ops.sum(model(model(mb.Tensor(X)))))
    with pytest.raises(mb.UsageError, match="records no call of Sequential"):
        mb.plan(model, budget="1MiB", step=lambda: ops.sum(mlp()(mb.Tensor(X))))


def test_a_plan_that_does_not_run_every_stage_in_order_first_is_refused():
    region = Region((), (0,), (frozenset(),), {}, (), (Forward(1, Keep.INPUT),))
    with pytest.raises(mb.UsageError, match="before every stage has run forward once"):
        _ = region.first


# -- files


@pytest.fixture
def plan():
    return mb.plan(mlp(), X, budget="700KiB")


def test_a_plan_survives_its_file(plan, tmp_path):
    plan.save(tmp_path / "plan.json")
    assert ModelPlan.load(tmp_path / "plan.json") == plan
    with pytest.raises(mb.UsageError, match="already exists"):
        plan.save(tmp_path / "plan.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(schema="memback.report/1"), "no plan of memback's"),
        (lambda d: d.pop("bounds"), "malformed: .*bounds"),
        (lambda d: d.update(budget="much"), r"malformed: .*\$\.budget"),
        (lambda d: d["bounds"].reverse(), "'bounds' do not cut"),
        (lambda d: d["crossing"].pop(), "'crossing' and 'kept'"),
        (lambda d: d["actions"].pop(), "can't be run: .*has not been reversed"),
        (lambda d: d["crossing"][1].append(10**6), "a call beyond"),
        (lambda d: d["actions"][0].update(do="fly"), "malformed"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_the_reason(plan, tmp_path, change, message):
    data = json.loads(json.dumps(plan.to_dict()))
    change(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(mb.UsageError, match=message):
        ModelPlan.load(tmp_path / "plan.json")


def test_a_file_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(mb.UsageError, match=r"plan\.json is no JSON"):
        ModelPlan.load(tmp_path / "plan.json")
    with pytest.raises(mb.UsageError, match="can't be read"):
        ModelPlan.load(tmp_path / "none.json")


def test_a_budget_error_of_a_planner_is_no_plan_error_of_the_model():
    assert not issubclass(NoPlanError, BudgetError)
