"""The tape that users see: it has a ledger, which shows what the tape holds."""

from __future__ import annotations

from typing import Any, Literal

from memback.engine import tape as engine
from memback.engine.state import Setting
from memback.profiling.accounts import Event, Row
from memback.profiling.ledger import Ledger

__all__ = ["Tape"]


class _Watch(Setting):
    """Install a ledger as the thread's observer."""

    field = "observer"

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    def value(self) -> Ledger:
        return self._ledger


class Tape(engine.Tape):
    """A tape with a ledger: an explicit ``with mb.Tape() as tape:`` shows what it holds.

    Args:
        retain: as in :class:`memback.engine.tape.Tape`.

    Attributes:
        ledger: the :class:`Ledger` that watched the block.
    """

    def __init__(self, retain: Literal["needed", "all"] = "needed") -> None:
        super().__init__(retain)
        self.ledger = Ledger()
        self._watch = _Watch(self.ledger)

    def __enter__(self) -> Tape:
        super().__enter__()
        self._watch.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._watch.__exit__()
        super().__exit__(*details)

    @property
    def saved_bytes(self) -> int:
        """Bytes of the distinct buffers saved for backward now, arguments excluded."""
        return self.ledger.saved_bytes

    @property
    def events(self) -> list[Event]:
        """What happened to every buffer, in order."""
        return self.ledger.events

    def rows(self) -> list[Row]:
        """One row for each call of the forward pass; until backward begins, as of now."""
        if self.ledger.saved_at_end_of_forward is None:
            self.ledger.charge_rows()
            self.ledger.saved_at_end_of_forward = None
        return self.ledger.rows
