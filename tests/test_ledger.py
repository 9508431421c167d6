"""The ledger's books: how long they live, and what becomes of what they refer to."""

from __future__ import annotations

import gc
import sys
import weakref
from typing import Any

import numpy as np

import memback as mb
from memback import ops
from memback.dry.array import argument_like
from memback.engine.state import current
from memback.profiling.ledger import Ledger


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


def test_no_function_of_pythons_is_called_when_what_the_ledger_knows_dies() -> None:
    """An interrupt in one would be printed and lost."""
    called: list[str] = []
    x = mb.Tensor(np.ones(3, np.float32), requires_grad=True)
    with mb.Tape() as tape:
        y = ops.exp(ops.tanh(x))
        assert tape.saved_bytes == 24
        sys.setprofile(lambda frame, event, argument: called.append(event))
        del y
        sys.setprofile(None)
        assert "call" not in called
        assert tape.saved_bytes == 0
        assert [event.kind for event in tape.events][-2:] == ["free", "free"]


def test_none_is_when_changed_arguments_of_a_dry_run_die() -> None:
    called: list[str] = []
    array: Any = np.ones(3, np.float32)
    with mb.no_grad():
        tensor = mb.Tensor(array)
        tensor += 1
    like = argument_like(array)
    sys.setprofile(lambda frame, event, argument: called.append(event))
    del array, tensor
    sys.setprofile(None)
    assert "call" not in called
    assert like.shape == (3,)
