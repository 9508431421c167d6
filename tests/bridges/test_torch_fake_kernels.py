"""Fake ops give the storages of the real ones: every op for which PyTorch's own tests have samples."""

from __future__ import annotations

import os

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from tests.bridges.fake_kernels import compare

LAYOUTS = ["as it is", "transposed", "channels last", "in a larger one"]

STRIDES = {"aten._fft_r2c.default"}
"""Ops whose results' strides differ where the input has been expanded; they are of as many bytes."""


def test_storages_of_fake_and_real_results_are_alike():
    beside = compare([torch.float32], 1, LAYOUTS, in_turn=True)
    assert beside.compared > 1000
    assert {op: how for op, how in beside.different.items() if op not in STRIDES} == {}


@pytest.mark.skipif("MEMBACK_ALL_SAMPLES" not in os.environ, reason="takes many minutes: set MEMBACK_ALL_SAMPLES=1")
@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64, torch.int64], ids=str)
def test_storages_of_all_samples_are_alike(dtype):
    beside = compare([dtype], 12, LAYOUTS)
    assert beside.compared > 1000
    assert {op: how for op, how in beside.different.items() if op not in STRIDES} == {}
