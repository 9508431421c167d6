from __future__ import annotations

import io

import msgspec
import pytest
from hypothesis import given, settings
from rich.cells import cell_len
from rich.console import Console, RenderableType

from memback.profiling.report import Report
from memback.reports import text
from tests.reports import sample
from tests.reports.strategies import reports

change = msgspec.structs.replace


def show(renderable: RenderableType, width: int = 80, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(file=file, width=width).print(renderable)
    file.flush()
    return file.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


def coloured(renderable: RenderableType) -> str:
    file = io.StringIO()
    Console(file=file, width=120, force_terminal=True, color_system="standard", no_color=False).print(renderable)
    return file.getvalue()


def everything(report: Report, width: int) -> str:
    details = [show(text.layers(run, fold=fold), width) for run in report.runs for fold in (True, False)]
    return "\n".join([show(report, width), *details])


def numbers(report: Report) -> list[int]:
    found = []
    for run in report.runs:
        found += [run.saved_bytes, run.predicted_peak_bytes, run.measured_peak_bytes, run.rss_peak_bytes]
        found += [run.bookkeeping_bytes, run.peak.total_bytes, run.peak.saved, run.peak.workspace]
        for layer in run.layers:
            found += [layer.saved_bytes, layer.shared_bytes, *(value.bytes for value in layer.saved)]
    if report.reference is not None:
        found += report.training_memory(report.reference).values()
    return [number for number in found if number is not None]


@pytest.mark.parametrize("width", [80, 120])
@given(report=reports)
@settings(max_examples=30)
def test_lines_keep_the_width_and_numbers_stay_whole(width: int, report: Report) -> None:
    shown = everything(report, width)
    assert max(map(cell_len, shown.splitlines())) <= width
    words = set(shown.split())
    for number in numbers(report):
        assert f"{number:,}" in words
    assert "\x1b" not in shown


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_the_sample_keeps_every_width(width: int) -> None:
    shown = everything(sample.report(), width)
    assert max(map(cell_len, shown.splitlines())) <= width
    assert all(f"{number:,}" in shown for number in numbers(sample.report()))
    assert not any(line.endswith(" ") for line in shown.splitlines())


def test_a_pipe_that_knows_ascii_alone_gets_the_same_numbers() -> None:
    shown = show(sample.report(), encoding="ascii")
    assert all(f"{run.saved_bytes:,}" in shown for run in sample.report().runs)
    assert "1.99x" in shown
    assert "####" in shown


def test_a_mode_has_one_row_with_its_numbers() -> None:
    lines = show(text.comparison(sample.report()), 200).splitlines()
    (line,) = [line for line in lines if line.startswith("checkpoint:sqrt")]
    for part in (
        "1,069,056",
        "1.02",
        "0.50×",
        "2,238,504",
        "2,249,256",
        "+10,752",
        "+0.48 %",
        "bit-identical",
        "1.81 ms",
    ):
        assert part in line


def test_what_nobody_measured_has_no_column() -> None:
    dry = tuple(
        change(
            run,
            measured_peak_bytes=None,
            rss_peak_bytes=None,
            bookkeeping_bytes=None,
            seconds=None,
            gradient_sha256=None,
        )
        for run in sample.report().runs
    )
    shown = show(text.comparison(change(sample.report(), runs=dry)), 120)
    for title in ("measured", "RSS", "forward", "gradients", "Bookkeeping"):
        assert title not in shown


def differing_by(difference: int) -> RenderableType:
    run = sample.full()
    run = change(run, measured_peak_bytes=run.peak.total_bytes + difference)
    return text.comparison(change(sample.report(), runs=(run,)))


def test_a_prediction_that_does_not_hold_is_said_in_words_and_in_red() -> None:
    limit = sample.full().peak.total_bytes // 100 + 256 * 1024
    assert "does not hold" not in show(differing_by(limit))
    assert "does not hold" not in show(differing_by(-limit))
    assert "! full: predicted and measured peak differ by" in show(differing_by(limit + 1))
    assert "does not hold" in show(differing_by(-limit - 1)).replace("\n  ", " ")
    assert "\x1b[1;31m" not in coloured(differing_by(limit))
    assert "\x1b[1;31m" in coloured(differing_by(limit + 1))


def test_what_peaks_differ_by_is_explained_where_they_do() -> None:
    assert "Difference:" not in show(differing_by(0))
    for difference in (1, -1):
        assert "Difference: measured minus predicted. The measurement includes temporaries" in show(
            differing_by(difference), 120
        )


def test_an_optimiser_that_keeps_nothing_has_no_row_but_a_sentence() -> None:
    report = sample.report()
    without = change(report, arguments=change(report.arguments, optimizer_bytes=0))
    shown = show(text.composition(without, sample.full()), 120)
    assert not [line for line in shown.splitlines() if line.startswith("optimiser state")]
    assert "Optimiser state is not included" in shown
    assert "Optimiser state is not included" not in show(text.composition(report, sample.full()), 120)


def test_gradients_that_differ_are_said_in_words_and_in_red() -> None:
    report = sample.report()
    assert "DIFFER" not in show(report)
    other = change(sample.retain_all(), gradient_sha256="f" * 64)
    report = change(report, runs=(other, *report.runs[1:]))
    shown = show(text.comparison(report), 200)
    (line,) = [line for line in shown.splitlines() if line.startswith("retain-all")]
    assert line.endswith("DIFFERENT")
    assert "! retain-all: its gradients DIFFER from those of full." in shown
    assert "\x1b[1;31m" in coloured(text.comparison(report))


@given(reports)
@settings(max_examples=30)
def test_shares_add_up_to_a_hundred_percent_of_the_stated_total(report: Report) -> None:
    for run in report.runs:
        lines = show(text.composition(report, run), 120).splitlines()
        shares = [float(words[i - 1]) for words in map(str.split, lines) if "%" in words for i in [words.index("%")]]
        total = sum(report.training_memory(run).values())
        if total:
            assert round(sum(shares[:-1]), 1) == shares[-1] == 100.0
        assert any(line.split()[:2] == ["total", f"{total:,}"] for line in lines)


def test_the_composition_names_what_training_memory_consists_of() -> None:
    shown = show(text.composition(sample.report(), sample.full()))
    for name in ("parameters", "gradients", "optimiser state", "saved activations", "workspace"):
        assert f"\n{name} " in shown
    assert "backward of relu, blocks.3.act" in shown


@pytest.mark.parametrize("fold", [True, False])
def test_layers_end_in_their_total(fold: bool) -> None:
    lines = show(text.layers(sample.full(), fold=fold)).splitlines()
    (total,) = [line for line in lines if line.startswith("total ")]
    assert "2,117,632" in total.split()


def test_a_saved_value_says_where_it_came_from() -> None:
    shown = show(text.layers(sample.full(), fold=False))
    assert "    h  524,288 B  output of relu (blocks.2.act), mlp.py:12" in shown


def test_identical_layers_fold_and_unfold() -> None:
    folded = show(text.layers(sample.full()), 120)
    assert "blocks.1…3.fc " in folded
    assert "524,288 B each  output of relu (blocks.0…2.act)" in folded
    unfolded = show(text.layers(sample.full(), fold=False), 120)
    assert all(f"\nblocks.{i}.fc " in unfolded for i in range(4))


def test_names_can_not_reach_the_terminal() -> None:
    run = sample.full()
    layer = change(run.layers[0], path="\x1b[31mred[bold]\r\n\u202e")
    shown = show(text.layers(change(run, layers=(layer, *run.layers[1:])), fold=False), 120)
    assert "\x1b" not in shown
    assert r"\x1b[31mred[bold]\r\n\u202e" in shown


def test_a_report_without_runs_shows_its_head() -> None:
    assert "mlp: mlp, float32, batch 512" in show(change(sample.report(), runs=()))
