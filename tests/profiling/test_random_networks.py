"""Networks that nobody designed, in every mode: what is predicted is what a real run holds."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

import memback as mb
from memback.ledger import Ledger
from memback.optim import SGD, AdamW
from memback.profiling.passes import Mode, Step
from tests.profiling.networks import ROWS, WIDTH, Model, Network, networks

MODES = [
    Mode("full"),
    Mode("retain-all"),
    Mode("checkpoint"),
    Mode("checkpoint", "every:1"),
    Mode("checkpoint", "selective"),
    Mode("inference"),
]
KIB = 1024


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_collect() -> Iterator[None]:
    """Each measurement begins with a garbage collection, which need not look at what other tests have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


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


@pytest.mark.filterwarnings("ignore::memback.checkpoint.CheckpointWarning")
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
@given(networks)
def test_what_is_predicted_is_what_a_real_run_holds(network: Network) -> None:
    made = step(network)
    full = made.account(Mode("full"))
    for mode in MODES:
        real, prediction = made.account(mode), made.predict(mode)
        assert real.loss == full.loss
        assert real.gradient_sha256 == (full.gradient_sha256 if mode.trains else None)
        assert prediction.ledger.saved_at_end_of_forward == real.ledger.saved_at_end_of_forward
        assert rows(prediction.ledger) == rows(real.ledger)
        assert sum(row.saved_bytes for row in real.ledger.rows) == real.ledger.saved_at_end_of_forward
        measured, _ = made.measure(mode, real.ledger)
        assert abs(measured.bytes - prediction.peak.bytes) <= measured.bytes / 100 + 64 * KIB, mode
