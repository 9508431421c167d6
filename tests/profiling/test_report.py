from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings

from memback.errors import MembackError, UsageError
from memback.profiling.report import SCHEMA, Layer, Report, Run
from tests.reports import sample
from tests.reports.strategies import reports

change = msgspec.structs.replace


def with_layers(edit: Callable[[list[Layer]], object], **totals: int) -> Run:
    run = sample.full()
    rows = list(run.layers)
    edit(rows)
    return change(run, layers=tuple(rows), **totals)


def row_of(run: Run, path: str) -> int:
    return next(i for i, layer in enumerate(run.layers) if layer.path == path)


@settings(max_examples=50)
@given(reports)
def test_json_gives_back_an_equal_report(report: Report) -> None:
    again = Report.from_json(msgspec.json.encode(report))
    assert again == report
    assert again.to_dict() == report.to_dict()


def test_the_dict_has_the_names_of_the_schema() -> None:
    content = sample.report().to_dict()
    assert content["schema"] == "memback.report/1"
    run = content["runs"][1]
    assert run["layers"][1]["saved"][0]["from"] == "output of relu (blocks.0.act)"
    assert run["layers"][1]["output_shape"] == [512, 256]
    assert run["timeline"][0] == [0, "new", 0, 524288, 524288, "blocks.0.fc", "linear", "forward", None]


def test_the_sample_adds_up() -> None:
    sample.report().validate()


def test_the_training_memory_is_the_arguments_and_the_peak() -> None:
    report = sample.report()
    for run in report.runs:
        total = report.arguments.total_bytes + run.peak.total_bytes
        assert sum(report.training_memory(run).values()) == total


@pytest.mark.parametrize("drop", ["full", "inference"])
def test_the_reference_is_the_full_run_or_else_the_first_that_trains(drop: str) -> None:
    report = sample.report()
    report = change(report, runs=tuple(run for run in report.runs if run.mode != drop))
    assert report.reference is not None
    assert report.reference.mode == ("retain-all" if drop == "full" else "full")


def test_without_a_run_that_trains_there_is_no_reference() -> None:
    assert change(sample.report(), runs=(sample.inference(),)).reference is None


def test_a_report_says_briefly_what_it_is() -> None:
    assert repr(sample.report()) == (
        "<Report 'mlp', saved: retain-all 4,214,784 B, full 2,117,632 B, checkpoint:sqrt 1,069,056 B, inference 0 B>"
    )


# -- numbers that do not add up


def test_rows_that_miss_the_total_are_refused() -> None:
    run = change(sample.full(), saved_bytes=sample.full().saved_bytes + 1)
    with pytest.raises(MembackError, match="run full: its layers' saved bytes sum to 2,117,632 B.* 2,117,633 B"):
        run.validate()


def test_a_shared_buffer_that_is_counted_again_is_refused_with_its_layer() -> None:
    run = sample.full()
    at = row_of(run, "blocks.2.fc")

    def count_twice(rows: list[Layer]) -> None:
        rows[at] = change(rows[at], saved_bytes=sample.HIDDEN, shared_bytes=0)

    run = with_layers(count_twice, saved_bytes=run.saved_bytes + sample.HIDDEN)
    with pytest.raises(MembackError, match=r"layer blocks\.2\.fc \(linear, call 0\).* counted twice"):
        run.validate()


def test_a_buffer_with_two_sizes_is_refused_with_both_layers() -> None:
    at = row_of(sample.full(), "head")

    def grow(rows: list[Layer]) -> None:
        rows[at] = change(rows[at], saved=(change(rows[at].saved[0], bytes=1),))

    with pytest.raises(MembackError, match=r"layer head .* of 1 B, which has 524,288 B in layer blocks\.3\.act"):
        with_layers(grow).validate()


def test_saved_bytes_without_a_buffer_behind_them_are_refused() -> None:
    at = row_of(sample.full(), "blocks.0.fc")

    def invent(rows: list[Layer]) -> None:
        rows[at] = change(rows[at], saved_bytes=8)

    run = with_layers(invent, saved_bytes=sample.full().saved_bytes + 8)
    with pytest.raises(MembackError, match="the distinct buffers that its layers save have 2,117,632 B"):
        run.validate()


