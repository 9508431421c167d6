from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from memback.engine.state import manual_seed
from memback.errors import MembackError, UsageError
from memback.nn.state import read, write
from memback.profiling.definition import load
from memback.profiling.training import Training
from memback.profiling.workload import Workload

DROPOUT = {
    "model.layers": "2",
    "model.width": "16",
    "model.heads": "2",
    "model.context": "8",
    "model.dropout": "0.2",
    "data.sequence": "8",
    "data.limit": "4096",
    "data.batch": "4",
}
KINDS = {
    "mlp": ("digits", {}),
    "dropout": ("source-gpt", DROPOUT),
    "batch norm and momentum": ("digits-resnet", {"model.width": "2", "data.size": "8", "data.batch": "4"}),
    "bfloat16": ("digits", {"dtype": "bfloat16"}),
}


def start(kind="mlp", policy=None, **changes):
    name, settings = KINDS[kind]
    overrides = {**settings, **{key.replace("__", "."): value for key, value in changes.items()}}
    return Training(Workload.build(load(name).with_overrides(overrides)), policy)


def bits(training):
    arrays = {**training.work.model.state_dict(), **training.work.optimizer.state_dict()}
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def losses(training, until):
    return [result.loss for result in training.steps(until)]


def test_a_training_in_other_micro_batches_is_another_one(tmp_path):
    first = start()
    losses(first, 2)
    first.save(tmp_path / "half")
    with pytest.raises(UsageError, match="--micro-batches differ"):
        Training(start().work, micro_batches=2).resume(tmp_path / "half")


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(kind, tmp_path):
    whole = start(kind)
    expected = losses(whole, 6)
    first = start(kind)
    before = losses(first, 3)
    first.save(tmp_path / "half")
    second = start(kind)
    second.resume(tmp_path / "half")
    assert second.next_step == 3
    assert before + losses(second, 6) == expected
    assert bits(second) == bits(whole)


def test_a_resumed_training_does_not_depend_on_what_was_drawn_in_between(tmp_path):
    expected = losses(start("dropout"), 4)
    first = start("dropout")
    losses(first, 2)
    first.save(tmp_path / "half")
    manual_seed(99)
    assert losses(first, 4) != expected[2:]
    second = start("dropout")
    manual_seed(99)
    second.resume(tmp_path / "half")
    assert losses(second, 4) == expected[2:]


@pytest.mark.parametrize("policy", ["none", "every:2", "sqrt", "all", "selective"])
def test_a_policy_changes_no_bit_of_a_training(policy):
    plain = start("dropout")
    expected = losses(plain, 3)
    checkpointed = start("dropout", policy)
    assert losses(checkpointed, 3) == expected
    assert bits(checkpointed) == bits(plain)


def test_a_policy_lowers_what_is_held_at_the_end_of_the_forward_pass():
    (full,), (all_,) = start("dropout").steps(1), start("dropout", "all").steps(1)
    assert all_.live["saved"] < full.live["saved"]
    assert full.live["gradients"] == 0


def test_training_lowers_the_loss_and_accuracy_is_a_share():
    training = start()
    found = losses(training, 40)
    assert np.mean(found[-5:]) < 0.5 * found[0]
    assert 0.5 < training.accuracy() <= 1
    assert training.work.model.training


def test_a_model_without_classes_has_no_accuracy():
    assert Training(Workload.build(load("notes"))).accuracy() is None


def test_a_diverging_loss_names_the_step_and_the_setting():
    training = start(train__learning_rate="1e6", train__optimizer="sgd", train__schedule="constant")
    message = r"the loss of step \d+ is (nan|inf): .*train.learning_rate \(=1000000.0\)"
    with np.errstate(all="ignore"), pytest.raises(MembackError, match=message):
        losses(training, 200)


def test_the_learning_rate_follows_the_schedule():
    training = start(train__steps="4", train__warmup="1", train__learning_rate="0.01")
    rates = []
    for _ in training.steps(4):
        rates.append(training.work.optimizer.lr)
    np.testing.assert_allclose(rates, [0.005, 0.01, 0.0075, 0.0025])


