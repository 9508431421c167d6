"""Networks that nobody designed, in every mode: what is predicted is what a real run holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memback as mb
from memback.optim import SGD, AdamW
from memback.profiling import measuring
from memback.profiling.ledger import Ledger
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from tests.profiling.networks import ROWS, WIDTH, Model, Network, networks

FULL, OWN = Mode("full"), Mode("checkpoint")
OTHERS = [
    FULL,
    Mode("retain-all"),
    Mode("checkpoint", "every:1"),
    Mode("checkpoint", "sqrt"),
    Mode("checkpoint", "selective"),
    Mode("inference"),
]


@pytest.fixture(autouse=True, scope="module")
def quick_measurements() -> Iterator[None]:
    """Memory need not go back to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_give_back_free_memory", lambda: None)
        yield


def step(network: Network) -> Step:
    mb.manual_seed(1)
    model = Model(network)
    trained = list(model.parameters())
    optimizer = {
        None: lambda: None,
        "sgd": lambda: SGD(trained, 0.1, momentum=0.9),
        "adamw": lambda: AdamW(trained, 0.1),
    }
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, WIDTH)).astype(network.dtype)
    y = rng.integers(0, WIDTH, ROWS)
    return Step(lambda: model.loss(x, y), model, optimizer[network.optimizer]())


def rows(ledger: Ledger) -> list[tuple[object, ...]]:
    return [
        (row.path, row.op, row.output_shape, row.dtype, row.saved_bytes, row.shared_bytes, row.flops, row.recomputed)
        for row in ledger.rows
    ]


def is_as_predicted(network: Network, other: Mode) -> None:
    """Each network in full retention, with the checkpoints that it has itself, and in another mode.

    The last two are measured; where a network has no checkpoints, its own are full retention.
    """
    made = step(network)
    full = made.account(FULL)
    for mode in {FULL: None, OWN: None, other: None}:
        real = full if mode is FULL else made.account(mode)
        assert real.loss == full.loss
        assert real.gradient_sha256 == (full.gradient_sha256 if mode.trains else None)
        saved = real.ledger.saved_at_end_of_forward
        assert sum(row.saved_bytes for row in real.ledger.rows) == saved
        predicted = made.predict(mode)
        assert predicted.ledger.saved_at_end_of_forward == saved
        assert rows(predicted.ledger) == rows(real.ledger)
        assert sum(predicted.peak.parts.values()) == predicted.peak.bytes
        if mode in (OWN, other):
            measured, _ = made.measure(mode, real.ledger)
            assert abs(measured.bytes - predicted.peak.bytes) <= measured.bytes / 100 + 64 * 1024


@pytest.mark.filterwarnings("ignore::memback.engine.checkpoint.CheckpointWarning")
@settings(max_examples=50, suppress_health_check=list(HealthCheck))
@given(network=networks, other=st.sampled_from(OTHERS))
def test_what_is_predicted_is_what_a_real_run_holds(network: Network, other: Mode) -> None:
    is_as_predicted(network, other)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::memback.engine.checkpoint.CheckpointWarning")
@settings(max_examples=400, suppress_health_check=list(HealthCheck))
@given(network=networks, other=st.sampled_from(OTHERS))
def test_what_is_predicted_is_what_a_real_run_holds_for_many_networks(network: Network, other: Mode) -> None:
    is_as_predicted(network, other)


def test_the_networks_are_large_enough_for_the_bound_to_mean_something() -> None:
    """One activation more or less in float32 is more than a peak may be apart by."""
    assert ROWS * WIDTH * 4 >= 3 * 64 * 1024
