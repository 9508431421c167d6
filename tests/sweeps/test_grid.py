from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memback.errors import UsageError
from memback.profiling.definition import load
from memback.sweeps.grid import parse_axis, settings_text
from tests.sweeps.small import grid


def shown(text, profile="digits", *others):
    axis = parse_axis(text, load(profile), others)
    return axis.key, [value.shown for value in axis.values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch=1,2, 4", ("batch", [1, 2, 4])),
        ("data.batch = 8", ("data.batch", [8])),
        ("dtype=float32,float64", ("dtype", ["float32", "float64"])),
        ("policy=none,every:2,selective", ("policy", ["none", "every:2", "selective"])),
        ("budget=1KiB,2MiB", ("budget", [1024, 2**21])),
        ("planner=chain,uniform:3,auto", ("planner", ["chain", "uniform:3", "auto"])),
        ("hidden=[128],[64, 64]", ("hidden", ["[128]", "[64,64]"])),
        ("model.hidden=[128],[64,64]", ("model.hidden", ["[128]", "[64,64]"])),
        ("optimizer=sgd,adamw", ("optimizer", ["sgd", "adamw"])),
        ("learning_rate=1e-3,0.1", ("learning_rate", [0.001, 0.1])),
    ],
)
def test_an_axis_is_a_key_with_values_of_its_type(text, expected):
    assert shown(text) == expected


def test_sequence_and_depth_set_what_belongs_together():
    (sequence,) = parse_axis("sequence=64", load("gpt2-small")).values
    assert dict(sequence.overrides) == {"model.context": "64", "data.shape": "[64]"}
    (depth,) = parse_axis("depth=3", load("gpt2-small")).values
    assert dict(depth.overrides) == {"model.layers": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch", "--grid 'batch' is no KEY=VALUE,VALUE"),
        ("=1,2", "is no KEY=VALUE,VALUE"),
        ("batch=", "--grid 'batch=' has no values"),
        ("batch=1,,2", "has an empty value"),
        ("batch=1,", "has an empty value"),
        ("batch=1,2,1", "--grid batch has the value 1 twice"),
        ("batch=0", "--grid: data.batch (=0) must be a whole number >= 1"),
        ("batch=many", "--grid: data.batch (='many') must be a whole number"),
        ("btach=1", "there is no key 'btach' (did you mean 'batch'?)"),
        ("model.widht=1", "--grid: unknown key model.widht"),
        ("mdoel.width=1", "--grid mdoel.width: there is no section mdoel"),
        ("dtype=int8", "--grid: dtype (='int8') must be one of 'bfloat16'"),
        ("policy=squirt", "--grid: checkpoint.policy: unknown checkpoint policy 'squirt'"),
        ("budget=much", "byte size 'much'"),
        ("planner=best", "unknown planner 'best'"),
        ("sequence=5", "no sequences"),
        ("seed=1,2", "--grid seed could be data.seed or train.seed"),
    ],
)
def test_a_wrong_axis_is_refused_with_the_reason(text, message):
    with pytest.raises(UsageError) as refused:
        parse_axis(text, load("gpt2-small" if text.startswith("seed") else "digits"))
    assert message in str(refused.value)


def test_two_axes_may_not_set_the_same_key():
    with pytest.raises(UsageError, match="--grid data.batch and --grid batch both set data.batch"):
        grid("batch=1", "data.batch=2")
    with pytest.raises(UsageError, match=r"both set model\.context"):
        grid("sequence=64", "model.context=64", profile="gpt2-small")


def test_planners_need_a_budget():
    with pytest.raises(UsageError, match="--grid planner=… needs a budget"):
        grid("planner=chain")
    assert len(grid("planner=chain,sqrt", "budget=1MiB")) == 2


def test_a_grid_of_more_points_than_anybody_reads_is_refused():
    many = ",".join(map(str, range(1, 102)))
    with pytest.raises(UsageError, match="1,030,301 points, at most 1,000,000"):
        grid(f"batch={many}", f"steps={many}", f"warmup={many}")


def test_keys_of_a_model_that_another_axis_brings_are_left_to_the_points():
    one = grid("model.name=mlp,notes_network", "model.hidden=[8],[16]")
    assert len(one) == 4
    with pytest.raises(UsageError, match="unknown key model.breadth"):
        grid("model.breadth=1")


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 500), min_size=1, max_size=5, unique=True), min_size=1, max_size=3))
def test_every_combination_is_a_point_once_the_last_axis_fastest(values):
    keys = ("batch", "steps", "warmup")[: len(values)]
    one = grid(*(f"{key}={','.join(map(str, some))}" for key, some in zip(keys, values, strict=True)))
    combinations = list(itertools.product(*values))
    assert [tuple(point.settings.values()) for point in one.points] == combinations
    assert [point.number for point in one.points] == list(range(len(combinations)))
    assert len({point.id for point in one.points}) == len(one)


def test_an_id_tells_a_point_in_any_grid_and_changes_with_all_that_it_is():
    (one,) = grid("batch=2").points
    assert [point.id for point in grid("batch=1,2,4").points if point.id == one.id] == [one.id]
    other = load("digits").with_overrides({"model.hidden": "[3]"})
    changed = [
        grid("batch=3"),
        grid("batch=2", budget=1000),
        grid("batch=2", budget=1000, planner="sqrt"),
        grid("batch=2", profile=other),
    ]
    assert len({one.id, *(each.points[0].id for each in changed)}) == 5


def test_settings_are_shown_with_sizes_for_people():
    assert settings_text({"batch": 8, "budget": 2**30}) == "batch=8, budget=1.00GiB"


def test_a_path_starts_from_the_folder_where_the_sweep_was_asked_for(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(
        '[model]\nname = "mlp"\ninputs = 2\noutputs = 2\nhidden = [2]\n[data]\npath = "x.npz"\nbatch = 1\n'
    )
    monkeypatch.chdir(tmp_path)
    (value,) = parse_axis("data.path=y.npz", load(tmp_path / "mine.toml")).values
    assert value.overrides == (("data.path", str(tmp_path / "y.npz")),)
