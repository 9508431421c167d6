"""How a training step on a device is shown: whether it fits, what takes it, what would help, and what changed."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from memback.errors import MembackError, UsageError
from memback.profiling.report import Device, DevicePeak, DeviceSegment, DeviceStep, Report
from memback.reports import html, markdown
from memback.reports.diff import Limit, compare
from memback.reports.text import plain
from memback.units import MIB
from tests.reports import sample

PARTS = {
    "parameters": 100 * MIB,
    "inputs": 2 * MIB,
    "optimizer_state": 200 * MIB,
    "gradients": 100 * MIB,
    "activations": 500 * MIB,
    "libraries": 8 * MIB,
    "fragmentation": 90 * MIB,
}


def step(**parts):
    peak = DevicePeak(**{**PARTS, **parts})
    return DeviceStep(
        forward_bytes=peak.activations,
        allocated_peak_bytes=peak.total_bytes - peak.fragmentation,
        reserved_peak_bytes=peak.total_bytes,
        peak=peak,
    )


def report(memory=4096, error=None, **parts):
    device = Device(
        name="t4",
        title="Tesla <T4>",
        capability=(7, 5),
        memory_bytes=memory * MIB,
        optimizer="AdamW",
        context_bytes=512 * MIB,
        first=step(optimizer_state=0),
        steady=step(**parts),
        unmodelled={"convolution": "what cuDNN takes as workspace"},
        segments=(
            DeviceSegment(pool="large", blocks=(("activations", 500 * MIB), ("free", 20 * MIB))),
            *(DeviceSegment(pool="small", blocks=(("optimizer_state", MIB), ("libraries", MIB))) for _ in range(9)),
        ),
        out_of_memory=error,
    )
    return replace(sample.report(), device=device)


def said(text):
    return " ".join(text.split())


def test_the_first_lines_say_whether_it_fits_what_takes_it_and_what_would_help():
    text = plain(report())
    lines = said("\n".join(text.splitlines()[:24]))
    assert "It fits on cuda:t4 (Tesla <T4>): a training step with AdamW needs 1.48 GiB of 4.00 GiB, 2.52 GiB" in lines
    assert "The most of it is activations, 50.0 %. What would help: a smaller --batch" in lines
    assert "--amp fp16, a plan (--budget 60%)." in lines
    assert "Not known of convolution: what cuDNN takes as workspace." in lines
    assert f"optimiser state 0 {200 * MIB:,} 200.00 20.0 %" in lines
    assert f"reserved {800 * MIB:,} {1000 * MIB:,} 1,000.00 100.0 %" in lines


def test_a_step_that_does_not_fit_is_told_in_pytorchs_words():
    lines = said(plain(report(1024, "CUDA out of memory. Tried. If reserved but unallocated memory is large try")))
    assert "It does not fit on cuda:t4 (Tesla <T4>)" in lines
    assert "488.00 MiB too much." in lines
    assert "PyTorch would say: CUDA out of memory. Tried." in lines
    assert "If reserved but" not in lines
    assert "would run where PyTorch's allocator gives unused segments back" in said(plain(report(1024)))


@pytest.mark.parametrize(
    ("parts", "remedy"),
    [
        ({"parameters": 2000 * MIB}, "--lora, --dtype fp16, an optimiser that keeps less"),
        ({"optimizer_state": 2000 * MIB}, "--lora, --dtype fp16, an optimiser that keeps less"),
        ({"gradients": 2000 * MIB}, "a smaller --batch"),
        ({"fragmentation": 2000 * MIB}, "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"),
    ],
)
def test_what_would_help_is_about_what_takes_the_most(parts, remedy):
    assert f"What would help: {remedy}" in said(plain(report(**parts)))


def test_of_what_nobody_can_make_less_nothing_is_said_to_help():
    assert "The most of it is libraries, 74.1 %." in said(plain(report(libraries=2840 * MIB)))
    assert "What would help" not in plain(report(libraries=2840 * MIB))


def test_the_page_shows_bars_table_and_segments():
    page = html.render(report(1024))
    assert "It does not fit on cuda:t4 (Tesla &lt;T4&gt;)" in page
    assert 'class="bar optimiser-state"' in page
    assert 'class="limit"' in page
    assert 'class="block free"' in page
    assert 'class="block optimiser-state"' in page
    assert "It does not fit" in html.fragment(report(1024))
    assert "A training step on the device" not in html.render(sample.report())


def test_markdown_has_the_verdict_and_the_table():
    text = markdown.render(report())
    assert "**It fits on cuda:t4" in text
    assert f"| **reserved** | **{800 * MIB:,}** | **{1000 * MIB:,}** |" in text


def test_a_report_of_before_peaks_were_made_up_is_shown_without_a_table():
    device = report().device
    bare = {name: replace(getattr(device, name), peak=None) for name in ("first", "steady")}
    old = replace(report(), device=replace(device, **bare, segments=()))
    assert "It fits on cuda:t4" in plain(old)
    assert "what its peak is made up of" not in plain(old)
    assert "A training step on the device" in html.render(old)
    assert compare(old, report()).device.parts == []


def test_what_a_peak_is_made_up_of_must_add_up_to_it():
    device = report().device
    wrong = replace(device, steady=replace(device.steady, allocated_peak_bytes=device.steady.allocated_peak_bytes + 1))
    with pytest.raises(MembackError, match="what is at the device's peak sums to"):
        replace(report(), device=wrong).validate()
    with pytest.raises(UsageError, match="contradicts itself"):
        Report.from_json(json.dumps(replace(report(), device=wrong).to_dict()))
    assert Report.from_json(json.dumps(report().to_dict())) == report()


def test_a_comparison_explains_the_change_by_what_the_peak_is_made_up_of():
    diff = compare(report(), report(optimizer_state=0, activations=600 * MIB))
    changes = {part.name: part.difference for part in diff.device.parts if part.difference}
    assert changes == {"optimiser state": -200 * MIB, "activations": 100 * MIB}
    assert sum(changes.values()) == diff.device.reserved.difference
    table = next(table for table in diff.tables() if "A steady training step on cuda:t4" in table.title)
    assert [cell.text for cell in table.total.cells[:4]] == [
        "reserved",
        f"{1000 * MIB:,}",
        f"{900 * MIB:,}",
        f"-{100 * MIB:,}",
    ]
    assert diff.to_dict()["device"]["steady"]["reserved_peak_bytes"]["after"] == 900 * MIB
    assert compare(report(), sample.report()).device is None


def test_a_step_that_grew_past_the_limit_is_told_with_what_grew():
    broken = compare(report(), report(activations=600 * MIB)).broken(Limit.parse("5%"))
    assert len(broken) == 2
    assert "reserved grew from" in broken[1]
    assert f"activations +{100 * MIB:,} B" in broken[1]
    assert not compare(report(), report()).broken(Limit.parse("0%"))
