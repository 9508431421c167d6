"""Cards, the workspaces of cuBLAS, and the stored figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memback.errors import UsageError
from memback.units import MIB
from tests.device.cases import CASES, MODELS
from tests.device.pure import pure

cards, workspaces = pure("cards"), pure("workspaces")
EXPECTED = json.loads(Path(__file__).with_name("expected.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "short"),
    [("cuda:h100", "h100"), ("H100", "h100"), ("cuda:a100", "a100-40gb"), ("v100", "v100-16gb"), ("cuda", "h200")],
)
def test_a_card_is_found_by_its_name(name: str, short: str) -> None:
    assert cards.card(name) is cards.CARDS[short]


@pytest.mark.parametrize("name", ["cuda:h300", "", "cuda:", "cuda:0", "tpu", "h100 " * 100])
def test_an_unknown_card_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UsageError, match="is not known; write cuda:NAME with one of v100-16gb, .*, rtx5090"):
        cards.card(name)


@pytest.mark.parametrize("card", cards.CARDS.values(), ids=cards.CARDS)
def test_a_card_has_a_little_less_memory_than_is_sold(card: object) -> None:
    sold = {"v100-16gb": 16, "v100-32gb": 32, "t4": 16, "rtx2080ti": 11, "a100-40gb": 40, "a100-80gb": 80, "a10g": 24}
    sold |= {"a40": 48, "a6000": 48, "rtx3090": 24, "l4": 24, "l40s": 48, "rtx4090": 24, "h100": 80, "h200": 141}
    sold |= {"b200": 180, "rtx5090": 32}
    assert 0.9 < card.memory_bytes / (sold[card.name] * 2**30) < 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("capability", "config", "expected"),
    [
        ((7, 5), "", 8_519_680),
        ((8, 9), "", 8_519_680),
        ((9, 0), "", 32 * MIB),
        ((12, 0), "", 32 * MIB),
        ((9, 0), ":4096:2:16:8", 8_519_680),
        ((8, 0), ":16:8", 131_072),
        ((8, 0), ":16:8:32:2", 196_608),
        ((8, 0), ":16:8:32", 131_072),
        ((8, 0), "16:8", 8_519_680),
        ((8, 0), ":0:0", 0),
    ],
)
def test_a_workspace_is_as_large_as_pytorch_makes_it(capability: tuple[int, int], config: str, expected: int) -> None:
    assert workspaces.cublas_workspace_bytes(capability, config) == expected


def test_a_workspace_that_is_not_shared_is_taken_beside() -> None:
    assert workspaces.cublaslt_workspace_bytes() == 0
    assert workspaces.cublaslt_workspace_bytes(unified=False) == MIB
    assert workspaces.cublaslt_workspace_bytes(unified=False, size="4096") == 4 * MIB
    assert workspaces.cublaslt_workspace_bytes(unified=False, size="x") == MIB


def test_every_case_has_its_figures_and_every_model_its_cases() -> None:
    assert list(EXPECTED["cases"]) == list(CASES)
    assert {case.model for case in CASES.values()} == set(MODELS)
    assert all(case.card in cards.CARDS for case in CASES.values())


@pytest.mark.parametrize("name", CASES)
def test_figures_are_of_their_order(name: str) -> None:
    figures = EXPECTED["cases"][name]
    for step in (figures["first"], figures["steady"]):
        assert 0 < step["forward_bytes"] < step["allocated_peak_bytes"] <= step["reserved_peak_bytes"]
        assert figures["static_bytes"] < step["allocated_peak_bytes"]


@pytest.mark.parametrize(
    ("card", "threads"), [("t4", 1024), ("rtx3090", 1536), ("rtx4090", 1536), ("a100", 2048), ("h100", 2048)]
)
def test_a_multiprocessor_has_room_for_the_threads_of_its_capability(card: str, threads: int) -> None:
    assert cards.card(card).threads == threads
