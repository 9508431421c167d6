from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memback.data import Dataset, floating


def numbered(samples: int) -> Dataset:
    x = np.arange(samples, dtype=np.float32)[:, None]
    y = np.arange(samples, dtype=np.uint8)
    return Dataset("numbered", x, y, x[:7], y[:7])


@given(samples=st.integers(1, 30), size=st.integers(1, 70), seed=st.integers(0, 99), epochs=st.integers(1, 3))
def test_each_epoch_shows_every_sample_once(samples: int, size: int, seed: int, epochs: int) -> None:
    steps = -(-epochs * samples // size)
    stream = np.concatenate([numbered(samples).batch(size, seed, step)[1] for step in range(steps)])
    assert len(stream) == steps * size
    for epoch in stream[: epochs * samples].reshape(epochs, samples):
        assert sorted(epoch) == list(range(samples))


@given(start=st.integers(0, 50), size=st.integers(1, 20))
def test_a_resumed_run_sees_the_batches_it_would_have_seen(start: int, size: int) -> None:
    data = numbered(13)
    whole, resumed = data.batches(size, seed=3), data.batches(size, seed=3, start=start)
    for _ in range(start):
        next(whole)
    for _ in range(3):
        for expected, batch in zip(next(whole), next(resumed), strict=True):
            np.testing.assert_array_equal(expected, batch)


def test_the_order_changes_with_epoch_and_seed() -> None:
    data = numbered(50)
    orders = {tuple(data.batch(50, seed, step)[1]) for seed in (0, 1) for step in (0, 1)}
    assert len(orders) == 4


def test_inputs_and_targets_stay_together_and_integers_are_wide() -> None:
    x, y = numbered(20).batch(8, seed=0, step=4)
    np.testing.assert_array_equal(x[:, 0], y)
    assert (x.dtype, y.dtype) == (np.float32, np.int64)


def test_test_samples_come_once_in_order() -> None:
    batches = list(numbered(20).test_batches(3))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert np.concatenate([y for _, y in batches]).tolist() == list(range(7))


@pytest.mark.parametrize(("name", "bits"), [("float16", 16), ("bfloat16", 16), ("float32", 32), ("float64", 64)])
def test_floating_dtypes_are_known_by_name(name: str, bits: int) -> None:
    assert floating(name).itemsize * 8 == bits
