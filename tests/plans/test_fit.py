from __future__ import annotations

import tracemalloc
from functools import cache

import numpy as np
import pytest

import memback as mb
from memback.errors import MembackError, UsageError
from memback.fitting.fit import DoesNotFitError, Machine, Setup, Trials, fit, measure_machine
from memback.fitting.largest import find_largest
from memback.profiling.definition import load
from memback.profiling.training import Training
from memback.profiling.workload import Workload

MACHINE = Machine(flops_per_second=50e9, write_bytes_per_second=1e9, read_bytes_per_second=2e9, folder="/tmp")
GPT = {"model.layers": "1", "model.width": "32", "model.heads": "2", "model.context": "32", "data.sequence": "32"}
MLP = {"model.depth": "12", "data.batch": "256", "model.width": "32"}


def profile(name="source-gpt", **changes):
    small = {"source-gpt": GPT, "deep-mlp": MLP}.get(name, {})
    return load(name).with_overrides({**small, **{key.replace("__", "."): value for key, value in changes.items()}})


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Gives the trials of a profile, which all tests share: what has been tried is known."""
    machine = Machine(50e9, 1e9, 2e9, str(tmp_path_factory.mktemp("disk")))
    return cache(lambda name="source-gpt", **changes: Trials(profile(name, **changes), machine))


def share(trials, part):
    return round(trials.option(Setup()).peak_bytes * part)


def test_what_fits_already_is_the_only_answer(trials):
    tried = trials()
    (option,) = fit(tried, share(tried, 1))
    assert option.setup == Setup()
    assert option.seconds == 0


@pytest.mark.parametrize("name", ["source-gpt", "deep-mlp"])
@pytest.mark.parametrize("part", [0.7, 0.45, 0.3])
def test_everything_that_is_offered_fits_and_the_fastest_comes_first(trials, name, part):
    deeper = {"model__layers": "2"} if (name, part) == ("source-gpt", 0.7) else {}  # has the most to offer
    tried = trials(name, **deeper)
    budget = share(tried, part)
    options = fit(tried, budget)
    assert 0 < len(options) <= 8
    assert all(option.peak_bytes <= budget for option in options)
    assert all(sum(option.peak.parts.values()) == option.peak_bytes for option in options)
    known = [option.seconds for option in options if option.seconds is not None]
    assert known == sorted(known)
    assert [option.seconds is None for option in options] == sorted(option.seconds is None for option in options)
    assert len({option.setup.describe() for option in options}) == len(options)


def test_levers_that_change_nothing_for_a_model_are_not_offered(trials):
    for option in fit(tried := trials("deep-mlp"), share(tried, 0.5)):
        assert "model.attention" not in option.setup.settings
        assert "model.mask" not in option.setup.settings


def test_smaller_masks_are_offered_where_there_is_dropout(trials):
    tried = trials(model__dropout="0.1")
    options = fit(tried, tried.option(Setup({"model.mask": "bits"})).peak_bytes)
    bits = next(option for option in options if option.setup == Setup({"model.mask": "bits"}))
    assert bits.results == "bit-identical"
    assert bits.seconds == 0


def test_what_changes_results_says_so(trials):
    tried = trials()
    assert tried.option(Setup(policy="all")).results == "bit-identical"
    assert tried.option(Setup(offload=True)).results == "bit-identical"
    assert tried.option(Setup(micro_batches=2)).results == "rounding"
    assert tried.option(Setup({"dtype": "bfloat16"})).results == "bfloat16"
    assert tried.option(Setup({"dtype": "bfloat16"})).seconds is None
    assert trials(model__dropout="0.1").option(Setup(micro_batches=2)).results == "other masks"
    resnet = trials("digits-resnet", model__width="2", data__size="8", data__batch="4")
    assert resnet.option(Setup(micro_batches=2)).results == "batch norm"


def test_time_lost_is_flops_computed_again_and_bytes_over_the_disks_rate(trials):
    tried = trials()
    every = tried.option(Setup(policy="all"))
    assert 0.1 < every.recomputed <= 1 / 3
    assert every.seconds == pytest.approx(every.recomputed * tried.flops / 50e9)
    disk = tried.option(Setup(offload=True))
    written, read = disk.disk_bytes
    assert written >= disk.peak_bytes - tried.option(Setup()).peak_bytes
    assert disk.seconds == pytest.approx(written / 1e9 + read / 2e9)
    halves = tried.option(Setup(offload=True, micro_batches=2))
    assert halves.disk_bytes[0] == pytest.approx(written, rel=0.01)


def test_micro_batches_are_as_few_as_fit(trials):
    tried = trials("deep-mlp")
    budget = share(tried, 0.4)
    (option,) = [o for o in fit(tried, budget) if o.setup.micro_batches > 1]
    fewer = tried.option(Setup(micro_batches=option.setup.micro_batches - 1))
    assert fewer.peak_bytes > budget


def test_a_budget_that_nothing_meets_tells_the_least_and_what_it_is_made_of(trials):
    tried = trials("deep-mlp")
    with pytest.raises(
        DoesNotFitError, match=r"nothing fits 1,024 B .*the least peak is .*gradients .*Raise the budget"
    ):
        fit(tried, 1024)
    with pytest.raises(DoesNotFitError) as error:
        fit(tried, 1024)
    leanest = error.value.leanest
    assert leanest.peak_bytes == min(option.peak_bytes for option in tried.options)
    assert leanest.setup != Setup()
    assert fit(tried, leanest.peak_bytes)[0].peak_bytes <= leanest.peak_bytes


def test_a_setup_that_can_not_be_is_refused(trials):
    with pytest.raises(UsageError, match="can't be run with --micro-batches 1000"):
        fit(trials(), 1, Setup(micro_batches=1000))


def test_the_machine_is_measured(tmp_path):
    machine = measure_machine("float32", tmp_path)
    assert machine.flops_per_second > 0
    assert machine.write_bytes_per_second > 0
    assert machine.read_bytes_per_second > 0
    assert list(tmp_path.iterdir()) == []


# -- the largest that fits


@pytest.mark.parametrize("what", ["batch", "depth", "sequence"])
@pytest.mark.parametrize("part", [0.8, 1.7])
def test_the_largest_size_fits_and_the_next_one_does_not(trials, what, part):
    tried = trials(model__layers="2")
    budget = share(tried, part)
    found = find_largest(tried, what, budget, Setup())
    assert found.option.peak_bytes <= budget
    assert found.next_size == found.size + 1
    assert found.next_peak_bytes > budget
    assert (found.size > found.now) == (part > 1)


def test_a_policy_and_a_plan_make_room_for_more(trials):
    tried = trials("deep-mlp")
    budget = share(tried, 1)
    plain = find_largest(tried, "batch", budget, Setup())
    assert plain.size == 256
    assert find_largest(tried, "batch", budget, Setup(policy="sqrt")).size > 256
    small = trials("deep-mlp", model__depth="5", data__batch="1024")
    budget = share(small, 0.9)
    planned = find_largest(small, "batch", budget, Setup(budget=budget))
    assert planned.size > find_largest(small, "batch", budget, Setup()).size


def test_a_batch_is_no_larger_than_the_data(trials):
    found = find_largest(trials("digits"), "batch", 2**40, Setup())
    assert found.size == 1442
    assert found.next_size is None
    assert "1,442 samples" in found.limit


def test_depths_of_which_there_are_only_some_are_tried(trials):
    tried = trials("digits-resnet", model__width="2", data__size="8", data__batch="2")
    peaks = {n: tried.option(Setup({"model.depth": str(n)})).peak_bytes for n in (18, 34, 50)}
    assert find_largest(tried, "depth", peaks[34], Setup()).size == 34


def test_dimensions_that_a_profile_does_not_have_are_refused(trials):
    with pytest.raises(UsageError, match="no sequences"):
        find_largest(trials("digits"), "sequence", 2**20, Setup())
    with pytest.raises(UsageError, match="no numeric depth"):
        find_largest(trials("digits"), "depth", 2**20, Setup())
    with pytest.raises(MembackError, match="no batch fits 1,024 B .*: even batch 1 has a peak of"):
        find_largest(trials("digits"), "batch", 1024, Setup())


# -- micro-batches


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("name", ["source-gpt", "deep-mlp", "notes"])
def test_gradients_of_micro_batches_add_up_to_the_whole_batchs(name, count):
    count = min(count, 4) if name == "notes" else count
    work = Workload.build(profile(name, dtype="float64"))
    x, y = work.batch(0)
    with mb.Tape():
        whole = work.loss(x, y)
        whole.backward()
    wanted = {name: p.grad for name, p in work.model.named_parameters()}
    work.model.zero_grad()
    with mb.Tape():
        total = mb.accumulate_gradients(work.loss, x, y, count=count, reduction=work.reduction)
    assert float(total) == pytest.approx(float(whole.data), rel=1e-12)
    for name, p in work.model.named_parameters():
        np.testing.assert_allclose(p.grad, wanted[name], rtol=1e-9, atol=1e-13)


def test_more_micro_batches_than_samples_are_refused():
    work = Workload.build(profile("notes"))
    x, y = work.batch(0)
    with pytest.raises(UsageError, match="5 micro-batches can't be made of a batch of 4"):
        mb.accumulate_gradients(work.loss, x, y, count=5)
    with pytest.raises(UsageError, match="reduction"):
        mb.accumulate_gradients(work.loss, x, y, count=2, reduction="median")
    with pytest.raises(UsageError, match="5 micro-batches"):
        Training(work, micro_batches=5)


@pytest.mark.parametrize(
    "setup",
    [
        Setup(micro_batches=3),
        Setup(micro_batches=4, policy="sqrt"),
        Setup(offload=True),
        Setup(offload=True, micro_batches=2),
        Setup(policy="all", offload=True),
    ],
    ids=Setup.describe,
)
def test_training_for_real_has_the_predicted_peak(trials, setup):
    sizes = {"model__depth": "12", "data__batch": "8192", "model__width": "64"}
    predicted = trials("deep-mlp", **sizes).option(setup)
    work = Workload.build(profile("deep-mlp", **sizes))
    training = Training(work, setup.policy, setup.micro_batches, setup.offload)
    steps = training.steps(3)
    next(steps)  # whatever is made once
    inputs = work.batch(training.next_step)
    work.optimizer.zero_grad()
    tracemalloc.start()
    try:
        next(steps)
        peak = tracemalloc.get_traced_memory()[1] - sum(array.nbytes for array in inputs)
    finally:
        tracemalloc.stop()
    bookkeeping = 300_000  # of Python's own objects, the same for any batch
    assert 0 <= peak - predicted.peak_bytes < bookkeeping
    assert predicted.peak_bytes > 10 * bookkeeping
