"""The ledger's books: how long they live, and what becomes of what they refer to."""

from __future__ import annotations

import gc
import weakref

import numpy as np

import memback as mb
from memback.ledger import Ledger
from memback.state import current


def watched_step(model: mb.models.MLP) -> Ledger:
    state = current()
    ledger = state.observer = Ledger()
    try:
        model.loss(np.ones((2, 4), np.float32), np.zeros(2, int)).backward()
    finally:
        state.observer = None
    ledger.finish()
    return ledger


def test_a_ledger_is_gone_as_soon_as_nobody_looks_at_it_though_gradients_live_on() -> None:
    model = mb.models.MLP(4, 3, width=5, depth=2)
    gc.collect()
    gc.disable()
    try:
        ledger = weakref.ref(watched_step(model))
        assert ledger() is None
    finally:
        gc.enable()
    model.zero_grad()  # what its accounts were of goes without it


def test_an_account_is_known_by_itself_and_not_by_its_buffer() -> None:
    ledger = watched_step(mb.models.MLP(4, 3, width=5, depth=2))
    accounts = {account for row in ledger.rows for _, account in row.kept}
    assert len(accounts) == len({account.number for account in accounts})
    assert all(account.closed for account in accounts)  # backward has used and freed them
