"""Dry runs: models, inputs and whole steps that allocate nothing."""

from __future__ import annotations

from memback.state import current

__all__ = ["dry_run"]


class dry_run:
    """Everything in the block allocates nothing: parameters are made without memory, ops get no values.

    Models and optimisers that are built in the block stay memory-less afterwards.
    """

    def __enter__(self) -> None:
        state = current()
        self._before, state.dry = state.dry, True

    def __exit__(self, *_: object) -> None:
        current().dry = self._before
