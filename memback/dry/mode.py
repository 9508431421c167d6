"""Dry runs: models, inputs and whole steps that allocate nothing."""

from __future__ import annotations

from memback.dry.array import ShapeArray
from memback.engine.state import Setting

__all__ = ["dry_run"]


class dry_run(Setting):
    """Everything in the block allocates nothing: parameters are made without memory, ops get no values.

    Models and optimisers that are built in the block stay memory-less afterwards.
    """

    field = "dry"

    def value(self) -> type[ShapeArray]:
        """What makes arrays without memory."""
        return ShapeArray
