"""The account of a transformer layer against the closed form of Korthikanti et al. 2022, arXiv 2205.05198."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

import memback as mb

SEQUENCE, BATCH = 2048, 1
SIZES = {"22B": (6144, 64), "175B": (12288, 96)}
NORM_ROWS = 2 * 2 * 4 * SEQUENCE * BATCH
"""What the two layer norms keep besides their input: two numbers of four bytes a row, which the formula leaves out."""


def layer_rows(width, heads, policy=None, mask="bool"):
    with mb.dry_run():
        model = mb.models.GPT(
            layers=3,
            width=width,
            heads=heads,
            vocabulary=512,
            context=SEQUENCE,
            dropout=0.1,
            mask=mask,
            dtype="float16",
        )
        tokens = mb.ShapeArray((BATCH, SEQUENCE), "int64")
        modes = ("full",) if policy is None else ("checkpoint",)
        report = mb.profile(model, step=lambda: model.loss(tokens, tokens), modes=modes, policy=policy)
    return [layer for layer in report.runs[0].layers if layer.path.startswith("blocks.1")]


def saved(rows):
    return sum(row.saved_bytes for row in rows)


@pytest.mark.parametrize(("width", "heads"), SIZES.values(), ids=SIZES)
def test_a_layer_keeps_what_the_published_formula_says_and_two_numbers_a_norm_row(width, heads):
    rows = layer_rows(width, heads)
    sbh = SEQUENCE * BATCH * width
    assert saved(rows) == 34 * sbh + 5 * heads * SEQUENCE**2 * BATCH + NORM_ROWS
    numbers = [value for row in rows for value in row.saved if value.name in ("mean", "rstd")]
    assert sum(value.bytes for value in numbers) == NORM_ROWS


@pytest.mark.parametrize(("width", "heads"), SIZES.values(), ids=SIZES)
def test_recomputing_the_cores_of_attention_leaves_34_sbh(width, heads):
    assert saved(layer_rows(width, heads, "selective:attention")) == 34 * SEQUENCE * BATCH * width + NORM_ROWS


@pytest.mark.parametrize(("width", "heads"), SIZES.values(), ids=SIZES)
def test_keeping_only_products_with_weights_leaves_20_sbh(width, heads):
    assert saved(layer_rows(width, heads, "selective")) == 20 * SEQUENCE * BATCH * width


@pytest.mark.parametrize(("width", "heads"), SIZES.values(), ids=SIZES)
def test_checkpointing_whole_layers_leaves_their_input(width, heads):
    assert saved(layer_rows(width, heads, "all")) == 2 * SEQUENCE * BATCH * width


def test_masks_of_bits_and_of_seeds_save_what_they_promise():
    width, heads = SIZES["22B"]
    elements = 2 * SEQUENCE * BATCH * width + heads * SEQUENCE**2 * BATCH
    by_bytes = saved(layer_rows(width, heads))
    assert by_bytes - saved(layer_rows(width, heads, mask="bits")) == elements - elements // 8
    assert by_bytes - saved(layer_rows(width, heads, mask="seed")) == elements


PAGE = Path(__file__).parents[2] / "docs" / "transformer-activations.md"


@pytest.mark.skipif(not PAGE.exists(), reason="the documentation is not beside the tests")
def test_the_documentation_shows_what_its_code_prints_and_the_rows_that_the_report_has():
    page = PAGE.read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    assert re.findall(r"# (\d+)$", code, re.MULTILINE) == printed.getvalue().split()
    table = re.findall(r"^\| (?:`([\w.]+)`|block) \| (\w+) \| ([\d,]+) \|", page, re.MULTILINE)
    shown = [(f"blocks.1.{path}" if path else "blocks.1", op, int(n.replace(",", ""))) for path, op, n in table]
    assert shown == [(row.path, row.op, row.saved_bytes) for row in names["rows"] if row.saved_bytes]
    (total,) = re.findall(r"\| \*\*total\*\* \| \| \*\*([\d,]+)\*\*", page)
    assert int(total.replace(",", "")) == sum(n for _, _, n in shown)
    s, b, h, a = (names[name] for name in "sbha")
    assert f"s·b·h = {s * b * h:,}, a·s²·b = {a * s**2 * b:,}" in page


@pytest.mark.parametrize("attention", ["fused", "tiled"])
def test_other_forms_of_attention_keep_what_the_documentation_says(attention):
    width, heads = SIZES["22B"]
    with mb.dry_run():
        dropout = 0.1 if attention == "fused" else 0.0
        sizes = {"layers": 3, "width": width, "heads": heads, "vocabulary": 512, "context": SEQUENCE}
        model = mb.models.GPT(**sizes, dropout=dropout, attention=attention, dtype="float16")
        tokens = mb.ShapeArray((BATCH, SEQUENCE), "int64")
        report = mb.profile(model, step=lambda: model.loss(tokens, tokens), modes=("full",))
    kept = saved([layer for layer in report.runs[0].layers if layer.path.startswith("blocks.1")])
    sbh, as2b = SEQUENCE * BATCH * width, heads * SEQUENCE**2 * BATCH
    log_sums = heads * SEQUENCE * BATCH * 4
    assert kept == NORM_ROWS + (34 * sbh + 3 * as2b if attention == "fused" else 32 * sbh + log_sums)