def test_a_file_that_is_no_saved_training_is_refused(tmp_path):
    training = start()
    before = bits(training)
    with pytest.raises(UsageError, match="There is no file"):
        training.resume(tmp_path / "missing")
    foreign = tmp_path / "foreign"
    foreign.write_bytes(b"\x00" * 100)
    with pytest.raises(UsageError, match="foreign can't be read"):
        training.resume(foreign)
    training.save(tmp_path / "good")
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "good").read_bytes()[:-1])
    with pytest.raises(UsageError, match="cut can't be read"):
        training.resume(cut)
    training.work.model.save(tmp_path / "model")
    with pytest.raises(UsageError, match="model is no training saved by this version"):
        training.resume(tmp_path / "model")
    assert bits(training) == before


@pytest.mark.parametrize("about", ["no JSON", "[]", json.dumps({"schema": "memback.training/0"})])
def test_tensors_with_another_description_are_refused(about, tmp_path):
    write(tmp_path / "file", {"a": np.zeros(1)}, {"memback": about})
    with pytest.raises(UsageError, match="is no training saved by this version"):
        start().resume(tmp_path / "file")


WHOLE = {"schema": "memback.training/1", "profile": "digits", "training": "", "step": 3, "random": [0, 1]}


@pytest.mark.parametrize(
    "changed",
    [
        *({"step": wrong} for wrong in (-1, 1.5, True, "x", None, float("nan"), 2**63, 10**5000, [])),
        *({"random": wrong} for wrong in (None, "ab", [-1, 0], [None, None], [1], [1, 2, 3], [0, 0.5], [2**64, 0])),
        *({name: None} for name in WHOLE),
        {"more": 1},
    ],
)
def test_a_damaged_description_is_refused_with_the_reason_and_nothing_is_taken_over(changed, tmp_path):
    training = start()
    training.save(tmp_path / "good")
    arrays, texts = read(tmp_path / "good")
    about = json.loads(texts["memback"])
    assert set(about) == set(WHOLE)
    sys.set_int_max_str_digits(0)
    try:
        write(tmp_path / "bad", arrays, {"memback": json.dumps({**about, **changed})})
    finally:
        sys.set_int_max_str_digits(4300)
    before = bits(training)
    with pytest.raises(UsageError, match=r"bad is no training saved by this version of memback .*: .+") as refused:
        training.resume(tmp_path / "bad")
    assert len(str(refused.value)) < 500
    assert training.next_step == 0
    assert bits(training) == before


def test_a_description_without_its_fields_is_refused(tmp_path):
    write(tmp_path / "bad", {"a": np.zeros(1)}, {"memback": json.dumps({"schema": "memback.training/1"})})
    with pytest.raises(UsageError, match="missing required field"):
        start().resume(tmp_path / "bad")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("model.layers.0.0.bias", np.zeros(128)),
        ("model.layers.0.0.bias", np.zeros(128, np.int32)),
        ("model.layers.0.0.bias", np.zeros(127, np.float32)),
        ("optimizer.steps", np.full(6, np.nan)),
        ("optimizer.steps", np.full(6, -1)),
        ("model.other", np.zeros(1)),
    ],
)
def test_damaged_arrays_are_refused_and_nothing_is_taken_over(name, array, tmp_path):
    training = start()
    losses(training, 2)
    training.save(tmp_path / "good")
    arrays, texts = read(tmp_path / "good")
    write(tmp_path / "bad", {**arrays, name: array}, texts)
    fresh = start()
    before = bits(fresh)
    with pytest.raises(UsageError, match=r"bad is no training saved by this version of memback .*: .+"):
        fresh.resume(tmp_path / "bad")
    assert bits(fresh) == before
    assert fresh.next_step == 0


@pytest.mark.parametrize(
    "changes",
    [{"model__hidden": "[8]"}, {"data__batch": "8"}, {"train__seed": "1"}, {"dtype": "float64"}, {"train__steps": "5"}],
)
def test_the_file_of_another_training_is_refused(changes, tmp_path):
    start().save(tmp_path / "file")
    with pytest.raises(UsageError, match=r"belongs to another training \(profile 'digits'\)"):
        start(**changes).resume(tmp_path / "file")


def test_a_constant_learning_rate_lets_a_training_be_prolonged(tmp_path):
    first = start(train__schedule="constant", train__steps="2")
    first.save(tmp_path / "file")
    start(train__schedule="constant", train__steps="5").resume(tmp_path / "file")


def test_saving_replaces_the_older_file_and_leaves_no_other(tmp_path):
    training = start()
    training.save(tmp_path / "file")
    losses(training, 1)
    training.save(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    arrays, texts = read(tmp_path / "file")
    assert json.loads(texts["memback"])["step"] == 1
    assert {name.partition(".")[0] for name in arrays} == {"model", "optimizer"}