@pytest.mark.parametrize("predicted", [True, False])
def test_a_peak_that_its_parts_miss_is_refused_with_its_layer(predicted: bool) -> None:
    run = sample.full()
    total = run.peak.total_bytes
    run = change(run, predicted_peak_bytes=total + 1 if predicted else None, measured_peak_bytes=total + 1)
    with pytest.raises(MembackError, match=r"blocks\.3\.act\) sums to 2,762,792 B, but the peak is 2,762,793 B"):
        run.validate()


@pytest.mark.parametrize(("mode", "policy"), [("full", "sqrt"), ("checkpoint", None)])
def test_a_policy_belongs_to_the_checkpoint_mode(mode: str, policy: str | None) -> None:
    with pytest.raises(MembackError, match="a policy belongs to mode checkpoint"):
        change(sample.full(), mode=mode, policy=policy).validate()


# -- files that are no report


def refuse(data: bytes, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        Report.from_json(data, "r.json")
    message = str(caught.value)
    assert message.startswith("r.json ")
    assert "\n" not in message
    assert len(message) < 400


def test_a_report_cut_off_anywhere_is_refused() -> None:
    data = msgspec.json.encode(sample.report())
    for length in range(0, len(data) - 1, 997):
        refuse(data[:length], "not a whole JSON document.*cut off")


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"not json", b"{} {}", b'{"schema": NaN}'])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    refuse(data, "not a whole JSON document")


def test_what_is_nested_too_deep_is_refused() -> None:
    refuse(b'{"a":' + b"[" * 10**6, "nested too deep")


@pytest.mark.parametrize("data", [b"[]", b"3", b"null", b"{}", b'{"schema": null}', b'{"schema": ["x"]}'])
def test_json_of_another_kind_is_refused(data: bytes) -> None:
    refuse(data, "not a report of memback's")


def test_the_report_of_another_program_is_refused_by_its_schema() -> None:
    refuse(b'{"schema": "other.report/1"}', "its `schema` is 'other.report/1'")


@pytest.mark.parametrize("version", ["2", "10", "9" * 5000])
def test_a_newer_schema_asks_for_an_update(version: str) -> None:
    refuse(f'{{"schema": "memback.report/{version}"}}'.encode(), "newer schema.*update memback")


@pytest.mark.parametrize("version", ["0", "", "one", "1.5", "²"])
def test_an_unknown_version_is_refused(version: str) -> None:
    refuse(f'{{"schema": "memback.report/{version}"}}'.encode(), f"unknown schema.*{re.escape(SCHEMA)}")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b'"saved_bytes":4214784', b'"saved_bytes":"many"', r"Expected `int`, got `str`.*runs\[0\]\.saved_bytes"),
        (b'"saved_bytes":4214784', b'"saved_bytes":-1', r"Expected `int` >= 0.*runs\[0\]\.saved_bytes"),
        (b'"mode":"full"', b'"mode":"half"', r"Invalid enum value 'half'.*runs\[1\]\.mode"),
        (b'"dtype":"float32","sha256"', b'"sha256"', "missing required field `dtype`.*profile"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(old: bytes, new: bytes, reason: str) -> None:
    data = msgspec.json.encode(sample.report())
    assert old in data
    refuse(data.replace(old, new, 1), reason)


def test_a_report_whose_numbers_contradict_each_other_is_refused() -> None:
    data = msgspec.json.encode(sample.report())
    refuse(data.replace(b'"saved_bytes":4214784', b'"saved_bytes":4214785', 1), "contradicts itself: run retain-all")


def test_fields_that_a_later_version_adds_are_passed_over() -> None:
    data = msgspec.json.encode(sample.report())
    assert Report.from_json(b'{"added":[1],' + data[1:]) == sample.report()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Could not read the report .*none\.json: no such file"):
        Report.load(tmp_path / "none.json")


def test_a_saved_report_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    sample.report().save(path)
    assert Report.load(path) == sample.report()
