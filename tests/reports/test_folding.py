from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback.profiling.report import Layer
from memback.reports.folding import fold, span
from tests.reports import sample
from tests.reports.strategies import layers

change = msgspec.structs.replace


def row(path: str, op: str = "relu", saved_bytes: int = 8) -> Layer:
    return change(sample.block_layers()[1], path=path, op=op, saved_bytes=saved_bytes, saved=())


def folded(rows: list[Layer]) -> list[tuple[str, str, int]]:
    return [(one.path, one.layers[0].op, one.calls) for one in fold(rows)]


def test_alike_blocks_become_one() -> None:
    rows = [row(f"blocks.{i}.{op}", op) for i in range(32) for op in ("norm", "linear", "relu")]
    assert folded([row("embed"), *rows, row("head")]) == [
        ("embed", "relu", 1),
        ("blocks.0…31.norm", "norm", 32),
        ("blocks.0…31.linear", "linear", 32),
        ("blocks.0…31.relu", "relu", 32),
        ("head", "relu", 1),
    ]


def test_folding_starts_with_a_whole_block() -> None:
    rows = [row(f"blocks.{i}.{op}", op) for i in range(5) for op in ("linear", "relu")]
    rows[0] = row("blocks.0.linear", "linear", saved_bytes=0)
    assert folded(rows) == [
        ("blocks.0.linear", "linear", 1),
        ("blocks.0.relu", "relu", 1),
        ("blocks.1…4.linear", "linear", 4),
        ("blocks.1…4.relu", "relu", 4),
    ]


def test_the_calls_of_one_layer_become_one() -> None:
    rows = [change(row("cell.0"), call=call) for call in range(100)]
    rows[0] = change(rows[0], saved_bytes=0)
    assert folded(rows) == [("cell.0", "relu", 1), ("cell.0", "relu", 99)]


def test_two_alike_stay_apart() -> None:
    assert folded([row("a.0"), row("a.1")]) == [("a.0", "relu", 1), ("a.1", "relu", 1)]


@pytest.mark.parametrize("field", ["saved_bytes", "shared_bytes", "parameter_bytes", "flops", "count"])
def test_rows_that_differ_in_a_number_stay_apart(field: str) -> None:
    rows = [change(row(f"a.{i}"), **{field: i + 1}) for i in range(4)]
    assert len(fold(rows)) == 4


@given(st.lists(layers(), max_size=4), st.integers(1, 4))
def test_nothing_is_lost(blocks: list[tuple[Layer, ...]], times: int) -> None:
    rows = [layer for block in blocks for layer in block] * times
    kept = [layer for one in fold(rows) for layer in one.layers]
    assert sorted(map(id, kept)) == sorted(map(id, rows))


@pytest.mark.parametrize(
    ("first", "last", "both"),
    [
        ("blocks.0.fc", "blocks.31.fc", "blocks.0…31.fc"),
        ("output of relu (0)", "output of relu (4)", "output of relu (0…4)"),
        ("a.0.1", "a.2.3", "a.0…2.1…3"),
        ("input", "output of relu (2)", "input"),
        ("same", "same", "same"),
    ],
)
def test_a_span_joins_what_differs_in_numbers_alone(first: str, last: str, both: str) -> None:
    assert span(first, last) == both
