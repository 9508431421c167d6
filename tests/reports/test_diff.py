from __future__ import annotations

import pytest
from msgspec.structs import replace as change

from memback.dry.mode import dry_run
from memback.errors import MembackError, UsageError
from memback.profiling import definition
from memback.profiling.report import Report
from memback.profiling.run import profile
from memback.profiling.workload import Workload
from memback.reports.diff import Change, Limit, alive_at_peak, compare
from tests.reports import sample


def predicted(policy: str = "sqrt", **settings: str) -> Report:
    loaded = definition.load("digits").with_overrides({key.replace("__", "."): text for key, text in settings.items()})
    work = Workload.build(loaded, dry=True)
    x, y = work.batch(0)
    with dry_run():
        return profile(work.model, step=lambda: work.loss(x, y), modes=("full", "inference"), policy=policy)


@pytest.fixture(scope="module")
def base() -> Report:
    return predicted()


@pytest.fixture(scope="module")
def deeper() -> Report:
    return predicted(model__hidden="[128, 128, 256]")


def test_a_report_has_not_changed_from_itself(base: Report) -> None:
    diff = compare(base, base)
    assert [(run.saved.kind, run.peak.kind, list(run.layers), list(run.alive)) for run in diff.runs] == [
        ("same", "same", [], [])
    ] * 3
    assert diff.broken(Limit.parse("0%")) == []


def test_every_explanation_adds_up_to_the_change(base: Report, deeper: Report) -> None:
    diff = compare(base, deeper)
    assert [run.label for run in diff.runs] == ["full", "checkpoint:sqrt", "inference"]
    for run in diff.runs:
        assert sum(layer.difference for layer in run.layers) == run.saved.difference
        assert sum(part.difference for part in run.parts) == run.peak.difference
        assert sum(layer.difference for layer in run.alive) == run.peak.difference


def test_what_is_alive_at_the_peak_is_the_peak(base: Report) -> None:
    for run in base.runs:
        assert sum(alive_at_peak(run).values()) == run.peak.total_bytes


def test_layers_come_go_and_grow_by_path(base: Report, deeper: Report) -> None:
    full = compare(base, deeper).runs[0]
    kinds = {(layer.path, layer.op): layer.kind for layer in full.layers}
    assert kinds["layers.2.1", "relu"] == "came"
    back = compare(deeper, base).runs[0]
    assert {(layer.path, layer.op): layer.kind for layer in back.layers}["layers.2.1", "relu"] == "went"
    grown = compare(base, predicted(data__batch="65")).runs[0]
    assert {layer.kind for layer in grown.layers} == {"grew"}


def test_a_checkpoint_with_another_policy_is_compared(base: Report) -> None:
    diff = compare(base, predicted(policy="all"))
    assert "checkpoint:sqrt → checkpoint:all" in [run.label for run in diff.runs]


def test_modes_of_one_report_alone_are_named(base: Report) -> None:
    less = change(base, runs=base.runs[:1])
    assert compare(base, less).only_before == ["checkpoint:sqrt", "inference"]
    assert compare(less, base).only_after == ["checkpoint:sqrt", "inference"]
    with pytest.raises(MembackError, match="no mode in common: full before, inference after"):
        compare(less, change(base, runs=base.runs[-1:]))


def test_a_report_without_timelines_is_explained_by_kinds_of_memory() -> None:
    before = sample.report()
    run = change(before.runs[1], timeline=(), peak=change(before.runs[1].peak, workspace=999_999))
    after = change(before, runs=(run,))
    (full,) = compare(before, after).runs
    assert full.alive == []
    assert [part.name for part in full.parts if part.difference] == ["workspace"]


@pytest.mark.parametrize(
    ("text", "before", "after", "broken"),
    [
        ("5%", 100, 105, False),
        ("5%", 100, 106, True),
        ("0%", 100, 100, False),
        ("0.1%", 1000, 1001, False),
        ("0.1%", 1000, 1002, True),
        ("5%", 0, 1, True),
        ("5%", 100, 10, False),
        ("1KiB", 0, 1024, False),
        ("1KiB", 0, 1025, True),
        ("5%", None, 100, False),
    ],
)
def test_a_limit_is_exact(text: str, before: int | None, after: int, broken: bool) -> None:
    assert Limit.parse(text).broken_by(Change("peak", before, after)) is broken


@pytest.mark.parametrize("text", ["", "%", "five%", "-5%", "5 percent", "1e3%"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write it as 5%"):
        Limit.parse(text)


def test_what_breaks_a_limit_names_the_layers_to_blame(base: Report, deeper: Report) -> None:
    saved, peak, *_ = compare(base, deeper).broken(Limit.parse("5%"))
    assert saved.startswith("full: saved bytes grew from 68,100 B")
    assert "layers.2.1 relu +65,536 B" in saved
    assert peak.startswith("full: peak grew")


def test_tables_fold_alike_changes_and_keep_the_sum(base: Report) -> None:
    diff = compare(base, predicted(data__batch="128"))
    text = "\n".join(cell.text for table in diff.tables() for row in table.rows for cell in row.cells)
    assert "layers.0…1.1 (2×)" in text
    json = diff.to_dict()
    assert json["schema"] == "memback.diff/1"
    assert [run["mode"] for run in json["runs"]] == ["full", "checkpoint:sqrt", "inference"]
